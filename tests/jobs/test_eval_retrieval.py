"""The evaluation job: every benchmark from every kind of input; Ray only where photographs are embedded."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from killed_jobs import job, kill_when_done_begins, require_kept, run_job_process
from small_gallery import CAPTIONS_EACH, small_embeddings, small_gallery, write_cxc, write_gallery, write_truth
from small_models import CAPTIONS, karpathy_json, make_images, tiny_model_object

from jobs import eval_retrieval
from xmatch.data.captions import read_captions
from xmatch.data.region_sources import RegionSource, open_regions
from xmatch.evaluation.benchmarks import BENCHMARKS
from xmatch.models.context.config import ContextConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.training.leakage import SEEN_FILE, seen_record, write_seen

GALLERY = small_gallery()
IMAGES, TEXTS = small_embeddings()
FAST = ["--confidence.resamples", "20", "--worst", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small split and its scores in every form."""
    folder = tmp_path_factory.mktemp("eval")
    write_gallery(folder, GALLERY)
    write_cxc(folder / "cxc", GALLERY)
    for name in ("eccv", "pm"):
        write_truth(folder / "truth", GALLERY, name)
    scores = IMAGES @ TEXTS.T
    saved = {"images": IMAGES, "texts": TEXTS, "scores": scores, "transposed": scores.T}
    for name, array in saved.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "original.npy", {"npts": len(IMAGES), "sims": scores}, allow_pickle=True)
    return folder


def run(place: Path, output: Path, *arguments: str) -> dict:
    words = ["--data.captions", str(place / "dataset.json"), "--output", str(output), *FAST, *arguments]
    assert eval_retrieval.main(words) == 0
    return json.loads((output / "retrieval.json").read_text())


def embedded(place: Path) -> list[str]:
    return ["--embeddings.images", str(place / "images.npy"), "--embeddings.texts", str(place / "texts.npy")]


def test_embeddings_saved_scores_and_the_originals_file_give_the_same_figures(place: Path, tmp_path: Path) -> None:
    found = [run(place, tmp_path / "e", *embedded(place))["figures"]]
    for name in ("scores", "transposed", "original"):
        found.append(run(place, tmp_path / name, "--similarity", str(place / f"{name}.npy"))["figures"])
    assert all(one == found[0] for one in found)
    assert 0 < found[0]["rsum"] < 600


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
def test_every_benchmark_by_its_name(place: Path, tmp_path: Path, capsys, benchmark: str) -> None:
    folders = ["--cxc", str(place / "cxc"), "--eccv", str(place / "truth"), "--pmrp", str(place / "truth")]
    record = run(place, tmp_path, "--benchmark", benchmark, *embedded(place), *folders)
    shown = capsys.readouterr().out
    assert BENCHMARKS[benchmark].title in shown
    assert "not comparable with published figures" in " ".join(shown.replace("│", "").split())
    assert (record["benchmark"], record["images"], record["captions"]) == (benchmark, 10, 50)
    assert {"rsum", "i2t_recall_at_1", "t2i_recall_at_10"} <= set(record["figures"])
    assert record["comparable_with_published"] is False
    assert record["members"][0]["sha256"].keys() == {"images", "texts"}
    assert record["overlap"] == [
        {"of": record["members"][0]["place"], "overlap": None, "reason": record["overlap"][0]["reason"]}
    ]
    assert {"config", "config_sha256", "data_sha256", "versions"} <= set(record)
    ranks = pq.read_table(tmp_path / "ranks.parquet")
    assert len(ranks) == (240 if benchmark == "cxc" else 60)
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "caption 0 of image" in (tmp_path / "worst.html").read_text()
        or "of image" in (tmp_path / "worst.html").read_text()
    )


