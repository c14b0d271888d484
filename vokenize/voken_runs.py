"""A finished voken run beside its tokens, opened and read part by part; also one of the originals' files.

Shapes of a part: L lines, n tokens, P pieces (encoder windows), k images per query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vokenize.list_columns import counts_of, values_of
from vokenize.original_tokens import OriginalTokens, read_original_tokens
from vokenize.original_vokens import import_vokens
from vokenize.tokens import plan_token_shards, read_token_shard
from vokenize.voken_files import check_vokens, read_voken_shard, voken_info
from xmatch.data import files
from xmatch.data.steps import Shard
from xmatch.errors import InputError

Int64 = npt.NDArray[np.int64]
LINES_PER_PART = 65_536
"""Of the originals' files, which have no shards."""


class Part(NamedTuple):
    """Some lines of a corpus with their vokens.

    Attributes:
        where: name of the shard.
        first_line: id of the first line.
        texts: (L,) the lines; None where they are not kept.
        tokens_per_line: (L,).
        token_ids: (n,).
        vokens: (n, k) rows of the key bank, best first; None where the run has none of tokens.
        pieces_per_line: (L,).
        sentence_vokens: (P, k) the same of pieces; None where the run has none.
    """

    where: str
    first_line: int
    texts: pa.ChunkedArray | None
    tokens_per_line: Int64
    token_ids: npt.NDArray[np.int32]
    vokens: Int64 | None
    pieces_per_line: Int64
    sentence_vokens: Int64 | None


class VokenRun(NamedTuple):
    """A voken run that was held against its tokens.

    Attributes:
        folder: of the run, or base name of an original's files.
        info: schema, top_k, level and keys.
        key_hash: what identifies the key bank; "" where it is not recorded.
        shards: token shards; none of an original's files.
        original: tokens, vokens and image ids of an original's files; None of a run of ours.
    """

    folder: str
    info: Mapping[str, Any]
    key_hash: str
    shards: Sequence[Shard]
    original: tuple[OriginalTokens, npt.NDArray[np.int32], Sequence[str]] | None = None

    @property
    def level(self) -> str:
        """Which vokens there are: token, sentence or both."""
        return str(self.info["level"])

    @property
    def top_k(self) -> int:
        """Images per token or piece."""
        return int(self.info["top_k"])

    @property
    def keys(self) -> int:
        """Images of the key bank."""
        return int(self.info["keys"])

    def parts(self) -> Iterator[Part]:
        """All lines, in order.

        Raises:
            InputError: a file is broken, or vokens do not fit their tokens.
        """
        if self.original is not None:
            yield from _original_parts(*self.original[:2], self.level)
            return
        for shard in self.shards:
            yield self._part(shard)

    def _part(self, shard: Shard) -> Part:
        tokens, vokens = read_both(shard, self.folder, self.info)
        found = {
            name: values_of(vokens.column(name)).astype(np.int64).reshape(-1, self.top_k)
            for name, absent in (("vokens", "sentence"), ("sentence_vokens", "token"))
            if self.level != absent
        }
        line_ids, pieces = tokens.column("line_id"), counts_of(vokens.column("piece_lengths"))
        return Part(
            where=shard.id,
            first_line=line_ids[0].as_py() if len(line_ids) else shard.start,
            texts=tokens.column("text"),
            tokens_per_line=counts_of(tokens.column("token_ids")),
            token_ids=values_of(tokens.column("token_ids")).astype(np.int32),
            vokens=found.get("vokens"),
            pieces_per_line=pieces,
            sentence_vokens=found.get("sentence_vokens"),
        )


def read_both(shard: Shard, folder: str, info: Mapping[str, Any]) -> tuple[pa.Table, pa.Table]:
    """A token shard and its voken shard.

    Args:
        shard: of tokens.
        folder: of the voken run.
        info: what the voken shards of that run say of themselves.

    Raises:
        InputError: a file is missing or broken, is of another run, or the vokens do not fit the tokens.
    """
    path = files.join(folder, "shards", f"{shard.id}.parquet")
    tokens, vokens = read_token_shard(shard), read_voken_shard(path)
    found = voken_info(vokens, path)
    if found != info:
        raise InputError(
            f"{path!r} says {found} of itself, but the first shard of that run {dict(info)}; the folder holds shards "
            "of two runs. Make the vokens again."
        )
    check_vokens(tokens, vokens, path)
    return tokens, vokens


def open_voken_run(tokens: str, vokens: str, tokens_hash: str = "") -> VokenRun:
    """Open a voken run of ours and hold it against its tokens, as far as the heads of files tell.

    Args:
        tokens: folder of token shards.
        vokens: folder of the voken run.
        tokens_hash: what identifies the token run, as the voken run would record it; "": not compared.

    Raises:
        InputError: the run is not whole, or was made of other tokens; names both folders and the first difference.
    """
    shards = plan_token_shards(tokens)
    if not files.is_folder(vokens):
        raise InputError(f"voken folder {vokens!r} does not exist; make it with jobs/vokenize_corpus.py.")
    there = [path.rsplit("/", 1)[-1] for path in files.list_files(files.join(vokens, "shards"), ".parquet")]
    expected = [f"{shard.id}.parquet" for shard in shards]
    odd = sorted(set(there) ^ set(expected))
    if odd:
        where, other = (tokens, vokens) if odd[0] in expected else (vokens, tokens)
        raise InputError(
            f"{tokens!r} has {len(expected)} shards and {vokens!r} has {len(there)}: {odd[0]!r} is in {where!r} and "
            f"not in {other!r}. Either that run is not finished, or it is of another corpus."
        )
    made = _identity(vokens)
    if tokens_hash and made.get("tokens", tokens_hash) != tokens_hash:
        raise InputError(
            f"the vokens of {vokens!r} were made from other tokens than {tokens!r} holds: they record "
            f"{made['tokens'][:12]}…, these are {tokens_hash[:12]}…. Give the token folder they were made from."
        )
    for shard in shards:
        path = files.join(vokens, "shards", f"{shard.id}.parquet")
        rows = _rows(path)
        if rows != shard.stop - shard.start:
            raise InputError(
                f"{shard.source!r} has {shard.stop - shard.start} lines and {path!r} has {rows}; they are of different "
                "runs. Give the token folder that the vokens were made from."
            )
    first = read_voken_head(files.join(vokens, "shards", expected[0]))
    return VokenRun(vokens, first, str(made.get("keys", "")), shards)


