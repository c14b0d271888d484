"""Tables from files of others: columns of plain types alone, for some types run code when a value is looked at."""

from __future__ import annotations

import pyarrow as pa

from xmatch.errors import InputError


def require_plain(schema: pa.Schema, path: str) -> None:
    """Check that no column has an extension type made in Python: one of Ray's unpickles every value looked at.

    Raises:
        InputError: one has; names file, column and type.
    """
    for field in schema:
        found = _extension(field.type)
        if found:
            raise InputError(
                f"{path!r}: column {field.name!r} has the extension type {found!r}, which could run code when it is "
                "read. Expected plain columns: write the file again without it."
            )


def _extension(kind: pa.DataType) -> str:
    """Name of an extension type made in Python, or of the first one within a type; "" where there is none."""
    if isinstance(kind, pa.ExtensionType):
        return str(kind.extension_name)
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _extension(kind.value_type)
    inner = (kind.field(at).type for at in range(kind.num_fields))
    return next(filter(None, map(_extension, inner)), "")
