"""Losses beside the matching one: the originals' numbers, and one worker's numbers on two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo_workers import run_workers
from host_recipes import HARDEST, camera_config, one_step, recipe_in, vsrn_config
from small_models import golden

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training.caption_generation import CaptionGenerator
from xmatch.training.losses import all_negatives_hinge, hardest_triplet
from xmatch.training.recipe import PartedLoss, SampleKey
from xmatch.training.side_losses import SideLossConfig, side_losses, view_diversity

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
CASE = golden("vsrn")["caption_model"]
NAMES = {
    "encoder.vid2hid.": "read_in.",
    "encoder.rnn.": "reader.",
    "decoder.embedding.": "embed.",
    "decoder.attention.": "attention.",
    "decoder.rnn.": "writer.",
    "decoder.out.": "out.",
}


def generator() -> CaptionGenerator:
    """The golden caption model."""
    made = CaptionGenerator(
        CASE["dim_vid"], CASE["vocab"], hidden=CASE["dim_hidden"], word_dim=CASE["dim_word"], dropout=0.2
    )
    state = {}
    for key, value in CASE["params"].items():
        theirs = next(name for name in NAMES if key.startswith(name))
        own = NAMES[theirs] + key.removeprefix(theirs)
        state[own.removesuffix("_l0") if own.startswith("writer.") else own] = torch.tensor(value)
    made.load_state_dict(state)
    return made.eval()


def captions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Regions, words and which of these are real."""
    ids = torch.tensor(CASE["labels"])[:, : CASE["max_len"]]
    return torch.tensor(CASE["feats"]), ids, (ids != 0).long()


