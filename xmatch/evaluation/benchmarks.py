"""The benchmarks by name: how many images and captions each has, and what is measured on it.

    flickr8k, flickr30k, coco_5k   every query against the whole gallery
    coco_1k                        the mean of five consecutive folds of the 5,000 images
    cxc                            graded matches of Crisscrossed Captions, across and within kinds
    eccv                           COCO 5K, and the verified matches of ECCV Caption

A new one is one line of `BENCHMARKS`, and where nothing there measures it, one function.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple

from xmatch.errors import InputError
from xmatch.evaluation import eccv
from xmatch.evaluation.coco import FOLDS, require_folds
from xmatch.evaluation.cxc import read_positives
from xmatch.evaluation.gallery import coco_gallery
from xmatch.evaluation.measures import (
    Measured,
    Request,
    cxc_folder,
    measure_cxc,
    measure_eccv,
    measure_folds,
    measure_whole,
)


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        title: its name in print.
        images: of the published split; 0: any.
        captions: of the published split.
        measure: measures it.
        check: finds what would make `measure` fail, from split and files alone, before anything is embedded.
    """

    title: str
    images: int
    captions: int
    measure: Callable[[Request], Measured]
    check: Callable[[Request], None]


def check_nothing(request: Request) -> None:
    """Any split with captions can be measured."""


def check_folds(request: Request) -> None:
    """The images make equal folds."""
    require_folds(len(request.captions.image_ids), FOLDS)


def check_cxc(request: Request) -> None:
    """CxC's files are there, and the split has COCO's ids."""
    read_positives(cxc_folder(request), coco_gallery(request.captions))


def check_eccv(request: Request) -> None:
    """The ground truth is there, and the split has all its queries."""
    gallery = coco_gallery(request.captions)
    truths = [eccv.read_ground_truth("eccv", request.eccv or None)]
    truths += [eccv.read_ground_truth("pm", request.pmrp)] if request.pmrp else []
    for truth in truths:
        eccv.require_queries(truth.image_to_caption, gallery.image_ids)
        eccv.require_queries(truth.caption_to_image, gallery.caption_ids)


BENCHMARKS: dict[str, Benchmark] = {
    "flickr8k": Benchmark("Flickr8k", 1000, 5000, measure_whole, check_nothing),
    "flickr30k": Benchmark("Flickr30k", 1000, 5000, measure_whole, check_nothing),
    "coco_1k": Benchmark("COCO 1K, five folds", 5000, 25000, measure_folds, check_folds),
    "coco_5k": Benchmark("COCO 5K", 5000, 25000, measure_whole, check_nothing),
    "cxc": Benchmark("CxC", 5000, 25000, measure_cxc, check_cxc),
    "eccv": Benchmark("ECCV Caption", 5000, 25000, measure_eccv, check_eccv),
}
ANY_SPLIT = Benchmark("", 0, 0, measure_whole, check_nothing)
"""What `--benchmark` left empty means: both directions over whatever split is given."""


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a name; of "" the measurement of any split.

    Raises:
        InputError: there is none of that name; names the nearest.
    """
    if not name:
        return ANY_SPLIT
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown benchmark {name!r}, did you mean {near!r}? Choose one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def size_warning(benchmark: Benchmark, images: int, captions: int) -> str:
    """Why figures are not comparable with published ones, or ""."""
    if not benchmark.images or (images, captions) == (benchmark.images, benchmark.captions):
        return ""
    return (
        f"{images:,} images and {captions:,} captions were measured, the published split has {benchmark.images:,} and "
        f"{benchmark.captions:,}: not comparable with published figures"
    )
