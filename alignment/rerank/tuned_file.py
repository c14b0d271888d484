"""The file of tuned settings: what was chosen, and on what, so that it is never measured on the same images.

`tuned.json` holds settings, trials and the identity of the split. `tuned_on.parquet` beside it lists the split's images
and captions, in the form in which a model's training data is recorded, so an overlap is found by id, photo or captions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from alignment.rerank.candidates import WAYS
from alignment.rerank.settings import (
    BidirectionalConfig,
    DirectionConfig,
    EntityConfig,
    RerankSettings,
)
from alignment.rerank.tuning import Tuned
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.gallery import gallery_sha256
from xmatch.training.leakage import Overlap, overlap, read_seen, seen_record, write_seen

TUNED_FILE = "tuned.json"
RECORD_FILE = "tuned_on.parquet"
T = TypeVar("T")


class TunedFile(NamedTuple, Generic[T]):
    """Settings that were tuned, and on what.

    Attributes:
        settings: that were chosen.
        split: name and hashes of the split.
        place: the file.
        sha256: of the file.
    """

    settings: T
    split: dict[str, Any]
    place: str
    sha256: str


def is_test_split(name: str) -> bool:
    """Whether a split, or one of several joined by commas, is a test split by its name."""
    return any("test" in one.lower() for one in name.split(","))


def refuse_tuning_on_test(split: str) -> None:
    """Settings are tuned on validation data.

    Raises:
        InputError: the split is a test split by its name.
    """
    if is_test_split(split):
        raise InputError(
            f"tuning on the split {split!r} is refused: settings chosen on test data make its figures worthless. Give "
            "the validation split, such as --data.split val."
        )


def split_identity(captions: CaptionSet, split: str) -> dict[str, Any]:
    """Name, counts and hashes of a split."""

    def digest(ids: list[str]) -> str:
        return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()

    return {
        "name": split,
        "images": len(captions.image_ids),
        "captions": len(captions.captions),
        "gallery_sha256": gallery_sha256(captions),
        "image_ids_sha256": digest(captions.image_ids),
        "caption_ids_sha256": digest(captions.caption_ids),
    }


def write_tuned(folder: str, tuned: Tuned, captions: CaptionSet, split: str, more: dict[str, Any]) -> str:
    """Write what was chosen; the path of `tuned.json`, which is written last.

    Args:
        folder: for both files.
        tuned: what was chosen and tried.
        captions: the split.
        split: its name.
        more: further entries of the file.

    Raises:
        InputError: the split is a test split by its name.
    """
    trials = [trial._asdict() for trial in tuned.trials]
    return write_settings(folder, dataclasses.asdict(tuned.settings), trials, captions, split, more)


def write_settings(
    folder: str,
    settings: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    captions: CaptionSet,
    split: str,
    more: dict[str, Any],
) -> str:
    """Write settings that were tuned, of whatever kind, and on what; the path of `tuned.json`.

    Args:
        folder: for both files.
        settings: that were chosen, as plain values.
        trials: all that was tried, as plain values.
        captions: the split.
        split: its name.
        more: further entries of the file.

    Raises:
        InputError: the split is a test split by its name.
    """
    refuse_tuning_on_test(split)
    record = files.join(folder, RECORD_FILE)
    write_seen([seen_record(captions, role="train")], record)
    content = more | {
        "schema": 1,
        "settings": dict(settings),
        "split": split_identity(captions, split),
        "record_sha256": files.sha256(record),
        "trials": [dict(trial) for trial in trials],
    }
    path = files.join(folder, TUNED_FILE)
    files.write_json(path, content)
    return path


def read_tuned(place: str) -> TunedFile[RerankSettings]:
    """Tuned settings of a re-ranking.

    Args:
        place: `tuned.json`, or its folder.

    Raises:
        InputError: the file is not there, has another form, or its record is missing or another one.
    """
    return read_settings(place, _settings, "jobs/rerank.py --action tune")


def read_settings(place: str, parse: Callable[[dict[str, Any]], T], made_by: str) -> TunedFile[T]:
    """Tuned settings of any kind.

    Args:
        place: `tuned.json`, or its folder.
        parse: makes settings of their plain values; a KeyError, TypeError or AttributeError says that they are others.
        made_by: the command that writes such a file, for the message.

    Raises:
        InputError: the file is not there, has another form, or its record is missing or another one.
    """
    path = files.join(place, TUNED_FILE) if files.is_folder(place) else place
    content = files.read_json(path)
    try:
        settings = parse(content["settings"])
        split, digest = dict(content["split"]), content["record_sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path!r} holds no tuned settings: {error}. Expected a file of {made_by}.") from error
    record = _record_of(path)
    if not files.exists(record) or files.sha256(record) != digest:
        raise InputError(
            f"{record!r} is not there, or not the one that belongs to {path!r}; it says on which images the settings "
            "were tuned. Keep both files together, or tune again."
        )
    return TunedFile(settings, split, path, files.sha256(path))


def _record_of(path: str) -> str:
    folder = path.rsplit("/", 1)[0] if "/" in path else "."
    return files.join(folder, RECORD_FILE)


def _settings(content: dict[str, Any]) -> RerankSettings:
    sides = {
        way: DirectionConfig(egr=EntityConfig(**content[way]["egr"]), tbr=BidirectionalConfig(**content[way]["tbr"]))
        for way in WAYS
    }
    return RerankSettings(
        t2i=sides["t2i"], i2t=sides["i2t"], slots=content["slots"], empty_slots=content["empty_slots"]
    )


def refuse_tuned_split(
    tuned: TunedFile[Any], captions: CaptionSet, split: str, *, allow: bool, threads: int = 4
) -> Overlap:
    """Settings are measured on other images than those that they were tuned on.

    Args:
        tuned: settings.
        captions: what is to be measured.
        split: its name.
        allow: measure all the same, but not what is a test split by its name.
        threads: that read photos; 0 compares ids and captions alone.

    Returns:
        How much the two have in common.

    Raises:
        InputError: they have images in common.
    """
    found = overlap(read_seen(_record_of(tuned.place)), captions, threads=threads)
    is_same = split_identity(captions, split)["gallery_sha256"] == tuned.split.get("gallery_sha256")
    shared = len(captions.image_ids) if is_same else found.images_leaked
    if not shared or (allow and not is_test_split(split)):
        return found
    way_out = "" if is_test_split(split) else ", or give --allow_overlap true to measure all the same"
    examples = f" (the first: {', '.join(found.first[:2])})" if found.first else ""
    raise InputError(
        f"the settings in {tuned.place!r} were tuned on {shared:,} of the {len(captions.image_ids):,} images of the "
        f"split {split!r}{examples}: its figures would be too good. Tune them on other images{way_out}."
    )
