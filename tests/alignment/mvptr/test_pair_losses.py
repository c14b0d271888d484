"""The losses of a model on a batch: the original's, those of several workers, and learning made-up pairs."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import mvptr_cases
import pytest
import torch
from gloo_workers import run_workers
from mvptr_cases import ORIGINAL, TINY, drawn_batch, golden, golden_batch, golden_order, golden_rank, golden_task

from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, build
from alignment.mvptr.losses_config import CAPTIONS, LOSS_NAMES, ONE_SIDED, MvptrLossConfig
from alignment.mvptr.objectives import Draws
from alignment.mvptr.pair_losses import PairBatch, pair_losses, pair_rows, weighted_total
from xmatch.errors import InputError

THEIRS = {"mcr": "MCR_vis_mlm", "vsc": "VSC", "mlm": "MLM", "itm": "ITM", "wpg": "WPG"}


def golden_draws(way: str) -> Draws:
    """What the original drew in `mvptr_pretrain_losses`."""
    drawn, index = golden("pretrain_losses")[way]["random_draws"], golden("forward")["inputs"]["phrase_index"]
    order, ranks = drawn["randperm"][0], iter(drawn["randint"])
    positive, negative = torch.zeros(4, 9, dtype=torch.float64), torch.zeros(4, 9, dtype=torch.float64)

    def fill(table: torch.Tensor, row: int, text: int) -> None:
        start, end = index[text]
        if end > start:
            table[row, start:end] = golden_rank(next(ranks))

    if way == "phrase_mod_hard":
        for row in range(4):
            fill(positive, row, row)
        for place, row in enumerate(order):
            fill(negative, row, row if place < 2 else golden("pretrain_losses")["hard_txt_index"][row])
    else:
        for row in range(4):
            fill(positive, row, row)
            fill(negative, row, row)
    assert next(ranks, None) is None
    other = torch.zeros(4, dtype=torch.float64)
    for row, image in enumerate(drawn["choice"]):
        other[row] = golden_rank([image - (image > row)], of=3)[0]
    unused = torch.zeros(4, dtype=torch.float64)
    return Draws(golden_order(order), unused, unused, other, positive, negative)


ALL = MvptrLossConfig(use=LOSS_NAMES)


def pretraining(seed: int = 0, questions: bool = True) -> MvptrForPretraining:
    torch.manual_seed(seed)
    head = HeadConfig(task="pretraining", questions=questions)
    model = build(dataclasses.replace(TINY, initializer_range=0.3), head)
    assert isinstance(model, MvptrForPretraining)
    return model


def losses_of(model: MvptrForPretraining, batch: PairBatch, config: MvptrLossConfig) -> dict[str, float]:
    with torch.no_grad():
        found = pair_losses(model, pair_rows(model, batch, config), config)
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize(("way", "negatives"), [("phrase_mod_hard", "hard"), ("phrase_mod_sample", "other_image")])
def test_pre_training_is_that_of_the_original(way: str, negatives: str) -> None:
    case = golden("pretrain_losses")
    config = dataclasses.replace(ORIGINAL, wpg_negatives=negatives)
    model = golden_task(HeadConfig(task="pretraining", tied=False))
    assert isinstance(model, MvptrForPretraining)
    assert model.logit_scale.item() == pytest.approx(case["logit_scale_param"], abs=1e-5)
    found = losses_of(model, golden_batch(golden_draws(way)), config)
    assert found == pytest.approx({name: case[way][theirs] for name, theirs in THEIRS.items()}, rel=1e-4)
    assert sum(found.values()) == pytest.approx(case[way]["total"], rel=1e-4)
    own = losses_of(model, golden_batch(golden_draws(way)), dataclasses.replace(config, wpg_pairing="own"))
    assert (own["wpg"] == found["wpg"]) == (negatives == "other_image")


def test_what_is_off_is_not_computed() -> None:
    model, batch = pretraining(), drawn_batch(5)
    full = losses_of(model, batch, ALL)
    assert set(full) == set(LOSS_NAMES)
    assert set(losses_of(model, batch, MvptrLossConfig())) == set(CAPTIONS)
    for name in LOSS_NAMES:
        alone = losses_of(model, batch, MvptrLossConfig(use=(name,)))
        assert alone == pytest.approx({name: full[name]}, rel=1e-5)
    rows = pair_rows(model, batch, MvptrLossConfig(use=ONE_SIDED))
    assert not {"match", "phrases", "text", "mlm_total", "qa_total"} & set(rows)


def test_hard_negatives_are_computed_in_the_precision_of_the_towers() -> None:
    model, batch = pretraining(), drawn_batch(5)
    rows, seen = pair_rows(model, batch, ALL), []
    first = model.mvptr.cross_encoder.layer[0].intermediate.dense
    hook = first.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    whole, half = (pair_losses(model, rows, ALL, precision) for precision in ("fp32", "bf16"))
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert all(value.dtype == torch.float32 for value in half.values())
    assert half["itm"].item() != whole["itm"].item() == pytest.approx(half["itm"].item(), rel=0.1)
    assert all(half[name].equal(whole[name]) for name in ("mcr", "vsc", "mlm", "wpg", "qa"))


def test_a_weight_multiplies_its_loss() -> None:
    model, batch, config = pretraining(), drawn_batch(4), MvptrLossConfig(mlm=0.5, itm=3.0, wpg=0.0)
    with torch.no_grad():
        found = pair_losses(model, pair_rows(model, batch, config), config)
        total = weighted_total(found, config).item()
    assert set(found) == {"mcr", "vsc", "mlm", "itm"}
    assert total == pytest.approx(float(found["mcr"] + found["vsc"] + 0.5 * found["mlm"] + 3.0 * found["itm"]))


@pytest.mark.parametrize("negatives", ["hard", "other_image"])
def test_rows_in_another_order_have_the_same_losses(negatives: str) -> None:
    config = dataclasses.replace(ALL, wpg_negatives=negatives, wpg_regions="max", hard="hardest")
    model = pretraining()
    batch = drawn_batch(6)
    turned = torch.tensor([4, 1, 5, 0, 3, 2])
    other = PairBatch(
        batch.inputs.take(turned),
        *(part[turned] for part in (batch.image_row, batch.sample)),
        Draws(*(part[turned] for part in batch.draws)),
        *(part[turned] for part in (batch.phrase_index, batch.words, batch.tags, batch.answers)),
    )
    found, again = losses_of(model, batch, config), losses_of(model, other, config)
    if negatives == "other_image":  # which image is drawn depends on the order of the others
        found.pop("wpg"), again.pop("wpg")
    assert again == pytest.approx(found, rel=1e-4)


def test_a_batch_with_nothing_to_learn_from_costs_nothing() -> None:
    model, batch = pretraining(), drawn_batch(3)
    lone = batch._replace(
        image_row=torch.zeros(3, dtype=torch.int64),
        phrase_index=torch.ones(3, 2, dtype=torch.int64),
        words=torch.full_like(batch.words, -1),
        tags=torch.full_like(batch.tags, -1),
        answers=torch.full_like(batch.answers, -1),
    )
    names = ("mcr", "mlm", "vsc", "wpg", "qa")
    for negatives in ("hard", "other_image"):
        config = dataclasses.replace(ALL, wpg_negatives=negatives)
        found = pair_losses(model, pair_rows(model, lone, config), config)
        assert {name: found[name].item() for name in names} == dict.fromkeys(names, 0.0)
        assert 0 < found["itm"].item() < 3
        weighted_total(found, config).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_what_a_loss_needs_must_be_there() -> None:
    batch, model = drawn_batch(3), pretraining()
    for part, name in (("words", "mlm"), ("tags", "mcr"), ("phrase_index", "wpg"), ("answers", "qa")):
        with pytest.raises(InputError, match=f"loss '{name}' is in use, but the batch"):
            pair_rows(model, batch._replace(**{part: None}), ALL)
    for other in (pretraining(questions=False), build(TINY, HeadConfig(task="retrieval", questions=True))):
        with pytest.raises(InputError, match="loss 'qa' is in use, but the model has no head for it"):
            pair_rows(other, batch, MvptrLossConfig(use=("vsc", "qa")))
    with pytest.raises(InputError, match="model for retrieval has no word head"):
        pair_rows(build(TINY, HeadConfig(task="retrieval")), batch, MvptrLossConfig())
    with pytest.raises(InputError, match="wpg_layer counts the cross encoder's 2 layers"):
        pair_rows(model, batch, MvptrLossConfig(wpg_layer=2))


@cache
def of_workers() -> list[list[dict[str, object]]]:
    with TemporaryDirectory() as folder:
        return run_workers(2, mvptr_cases.steps, mvptr_cases.STEPS, Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(mvptr_cases.STEPS)))
def test_two_workers_have_the_losses_and_gradients_of_one(case: int) -> None:
    alone = mvptr_cases.step(*mvptr_cases.STEPS[case])
    for found in (ranks[case] for ranks in of_workers()):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=2e-4, atol=2e-6, msg=name)


def test_a_small_model_learns_made_up_pairs_by_heart() -> None:
    torch.manual_seed(3)
    config = dataclasses.replace(TINY, hidden_size=32, num_heads=4, intermediate_size=64)
    model = build(config, HeadConfig(task="pretraining", questions=True))
    batch, losses = drawn_batch(16, config=config), dataclasses.replace(ALL, wpg_negatives="hard")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    for _ in range(140):
        found = pair_losses(model, pair_rows(model, batch, losses), losses)
        first = first or {name: value.item() for name, value in found.items()}
        optimiser.zero_grad()
        weighted_total(found, losses).backward()
        optimiser.step()
    last = {name: value.item() for name, value in found.items()}
    assert set(last) == set(LOSS_NAMES)
    assert all(last[name] < 0.15 * first[name] for name in LOSS_NAMES), (first, last)


def test_answers_cost_their_cross_entropy_and_captions_nothing() -> None:
    """By hand: the mean over questions of log(1 + exp(other - own)) of the head's two logits."""
    model, batch, config = pretraining(), drawn_batch(6), MvptrLossConfig(use=("qa",))
    labels = torch.tensor([0, -1, 1, -1, 1, 0])
    found = losses_of(model, batch._replace(answers=labels), config)
    with torch.no_grad():
        pooled = model.mvptr(batch.inputs)[1].pooled
        logits = (pooled @ model.questions.weight.T + model.questions.bias).tolist()
    terms = [math.log1p(math.exp(two[1 - own] - two[own])) for two, own in zip(logits, labels.tolist()) if own >= 0]
    assert found == {"qa": pytest.approx(sum(terms) / 4, rel=1e-5)}
    only = labels != -1
    alone = batch._replace(
        inputs=batch.inputs.take(only.nonzero()[:, 0]),
        answers=labels[only],
        draws=Draws(*(part[only] for part in batch.draws)),
        **{name: getattr(batch, name)[only] for name in ("image_row", "sample")},
    )
    assert losses_of(model, alone, config) == pytest.approx(found, rel=1e-5)
