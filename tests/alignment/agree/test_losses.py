"""The losses of AGREE: as the original has them, as they were meant, and the laws they keep."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import agree_cases
import pytest
import torch
from agree_cases import LEGACY, THEIRS, Found, Step, aligned, draw_rows, golden, golden_losses
from gloo_workers import run_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from alignment.agree.losses import LOSS_NAMES, AgreeLossConfig, LossName, agree_losses, held_entities, weighted_total
from xmatch.errors import InputError

LAW = settings(deadline=None, max_examples=25)
COUNT = st.integers(2, 7)
SEED = st.integers(0, 10_000)
CLOSE = {"rtol": 1e-4, "atol": 1.2e-5}
ORIGINAL = AgreeLossConfig(legacy_detached_masks=True, legacy_gather=True, **LEGACY)
MEANT = AgreeLossConfig(**LEGACY)
SCALE = torch.tensor(7.0)
WORLD = [(seed, 2 * b, config) for seed, b in ((1, 1), (2, 2), (3, 4)) for config in (AgreeLossConfig(), MEANT)]
WORLD += [(6, 12, AgreeLossConfig(use=(name,))) for name in LOSS_NAMES]
WORLD += [(9, 6, AgreeLossConfig(legacy_gather=True))]


def values_of(seed: int, count: int, config: AgreeLossConfig, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The losses of drawn rows, some of them replaced."""
    drawn = draw_rows(seed, count)
    raw = {name: changes.get(name, rows) for name, rows in drawn.raw.items()}
    facts = {name: changes.get(name, rows) for name, rows in drawn.facts.items()}
    return agree_losses(aligned({n: normalize(r, dim=-1) for n, r in raw.items()}, facts), SCALE, config)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["original", "differentiable_reference"])
def test_one_process_has_the_golden_values_and_gradients(way: str) -> None:
    case = golden("agree_losses")
    found = golden_losses(case["inputs"], case["logit_scale_param"], ORIGINAL if way == "original" else MEANT)
    assert set(case[way]) <= set(found)
    for name, expected in case[way].items():
        assert found[name].value == pytest.approx(expected["value"], rel=1e-4, abs=1e-5), name
        assert found[name].grad_logit_scale == pytest.approx(expected["grad_logit_scale"], rel=1e-4, abs=1e-5), name
        for key, norm in expected["grad_norm"].items():
            assert float(found[name].grad[key].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-5), (name, key)
        for key, values in expected.get("grad", {}).items():
            torch.testing.assert_close(found[name].grad[key], torch.tensor(values), **CLOSE)


def test_the_published_weights_are_the_golden_ones() -> None:
    assert [AgreeLossConfig().weight(name) for name in LOSS_NAMES] == golden("agree_losses")["weights"]


