from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from xmatch.errors import InputError
from xmatch.training.optim import (
    GroupConfig,
    OptimConfig,
    build_optimizer,
    clip_gradients,
    drop_frozen_gradients,
    keep_within,
    parameter_groups,
    rate_at,
    set_rates,
)

LAW = settings(deadline=None, max_examples=25)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_rise_then_fall_to_zero(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup_share=0.1)
    rates = [rate_at(step, 100, config) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_the_published_rate_is_constant() -> None:
    assert {rate_at(step, 50, OptimConfig()) for step in range(50)} == {1.0}


def a_model() -> torch.nn.Module:
    return torch.nn.Sequential(OrderedDict(first=torch.nn.Linear(3, 2), second=torch.nn.Linear(2, 2)))


def test_decay_is_for_trainable_matrices_only() -> None:
    model = a_model()
    model.second.requires_grad_(False)
    groups = {group.weight_decay: group.parameters for group in parameter_groups(model, GroupConfig(weight_decay=0.1))}
    assert [p.shape for p in groups[0.1]] == [(2, 3)]
    assert [p.shape for p in groups[0.0]] == [(2,)]
    made = build_optimizer(parameter_groups(model, GroupConfig(weight_decay=0.1)), OptimConfig())
    assert made.param_groups[0]["weight_decay"] == 0.0


def test_groups_have_their_own_rates_and_thaw_later() -> None:
    model = a_model()
    config = OptimConfig(
        lr=0.5, lr_factors={"first": 0.1, "first.bias": 2.0}, frozen_epochs={"second": 1}, decay="all", clip_norm=1.0
    )
    optimizer = build_optimizer(parameter_groups(model, config), config)
    set_rates(optimizer, config, 0, 5, 2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.first.weight)] == pytest.approx(0.05)
    assert rates[id(model.first.bias)] == 1.0
    assert rates[id(model.second.weight)] == 0.5
    for epoch, learns in ((0, False), (1, True)):
        model(torch.ones(1, 3)).sum().backward()
        drop_frozen_gradients(optimizer, epoch)
        assert (model.second.weight.grad is not None) == learns
        assert model.first.weight.grad is not None


@pytest.mark.parametrize("counts", [False, True])
def test_gradients_of_what_is_frozen_count_in_the_clipped_norm_where_asked(counts: bool) -> None:
    model = a_model()
    config = OptimConfig(frozen_epochs={"second": 1}, clip_norm=0.01, clip_frozen=counts)
    optimizer = build_optimizer(parameter_groups(model, config), config)
    model(torch.ones(1, 3)).sum().backward()
    first, whole = (torch.cat([p.grad.flatten() for p in part.parameters()]).norm() for part in (model.first, model))
    clip_gradients(model, optimizer, config, epoch=0)
    assert model.second.weight.grad is None
    found = torch.cat([p.grad.flatten() for p in model.first.parameters()]).norm()
    assert found.item() == pytest.approx(float(0.01 * (first / whole if counts else 1.0)), rel=1e-3)


def test_a_beginning_that_fits_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"begins with 'frist'.*first, second"):
        parameter_groups(a_model(), GroupConfig(lr_factors={"frist": 0.1}))


def test_steps_fall_at_their_epochs() -> None:
    config = OptimConfig(schedule="steps", milestones=(15, 20))
    rates = [rate_at(epoch * 10, 250, config, epoch=epoch) for epoch in (14, 15, 19, 20)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])
    with pytest.raises(InputError, match="belong together"):
        OptimConfig(schedule="steps")


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "rmsprop", "sgd"])
def test_every_optimizer_steps(name: str) -> None:
    model = a_model()
    config = OptimConfig(name=name, lr=0.01)
    optimizer = build_optimizer(parameter_groups(model, config), config)
    before = model.first.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.first.weight)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="lr > 0"):
        OptimConfig(lr=0)


def test_vse_infinity_falls_once_at_epoch_15_with_a_tenth_for_bert() -> None:
    """Chen et al. 2021, section 4.1: 25 epochs, 5e-4, a tenth of it for BERT, and a tenth of all from epoch 15 on."""
    config = OptimConfig(
        name="adamw", lr=5e-4, schedule="steps", milestones=(15,), lr_factors={"first": 0.1}, decay="all"
    )
    model = a_model()
    optimizer = build_optimizer(parameter_groups(model, config), config)
    rates = []
    for epoch in range(25):
        set_rates(optimizer, config, epoch * 4 + 3, 4, 25)  # the last step of the epoch
        rates.append({id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]})
    for parameter, factor in ((model.first.weight, 0.1), (model.second.weight, 1.0)):
        found = [rate[id(parameter)] for rate in rates]
        assert found == pytest.approx([5e-4 * factor] * 15 + [5e-5 * factor] * 10)


@LAW
@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0.0, 0.9),
    total=st.integers(1, 300),
)
def test_a_rate_is_a_share_that_rises_once_and_falls_once(schedule: str, warmup: float, total: int) -> None:
    config = OptimConfig(schedule=schedule, warmup_share=warmup)
    rates = [rate_at(step, total, config) for step in range(total)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1.0)


