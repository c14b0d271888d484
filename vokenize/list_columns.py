"""Arrow columns of lists as flat arrays with counts, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def counts_of(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The length of each list, int64 of shape (rows,); 0 where it is null."""
    lengths: npt.NDArray[np.int64] = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return lengths


def values_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """All lists of a column end to end, in their own dtype, of shape (values,)."""
    flat: npt.NDArray[Any] = pc.list_flatten(column).to_numpy()
    return flat


def list_column(
    values: npt.NDArray[Any], counts: npt.NDArray[np.int64], nulls: npt.NDArray[np.bool_], kind: pa.DataType
) -> pa.Array:
    """A column of lists.

    Args:
        values: all lists end to end, of shape (values,).
        counts: (rows,) their lengths; 0 where null.
        nulls: (rows,) which rows are null rather than empty.
        kind: type of the column.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    mask = pa.array(nulls) if nulls.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind.value_type), type=kind, mask=mask)


def blanked(rows: pa.Table, name: str, positions: Sequence[int], value: object) -> pa.Table:
    """A table with `value` in one column at some rows, everything else kept."""
    place = rows.column_names.index(name)
    field, marked = rows.schema.field(place), np.zeros(len(rows), bool)
    marked[list(positions)] = True
    return rows.set_column(place, field, pc.if_else(pa.array(marked), pa.scalar(value, field.type), rows[name]))
