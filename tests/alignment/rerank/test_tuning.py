"""Tuning: it never chooses what does not help, and its settings keep away from what they were tuned on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from small_reranking import random_case, slots_of

from alignment.rerank.candidates import Lists
from alignment.rerank.entity_guided import Evidence
from alignment.rerank.figures import list_ranks, mean_recall
from alignment.rerank.pipeline import Vectors, evidence_of, pool_depths, pools_of, rerank
from alignment.rerank.settings import BidirectionalConfig, RerankSettings, with_direction, without_entities
from alignment.rerank.tuned_file import (
    is_test_split,
    read_tuned,
    refuse_tuned_split,
    split_identity,
    write_tuned,
)
from alignment.rerank.tuning import TuningConfig, hits, tune, tuning_settings
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError

SMALL = TuningConfig(pools=[20], ks=[3, 10])


def split(seed: int, name: str = "v") -> CaptionSet:
    ids = [f"{name}{seed}-{row}" for row in range(30)]
    owners = np.repeat(np.arange(30), 2)
    return CaptionSet(ids, [""] * 30, [f"{name} {seed} {row}" for row in range(60)], [*map(str, range(60))], owners)


def case(seed: int) -> tuple[Vectors, np.ndarray]:
    images, _, _, _, rng = random_case(seed, captions=60, images=30, width=4)
    owner = np.repeat(np.arange(30), 2)
    texts = (images[owner] + 0.6 * rng.standard_normal((60, 4))).astype(np.float32)
    prompts, masks = (
        (sign * images[owner][:, None] + rng.standard_normal((60, 3, 4))).astype(np.float32) for sign in (1, -1)
    )
    return Vectors(images, texts, slots_of(prompts, masks)), owner


def tuned_on(seed: int, config: TuningConfig = SMALL):
    vectors, owner = case(seed)
    settings = tuning_settings(RerankSettings(slots=3), config)
    pools = pools_of(vectors, pool_depths(settings, 10))
    evidence = evidence_of(vectors, pools, settings)
    return tune(pools, evidence, settings, owner, config), pools, evidence, owner


@pytest.mark.parametrize("seed", range(4))
def test_the_settings_give_the_best_figure_that_was_tried(seed: int) -> None:
    found, pools, evidence, owner = tuned_on(seed)
    used = {way: one for way, one in evidence.items() if found.settings.of(way).egr.enabled}
    ids = {"t2i": [""] * 30, "i2t": [""] * 60}
    stages = rerank(pools, used, found.settings, ids, 10)
    for way in ("t2i", "i2t"):
        last = mean_recall(list_ranks(way, stages[-1].lists[way], owner))
        taken = [trial for trial in found.trials if trial.way == way and trial.is_taken]
        assert [trial.step for trial in taken] == ["egr", "tbr"]
        assert last == pytest.approx(taken[-1].mean_recall)
        assert last >= mean_recall(list_ranks(way, stages[0].lists[way], owner))
        for trial in taken:
            tried = [one for one in found.trials if (one.way, one.step) == (way, trial.step)]
            best = [one for one in tried if hits_of(one, owner, way) == max(hits_of(two, owner, way) for two in tried)]
            assert best[0] == trial


def hits_of(trial, owner: np.ndarray, way: str) -> int:
    queries = len(owner) if way == "t2i" else 30
    return round(trial.mean_recall * 3 * queries / 100)


def test_what_does_not_help_stays_off() -> None:
    """Perfect lists cannot be mended."""
    owner = np.arange(12)
    rows = np.stack([np.roll(np.arange(12), -row) for row in range(12)])
    lists = Lists(rows, np.tile(np.linspace(1, 0, 12, dtype=np.float32), (12, 1)))
    zero = np.zeros_like(lists.scores)
    pools = {"t2i": lists, "i2t": lists}
    evidence = {way: Evidence(lists, zero, zero) for way in pools}
    found = tune(pools, evidence, RerankSettings(), owner, TuningConfig(pools=[12], ks=[2]))
    for way in ("t2i", "i2t"):
        assert not found.settings.of(way).egr.enabled
        assert not found.settings.of(way).tbr.enabled


def test_a_step_must_gain_enough() -> None:
    found, *_ = tuned_on(0)
    assert any(found.settings.of(way).egr.enabled for way in ("t2i", "i2t"))
    none, *_ = tuned_on(0, dataclasses.replace(SMALL, min_gain=100.0))
    assert not any(none.settings.of(way).egr.enabled or none.settings.of(way).tbr.enabled for way in ("t2i", "i2t"))


def test_equal_figures_go_to_the_smaller_weights() -> None:
    owner, depth = np.arange(12), 12
    rows = np.stack([np.roll(np.arange(depth), 1 - row) for row in range(12)])  # the match is second
    scores = np.tile(np.linspace(1, 0.9, depth, dtype=np.float32), (12, 1))
    lists = Lists(rows, scores)
    helpful = (rows == owner[:, None]).astype(np.float32) * 10
    evidence = {"t2i": Evidence(lists, scores, helpful)}
    config = TuningConfig(mask_weights=[0.3, 0.0, 0.1], prompt_weights=[0.2, 0.0], pools=[12, 50], ks=[1])
    egr = tune({"t2i": lists, "i2t": lists}, evidence, RerankSettings(), owner, config).settings.t2i.egr
    assert list_ranks("t2i", lists, owner).tolist() == [2] * 12
    assert (egr.enabled, egr.mask_weight, egr.prompt_weight, egr.pool) == (True, 0.1, 0.0, 12)
    assert hits(np.array([1, 4, 11])) == 5


@pytest.mark.parametrize("bad", [{"pools": [5]}, {"ks": []}, {"ks": [0]}, {"min_gain": -1.0}, {"mask_weights": []}])
def test_what_cannot_be_tried_is_refused(bad) -> None:
    with pytest.raises(InputError, match="tuning needs"):
        TuningConfig(**bad)


def test_a_pool_must_hold_what_counts() -> None:
    settings = RerankSettings()
    deep = with_direction(settings, "i2t", tbr=BidirectionalConfig(k=500))
    with pytest.raises(InputError, match=r"t2i.egr.pool is 128, but 500 places"):
        pool_depths(deep, 20)
    assert pool_depths(without_entities(deep), 20) == {"t2i": 500, "i2t": 500}
    assert pool_depths(settings, 20) == {"t2i": 128, "i2t": 128}


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found, *_ = tuned_on(1)
    path = write_tuned(str(tmp_path), found, split(1), "val", {"note": 1})
    for place in (path, str(tmp_path)):
        read = read_tuned(place)
        assert read.settings == found.settings
        assert read.split == split_identity(split(1), "val")
    assert json.loads(Path(path).read_text())["note"] == 1
    before = Path(path).read_bytes()
    write_tuned(str(tmp_path), found, split(1), "val", {"note": 1})
    assert Path(path).read_bytes() == before


def test_only_other_images_are_measured(tmp_path: Path) -> None:
    found, *_ = tuned_on(1)
    tuned = read_tuned(write_tuned(str(tmp_path), found, split(1), "val", {}))
    assert refuse_tuned_split(tuned, split(2), "test", allow=False).images_leaked == 0
    with pytest.raises(InputError, match="tuned on 30 of the 30 images"):
        refuse_tuned_split(tuned, split(1), "val", allow=False)
    assert refuse_tuned_split(tuned, split(1), "val", allow=True).images == 30
    with pytest.raises(InputError, match="Tune them on other images."):
        refuse_tuned_split(tuned, split(1), "test", allow=True)
    other = split(2)
    mixed = other._replace(image_ids=[*split(1).image_ids[:2], *other.image_ids[2:]])
    with pytest.raises(InputError, match="tuned on 2 of the 30 images"):
        refuse_tuned_split(tuned, mixed, "test", allow=False)
    renamed = other._replace(captions=split(1).captions)
    with pytest.raises(InputError, match="tuned on 30 of the 30 images"):
        refuse_tuned_split(tuned, renamed, "test", allow=False)


def test_tuning_on_test_is_refused_at_the_file_too(tmp_path: Path) -> None:
    found, *_ = tuned_on(1)
    with pytest.raises(InputError, match="is refused"):
        write_tuned(str(tmp_path), found, split(1), "karpathy-test", {})
    assert not list(tmp_path.iterdir())
    assert [is_test_split(one) for one in ("test", "val", "train,Test", "testall", "dev")] == [
        True,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("content", ["[]", "{}", '{"settings": {"t2i": 1}, "split": {}, "record_sha256": ""}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tuned.json").write_text(content)
    with pytest.raises(InputError, match="holds no tuned settings"):
        read_tuned(str(tmp_path))
