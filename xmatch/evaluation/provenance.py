"""Where a result comes from: hashes of what was measured, and what the models have seen of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.evaluation.gallery import GalleryConfig, gallery_sha256
from xmatch.evaluation.measures import Measured
from xmatch.evaluation.members import Member
from xmatch.models import checkpoints
from xmatch.training.leakage import SEEN_FILE, overlap, photo_hashes, read_seen, require_disjoint

NO_RECORD = f"no {SEEN_FILE} beside the model: what it has seen is not known"
NO_MODEL = "ready scores or embeddings carry no record of what their model has seen"


def evaluation_versions() -> dict[str, str]:
    """Versions of packages that only evaluation uses."""
    try:
        return {"eccv-caption": importlib.metadata.version("eccv-caption")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def overlap_of_models(
    models: Sequence[str], captions: CaptionSet, *, allow: bool, threads: int = 4
) -> list[dict[str, Any]]:
    """What each model has seen of a benchmark.

    Args:
        models: folders or hub names.
        captions: the benchmark's split.
        allow: measure all the same where images overlap.
        threads: that read photos; 0 compares ids and captions alone.

    Returns:
        One entry a model: `of`, `overlap` (null where unknown) and `reason` (null where known).

    Raises:
        InputError: a model has seen images of the benchmark, and `allow` is false.
    """
    entries: list[dict[str, Any]] = []
    for model in models:
        path = files.join(checkpoints.resolve(model), SEEN_FILE)
        if not files.exists(path):
            entries.append({"of": model, "overlap": None, "reason": NO_RECORD})
            continue
        found = overlap(read_seen(path), captions, threads=threads)
        require_disjoint(found, allow)
        entries.append({"of": model, "overlap": found.as_dict(), "reason": None})
    return entries


def unknown_overlap(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Entries of those members that are no models."""
    return [{"of": m.place, "overlap": None, "reason": NO_MODEL} for m in members if m.kind != "model"]


def overlap_text(entries: Sequence[dict[str, Any]]) -> str:
    """Entries as one line for a terminal; equal ones are said once."""
    said = [
        f"unknown: {entry['reason']}"
        if entry["overlap"] is None
        else f"{entry['overlap']['images_leaked']:,} of {entry['overlap']['images']:,} images seen in training"
        for entry in entries
    ]
    return "; ".join(dict.fromkeys(said))


def record_of(
    measured: Measured,
    *,
    benchmark: str,
    captions: CaptionSet,
    members: Sequence[Member],
    overlap: Sequence[dict[str, Any]],
    warning: str,
) -> dict[str, Any]:
    """A result as plain values for JSON: figures, intervals, ties, what is missing and why, and the overlap."""
    return {
        "benchmark": benchmark or None,
        "images": len(captions.image_ids),
        "captions": len(captions.captions),
        "figures": measured.figures,
        "intervals": {name: interval._asdict() for name, interval in measured.intervals.items()},
        "ties": measured.ties,
        "skipped": measured.skipped,
        "details": measured.details,
        "comparable_with_published": not warning,
        "warning": warning or None,
        "overlap": list(overlap),
        "members": [{"kind": m.kind, "place": m.place, "sha256": m.hashes} for m in members],
    }


def data_hashes(config: GalleryConfig, captions: CaptionSet, *, reads_photos: bool, threads: int = 4) -> dict[str, Any]:
    """SHA-256 of the captions' file or files, of the split as it was read, and of its photos where a model reads them.

    Photos are hashed one by one; the value is that of their hashes in order, null where one is no local file.
    """
    found: dict[str, Any] = {"gallery": gallery_sha256(captions)}
    if files.is_folder(config.captions):
        for path in files.list_files(config.captions):
            if path.rsplit("/", 1)[-1].startswith(f"{config.split}_"):
                found[path.rsplit("/", 1)[-1]] = files.sha256(path)
    elif files.exists(config.captions):
        found["captions"] = files.sha256(config.captions)
    if reads_photos:
        each = photo_hashes(captions.image_paths, threads).to_pylist()
        found["photos"] = None if None in each else hashlib.sha256("\n".join(each).encode()).hexdigest()
    return found
