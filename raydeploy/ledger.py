"""Which shards are done: one marker a shard, one manifest a run.

    <output>/shards/part-00000.parquet        the rows of a shard
    <output>/quarantine/part-00000.parquet    what was left out of it, only where something was
    <output>/completions/part-00000.json      written after both: the shard is done
    <output>/identity.json                    what the run is made of; another run may not mix with it
    <output>/manifest.json                    written last: every shard with counts and checksums

No file holds a time or a host, so an interrupted run that was finished later equals an undisturbed one byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xmatch.data import files
from xmatch.errors import InputError

MANIFEST_VERSION = 1


class Ledger:
    """The record of one run's output folder.

    Args:
        output: folder or URI prefix of the run.
        identity: plain values that decide the output's bytes (settings, hashes of model, keys and corpus).

    Raises:
        InputError: the folder holds a run with another identity; says what differs.
    """

    def __init__(self, output: str, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.identity = dict(identity)
        path = files.join(output, "identity.json")
        if files.exists(path):
            _require_same(files.read_json(path), self.identity, output)
        else:
            files.write_json(path, self.identity)
        for folder in ("", "shards", "quarantine", "completions"):
            files.remove_temporaries(files.join(output, folder) if folder else output)

    def marker_path(self, shard_id: str) -> str:
        """Where the completion marker of a shard is."""
        return files.join(self.output, "completions", f"{shard_id}.json")

    def done(self) -> set[str]:
        """Ids of finished shards."""
        found = files.list_files(files.join(self.output, "completions"), ".json")
        return {path.rsplit("/", 1)[-1].removesuffix(".json") for path in found}

    def finish(self, shard_ids: Sequence[str]) -> dict[str, Any]:
        """Write the manifest of a complete run and return it.

        Raises:
            InputError: a shard is not done.
        """
        missing = sorted(set(shard_ids) - self.done())
        if missing:
            raise InputError(f"{len(missing)} shards of {self.output!r} are not done, the first is {missing[0]!r}.")
        records = [files.read_json(self.marker_path(shard_id)) for shard_id in shard_ids]
        counts: dict[str, int] = {}
        for record in records:
            for name, count in record["counts"].items():
                counts[name] = counts.get(name, 0) + count
        manifest = {
            "version": MANIFEST_VERSION,
            "identity": self.identity,
            "counts": counts,
            "shards": dict(zip(shard_ids, records, strict=True)),
        }
        files.write_json(files.join(self.output, "manifest.json"), manifest)
        return manifest


def _require_same(there: Mapping[str, Any], here: Mapping[str, Any], output: str) -> None:
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if names:
        old, new = there.get(names[0]), here.get(names[0])
        raise InputError(
            f"{output!r} holds a run with another {', '.join(names)} ({names[0]}: {old!r} there, {new!r} now); their "
            "outputs must not mix. Choose another output, or remove that folder."
        )
