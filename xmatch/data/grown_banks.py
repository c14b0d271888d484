"""A bank grows by appending: new images become one more shard, and no row that was there before moves or changes.

So vokens, which are rows of a bank, stay what they are. The new shard appears under its name only once it is whole, and
says in its schema's metadata what was appended, so an interrupted run can tell that it had come so far.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data import files
from xmatch.data.key_banks import KeyBank, check_finite
from xmatch.data.key_figures import sampled_norms
from xmatch.data.key_shards import vector_table
from xmatch.data.vectors import SUFFIX, open_arrow
from xmatch.errors import InputError

APPENDED_KEY = b"vokenray.appended"
"""Metadata key of an appended shard: the hash of the bank it was made of."""
FREE = ("appended", "batch", "inputs", "merged", "source")
"""What the identities of two runs may differ in if their vectors are to go together: the images, and their batches."""


def check_appendable(bank: KeyBank, new: KeyBank, identities: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    """Check that the rows of one bank may follow those of another.

    Args:
        bank: that grows.
        new: what is appended.
        identities: of the runs that made them (identity.json); empty where there is none.

    Raises:
        InputError: the bank's files cannot be followed, or model, width, number format, normalisation or columns
            differ, or ids repeat; says which.
    """
    next_shard(bank)
    if not new.shape[0]:
        raise InputError(f"{new.path!r} has no rows, so there is nothing to append.")
    there, here = identities
    differing = sorted(n for n in {*there, *here} - set(FREE) if there.get(n) != here.get(n))
    if differing:
        name = differing[0]
        raise InputError(
            f"{new.path!r} was made with another {', '.join(differing)} than {bank.path!r} ({name}: "
            f"{here.get(name)!r}, there {there.get(name)!r}), so their vectors cannot be compared. Embed the new "
            "images as the bank was."
        )
    if (bank.shape[1], bank.dtype) != (new.shape[1], new.dtype):
        raise InputError(
            f"{new.path!r} holds vectors of width {new.shape[1]}, {new.dtype}, but {bank.path!r} of width "
            f"{bank.shape[1]}, {bank.dtype}: vectors of one bank must have one width and dtype."
        )
    ours, theirs = sampled_norms(bank), sampled_norms(new)
    if bank.shape[0] and ours.are_unit != theirs.are_unit:
        raise InputError(
            f"the vectors of {new.path!r} have lengths from {theirs.least:.4g} to {theirs.greatest:.4g}, those of "
            f"{bank.path!r} from {ours.least:.4g} to {ours.greatest:.4g}: only one of them is normalised to length 1. "
            "Embed the new images as the bank was."
        )
    known = open_arrow(bank.shards[-1].path).schema.names
    strange = [name for name in new.info.column_names if name not in known]
    if strange:
        raise InputError(f"{new.path!r} has a column {strange[0]!r}, which {bank.path!r} lacks. Leave it out.")
    repeated = new.ids.filter(pc.is_in(new.ids, bank.ids))[:3].to_pylist()
    if repeated:
        raise InputError(
            f"{new.path!r}: ids must be new, but {', '.join(map(repr, repeated))} are in {bank.path!r} already. Append "
            "other images only, or give their set another name."
        )


def next_shard(bank: KeyBank) -> str:
    """Path of the shard that follows a bank's last one.

    Raises:
        InputError: the bank is no folder of Arrow shards with numbered names, or the number is used up.
    """
    last = bank.shards[-1].path
    match = re.fullmatch(r"(.*?)(\d+)\.arrow", os.path.basename(last))
    if not files.is_folder(bank.path) or match is None or not last.endswith(SUFFIX):
        raise InputError(
            f"{bank.path!r} cannot grow: expected a folder of shards named as part-00000{SUFFIX}, its last file is "
            f"{last!r}. Merge it into a new bank first (--action merge), which has such shards."
        )
    name = f"{match[1]}{int(match[2]) + 1:0{len(match[2])}d}{SUFFIX}"
    if name <= os.path.basename(last):
        raise InputError(f"{bank.path!r} cannot grow: no file name follows {last!r} in order. Rename its shards.")
    return files.join(last.rpartition("/")[0], name)


def appended_hash(bank: KeyBank) -> str:
    """The hash of what was appended last, from the bank's last shard; "" where that is none of ours."""
    last = bank.shards[-1].path
    metadata = (open_arrow(last).schema.metadata or {}) if last.endswith(SUFFIX) else {}
    return bytes(metadata.get(APPENDED_KEY, b"")).decode()


def write_appended(bank: KeyBank, new: KeyBank) -> str:
    """Write the rows of a bank as the next shard of another, block by block; its path.

    Raises:
        InputError: a row is not finite, or a column has another type; the bank is as it was then.
    """
    path = next_shard(bank)
    empty = open_arrow(bank.shards[-1].path).schema.empty_table()
    schema = empty.schema.with_metadata({APPENDED_KEY: new.hash.encode()})
    start = 0
    with files.open_atomic(path) as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in new.blocks():
            check_finite(block, new, start)
            table = vector_table(new.info.slice(start, len(block)), block)
            try:
                whole = pa.concat_tables([empty, table], promote_options="default").select(schema.names)
                writer.write_table(whole.cast(schema))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(f"{new.path!r} has a column of another type than {bank.path!r}: {error}.") from error
            start += len(block)
    return path
