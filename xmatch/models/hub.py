"""Where a model or tokenizer lies on this machine: a folder, a copy of a URI, or the hub's cache."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal

from huggingface_hub import constants, snapshot_download

from xmatch.data import files
from xmatch.errors import InputError

Kind = Literal["model", "tokenizer"]
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
FILES: dict[Kind, tuple[str, ...]] = {"model": (*TOKENIZER_FILES, "*.safetensors"), "tokenizer": TOKENIZER_FILES}
"""Names of the files that decide what a model or tokenizer computes; never pickles, which could run code."""
BESIDE = ("*.md", "*.parquet")
"""What else is fetched with a model: its card, and what it has seen."""


def locate(name: str, kind: Kind, **hub: Any) -> str:
    """The local folder of a model or tokenizer.

    A hub name or URI is asked for once in the life of the process, so that a branch that moves meanwhile changes
    nothing.

    Args:
        name: local folder, URI of a folder, or hub name, which may pin a revision: NAME@REVISION.
        kind: what is wanted of it.
        hub: `revision`, `cache_dir`, `token` and so on, of a hub name.

    Raises:
        InputError: it is not there.
    """
    if files.is_uri(name):
        return _copy_of(name)
    if os.path.isdir(name):
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{kind} folder {name!r} does not exist; give a folder that does, or a hub name.")
    return _snapshot(name, kind, tuple(sorted(hub.items())))


@functools.cache
def _copy_of(uri: str) -> str:
    return files.local_copy(uri)


@functools.cache
def _snapshot(name: str, kind: Kind, hub: tuple[tuple[str, Any], ...]) -> str:
    repository, _, revision = name.partition("@")
    options = {**dict(hub), **({"revision": revision} if revision else {})}
    wanted = [*FILES[kind], *(BESIDE if kind == "model" else ())]
    try:
        return str(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=["*/*"], **options))
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            cache = options.get("cache_dir") or constants.HF_HUB_CACHE
            raise InputError(
                f"{name!r} is no local folder and is not in the hub's cache {str(cache)!r}, and HF_HUB_OFFLINE is set, "
                f"so it cannot be fetched. Fetch it where there is a network (hf download {repository}), or give a "
                "folder."
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{name!r} is no local folder, and the hub does not give it: {reason}") from error
