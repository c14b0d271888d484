from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from xmatch.errors import InputError
from xmatch.evaluation import original_results
from xmatch.evaluation.original_results import open_original

SCORES = np.random.default_rng(0).standard_normal((300, 1500))


def whole(source) -> np.ndarray:
    return source.block(slice(0, source.shape[0]), slice(0, source.shape[1]))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_results_are_mapped_where_they_lie(tmp_path: Path, protocol: int, order: str, dtype: str) -> None:
    scores = np.asarray(SCORES, dtype, order=order)
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps({"npts": 300, "sims": scores}, protocol=protocol))
    source = open_original(str(path), str(tmp_path / "plain"), "copy")
    assert np.array_equal(whole(source), scores)
    assert source.mapping is not None
    assert (tmp_path / "plain").exists() == (protocol in (2, 5))  # text in 2, a buffer in 5: a plain copy is made


def test_what_the_originals_save_is_not_copied(tmp_path: Path) -> None:
    path = str(tmp_path / "results_coco.npy")
    np.save(path, {"npts": 300, "sims": SCORES}, allow_pickle=True)
    assert np.array_equal(whole(open_original(path, str(tmp_path / "plain"), "copy")), SCORES)
    assert not (tmp_path / "plain").exists()


def test_a_small_matrix_and_one_in_a_list_are_copied_or_mapped_alike(tmp_path: Path) -> None:
    for value in ({"npts": 2, "sims": SCORES[:2, :10]}, [{"npts": 300, "sims": SCORES}]):
        path = str(tmp_path / "results.npy")
        np.save(path, value, allow_pickle=True)
        found = whole(open_original(path, str(tmp_path), f"copy-{type(value).__name__}"))
        assert np.array_equal(found, SCORES[: len(found), : found.shape[1]])


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


def test_hostile_and_broken_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps({"npts": 300, "sims": Hostile()}))
    with pytest.raises(InputError, match="refused"):
        open_original(str(path), str(tmp_path), "copy")
    assert not (tmp_path / "hostile").exists()
    whole_file = pickle.dumps({"npts": 300, "sims": SCORES})
    path.write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(InputError):
        open_original(str(path), str(tmp_path), "copy")
    path.write_bytes(pickle.dumps({"npts": 299, "sims": SCORES}))
    with pytest.raises(InputError, match="npts is 299, but sims has 300 rows"):
        open_original(str(path), str(tmp_path), "copy")
    assert original_results.LONG < SCORES.nbytes
