from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hub_cache import fill_hub_cache
from huggingface_hub import constants
from toy_steps import read_range, shards

from raydeploy import staging
from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.staging import place_for_workers, tokenizer_identity
from raydeploy.streams import run_shards
from vokenize.tokens import TokenizeLines
from xmatch.data import files
from xmatch.data.steps import StepOutput, no_quarantine
from xmatch.data.text_lines import LineReader, LineSource, plan_line_shards
from xmatch.errors import InputError
from xmatch.models import hub
from xmatch.models.towers.image import ImageTower, ImageTowerConfig
from xmatch.models.towers.text import TextTower, TextTowerConfig


@pytest.fixture
def hub_name(tmp_path: Path, tiny_model: str, monkeypatch) -> str:
    """A hub name that this machine's cache alone can tell."""
    hub._snapshot.cache_clear()
    monkeypatch.setattr(
        constants, "HF_HUB_CACHE", str(fill_hub_cache(tmp_path / "home", "someone/matcher", tiny_model))
    )
    yield "someone/matcher"
    hub._snapshot.cache_clear()


def test_a_local_folder_on_one_machine_is_given_as_it_is(tmp_path: Path, tiny_model: str) -> None:
    assert place_for_workers(tiny_model, "model", str(tmp_path / "run")) == tiny_model
    assert not (tmp_path / "run").exists()
    assert tokenizer_identity(tiny_model) == tiny_model


def test_it_is_staged_where_other_machines_may_read(tmp_path: Path, tiny_model: str, monkeypatch) -> None:
    shared = place_for_workers(tiny_model, "model", str(tmp_path / "run"), str(tmp_path / "shared"))
    assert Path(shared).parent == tmp_path / "shared"
    monkeypatch.setattr(staging, "joins_a_cluster", lambda: True)
    place = place_for_workers(tiny_model, "model", str(tmp_path / "run"))
    assert Path(place).parent == tmp_path / "run" / "models"
    assert Path(place).name == Path(shared).name
    assert place_for_workers(f"file://{place}", "model", str(tmp_path / "other")) == f"file://{place}"


def test_a_hub_name_is_staged_and_identified_by_content(tmp_path: Path, tiny_model: str, hub_name: str) -> None:
    place = place_for_workers(hub_name, "tokenizer", str(tmp_path / "run"))
    assert Path(place).parent == tmp_path / "run" / "models"
    assert not Path(place, "model.safetensors").exists()
    assert tokenizer_identity(hub_name) == f"sha256 {Path(place).name}"


class TellsOfTheHub:
    """Says whether its worker may ask the hub."""

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        return StepOutput(pa.table({"offline": [constants.HF_HUB_OFFLINE]}), {}, no_quarantine())


@pytest.mark.ray
@pytest.mark.slow
def test_workers_never_ask_the_hub(ray_here, tmp_path: Path, monkeypatch) -> None:
    ledger = Ledger(str(tmp_path), {})
    assert len(list(run_shards(shards(1), read_range, TellsOfTheHub(), ledger, suffix="parquet", ray=RayConfig()))) == 1
    assert files.read_parquet(str(tmp_path / "shards" / "part-00000.parquet")).to_pylist() == [{"offline": True}]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_need_neither_the_folder_nor_the_cache(ray_here, tmp_path: Path, hub_name: str) -> None:
    (tmp_path / "corpus").write_text("the cat sat\na dog\n")
    source = LineSource(path=str(tmp_path / "corpus"))
    output = str(tmp_path / "run")
    step = TokenizeLines(place_for_workers(hub_name, "tokenizer", output))
    shutil.rmtree(tmp_path / "home")
    reports = run_shards(
        plan_line_shards(source, 2), LineReader(source), step, Ledger(output, {}), suffix="parquet", ray=RayConfig()
    )
    assert [report.counts["lines"] for report in reports] == [2]


def test_towers_of_the_hub_are_staged_and_give_the_same_features(tmp_path: Path, hub_name: str, monkeypatch) -> None:
    import timm
    from timm.models import save_for_hf
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet.r160_in1k").eval(), tmp_path / "timm", safe_serialization=True)
    bert = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    BertModel(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    for name, folder in (("timm/test_resnet.r160_in1k", "timm"), ("bert-tiny", "bert")):
        fill_hub_cache(tmp_path / "home", name, str(tmp_path / folder))
    output = str(tmp_path / "run")
    image = ImageTowerConfig(name="test_resnet.r160_in1k", image_size=32, resize=36)
    text = TextTowerConfig(name="bert-tiny", layers=(2, 1))
    image_place = staging.image_tower_for_workers(image, output)
    text_place = staging.text_tower_for_workers(text, output)
    shutil.rmtree(tmp_path / "home")
    pixels, ids = torch.rand(2, 3, 32, 32), torch.tensor([[1, 5, 2]])
    direct = ImageTower(replace(image, name=str(tmp_path / "timm")))
    assert torch.equal(ImageTower(image_place)(pixels), direct(pixels))
    own = TextTower(replace(text, name=str(tmp_path / "bert")))
    assert torch.equal(TextTower(text_place)(ids, ids > 0), own(ids, ids > 0))
    scratch = TextTowerConfig(name=None)
    assert staging.text_tower_for_workers(scratch, output) is scratch
    unweighted = replace(image, weights="none")
    assert staging.image_tower_for_workers(unweighted, output) is unweighted


def test_weights_that_timm_itself_has_cached_are_left_to_it(tmp_path: Path, hub_name: str) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "model.safetensors").write_bytes(b"")
    fill_hub_cache(tmp_path / "home", "timm/test_resnet.r160_in1k", str(tmp_path / "timm"))
    tower = ImageTowerConfig(name="test_resnet.r160_in1k")
    assert staging.image_tower_for_workers(tower, str(tmp_path / "run")) is tower


def test_a_file_of_weights_is_staged_where_other_machines_may_read(tmp_path: Path, monkeypatch) -> None:
    import timm

    backbone = timm.create_model("test_resnet.r160_in1k").eval()
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    tower = ImageTowerConfig(
        name="test_resnet.r160_in1k", weights=str(tmp_path / "weights.pth"), image_size=32, resize=36
    )
    pixels, direct = torch.rand(2, 3, 32, 32), ImageTower(tower)
    assert staging.image_tower_for_workers(tower, str(tmp_path / "run")) is tower
    monkeypatch.setattr(staging, "joins_a_cluster", lambda: True)
    place = staging.image_tower_for_workers(tower, str(tmp_path / "run"))
    assert Path(place.weights).parent == tmp_path / "run" / "models"
    Path(tower.weights).unlink()
    assert torch.equal(ImageTower(place)(pixels), direct(pixels))
    Path(place.weights, "weights.pth").write_bytes(b"other")
    with pytest.raises(InputError, match="was changed since it was staged"):
        ImageTower(place)


def test_a_file_at_a_uri_or_that_is_not_there(tmp_path: Path) -> None:
    assert staging.file_for_workers("s3://bucket/w.pth", str(tmp_path)) == "s3://bucket/w.pth"
    with pytest.raises(InputError, match=r"w\.pth' does not exist"):
        staging.file_for_workers(str(tmp_path / "w.pth"), "s3://bucket/run")
