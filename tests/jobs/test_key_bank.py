"""Actions on key banks, through the job's own main."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import key_bank
from raydeploy.ledger import Ledger
from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, read_vectors, write_vectors
from xmatch.search.factored import open_factored
from xmatch.search.native_backend import instruction_sets

IDENTITY = {"side": "image", "model": "abc", "source": "photos", "batch": 32}


def rows_of(count: int, seed: int = 0, width: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def bank_of(
    folder: Path, parts: list[np.ndarray], name: str = "s", uris: list[str] | None = None, **identity: object
) -> str:
    """A bank as jobs/embed.py leaves it."""
    ledger, names, row = Ledger(str(folder), IDENTITY | identity), [], 0
    for number, rows in enumerate(parts):
        names.append(f"part-{number:05d}")
        ids = [f"{name}/{row + i}" for i in range(len(rows))]
        table = make_vectors(ids, rows, uris=uris[row : row + len(rows)] if uris else None)
        key_bank.publish(ledger, names[-1], table)
        row += len(rows)
    ledger.finish(names)
    return str(folder)


def run(action: str, bank: str, output: Path, *arguments: object) -> int:
    given = ["--action", action, "--bank", bank, "--output", str(output), *map(str, arguments)]
    return key_bank.main(given)


def content(folder: str) -> dict[str, str]:
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def with_likes() -> np.ndarray:
    """Rows 0, 3 and 7 alike in a chain, 1 and 5 equal, 8 zero."""
    rows = rows_of(9)
    step = np.zeros(6, np.float32)
    step[int(np.argmin(np.abs(rows[0])))] = 0.15
    rows[3], rows[7] = rows[0] + step, rows[0] + 2 * step
    rows[[3, 7]] /= np.linalg.norm(rows[[3, 7]], axis=1, keepdims=True)
    rows[5], rows[8] = rows[1], 0
    return rows


def test_a_report_says_what_a_bank_holds(tmp_path: Path, image_folder: str, capsys) -> None:
    uris = [f"{image_folder}/{letter}.jpg" for letter in "abcdefghi"]
    rows = with_likes()
    bank = bank_of(tmp_path / "bank", [rows[:4], rows[4:]], uris=uris)
    before = content(bank)
    assert run("report", bank, tmp_path / "out", "--threshold", 0.985) == 0
    assert content(bank) == before
    found = json.loads((tmp_path / "out" / "key_bank.json").read_text())
    assert (found["rows"], found["width"], found["dtype"], found["bytes"]) == (9, 6, "float32", 216)
    assert found["hash"] == open_key_bank(bank).hash
    assert (found["files_checked"], found["zero_rows"]) == (2, 1)
    assert found["equal"] == {"rows": 1, "most": 2, "merged_in_search": True}
    largest = found["near"].pop("largest")
    assert found["near"] == {"threshold": 0.985, "pairs": 2, "clusters": 2, "left_out": 3}
    assert (largest["id"], largest["rows"]) == ("s/0", 3)
    np.testing.assert_allclose(largest["smallest_similarity"], rows[0] @ rows[7], atol=1e-6)
    assert largest["smallest_similarity"] < 0.985
    np.testing.assert_allclose([found["norms"][name] for name in ("least", "mean", "greatest")], 1, atol=1e-6)
    page = (tmp_path / "out" / "duplicates.html").read_text()
    assert page.count("data:image/webp") == 5
    assert "3 images, s/0 first. Least alike: 0.9" in page
    assert "least similarity 0.9" in capsys.readouterr().out


def test_without_a_threshold_only_equal_rows_are_looked_for(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank", [with_likes()])
    assert run("report", bank, tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "key_bank.json").read_text())
    assert found["equal"]["rows"] == 1
    assert found["near"] is None
    assert not (tmp_path / "out" / "duplicates.html").exists()  # the bank has no places of images


def test_a_report_finds_a_shard_that_was_replaced(tmp_path: Path, capsys) -> None:
    bank = bank_of(tmp_path / "bank", [rows_of(4), rows_of(4, 1)])
    write_vectors(f"{bank}/shards/part-00001.arrow", make_vectors([f"s/{i}" for i in range(4, 8)], rows_of(4, 9)))
    assert run("report", bank, tmp_path / "out") == 2
    assert "part-00001.arrow' is not what the run that made it wrote" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["report", "pack", "merge"])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, action: str, capsys) -> None:
    rows = rows_of(5)
    rows[3, 2] = np.inf
    assert run(action, bank_of(tmp_path / "bank", [rows]), tmp_path / "out") == 2
    assert "row 3, id 's/3', holds NaN or infinity" in capsys.readouterr().err


def test_a_report_finds_a_damaged_copy_of_the_rows(tmp_path: Path, monkeypatch, capsys) -> None:
    bank = bank_of(tmp_path / "bank", [rows_of(4), rows_of(4, 1)])
    monkeypatch.setattr(key_bank, "open_bank", lambda config, path: open_key_bank(path, memory_bytes=0))
    assert run("report", bank, tmp_path / "out") == 0
    [copy] = (tmp_path / "bank" / "cache").glob("rows-*.npy")
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert run("report", bank, tmp_path / "out") == 2
    assert "row 7 of the copy" in capsys.readouterr().err


@pytest.mark.skipif(not instruction_sets("bf16"), reason="the extension is not built")
@pytest.mark.parametrize("has_copies", [False, True])
def test_a_bank_is_packed_once(tmp_path: Path, has_copies: bool, capsys) -> None:
    rows = rows_of(40)[[*range(40), *([0] * 10 if has_copies else [])]]
    bank = bank_of(tmp_path / "bank", [rows])
    (tmp_path / "bank" / "cache").mkdir()
    stale = tmp_path / "bank" / "cache" / f"packed-{'0' * 32}-all-int8.bin"
    stale.write_bytes(b"of an earlier content")
    assert run("pack", bank, tmp_path / "out") == 0
    of = "all_distinct" if has_copies else "all"
    kept = json.loads((tmp_path / "out" / "run" / "report.json").read_text())["values"]["packed"]
    assert sorted(kept) == [f"{of}-bf16", f"{of}-int8"]
    assert not stale.exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank" / "cache").iterdir()}
    assert run("pack", bank, tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bank" / "cache").iterdir()} == before
    capsys.readouterr()
    assert run("report", bank, tmp_path / "out") == 0
    assert f"{of}-int8 (" in capsys.readouterr().out
    assert run("pack", bank, tmp_path / "out", "--cache", tmp_path / "caches", "--kinds", "[int8]") == 0
    assert len(list((tmp_path / "caches").glob("bank-*/packed-*-int8.bin"))) == 1
    assert run("pack", bank, tmp_path / "out", "--kinds", "[int9]") == 2
    assert "kinds must be some of int8, bf16" in capsys.readouterr().err


def test_a_merge_makes_a_new_bank_and_says_who_stands_for_whom(tmp_path: Path) -> None:
    rows = with_likes()
    bank = bank_of(tmp_path / "bank", [rows[:4], rows[4:]], uris=[f"{i}.jpg" for i in range(9)])
    before = content(bank)
    assert run("merge", bank, tmp_path / "new", "--threshold", 0.985, "--rows_per_shard", 4) == 0
    assert content(bank) == before
    new = open_key_bank(str(tmp_path / "new"))
    kept = [0, 1, 2, 4, 6, 8]
    assert [shard.shape[0] for shard in new.shards] == [4, 2]
    assert new.ids.to_pylist() == [f"s/{row}" for row in kept]
    assert new.uris is not None
    assert new.uris.to_pylist() == [f"{row}.jpg" for row in kept]
    np.testing.assert_array_equal(new.rows, rows[kept])
    assert read_vectors(str(tmp_path / "new")).column("id").to_pylist() == new.ids.to_pylist()
    aliases = pq.read_table(tmp_path / "new" / "aliases.parquet").to_pydict()
    assert (aliases["id"], aliases["stands_for"]) == (["s/3", "s/5", "s/7"], ["s/0", "s/1", "s/0"])
    np.testing.assert_allclose(aliases["similarity"], [rows[0] @ rows[3], 1, rows[0] @ rows[7]], atol=1e-6)
    identity = json.loads((tmp_path / "new" / "identity.json").read_text())
    assert identity == IDENTITY | {"merged": {"bank": open_key_bank(bank).hash, "threshold": 0.985}}
    again = content(str(tmp_path / "new" / "shards"))
    assert run("merge", bank, tmp_path / "new", "--threshold", 0.985, "--rows_per_shard", 4) == 0
    assert content(str(tmp_path / "new" / "shards")) == again


def test_a_merge_of_equal_rows_alone_keeps_all_others(tmp_path: Path, capsys) -> None:
    rows = with_likes()
    rows[2] = 0  # two zero vectors are equal, though they have no cosine
    bank = bank_of(tmp_path / "bank", [rows])
    assert run("merge", bank, tmp_path / "new") == 0
    assert open_key_bank(str(tmp_path / "new")).ids.to_pylist() == [f"s/{row}" for row in (0, 1, 2, 3, 4, 6, 7)]
    aliases = pq.read_table(tmp_path / "new" / "aliases.parquet").to_pydict()
    assert aliases == {"id": ["s/5", "s/8"], "stands_for": ["s/1", "s/2"], "similarity": [1.0, 1.0]}
    assert run("merge", bank, tmp_path / "new", "--threshold", 0.9) == 2
    assert "another merged" in capsys.readouterr().err


def test_an_appended_bank_goes_on_where_it_ended(tmp_path: Path, capsys) -> None:
    bank = bank_of(tmp_path / "bank", [rows_of(4), rows_of(3, 1)])
    new = bank_of(tmp_path / "new", [rows_of(2, 2), rows_of(2, 3)], name="t", source="more photos", batch=8)
    old, before = open_key_bank(bank), content(bank)
    (tmp_path / "bank" / "cache").mkdir()
    stale = tmp_path / "bank" / "cache" / f"packed-{old.hash[:32]}-all-int8.bin"
    stale.write_bytes(b"of the bank as it was")
    assert run("append", bank, tmp_path / "out", "--add", new, "--plan") == 0
    assert len(open_key_bank(bank).shards) == 2  # a plan writes nothing
    assert run("append", bank, tmp_path / "out", "--add", new) == 0
    grown = open_key_bank(bank)
    after = content(bank)
    assert {name: after[name] for name in before if "shards" in name} == {
        n: h for n, h in before.items() if "shards" in n
    }
    np.testing.assert_array_equal(grown.rows[:7], old.rows)
    np.testing.assert_array_equal(grown.rows[7:], open_key_bank(new).rows)
    assert grown.ids.to_pylist() == [*old.ids.to_pylist(), "t/0", "t/1", "t/2", "t/3"]
    assert grown.hash != old.hash
    assert not stale.exists()
    assert read_vectors(bank).num_rows == 11
    manifest = json.loads((tmp_path / "bank" / "manifest.json").read_text())
    assert manifest["counts"]["images"] == 11
    [entry] = manifest["identity"]["appended"]
    assert entry == {"shard": "part-00002", "bank": open_key_bank(new).hash, "source": "more photos"}
    assert run("report", bank, tmp_path / "out") == 0  # every record agrees
    capsys.readouterr()
    state = content(bank)
    assert run("append", bank, tmp_path / "out", "--add", new) == 0
    assert "was there already" in capsys.readouterr().out
    assert content(bank) == state
    more = bank_of(tmp_path / "more", [rows_of(2, 4)], name="u")
    assert run("append", bank, tmp_path / "out", "--add", more) == 0
    assert open_key_bank(bank).ids.to_pylist()[-3:] == ["t/3", "u/0", "u/1"]


def test_banks_behind_uris_are_read(tmp_path: Path) -> None:
    bank, new = bank_of(tmp_path / "bank", [rows_of(4)]), bank_of(tmp_path / "new", [rows_of(2, 2)], name="t")
    assert run("append", bank, tmp_path / "out", "--add", f"file://{new}") == 0
    assert open_key_bank(bank).ids.to_pylist()[4:] == ["t/0", "t/1"]
    assert run("report", f"file://{bank}", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "key_bank.json").read_text())["files_checked"] == 2


def test_a_run_that_is_not_finished_does_not_grow(tmp_path: Path, capsys) -> None:
    bank, new = bank_of(tmp_path / "bank", [rows_of(4)]), bank_of(tmp_path / "new", [rows_of(2, 2)], name="t")
    (tmp_path / "bank" / "completions" / "part-00000.json").unlink()
    before = content(bank)
    assert run("append", bank, tmp_path / "out", "--add", new) == 2
    assert "1 shards of" in capsys.readouterr().err
    assert content(bank) == before


def test_an_append_that_was_cut_short_is_finished(tmp_path: Path, monkeypatch) -> None:
    bank, new = bank_of(tmp_path / "bank", [rows_of(4)]), bank_of(tmp_path / "new", [rows_of(2, 2)], name="t")
    with monkeypatch.context() as patch:
        patch.setattr(key_bank, "note_appended", lambda *given: 1 / 0)
        assert run("append", bank, tmp_path / "out", "--add", new) == 1
    assert "part-00001" not in json.loads((tmp_path / "bank" / "manifest.json").read_text())["shards"]
    assert run("append", bank, tmp_path / "out", "--add", new) == 0
    assert len(open_key_bank(bank).shards) == 2
    assert "part-00001" in json.loads((tmp_path / "bank" / "manifest.json").read_text())["shards"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "xyz"}, "another model than .*'xyz', there 'abc'"),
        ({"dtype": "float16"}, "another dtype"),
        ({"rows": rows_of(2, 2, width=5)}, "width 5, float32, but .* width 6, float32"),
        ({"rows": rows_of(2, 2).astype(np.float16)}, "width 6, float16, but .* width 6, float32"),
        ({"rows": 3 * rows_of(2, 2)}, "lengths from 3 to 3.*normalised to length 1"),
        ({"rows": np.full((2, 6), np.nan, np.float32)}, "id 't/0', holds NaN"),
        ({"name": "s"}, "ids must be new, but 's/0', 's/1' are in"),
        ({"rows": rows_of(0)}, "nothing to append"),
    ],
)
def test_what_does_not_fit_is_not_appended(tmp_path: Path, change: dict, message: str, capsys) -> None:
    bank = bank_of(tmp_path / "bank", [rows_of(4)])
    rows, name = change.pop("rows", rows_of(2, 2)), change.pop("name", "t")
    new = bank_of(tmp_path / "new", [rows], name=name, **change)
    before = content(bank)
    assert run("append", bank, tmp_path / "out", "--add", new) == 2
    assert re.search(message, capsys.readouterr().err)
    assert content(bank) == before


def test_only_a_folder_of_numbered_shards_can_grow(tmp_path: Path, capsys) -> None:
    new = bank_of(tmp_path / "new", [rows_of(2, 2)], name="t")
    for name in ("a", "part-9"):
        path = str(tmp_path / name / f"{name}.arrow")
        write_vectors(path, make_vectors(["x", "y"], rows_of(2)))
        for bank in (path, str(tmp_path / name)):
            assert run("append", bank, tmp_path / "out", "--add", new) == 2
            assert "cannot grow" in capsys.readouterr().err
    odd = str(tmp_path / "odd")
    write_vectors(f"{odd}/part-0.arrow", make_vectors(["x"], rows_of(1)).set_column(4, "uri", [[3]]))
    write_vectors(f"{odd}2/part-0.arrow", make_vectors(["y"], rows_of(1)).set_column(4, "uri", [["z"]]))
    assert run("append", odd, tmp_path / "out", "--add", f"{odd}2") == 2
    assert "another type" in capsys.readouterr().err
    assert files.list_files(odd) == [f"{odd}/part-0.arrow"]


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, capsys) -> None:
    bank = bank_of(tmp_path / "bank", [rows_of(4)])
    for arguments, message in [
        (("append", bank, tmp_path / "out"), "needs --add"),
        (("report", bank, tmp_path / "bank"), "another folder than the bank"),
        (("report", f"{bank}/shards", tmp_path / "bank"), "another folder than the bank"),
        (("report", bank, tmp_path / "out", "--threshold", 2), "from 0 \\(off\\) to 1"),
        (("merge", bank, tmp_path / "out", "--rows_per_shard", 0), "at least 1"),
        (("report", str(tmp_path / "absent"), tmp_path / "out"), "does not exist"),
    ]:
        assert run(*arguments) == 2
        assert message.replace("\\", "") in " ".join(capsys.readouterr().err.split())
    write_vectors(str(tmp_path / "none.arrow"), make_vectors([], rows_of(0)))
    assert run("merge", str(tmp_path / "none.arrow"), tmp_path / "out") == 2
    assert run("report", str(tmp_path / "none.arrow"), tmp_path / "out", "--threshold", 0.9) == 0


def test_help_and_plan_teach(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        key_bank.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"`--action {action}`" in shown for action in key_bank.ACTIONS)
    bank = bank_of(tmp_path / "bank", [rows_of(4)])
    assert run("report", bank, tmp_path / "out", "--threshold", 0.9, "--plan") == 0
    assert "TFLOP of search" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def views_bank(folder: Path) -> tuple[str, np.ndarray]:
    """Four images of three views, the last three columns shared."""
    rows = np.concatenate([rows_of(12, width=4), np.repeat(rows_of(4, seed=1, width=3), 3, 0)], 1)
    names = [f"s/{image}" for image in "abcd" for _ in range(3)]
    ids = [f"{name}#v{row % 3:02d}" for row, name in enumerate(names)]
    write_vectors(str(folder / "views.arrow"), make_vectors(ids, rows, groups=names))
    return str(folder / "views.arrow"), rows


def test_a_bank_of_views_is_factored(tmp_path: Path, capsys) -> None:
    bank, rows = views_bank(tmp_path)
    assert run("factor", bank, tmp_path / "two", "--dim", 4) == 0
    assert "71% of the bank's" in capsys.readouterr().out
    opened = open_factored(str(tmp_path / "two"))
    assert opened.ids.to_pylist() == ["s/a", "s/b", "s/c", "s/d"]
    np.testing.assert_array_equal(opened.vectors.parts[0].rows, rows[:, :4])
    np.testing.assert_array_equal(opened.vectors.parts[1].rows, rows[::3, 4:])


@pytest.mark.parametrize(
    ("action", "arguments", "message"),
    [
        ("factor", (), "factor needs --dim"),
        ("factor", ("--dim", 3), "view 1 of image 0 differs from view 0 in column 3"),
        ("factor", ("--dim", 7), "expected dim from 1 to 6, got 7"),
        ("merge", (), "every image must keep all of its views"),
    ],
)
def test_what_cannot_be_done_with_views_is_said(tmp_path: Path, capsys, action: str, arguments, message: str) -> None:
    bank, _ = views_bank(tmp_path)
    assert run(action, bank, tmp_path / "two", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
