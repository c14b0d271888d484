"""Vectors of entities by caption and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.rerank.candidates import EMPTY
from alignment.rerank.entity_slots import VectorRows, read_bare_text, read_slots, with_bare_text
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError


def bank(folder: Path, kind: str, keys: list[tuple[str, int]], groups: list[str] | None = None) -> str:
    path = str(folder / f"{kind}.arrow")
    ids = [f"{caption}#{kind}{number:04d}" for caption, number in keys]
    vectors = np.arange(2 * len(keys), dtype=np.float32).reshape(-1, 2)
    write_vectors(path, make_vectors(ids, vectors, groups=groups or [caption for caption, _ in keys]))
    return path


def test_rows_in_any_order_find_their_place(tmp_path: Path) -> None:
    keys = [("b#p1", 1), ("a", 0), ("b#p1", 0), ("x", 0), ("a", 1), ("a", 2)]
    places = bank(tmp_path, "p", keys), bank(tmp_path, "m", keys[::-1])
    found = read_slots(*places, ["a", "none", "b#p1"], 2)
    assert found.prompt_rows.tolist() == [[1, 4], [EMPTY, EMPTY], [2, 0]]
    assert found.mask_rows.tolist() == [[4, 1], [EMPTY, EMPTY], [3, 5]]
    assert (found.counts.tolist(), found.beyond, found.elsewhere) == ([2, 0, 2], 1, 1)
    filled = with_bare_text(found, np.array([[9, 9]], np.float32))
    assert filled.counts.tolist() == [2, 2, 2]
    assert filled.prompts.take(filled.prompt_rows[1]).tolist() == [[9, 9], [9, 9]]
    assert filled.masks.take(filled.mask_rows[1, 1:]).tolist() == [[9, 9]]


@pytest.mark.parametrize(
    ("prompts", "masks", "message"),
    [
        ([("a", 0), ("a", 1)], [("a", 0)], r"holds entity 1 of caption 'a' and .* does not \(1 entities"),
        ([("a", 0)], [("a", 0), ("b", 0)], r"m.arrow' holds entity 0 of caption 'b' and .*p.arrow' does not"),
        ([("a", 1)], [("a", 1)], r"1 captions \('a'\) are not numbered from 0"),
        ([("z", 0)], [("z", 0)], "no entity of the 2 captions of the split; its rows are such as 'z#p0000'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, prompts, masks, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_slots(bank(tmp_path, "p", prompts), bank(tmp_path, "m", masks), ["a", "b"], 3)


def test_ids_of_another_form_are_refused(tmp_path: Path) -> None:
    good = bank(tmp_path, "p", [("a", 0)])
    with pytest.raises(InputError, match="the id 'a#p0000' of group 'a' is none of masked captions"):
        read_slots(good, good, ["a"], 2)
    with pytest.raises(InputError, match="row 0: the id 'a#p0000' of group 'b'"):
        read_slots(bank(tmp_path, "p", [("a", 0)], ["b"]), bank(tmp_path, "m", [("a", 0)]), ["a"], 2)


def test_an_entity_comes_once(tmp_path: Path) -> None:
    places = []
    for kind in "pm":
        places.append(str(tmp_path / f"{kind}.arrow"))
        ids = [f"a#{kind}0", f"a#{kind}0000"]
        write_vectors(places[-1], make_vectors(ids, np.zeros((2, 2), np.float32), groups=["a", "a"]))
    with pytest.raises(InputError, match="entity 0 of caption 'a' comes twice"):
        read_slots(*places, ["a"], 2)


def test_captions_without_any_entity_are_legal(tmp_path: Path) -> None:
    found = read_slots(bank(tmp_path, "p", []), bank(tmp_path, "m", []), ["a", "b"], 3)
    assert found.counts.tolist() == [0, 0]


def test_the_empty_text_is_one_vector(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 2 vectors; expected one"):
        read_bare_text(bank(tmp_path, "p", [("a", 0), ("a", 1)]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_rows_are_those_of_the_whole_however_they_are_cut(sizes: list[int], data) -> None:
    whole = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    parts = VectorRows(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(parts) == len(whole)
    rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))) if len(whole) else [], np.int64)
    assert np.array_equal(parts.take(rows), whole[rows])


def test_a_bank_of_several_files_is_one(tmp_path: Path) -> None:
    for kind in "pm":
        folder = tmp_path / kind
        folder.mkdir()
        for number, caption in enumerate("ab"):
            ids = [f"{caption}#{kind}0000", f"{caption}#{kind}0001"]
            vectors = np.full((2, 3), number, np.float16)
            write_vectors(f"{folder}/{number}.arrow", make_vectors(ids, vectors, groups=[caption] * 2))
    found = read_slots(str(tmp_path / "p"), str(tmp_path / "m"), ["b", "a"], 2)
    assert len(found.prompts.parts) == 2
    assert found.prompts.take(found.prompt_rows[0]).tolist() == [[1] * 3] * 2
    assert found.masks.take(found.mask_rows[:, 1]).tolist() == [[1] * 3, [0] * 3]
