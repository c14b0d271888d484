"""The configuration: what it refuses, and the lengths of the published recipes."""

from __future__ import annotations

import dataclasses
import json

import pytest
from mvptr_cases import TINY

from alignment.mvptr.config import PUBLISHED, Lengths, MvptrConfig, config_from, published
from xmatch.errors import InputError


def test_plain_values_give_the_configuration_back() -> None:
    for config in (TINY, MvptrConfig(), *(published(name) for name in PUBLISHED)):
        assert config_from(json.loads(json.dumps(dataclasses.asdict(config))), "config.json") == config


def test_the_cross_encoder_reads_the_regions_alone_unless_told() -> None:
    assert (TINY.first_cross_row, TINY.first_region, TINY.cross_length) == (5, 9, 13)
    with_tags = dataclasses.replace(TINY, cross_from=1)
    assert (with_tags.first_region, with_tags.cross_length) == (13, 17)
    vqa = published("vqa")
    assert (vqa.lengths.tags, vqa.first_cross_row, vqa.first_region, vqa.cross_length) == (30, 20, 143, 193)


def test_the_published_recipes_keep_their_lengths() -> None:
    assert published("snli_ve").lengths == Lengths(text=70, phrases=5, tags=20, regions=70)
    assert published("retrieval_coco").lengths.tags == 30 != published("retrieval_coco_evaluation").lengths.tags
    assert published("refexp", TINY.__class__(region_width=10)).region_width == 10
    with pytest.raises(InputError, match="choose of pretrain"):
        published("nlvr2")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 3}, "half depth"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"only_word_size": 61}, "first rows"),
        ({"region_width": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"max_positions": 8}, "max_positions is 8"),
        ({"cross_from": 0}, "got 0"),
        ({"cross_from": 6}, "got 6"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("lengths", [{"text": 1}, {"tags": 1}, {"phrases": -1}, {"regions": 0}])
def test_lengths_leave_room_for_what_is_always_there(lengths: dict[str, int]) -> None:
    with pytest.raises(InputError, match="lengths"):
        Lengths(**lengths)


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'x.json' holds 'depth', which MvptrConfig"):
        config_from({"depth": 3}, "x.json")
    with pytest.raises(InputError, match=r"'objects', which Lengths"):
        config_from({"lengths": {"objects": 3}}, "x.json")
    with pytest.raises(InputError, match=r"'x.json': .*half depth"):
        config_from({"num_layers": 3}, "x.json")
