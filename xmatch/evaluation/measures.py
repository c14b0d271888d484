"""What is measured of a split: recall over the whole or over folds, CxC, ECCV Caption; with intervals and ties.

Recalls, mAP@R, R-Precision and PMRP are in per cent; correlations are times 100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation import eccv
from xmatch.evaluation.bootstrap import Interval, QueryRanks, mean_intervals, recall_intervals
from xmatch.evaluation.coco import FOLDS, Retrieval, five_folds, whole_split
from xmatch.evaluation.cxc import (
    COLUMNS,
    DEPTHS,
    Convention,
    Gallery,
    Kind,
    cxc_correlations,
    cxc_recalls,
    measured,
    read_positives,
    read_rated_pairs,
)
from xmatch.evaluation.gallery import coco_gallery
from xmatch.evaluation.members import Member, ensemble, within
from xmatch.evaluation.ranks import Counted
from xmatch.evaluation.similarities import Similarities

CONVENTIONS: tuple[Convention, ...] = ("vse_infty", "eccv_caption")
TASKS_WITHIN = ("t2t", "i2i")
NO_EMBEDDINGS = "a saved similarity has no scores within a kind; give a model or embeddings"
PACKAGE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    """How the confidence intervals are drawn."""

    resamples: int = 1000
    """Draws of the test images with replacement, each with its captions; also the samples of a CxC correlation."""
    level: float = 0.95
    """Share of the draws inside an interval."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.resamples < 1 or not 0 < self.level < 1:
            raise InputError(
                f"confidence needs resamples >= 1 and a level between 0 and 1, got {self.resamples} and {self.level}."
            )


class Request(NamedTuple):
    """What is to be measured.

    Attributes:
        captions: the split: N images, M captions.
        members: whose scores; several are averaged.
        confidence: of the intervals.
        cxc: folder of CxC's files, or "".
        eccv: folder of ECCV Caption's files, or "" for the package's.
        pmrp: folder of PCME's plausible matches, or "".
    """

    captions: CaptionSet
    members: list[Member]
    confidence: ConfidenceConfig
    cxc: str = ""
    eccv: str = ""
    pmrp: str = ""

    @property
    def across(self) -> Similarities:
        """Scores of (N images, M captions)."""
        return ensemble([member.across for member in self.members])


class Part(NamedTuple):
    """Ranks of one fold, or of the whole split; ranks are 1-based within the part's gallery.

    Attributes:
        images: rows of its images.
        captions: rows of its captions.
        i2t: counts of its images.
        t2i: counts of its captions.
    """

    images: slice
    captions: slice
    i2t: Counted
    t2i: Counted


