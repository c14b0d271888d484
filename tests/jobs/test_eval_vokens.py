"""The measures of voken runs, through the job's own main."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_models import golden, karpathy_json, tiny_vocabulary
from small_tokenizers import KINDS
from small_vokens import random_vokens, write_bank, write_tokens, write_vokens

from jobs import embed, eval_vokens, tokenize_corpus, vokenize_corpus
from vokenize.original_tokens import export_tokens
from vokenize.original_vokens import export_vokens
from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, write_vectors

DATA = golden("evaluation")["data"]
CAPTIONS = [caption for entry in DATA for caption in entry["sentf"]["mscoco"]]
IDS = [f"coco_minival/{image}" for image in golden("evaluation")["ids"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Captions, their tokens, a key bank, and the voken runs `a` and `b`."""
    tiny_vocabulary().save_pretrained(str(tmp_path / "tokenizer"))
    (tmp_path / "captions.json").write_text(json.dumps(DATA))
    shards = write_tokens(tmp_path / "tokens", tiny_vocabulary(), CAPTIONS, 5)
    keys = write_bank(tmp_path / "keys", IDS)
    for name in ("a", "b"):
        write_vokens(tmp_path / name, tmp_path / "tokens", shards, keys_hash=keys, k=10 if name == "a" else 5, keys=12)
    for number, shard in enumerate(shards):
        vokens = random_vokens(shard, k=5, keys=12, seed=number + 40)
        files.write_parquet(str(tmp_path / "b" / "shards" / f"part-{number:05d}.parquet"), vokens)
    return tmp_path


def words(run: Path, *more: str, output: str = "m") -> list[str]:
    places = ["--tokens", str(run / "tokens"), "--vokens", str(run / "a"), "--keys", str(run / "keys")]
    return [*places, "--output", str(run / output), *(word.format(run=run) for word in more)]


def measures(run: Path, *more: str, output: str = "m") -> dict:
    assert eval_vokens.main(words(run, *more, output=output)) == 0
    return json.loads((run / output / "measures.json").read_text())


def test_all_measures_are_written(run: Path, capsys) -> None:
    more = ["--other", "{run}/b", "--captions.path", "{run}/captions.json", "--tokenizer", "{run}/tokenizer"]
    found = measures(run, *more)
    assert set(found) >= {"diversity", "coverage", "hubness", "hubness_at_k", "retrieval", "agreement", "corpus"}
    assert found["agreement"]["token"]["k"] == 5
    assert found["retrieval"]["token"]["queries"] == found["corpus"]["tokens"] == 60
    assert found["retrieval"]["sentence"]["queries"] == len(CAPTIONS)
    shown = capsys.readouterr().out
    assert "Finding the captioned image" in shown
    assert "never used" in shown
    types, images = (pq.read_table(run / "m" / f"{name}.parquet") for name in ("token_types", "images"))
    assert sum(types["occurrences"].to_pylist()) == 60
    assert "cat" in types["token"].to_pylist()
    assert images["id"].to_pylist() == IDS
    assert sum(images["among_k_of_tokens"].to_pylist()) == 600
    assert (run / "m" / "vokens.png").read_bytes().startswith(b"\x89PNG")


def test_a_rerun_gives_the_same_bytes(run: Path) -> None:
    names = ("measures.json", "token_types.parquet", "images.parquet", "vokens.png")
    measures(run)
    before = [(run / "m" / name).read_bytes() for name in names]
    measures(run)
    assert [(run / "m" / name).read_bytes() for name in names] == before


def test_the_original_convention_merges_rows_of_one_path(run: Path) -> None:
    assert measures(run, "--convention", "original")["coverage"] == measures(run)["coverage"]
    rows = np.eye(12, dtype=np.float32)
    same = make_vectors(IDS, rows, uris=["images/one.jpg"] * 12)
    write_vectors(str(run / "keys" / "shards" / "part-00000.arrow"), same)
    change_identity(run, "a", keys=open_key_bank(str(run / "keys")).hash)
    found = measures(run, "--convention", "original")
    assert found["coverage"]["token"] == {"images_used": 1, "share": 1.0}
    assert found["diversity"]["images"] == 1


def test_files_of_an_original_are_measured_and_compared(run: Path) -> None:
    tokens = [pq.read_table(path) for path in sorted((run / "tokens" / "shards").iterdir())]
    prefix = str(run / "x.toy")
    export_tokens(tokens, prefix)
    for name, seed in (("one", 0), ("two", 9)):
        vokens = [random_vokens(shard, k=1, keys=12, seed=seed + n) for n, shard in enumerate(tokens)]
        export_vokens(vokens, [True] * len(CAPTIONS), str(run / name), IDS, "token")
    places = ["--tokens", prefix, "--vokens", str(run / "one"), "--other", str(run / "two")]
    more = ["--captions.path", str(run / "captions.json"), "--convention", "original", "--output", str(run / "m")]
    assert eval_vokens.main([*places, *more]) == 0
    found = json.loads((run / "m" / "measures.json").read_text())
    assert found["corpus"] == {"lines": 12, "tokens": 60}
    assert 0 < found["agreement"]["token"]["same_best"] < 1
    assert set(found["retrieval"]["token"]) >= {"recall_at_1", "chance_at_1"}
    assert pq.read_table(run / "m" / "images.parquet")["id"].to_pylist() == IDS


