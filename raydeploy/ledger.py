"""Which shards are done: one marker a shard, one manifest a run.

    <output>/shards/part-00000.parquet        the rows of a shard
    <output>/quarantine/part-00000.parquet    what was left out of it, only where something was
    <output>/completions/part-00000.json      created after both, and only once: the shard is done
    <output>/identity.json                    what the run is made of; another run may not mix with it
    <output>/manifest.json                    written last: every shard with counts and checksums

No file holds a time or a host, so an interrupted run that was finished later equals an undisturbed one byte by byte.
What two workers race for, identity and markers, is created only where it is not there (object_store.py); the one who
comes second compares. Data files are written by both, with equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from raydeploy.object_store import abort_uploads, put_if_absent, require_conditional
from raydeploy.versions import package_versions
from xmatch.data import files
from xmatch.errors import InputError

MANIFEST_VERSION = 2
SHOWN = 120
"""Characters of a value in a message."""
READERS = 32
"""Markers read at a time: a store answers in tens of milliseconds, and there may be a hundred thousand."""


class Marker(NamedTuple):
    """What the completion marker of a shard says.

    Attributes:
        counts: of the step.
        rows: in the shard's file.
        items: that went in.
        quarantined: of them left out or repaired.
        file: of the shard, relative to the run.
        bytes: of that file.
        sha256: of that file.
    """

    counts: dict[str, int]
    rows: int
    items: int
    quarantined: int
    file: str
    bytes: int
    sha256: str


def marker_path(output: str, shard_id: str) -> str:
    """Where the completion marker of a shard is."""
    return files.join(output, "completions", f"{shard_id}.json")


def read_marker(output: str, shard_id: str) -> Marker:
    """The marker of a shard that is done.

    Raises:
        InputError: it is not there, or broken.
    """
    path = marker_path(output, shard_id)
    values = files.read_json(path)
    if not isinstance(values, dict) or set(values) != set(Marker._fields):
        raise InputError(f"{path!r} is no completion marker of this version; choose another output, or remove it.")
    return Marker(**values)


def mark_done(output: str, shard_id: str, marker: Marker) -> None:
    """Say that a shard is published.

    Raises:
        InputError: it was published before with other content.
    """
    path = marker_path(output, shard_id)
    if put_if_absent(path, _json(marker._asdict())):
        return
    there = read_marker(output, shard_id)
    if there != marker:
        names = [n for n, a, b in zip(Marker._fields, there, marker, strict=True) if a != b]
        raise InputError(
            f"shard {shard_id} of {output!r} was finished twice with different content ({', '.join(names)}): workers "
            "do not all compute alike, for want of equal hardware, threads or versions. Make them equal; remove "
            f"{path!r} and that shard's file to do it again."
        )


def run_hash(folder: str) -> str:
    """What identifies a finished folder: the hash of its manifest, or else of the names and hashes of its files."""
    manifest = files.join(folder, "manifest.json")
    if files.exists(manifest):
        return files.sha256(manifest)
    names = files.list_files(folder) if files.is_folder(folder) else [folder]
    return " ".join(f"{name.rsplit('/', 1)[-1]}:{files.sha256(name)}" for name in names)


class Ledger:
    """The record of one run's output folder.

    Args:
        output: folder or URI prefix of the run.
        identity: plain values that decide the output's bytes (settings, hashes of model, keys and corpus).

    Raises:
        InputError: the folder holds a run with another identity; says what differs. Or it is in a store that does not
            create conditionally.
    """

    def __init__(self, output: str, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.identity = json.loads(_json(dict(identity)))
        path = files.join(output, "identity.json")
        if files.exists(path) or not put_if_absent(path, _json(self.identity)):
            _require_same(files.read_json(path), self.identity, output)
        if files.is_uri(output):
            require_conditional(path, _json(self.identity))
        abort_uploads(output)
        self._clean()

    def done(self) -> set[str]:
        """Ids of finished shards."""
        found = files.list_files(files.join(self.output, "completions"), ".json")
        return {path.rsplit("/", 1)[-1].removesuffix(".json") for path in found}

    def finish(
        self, shard_ids: Sequence[str], *, max_quarantined: float = 1.0, values: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the manifest of a complete run and return it.

        Args:
            shard_ids: all of the run.
            max_quarantined: largest share of the items that may be quarantined.
            values: further figures of the run that the manifest shall hold.

        Raises:
            InputError: a shard is not done, its file has changed since, or too many items are quarantined.
        """
        missing = sorted(set(shard_ids) - self.done())
        if missing:
            raise InputError(f"{len(missing)} shards of {self.output!r} are not done, the first is {missing[0]!r}.")
        with ThreadPoolExecutor(READERS) as pool:
            markers = list(pool.map(lambda shard_id: read_marker(self.output, shard_id), shard_ids))
        self._require_whole(shard_ids, markers)
        self._require_few_quarantined(markers, max_quarantined)
        counts: dict[str, int] = {}
        for marker in markers:
            for name, count in marker.counts.items():
                counts[name] = counts.get(name, 0) + count
        manifest = {
            "version": MANIFEST_VERSION,
            "identity": self.identity,
            "versions": package_versions(),
            "counts": counts,
            "items": sum(marker.items for marker in markers),
            "quarantined": sum(marker.quarantined for marker in markers),
            "shards": {shard_id: marker._asdict() for shard_id, marker in zip(shard_ids, markers, strict=True)},
            **(values or {}),
        }
        files.write_json(files.join(self.output, "manifest.json"), manifest)
        self._clean()
        return manifest

    def _clean(self) -> None:
        """Remove what killed writers left."""
        for folder in ("", "shards", "quarantine", "completions"):
            files.remove_temporaries(files.join(self.output, folder) if folder else self.output)

    def _require_whole(self, shard_ids: Sequence[str], markers: Sequence[Marker]) -> None:
        """Compare sizes; a shard whose file was cut short or lost is marked as not done."""
        sizes = files.sizes(files.join(self.output, "shards"))
        damaged = [
            (shard_id, marker, sizes.get(marker.file.rsplit("/", 1)[-1]))
            for shard_id, marker in zip(shard_ids, markers, strict=True)
            if sizes.get(marker.file.rsplit("/", 1)[-1]) != marker.bytes
        ]
        for shard_id, _, _ in damaged:
            files.remove(marker_path(self.output, shard_id))
        if damaged:
            shard_id, marker, size = damaged[0]
            state = "is gone" if size is None else f"has {size:,} bytes"
            raise InputError(
                f"{len(damaged)} finished shards of {self.output!r} were damaged since: the file of {shard_id} {state}"
                f", expected {marker.bytes:,} bytes. They are marked as not done now: run the same command again."
            )

    def _require_few_quarantined(self, markers: Sequence[Marker], most: float) -> None:
        items, quarantined = sum(marker.items for marker in markers), sum(marker.quarantined for marker in markers)
        if quarantined > most * items:
            raise InputError(
                f"{quarantined:,} of {items:,} items are quarantined ({quarantined / max(1, items):.1%}), more than "
                f"the {most:.1%} that ray.faults.max_quarantined allows. They are listed, with the reasons, in "
                f"{files.join(self.output, 'quarantine')!r}. Mend the input, or allow more; finished work is kept."
            )


def _json(value: Any) -> bytes:
    return files.json_bytes(value)


def _require_same(there: Mapping[str, Any], here: Mapping[str, Any], output: str) -> None:
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if names:
        old, new = there.get(names[0]), here.get(names[0])
        raise InputError(
            f"{output!r} holds a run with another {', '.join(names)} "
            f"({names[0]}: {_around(old, new)} there, {_around(new, old)} now); "
            "their outputs must not mix. Choose another output, or remove that folder."
        )


def _around(value: Any, other: Any) -> str:
    """A value for a message; of a long one, what is around its first difference from another."""
    shown, at = repr(value), len(os.path.commonprefix([repr(value), repr(other)]))
    if len(shown) <= SHOWN:
        return shown
    start = max(0, at - SHOWN // 2)
    return f"{'…' if start else ''}{shown[start : start + SHOWN]}…"
