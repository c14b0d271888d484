"""AGREE's score of predictions, and its JSON: in success, and in failure, which it hides in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.rerank.candidates import named
from xmatch.data import files
from xmatch.errors import InputError

DEPTHS = (1, 5, 10)


class Score(NamedTuple):
    """Recall in per cent, and the mean of the three."""

    mean_recall: float
    r1: float
    r5: float
    r10: float


def score_lists(predictions: Mapping[str, Sequence[str]], truth: Mapping[str, Sequence[str]]) -> Score:
    """The share of queries with any right item among their first 1, 5 and 10.

    Args:
        predictions: item ids, best first, by query id; those of queries that are not asked are left out.
        truth: right item ids by query id.

    Raises:
        InputError: queries have no predictions; counted and named.
    """
    missing = [query for query in truth if query not in predictions]
    if missing or not truth:
        raise InputError(
            f"{named(missing, 'queries')} of {len(truth):,} have no predictions; expected a list for each query of the "
            "ground truth, and at least one query."
        )
    hits = [sum(not set(items).isdisjoint(predictions[query][:k]) for query, items in truth.items()) for k in DEPTHS]
    recalls = [count * 1.0 / len(truth) for count in hits]
    return Score(*(100 * value for value in (sum(recalls) / 3.0, *recalls)))


def score_json(score: Score) -> dict[str, Any]:
    """The original's form of a score."""
    return {"success": True, "score": score.mean_recall, "scoreJson": {"score": score.mean_recall} | score._asdict()}


def error_json(reason: str | int) -> dict[str, Any]:
    """The original's form of a failure; for a query without predictions the reason is its id."""
    return {"success": False, "score": 0, "scoreJson": {}, "errorDetail": reason, "errorMsg": reason}


def read_score(path: str) -> Score:
    """The score in an original's JSON.

    Raises:
        InputError: it tells of a failure, with its reason, or has another form.
    """
    content = files.read_json(path)
    if isinstance(content, dict) and content.get("success") is False:
        raise InputError(
            f"{path!r} tells of a failed evaluation: {content.get('errorMsg')!r}. If that is an id, its query has no "
            "predictions."
        )
    try:
        found = {name: content["scoreJson"][name] for name in Score._fields}
        return Score(**{name: float(value) for name, value in found.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path!r} is no score of AGREE: {error}. Expected success, score, and scoreJson with "
            f"{', '.join(Score._fields)}."
        ) from error