@cache
def processes() -> tuple[list[dict[str, Found]], list[dict[str, Found]], list[list[Step]]]:
    """What two processes find, each in its turn: the golden case as the original and as meant, and drawn rows."""
    with TemporaryDirectory() as folder:
        return run_workers(
            2, agree_cases.everything, (golden("agree_losses_world2"), ORIGINAL, MEANT, WORLD), Path(folder)
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_have_the_golden_values_and_gradients(rank: int) -> None:
    case, found = golden("agree_losses_world2"), processes()[rank][0]
    for name, expected in case[f"rank{rank}"]["losses"].items():
        assert found[name].value == pytest.approx(expected["value"], rel=1e-4, abs=1e-5), name
        assert found[name].grad_logit_scale == pytest.approx(expected["grad_logit_scale"], rel=1e-4, abs=1e-5), name
        for key, values in expected["grad"].items():
            gradient = torch.zeros(()) if values is None else torch.tensor(values)
            torch.testing.assert_close(found[name].grad[key], gradient.expand_as(found[name].grad[key]), **CLOSE)


def test_two_processes_that_gather_gradients_have_those_of_one() -> None:
    case = golden("agree_losses_world2")
    whole = {key: [*case["rank0"]["inputs"][key], *case["rank1"]["inputs"][key]] for key in case["rank0"]["inputs"]}
    alone = golden_losses(whole, case["logit_scale_param"], MEANT)
    for rank in (0, 1):
        for name, one in processes()[rank][1].items():
            assert one.value == pytest.approx(alone[name].value, rel=1e-5, abs=1e-6)
            for key, gradient in one.grad.items():  # the average over two workers halves it
                torch.testing.assert_close(gradient / 2, alone[name].grad[key][3 * rank : 3 * rank + 3], **CLOSE)


@pytest.mark.parametrize("place", range(len(WORLD)))
def test_workers_together_have_the_losses_and_gradients_of_one(place: int) -> None:
    seed, count, config = WORLD[place]
    alone = agree_cases.step(seed, count, config)
    shares = {"map.weight": 0.5, "map.bias": 0.5, "logit_scale": 1.0} if config.legacy_gather else {}
    for rank in (0, 1):
        worker = processes()[rank][2][place]
        assert worker.total == pytest.approx(alone.total, rel=1e-5, abs=1e-6)
        assert worker.values == pytest.approx(alone.values, rel=1e-5, abs=1e-6)
        for name in alone.gradients.keys() | worker.gradients.keys():
            expected = alone.gradients[name] * shares.get(name, 1.0)
            torch.testing.assert_close(worker.gradients[name], expected, rtol=1e-4, atol=1e-6)


def test_the_drawn_rows_move_the_encoder() -> None:
    for seed, count, config in WORLD:
        gradients = agree_cases.step(seed, count, config).gradients
        assert count < 4 or float(gradients["map.weight"].norm()) > 1e-4


@LAW
@given(seed=SEED, count=COUNT, other=st.sampled_from([0.0, 3.0, float("nan"), float("inf")]))
def test_empty_slots_contribute_nothing(seed: int, count: int, other: float) -> None:
    """Whatever stands in a slot or pair that is not there."""
    drawn, config = draw_rows(seed, count), AgreeLossConfig()
    valid, shown, grounded = (drawn.facts[name] for name in ("valid", "has_object", "grounded"))
    changed = {name: drawn.raw[name].masked_fill(~valid[..., None], other) for name in ("prompts", "masked")}
    changed |= {name: drawn.raw[name].masked_fill(~shown[:, None], other) for name in ("seen", "seen_prompt")}
    changed["painted"] = drawn.raw["painted"].masked_fill(~(shown | grounded)[:, None], other)
    changed["keys"] = drawn.facts["keys"].masked_fill(~valid, 1)
    changed["object_keys"] = drawn.facts["object_keys"].masked_fill(~shown, 1)
    assert_same(values_of(seed, count, config), values_of(seed, count, config, **changed))


@LAW
@given(seed=SEED, count=COUNT)
def test_nothing_there_is_no_loss_but_a_gradient_can_be_taken(seed: int, count: int) -> None:
    none = {"valid": torch.zeros(count, 3, dtype=torch.bool)}
    none |= {name: torch.zeros(count, dtype=torch.bool) for name in ("has_object", "grounded")}
    for name in LOSS_NAMES[1:]:
        image = draw_rows(seed, count).raw["image"].requires_grad_()
        seen = draw_rows(seed, count).raw["seen"].requires_grad_()
        values = values_of(seed, count, AgreeLossConfig(use=(name,)), image=image, seen=seen, **none)
        assert values[name].item() == 0.0
        values[name].backward()


@LAW
@given(seed=SEED, count=COUNT, order=st.permutations(range(3)))
def test_the_order_of_slots_does_not_matter(seed: int, count: int, order: list[int]) -> None:
    drawn = draw_rows(seed, count)
    moved = {name: drawn.raw[name][:, order] for name in ("prompts", "masked")}
    moved |= {name: drawn.facts[name][:, order] for name in ("valid", "keys")}
    for config in (AgreeLossConfig(), MEANT):
        assert_same(values_of(seed, count, config), values_of(seed, count, config, **moved))


@LAW
@given(seed=SEED, count=COUNT, order=st.randoms())
def test_the_order_of_rows_does_not_matter(seed: int, count: int, order) -> None:
    places = list(range(count))
    order.shuffle(places)
    drawn = draw_rows(seed, count)
    moved = {name: rows[places] for name, rows in (drawn.raw | drawn.facts).items()}
    assert_same(values_of(seed, count, AgreeLossConfig()), values_of(seed, count, AgreeLossConfig(), **moved))


@LAW
@given(seed=SEED, count=COUNT, off=st.sets(st.sampled_from(LOSS_NAMES), max_size=5))
def test_a_switch_off_equals_weight_zero(seed: int, count: int, off: set[LossName]) -> None:
    without = AgreeLossConfig(use=tuple(name for name in LOSS_NAMES if name not in off))
    weightless = AgreeLossConfig(**dict.fromkeys(off, 0.0))
    assert without.active == weightless.active
    everything = values_of(seed, count, AgreeLossConfig())
    for config in (without, weightless):
        found = values_of(seed, count, config)
        expected = sum(config.weight(name) * everything[name] for name in LOSS_NAMES if name not in off)
        torch.testing.assert_close(weighted_total(found, config), expected)
        assert not off & found.keys()


@pytest.mark.parametrize("count", [3, 32])
def test_both_reductions_agree_at_the_published_batch_alone(count: int) -> None:
    per_row, summed = (values_of(4, count, AgreeLossConfig(mask_reduction=way)) for way in ("per_row", "sum"))
    for name in ("text_mask", "visual_mask", "grounded_mask"):
        assert float(per_row[name]) == pytest.approx(float(summed[name]) * 32 / count)
        assert float(summed[name]) > 0.01


def test_captions_of_one_image_and_equal_entities_are_no_negatives() -> None:
    """Two rows show one image; a third repeats an entity of the first in another slot."""
    facts = {
        "image_rows": torch.tensor([1, 1, 2]),
        "valid": torch.ones(3, 3, dtype=torch.bool),
        "keys": torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1]]),
        "has_object": torch.ones(3, dtype=torch.bool),
        "object_keys": torch.tensor([1, 2, 2]),
        "object_rows": torch.tensor([5, 5, 6]),
    }
    mild, harsh = (
        values_of(3, 3, config, **facts)
        for config in (AgreeLossConfig(), AgreeLossConfig(same_image="negative", same_entity="negative"))
    )
    for name in ("contrastive", "prompt", "visual"):
        assert float(mild[name]) < float(harsh[name])
    held = held_entities(facts["keys"], facts["valid"])
    assert held[0].tolist() == [[True, False, True], [False, True, False], [False, False, True]]
    assert held[2].tolist() == [[True, False, False], [False, True, False], [True, False, True]]


