from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from xmatch.data.key_files import export_keys, import_keys
from xmatch.data.vectors import make_vectors, matrix
from xmatch.errors import InputError


def bank():
    ids = ["coco_minival/COCO_val2014_000000000001", "vg_nococo/101", "vg_nococo/102"]
    return make_vectors(ids, np.arange(6, dtype=np.float32).reshape(3, 2), uris=["a.jpg", "b.jpg", "c.jpg"])


def test_a_bank_becomes_a_file_triple_for_each_set_and_returns(tmp_path: Path) -> None:
    assert export_keys(bank(), str(tmp_path)) == ["coco_minival", "vg_nococo"]
    assert (tmp_path / "vg_nococo.ids").read_text() == "101\n102\n"
    assert (tmp_path / "vg_nococo.path").read_text() == "b.jpg\nc.jpg\n"
    with h5py.File(tmp_path / "vg_nococo.hdf5") as store:
        assert list(store) == ["keys"]
        assert (store["keys"].dtype, store["keys"].chunks, store["keys"].compression) == (np.float32, None, None)
    back = import_keys(str(tmp_path), "vg_nococo")
    np.testing.assert_array_equal(matrix(back), [[2, 3], [4, 5]])
    assert back.column("id").to_pylist() == ["vg_nococo/101", "vg_nococo/102"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "vg_nococo.ids").write_text("101\n"), "2 keys, 1 ids"),
        (lambda folder: (folder / "vg_nococo.hdf5").write_bytes(b"\x89HDF\r\n\x1a\nxx"), "not a whole HDF5"),
        (lambda folder: (folder / "vg_nococo.hdf5").unlink(), "does not exist"),
    ],
)
def test_damaged_keys_are_named(tmp_path: Path, damage, message: str) -> None:
    export_keys(bank(), str(tmp_path))
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        import_keys(str(tmp_path), "vg_nococo")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.complex64])
def test_keys_that_are_no_floats_are_named(tmp_path: Path, dtype) -> None:
    export_keys(bank(), str(tmp_path))
    with h5py.File(tmp_path / "vg_nococo.hdf5", "w") as store:
        store["keys"] = np.ones((2, 2), dtype)
    with pytest.raises(InputError, match=f"matrix of {np.dtype(dtype)}; expected floating-point"):
        import_keys(str(tmp_path), "vg_nococo")
