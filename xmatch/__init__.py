"""Image-text matching: data, dual encoders, training, exact search, evaluation, pages.

`from xmatch import DualEncoder` is the front door for using a trained model from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmatch.models.dual_encoder import DualEncoder

__all__ = ["DualEncoder"]


def __getattr__(name: str) -> Any:
    """Load the model code only when it is asked for, so that importing a sub-package stays cheap."""
    if name == "DualEncoder":
        from xmatch.models.dual_encoder import DualEncoder

        return DualEncoder
    raise AttributeError(f"module 'xmatch' has no attribute {name!r}")
