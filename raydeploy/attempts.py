"""What to do with a shard that took its worker down: try again, then find the rows that do it and leave them out.

A worker that dies says nothing. So whatever is about to be done is written down first, in <output>/run/attempts/;
whoever finds such a note knows that its writer died of it, since finished work leaves a completion marker instead.

    whole shard                       died: again; died too often: halve it
    rows a … m alone, thrown away     died: it is among them; lived: it is among m … b
    one row alone, thrown away        died: it is left out, and counted as quarantined
                                      lived: no single row does it, so the deaths had another cause
    whole shard, without such rows    as from the start
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xmatch.data import files
from xmatch.errors import InputError

TRIES = 3
"""Times a whole shard is tried before it is halved."""
MOST_ROUNDS = 3
"""Times rows that take a worker down are looked for in vain before the shard is given up."""
MOST_LEFT_OUT = 8
"""Rows of one shard that are left out before the shard is given up."""


class Attempt(NamedTuple):
    """What is about to be done with a shard.

    Attributes:
        left_out: positions of rows found to take a worker down, in the order found.
        deaths: of workers over the whole shard since it was last halved.
        rounds: times it was halved in vain.
        suspects: first and one past the last position of the rows among which the next one is; None: not looking.
        probe: the part of them that is tried alone; None: the whole shard.
    """

    left_out: tuple[int, ...] = ()
    deaths: int = 0
    rounds: int = 0
    suspects: tuple[int, int] | None = None
    probe: tuple[int, int] | None = None


def after_death(attempt: Attempt, rows: int, shard_id: str) -> Attempt:
    """What to do when the worker that was at `attempt` died.

    Raises:
        InputError: too many rows of the shard have been left out already.
    """
    if attempt.probe is not None:
        if attempt.probe[1] - attempt.probe[0] > 1:
            return _halved(attempt, attempt.probe)
        if len(attempt.left_out) < MOST_LEFT_OUT:
            return Attempt(left_out=(*attempt.left_out, attempt.probe[0]), rounds=attempt.rounds)
        raise InputError(
            f"shard {shard_id} takes its workers down even without {MOST_LEFT_OUT} of its rows, each of which did so "
            "too. Lower the batch size or give the workers more memory, or look at that shard's rows."
        )
    if attempt.deaths + 1 < TRIES:
        return attempt._replace(deaths=attempt.deaths + 1)
    if attempt.rounds < MOST_ROUNDS and rows:
        return _halved(attempt, (0, rows))
    raise InputError(
        f"shard {shard_id} took its worker down {TRIES * (attempt.rounds + 1)} times (killed, out of memory, or hung), "
        "though none of its rows does so alone. Lower the batch size or give the workers more memory."
    )


def after_probe(attempt: Attempt) -> Attempt:
    """What to do when the rows tried alone did no harm."""
    assert attempt.suspects is not None and attempt.probe is not None
    if attempt.suspects[1] - attempt.suspects[0] == 1:
        return Attempt(left_out=attempt.left_out, rounds=attempt.rounds + 1)
    return _halved(attempt, (attempt.probe[1], attempt.suspects[1]))


def _halved(attempt: Attempt, suspects: tuple[int, int]) -> Attempt:
    start, stop = suspects
    return attempt._replace(suspects=suspects, probe=(start, max(start + 1, (start + stop) // 2)))


class AttemptNotes:
    """The notes of a run's shards in its output folder."""

    def __init__(self, output: str) -> None:
        self.folder = files.join(output, "run", "attempts")

    def begin(self, shard_id: str, rows: int) -> Attempt:
        """What to do with a shard, given what happened to it before; written down before it is returned."""
        path = self._path(shard_id)
        attempt = after_death(_read(path), rows, shard_id) if files.exists(path) else Attempt()
        return self.write(shard_id, attempt)

    def write(self, shard_id: str, attempt: Attempt) -> Attempt:
        """Write down what is about to be done; the same attempt."""
        files.write_json(self._path(shard_id), attempt._asdict())
        return attempt

    def clear(self) -> None:
        """Forget all notes: a new run begins, whose user may have mended what was wrong."""
        for path in files.list_files(self.folder, ".json"):
            files.remove(path)

    def _path(self, shard_id: str) -> str:
        return files.join(self.folder, f"{shard_id}.json")


def _read(path: str) -> Attempt:
    values: dict[str, Any] = files.read_json(path)
    pairs: dict[str, Any] = {name: values[name] and tuple(values[name]) for name in ("suspects", "probe")}
    return Attempt(tuple(values["left_out"]), values["deaths"], values["rounds"], **pairs)
