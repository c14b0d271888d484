from __future__ import annotations

import pytest
from small_models import golden

from vokenize.original_alignment import (
    align_greedily,
    byte_level_spans,
    byte_of_letter,
    bytes_of,
    fix_length,
    intersection_over_union,
)
from xmatch.errors import InputError

GOLDEN = golden("revokenization")
TABLE = byte_of_letter()


def pairs(spans: list[list[int]]) -> list[tuple[int, int]]:
    return [(start, end) for start, end in spans]


def mapped(rows: list[int], old_tokens: int) -> list[int]:
    """The original's result of a stub that gives 100, 1000, 1001, …, 200 for old tokens with special ones around."""
    result = [100, *range(1000, 1000 + old_tokens), 200]
    return [result[0], *(result[row + 1] for row in rows), result[-1]]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["decoded_sentence"].strip())
def test_sentences_are_aligned_as_by_the_original(case: dict) -> None:
    spans = fix_length(byte_level_spans(bytes_of(case["backward_tokens"], TABLE)), case["backward_ids_len"])
    assert spans == pairs(case["backward_offsets_utf8_reconstructed"])
    rows = align_greedily(pairs(case["forward_offsets"]), spans)
    assert rows == case["alignment_backward_to_forward"]
    assert mapped(rows, len(case["forward_tokens"])) == case["mapped_result_from_forward_[100,1000..,200]"]


@pytest.mark.parametrize("number", range(4))
def test_special_tokens_left_in_shift_the_vokens_as_in_the_original(number: int) -> None:
    case, [expected] = GOLDEN["cases"][number], GOLDEN["as_written_with_BatchEncoding"]
    spans = byte_level_spans(bytes_of(["<s>", *case["backward_tokens"], "</s>"], TABLE))
    old = [(0, 0), *pairs(case["forward_offsets"]), (0, 0)]
    rows = align_greedily(old, fix_length(spans, case["backward_ids_len"]))
    assert mapped(rows, len(old)) == expected[number]


@pytest.mark.parametrize("case", GOLDEN["pure_alignment"])
def test_spans_are_aligned_as_by_the_original(case: dict) -> None:
    assert align_greedily(pairs(case["forward"]), pairs(case["backward"])) == case["alignment"]


@pytest.mark.parametrize(("one", "other", "value"), GOLDEN["iou"])
def test_overlap_equals_the_original(one: list[int], other: list[int], value: float) -> None:
    assert intersection_over_union(tuple(one), tuple(other)) == pytest.approx(value, abs=1e-4)


def test_lengths_are_made_equal_as_by_the_original() -> None:
    case = GOLDEN["fix_length"]
    for name, fixed in case["out"].items():
        assert [fix_length(r, n) for r, n in zip(case["in"][name], case["target_lens"], strict=True)] == fixed
    assert fix_length([], 0) == []
    with pytest.raises(ValueError, match="repeated"):
        fix_length([], 1)


def test_every_byte_has_its_letter() -> None:
    assert sorted(TABLE.values()) == list(range(256))
    assert (TABLE["Ġ"], TABLE["a"], TABLE["Ċ"]) == (32, 97, 10)


def test_letters_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="'▁' stands for no byte"):
        bytes_of(["▁the"], TABLE)
