"""Voken files as the originals keep them: Vokenization's text, .hdf5 and .ids, and Maria's lines of image names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vokenize.original_tokens import DroppedLine, read_dataset
from vokenize.voken_files import voken_info
from xmatch.data import files
from xmatch.errors import InputError

UNMARKED_COUNT = 50_000
"""Number of images that the original leaves out of the file name."""


def voken_base_name(corpus: str, image_sets: Sequence[str], num_images: int) -> str:
    """The original's base name of a corpus's voken files (golden `voken_output_names`)."""
    name = f"{os.path.basename(corpus)}.{'_'.join(sorted(image_sets))}"
    return name if num_images == UNMARKED_COUNT else f"{name}.{num_images}"


def sentence_sign_code(voken: int, length: int) -> list[int]:
    """The original's sentence-level code of a piece with its special tokens (golden `sent_sign`).

    Args:
        voken: of the piece.
        length: tokens of the piece, without special tokens, at least 1.

    Returns:
        length + 2 numbers: `voken` at the first token, -voken - 1 everywhere else.
    """
    code = [-voken - 1] * (length + 2)
    code[1] = voken
    return code


def rejoin(pieces: Sequence[Sequence[int]]) -> list[int]:
    """Pieces with special tokens joined as the original joins them: specials survive at both ends only."""
    joined = list(pieces[0])
    for piece in pieces[1:]:
        joined = joined[:-1] + list(piece[1:])
    return joined


def line_vokens(row: dict[str, list[int] | None], level: str, top_k: int) -> list[int]:
    """The original's numbers for a line: one a token, best image only, with the sign code at sentence level."""
    if level == "sentence":
        best, lengths = (row["sentence_vokens"] or [])[::top_k], row["piece_lengths"] or []
        coded = [sentence_sign_code(voken, length) for voken, length in zip(best, lengths, strict=True)]
        return rejoin(coded)[1:-1]
    return (row["vokens"] or [])[::top_k]


def _top_k(shard: pa.Table, level: str) -> int:
    """Vokens a place of a shard that holds vokens of `level`.

    Raises:
        InputError: it holds only the other level.
    """
    info = voken_info(shard, "voken shard")
    if info["level"] not in (level, "both"):
        raise InputError(
            f"the vokens were made at level {info['level']!r}, so there are none of level {level!r} to export; run "
            "vokenize_corpus with --vokenize.level both, or export the level that is there."
        )
    return int(info["top_k"])


def export_vokens(shards: Iterable[pa.Table], keep: Iterable[bool], base: str, ids: Sequence[str], level: str) -> int:
    """Write BASE, BASE.ids and BASE.hdf5.

    Args:
        shards: voken tables in order.
        keep: for each line of all shards, whether the original's token file has it.
        base: local path.
        ids: universal ids of the key bank.
        level: "token" or "sentence", which of the vokens to write.

    Returns:
        Vokens written: as many as the token file has tokens.

    Raises:
        InputError: the shards do not hold vokens of that level.
    """
    wanted, everything = iter(keep), []
    with files.open_atomic(base) as text:
        for shard in shards:
            top_k = _top_k(shard, level)
            for row in shard.to_pylist():
                if next(wanted):
                    numbers = line_vokens(row, level, top_k)
                    text.write(f"{' '.join(map(str, numbers))}\n".encode())
                    everything.append(np.array(numbers, np.int32))
    joined = np.concatenate(everything) if everything else np.zeros(0, np.int32)
    temporary = f"{base}.hdf5{files.TEMPORARY_MARK}{os.getpid()}"
    with h5py.File(temporary, "w") as store:
        store.create_dataset("vokens", data=joined)
    os.replace(temporary, f"{base}.hdf5")
    files.write_bytes(f"{base}.ids", "".join(f"{uid}\n" for uid in ids).encode())
    return len(joined)


def import_vokens(base: str, num_tokens: int) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The originals' voken files, checked against each other.

    Returns:
        Vokens, int32 of shape (num_tokens,), and the universal ids they index.

    Raises:
        InputError: a file is missing or corrupt, the counts differ, or a voken is out of range.
    """
    vokens = read_dataset(f"{base}.hdf5", "vokens")
    ids = files.read_text(f"{base}.ids").split("\n")[:-1]
    if len(vokens) != num_tokens:
        raise InputError(
            f"{base + '.hdf5'!r} holds {len(vokens)} vokens for {num_tokens} tokens; they must be as many."
        )
    rows = np.where(vokens < 0, -vokens - 1, vokens)
    if len(rows) and rows.max() >= len(ids):
        at = int(np.flatnonzero(rows >= len(ids))[0])
        raise InputError(f"{base + '.hdf5'!r}, row {at}: voken {vokens[at]} is outside the {len(ids)} images of .ids.")
    return vokens, ids


def maria_lines(shard: pa.Table, uris: Sequence[str]) -> list[str]:
    """Maria's lines: base names of the best images of each line's first piece, joined by tabs.

    A line without tokens gives an empty line, so that lines stay aligned with dialogues; the original drops it and
    shifts all that follow.

    Raises:
        InputError: the shard holds no sentence vokens.
    """
    top_k = _top_k(shard, "sentence")
    found = shard.column("sentence_vokens").to_pylist()
    return ["\t".join(os.path.basename(uris[v]) for v in (row or ())[:top_k]) for row in found]


def best_images(shard: pa.Table) -> list[int | None]:
    """The best image of each line, a row of the key bank: the first of its `maria_lines`; None for an empty line.

    Raises:
        InputError: the shard holds no sentence vokens.
    """
    _top_k(shard, "sentence")
    return [row[0] if row else None for row in shard.column("sentence_vokens").to_pylist()]


def dropped_ids(dropped: Sequence[DroppedLine]) -> set[int]:
    """Ids of the lines an export left out."""
    return {line.line_id for line in dropped}
