"""Crisscrossed Captions (CxC): graded matches within and across images and captions of the COCO 5K test split.

Who matches whom comes from the published CSVs (`sits_test.csv`, `sis_test.csv`, `sts_test.csv`, scores 0 to 5) or from
a folder `cxc_annots` of VSE-infinity:
    I2T, T2I  SITS score at least 3; an original pair below that is no match
    T2T       the other captions of the same image always, and STS score at least 3
    I2I       SIS score at least 2.5
Pairs within a kind hold both ways. Ids are COCO's: numbers of images, annotation numbers of captions.

Two conventions are in use for what is left:
    `vse_infty`     an image or caption query without a match across kinds counts as a miss; within a kind the score of
                    an item with itself is set to 0, and stays in the ranking, and queries without a match are skipped
    `eccv_caption`  queries without a match are skipped everywhere, as the package of that name does across kinds;
                    an item is never a candidate for itself

How well scores follow people's ratings is the sampled Spearman bootstrap of the CxC paper (Parekh et al., section on
correlation; its program was never published): a sample takes half of the items that were rated with something, one
rated partner of each at random, and correlates scores with ratings by rank; the figure is the mean of many samples.
In STS and SIS an item's partners stand in either column; in SITS the items are the captions.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.evaluation.correlation import Correlation, sampled_spearman
from xmatch.evaluation.ranks import Counted, Positives, count_ranks, recall_at_k, scores_at
from xmatch.evaluation.similarities import EmbeddingSimilarities, Similarities, WithDiagonal

ACROSS_THRESHOLD = 3.0
TEXT_THRESHOLD = 3.0
IMAGE_THRESHOLD = 2.5
DEPTHS = (1, 5, 10)

Convention = Literal["vse_infty", "eccv_caption"]
Kind = Literal["sits", "sis", "sts"]
COLUMNS: dict[Kind, tuple[str, str]] = {
    "sits": ("caption", "image"),
    "sis": ("image1", "image2"),
    "sts": ("caption1", "caption2"),
}
CAPTION_ID = re.compile(r"(?:COCO_\w+:sentid:)?(\d+)")
IMAGE_ID = re.compile(r"(?:COCO_\w+_)?0*(\d+)(?:\.jpg)?")


class RatedPairs(NamedTuple):
    """One CSV of ratings.

    Attributes:
        first: (P,) int64 ids of the first column (SITS: captions).
        second: (P,) int64 ids of the second column (SITS: images).
        scores: (P,) float64 mean ratings, 0 to 5.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


class Gallery(NamedTuple):
    """What was embedded, in its order.

    Attributes:
        image_ids: (N,) int64 COCO image numbers.
        caption_ids: (M,) int64 COCO annotation numbers.
        caption_image: (M,) int64 row of each caption's image.
    """

    image_ids: npt.NDArray[np.int64]
    caption_ids: npt.NDArray[np.int64]
    caption_image: npt.NDArray[np.int64]


@dataclass(frozen=True)
class CxcPositives:
    """Matches of every query of the four tasks, as rows of the gallery."""

    i2t: Positives
    t2i: Positives
    t2t: Positives
    i2i: Positives


def read_rated_pairs(path: str, kind: Kind) -> RatedPairs:
    """One of the published CSVs.

    Raises:
        InputError: a column is missing, or a row has no valid ids and score.
    """
    reader = csv.DictReader(io.StringIO(files.read_text(path)))
    names = (*COLUMNS[kind], "agg_score")
    missing = set(names) - set(reader.fieldnames or ())
    if missing:
        raise InputError(
            f"{path!r} has no column {sorted(missing)[0]!r}; expected {', '.join(names)} in its first line, got "
            f"{', '.join(reader.fieldnames or ['nothing'])}. Give CxC's {kind}_test.csv."
        )
    patterns = [CAPTION_ID if name.startswith("caption") else IMAGE_ID for name in names[:2]]
    ids, scores = [], []
    for row in reader:
        found = [pattern.fullmatch(row[name] or "") for pattern, name in zip(patterns, names)]
        score = _score(row["agg_score"])
        if not found[0] or not found[1] or score is None:
            raise InputError(
                f"{path!r}, line {reader.line_num}: {row} is not a rated pair; expected ids such as "
                "COCO_val2014:sentid:123 and COCO_val2014_000000000042.jpg and a score from 0 to 5. Download it again."
            )
        ids.append((int(found[0][1]), int(found[1][1])))
        scores.append(score)
    pairs = np.array(ids, np.int64).reshape(-1, 2)
    return RatedPairs(pairs[:, 0], pairs[:, 1], np.array(scores))


