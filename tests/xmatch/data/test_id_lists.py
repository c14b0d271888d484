from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import id_lists
from xmatch.data.id_lists import cut_ids, read_ids
from xmatch.errors import InputError

IDS = st.lists(st.sampled_from(["", "14928b4f367c217e", "é", "COCO_val2014_000000000042"]), max_size=12)


@settings(deadline=None)
@given(lines=IDS, per_shard=st.integers(1, 5), most=st.none() | st.integers(1, 9), end=st.sampled_from(["", "\n"]),
       block=st.integers(1, 30))  # fmt: skip
def test_cuts_partition_the_ids_in_order(tmp_path_factory, lines, per_shard, most, end, block) -> None:
    path = tmp_path_factory.mktemp("i") / "x.ids"
    path.write_text("\n".join(lines) + end)
    wanted = [line for line in lines if line][:most]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_lists, "BLOCK", block)
        shards = [read_ids(str(path), *cut) for cut in cut_ids(str(path), per_shard, most)]
    assert shards == [wanted[at : at + per_shard] for at in range(0, len(wanted), per_shard)]


def test_bad_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(cut_ids(str(tmp_path / "no"), 3))
    (tmp_path / "x.ids").write_bytes(b"one\ntw\xff\n")
    with pytest.raises(InputError, match=r"x\.ids' is not UTF-8 at byte 6"):
        read_ids(str(tmp_path / "x.ids"), 0, 8)