def open_original_run(prefix: str, base: str) -> VokenRun:
    """Open an original's voken files; those with sign codes are of sentences.

    Args:
        prefix: of the token files: PREFIX.hdf5 and PREFIX.line.
        base: of the voken files: BASE.hdf5 and BASE.ids.

    Raises:
        InputError: a file is missing or broken, or the counts differ.
    """
    tokens = read_original_tokens(prefix)
    vokens, ids = import_vokens(base, len(tokens.tokens))
    level = "sentence" if (vokens < 0).any() else "token"
    return VokenRun(base, {"top_k": 1, "level": level, "keys": len(ids)}, "", (), (tokens, vokens, ids))


def require_comparable(one: VokenRun, other: VokenRun) -> None:
    """Check that two runs over one corpus can be compared.

    Raises:
        InputError: their key banks or levels differ; names both and the first difference.
    """
    pair = f"{one.folder!r} and {other.folder!r}"
    if one.keys != other.keys:
        raise InputError(
            f"{pair} cannot be compared: the first searched {one.keys:,} images, the second {other.keys:,}. Make both "
            "with one key bank."
        )
    if one.key_hash and other.key_hash and one.key_hash != other.key_hash:
        raise InputError(
            f"{pair} cannot be compared: the first searched key bank {one.key_hash[:12]}…, the second "
            f"{other.key_hash[:12]}…, so a voken means another image in each. Make both with one key bank."
        )
    ids = [run.original[2] for run in (one, other) if run.original]
    if len(ids) == 2 and list(ids[0]) != list(ids[1]):
        row = next(i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b)
        raise InputError(
            f"{pair} cannot be compared: voken {row} is {ids[0][row]!r} in the first and {ids[1][row]!r} in the second."
        )
    if {one.level, other.level} == {"token", "sentence"}:
        raise InputError(
            f"{pair} cannot be compared: the first has vokens of {one.level}s, the second of {other.level}s only."
        )


def first_lines(parts: Iterator[Part], count: int) -> Iterator[Part]:
    """The parts that hold the first `count` lines, the last one cut; all of them where `count` is 0."""
    left = count
    for part in parts:
        lines = len(part.tokens_per_line)
        if count and left < lines:
            tokens, pieces = int(part.tokens_per_line[:left].sum()), int(part.pieces_per_line[:left].sum())
            part = part._replace(
                texts=None if part.texts is None else part.texts.slice(0, left),
                tokens_per_line=part.tokens_per_line[:left],
                token_ids=part.token_ids[:tokens],
                vokens=None if part.vokens is None else part.vokens[:tokens],
                pieces_per_line=part.pieces_per_line[:left],
                sentence_vokens=None if part.sentence_vokens is None else part.sentence_vokens[:pieces],
            )
        if len(part.tokens_per_line):
            yield part
        left -= lines
        if count and left <= 0:
            return


def read_voken_head(path: str) -> dict[str, Any]:
    """What a voken shard says of itself, from its footer.

    Raises:
        InputError: it is no voken shard.
    """
    return voken_info(_footer(path).schema_arrow.empty_table(), path)


def _rows(path: str) -> int:
    return int(_footer(path).metadata.num_rows)


def _footer(path: str) -> Any:
    filesystem, inside = files.filesystem_of(path)
    try:
        with filesystem.open_input_file(inside) as source:
            return pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path!r} is not a whole Parquet file ({error}); make the vokens again.") from error


def _identity(folder: str) -> dict[str, Any]:
    path = files.join(folder, "identity.json")
    found: dict[str, Any] = files.read_json(path) if files.exists(path) else {}
    return found


def _original_parts(tokens: OriginalTokens, vokens: npt.NDArray[np.int32], level: str) -> Iterator[Part]:
    """Parts of an original's files, whose vokens, of shape (n,), are one a token at either level."""
    offsets = tokens.offsets
    for first in range(0, len(offsets) - 1, LINES_PER_PART):
        bounds = offsets[first : first + LINES_PER_PART + 1]
        place = slice(int(bounds[0]), int(bounds[-1]))
        here, per_line = vokens[place].astype(np.int64), np.diff(bounds)
        starts = here >= 0  # the first token of a piece holds its voken, the others minus voken minus 1
        pieces = np.add.reduceat(starts, bounds[:-1] - bounds[0]).astype(np.int64)
        is_token = level == "token"
        yield Part(
            where=f"lines from {first}",
            first_line=first,
            texts=None,
            tokens_per_line=per_line,
            token_ids=tokens.tokens[place],
            vokens=here[:, None] if is_token else None,
            pieces_per_line=np.zeros_like(pieces) if is_token else pieces,
            sentence_vokens=None if is_token else here[starts][:, None],
        )
