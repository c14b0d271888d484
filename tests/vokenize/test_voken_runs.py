from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_models import tiny_vocabulary
from small_vokens import random_vokens, write_tokens, write_vokens

from vokenize.original_tokens import export_tokens
from vokenize.original_vokens import export_vokens
from vokenize.voken_runs import first_lines, open_original_run, open_voken_run, require_comparable
from xmatch.data import files
from xmatch.errors import InputError

LINES = ["the cat", "", "a dog ran , running . a dog ran", "it is big", "hello world !", "the mat"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder with `tokens` and `vokens`, two shards each."""
    shards = write_tokens(tmp_path / "tokens", tiny_vocabulary(), LINES)
    write_vokens(tmp_path / "vokens", tmp_path / "tokens", shards)
    return tmp_path


def opened(run: Path, vokens: str = "vokens", tokens: str = "tokens"):
    return open_voken_run(str(run / tokens), str(run / vokens), files.sha256(str(run / tokens / "manifest.json")))


def test_parts_hold_the_shards_in_order(run: Path) -> None:
    found = opened(run)
    assert (found.level, found.top_k, found.keys, found.key_hash) == ("both", 2, 9, "bank")
    one, two = found.parts()
    assert (one.where, one.first_line, two.first_line) == ("part-00000", 0, 4)
    assert one.tokens_per_line.tolist() == [2, 0, 10, 3]
    assert one.pieces_per_line.tolist() == [1, 0, 3, 1]
    assert (one.vokens.shape, one.sentence_vokens.shape) == ((15, 2), (5, 2))
    assert two.texts.to_pylist() == LINES[4:]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 6, 99])
def test_the_first_lines_are_a_whole_run_cut(run: Path, count: int) -> None:
    whole, cut = list(opened(run).parts()), list(first_lines(opened(run).parts(), count))
    lines = min(count or 6, 6)
    assert sum(len(part.tokens_per_line) for part in cut) == lines

    def joined(parts, name: str) -> list:
        return [x for part in parts for x in np.asarray(getattr(part, name)).tolist()]

    tokens, pieces = sum(joined(cut, "tokens_per_line")), sum(joined(cut, "pieces_per_line"))
    for name, kept in (("token_ids", tokens), ("vokens", tokens), ("sentence_vokens", pieces), ("texts", lines)):
        assert joined(cut, name) == joined(whole, name)[:kept]


def test_tokens_of_another_run_are_refused_with_both_names(run: Path) -> None:
    write_tokens(run / "others", tiny_vocabulary(), [*LINES[:5], "the dog"], 4)
    (run / "others" / "manifest.json").write_text('{"counts": {"tokens": 1}}')
    with pytest.raises(InputError, match="vokens' were made from other tokens than .*others' holds"):
        opened(run, tokens="others")


def test_missing_and_surplus_shards_are_named(run: Path) -> None:
    os.rename(run / "vokens" / "shards" / "part-00001.parquet", run / "kept")
    with pytest.raises(InputError, match="has 2 shards and .*vokens' has 1: 'part-00001.parquet' is in .*tokens'"):
        opened(run)
    os.rename(run / "kept", run / "vokens" / "shards" / "part-00002.parquet")
    with pytest.raises(InputError, match="'part-00001.parquet' is in .*tokens' and not in .*vokens'"):
        opened(run)


def test_other_line_counts_are_refused_with_both_files(run: Path) -> None:
    shards = write_tokens(run / "longer", tiny_vocabulary(), [*LINES, "the cat"])
    write_vokens(run / "other", run / "tokens", shards)
    with pytest.raises(InputError, match=r"tokens/.*part-00001.*2 lines and .*other/.*part-00001.*3"):
        opened(run, "other")


def test_other_tokens_in_the_lines_are_refused(run: Path) -> None:
    shards = write_tokens(run / "longer", tiny_vocabulary(), [*LINES[:3], "it is very big", *LINES[4:]])
    write_vokens(run / "other", run / "tokens", shards)
    with pytest.raises(InputError, match="line 3: 8 vokens for 6 places"):
        list(opened(run, "other").parts())


def test_shards_of_two_runs_are_refused(run: Path) -> None:
    shards = write_tokens(run / "same", tiny_vocabulary(), LINES)
    files.write_parquet(str(run / "vokens" / "shards" / "part-00001.parquet"), random_vokens(shards[1], k=3))
    with pytest.raises(InputError, match="shards of two runs"):
        list(opened(run).parts())


def test_what_is_no_run_is_named(run: Path) -> None:
    with pytest.raises(InputError, match="voken folder .*nowhere' does not exist"):
        opened(run, "nowhere")
    with pytest.raises(InputError, match="no voken shard"):
        opened(run, "tokens")
    (run / "vokens" / "shards" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="part-00000.parquet' is not a whole Parquet file"):
        opened(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": 7}, "the first searched 9 images, the second 7"),
        ({"keys_hash": "other"}, "the first searched key bank bank…, the second other…"),
    ],
)
def test_runs_with_other_banks_cannot_be_compared(run: Path, changes: dict, message: str) -> None:
    shards = write_tokens(run / "same", tiny_vocabulary(), LINES)
    write_vokens(run / "other", run / "tokens", shards, **changes)
    with pytest.raises(InputError, match=f"vokens' and .*other' cannot be compared: {message}"):
        require_comparable(opened(run), opened(run, "other"))


def test_runs_without_a_common_level_cannot_be_compared(run: Path) -> None:
    shards = write_tokens(run / "same", tiny_vocabulary(), LINES)
    for name, level in (("a", "token"), ("b", "sentence")):
        write_vokens(run / name, run / "tokens", shards, level=level)
    with pytest.raises(InputError, match="first has vokens of tokens, the second of sentences only"):
        require_comparable(opened(run, "a"), opened(run, "b"))
    require_comparable(opened(run, "a"), opened(run))


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_files_of_an_original_give_the_same_parts(run: Path, level: str, monkeypatch) -> None:
    shards = write_tokens(run / "same", tiny_vocabulary(), LINES)
    tables = [random_vokens(shard, k=1, keys=2, seed=number) for number, shard in enumerate(shards)]
    # of two images, so that voken 0 is there, whose sign says nothing
    write_vokens(run / "best", run / "tokens", shards, k=1, keys=2)
    prefix, base = str(run / "x.toy"), str(run / "x.set")
    export_tokens(shards, prefix)
    keep = [bool(ids) for shard in shards for ids in shard.column("token_ids").to_pylist()]
    export_vokens(tables, keep, base, ["s/0", "s/1"], level)
    monkeypatch.setattr("vokenize.voken_runs.LINES_PER_PART", 2)
    found = open_original_run(prefix, base)
    assert (found.level, found.top_k, found.keys) == (level, 1, 2)
    parts = list(found.parts())
    assert [len(part.tokens_per_line) for part in parts] == [2, 2, 1]
    name = "vokens" if level == "token" else "sentence_vokens"
    there = np.concatenate([getattr(part, name) for part in parts])
    here = np.concatenate([getattr(part, name) for part in opened(run, "best").parts()])
    assert there.tolist() == here.tolist()
    export_vokens(tables, keep, f"{base}2", ["t/0", "t/1"], level)
    with pytest.raises(InputError, match="voken 0 is 's/0' in the first and 't/0' in the second"):
        require_comparable(found, open_original_run(prefix, f"{base}2"))
    shutil.copy(f"{base}.ids", f"{base}2.ids")
    require_comparable(found, open_original_run(prefix, f"{base}2"))