def _score(text: str | None) -> float | None:
    try:
        score = float(text or "")
    except ValueError:
        return None
    return score if 0 <= score <= 5 else None


def positives_from_csvs(folder: str, gallery: Gallery, split: str = "test") -> CxcPositives:
    """Matches from `{sits,sis,sts}_{split}.csv`; pairs that leave the gallery are dropped."""
    sits, sis, sts = (read_rated_pairs(files.join(folder, f"{k}_{split}.csv"), k) for k in ("sits", "sis", "sts"))
    images, captions = len(gallery.image_ids), len(gallery.caption_ids)
    caption, image, score = _rows(sits, gallery.caption_ids, gallery.image_ids)
    caption, image = caption[score >= ACROSS_THRESHOLD], image[score >= ACROSS_THRESHOLD]
    left, right, score = _rows(sis, gallery.image_ids, gallery.image_ids)
    left, right = left[score >= IMAGE_THRESHOLD], right[score >= IMAGE_THRESHOLD]
    first, second, score = _rows(sts, gallery.caption_ids, gallery.caption_ids)
    first, second = first[score >= TEXT_THRESHOLD], second[score >= TEXT_THRESHOLD]
    return CxcPositives(
        i2t=Positives.from_pairs(image, caption, images),
        t2i=Positives.from_pairs(caption, image, captions),
        t2t=_with_siblings(np.concatenate([first, second]), np.concatenate([second, first]), gallery.caption_image),
        i2i=Positives.from_pairs(np.concatenate([left, right]), np.concatenate([right, left]), images),
    )


def read_annotations(folder: str) -> tuple[Gallery, CxcPositives]:
    """Gallery and matches from a `cxc_annots` folder of VSE-infinity.

    The folder has `testall_ids.txt` (an image id per caption line), `testall_capids.txt`, `cxc_it.json` (matches
    across kinds, no threshold applied), `cxc_i2i.json` and `cxc_t2t.json` (rated pairs as {id: [[other, score]]}).
    """
    per_caption = _read_ids(files.join(folder, "testall_ids.txt"), IMAGE_ID)
    captions = _read_ids(files.join(folder, "testall_capids.txt"), CAPTION_ID)
    if len(per_caption) != len(captions):
        raise InputError(
            f"{folder!r}: testall_ids.txt has {len(per_caption)} lines, testall_capids.txt {len(captions)}; expected "
            "one image id and one caption id per caption. Rebuild the folder."
        )
    images = np.array(list(dict.fromkeys(per_caption)), np.int64)
    gallery = Gallery(images, np.array(captions, np.int64), _lookup(images, np.array(per_caption, np.int64)))
    across, within, between = (files.read_json(files.join(folder, f"cxc_{name}.json")) for name in ("it", "i2i", "t2t"))
    return gallery, positives_from_annotations(gallery, across, within, between, where=folder)


