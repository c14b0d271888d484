"""Both pipelines of AGREE, run as docs/recipes.md has them, on the photos of examples/."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.evaluated import evaluated_embeddings
from xmatch.evaluation.gallery import GalleryConfig, read_gallery

ROOT = Path(__file__).resolve().parents[2]
SHORT = {
    "train_alignment": ["--trainer.epochs", "1", "--trainer.batch_size", "8", "--trainer.evaluate_every", "1"],
    "rerank": ["--confidence.resamples", "50", "--page", "2"],
    "eval_retrieval": ["--confidence.resamples", "50"],
}
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioned photos of examples/ as three splits of 16, 24 and 46 images."""
    entries = json.loads((ROOT / "examples" / "captions.json").read_text())["images"]
    for at, entry in enumerate(entries):
        entry["split"] = "train" if at < 16 else "val" if at < 40 else "test"
    path = tmp_path_factory.mktemp("captions") / "captions.json"
    path.write_text(json.dumps({"images": entries}))
    return path


def commands(recipe: str) -> list[list[str]]:
    """The words of a recipe's commands, behind `python jobs/`."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    found = re.search(rf"<!-- agree: {recipe} -->\n```\n(.*?)```", text, re.DOTALL)
    assert found, f"docs/recipes.md has no recipe {recipe!r}"
    return [shlex.split(line.removeprefix("python jobs/")) for line in found[1].splitlines()]


def follow(recipe: str, captions: Path, work: Path) -> dict:
    """Run a recipe; what the last job wrote."""
    values = {"CAPTIONS": str(captions), "IMAGES": str(ROOT / "examples/photos"), "WORK": str(work)}
    values["MODEL"] = str(ROOT / "examples/matcher")
    for program, *words in commands(recipe):
        filled = [re.sub(r"\b(CAPTIONS|IMAGES|WORK|MODEL)\b", lambda found: values[found[0]], word) for word in words]
        name = program.removesuffix(".py")
        assert importlib.import_module(f"jobs.{name}").main([*filled, *SHORT.get(name, [])]) == 0, filled
    return json.loads((work / "reranked" / "rerank.json").read_text())


def gallery(captions: Path, split: str) -> CaptionSet:
    config = GalleryConfig(captions=str(captions), images=str(ROOT / "examples/photos"), split=split)
    return read_gallery(config, needs_images=False)


def test_fine_tuned(captions: Path, tmp_path: Path) -> None:
    record = follow("fine-tuned", captions, tmp_path)
    evaluated = json.loads((tmp_path / "test" / "retrieval.json").read_text())["figures"]
    for name in ("t2i_recall_at_1", "i2t_recall_at_10"):
        assert record["figures"]["before"][name] == pytest.approx(evaluated[name])
    assert set(record["figures"]) <= {"before", "tbr"}  # without entities there is no EGR
    assert record["tuned"]["split"]["name"] == "val"
    assert "losses" in (tmp_path / "tuned_model" / "run" / "config.yaml").read_text()


def test_zero_shot(captions: Path, tmp_path: Path) -> None:
    record = follow("zero-shot", captions, tmp_path)
    assert {"before"} < set(record["figures"]) <= {"before", "egr", "tbr"}
    assert record["entities"]["captions"] == 46 * 5
    assert record["entities"]["entities"] > 500
    page = (tmp_path / "reranked" / "rerank.html").read_text()
    assert "data:image/webp;base64," in page
    with pytest.raises(InputError, match="another split"):
        evaluated_embeddings(str(tmp_path / "test"), gallery(captions, "val"))
    found = evaluated_embeddings(str(tmp_path / "test"), gallery(captions, "test"))
    assert all(Path(place).exists() for place in found)
    Path(found.texts).unlink()
    with pytest.raises(InputError, match="run the evaluation again"):
        evaluated_embeddings(str(tmp_path / "test"), gallery(captions, "test"))
