from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmatch.data.image_listing import LISTING_SCHEMA
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import matrix, write_vectors
from xmatch.embedding import EmbedImages


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_key_bank_of_half_the_bytes_is_the_other_one_rounded(
    tmp_path: Path, tiny_model: str, image_folder: str, dtype
) -> None:
    names = ["a", "b", "c"]
    rows = pa.table({"id": names, "uri": [f"{image_folder}/{n}.jpg" for n in names], "bytes": pa.nulls(3, pa.binary())})
    full = EmbedImages(tiny_model)("part-00000", rows).table
    write_vectors(str(tmp_path / "half.arrow"), EmbedImages(tiny_model, dtype=dtype)("part-00000", rows).table)
    write_vectors(str(tmp_path / "full.arrow"), full)
    half = open_key_bank(str(tmp_path / "half.arrow"))
    assert half.dtype.name == dtype
    expected = open_key_bank(str(tmp_path / "full.arrow")).rows.astype(half.dtype)
    np.testing.assert_array_equal(half.rows.astype(np.float32), expected.astype(np.float32))


def image_rows(image_folder: str) -> pa.Table:
    """The test images, and among them one that is no image."""
    paths = sorted(str(path) for path in Path(image_folder).iterdir())
    rows = [{"id": path[-5], "uri": path, "bytes": None} for path in paths]
    rows.insert(5, {"id": "broken", "uri": "nowhere.jpg", "bytes": b"no image"})
    return pa.Table.from_pylist(rows, LISTING_SCHEMA)


def test_decoding_ahead_changes_nothing(tiny_model: str, image_folder: str) -> None:
    rows = image_rows(image_folder)
    in_turn = EmbedImages(tiny_model, batch_size=3)("part-00000", rows)
    ahead = EmbedImages(tiny_model, batch_size=3, decoders=3)("part-00000", rows)
    assert ahead.table.equals(in_turn.table)
    assert ahead.counts == in_turn.counts == {"images": 12, "quarantined": 1}
    assert ahead.quarantine.equals(in_turn.quarantine)


def test_a_tower_in_half_precision_is_near(tiny_model: str, image_folder: str) -> None:
    rows = image_rows(image_folder)
    exact, near = (
        matrix(EmbedImages(tiny_model, precision=precision)("part-00000", rows).table)
        for precision in ("float32", "bfloat16")
    )
    assert near.dtype == exact.dtype == np.float32
    assert 0 < np.abs(exact - near).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-5)