def positives_from_annotations(
    gallery: Gallery, across: Any, images: Any, captions: Any, where: str = "cxc_annots"
) -> CxcPositives:
    """Matches from the parsed `cxc_it.json`, `cxc_i2i.json` and `cxc_t2t.json`; ids outside the gallery are dropped.

    Raises:
        InputError: an item of the gallery has no entry in `across`, or an entry is not a list of [id, score].
    """
    for name, ids in (("i2t", gallery.image_ids), ("t2i", gallery.caption_ids)):
        without = [key for key in ids.tolist() if str(key) not in across.get(name, {})]
        if without:
            raise InputError(
                f"{where!r}: cxc_it.json has no entry {without[0]} in {name!r} ({len(without)} of {len(ids)} are "
                "missing); expected one for every item evaluated, empty where nothing matches. Use the CSVs instead."
            )
    tables = ((across["i2t"], "it", -np.inf), (across["t2i"], "it", -np.inf))
    i2t, t2i = (_rated(table, f"{where}/cxc_{name}.json", floor) for table, name, floor in tables)
    image, text = gallery.image_ids, gallery.caption_ids
    i2i = _rated(images, f"{where}/cxc_i2i.json", IMAGE_THRESHOLD)
    t2t = _rated(captions, f"{where}/cxc_t2t.json", TEXT_THRESHOLD)
    return CxcPositives(
        i2t=Positives.from_pairs(*_rows(i2t, image, text)[:2], len(image)),
        t2i=Positives.from_pairs(*_rows(t2i, text, image)[:2], len(text)),
        t2t=_with_siblings(*_rows(t2t, text, text)[:2], gallery.caption_image),
        i2i=Positives.from_pairs(*_rows(i2i, image, image)[:2], len(image)),
    )


def cxc_recalls(
    across: Similarities,
    texts: Similarities | None,
    images: Similarities | None,
    positives: CxcPositives,
    convention: Convention = "vse_infty",
) -> tuple[dict[str, float], dict[str, Counted]]:
    """Recall at 1, 5 and 10 of the four tasks, or of those whose scores are given.

    Args:
        across: scores of (N images, M captions).
        texts: scores of (M captions, M captions); None leaves T2T out.
        images: scores of (N images, N images); None leaves I2I out.
        positives: who matches whom.
        convention: what happens to queries without a match and to an item's score with itself; see the module.

    Returns:
        `{i2t,t2i,t2t,i2i}_recall_at_{1,5,10}` in per cent with `…_queries`, how many were averaged over; and the
        counts of each task, `MISSED` where a query has no match.
    """
    own = 0.0 if convention == "vse_infty" else -np.inf
    counted: dict[str, Counted] = {}
    counted["i2t"], counted["t2i"] = count_ranks(across, positives.i2t, positives.t2i)
    for name, source, matches in (("t2t", texts, positives.t2t), ("i2i", images, positives.i2i)):
        if source is not None:
            counted[name] = count_ranks(WithDiagonal(source, own), matches, Positives.none(source.shape[1]))[0]
    figures: dict[str, float] = {}
    for name, one in counted.items():
        ranks = one.ranks[measured(one, name, convention)]
        figures |= {f"{name}_recall_at_{k}": recall_at_k(ranks, k) if len(ranks) else float("nan") for k in DEPTHS}
        figures[f"{name}_queries"] = float(len(ranks))
    return figures, counted


def measured(counted: Counted, task: str, convention: Convention) -> npt.NDArray[np.bool_]:
    """Which queries of a task are averaged over in a convention, bool of shape (Q,)."""
    if convention == "eccv_caption" or task in ("t2t", "i2i"):
        return counted.best >= 0
    return np.ones(len(counted.ranks), bool)


def read_positives(folder: str, gallery: Gallery) -> CxcPositives:
    """Matches from a folder with CxC's CSVs, or with VSE-infinity's `cxc_annots` where it has no CSV.

    Raises:
        InputError: it has neither.
    """
    if files.exists(files.join(folder, "sits_test.csv")):
        return positives_from_csvs(folder, gallery)
    names = ("cxc_it.json", "cxc_i2i.json", "cxc_t2t.json")
    if not all(files.exists(files.join(folder, name)) for name in names):
        raise InputError(
            f"{folder!r} has neither sits_test.csv, sis_test.csv and sts_test.csv of Crisscrossed Captions nor "
            f"{', '.join(names)} of VSE-infinity; expected one or the other. Give the folder that holds them."
        )
    across, images, captions = (files.read_json(files.join(folder, name)) for name in names)
    return positives_from_annotations(gallery, across, images, captions, where=folder)


