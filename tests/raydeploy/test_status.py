from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import status
from raydeploy.ledger import Ledger, Marker, mark_done
from raydeploy.status import read_state, state_rows
from xmatch.data import files
from xmatch.errors import InputError


def log(folder: Path, *events: dict) -> None:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"time": 1000.0 + number, **event}) for number, event in enumerate(events)]
    (folder / "run" / "log.jsonl").write_text("\n".join(lines) + '\n{"event": "sha')  # a line that is being written
    files.write_json(str(folder / "run" / "shards.json"), {"shards": 4, "left": 4})


STARTED = {"event": "started", "job": "tokenize_corpus"}
SHARD = {"event": "shard", "shard": "s0", "counts": {"lines": 5}, "seconds": {}, "quarantined": 1}


def test_a_run_in_the_middle_is_running_until_it_falls_silent(tmp_path: Path) -> None:
    log(tmp_path, STARTED, SHARD, SHARD)
    Ledger(str(tmp_path), {})
    files.write_bytes(str(tmp_path / "shards" / "s0.parquet"), b"rows")
    mark_done(str(tmp_path), "s0", Marker({"lines": 5}, 4, 4, 0, "shards/s0.parquet", 4, "x"))
    found = read_state(str(tmp_path), now=1010.0)
    assert (found.job, found.state, found.done, found.shards) == ("tokenize_corpus", "running", 1, 4)
    assert (found.counts, found.quarantined) == ({"lines": 10}, 2)
    silent = read_state(str(tmp_path), now=1010.0 + 3600)
    assert silent.state == "interrupted"
    assert ("shards", "1 of 4 done (25%)") in state_rows(silent)
    assert "run the same command again" in dict(state_rows(silent))["to go on"]


def test_the_end_of_a_run_is_told(tmp_path: Path, capsys) -> None:
    log(tmp_path / "good", STARTED, {"event": "finished", "job": "tokenize_corpus", "seconds": 61.5})
    log(tmp_path / "bad", STARTED, {"event": "failed", "error": "the disk is full"})
    assert status.main([str(tmp_path / "good")]) == 0
    assert "finished" in capsys.readouterr().out
    assert status.main([str(tmp_path / "good"), str(tmp_path / "bad"), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["state"] for line in lines] == ["finished", "failed"]
    assert lines[1]["error"] == "the disk is full"


def test_another_folder_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="no run's folder"):
        read_state(str(tmp_path))
    assert status.main([str(tmp_path)]) == 2
    assert "Give the --output of a job" in capsys.readouterr().err
