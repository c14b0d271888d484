from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import golden

from vokenize.pair_counts import PairCounts, Pairs
from vokenize.voken_measures import coverage, diversity, gini, hubness, skewness, type_table

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=40).map(lambda x: np.array(x, np.int64))


def table_of(counts: dict[str, dict[str, int]]):
    """The table of counts by token and image, and the images' names."""
    names = sorted({image for images in counts.values() for image in images})
    with PairCounts(len(names)) as pairs:
        for number, images in enumerate(counts.values()):
            for image, count in images.items():
                pairs.add(np.full(count, number), np.full(count, names.index(image)))
        return type_table(pairs.blocks()), names


def test_diversity_equals_the_original() -> None:
    case = golden("downstream_eval")["diversity"]
    types, names = table_of(case["token2img_counts"])
    found = diversity(types)
    printed = [
        f"With {found['token_types']} tokens, ",
        f"Average of Num Images is {found['images']:.2f}",
        f"Average of Max Cnt is {found['max_count']:.2f}",
        f"Average of Avg Cnt is {found['mean_count']:.2f}",
        f"Average of Std Cnt is {found['std_count']:.2f}",
        f"Cover {len(names)} images",
    ]
    assert printed == case["printed"]


def test_each_type_has_its_row() -> None:
    types, names = table_of(golden("downstream_eval")["diversity"]["token2img_counts"])
    assert names == ["a", "b", "c", "d"]
    assert types.occurrences.tolist() == [4, 8, 2]
    assert types.top_images.tolist() == [0, 3, 2]
    np.testing.assert_allclose(types.entropies, [0.8112781, 1.5487949, 0.0], atol=1e-6)
    assert diversity(types)["commonest_image_share"] == pytest.approx(10 / 14)


def test_of_equal_images_the_lowest_row_is_the_commonest() -> None:
    pairs = Pairs(np.array([3, 3, 3]), np.array([1, 4, 6]), np.array([2, 5, 5]))
    assert type_table([pairs]).top_images.tolist() == [4]


def test_nothing_gives_no_types() -> None:
    assert diversity(type_table([])) == {"token_types": 0}


@given(counts=COUNTS)
def test_gini_is_half_the_relative_mean_difference(counts) -> None:
    found = gini(counts)
    if not counts.sum():
        assert found is None
        return
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert found == pytest.approx(differences / (2 * counts.mean()), abs=1e-9)
    assert -1e-9 <= found <= 1 - 1 / len(counts) + 1e-9


@given(counts=COUNTS, factor=st.integers(1, 9))
def test_figures_do_not_depend_on_order_or_on_scale(counts, factor: int) -> None:
    one, other = hubness(counts), hubness(factor * counts[::-1])
    for name in ("never_used", "busiest_1_percent", "skewness", "gini"):
        assert one[name] == (None if other[name] is None else pytest.approx(other[name], abs=1e-6))
    assert coverage(counts) == coverage(factor * counts[::-1])
    assert coverage(counts)["share"] == pytest.approx(1 - one["never_used"])


def test_one_hub_is_seen_by_every_figure() -> None:
    even, hub = np.full(200, 5), np.append(np.zeros(199, np.int64), 1000)
    assert hubness(even) == {
        "never_used": 0.0,
        "busiest_1_percent": 0.01,
        "max_count": 5,
        "skewness": None,
        "gini": pytest.approx(0),
    }
    assert hubness(hub)["busiest_1_percent"] == 1.0
    assert hubness(hub)["gini"] == pytest.approx(1 - 1 / 200)
    assert hubness(hub)["skewness"] == pytest.approx((200 - 2) / np.sqrt(200 - 1))  # of a Bernoulli draw


def test_skewness_of_a_known_sample() -> None:
    assert skewness(np.array([1, 2, 3, 4])) == pytest.approx(0)
    assert skewness(np.array([0, 0, 3])) == pytest.approx(1 / np.sqrt(2))
