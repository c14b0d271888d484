from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.search import build_searcher, merge_results
from xmatch.search.approximate_config import ApproximateConfig
from xmatch.search.native_backend import instruction_sets
from xmatch.search.open_bank import OpenBank, bank_shape
from xmatch.search.recall import recall_at_k

KEYS, WIDTH = 900, 16


@pytest.fixture
def bank(tmp_path: Path) -> str:
    rows = np.random.default_rng(0).standard_normal((KEYS, WIDTH)).astype(np.float32)
    rows[100:180] = rows[5]  # copies, enough to be taken out
    for number, start in enumerate(range(0, KEYS, 300)):
        part = rows[start : start + 300]
        ids = [str(i) for i in range(start, start + len(part))]
        write_vectors(str(tmp_path / "bank" / f"part-{number:05d}.arrow"), make_vectors(ids, part))
    return str(tmp_path / "bank")


def rows_of(bank: str) -> np.ndarray:
    return np.asarray(OpenBank(bank).exact(1).keys)


def queries(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)


def test_the_shape_is_that_of_all_files(bank: str) -> None:
    assert tuple(bank_shape(bank)) == (KEYS, WIDTH, 4)


@pytest.mark.parametrize("backend", ["auto", "torch", "faiss"])
def test_parts_of_a_bank_answer_as_the_whole(bank: str, backend: str) -> None:
    opener, edges = OpenBank(bank, backend), [0, 1, 150, 600, KEYS]
    parts = [opener(a, b, 1).search(queries(), 7) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    whole, plain = opener(0, KEYS, 1).search(queries(), 7), build_searcher(rows_of(bank), "torch").search(queries(), 7)
    for found in (merge_results(parts, 7), whole):
        np.testing.assert_array_equal(found.ids, plain.ids)
        np.testing.assert_array_equal(found.scores, plain.scores)


@pytest.mark.skipif(not instruction_sets("int8"), reason="the extension is not built")
def test_parts_keep_packed_files_of_their_own_and_find_them_again(bank: str) -> None:
    opener = OpenBank(bank, "native")
    first = [opener(start, start + 450, 1).search(queries(), 3) for start in (0, 450)]
    kept = {path.name for path in Path(bank, "cache").glob("packed-*.bin")}
    assert len({name.rsplit("-", 1)[0] for name in kept}) == 2
    again = [opener(start, start + 450, 1).search(queries(), 3) for start in (0, 450)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    assert {path.name for path in Path(bank, "cache").glob("packed-*.bin")} >= kept


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_is_built_once_and_its_recall_is_told(bank: str, kind: str) -> None:
    opener = OpenBank(
        bank, kind, approximate=ApproximateConfig(lists=4, probes=4) if kind == "ivf" else ApproximateConfig()
    )
    assert opener.is_approximate
    found = opener(0, KEYS, 1)
    [index] = Path(bank, "cache").glob(f"{kind}-*.index")
    written = index.stat().st_mtime_ns
    assert recall_at_k(found, opener.exact(1), queries(), 5).recall > 0.95
    np.testing.assert_array_equal(opener(0, KEYS, 1).search(queries(), 5).ids, found.search(queries(), 5).ids)
    assert index.stat().st_mtime_ns == written


def test_an_index_that_cannot_be_is_refused(bank: str) -> None:
    with pytest.raises(InputError, match="needs at least 9,984 keys"):
        OpenBank(bank, "ivfpq")(0, KEYS, 1)
