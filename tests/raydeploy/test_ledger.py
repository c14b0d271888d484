from __future__ import annotations

import pytest

from raydeploy.ledger import Ledger
from xmatch.data import files
from xmatch.errors import InputError


def test_another_identity_is_refused_with_what_differs(tmp_path) -> None:
    Ledger(str(tmp_path), {"model": "a", "keys": "k"})
    Ledger(str(tmp_path), {"keys": "k", "model": "a"})
    with pytest.raises(InputError, match=r"another model \(model: 'a' there, 'b' now\)"):
        Ledger(str(tmp_path), {"model": "b", "keys": "k"})


def test_the_manifest_sums_counts_and_needs_every_shard(tmp_path) -> None:
    ledger = Ledger(str(tmp_path), {})
    for number in range(2):
        files.write_json(ledger.marker_path(f"s{number}"), {"counts": {"lines": number + 1}})
    assert ledger.done() == {"s0", "s1"}
    assert ledger.finish(["s0", "s1"])["counts"] == {"lines": 3}
    with pytest.raises(InputError, match="1 shards.*'s2'"):
        ledger.finish(["s0", "s1", "s2"])


def test_a_new_ledger_removes_what_a_killed_writer_left(tmp_path) -> None:
    left = tmp_path / "shards" / f"s0.parquet{files.TEMPORARY_MARK}9"
    left.parent.mkdir()
    left.write_bytes(b"half")
    Ledger(str(tmp_path), {})
    assert not left.exists()