class Task(NamedTuple):
    """Ranks of one task over all its queries.

    Attributes:
        name: i2t, t2i, t2t or i2i.
        convention: of CxC, else "".
        counted: ranks, rows of the matches, ties.
        fold: (Q,) which fold each query is in.
    """

    name: str
    convention: str
    counted: Counted
    fold: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        figures: by name; None where nothing could be averaged.
        intervals: of those figures that have one.
        ties: queries that tie with a wrong candidate, by task.
        parts: what the worst queries and the plot are made of.
        tasks: ranks of all queries.
        skipped: why a figure is not there.
        details: what only this benchmark has.
        hashes: SHA-256 of the benchmark's own files.
    """

    figures: dict[str, float | None]
    intervals: dict[str, Interval]
    ties: dict[str, int]
    parts: list[Part]
    tasks: list[Task]
    skipped: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


def measure_whole(request: Request) -> Measured:
    """Both directions over the whole gallery."""
    return _measured(whole_split(request.across, request.captions.caption_image), request)


def measure_folds(request: Request) -> Measured:
    """Both directions as means of five consecutive folds."""
    return _measured(five_folds(request.across, request.captions.caption_image, FOLDS), request)


def _measured(found: Retrieval, request: Request) -> Measured:
    parts, image, caption = [], 0, 0
    for i2t, t2i in found.parts:
        rows = slice(image, image + len(i2t.ranks)), slice(caption, caption + len(t2i.ranks))
        parts.append(Part(*rows, i2t, t2i))
        image, caption = rows[0].stop, rows[1].stop
    drawn = [QueryRanks(i.ranks, t.ranks, owner) for (i, t), owner in zip(found.parts, found.caption_images)]
    settings = request.confidence
    intervals = recall_intervals(drawn, samples=settings.resamples, level=settings.level, seed=settings.seed)
    ties = {"i2t": sum(i.ties for i, _ in found.parts), "t2i": sum(t.ties for _, t in found.parts)}
    tasks = [_joined("i2t", parts), _joined("t2i", parts)]
    return Measured(dict(found.figures), intervals, ties, parts, tasks)


def _joined(name: str, parts: list[Part]) -> Task:
    """The ranks of all folds in one; matches as rows of the split."""
    counts = [part.i2t if name == "i2t" else part.t2i for part in parts]
    starts = [part.captions.start if name == "i2t" else part.images.start for part in parts]
    ranks = np.concatenate([one.ranks for one in counts])
    best = np.concatenate([one.best + start for one, start in zip(counts, starts)])
    fold = np.repeat(np.arange(len(counts)), [len(one.ranks) for one in counts])
    return Task(name, "", Counted(ranks, best, sum(one.ties for one in counts)), fold)


def measure_cxc(request: Request) -> Measured:
    """Recall of the four tasks in both conventions, and correlations with people's ratings.

    The figures without a prefix are those of VSE-infinity's convention, in which the published ones are; those of the
    other are called `eccv_caption_…`.

    Raises:
        InputError: no folder of CxC is given, its files are broken, or ids are no COCO numbers.
    """
    gallery = coco_gallery(request.captions)
    positives = read_positives(cxc_folder(request), gallery)
    texts, images = within(request.members, "texts"), within(request.members, "images")
    figures: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    ties: dict[str, int] = {}
    tasks: list[Task] = []
    for convention in CONVENTIONS:
        prefix = "" if convention == "vse_infty" else f"{convention}_"
        found, counted = cxc_recalls(request.across, texts, images, positives, convention)
        figures |= {f"{prefix}{name}": _finite(value) for name, value in found.items()}
        for name, one in counted.items():
            tasks.append(Task(name, convention, one, np.zeros(len(one.ranks), np.int64)))
            ties[f"{prefix}{name}"] = one.ties
            intervals |= _task_intervals(f"{prefix}{name}", name, convention, one, request)
    six = [figures[f"{way}_recall_at_{k}"] for way in ("i2t", "t2i") for k in DEPTHS]
    figures["rsum"] = sum(one for one in six if one is not None) if None not in six else None
    skipped = {f"{task}_recall": NO_EMBEDDINGS for task in TASKS_WITHIN if texts is None}
    correlations = _correlations(request, gallery, texts, images, skipped)
    hashes = {f"cxc/{p.rsplit('/', 1)[-1]}": files.sha256(p) for p in _cxc_files(request.cxc)}
    whole = Part(
        slice(0, len(gallery.image_ids)), slice(0, len(gallery.caption_ids)), tasks[0].counted, tasks[1].counted
    )
    details = {"conventions": {"figures": "vse_infty", "eccv_caption_figures": "eccv_caption"}}
    return Measured(figures | correlations, intervals, ties, [whole], tasks, skipped, details, hashes)


def cxc_folder(request: Request) -> str:
    """The folder of CxC's files.

    Raises:
        InputError: none was given.
    """
    if not request.cxc:
        raise InputError(
            "benchmark cxc needs the ratings: give --cxc FOLDER with sits_test.csv, sis_test.csv and sts_test.csv of "
            "https://github.com/google-research-datasets/Crisscrossed-Captions."
        )
    return request.cxc


def _cxc_files(folder: str) -> list[str]:
    return [*files.list_files(folder, "_test.csv"), *files.list_files(folder, ".json")]


def _task_intervals(
    prefix: str, task: str, convention: Convention, counted: Counted, request: Request
) -> dict[str, Interval]:
    included = measured(counted, task, convention)
    if not included.any():
        return {}
    owner = np.arange(len(request.captions.image_ids)) if task[0] == "i" else request.captions.caption_image
    hits = 100.0 * (counted.ranks[included][:, None] <= np.array(DEPTHS))
    settings = request.confidence
    drawn = mean_intervals(hits, owner[included], samples=settings.resamples, level=settings.level, seed=settings.seed)
    return {f"{prefix}_recall_at_{k}": interval for k, interval in zip(DEPTHS, drawn)}


def _correlations(
    request: Request,
    gallery: Gallery,
    texts: Similarities | None,
    images: Similarities | None,
    skipped: dict[str, str],
) -> dict[str, float | None]:
    """`{sts,sis,sits}_correlation` and their deviations; what is not there is noted in `skipped`."""
    given: dict[Kind, Similarities | None] = {"sts": texts, "sis": images, "sits": request.across}
    found: dict[str, float | None] = {}
    for kind, source in given.items():
        path = files.join(request.cxc, f"{kind}_test.csv")
        if source is None or not files.exists(path):
            skipped[f"{kind}_correlation"] = NO_EMBEDDINGS if source is None else f"{path} is not there"
            continue
        pairs = read_rated_pairs(path, kind)
        settings = request.confidence
        one = cxc_correlations({kind: source}, {kind: pairs}, gallery, samples=settings.resamples, seed=settings.seed)[
            str(kind)
        ]
        found |= {f"{kind}_correlation": one.mean, f"{kind}_correlation_deviation": one.deviation}
    assert set(given) == set(COLUMNS), "every kind of pair is correlated"
    return found


def measure_eccv(request: Request) -> Measured:
    """COCO 5K's figures; mAP@R, R-Precision and R@1 over verified matches, by us and by the package; PMRP.

    Raises:
        InputError: the package or a file is missing, or the split is not the whole COCO 5K test split.
    """
    gallery, across = coco_gallery(request.captions), request.across
    truth = eccv.read_ground_truth("eccv", request.eccv or None)
    lists = eccv.retrieved(across, gallery.image_ids, gallery.caption_ids, truth)
    ours = {
        way: eccv.per_query(ranked.items(), matches)
        for way, ranked, matches in zip(("i2t", "t2i"), lists, (truth.image_to_caption, truth.caption_to_image))
    }
    package = eccv.package_scores(*lists) if not request.eccv else None
    found = measure_whole(request)
    for way, each in ours.items():
        names = [f"eccv_{way}_{name}" for name in eccv.EccvFigures._fields]
        _add(found, names, each, gallery, request)
    details: dict[str, Any] = {"eccv": {way: eccv.per_query_mean(each)._asdict() for way, each in ours.items()}}
    if package is None:
        found.skipped["eccv_caption package"] = "the ground truth is a folder of the user, the package has its own"
    else:
        details["eccv_caption package"] = {way: one._asdict() for way, one in package.items()}
        details["largest difference to the package"] = _largest_difference(ours, package)
    if request.pmrp:
        plausible = eccv.read_ground_truth("pm", request.pmrp)
        for way, each in eccv.eccv_per_query(across, gallery.image_ids, gallery.caption_ids, plausible).items():
            _add(found, [f"pmrp_{way}"], each._replace(values=each.values[:, 1:2]), gallery, request)
    else:
        found.skipped["pmrp"] = "its files are not part of any package; give their folder as --pmrp"
    found.details.update(details)
    found.hashes.update(_eccv_hashes(request))
    return found


def _add(found: Measured, names: list[str], each: eccv.PerQuery, gallery: Gallery, request: Request) -> None:
    """Means over queries and their intervals, in per cent."""
    image_of = dict(zip(gallery.caption_ids.tolist(), gallery.image_ids[gallery.caption_image].tolist()))
    owner = np.array([image_of.get(query, query) for query in each.ids.tolist()]) if "t2i" in names[0] else each.ids
    settings = request.confidence
    drawn = mean_intervals(
        100.0 * each.values, owner, samples=settings.resamples, level=settings.level, seed=settings.seed
    )
    found.figures.update({name: one.value for name, one in zip(names, drawn)})
    found.intervals.update(dict(zip(names, drawn)))


def _largest_difference(ours: dict[str, eccv.PerQuery], package: dict[str, eccv.EccvFigures]) -> float:
    """Between our figures and the package's, as fractions.

    Raises:
        InputError: it is more than rounding, so one of the two has another ground truth.
    """
    largest = max(
        abs(a - b) for way, each in ours.items() for a, b in zip(eccv.per_query_mean(each), package[way], strict=True)
    )
    if largest > PACKAGE_TOLERANCE:
        raise InputError(
            f"our ECCV figures and the package's differ by {largest:.1e}, more than {PACKAGE_TOLERANCE}: the installed "
            "eccv_caption has another ground truth or definition than version 0.1.0. Install that one."
        )
    return float(largest)


def _eccv_hashes(request: Request) -> dict[str, str]:
    places = {name: folder for name, folder in (("eccv", request.eccv), ("pm", request.pmrp)) if folder}
    return {
        f"{name}_{way}.json": files.sha256(files.join(folder, f"{name}_{way}.json"))
        for name, folder in places.items()
        for way in ("image_to_caption", "caption_to_image")
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
