"""Versions of whatever can change a result."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("vokenray", "ray", "torch", "transformers", "timm", "numpy", "pyarrow", "faiss-cpu", "h5py", "tokenizers")


def package_versions() -> dict[str, str]:
    """Of Python and of every package whose version can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """The same, and the platform."""
    return {**package_versions(), "platform": platform.platform()}