@pytest.mark.ray
@pytest.mark.slow
def test_the_road_from_captions_to_measures(ray_here, tmp_path: Path, tiny_model: str, image_folder: str) -> None:
    captions = karpathy_json(tmp_path / "c.json", {"test": [f"{name}.jpg" for name in "abcdef"]})
    keys, tokens, vokens = (str(tmp_path / name) for name in ("keys", "tokens", "vokens"))
    images = ["--images.root", image_folder, "--images.set_name", "toy"]
    assert embed.main(["--side", "image", "--model", tiny_model, *images, "--output", keys]) == 0
    corpus = ["--corpus.path", captions, "--corpus.form", "captions", "--tokenizer", tiny_model]
    assert tokenize_corpus.main([*corpus, "--output", tokens]) == 0
    places = ["--tokens", tokens, "--keys", keys]
    how = ["--vokenize.level", "both", "--vokenize.top_k", "10"]
    assert vokenize_corpus.main([*places, "--model", tiny_model, *how, "--output", vokens]) == 0
    more = ["--vokens", vokens, "--captions.path", captions, "--convention", "original", "--max_lines", "10000"]
    assert eval_vokens.main([*places, *more, "--output", str(tmp_path / "m")]) == 0
    found = json.loads((tmp_path / "m" / "measures.json").read_text())
    assert found["retrieval"]["sentence"]["queries"] == found["corpus"]["lines"] == 12
    assert found["retrieval"]["token"]["chance_at_10"] == pytest.approx(1000 / 12)


def test_a_plan_says_what_is_read_and_writes_nothing(run: Path, capsys) -> None:
    assert eval_vokens.main(words(run, "--other", "{run}/b", "--plan")) == 0
    shown = capsys.readouterr().out
    assert "12 lines in 3 shards" in shown
    assert "k compared" in shown
    assert not (run / "m").exists()


def change_identity(run: Path, name: str, **changes: str) -> None:
    path = run / name / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vokens", "{run}/nowhere"], "nowhere' does not exist"),
        (["--tokens", "{run}/nowhere"], "token folder"),
        (["--keys", "{run}/nowhere"], "nowhere"),
        (["--keys", "{run}/few"], "searched a bank of 12 images, but"),
        (["--keys", "{run}/renamed"], "searched the key bank"),
        (["--other", "{run}/few_keys"], "the first searched 12 images, the second 7"),
        (["--other", "{run}/other_bank"], "so a voken means another image in each"),
        (["--other", "{run}/other_tokens"], "were made from other tokens than"),
        (
            ["--captions.path", "{run}/other.json"],
            "line 0 of the corpus reads 'the cat sat on the mat .', but caption 0",
        ),
        (["--captions.path", "{run}/nowhere.json"], "does not exist"),
        (["--captions.path", "{run}/longer.json"], "ends after caption 12 of the 13"),
        (["--tokenizer", "no/such"], "cannot load the tokenizer"),
        (["--tokenizer", "{run}/tiny"], "has token id 31, but"),
        (["--max_lines", "-1"], "max_lines must be 0 or more"),
        (["--convention", "first"], "first"),
    ],
)
def test_bad_input_is_one_paragraph(run: Path, capsys, more: list[str], message: str) -> None:
    KINDS["letters"]().save_pretrained(str(run / "tiny"))
    write_bank(run / "few", IDS[:7])
    write_bank(run / "renamed", [f"{uid}0" for uid in IDS])
    shards = write_tokens(run / "same", tiny_vocabulary(), CAPTIONS, 5)
    for name in ("few_keys", "other_bank", "other_tokens"):
        write_vokens(run / name, run / "tokens", shards, keys=7 if name == "few_keys" else 12)
    change_identity(run, "other_tokens", tokens="0123456789abcdef")
    (run / "other.json").write_text(json.dumps(DATA[::-1]))
    longer = [*DATA, {"img_id": "x", "sentf": {"mscoco": ["a cat"]}}]
    (run / "longer.json").write_text(json.dumps(longer))
    assert eval_vokens.main(words(run, *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (run / "m" / "measures.json").exists()


@pytest.mark.parametrize("more", [["--captions.path", "{run}/captions.json"], ["--convention", "original"]])
def test_what_needs_names_of_images_says_so(run: Path, capsys, more: list[str]) -> None:
    arguments = [*words(run, *more), "--keys", ""]
    assert eval_vokens.main(arguments) == 2
    assert f"{more[0]}" in capsys.readouterr().err


def test_the_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        eval_vokens.main(["--help"])
    shown = capsys.readouterr().out
    assert "No model is needed" in shown
    assert "--captions.path" in shown