def test_detached_masks_move_the_temperature_alone() -> None:
    image = draw_rows(1, 5).raw["image"].requires_grad_()
    logarithm = torch.tensor(1.3, requires_grad=True)
    drawn = draw_rows(1, 5)
    units = {name: normalize(image if name == "image" else rows, dim=-1) for name, rows in drawn.raw.items()}
    config = AgreeLossConfig(use=("text_mask", "visual_mask", "grounded_mask"), legacy_detached_masks=True)
    values = agree_losses(aligned(units, drawn.facts), logarithm.exp(), config)
    total = weighted_total(values, config)
    total.backward()
    assert image.grad is None
    assert total.item() > 0
    assert logarithm.grad.item() == pytest.approx(-total.item())


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"use": ()}, "every loss is off"),
        ({"use": ("prompt",), "prompt": 0.0}, "every loss is off"),
        ({"use": ("promt",)}, "'promt'; choose of contrastive, prompt"),
        ({"visual": -1.0}, "must not be negative"),
        ({"legacy_gather": True, "negatives": "local"}, "negatives=global"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings_: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        AgreeLossConfig(**settings_)


def test_what_was_not_embedded_is_missed() -> None:
    drawn = draw_rows(1, 3)
    rows = aligned(drawn.raw, drawn.facts)
    for name, gone in (("prompt", "slots"), ("visual", "objects"), ("grounded_mask", "grounded")):
        with pytest.raises(ValueError, match="not embedded"):
            agree_losses(rows._replace(**{gone: None}), SCALE, AgreeLossConfig(use=(name,)))
    assert THEIRS["visual"] == "da"
