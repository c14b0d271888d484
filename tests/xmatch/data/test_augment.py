from __future__ import annotations

import numpy as np
import pytest
from small_models import golden

from xmatch.data.augment import augment_words, keep_cells, keep_regions

EXPECTED = golden("augmentation_stats")


def test_word_fates_have_the_published_rates() -> None:
    draw = np.random.default_rng(0)
    counts = {"kept": 0, "masked": 0, "replaced": 0, "deleted": 0}
    caption = [1, *range(10, 30), 2]
    words = [None, *range(20), None]
    for _ in range(10_500):
        new = augment_words(caption, words, 0.2, draw, mask_id=5, vocab_size=10)
        assert new[0] == 1
        assert new[-1] == 2
        body = new[1:-1]
        counts["kept"] += sum(token >= 10 for token in body)
        counts["masked"] += sum(token == 5 for token in body)
        counts["replaced"] += sum(token < 10 and token != 5 for token in body)
        counts["deleted"] += 20 - len(body)
    total = sum(counts.values())
    assert total >= 200_000
    for name, share in EXPECTED["bert_words"]["expected"].items():
        slack = 0.01 if name in ("kept", "deleted") else 0.012  # a random id may be the mask's
        assert abs(counts[name] / total - share) < slack


def test_a_word_shares_its_fate_and_specials_only_when_asked() -> None:
    for seed in range(200):
        new = augment_words(
            [1, 7, 8, 9, 2], [None, 0, 0, 0, None], 0.9, np.random.default_rng(seed), mask_id=5, vocab_size=6
        )
        assert new[0] == 1
        assert new[-1] == 2
        assert len(new) in (2, 5)
    draw = np.random.default_rng(1)
    kept = [
        augment_words([1, 7, 2], [None, 0, None], 0.2, draw, mask_id=5, vocab_size=6, special_tokens=True)[0] == 1
        for _ in range(20_000)
    ]
    assert abs(np.mean(kept) - EXPECTED["bigru_words"]["expected_start_kept"]) < 0.02  # a lone survivor may be a 1 too


def test_regions_and_cells_have_the_published_rates() -> None:
    draw = np.random.default_rng(0)
    regions = np.mean([keep_regions(36, 0.2, draw).sum() for _ in range(6000)])
    assert abs(regions / 36 - EXPECTED["regions"]["keep_prob"]) < 0.01
    cells = np.stack([keep_cells(256, 0.2, draw) for _ in range(4000)])
    assert abs((~cells).mean() - EXPECTED["grids"]["expected_mean_drop_fraction"]) < 0.01
    assert abs(cells.all(1).mean() - EXPECTED["grids"]["expected_untouched_about"]) < 0.03


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_something_always_stays(share: float) -> None:
    for seed in range(50):
        draw = np.random.default_rng(seed)
        assert keep_regions(3, share, draw).any()
        assert keep_cells(3, share, draw).any()
        assert augment_words([4], [0], share, draw, mask_id=5, vocab_size=6)


def test_nothing_is_dropped_at_share_zero() -> None:
    draw = np.random.default_rng(0)
    assert keep_regions(9, 0.0, draw).all()
    assert keep_cells(9, 0.0, draw).all()
    assert augment_words([1, 7, 2], [None, 0, None], 0.0, draw, mask_id=5, vocab_size=6) == [1, 7, 2]
