"""Which candidates become regions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from alignment.mvptr.regions.selection import Candidates, SelectionConfig, select
from xmatch.errors import InputError


def candidates(count: int, seed: int) -> Candidates:
    """Boxes within 100 pixels, some alike; features say which candidate it was."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 100, (count, 2, 2), generator=generator).float().sort(1).values
    scores = torch.randint(0, 8, (count,), generator=generator) / 7
    return Candidates(corners.reshape(count, 4), scores, torch.arange(count) % 3, torch.arange(count)[:, None].float())


@given(st.integers(0, 30), st.integers(0, 999), st.integers(1, 8), st.integers(0, 8), st.floats(0, 1))
def test_regions_are_the_best_apart_and_as_many_as_asked(
    count: int, seed: int, least: int, more: int, threshold: float
) -> None:
    found = candidates(count, seed)
    config = SelectionConfig(min_regions=least, max_regions=least + more, threshold=threshold)
    kept, repeated = select(found, config)
    usable = int((found.boxes[:, 2:] > found.boxes[:, :2]).all(1).sum())
    assert len(kept.scores) == 0 if not usable else least <= len(kept.scores) <= least + more
    own = len(kept.scores) - repeated
    assert kept.features[:own, 0].unique().numel() == own and repeated == max(0, least - usable) * (usable > 0)
    assert (kept.scores[:own].diff() <= 0).all() and (kept.scores[least:own] >= threshold).all()
    for part, every in zip(kept, found):
        assert torch.equal(part, every[kept.features[:, 0].long()])
    if own > least:  # more than enough: no overlap was granted
        overlaps = box_iou(kept.boxes, kept.boxes).fill_diagonal_(0)
        assert float(overlaps.max()) <= config.overlap + 1e-6


def test_overlap_is_granted_step_by_step() -> None:
    boxes = torch.tensor([[0, 0, 100, 100], [0, 0, 100, 95], [0, 0, 100, 55], [0, 0, 100, 20]]).float()
    found = Candidates(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4).long(), torch.arange(4.0)[:, None])
    kept = [
        select(found, SelectionConfig(min_regions=least, max_regions=4, threshold=0)).regions.features[:, 0].tolist()
        for least in (1, 2, 3, 4)
    ]
    assert kept == [[0, 3], [0, 3], [0, 2, 3], [0, 1, 2, 3]]


def test_equal_scores_keep_the_detectors_order() -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [2, 0, 3, 1], [4, 0, 5, 1]]).float()
    found = Candidates(boxes, torch.ones(3), torch.zeros(3).long(), torch.arange(3.0)[:, None])
    kept = select(found, SelectionConfig(min_regions=5, max_regions=5))
    assert kept.regions.features[:, 0].tolist() == [0, 1, 2, 0, 1] and kept.repeated == 2


@pytest.mark.parametrize(
    "settings", [{"min_regions": 0}, {"min_regions": 9, "max_regions": 8}, {"threshold": 2}, {"overlap": 0}]
)
def test_settings_that_select_nothing_are_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        SelectionConfig(**settings)
