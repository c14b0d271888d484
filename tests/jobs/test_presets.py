"""Every preset: read by the job's own parser, pinned to the published numbers, built in miniature, and learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_presets import CONFIGS, PRESETS, miniature
from torchvision.models.resnet import Bottleneck, ResNet

from jobs.train_xmatch import TrainXmatchConfig, build_tokenizer
from raydeploy.config import load_config, to_plain
from xmatch.models.towers import updown
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.optim import build_optimizer
from xmatch.training.recipe import PartedLoss, SampleKey
from xmatch.training.samples import read_split, write_samples

MATCHER = {
    "model.image.name": "resnext101_32x8d.tv_in1k",
    "model.image.weights": "pretrained",
    "model.image.trainable": "none",
    "model.image.image_size": 224,
    "model.image.resize": 256,
    "model.text.name": "bert-base-uncased",
    "model.text.layers": [4, 3, 2, 1],
    "model.text.trainable": False,
    "loss.margin": 0.5,
    "loss.negatives": "local",
    "optim.name": "adam",
    "optim.lr": 1e-3,
    "optim.schedule": "constant",
    "optim.weight_decay": 0.0,
    "optim.warmup_share": 0.0,
    "optim.clip_norm": 5.0,
    "trainer.seed": 9595,
    "augment": "random_crop",
}
HARDEST = {
    "model.dim": 1024,
    "model.text.layers": [1],
    "model.text.trainable": True,
    "loss.name": "hardest_triplet",
    "loss.margin": 0.2,
    "loss.reduction": "sum",
    "loss.negatives": "global",
    "loss.same_image": "negative",
    "optim.schedule": "steps",
    "optim.milestones": [15],
    "optim.gamma": 0.1,
    "optim.clip_norm": 2.0,
    "optim.warmup_share": 0.0,
    "trainer.batch_size": 128,
}
INFINITY = HARDEST | {
    "model.pooling": "gpo",
    "model.image_pooling": "gpo",
    "loss.warmup_epochs": 1,
    "optim.name": "adamw",
    "optim.lr": 5e-4,
    "optim.weight_decay": 1e-4,
    "optim.decay": "all",
    "trainer.epochs": 25,
    "train.split": "train",
    "valid.split": "dev",
    "size_augment.words": 0.2,
}
BERT = {
    "model.text.kind": "transformer",
    "model.text.name": "bert-base-uncased",
    "model.text_head.kind": "projection_bias",
    "size_augment.special_tokens": False,
}
BIGRU = {
    "model.text.kind": "bigru",
    "model.text.word_dim": 300,
    "model.text.hidden_size": 1024,
    "model.text_head.kind": "identity",
    "size_augment.special_tokens": True,
}
REGION = INFINITY | {
    "train.inputs": "regions",
    "valid.inputs": "regions",
    "model.image.kind": "regions",
    "model.image.width": 2048,
    "model.image_head.kind": "fc_mlp",
    "model.padding_in_batch_norm": True,
    "size_augment.regions": 0.2,
    "size_augment.cells": 0.0,
    "optim.frozen_epochs": {},
    "optim.loss_ramp_epoch": -1,
}
GRID = INFINITY | {
    "train.inputs": "images",
    "model.image.kind": "updown",
    "model.image.output": "grid",
    "model.image.image_size": 512,
    "model.image.crop": "stretch",
    "model.image.interpolation": "bilinear",
    "model.image.trainable": "all",
    "model.image.batch_norm": "affine",
    "model.image_head.kind": "fc",
    "size_augment.regions": 0.0,
    "size_augment.cells": 0.2,
    "optim.frozen_epochs": {"image_tower": 1},
    "optim.loss_ramp_epoch": 1,
    "augment": "random_crop",
}
HOST = HARDEST | {
    "model.dim": 2048,
    "model.image.kind": "regions",
    "model.image.width": 2048,
    "model.image_head.kind": "fc",
    "model.legacy_norm_axis": False,
    "model.legacy_padding": False,
    "train.inputs": "regions",
    "train.split": "train",
    "valid.split": "dev",
    "loss.warmup_epochs": 0,
    "optim.name": "adam",
    "size_augment.words": 0.0,
    "size_augment.regions": 0.0,
}
VSRN = HOST | {
    "model.pooling": "last",
    "model.image_pooling": "gru",
    "model.image_context.kind": "gcn",
    "model.image_context.layers": 4,
    "model.image_context.normalise_after": True,
    "model.text.kind": "gru",
    "model.text.word_dim": 300,
    "model.text.hidden_size": 2048,
    "model.text.max_len": 60,
    "model.text_head.kind": "identity",
    "model.text_context.kind": "none",
    "side_losses.caption_generation": 1.0,
    "side_losses.caption_hidden": 512,
    "side_losses.caption_word_dim": 300,
    "side_losses.caption_dropout": 0.2,
    "side_losses.diversity": 0.0,
    "optim.lr": 2e-4,
    "trainer.epochs": 30,
}
CAMERA = HOST | {
    "model.pooling": "mean",
    "model.image_pooling": "views",
    "model.views": 12,
    "model.image_context.kind": "gated_attention",
    "model.image_context.layers": 1,
    "model.image_context.heads": 64,
    "model.image_context.dropout": 0.0,
    "model.image_context.positions": True,
    "model.image_context.normalise_before": True,
    "model.image_context.normalise_after": True,
    "model.text.name": "bert-base-uncased",
    "model.text.trainable": False,
    "model.text.max_len": 32,
    "model.text_head.kind": "projection_bias",
    "model.text_context.kind": "gated_attention",
    "model.text_context.heads": 64,
    "model.text_context.feed_forward": True,
    "model.text_context.normalise_before": False,
    "side_losses.caption_generation": 0.0,
    "side_losses.diversity": 0.01,
    "optim.lr": 1e-4,
}
SOURCES = {
    "butd": ({"model.image.name": "resnet101/caffe", "model.image.pixels": "detector_bgr"}, 0.01),
    "wsl": ({"model.image.name": "resnext101_32x8d/torchvision", "model.image.pixels": "unit_rgb"}, 0.01),
    "imagenet": ({"model.image.name": "resnet152/caffe", "model.image.pixels": "unit_rgb"}, 0.1),
}
FINE_TUNING = {
    "model.pooling": "last",
    "model.image.kind": "clip",
    "model.image.trainable": "all",
    "model.image.image_size": 224,
    "model.image.interpolation": "bicubic",
    "model.text.trainable": True,
    "model.text.layers": [1],
    "loss.negatives": "global",
    "loss.same_image": "excluded",
    "optim.name": "adamw",
    "optim.lr": 1e-5,
    "optim.weight_decay": 0.1,
    "optim.decay": "matrices",
    "optim.schedule": "cosine",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "vokenization_bert_resnext": MATCHER
    | {"model.dim": 64, "model.text.max_len": 20, "loss.name": "paired_hinge"}
    | {"trainer.epochs": 20, "trainer.batch_size": 256}
    | {f"model.{side}_head": {"kind": "vokenization", "hidden": 256, "dropout": 0.3} for side in ("image", "text")},
    "maria_sentence": MATCHER
    | {"model.dim": 512, "model.text.max_len": 75, "model.pooling": "cls"}
    | {"loss.name": "sentence_paired_hinge", "loss.reduction": "sum"}
    | {"trainer.epochs": 25, "trainer.batch_size": 512}
    | {f"model.{side}_head": {"kind": "maria", "hidden": 1024, "dropout": 0.2} for side in ("image", "text")},
    "vse_pp": HARDEST
    | {"model.pooling": "last", "model.image_head.kind": "unit_fc", "model.text_head.kind": "identity"}
    | {"model.image.name": "resnet152.tv_in1k", "model.image.trainable": "none", "augment": "random_crop"}
    | {"model.image.image_size": 224, "model.image.resize": 256, "model.image.crop": "center"}
    | {"model.text.kind": "gru", "model.text.word_dim": 300, "model.text.hidden_size": 1024}
    | {"loss.warmup_epochs": 0, "optim.name": "adam", "optim.lr": 2e-4, "trainer.epochs": 30},
    "vse_infty_region_bert": REGION | BERT | {"optim.lr_factors": {"text_tower": 0.1}},
    "vse_infty_region_bigru": REGION | BIGRU | {"optim.lr_factors": {}, "optim.weight_decay": 0.01},
    "vsrn_flickr30k": VSRN
    | {"model.pooling_batch_norm": True, "model.image_context.normalise_before": False, "optim.milestones": [10, 20]},
    "vsrn_coco": VSRN
    | {"model.pooling_batch_norm": False, "model.image_context.normalise_before": True, "optim.milestones": [15]},
    "camera_flickr30k": CAMERA | {"optim.milestones": [10, 20], "trainer.epochs": 30},
    "camera_coco": CAMERA | {"optim.milestones": [20], "trainer.epochs": 40},
    "clip_finetune": FINE_TUNING
    | {"model.dim": 512, "model.text.max_len": 77, "model.text.padding": "longest", "loss.name": "info_nce"}
    | {"model.image.mean": [0.48145466, 0.4578275, 0.40821073], "model.image.std": [0.26862954, 0.26130258, 0.27577711]}
    | {"model.image_head.kind": "projection", "model.text_head.kind": "projection"},
    "siglip_finetune": FINE_TUNING
    | {"model.dim": 768, "model.text.max_len": 64, "model.text.padding": "max_length", "loss.name": "sigmoid"}
    | {"model.image.mean": [0.5] * 3, "model.image.std": [0.5] * 3, "model.image.crop": "stretch"}
    | {"model.image_head.kind": "identity", "model.text_head.kind": "projection_bias"}
    | {"model.logit_scale": 10.0, "model.logit_bias": -10.0},
}
for _source, (_settings, _factor) in SOURCES.items():
    _rates = {"image_tower": _factor}
    PUBLISHED |= {
        f"vse_infty_grid_{_source}_bert": GRID | _settings | BERT | {"optim.lr_factors": _rates | {"text_tower": 0.1}},
        f"vse_infty_grid_{_source}_bigru": GRID | _settings | BIGRU | {"optim.lr_factors": _rates},
    }


def load(arguments: list[str]) -> TrainXmatchConfig:
    return load_config(TrainXmatchConfig, arguments, name="train_xmatch", description="").config


def preset(name: str) -> TrainXmatchConfig:
    given = ["--output", "out", "--train.captions", "somewhere", "--valid.captions", "somewhere"]
    return load(["--config", str(CONFIGS / f"{name}.yaml"), *given])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_numbers(name: str) -> None:
    plain = to_plain(preset(name))
    for key, expected in PUBLISHED[name].items():
        found = plain
        for part in key.split("."):
            found = found[part]
        assert found == expected, f"{key} is {found!r}, published is {expected!r}"


def test_every_preset_is_pinned_and_says_where_it_is_from() -> None:
    assert set(PRESETS) == set(PUBLISHED)
    assert all((CONFIGS / f"{name}.yaml").read_text().startswith("# ") for name in PRESETS)
    table = (CONFIGS.parents[1] / "docs" / "recipes.md").read_text()
    assert all(f"{name}.yaml" in table for name in PUBLISHED)


def small_resnet(*, weights: Any) -> ResNet:
    """ResNets of the published kinds, with one block of few channels in each stage."""
    assert weights is None
    return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4)


@pytest.fixture(autouse=True)
def small_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in updown.RESNETS:
        monkeypatch.setitem(updown.RESNETS, name, small_resnet)


def small_recipe(name: str, folder: Path, images: str) -> tuple[TrainXmatchConfig, DualEncoderRecipe]:
    """A preset in miniature, as the job hands it to its workers."""
    config = load(miniature(name, folder, images))
    train = read_split(config.train)
    write_samples(train, str(folder / "train"), config.train)
    write_samples(read_split(config.valid), str(folder / "valid"), config.valid)
    settings = RecipeConfig(
        model=config.model,
        loss=config.loss,
        side_losses=config.side_losses,
        augment=config.size_augment,
        groups=config.optim,
    )
    places = RecipeData(train=str(folder / "train"), valid=str(folder / "valid"), init_from=config.init_from)
    return config, DualEncoderRecipe(settings, build_tokenizer(config, train.captions), places)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_learns(name: str, tmp_path: Path, image_folder: str) -> None:
    config, recipe = small_recipe(name, tmp_path, image_folder)
    torch.manual_seed(0)
    model = recipe.build_model()
    groups = recipe.parameter_groups(model)
    optimizer = build_optimizer(groups, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = config.optim.lr * group["lr_factor"]
    batch, losses = recipe.batch(np.arange(8), SampleKey(0, 0)), []
    for _ in range(4):
        torch.manual_seed(1)
        optimizer.zero_grad()
        found = recipe.loss(model, recipe.embed(model, batch), epoch=0)
        loss = found.total if isinstance(found, PartedLoss) else found
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "grid" in name])
def test_the_whole_trunk_of_a_grid_learns_slowly_and_late_and_nothing_else(
    name: str, tmp_path: Path, image_folder: str
) -> None:
    config, recipe = small_recipe(name, tmp_path, image_folder)
    model = recipe.build_model()
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].split(".")[0]: (group.lr_factor, group.frozen_epochs, group.weight_decay)
        for group in recipe.parameter_groups(model)
        for parameter in group.parameters
    }
    _, factor = SOURCES[name.split("_")[3]]
    towers = {"image_tower": (factor, 1, 1e-4), "text_tower": (0.1 if name.endswith("bert") else 1.0, 0, 1e-4)}
    heads = ("image_head", "image_pool", "text_pool", *(["text_head"] if name.endswith("bert") else []))
    assert found == towers | dict.fromkeys(heads, (1.0, 0, 1e-4))
    assert all(parameter.requires_grad for parameter in model.image_tower.parameters())
    assert not any(m.training for m in model.image_tower.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert model.image_tower.cells == 4


def test_the_losses_of_the_first_epochs_are_the_published_ones(tmp_path: Path, image_folder: str) -> None:
    """All scores equal: 2 B (B - 1) margin while all negatives count, 2 B margin afterwards."""
    _, recipe = small_recipe("vse_infty_region_bigru", tmp_path, image_folder)
    model = recipe.build_model()
    rows = torch.ones(8, 4) / 2
    one_point = {"text": rows, "image": rows, "image_row": torch.arange(8) // 5}
    assert recipe.loss(model, one_point, epoch=0).item() == pytest.approx(2 * 8 * 7 * 0.2)
    assert recipe.loss(model, one_point, epoch=1).item() == pytest.approx(2 * 8 * 0.2)


def test_clip_starts_from_its_own_projections_and_temperature(tmp_path: Path, image_folder: str) -> None:
    _, recipe = small_recipe("clip_finetune", tmp_path, image_folder)
    state = recipe.build_model().state_dict()
    theirs = load_file(tmp_path / "clip" / "model.safetensors")
    assert torch.equal(state["image_head.proj.weight"], theirs["visual_projection.weight"])
    assert torch.equal(state["text_head.proj.weight"], theirs["text_projection.weight"])
    assert torch.equal(state["logit_scale"], theirs["logit_scale"])
