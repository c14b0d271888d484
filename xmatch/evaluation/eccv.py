"""ECCV Caption: mAP@R, R-Precision and R@1 over matches that people verified, on the full COCO 5K galleries.

For a query with R matches and a ranked list L:
    R-Precision  share of matches among L[:R]
    mAP@R        mean over r = 1 … R of precision(L[:r]) where L[r] is a match, 0 where it is not
    R@1          whether L[1] is a match
All are fractions, averaged over queries. PMRP is R-Precision over the plausible matches of PCME, whose files (more
than 140 MB) the user fetches.

The figures are computed here and, where the PyPI package `eccv_caption` is installed, by that too. The ground truth
is the package's, or a folder with its JSON files. Ids are COCO's: numbers of images, annotation numbers of captions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.evaluation.similarities import Block, Similarities

STRIP = 250
"""Queries ranked at a time."""
PACKAGE = "eccv_caption"

Lists = dict[int, list[int]]
"""Ids by id of the query: matches in any order, or candidates best first."""
Direction = Literal["rows", "columns"]
GroundTruthName = Literal["original", "cxc", "eccv", "pm"]


class GroundTruth(NamedTuple):
    """Matches of image queries and of caption queries."""

    image_to_caption: Lists
    caption_to_image: Lists


class EccvFigures(NamedTuple):
    """Fractions averaged over queries, as the package reports them."""

    map_at_r: float
    r_precision: float
    recall_at_1: float


def eccv_figures(ranked: Mapping[int, Sequence[int]], matches: Mapping[int, Iterable[int]]) -> EccvFigures:
    """The three figures of one direction.

    Args:
        ranked: candidates of each query, best first, none twice; at least as many as the query has matches.
        matches: verified matches of each query; queries of `ranked` that are not here are not measured.
    """
    return per_query_mean(per_query(((query, ranked.get(query, ())) for query in matches), matches))


class PerQuery(NamedTuple):
    """The figures of each query of one direction.

    Attributes:
        ids: (Q,) int64 ids of the queries.
        values: (Q, 3) float64, as EccvFigures names them, as fractions.
    """

    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def per_query(ranked: Iterable[tuple[int, Sequence[int]]], matches: Mapping[int, Iterable[int]]) -> PerQuery:
    """Figures of queries one by one.

    Args:
        ranked: pairs of a query of `matches` and its candidates, best first.
        matches: verified matches of each query.
    """
    found = [(query, _figures_of(query, candidates, matches[query])) for query, candidates in ranked]
    if not found:
        raise InputError("no query has matches, so nothing can be averaged. Give the ground truth of one direction.")
    return PerQuery(np.array([query for query, _ in found], np.int64), np.array([one for _, one in found]))


def per_query_mean(found: PerQuery) -> EccvFigures:
    """Means over the queries."""
    return EccvFigures(*found.values.mean(0).tolist())


def _figures_of(query: int, ranked: Sequence[int], true: Iterable[int]) -> EccvFigures:
    wanted = set(true)
    listed = ranked[: len(wanted)]
    if len(listed) < len(wanted) or not wanted:
        raise InputError(
            f"query {query} has {len(wanted)} matches and {len(listed)} ranked candidates; expected at least one "
            "match and no fewer candidates. Rank deeper."
        )
    if len(set(listed)) < len(listed):
        raise InputError(f"query {query} lists a candidate twice; expected each once. Remove repeated ids.")
    hits = np.array([candidate in wanted for candidate in listed])
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return EccvFigures(float(np.mean(precision * hits)), float(precision[-1]), float(hits[0]))


def r_precision(ranked: Mapping[int, Sequence[int]], matches: Mapping[int, Iterable[int]]) -> float:
    """R-Precision alone; over the `pm` ground truth it is PMRP."""
    return eccv_figures(ranked, matches).r_precision


def ranked_lists(
    source: Similarities,
    query_ids: npt.NDArray[np.int64],
    candidate_ids: npt.NDArray[np.int64],
    depths: Mapping[int, int],
    direction: Direction,
) -> Lists:
    """Best candidates of some queries; equal scores in the order of the gallery.

    Args:
        source: scores (N, M) of images and captions.
        query_ids: (Q,) ids of all rows (or all columns) of the source.
        candidate_ids: (K,) ids of the others.
        depths: how many candidates are wanted, by query id; other queries are left out.
        direction: "rows" for image queries, "columns" for caption queries.
    """
    return dict(_each_list(source, query_ids, candidate_ids, depths, direction))


def _each_list(
    source: Similarities,
    query_ids: npt.NDArray[np.int64],
    candidate_ids: npt.NDArray[np.int64],
    depths: Mapping[int, int],
    direction: Direction,
) -> Iterator[tuple[int, list[int]]]:
    """`ranked_lists`, list by list; of the scores a strip (Q, K) of some queries is held."""
    expected = source.shape if direction == "rows" else source.shape[::-1]
    if (len(query_ids), len(candidate_ids)) != expected:
        raise InputError(
            f"{len(query_ids)} query and {len(candidate_ids)} candidate ids do not fit scores of {expected} (queries, "
            "candidates). Give one id for every row and column."
        )
    require_queries(depths, query_ids)
    for start in range(0, len(query_ids), STRIP):
        part = slice(start, min(start + STRIP, len(query_ids)))
        wanted = [at for at, query in enumerate(query_ids[part].tolist()) if query in depths]
        if not wanted:
            continue
        everything = slice(0, len(candidate_ids))
        block = source.block(part, everything) if direction == "rows" else source.block(everything, part).T
        for at in wanted:
            query = int(query_ids[start + at])
            yield query, candidate_ids[_best(block[at], depths[query])].tolist()


def require_queries(queries: Iterable[int], ids: npt.NDArray[np.int64]) -> None:
    """Check that every query of a ground truth was embedded, that is, among `ids` of shape (N,).

    Raises:
        InputError: some were not.
    """
    wanted = set(queries)
    absent = wanted - set(ids.tolist())
    if absent:
        raise InputError(
            f"query {min(absent)} of the ground truth is not among the embedded items ({len(absent)} of {len(wanted)} "
            "are not). ECCV Caption needs the whole COCO 5K test split, with COCO's ids."
        )


def _best(scores: Block, depth: int) -> npt.NDArray[np.int64]:
    """Places of the `depth` greatest of scores of shape (K,), best first, equal ones by place."""
    scores = np.ascontiguousarray(scores)
    if depth < len(scores):
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        chosen = np.flatnonzero(scores >= least)  # more than `depth` only where the last place is shared
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:depth]


def eccv_scores(
    source: Similarities,
    image_ids: npt.NDArray[np.int64],
    caption_ids: npt.NDArray[np.int64],
    truth: GroundTruth,
) -> dict[str, EccvFigures]:
    """Both directions, computed here: means of `eccv_per_query` under `i2t` and `t2i`.

    Arguments and their shapes are as there.
    """
    each = eccv_per_query(source, image_ids, caption_ids, truth)
    return {way: per_query_mean(found) for way, found in each.items()}


def eccv_per_query(
    source: Similarities,
    image_ids: npt.NDArray[np.int64],
    caption_ids: npt.NDArray[np.int64],
    truth: GroundTruth,
) -> dict[str, PerQuery]:
    """Both directions query by query: the long lists of PMRP are never held at once.

    Args:
        source: scores (N, M) of images and captions.
        image_ids: (N,) COCO numbers.
        caption_ids: (M,) COCO annotation numbers.
        truth: verified matches; with the plausible ones (`pm`) R-Precision is PMRP and the rest means nothing.

    Returns:
        Figures under `i2t` and `t2i`.
    """
    sides: tuple[tuple[str, Lists, npt.NDArray[np.int64], npt.NDArray[np.int64], Direction], ...] = (
        ("i2t", truth.image_to_caption, image_ids, caption_ids, "rows"),
        ("t2i", truth.caption_to_image, caption_ids, image_ids, "columns"),
    )
    found = {}
    for way, matches, queries, candidates, direction in sides:
        if not matches:
            raise InputError(f"the ground truth has no {way} queries. Give files of both directions.")
        depths = {query: len(set(true)) for query, true in matches.items()}
        found[way] = per_query(_each_list(source, queries, candidates, depths, direction), matches)
    return found


def retrieved(
    source: Similarities,
    image_ids: npt.NDArray[np.int64],
    caption_ids: npt.NDArray[np.int64],
    truth: GroundTruth,
    depth: int = 0,
) -> tuple[Lists, Lists]:
    """Ranked captions of the images, and images of the captions, that `truth` asks about, by scores (N, M).

    Each list is as long as its query's matches are many, and at least `depth`.
    """
    i2t_depths = {query: max(depth, len(set(true))) for query, true in truth.image_to_caption.items()}
    t2i_depths = {query: max(depth, len(set(true))) for query, true in truth.caption_to_image.items()}
    return (
        ranked_lists(source, image_ids, caption_ids, i2t_depths, "rows"),
        ranked_lists(source, caption_ids, image_ids, t2i_depths, "columns"),
    )


def package_scores(i2t: Lists, t2i: Lists) -> dict[str, EccvFigures]:
    """The same figures by the `eccv_caption` package over its own ground truth.

    Args:
        i2t: captions, best first, of every image that has verified matches; 48 of each are enough.
        t2i: images, best first, of every caption that has verified matches; 19 of each are enough.

    Returns:
        Figures under `i2t` and `t2i`.
    """
    metrics = _package().Metrics()
    # R-Precision comes only along with mAP@R: alone, a misspelt name in version 0.1.0 skips it.
    names = ("eccv_map_at_r", "eccv_rprecision", "eccv_r1")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        found = metrics.compute_all_metrics(i2t, t2i, target_metrics=names, verbose=False)
    return {way: EccvFigures(*(float(found[name][way]) for name in names)) for way in ("i2t", "t2i")}


def read_ground_truth(name: GroundTruthName = "eccv", folder: str | None = None) -> GroundTruth:
    """Verified matches from `{name}_image_to_caption.json` and `{name}_caption_to_image.json`.

    Args:
        name: which matches; `pm` are the plausible ones of PMRP, which no package carries.
        folder: where the files are; None for those inside the installed package.
    """
    if folder is None:
        if name == "pm":
            raise InputError(
                "PMRP needs pm_image_to_caption.json and pm_caption_to_image.json; the package carries neither. Fetch "
                "them as https://github.com/naver-ai/eccv-caption describes, and give their folder."
            )
        folder = os.path.join(os.path.dirname(str(_package().__file__)), "data")
    paths = [files.join(folder, f"{name}_{way}.json") for way in ("image_to_caption", "caption_to_image")]
    return GroundTruth(*(_read_lists(path) for path in paths))


def _read_lists(path: str) -> Lists:
    try:
        return {int(query): [int(one) for one in matches] for query, matches in files.read_json(path).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path!r}: {error}; expected {{query id: [match ids]}}. Download it again.") from error


def _package() -> Any:
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(f"the package {PACKAGE} is not installed; its ground truth is needed. pip install {PACKAGE}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for faster JSON on import
        return importlib.import_module(PACKAGE)
