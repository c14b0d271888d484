"""What a training run leaves: the best model with its card, and the record of what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from xmatch.data import files
from xmatch.models import checkpoints
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.training.leakage import SEEN_FILE, read_seen, write_seen


def publish_model(
    best_folder: str,
    folder: str,
    *,
    given: DualEncoderConfig,
    dtype: Literal["float32", "float16"],
    card: str,
    seen: pa.Table,
    init_from: str,
) -> None:
    """Write the best epoch's model with its card, and what it and the model it started from have seen.

    Its towers bear the names that they were given, not those of the copies that workers loaded.

    Args:
        best_folder: of the best epoch.
        folder: of the model; local or a URI.
        given: its configuration as the run was asked for it.
        dtype: number format of its weights.
        card: its README.md.
        seen: record of this run.
        init_from: the model that the run started from; "" where there was none.
    """
    model = DualEncoder.from_pretrained(best_folder)
    image, text = replace(model.config.image, name=given.image.name), replace(model.config.text, name=given.text.name)
    model.config = replace(model.config, image=image, text=text)
    model.save_pretrained(folder, dtype=dtype, card=card)
    write_seen([seen, *earlier_seen(init_from)], files.join(folder, SEEN_FILE))


def earlier_seen(init_from: str) -> list[pa.Table]:
    """What the model that a run starts from has seen."""
    if not init_from:
        return []
    path = files.join(checkpoints.resolve(init_from), SEEN_FILE)
    return [read_seen(path)] if files.exists(path) else []


def trained_card(model: DualEncoderConfig, training: str, best: Mapping[str, Any]) -> str:
    """README.md of a model: what it is, how it was trained, what it reached on the validation split.

    Args:
        model: its configuration.
        training: loss, length and data, in words.
        best: figures of its epoch.
    """
    figures = "".join(f"| {name} | {value:.2f} |\n" for name, value in best.items() if isinstance(value, float))
    return (
        "---\nlibrary_name: vokenray\ntags: [image-text-retrieval]\n---\n# Dual encoder\n\n"
        f"Image tower `{model.image.name}`, text tower `{model.text.name or model.text.kind}`, "
        f"{model.dim} dimensions, {training}. What it saw is "
        f"listed in `{SEEN_FILE}`.\n\nBest epoch {best['epoch']}, validation:\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n"
        "```python\nfrom xmatch import DualEncoder\nmodel = DualEncoder.from_pretrained(FOLDER)\n```\n"
    )
