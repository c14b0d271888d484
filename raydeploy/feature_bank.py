"""Features of frozen towers, computed once in actors and kept as a bank that training memory-maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyarrow as pa

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.staging import image_tower_for_workers, place_for_workers, text_tower_for_workers
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.image_listing import image_listing, plan_listing_shards, read_listing
from xmatch.data.steps import Step
from xmatch.embedding import ImageFeatures, TextFeatures
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

IMAGES_PER_SHARD = 512
CAPTIONS_PER_SHARD = 4096
FeatureType = Literal["float32", "float16"]
Advance = Callable[[int], None]


def image_feature_bank(
    tower: ImageTowerConfig,
    captions: Sequence[CaptionSet],
    folder: str,
    *,
    has_flip: bool,
    dtype: FeatureType,
    ray: RayConfig,
    advance: Advance,
) -> str:
    """Features of every image of some splits, of its mirror image too where asked; resumable.

    Args:
        tower: the frozen tower.
        captions: the splits; an image in several of them is computed once.
        folder: of the bank; a local folder or URI that every actor can reach.
        has_flip: whether mirrored views are made.
        dtype: number format of the bank.
        ray: actors and their cores.
        advance: told how many more images are done.

    Returns:
        The folder of the bank's shards.

    Raises:
        InputError: the folder holds features of other images or another tower, or images cannot be read.
    """
    images = {i: p for split in captions for i, p in zip(split.image_ids, split.image_paths, strict=True)}
    views: tuple[Literal["center", "flip"], ...] = ("center", "flip") if has_flip else ("center",)
    place = image_tower_for_workers(tower, folder)
    step = ImageFeatures(place, views=views, threads=max(1, int(ray.cpus_per_actor)), dtype=dtype)
    rows = image_listing(list(images), list(images.values()))
    identity = {"tower": tower_identity(tower), "views": list(views), "dtype": dtype}
    counts = _make_bank(rows, step, folder, identity, IMAGES_PER_SHARD, "images", ray, advance)
    if counts["quarantined"]:
        raise InputError(
            f"{counts['quarantined']} of {len(images)} images cannot be read, so their captions would have no image; "
            f"they are listed in {files.join(folder, 'quarantine')}. Mend the files, or leave them out of the captions."
        )
    return files.join(folder, "shards")


def text_feature_bank(
    tower: TextTowerConfig,
    tokenizer: str,
    captions: Sequence[CaptionSet],
    folder: str,
    *,
    dtype: FeatureType,
    ray: RayConfig,
    advance: Advance,
) -> str:
    """Features of every token of the captions of some splits; resumable.

    Args:
        tower: the frozen tower.
        tokenizer: folder or hub name of its tokenizer.
        captions: the splits.
        folder: of the bank; a local folder or URI that every actor can reach.
        dtype: number format of the bank.
        ray: actors and their cores.
        advance: told how many more captions are done.

    Returns:
        The folder of the bank's shards.

    Raises:
        InputError: a caption id comes twice, or the folder holds features of other captions or another tower.
    """
    texts = {i: t for split in captions for i, t in zip(split.caption_ids, split.captions, strict=True)}
    if len(texts) < sum(len(split.captions) for split in captions):
        raise InputError("two captions have one id, so features by caption id would be mixed up; make the ids unique.")
    rows = pa.table([pa.array(list(texts), pa.string()), pa.array(list(texts.values()), pa.string())], ["id", "text"])
    places = text_tower_for_workers(tower, folder), place_for_workers(tokenizer, "tokenizer", folder)
    step = TextFeatures(*places, threads=max(1, int(ray.cpus_per_actor)), dtype=dtype)
    identity = {"tower": tower_identity(tower), "tokenizer": tokenizer, "dtype": dtype}
    _make_bank(rows, step, folder, identity, CAPTIONS_PER_SHARD, "texts", ray, advance)
    return files.join(folder, "shards")


def _make_bank(
    rows: pa.Table,
    step: Step,
    folder: str,
    identity: dict[str, Any],
    rows_per_shard: int,
    unit: str,
    ray: RayConfig,
    advance: Advance,
) -> dict[str, int]:
    """Stream rows through a step into a bank; its counts."""
    listing = files.join(folder, "inputs.parquet")
    files.write_parquet(listing, rows)
    ledger = Ledger(folder, {**identity, "inputs": files.sha256(listing)})
    shards = plan_listing_shards(listing, rows_per_shard)
    for report in run_shards(shards, read_listing, step, ledger, suffix="arrow", ray=ray):
        advance(report.counts[unit] + report.counts.get("quarantined", 0))
    counts: dict[str, int] = ledger.finish([shard.id for shard in shards])["counts"]
    return counts


def tower_identity(tower: ImageTowerConfig | TextTowerConfig) -> dict[str, Any]:
    """What decides a frozen tower's features, as plain values; a file of weights by its content, not its place."""
    values: dict[str, Any] = checkpoints.plain(tower)
    values.pop("trainable")
    weights = values.get("weights", "")
    if weights not in ("", "pretrained", "none") and files.exists(weights):
        values["weights"] = f"sha256 {files.sha256(weights)}"
    return values


def require_same_tower(
    bank: str, tower: ImageTowerConfig | TextTowerConfig, setting: str, *, is_saved: bool = False
) -> None:
    """Check that a bank was made by this tower.

    Args:
        bank: folder of a bank or of its shards; one without a record of its tower is taken as it is.
        tower: of the model that is trained on it.
        setting: the tower's name among the job's settings, for the message.
        is_saved: the tower is a saved model's, which no longer says what its weights were: they are not compared.

    Raises:
        InputError: it was made by another; says in what they differ.
    """
    for folder in (bank, bank.rstrip("/").rsplit("/", 1)[0]):
        path = files.join(folder, "identity.json")
        there = files.read_json(path).get("tower") if files.exists(path) else None
        if not isinstance(there, dict):
            continue
        here = tower_identity(tower)
        differing = [n for n in here if there.get(n) != here[n] and not (is_saved and n == "weights")]
        if differing:
            name = differing[0]
            raise InputError(
                f"{bank!r} holds features of another tower: {setting}.{name} was {there.get(name)!r} and is "
                f"{here[name]!r} now. Make the bank again, or set it back."
            )
        return
