from __future__ import annotations

import pytest

from raydeploy.ledger import Ledger, Marker, mark_done, read_marker
from xmatch.data import files
from xmatch.errors import InputError


def publish(output: str, shard_id: str, lines: int = 1, quarantined: int = 0) -> None:
    """A finished shard of four items."""
    name = f"shards/{shard_id}.parquet"
    files.write_bytes(files.join(output, name), b"rows")
    mark_done(output, shard_id, Marker({"lines": lines}, 4, 4, quarantined, name, 4, "digest"))


def test_of_long_values_a_refusal_shows_where_they_differ(tmp_path) -> None:
    Ledger(str(tmp_path), {"regions": "a" * 5000 + "there" + "b" * 5000})
    with pytest.raises(InputError) as refused:
        Ledger(str(tmp_path), {"regions": "a" * 5000 + "here" + "b" * 5000})
    said = str(refused.value)
    assert len(said) < 800 and "aathereb" in said and "aahereb" in said


def test_another_identity_is_refused_with_what_differs(tmp_path) -> None:
    Ledger(str(tmp_path), {"model": "a", "keys": "k"})
    Ledger(str(tmp_path), {"keys": "k", "model": "a"})
    with pytest.raises(InputError, match=r"another model \(model: 'a' there, 'b' now\)"):
        Ledger(str(tmp_path), {"model": "b", "keys": "k"})


def test_the_manifest_sums_counts_and_needs_every_shard(tmp_path) -> None:
    ledger = Ledger(str(tmp_path), {})
    for number in range(2):
        publish(str(tmp_path), f"s{number}", lines=number + 1)
    assert ledger.done() == {"s0", "s1"}
    manifest = ledger.finish(["s0", "s1"], values={"recall": 1.0})
    assert (manifest["counts"], manifest["items"], manifest["recall"]) == ({"lines": 3}, 8, 1.0)
    assert manifest["versions"]["pyarrow"]
    with pytest.raises(InputError, match="1 shards.*'s2'"):
        ledger.finish(["s0", "s1", "s2"])


def test_a_shard_that_was_damaged_later_is_done_again(tmp_path) -> None:
    ledger = Ledger(str(tmp_path), {})
    for name in ("s0", "s1", "s2"):
        publish(str(tmp_path), name)
    (tmp_path / "shards" / "s1.parquet").write_bytes(b"tru")
    (tmp_path / "shards" / "s2.parquet").unlink()
    with pytest.raises(
        InputError, match="2 finished shards.*the file of s1 has 3 bytes, expected 4 bytes.*run the same"
    ):
        ledger.finish(["s0", "s1", "s2"])
    assert ledger.done() == {"s0"}
    publish(str(tmp_path), "s1")
    publish(str(tmp_path), "s2")
    ledger.finish(["s0", "s1", "s2"])


def test_too_many_quarantined_items_fail_a_run(tmp_path) -> None:
    ledger = Ledger(str(tmp_path), {})
    publish(str(tmp_path), "s0", quarantined=1)
    ledger.finish(["s0"], max_quarantined=0.25)
    with pytest.raises(InputError, match=r"1 of 4 items are quarantined \(25.0%\), more than the 24.0%"):
        ledger.finish(["s0"], max_quarantined=0.24)


def test_who_comes_second_finds_the_shard_done_or_says_what_differs(tmp_path) -> None:
    Ledger(str(tmp_path), {})
    publish(str(tmp_path), "s0")
    before = (tmp_path / "completions" / "s0.json").read_bytes()
    publish(str(tmp_path), "s0")
    assert (tmp_path / "completions" / "s0.json").read_bytes() == before
    with pytest.raises(InputError, match=r"finished twice with different content \(counts\)"):
        publish(str(tmp_path), "s0", lines=9)
    (tmp_path / "completions" / "s0.json").write_text("{}")
    with pytest.raises(InputError, match="no completion marker of this version"):
        read_marker(str(tmp_path), "s0")


def test_a_new_ledger_removes_what_a_killed_writer_left(tmp_path) -> None:
    left = tmp_path / "shards" / f"s0.parquet{files.TEMPORARY_MARK}9"
    left.parent.mkdir()
    left.write_bytes(b"half")
    Ledger(str(tmp_path), {})
    assert not left.exists()