def test_the_writer_is_the_originals() -> None:
    regions, ids, words = captions()
    whole = torch.ones(regions.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        found = generator().log_probabilities(regions, whole, ids[:, :-1])
        loss = generator()(regions, whole, ids, words, with_padding=True).mean()
    torch.testing.assert_close(found, torch.tensor(CASE["logprobs"]), **CLOSE)
    assert float(loss) == pytest.approx(CASE["loss"], rel=1e-4)


def test_padding_is_not_written_by_default() -> None:
    """The width of a batch and what stands in padding, of words or regions, change nothing."""
    regions, ids, words = captions()
    mask = torch.tensor([[True] * 6, [False, True, True, False, True, False]])
    with torch.no_grad():
        found = generator()(regions, mask, ids, words)
        junk = torch.where(mask[..., None], regions, torch.tensor(float("nan")))
        torch.testing.assert_close(generator()(junk, mask, ids[:, :5], words[:, :5]), found, **CLOSE)
        alone = generator()(regions[1:, [1, 2, 4]], torch.ones(1, 3, dtype=torch.bool), ids[1:, :3], words[1:, :3])
        torch.testing.assert_close(alone, found[1:], **CLOSE)
        whole = torch.ones_like(mask)
        assert bool(
            (generator()(regions, whole, ids, words, with_padding=True) > generator()(regions, whole, ids, words)).all()
        )


def test_camera_losses_are_the_originals() -> None:
    case = golden("vse_losses")["camera"]
    scores, eye = torch.tensor(case["scores"]), torch.eye(5, dtype=torch.bool)
    texts = torch.cat([scores.T, torch.ones(5, 1)], dim=1)
    worse = torch.eye(6)[5:].expand(5, -1) * -100.0  # a view that never wins
    images = torch.stack([torch.eye(5, 6), worse], dim=1)
    for loss, name in ((hardest_triplet, "max_violation"), (all_negatives_hinge, "sum")):
        found = loss(texts, images, 0.2, eye, "sum")
        assert float(found) == pytest.approx(case[name], rel=1e-5)
    values = view_diversity(torch.tensor(case["diversity"]["smry_mat"]))
    assert float(values.sum()) == pytest.approx(case["diversity"]["value"], rel=1e-4)


def test_views_of_different_regions_have_no_diversity_to_gain() -> None:
    assert float(view_diversity(torch.eye(5)[None, :, :3] * 7)) == pytest.approx(0.0, abs=1e-6)
    alike = torch.ones(1, 5, 3)
    assert float(view_diversity(alike)) == pytest.approx(6.0, rel=1e-5)
    padded = torch.cat([torch.randn(2, 4, 3), torch.zeros(2, 3, 3)], dim=1)
    torch.testing.assert_close(view_diversity(padded), view_diversity(padded[:, :4]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_only_diversity_grows_with_the_batch_and_only_as_a_sum(reduction: str) -> None:
    rows = {"diversity": torch.rand(6), "caption_generation": torch.rand(6)}
    config = SideLossConfig(caption_generation=1.0, diversity=0.01)
    once = side_losses(rows, config, reduction)
    twice = side_losses({name: row.repeat(2) for name, row in rows.items()}, config, reduction)
    torch.testing.assert_close(twice["caption_generation"], once["caption_generation"])
    torch.testing.assert_close(twice["diversity"], once["diversity"] * (2 if reduction == "sum" else 1))


@pytest.mark.slow
def test_two_workers_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    loss, parts, gradients = one_step(str(tmp_path), 0, 1)
    for found, their_parts, theirs in run_workers(2, one_step, str(tmp_path), tmp_path):
        assert found == pytest.approx(loss, rel=1e-5)
        assert their_parts == pytest.approx(parts, rel=1e-5)
        assert set(theirs) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, atol=2e-5, rtol=1e-4)
    assert {name.split(".")[0] for name in gradients} >= {"image_head", "image_pool", "training_only", "text_context"}
    assert loss == pytest.approx(parts["matching"] + parts["caption_generation"] + 0.3 * parts["diversity"], rel=1e-5)


def both(tmp_path: Path):
    """VSRN's recipe with its writer, and its model."""
    side = SideLossConfig(caption_generation=1.0, caption_hidden=5, caption_word_dim=4)
    recipe = recipe_in(tmp_path, vsrn_config(pooling_batch_norm=True), side)
    torch.manual_seed(0)
    return recipe, recipe.build_model()


def test_a_resumed_run_keeps_its_writer_and_the_model_never_has_it(tmp_path: Path) -> None:
    recipe, model = both(tmp_path)
    folder = tmp_path / "saved"
    recipe.save_model(model, str(folder))
    torch.manual_seed(7)
    other = recipe.build_model()
    key, indices = SampleKey(0, 0), np.arange(8)
    recipe.load_model(other, str(folder))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    losses = [recipe.loss(m.eval(), recipe.embed(m, recipe.batch(indices, key)), 0) for m in (model, other)]
    assert isinstance(losses[0], PartedLoss)
    assert torch.equal(losses[0].total, losses[1].total)
    published = DualEncoder.from_pretrained(str(folder))
    assert not published.training_only
    (folder / "training_only.safetensors").unlink()
    with pytest.raises(InputError, match=r"training_only\.safetensors"):
        recipe.load_model(other, str(folder))


def test_positions_come_with_the_batch_and_are_missed_by_name(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "boxes", camera_config(), SideLossConfig(diversity=0.01))
    recipe.build_model()
    batch = recipe.batch(np.arange(5), SampleKey(0, 0))
    assert batch["image_positions"].shape == (5, 4, 6)
    assert 0 <= float(batch["image_positions"][..., :4].min()) and float(batch["image_positions"][..., :4].max()) <= 1
    recipe = recipe_in(tmp_path / "bare", camera_config(), SideLossConfig(), has_boxes=False)
    with pytest.raises(InputError, match=r"\{split\}_boxes\.npy"):
        recipe.build_model()


def test_losses_that_do_not_go_with_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image_pooling"):
        recipe_in(tmp_path, vsrn_config(), SideLossConfig(diversity=0.1)).build_model()
    recipe = recipe_in(tmp_path, vsrn_config(), SideLossConfig())
    words = replace(recipe.config, side_losses=SideLossConfig(caption_generation=1.0))
    words = replace(words, augment=replace(words.augment, words=0.2))
    with pytest.raises(InputError, match=r"size_augment\.words"):
        type(recipe)(words, recipe.tokenizer, recipe.data)
    tokens = replace(recipe.config, model=camera_config(), loss=replace(HARDEST, name="paired_hinge"))
    with pytest.raises(InputError, match="whole sentences"):
        type(recipe)(tokens, recipe.tokenizer, recipe.data)
    with pytest.raises(InputError, match="not negative"):
        SideLossConfig(diversity=-1.0)