def cxc_recalls_of_embeddings(
    images: npt.NDArray[np.floating],
    texts: npt.NDArray[np.floating],
    positives: CxcPositives,
    convention: Convention = "vse_infty",
) -> tuple[dict[str, float], dict[str, Counted]]:
    """As `cxc_recalls`, from (N, D) image and (M, D) caption embeddings of unit norm."""
    across = EmbeddingSimilarities(images, texts)
    within = EmbeddingSimilarities(texts, texts), EmbeddingSimilarities(images, images)
    return cxc_recalls(across, *within, positives, convention)


def cxc_correlations(
    sources: dict[Kind, Similarities],
    pairs: dict[Kind, RatedPairs],
    gallery: Gallery,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Correlation]:
    """Rank correlation of scores and ratings, for each kind in `sources`.

    Args:
        sources: `sits` scores of (N images, M captions), `sts` of (M, M) captions, `sis` of (N, N) images.
        pairs: the rated pairs of the same kinds; those that leave the gallery are dropped.
        gallery: what was embedded.
        samples: draws per kind.
        seed: of the draws.
    """
    image, text = gallery.image_ids, gallery.caption_ids
    sides: dict[Kind, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    sides = {"sits": (text, image), "sts": (text, text), "sis": (image, image)}
    found = {}
    for kind, source in sources.items():
        first, second, ratings = _rows(pairs[kind], *sides[kind])
        if kind == "sits":
            queries, scores = first, scores_at(source, second, first)
        else:
            once = scores_at(source, first, second)
            queries, ratings, scores = np.concatenate([first, second]), np.tile(ratings, 2), np.tile(once, 2)
        found[str(kind)] = sampled_spearman(queries, ratings, scores, samples=samples, seed=seed)
    return found


def _rows(
    pairs: RatedPairs, first_ids: npt.NDArray[np.int64], second_ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows of both items of the pairs within the gallery, and their scores; of one shape (P,)."""
    first, second = _lookup(first_ids, pairs.first), _lookup(second_ids, pairs.second)
    inside = (first >= 0) & (second >= 0)
    return first[inside], second[inside], pairs.scores[inside]


def _lookup(ids: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row of each wanted id among `ids`, -1 where it is not there; of the shape of `wanted`."""
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(repeated):
        raise InputError(f"id {ids[order[repeated[0]]]} occurs twice in the gallery; expected each once. Drop one.")
    if not len(ids):
        return np.full(len(wanted), -1)
    at = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
    return np.where(ids[at] == wanted, at, -1)


def _with_siblings(
    queries: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], caption_image: npt.NDArray[np.int64]
) -> Positives:
    """Rated caption pairs, rows of shape (P,) each, and, whatever their rating, captions of one image."""
    order = np.argsort(caption_image, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(caption_image[order])) + 1)
    left = np.concatenate([np.repeat(group, len(group)) for group in groups])
    right = np.concatenate([np.tile(group, len(group)) for group in groups])
    queries, candidates = np.concatenate([queries, left]), np.concatenate([candidates, right])
    other = queries != candidates
    return Positives.from_pairs(queries[other], candidates[other], len(caption_image))


def _rated(table: Any, where: str, threshold: float) -> RatedPairs:
    first, second, scores = [], [], []
    for key, others in table.items():
        try:
            rated = [(int(key), int(other), float(score)) for other, score in others]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where!r}, entry {key}: {error}; expected a list of [id, score]. Rebuild it from the CSVs."
            ) from error
        for query, other, score in rated:
            if score >= threshold:
                first.append(query)
                second.append(other)
                scores.append(score)
    return RatedPairs(np.array(first, np.int64), np.array(second, np.int64), np.array(scores, np.float64))


def _read_ids(path: str, pattern: re.Pattern[str]) -> list[int]:
    ids = []
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        found = pattern.fullmatch(line.strip())
        if not found:
            raise InputError(f"{path!r}, line {number}: {line!r} is not a COCO id. Mend that line.")
        ids.append(int(found[1]))
    return ids