def test_several_are_averaged(place: Path, tmp_path: Path) -> None:
    other = small_embeddings(seed=5)
    np.save(tmp_path / "other.npy", other[0] @ other[1].T)
    np.save(tmp_path / "mean.npy", (IMAGES @ TEXTS.T + other[0] @ other[1].T) / np.float32(2))
    together = run(place, tmp_path / "a", *embedded(place), "--similarity", str(tmp_path / "other.npy"))
    assert together["figures"] == run(place, tmp_path / "b", "--similarity", str(tmp_path / "mean.npy"))["figures"]
    listed = f"[{place}/scores.npy, {tmp_path}/other.npy]"
    assert run(place, tmp_path / "c", "--similarity", listed)["figures"] == together["figures"]
    assert [member["kind"] for member in together["members"]] == ["embeddings", "similarity"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--similarity", "x.npy", "--benchmark", "coco"], "unknown benchmark 'coco', did you mean 'coco_"),
        (["--similarity", "/no/such.npy"], "'/no/such.npy' does not exist"),
        (["--similarity", "{place}/images.npy"], "expected (10, 50)"),
        (["--similarity", "{place}/scores.npy", "--benchmark", "cxc"], "give --cxc FOLDER"),
        (["--similarity", "{place}/scores.npy", "--benchmark", "eccv"], "ECCV Caption needs the whole COCO 5K"),
        (["--similarity", "{place}/scores.npy", "--data.split", "train"], "has no split 'train'; it has test"),
        (["--embeddings.images", "a.npy"], "give one of each per model"),
        (["--similarity", "{place}/dataset.json"], "is not a saved similarity matrix"),
        (["--similarity", "{place}/scores.npy", "--worst", "-1"], "worst and top_k must be 0 or more"),
        (["--similarty", "x"], "did you mean 'similarity'"),
    ],
)
def test_bad_input_is_one_paragraph(place: Path, tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    words = [word.format(place=place) for word in arguments]
    assert eval_retrieval.main(["--data.captions", f"{place}/dataset.json", "--output", str(tmp_path), *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "retrieval.json").exists()


def test_a_rerun_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    names = ("retrieval.json", "ranks.parquet", "worst.html")
    run(place, tmp_path, *embedded(place))
    before = [(tmp_path / name).read_bytes() for name in names]
    run(place, tmp_path, *embedded(place))
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_a_plan_writes_nothing(place: Path, tmp_path: Path, capsys) -> None:
    words = ["--data.captions", f"{place}/dataset.json", "--output", str(tmp_path / "o"), *embedded(place), "--plan"]
    assert eval_retrieval.main([*words, "--benchmark", "coco_5k"]) == 0
    assert "COCO 5K" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_eccv_by_the_package_on_the_whole_split(tmp_path: Path, capsys) -> None:
    spec = importlib.util.find_spec("eccv_caption")  # importing it warns, and warnings are errors here
    folder = Path(spec.origin).parent / "data"
    truth = json.loads((folder / "original_image_to_caption.json").read_text())
    gallery = small_gallery(len(truth))._replace(
        image_ids=list(truth), caption_ids=[str(one) for captions in truth.values() for one in captions]
    )
    path = write_gallery(tmp_path, gallery)
    for name, array in zip(("images", "texts"), small_embeddings(len(truth))):
        np.save(tmp_path / f"{name}.npy", array)
    words = ["--benchmark", "eccv", "--data.captions", path, "--output", str(tmp_path / "o"), *FAST]
    assert eval_retrieval.main([*words, *embedded(tmp_path)]) == 0
    record = json.loads((tmp_path / "o" / "retrieval.json").read_text())
    assert record["details"]["largest difference to the package"] < 1e-6
    assert record["comparable_with_published"] is True
    assert "mAP@R" in capsys.readouterr().out


def photographs(folder: Path, count: int = 6) -> list[str]:
    """Arguments of a split of photographs."""
    images = make_images(folder / "images", count)
    captions = karpathy_json(folder / "c.json", {"test": [f"{name}.jpg" for name in "abcdefghijkl"[:count]]})
    return ["--data.captions", captions, "--data.images", images, *FAST]


@pytest.mark.ray
def test_a_model_and_the_embeddings_it_leaves_agree(ray_here, tmp_path: Path, tiny_model: str) -> None:
    data = photographs(tmp_path)
    assert eval_retrieval.main(["--model", tiny_model, *data, "--output", str(tmp_path / "m")]) == 0
    first = json.loads((tmp_path / "m" / "retrieval.json").read_text())
    assert first["overlap"][0]["reason"].startswith("no training_data.parquet")
    assert first["data_sha256"]["photos"]
    assert "data:image/webp" in (tmp_path / "m" / "worst.html").read_text()
    [folder] = (tmp_path / "m" / "embeddings").iterdir()
    [texts] = folder.glob("texts-*.arrow")
    ready = ["--embeddings.images", str(folder / "images"), "--embeddings.texts", str(texts)]
    assert eval_retrieval.main([*ready, *data, "--output", str(tmp_path / "r")]) == 0
    assert json.loads((tmp_path / "r" / "retrieval.json").read_text())["figures"] == first["figures"]
    both = ["--model", f"{tiny_model},{tiny_model}", *data, "--output", str(tmp_path / "m")]
    assert eval_retrieval.main(both) == 0
    assert len(json.loads((tmp_path / "m" / "retrieval.json").read_text())["members"]) == 2


@pytest.mark.ray
def test_a_model_that_has_seen_the_split_is_refused_unless_allowed(
    ray_here, tmp_path: Path, tiny_model: str, capsys
) -> None:
    data = photographs(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    split = read_captions(data[1], data[3], "test")
    write_seen([seen_record(split, role="train")], str(model / SEEN_FILE))
    words = ["--model", str(model), *data, "--output", str(tmp_path / "o")]
    assert eval_retrieval.main(words) == 2
    assert "has seen 6 of the 6 images" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert eval_retrieval.main([*words, "--allow_overlap", "true"]) == 0
    record = json.loads((tmp_path / "o" / "retrieval.json").read_text())
    assert record["overlap"][0]["overlap"]["images_leaked"] == 6


@pytest.mark.ray
@pytest.mark.slow
def test_a_photograph_that_cannot_be_read_stops_the_evaluation(
    ray_here, tmp_path: Path, tiny_model: str, capsys
) -> None:
    data = photographs(tmp_path)
    (tmp_path / "images" / "b.jpg").write_bytes(b"not a photograph")
    assert eval_retrieval.main(["--model", tiny_model, *data, "--output", str(tmp_path / "o")]) == 2
    assert "1 images of the split cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "o" / "retrieval.json").exists()


def test_a_model_of_regions_reads_a_precomputed_folder_without_ray(tmp_path: Path) -> None:
    image = ImageTowerConfig(kind="regions", output="grid", width=12)
    tiny_model_object(image=image).save_pretrained(str(tmp_path / "model"))
    folder = tmp_path / "precomp"
    folder.mkdir()
    (folder / "test_caps.txt").write_text("".join(f"{CAPTIONS[i % 4]}\n" for i in range(4 * CAPTIONS_EACH)))
    (folder / "test_ids.txt").write_text("".join(f"{i}\n" for i in range(4)))
    np.save(folder / "test_ims.npy", np.random.default_rng(0).standard_normal((4, 3, 12)).astype(np.float32))
    words = ["--model", str(tmp_path / "model"), "--data.captions", str(folder), "--output", str(tmp_path / "o")]
    for inputs in ("regions", "images"):
        assert eval_retrieval.main([*words, "--data.inputs", inputs, *FAST]) == 0
        record = json.loads((tmp_path / "o" / "retrieval.json").read_text())
        assert (record["images"], record["captions"]) == (4, 20)
        assert "test_ims.npy" in record["data_sha256"]


def precomputed(folder: Path) -> str:
    """The small split as a precomputed folder with boxes and COCO's ids."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = " ".join(CAPTIONS).split()
    captions = [" ".join(rng.choice(words, 6)) for _ in GALLERY.captions]
    lines = {"caps": captions, "ids": [str(int(one[-12:])) for one in GALLERY.image_ids]}
    for name, values in (lines | {"capids": GALLERY.caption_ids}).items():
        (folder / f"test_{name}.txt").write_text("".join(f"{value}\n" for value in values))
    np.save(folder / "test_ims.npy", rng.standard_normal((len(IMAGES), 4, 12)).astype(np.float32))
    np.save(folder / "test_boxes.npy", np.tile(np.array([5, 5, 20, 30], np.float32), (len(IMAGES), 4, 1)))
    np.save(folder / "test_img_sizes.npy", np.full((len(IMAGES), 2), 64, np.float32))
    return str(folder)


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
def test_two_models_of_several_views_on_every_benchmark(place: Path, tmp_path: Path, benchmark: str) -> None:
    folder, models, scores = precomputed(tmp_path / "precomp"), [], []
    regions = ImageTowerConfig(kind="regions", output="grid", width=12)
    context = ContextConfig(kind="gated_attention", heads=2, positions=True)
    source = open_regions(RegionSource(path=folder, split="test"))
    every = np.arange(len(IMAGES))
    for seed, has_context in enumerate((True, False)):
        model = tiny_model_object(
            image=regions,
            image_context=context,
            image_pooling="views",
            views=3,
            context_head=has_context,
            dim=8 + seed * 2,
        )
        models.append(str(tmp_path / f"model{seed}"))
        model.save_pretrained(models[-1])
        images = model.encode_features(source.take(every).features, positions=source.take_positions(every))
        texts = model.encode_texts((tmp_path / "precomp" / "test_caps.txt").read_text().splitlines())
        scores.append(np.einsum("nve,me->nvm", images, texts).max(1))
    words = ["--data.captions", folder, "--benchmark", benchmark, "--cxc", str(place / "cxc"), *FAST]
    words += ["--eccv", str(place / "truth"), "--pmrp", str(place / "truth")]
    output = tmp_path / "models"
    assert eval_retrieval.main([*words, "--model", ",".join(models), "--output", str(output)]) == 0
    found = json.loads((output / "retrieval.json").read_text())
    assert [member["kind"] for member in found["members"]] == ["model", "model"]
    np.save(tmp_path / "mean.npy", np.mean(scores, axis=0))
    assert eval_retrieval.main([*words, "--similarity", f"{tmp_path}/mean.npy", "--output", f"{tmp_path}/mean"]) == 0
    expected = json.loads((tmp_path / "mean" / "retrieval.json").read_text())["figures"]
    assert {name: found["figures"][name] for name in expected} == pytest.approx(expected, abs=1e-4)
    kept = sorted((output / "embeddings").iterdir())
    places = [",".join(str(next(one.glob(name))) for one in kept) for name in ("images", "texts-*.arrow")]
    ready = ["--embeddings.images", places[0], "--embeddings.texts", places[1], "--output", f"{tmp_path}/ready"]
    assert eval_retrieval.main([*words, *ready]) == 0
    again = json.loads((tmp_path / "ready" / "retrieval.json").read_text())["figures"]
    assert again == pytest.approx(found["figures"], abs=1e-4)
    candidates = 2 if benchmark == "coco_1k" else 10  # images of a fold
    assert pq.read_table(output / "retrieved.parquet").num_rows == 10 * 10 + 50 * candidates


def test_a_pickle_that_asks_for_more_is_refused(place: Path, tmp_path: Path, capsys) -> None:
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch hostile",)

    (tmp_path / "evil.npy").write_bytes(pickle.dumps({"npts": 1, "sims": Hostile()}))
    words = ["--data.captions", f"{place}/dataset.json", "--output", str(tmp_path / "o")]
    assert eval_retrieval.main([*words, "--similarity", str(tmp_path / "evil.npy")]) == 2
    assert "refused" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, tiny_model: str) -> None:
    words = ["--model", tiny_model, *photographs(tmp_path, 12)]
    command = job("eval_retrieval", [*words, "--output"])
    killed = tmp_path / "killed"
    kept = kill_when_done_begins([*command, str(killed)], killed, "embeddings/*/images/completions/*.json")
    for name in ("killed", "whole"):
        run_job_process([*command, str(tmp_path / name)])
    require_kept(kept)
    found = [(tmp_path / name / "ranks.parquet").read_bytes() for name in ("killed", "whole")]
    assert found[0] == found[1]
