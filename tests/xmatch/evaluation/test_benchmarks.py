from __future__ import annotations

from pathlib import Path

import pytest
from small_gallery import small_gallery, write_cxc, write_truth

from xmatch.errors import InputError
from xmatch.evaluation.benchmarks import ANY_SPLIT, BENCHMARKS, benchmark_of, size_warning
from xmatch.evaluation.comparison import comparison_text
from xmatch.evaluation.measures import ConfidenceConfig, Request
from xmatch.evaluation.published import published_rows

GALLERY = small_gallery()


def request(images: int = 10, **places: str) -> Request:
    return Request(small_gallery(images), [], ConfidenceConfig(), **places)


def test_every_benchmark_is_known_to_the_published_tables_and_has_a_size() -> None:
    assert list(BENCHMARKS) == ["flickr8k", "flickr30k", "coco_1k", "coco_5k", "cxc", "eccv"]
    for name, benchmark in BENCHMARKS.items():
        published_rows(name)
        assert benchmark.captions == 5 * benchmark.images
        assert benchmark_of(name) is benchmark
        assert comparison_text(name, {}, {}, benchmark.title)
    assert benchmark_of("") is ANY_SPLIT


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"unknown benchmark 'coco1k', did you mean 'coco_1k'\? Choose one of flickr8k"
    ):
        benchmark_of("coco1k")


def test_checks_find_what_is_missing_before_anything_is_embedded(tmp_path: Path) -> None:
    for name in ("flickr8k", "flickr30k", "coco_5k", "coco_1k"):
        BENCHMARKS[name].check(request())
    BENCHMARKS["cxc"].check(request(cxc=write_cxc(tmp_path / "cxc", GALLERY)))
    truth, plausible = write_truth(tmp_path / "eccv", GALLERY), write_truth(tmp_path / "pm", GALLERY, "pm")
    BENCHMARKS["eccv"].check(request(eccv=truth, pmrp=plausible))
    for name, asked, message in (
        ("coco_1k", request(9), "9 images do not make 5 equal folds"),
        ("cxc", request(), "give --cxc FOLDER"),
        ("cxc", request(cxc=str(tmp_path)), "neither sits_test.csv"),
        ("eccv", request(2, eccv=truth), "not among the embedded items"),
        ("eccv", request(eccv=truth, pmrp=truth), "pm_image_to_caption.json"),
    ):
        with pytest.raises(InputError, match=message):
            BENCHMARKS[name].check(asked)


def test_another_size_is_not_comparable() -> None:
    assert size_warning(BENCHMARKS["coco_5k"], 5000, 25000) == size_warning(ANY_SPLIT, 3, 7) == ""
    assert "the published split has 1,000 and 5,000" in size_warning(BENCHMARKS["flickr8k"], 482, 2410)
