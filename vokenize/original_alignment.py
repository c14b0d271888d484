"""Vokenization's own way of aligning two tokenizers, pieced together from byte-level tokens (golden `revokenization`).

The original's program never calls it as it stands: it keeps special tokens that it means to remove, which shifts every
voken by one. What is here is what it is meant to do; with the special tokens left in, it gives the shifted answer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tokenizers.pre_tokenizers import ByteLevel

from xmatch.errors import InputError

Span = tuple[int, int]
T = TypeVar("T")


def byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level token stands for.

    Printable bytes stand for themselves; the others, in order, are the letters from U+0100 on (GPT-2).
    """
    letters = ByteLevel.alphabet()
    plain = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(plain.values()))
    return plain | dict(zip(sorted(set(letters) - set(plain)), others, strict=True))


def bytes_of(tokens: Sequence[str], table: dict[str, int]) -> list[bytes]:
    """The bytes of byte-level tokens.

    Args:
        tokens: as the tokenizer spells them.
        table: `byte_of_letter()`.

    Raises:
        InputError: a token holds another letter, so the tokenizer is no byte-level one.
    """
    try:
        return [bytes(table[letter] for letter in token) for token in tokens]
    except KeyError as error:
        raise InputError(
            f"the letter {error.args[0]!r} stands for no byte: the original's alignment is for byte-level BPE alone. "
            "Use --alignment overlap, which takes any tokenizer."
        ) from error


def byte_level_spans(tokens: Sequence[bytes]) -> list[Span]:
    """Character spans of the tokens in the text they spell, as the original finds them.

    A token that stops within a character counts that character; the next one begins with it again.
    """
    spans, place, pending = [], 0, b""
    for token in tokens:
        start = place
        for byte in token:
            pending += bytes([byte])
            try:
                pending.decode("utf-8")
            except UnicodeDecodeError:
                continue
            place, pending = place + 1, b""
        spans.append((start, place + bool(pending)))
    return spans


def fix_length(items: Sequence[T], length: int) -> list[T]:
    """The first `length` items, or all and the last one again until they are as many.

    Raises:
        ValueError: there are none to repeat.
    """
    if not items and length:
        raise ValueError("nothing can be repeated to make a length")
    return [*items[:length], *[items[-1]] * (length - len(items))] if items else []


def intersection_over_union(one: Span, other: Span) -> float:
    """Shared characters over characters of either; two empty spans give 0."""
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / max(1, one[1] - one[0] + other[1] - other[0] - shared)


def align_greedily(old: Sequence[Span], new: Sequence[Span]) -> list[int]:
    """For each new span an old one: the best by intersection over union on a walk that never goes back.

    Args:
        old: at least one span.
        new: any number.
    """
    rows, place = [], 0
    for span in new:
        best, overlap = place, intersection_over_union(old[place], span)
        while place + 1 < len(old) and old[place][1] < span[1]:
            place += 1
            found = intersection_over_union(old[place], span)
            if found > overlap:
                best, overlap = place, found
        rows.append(best)
    return rows
