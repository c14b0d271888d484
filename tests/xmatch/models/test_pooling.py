from __future__ import annotations

import pytest
import torch
from small_models import golden

from xmatch.errors import InputError
from xmatch.models.pooling import (
    POOLINGS,
    GeneralizedPooling,
    KMaxPooling,
    build_pooling,
    pool,
    positional_code,
    sorted_members,
)

SETS = ["mean", "max", "kmax", "gpo", "attention"]


def a_set(batch: int = 4, size: int = 7, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 1, 4, 2])[:batch]
    return torch.randn(batch, size, width, generator=generator), torch.arange(size)[None, :] < lengths[:, None]


def seeded(name: str, width: int = 8) -> torch.nn.Module:
    torch.manual_seed(3)
    module = build_pooling(name, width)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("name", list(POOLINGS))
def test_what_stands_in_padding_never_matters(name: str) -> None:
    vectors, mask = a_set()
    junk = torch.where(mask[..., None], vectors, torch.tensor(1e4))
    module = seeded(name)
    torch.testing.assert_close(module(vectors, mask), module(junk, mask))
    wider = torch.cat([vectors, torch.full((4, 3, 8), float("nan"))], 1)
    more = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(module(vectors, mask), module(wider, more), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_order_within_a_set_never_matters(name: str) -> None:
    vectors, mask = a_set(1)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    module = seeded(name)
    torch.testing.assert_close(module(vectors, mask), module(vectors[:, order], mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(POOLINGS))
def test_a_set_of_one_is_itself(name: str) -> None:
    vectors, _ = a_set()
    torch.testing.assert_close(seeded(name)(vectors[:, :1], torch.ones(4, 1, dtype=torch.bool)), vectors[:, 0])


def test_an_empty_set_is_refused_by_row() -> None:
    vectors, mask = a_set()
    mask[2] = False
    with pytest.raises(InputError, match="row 2"):
        pool(build_pooling("mean", 8), vectors, mask)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="gpo"):
        build_pooling("gop", 8)


def test_pooling_learns_through_every_operator() -> None:
    for name in POOLINGS:
        vectors, mask = a_set()
        vectors.requires_grad_()
        seeded(name)(vectors, mask).square().sum().backward()
        assert torch.isfinite(vectors.grad).all()
        assert not vectors.grad[~mask].any()


@pytest.mark.parametrize("case", golden("gpo")["positional_encoding"], ids=lambda c: str(c["d_model"]))
def test_positional_code_is_the_originals(case: dict) -> None:
    torch.testing.assert_close(
        positional_code(case["length"], case["d_model"]), torch.tensor(case["pe"]).float(), atol=2e-5, rtol=1e-4
    )
    with pytest.raises(InputError, match="even"):
        positional_code(3, 5)


def gpo_of(case: dict) -> GeneralizedPooling:
    module = GeneralizedPooling(case["d_pe"], case["d_hidden"])
    module.load_state_dict({name: torch.tensor(value) for name, value in case["params"].items()})
    return module


@pytest.mark.parametrize("case", golden("gpo")["cases"], ids=lambda c: c["name"])
def test_gpo_is_the_originals(case: dict) -> None:
    features = torch.tensor(case["features"], requires_grad=True)
    mask = torch.arange(features.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    module = gpo_of(case)
    pooled = module(features, mask)
    torch.testing.assert_close(pooled, torch.tensor(case["pooled"]), atol=2e-5, rtol=1e-4)
    weights = module.weights_of(torch.tensor(case["lengths"]), max(case["lengths"]))
    torch.testing.assert_close(weights, torch.tensor(case["weights"]), atol=2e-5, rtol=1e-4)
    pooled.square().sum().backward()
    expected = torch.tensor(case["grad_features_of_sum_pooled_sq"])
    tied = ties(features.detach(), mask)
    torch.testing.assert_close(features.grad[~tied], expected[~tied], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(features.grad.sum(1), expected.sum(1), atol=2e-4, rtol=1e-3)  # ties share their sum


def ties(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Entries whose value another real member of the set has in the same dimension: their order is free."""
    same = (features[:, :, None] == features[:, None]) & mask[:, None, :, None] & mask[:, :, None, None]
    return same.sum(2) > 1


def test_gpo_weights_depend_on_place_and_size_alone() -> None:
    module = seeded("gpo")
    table = module.weight_table(7)
    vectors, mask = a_set()
    by_table = torch.einsum("bk,bkd->bd", table[mask.sum(1) - 1], sorted_members(vectors, mask))
    torch.testing.assert_close(module(vectors, mask), by_table, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.sum(1), torch.ones(7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpo_survives_half_precision(dtype: torch.dtype) -> None:
    vectors, mask = a_set()
    module = seeded("gpo")
    with torch.autocast("cpu", dtype):
        half = module(vectors.to(dtype), mask)
    torch.testing.assert_close(half.float(), module(vectors, mask), atol=5e-2, rtol=5e-2)


def test_kmax_is_the_originals_where_sets_are_full() -> None:
    case = golden("vse_image_encoder")["kmax"]
    x = torch.tensor(case["x"])
    pooled = KMaxPooling(case["k"])(x, torch.ones(x.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(pooled, torch.tensor(case["maxk_pool1d_dim1"]), atol=2e-5, rtol=1e-4)
