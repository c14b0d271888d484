"""Vokens moved to another tokenizer, through the job's own main and real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import tiny_vocabulary
from small_tokenizers import KINDS, TEXTS
from small_vokens import write_tokens, write_vokens
from toy_steps import tree

from jobs import convert, eval_vokens, revokenize
from vokenize.tokens import plan_token_shards, read_token_shard
from vokenize.voken_files import check_vokens, read_voken_shard

LINES = [*TEXTS, "", "   ", "a cat", "the dog"] * 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder with `tokens`, `vokens` and saved tokenizers."""
    tiny_vocabulary().save_pretrained(str(tmp_path / "same"))
    for name in ("byte_level", "unigram"):
        KINDS[name]().save_pretrained(str(tmp_path / name))
    shards = write_tokens(tmp_path / "tokens", tiny_vocabulary(), LINES, 7)
    write_vokens(tmp_path / "vokens", tmp_path / "tokens", shards)
    return tmp_path


def words(run: Path, tokenizer: str, output: str, *more: str) -> list[str]:
    places = ["--tokens", str(run / "tokens"), "--vokens", str(run / "vokens"), "--tokenizer", str(run / tokenizer)]
    return [*places, "--output", str(run / output), *more]


def results(run: Path) -> dict[str, bytes]:
    """Every file of both new runs but those that tell of the run itself."""
    return {name: data for name, data in tree(str(run / "out")).items() if "/run/" not in name}


def shard_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_tokenizer_changes_no_byte(ray_here, run: Path, capsys) -> None:
    assert revokenize.main(words(run, "same", "out")) == 0
    for name in ("tokens", "vokens"):
        assert shard_files(run / "out" / name) == shard_files(run / name)
    shown = capsys.readouterr().out
    assert "revokenize: plan" in shown
    assert "tokens beside all old" in shown


@pytest.mark.ray
@pytest.mark.slow
def test_every_other_job_reads_what_was_moved(ray_here, run: Path) -> None:
    assert revokenize.main(words(run, "unigram", "out")) == 0
    moved = [str(run / "out" / name) for name in ("tokens", "vokens")]
    lines = 0
    for shard in plan_token_shards(moved[0]):
        tokens = read_token_shard(shard)
        check_vokens(tokens, read_voken_shard(f"{moved[1]}/shards/{shard.id}.parquet"), shard.id)
        assert tokens.column("text").to_pylist() == LINES[lines : lines + len(tokens)]
        lines += len(tokens)
    assert lines == len(LINES)
    counts = json.loads((run / "out" / "run" / "report.json").read_text())["values"]["counts"]
    assert counts["lines"] == len(LINES)
    assert counts["tokens_without_vokens"] > 0
    identity = json.loads((run / "out" / "vokens" / "identity.json").read_text())
    assert (identity["keys"], identity["alignment"]) == ("bank", "overlap")
    measured = ["--tokens", moved[0], "--vokens", moved[1], "--tokenizer", str(run / "unigram")]
    assert eval_vokens.main([*measured, "--output", str(run / "measures")]) == 0
    original = ["--what", "export_tokens", "--tokens", moved[0], "--corpus_name", "x", "--output", str(run / "x")]
    assert convert.main(original) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_rerun_and_a_run_begun_before_end_in_the_same_bytes(ray_here, run: Path) -> None:
    arguments = words(run, "byte_level", "out", "--ray.calibration_s", "0")
    assert revokenize.main(arguments) == 0
    whole = results(run)
    assert revokenize.main(arguments) == 0
    assert results(run) == whole
    for left in ("tokens/completions/part-00001.json", "vokens/completions/part-00002.json", "vokens/manifest.json"):
        (run / "out" / left).unlink()
    (run / "out" / "vokens" / "shards" / "part-00002.parquet").unlink()
    assert revokenize.main(arguments) == 0
    assert results(run) == whole


@pytest.mark.ray
@pytest.mark.slow
def test_the_original_rule_is_a_run_of_its_own(ray_here, run: Path, capsys) -> None:
    assert revokenize.main(words(run, "byte_level", "out")) == 0
    assert revokenize.main(words(run, "byte_level", "out", "--alignment", "original")) == 2
    assert "another alignment" in capsys.readouterr().err
    assert revokenize.main(words(run, "byte_level", "other", "--alignment", "original")) == 0
    moved = [shard_files(run / name / "tokens") for name in ("out", "other")]
    assert moved[0] == moved[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--tokenizer", "no/such"], "cannot load the tokenizer 'no/such'"),
        (["--vokens", "/no/such"], "voken folder '/no/such' does not exist"),
        (["--tokens", "/no/such"], "token folder '/no/such' does not exist"),
        (["--output", "{run}"], "would overwrite its own input"),
        (["--output", "{run}/vokens/"], "would overwrite its own input"),
        (["--alignment", "iou"], "iou"),
        (["--alignment", "original", "--tokenizer", "{run}/unigram"], "Use --alignment overlap"),
    ],
)
def test_bad_input_is_one_paragraph(run: Path, capsys, changes: list[str], message: str) -> None:
    assert revokenize.main(words(run, "byte_level", "o") + [word.format(run=run) for word in changes]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (run / "o" / "vokens").exists()


def test_a_plan_forecasts_and_writes_nothing(run: Path, capsys) -> None:
    assert revokenize.main(words(run, "unigram", "o", "--plan")) == 0
    shown = capsys.readouterr().out
    assert "expected time" in shown
    assert "alignment" in shown
    assert not (run / "o").exists()


def test_the_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        revokenize.main(["--help"])
    shown = capsys.readouterr().out
    assert "Neither the model nor the key bank is needed" in shown
    assert "--alignment" in shown
