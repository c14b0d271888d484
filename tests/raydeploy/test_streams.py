from __future__ import annotations

import pyarrow as pa
import pytest
from toy_steps import Double, Refuse, read_range, shards, tree

from raydeploy.connect import RayConfig
from raydeploy.faults import FaultConfig
from raydeploy.ledger import Ledger
from raydeploy.shard_actor import LEFT_OUT, ROWS_COLUMN, SHARD_COLUMN, ShardActor
from raydeploy.streams import ReadShards, run_shards
from xmatch.data import files
from xmatch.errors import InputError

pytestmark = pytest.mark.ray


def run(output, step, count: int = 5, actors: int = 1, faults: FaultConfig | None = None) -> list[str]:
    ledger = Ledger(str(output), {"kind": "test"})
    ray = RayConfig(actors=actors, faults=faults or FaultConfig())
    reports = run_shards(shards(count), read_range, step, ledger, suffix="parquet", ray=ray)
    found = [report.shard_id for report in reports]
    ledger.finish([shard.id for shard in shards(count)])
    return sorted(found)


def plain(output, count: int = 5) -> None:
    """The same, in a plain loop without Ray."""
    ledger = Ledger(str(output), {"kind": "test"})
    actor = ShardActor(Double(), str(output), "parquet")
    for shard in shards(count):
        actor.run_shard(shard.id, read_range(shard))
    ledger.finish([shard.id for shard in shards(count)])


@pytest.mark.parametrize("actors", [1, 2])
def test_ray_gives_what_a_plain_loop_gives(ray_here, tmp_path, actors: int) -> None:
    plain(tmp_path / "plain")
    assert run(tmp_path / "ray", Double(), actors=actors) == [shard.id for shard in shards(5)]
    assert tree(tmp_path / "ray") == tree(tmp_path / "plain")
    assert "quarantine/part-00000.parquet" in tree(tmp_path / "ray")


def test_a_second_run_finds_nothing_to_do(ray_here, tmp_path) -> None:
    run(tmp_path, Double())
    before = tree(tmp_path)
    assert run(tmp_path, Double()) == []
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(ray_here, tmp_path) -> None:
    plain(tmp_path / "plain")
    run(tmp_path / "killed", Double(die_at="part-00002", flag=str(tmp_path / "flag")))
    assert (tmp_path / "flag").exists()
    assert tree(tmp_path / "killed") == tree(tmp_path / "plain")


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_found_and_left_out(ray_here, tmp_path) -> None:
    run(tmp_path / "run", Double(harmful=(37,)))
    plain(tmp_path / "plain")
    found, expected = tree(tmp_path / "run"), tree(tmp_path / "plain")
    differing = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    assert differing == {
        "shards/part-00002.parquet", "quarantine/part-00002.parquet", "completions/part-00002.json", "manifest.json"
    }  # fmt: skip
    rows = files.read_parquet(str(tmp_path / "run" / "quarantine" / "part-00002.parquet")).to_pylist()
    assert {"item": "5", "where": "part-00002, row 5", "reason": LEFT_OUT} in rows
    assert 74 not in files.read_parquet(str(tmp_path / "run" / "shards" / "part-00002.parquet"))["n"].to_pylist()


@pytest.mark.slow
def test_a_row_that_hangs_its_worker_is_found_and_left_out(ray_here, tmp_path) -> None:
    run(tmp_path, Double(hanging=(2,)), count=2, faults=FaultConfig(stuck_after_s=2.0))
    rows = files.read_parquet(str(tmp_path / "quarantine" / "part-00000.parquet")).to_pylist()
    assert [row["item"] for row in rows if row["reason"] == LEFT_OUT] == ["2"]


@pytest.mark.slow
def test_a_frozen_worker_is_ended_and_changes_nothing(ray_here, tmp_path) -> None:
    plain(tmp_path / "plain")
    freezing = Double(freeze_at="part-00002", flag=str(tmp_path / "flag"))
    run(tmp_path / "frozen", freezing, faults=FaultConfig(frozen_after_s=3.0))
    assert (tmp_path / "flag").exists()
    assert tree(tmp_path / "frozen") == tree(tmp_path / "plain")


def test_an_input_error_comes_home_with_its_shard(ray_here, tmp_path) -> None:
    with pytest.raises(InputError, match="^shard part-00001: row 3 holds a negative number$"):
        run(tmp_path, Refuse())
    assert "shards/part-00001.parquet" not in tree(tmp_path)


def test_merged_blocks_fall_apart_and_split_ones_are_refused(tmp_path) -> None:
    read = ReadShards(read_range)
    tables = list(read(pa.Table.from_pylist([shard._asdict() for shard in shards(2)])))
    actor = ShardActor(Double(), str(tmp_path), "parquet")
    assert len(actor(pa.concat_tables(tables))) == 2
    assert files.read_parquet(str(tmp_path / "shards" / "part-00001.parquet")).column_names == ["n"]
    with pytest.raises(InputError, match="arrived in pieces"):
        ShardActor(Double(), str(tmp_path / "other"), "parquet")(tables[0].slice(2))
    assert {SHARD_COLUMN, ROWS_COLUMN} <= set(tables[0].column_names)
    with pytest.raises(TypeError, match="Arrow block"):
        actor([1])


def test_an_empty_shard_is_refused() -> None:
    with pytest.raises(InputError, match="has no rows"):
        list(ReadShards(read_range)(pa.Table.from_pylist([shards(1)[0]._replace(stop=0)._asdict()])))
