"""The heads: the original's numbers, words that are tied to the shared table, and learning all there is to learn."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from mvptr_cases import (
    CLOSE,
    ORIGINAL,
    TINY,
    golden,
    golden_batch,
    golden_inputs,
    golden_order,
    golden_state,
    golden_task,
)

from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, MvptrForRetrieval, RegionScore, build, refexp_loss
from alignment.mvptr.losses_config import RETRIEVAL, MvptrLossConfig
from alignment.mvptr.objectives import draws_of, hard_negatives, same_images
from alignment.mvptr.original_names import from_original
from alignment.mvptr.pair_losses import pair_losses, pair_rows, weighted_total
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

REGION_SCORES: list[RegionScore] = list(get_args(RegionScore))


def retrieval() -> MvptrForRetrieval:
    model = golden_task(HeadConfig(task="retrieval"), "retrieval_head")
    assert isinstance(model, MvptrForRetrieval)
    return model


def test_retrieval_training_is_that_of_the_original() -> None:
    case, model = golden("retrieval_head")["retrieval_train"], retrieval()
    config = MvptrLossConfig(**{**ORIGINAL.__dict__, "use": RETRIEVAL})
    drawn = draws_of(range(4), SampleKey(0, 0), 9)._replace(order=golden_order(case["randperm"][0]))
    batch = golden_batch(drawn)
    with torch.no_grad():
        rows = pair_rows(model, batch._replace(words=None, tags=None, phrase_index=None), config)
        losses = pair_losses(model, rows, config)
        scale, same = model.logit_scale.exp(), same_images(batch.image_row, config)
        negatives = hard_negatives(rows["text_vector"], rows["image_vector"], scale, same, drawn, config)
        text, image = model.mvptr.dual(batch.inputs)
        crossed = model.mvptr.cross(text.take(negatives.text), image.take(negatives.image))
        logits = torch.cat([rows["match"], model.match_logits(crossed.pooled)])
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), **CLOSE)
    assert losses["vsc"].item() == pytest.approx(case["contrastive"], rel=1e-4)
    assert losses["itm"].item() == pytest.approx(case["itm"], rel=1e-4)
    assert weighted_total(losses, config).item() == pytest.approx(case["total"], rel=1e-4)
    assert case["labels"] == [model.match_label] * 4 + [1 - model.match_label] * 4


def test_the_fine_score_of_retrieval_is_that_of_the_original() -> None:
    case, model = golden("retrieval_head")["retrieval_fine"], retrieval()
    with torch.no_grad():
        sides, pairs = model.mvptr(golden_inputs())
        torch.testing.assert_close(model.match_logits(pairs.pooled), torch.tensor(case["logits"]), **CLOSE)
        torch.testing.assert_close(model.match_probability(*sides), torch.tensor(case["match_prob"]), **CLOSE)


@pytest.mark.parametrize("layer", [None, 1, 0])
@pytest.mark.parametrize("mode", [1, 2, 3])
def test_referring_expressions_are_those_of_the_original(mode: int, layer: int | None) -> None:
    case, kind = golden("re_head"), REGION_SCORES[mode - 1]
    overlaps = torch.tensor(case["labels_iou"])
    model = golden_task(HeadConfig(task="refexp", region_score=kind, layer=layer), "re_head")
    with torch.no_grad():
        scores = model(golden_inputs())
    expected = case[f"mod{mode}_layer{layer}"]
    shown = scores.sigmoid() if mode == 2 else scores
    torch.testing.assert_close(shown, torch.tensor(expected["logits"]), **CLOSE)
    assert refexp_loss(scores, overlaps, kind).item() == pytest.approx(expected["loss"], rel=1e-4)


def test_referring_expressions_of_padding_alone_cost_nothing() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    for kind in REGION_SCORES:
        loss = refexp_loss(scores, -torch.ones(2, 3), kind)
        loss.backward()
        assert loss.item() == 0.0
    assert not scores.grad.any()


def test_words_stay_tied_to_the_shared_table_through_a_step() -> None:
    torch.manual_seed(0)
    model = build(TINY, HeadConfig(task="pretraining"))
    assert isinstance(model, MvptrForPretraining)
    assert not [name for name in model.state_dict() if name.endswith(".rows")]
    table = model.mvptr.embeddings.word_embeddings.weight
    states = torch.randn(5, 8)
    model.word_logits(states).logsumexp(-1).sum().backward()
    assert table.grad[:40].abs().sum() > 0
    assert not table.grad[40:].any()
    with torch.no_grad():
        table.add_(1.0)
        moved = model.words.transform(states) @ table[:40].T + model.words.bias
        torch.testing.assert_close(model.word_logits(states), moved)
        torch.testing.assert_close(model.tag_logits(states).shape, torch.Size([5, 40]))


def test_words_of_their_own_begin_as_the_shared_ones_and_then_part() -> None:
    torch.manual_seed(0)
    model = build(TINY, HeadConfig(task="pretraining", tied=False))
    assert isinstance(model, MvptrForPretraining)
    assert torch.equal(model.words.rows, model.mvptr.word_rows)
    model.word_logits(torch.randn(5, 8)).sum().backward()
    assert model.mvptr.embeddings.word_embeddings.weight.grad is None


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_vqa_by_sides_reads_both_vectors_their_difference_and_product(kind: str) -> None:
    torch.manual_seed(2)
    head = HeadConfig(task="vqa", outputs=7, vqa_from="pooled_and_sides", classifier=kind, hidden_scale=3)
    model = build(TINY, head)
    state = from_original(golden_state(), "pretraining")
    model.load_state_dict({name: value for name, value in state.items() if name.startswith("mvptr.")}, strict=False)
    own = model.eval().state_dict()
    with torch.no_grad():
        dual, pairs = model.mvptr(golden_inputs())
        t = dual.text.states[:, 0] @ own["mvptr.text_projection"]
        v = dual.image.states[:, 0] @ own["mvptr.vision_projection"]
        torch.testing.assert_close(t / t.norm(dim=1, keepdim=True), dual.text.vector)
        beside = torch.hstack([t, v, v - t, v * t]) @ own["sides.0.weight"].T + own["sides.0.bias"]
        both = torch.hstack([pairs.pooled, beside.clamp_min(0) @ own["sides.2.weight"].T + own["sides.2.bias"]])
        if kind == "mlp":
            both = (both @ own["classifier.0.weight"].T + own["classifier.0.bias"]).clamp_min(0)
        last = "classifier.2" if kind == "mlp" else "classifier"
        torch.testing.assert_close(model(golden_inputs()), both @ own[f"{last}.weight"].T + own[f"{last}.bias"])
    shapes = {name: tuple(value.shape) for name, value in own.items() if name.startswith("sides.")}
    assert shapes == {
        "sides.0.weight": (16, 32),
        "sides.0.bias": (16,),
        "sides.2.weight": (8, 16),
        "sides.2.bias": (8,),
    }


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(
    ("task", "outputs", "shape"), [("vqa", 7, (4, 7)), ("classification", 3, (4, 3)), ("refexp", 2, (4, 4))]
)
def test_every_task_has_its_outputs(task: str, outputs: int, shape: tuple[int, int], kind: str) -> None:
    model = build(TINY, HeadConfig(task=task, outputs=outputs, classifier=kind, hidden_scale=3, region_score="linear"))
    assert model(golden_inputs()).shape == shape


def test_heads_that_do_not_exist_are_refused() -> None:
    for wrong in (
        {"task": "captioning"},
        {"vqa_from": "words"},
        {"outputs": 0},
        {"classifier": "deep"},
        {"region_score": "cross"},
    ):
        with pytest.raises(InputError, match="head"):
            HeadConfig(**wrong)
    with pytest.raises(InputError, match="head.layer counts the cross encoder's 2 layers"):
        build(TINY, HeadConfig(task="refexp", layer=2))
