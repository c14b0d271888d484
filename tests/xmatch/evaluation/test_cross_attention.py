from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import golden
from torch.nn import functional

from xmatch.errors import InputError
from xmatch.evaluation import cross_attention
from xmatch.evaluation.cross_attention import (
    CrossAttentionConfig,
    CrossAttentionSimilarities,
    Sets,
    cross_attention_scores,
    sets_of,
)
from xmatch.evaluation.ranks import caption_ranks

GOLDEN = golden("scan_baseline")
AGGREGATIONS = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}
NORMS = tuple(cross_attention._RAW_NORMS)


def by_pair(image: torch.Tensor, text: torch.Tensor, config: CrossAttentionConfig) -> float:
    """The definition, a pair at a time, with every attended vector made."""
    looking, seen = (text, image) if config.direction == "t2i" else (image, text)
    raw = looking @ seen.T
    clipped = functional.leaky_relu(raw, 0.1)
    normed = {
        "softmax": raw.softmax(0),
        "l2norm": raw / (raw.norm(dim=0) + 1e-8),
        "clipped_l2norm": clipped / (clipped.norm(dim=0) + 1e-8),
        "l1norm": raw / (raw.abs().sum(0) + 1e-8),
        "clipped_l1norm": clipped / (clipped.abs().sum(0) + 1e-8),
        "clipped": clipped,
        "no_norm": raw,
    }[config.raw_norm]
    attended = (config.softmax_factor * normed).softmax(1) @ seen
    cosines = functional.cosine_similarity(looking, attended, dim=1)
    factor = config.lse_factor
    made = {
        "lse": (factor * cosines).exp().sum().log() / factor,
        "mean": cosines.mean(),
        "max": cosines.max(),
        "sum": cosines.sum(),
    }
    return float(made[config.aggregation])


def random_sets(rng: np.random.Generator, count: int, width: int, dim: int) -> Sets:
    vectors = torch.from_numpy(rng.standard_normal((count, width, dim)).astype(np.float32))
    found = sets_of(functional.normalize(vectors, dim=-1), torch.from_numpy(rng.integers(1, width + 1, count)))
    return Sets(found.vectors * found.mask[..., None], found.mask)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: "-".join(map(str, case.values()))[:40])
def test_the_originals_scores(case: dict) -> None:
    images = sets_of(torch.tensor(GOLDEN["images"]))
    texts = sets_of(torch.tensor(GOLDEN["captions"]), torch.tensor(GOLDEN["cap_lens"]))
    config = CrossAttentionConfig(
        direction=case["cross_attn"],
        softmax_factor=case["lambda_softmax"],
        raw_norm=case["raw_feature_norm"],
        aggregation=AGGREGATIONS[case["agg"]],
        lse_factor=case["lambda_lse"],
    )
    found = cross_attention_scores(images, texts, config)
    np.testing.assert_allclose(found.numpy(), case["scores"], atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    direction=st.sampled_from(["t2i", "i2t"]),
    norm=st.sampled_from(NORMS),
    aggregation=st.sampled_from(list(AGGREGATIONS.values())),
    block=st.sampled_from([1, 60, 1 << 22]),
)
def test_every_pair_is_scored_as_by_itself(seed: int, direction: str, norm: str, aggregation: str, block: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = random_sets(rng, 4, 5, 6), random_sets(rng, 5, 4, 6)
    config = CrossAttentionConfig(direction=direction, raw_norm=norm, aggregation=aggregation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_attention, "BLOCK_PRODUCTS", block)
        found = cross_attention_scores(images, texts, config)
    for row, (regions, kept) in enumerate(zip(*images)):
        for column, (words, real) in enumerate(zip(*texts)):
            expected = by_pair(regions[kept], words[real], config)
            assert math.isclose(float(found[row, column]), expected, rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_padded_does_not_matter(direction: str, norm: str) -> None:
    rng = np.random.default_rng(0)
    images, texts = random_sets(rng, 3, 4, 6), random_sets(rng, 3, 5, 6)
    config = CrossAttentionConfig(direction=direction, raw_norm=norm)
    junk = [Sets(torch.where(s.mask[..., None], s.vectors, torch.tensor(7.0)), s.mask) for s in (images, texts)]
    expected = cross_attention_scores(images, texts, config)
    torch.testing.assert_close(cross_attention_scores(*junk, config), expected, atol=1e-5, rtol=1e-5)


def test_it_ranks_as_any_other_scores() -> None:
    rng = np.random.default_rng(1)
    images, texts = random_sets(rng, 6, 5, 8), random_sets(rng, 12, 4, 8)
    source = CrossAttentionSimilarities(images, texts, CrossAttentionConfig())
    assert source.shape == (6, 12)
    owner = np.repeat(np.arange(6), 2)
    whole = cross_attention_scores(images, texts, source.config).numpy()
    ranks = caption_ranks(source, owner)[1].ranks
    expected = 1 + (whole > whole[owner, np.arange(12)][None, :]).sum(0)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(source.block(slice(2, 4), slice(5, 9)), whole[2:4, 5:9], atol=1e-6)


def test_lengths_and_factors_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="set 1 has 5 members, expected 1 to 4"):
        sets_of(torch.zeros(2, 4, 3), torch.tensor([4, 5]))
    with pytest.raises(InputError, match="factors must be greater than 0"):
        replace(CrossAttentionConfig(), softmax_factor=0.0)
