from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import write_vectors
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
