"""The recommended recipe: both halves parse, fit each other, and build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from small_models import tiny_vocabulary

from jobs.train_xmatch import TrainXmatchConfig
from raydeploy.config import load_config
from xmatch.models.dual_encoder import DualEncoder

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def loaded(name: str) -> TrainXmatchConfig:
    words = ["--config", str(CONFIGS / name), "--output", "out"]
    for side in ("train", "valid"):
        words += [f"--{side}.captions", "folder"]
    return load_config(TrainXmatchConfig, words, name="train_xmatch", description="").config


def test_the_text_tower_of_the_first_half_starts_that_of_the_second() -> None:
    first, second = loaded("recommended_text.yaml"), loaded("recommended.yaml")
    assert first.recipe == "text_pairs" and second.recipe == "dual_encoder"
    assert replace(first.model.text, dropout=0.2) == second.model.text
    models = [DualEncoder.from_config(small(config), tiny_vocabulary()) for config in (first, second)]
    shapes = [
        {n: p.shape for n, p in model.named_parameters() if n.startswith(("text_", "logit_"))} for model in models
    ]
    assert shapes[0] == shapes[1] and any(name.startswith("text_head") for name in shapes[0])


def small(config: TrainXmatchConfig):
    if config.model.image.kind == "regions":
        return config.model
    image = replace(config.model.image, name="test_convnext.r160_in1k", weights="none", image_size=64, resize=64)
    return replace(config.model, image=image)


def test_an_image_is_one_vector_of_all_stages() -> None:
    model = DualEncoder.from_config(small(loaded("recommended.yaml")), tiny_vocabulary()).eval()
    assert not model.image_tower.gives_sets and model.image_tower.is_frozen
    features = model.image_features(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, model.image_tower.width)
    embedded = model.image_embeddings_from_features(features).detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, rtol=1e-5)