def test_half_way_of_each_shape() -> None:
    assert rate_at(50, 100, OptimConfig(schedule="linear")) == 0.5
    assert rate_at(50, 100, OptimConfig(schedule="cosine")) == pytest.approx(0.5)
    assert rate_at(25, 100, OptimConfig(schedule="cosine")) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert rate_at(4, 100, OptimConfig(warmup_share=0.1)) == 0.5


REFUSED: list[dict] = [
    {"warmup_share": 1.0},
    {"clip_norm": 0.0},
    {"lr": -1.0},
    {"milestones": (3,)},
    {"warmup_steps": -1},
    {"warmup_steps": 3, "warmup_share": 0.1},
    {"betas": (0.9, 1.0)},
    {"eps": 0.0},
    {"limits": {"first.bias": (1.0, 0.0)}},
]


@pytest.mark.parametrize("changes", REFUSED)
def test_settings_that_cannot_be_meant_are_refused(changes: dict) -> None:
    with pytest.raises(InputError, match="optim"):
        OptimConfig(**changes)
    with pytest.raises(InputError, match="must not be negative"):
        GroupConfig(frozen_epochs={"first": -1})


def test_decay_of_all_reaches_biases_too() -> None:
    [group] = parameter_groups(a_model(), GroupConfig(weight_decay=0.1, decay="all"))
    assert (len(group.parameters), group.weight_decay) == (4, 0.1)


@LAW
@given(lr_factors=st.dictionaries(st.sampled_from(["first", "second", "first.b", ""]), st.floats(0, 3)))
def test_every_trainable_parameter_is_in_one_group(lr_factors: dict[str, float]) -> None:
    model = a_model()
    groups = parameter_groups(model, GroupConfig(weight_decay=0.1, lr_factors=lr_factors))
    found = [id(p) for group in groups for p in group.parameters]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


@LAW
@given(warmup=st.integers(1, 40), total=st.integers(1, 300), schedule=st.sampled_from(["constant", "linear", "cosine"]))
def test_a_warm_up_in_steps_is_one_in_shares(warmup: int, total: int, schedule: str) -> None:
    """Where the share gives a whole number of steps; a longer warm-up than the run never reaches the peak."""
    config = OptimConfig(schedule=schedule, warmup_steps=warmup)
    rates = [rate_at(step, total, config) for step in range(total)]
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(min(warmup, total))])
    if warmup < total:
        share = OptimConfig(schedule=schedule, warmup_share=(warmup + 0.5) / total)
        assert int((warmup + 0.5) / total * total) == warmup
        assert rates == [rate_at(step, total, share) for step in range(total)]


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax"])
def test_moments_are_as_configured(name: str) -> None:
    config = OptimConfig(name=name, betas=(0.9, 0.98), eps=1e-6)
    group = build_optimizer(parameter_groups(a_model(), config), config).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6)
    plain = build_optimizer(parameter_groups(a_model(), OptimConfig(name=name)), OptimConfig(name=name))
    assert (plain.param_groups[0]["betas"], plain.param_groups[0]["eps"]) == ((0.9, 0.999), 1e-8)


def test_decay_by_name_spares_norms_biases_and_the_temperature_alone() -> None:
    """The rule of OpenCLIP and AGREE, on a CLIP of transformers: the class token decays, though it is a vector."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2}
    vision, text = sizes | {"image_size": 8, "patch_size": 4}, sizes | {"vocab_size": 9, "max_position_embeddings": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, GroupConfig(weight_decay=0.1, decay="by_name"))
    spared = {names[id(p)] for group in groups if group.weight_decay == 0.0 for p in group.parameters}
    decayed = set(names.values()) - spared
    assert "vision_model.embeddings.class_embedding" in decayed
    assert "logit_scale" in spared
    norms = {name for name in names.values() if "norm" in name}  # pre_layrnorm is how transformers spells one
    assert any("pre_layrnorm" in name for name in norms) and any("layer_norm1" in name for name in norms)
    assert spared == {"logit_scale"} | norms | {name for name in names.values() if name.endswith("bias")}
    matrices = parameter_groups(model, GroupConfig(weight_decay=0.1))
    whole = {names[id(p)] for group in matrices if group.weight_decay for p in group.parameters}
    assert decayed - whole == {"vision_model.embeddings.class_embedding"}


@LAW
@given(value=st.floats(-20, 20), least=st.floats(-5, 0), width=st.floats(0, 5))
def test_parameters_are_kept_within_their_limits(value: float, least: float, width: float) -> None:
    model = a_model()
    with torch.no_grad():
        model.first.bias.fill_(value)
    other = model.second.bias.detach().clone()
    keep_within(model, {"first.bias": (least, least + width)})
    expected = torch.full((2,), value).clamp(least, least + width)
    assert torch.equal(model.first.bias.detach(), expected)
    assert torch.equal(model.second.bias.detach(), other)
    with pytest.raises(InputError, match="no parameter 'frist.bias'"):
        keep_within(model, {"frist.bias": (0.0, 1.0)})
