"""Regions of images through the job's own main and real Ray: the table, one's own data, Maria's concepts."""

from __future__ import annotations

import ast
import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from killed_jobs import job, kill_when_done_begins, require_kept, run_job_process
from PIL import Image
from small_models import make_images, tiny_vocabulary
from small_region_detectors import save_detr
from small_regions import same, some_regions
from small_vokens import write_tokens, write_vokens
from toy_steps import tree

from alignment.mvptr.dataset import MVPTRDataset
from alignment.mvptr.regions.geometry import has_geometry
from alignment.mvptr.regions.region_tsv import write_mvptr
from alignment.mvptr.regions.table import RegionTable
from jobs import convert, extract_regions
from xmatch.data import files
from xmatch.data.region_files import RegionFile
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
GRID = ["--detector.kind", "grid", "--detector.model", "test_resnet.r160_in1k", "--detector.weights", "none"]
FIXED = ["--images_per_shard", "2", "--device", "cpu", "--ray.calibration_s", "0"]


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return make_images(tmp_path / "images", 3)


def results(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(str(folder)).items() if "run/" not in name}


@pytest.mark.ray
@pytest.mark.slow
def test_images_become_a_table_of_regions(ray_here, photos: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    given = [*FIXED, "--images.root", photos, "--images.set_name", "toy", "--output", str(out)]
    given += ["--detector.kind", "transformers", "--detector.model", save_detr(tmp_path / "detr")]
    given += ["--regions.min_regions", "3", "--regions.max_regions", "5"]
    assert extract_regions.main(given) == 0
    table = RegionTable(str(out))
    assert list(table.rows) == ["toy/a", "toy/b", "toy/c"] and table.width == 16 + 6
    for image in table:
        assert 3 <= len(image.features) <= 5 and has_geometry(image) and (image.width, image.height) == (48, 40)
        assert set(image.tags) <= {"dog", "café", "cat's tail"} and image.scores is not None
    whole = results(out)
    (out / "completions/part-00001.json").unlink()
    (out / "manifest.json").unlink()
    assert extract_regions.main(given) == 0
    assert results(out) == whole
    assert extract_regions.main([*given, "--regions.max_regions", "6"]) == 2
    assert "another regions" in capsys.readouterr().err
    made = str(tmp_path / "vinvl")
    convert_given = ["--what", "export_mvptr", "--mvptr.file", "vinvl", "--input", str(out), "--output", made]
    assert convert.main(convert_given) == 0
    read = RegionFile(f"{made}/features.tsv", f"{made}/predictions.tsv")
    assert all(same(a, b, but=("labels", "image_id")) for a, b in zip(read, table, strict=True))
    assert [image.image_id for image in read] == ["a", "b", "c"]


@pytest.mark.ray
@pytest.mark.slow
def test_unreadable_images_are_quarantined(ray_here, photos: str, tmp_path: Path) -> None:
    Path(photos, "b.jpg").write_bytes(b"no image")
    Path(photos, "c.jpg").write_bytes(b"")
    out = tmp_path / "out"
    given = [*FIXED, *GRID, "--images.root", photos, "--output", str(out), "--images_per_shard", "1"]
    assert extract_regions.main([*given, "--ray.faults.max_quarantined", "1"]) == 0
    assert list(RegionTable(str(out)).rows) == ["images/a"]
    broken = [files.read_parquet(path) for path in files.list_files(str(out / "quarantine"))]
    assert pa.concat_tables(broken).column("item").to_pylist() == ["images/b", "images/c"]
    counts = json.loads((out / "run/report.json").read_text())["values"]["counts"]
    assert (counts["images"], counts["quarantined"], counts["regions"]) == (1, 2, 36)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_extraction_goes_on_where_it_was(tmp_path: Path) -> None:
    given = [
        *FIXED,
        *GRID,
        "--images.root",
        make_images(tmp_path / "images", 24),
        "--images_per_shard",
        "1",
        "--output",
    ]
    command, killed = job("extract_regions", given), tmp_path / "killed"
    kept = kill_when_done_begins([*command, str(killed)], killed, "completions/*.json")
    assert len(kept) < 24 and not (killed / "manifest.json").exists()
    for name in ("killed", "whole"):
        run_job_process([*command, str(tmp_path / name)])
    require_kept(kept)
    assert results(killed) == results(tmp_path / "whole")


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_makes_what_the_data_set_reads(ray_here, photos: str, tmp_path: Path) -> None:
    pairs = [
        {"text": "A child holding a flowered umbrella and petting a yak.", "image_id": "b", "label": 1},
        {"text": "The cat sat", "image_id": "a.jpg", "label": 0},
        {"text": "A big cat", "image_id": "b", "label": 0},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    tiny_vocabulary().save_pretrained(str(tmp_path / "words"))
    out = tmp_path / "out"
    given = [*FIXED, *GRID, "--data", str(tmp_path / "pairs.json"), "--images.root", photos, "--output", str(out)]
    given += ["--phrases.tokenizer", str(tmp_path / "words"), "--phrases.min_sentences", "1"]
    assert extract_regions.main([*given, "--phrases.tagger", "textblob"]) == 0
    data = MVPTRDataset(
        tokenizer_path=str(tmp_path / "words"),
        img_feat_file=str(out / "predictions.tsv"),
        input_data=str(out / "phrases/processed_pairs.json"),
        id2phrase=str(out / "phrases/id2phrase.json"),
        max_seq_length=50,
        max_img_seq_length=50,
        max_tag_length=20,
        max_phrases=5,
    )
    assert data.data[0]["phrases"] == [["child"], ["umbrella"], ["umbrella", "flowered"], ["yak"]]
    index, tensors = data[0]
    width = RegionTable(str(out)).width
    assert index == 0 and [tuple(part.shape) for part in tensors] == [
        (55,), (55,), (55,), (20,), (70,), (20,), (50, width)]  # fmt: skip
    assert tensors.img_feats[:36].equal(data[2][1].img_feats[:36]) and len(data) == 3
    table = RegionTable(str(out))
    assert np.array_equal(tensors.img_feats[:36].numpy(), table.take("b").features)
    vocabulary = json.loads((out / "phrases/id2phrase.json").read_text())
    assert len(vocabulary) == 7 and [data.get_label(row) for row in range(3)] == [1, 0, 0]


def dialogue_run(folder: Path) -> tuple[Path, Path]:
    """Vokens of dialogues over a key bank of eight real photos: folders of both."""
    names = sorted(path.name for path in PHOTOS.iterdir())[:8]
    bank, tokens, vokens = folder / "keys", folder / "tokens", folder / "vokens"
    rows = np.eye(8, dtype=np.float32)
    uris = [str(PHOTOS / name) for name in names]
    table = make_vectors([f"coco_examples/{Path(name).stem}" for name in names], rows, uris=uris)
    write_vectors(str(bank / "shards/part-00000.arrow"), table)
    lines = ["the cat\ta dog .", "", "it is big", "hello world !\tthe cat", "a dog ran"]
    shards = write_tokens(tokens, tiny_vocabulary(), lines, lines_per_shard=2)
    write_vokens(vokens, tokens, shards, level="sentence", k=3, keys=8)
    return bank, vokens


@pytest.mark.ray
def test_marias_concepts_join_dialogues_and_images(ray_here, tmp_path: Path) -> None:
    bank, vokens = dialogue_run(tmp_path)
    out = tmp_path / "out"
    given = [*FIXED, *GRID, "--detector.image_size", "64", "--vokens", str(vokens), "--keys", str(bank)]
    assert extract_regions.main([*given, "--split", "valid", "--output", str(out)]) == 0
    path = out / "coco_examples_valid_d2obj36_batch_noAttr.tsv"
    rows = dict(line.split("\t") for line in path.read_text().splitlines())

    made = str(tmp_path / "maria")
    shared = ["--tokens", str(tmp_path / "tokens"), "--vokens", str(vokens), "--keys", str(bank), "--output", made]
    assert convert.main(["--what", "export_maria", *shared]) == 0
    dialogues = Path(made, "corpus.coco_examples.8").read_text().split("\n")[:-1]
    best = [Path(line.split("\t")[0]).stem for line in dialogues if line]
    assert [bool(line) for line in dialogues] == [True, False, True, True, True]
    assert list(rows) == list(dict.fromkeys(best)), "a row for each image that is a dialogue's best, and no other"
    for stem in best:
        content = ast.literal_eval(rows[stem])
        with Image.open(PHOTOS / f"{stem}.jpg") as photo:
            assert (content["img_w"], content["img_h"]) == photo.size
        sizes = {"boxes": 36 * 16, "objects_conf": 36 * 4, "objects_id": 36 * 8}
        assert {name: len(base64.b64decode(content[name])) for name in sizes} == sizes
        features = np.frombuffer(base64.b64decode(content["features"]), "<f4").reshape(36, -1)
        assert np.array_equal(features, RegionTable(str(out)).take(stem).features)
        assert len(content["objects_class"]) == 36
    source, offsets = RegionFile(str(path)), path.with_suffix(".lineidx").read_text().split()
    assert len(offsets) == len(rows) and source.at(len(rows) - 1).image_id == list(rows)[-1]


def test_files_of_the_originals_are_converted_by_the_job(tmp_path: Path, capsys) -> None:
    write_mvptr(str(tmp_path / "given"), some_regions())
    given = ["--what", "import_mvptr", "--output", str(tmp_path / "table")]
    assert convert.main([*given, "--input", str(tmp_path / "given/predictions.tsv")]) == 0
    assert [image.tags for image in RegionTable(str(tmp_path / "table"))] == [image.tags for image in some_regions()]
    assert convert.main(given) == 2
    assert "import_mvptr needs --input" in capsys.readouterr().err


def test_images_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="have one name, 'a'"):
        extract_regions.stems_of(["x/a.jpg", "y/a.jpg"])
    assert extract_regions.stems_of(["x/a.jpg", "x.tar#y/b.png"]) == ["a", "b"]


def test_a_plan_forecasts_and_writes_nothing(photos: str, tmp_path: Path, capsys) -> None:
    given = [*GRID, "--plan", "--images.root", photos, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert extract_regions.main([*given, "--ray.calibration_s", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "grid test_resnet.r160_in1k" in shown and "10 to 50 of each" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "in one way"),
        (["--images.root", "a", "--vokens", "v", "--keys", "k"], "in one way"),
        (["--vokens", "v"], "belong together"),
        (["--data", "d.json"], "--images.root is the folder"),
        (["--images.root", "/no/such/folder"], "does not exist"),
        (["--images.root", "a", "--regions.min_regions", "60"], "from 1 to max_regions"),
        (["--images.root", "a", "--batch_size", "0"], "must be at least 1"),
        (["--images.root", "a", "--detector.model", ""], "--detector.model names what finds regions"),
        (["--images.root", "a", "--detector.kind", "torchvision", "--detector.weights", ""], "--detector.weights"),
        (["--images.root", "a", "--detector.kind", "torchscript"], "trust_torchscript true"),
    ],
)
def test_bad_settings_are_one_paragraph(tmp_path: Path, capsys, more: list[str], message: str) -> None:
    assert extract_regions.main([*GRID, "--plan", "--output", str(tmp_path / "out"), *more]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_images_of_data_must_be_there(photos: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "d.json").write_text('[{"text": "x", "image_id": "a"}, {"text": "x", "image_id": "nobody"}]')
    given = [
        *GRID,
        "--plan",
        "--data",
        str(tmp_path / "d.json"),
        "--images.root",
        photos,
        "--output",
        str(tmp_path / "out"),
    ]
    assert extract_regions.main(given) == 2
    assert "row 1: no image 'nobody'" in capsys.readouterr().err


def test_the_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        extract_regions.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Find regions in images" in shown and "--detector.trust_torchscript" in shown and "--vokens" in shown
