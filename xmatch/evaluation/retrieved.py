"""What every query retrieved, by exact search: the lists behind the ranks.

Scores here are exact inner products, rounded once; ranks are counted on the scores of a float32 matrix product. Where
two candidates are closer than the rounding of such a product, the two may order them differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data.captions import CaptionSet
from xmatch.evaluation.measures import Part as Fold
from xmatch.evaluation.measures import Request
from xmatch.evaluation.view_similarities import Images
from xmatch.search import build_searcher
from xmatch.search.exact import SearchResult
from xmatch.search.factored import FactoredVectors, Part
from xmatch.search.factored_searcher import FactoredSearcher
from xmatch.search.scores import decode

RETRIEVED_SCHEMA = pa.schema(
    [
        pa.field("direction", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("candidate_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("is_match", pa.bool_(), nullable=False),
    ]
)
"""One row for each retrieved candidate: `i2t` or `t2i`, 1-based rank within the query's fold, and whether the caption
was written for the image."""

Float32 = npt.NDArray[np.float32]


Joined = tuple[Images, Float32]


def joined_embeddings(request: Request) -> Joined | None:
    """Embeddings whose scores are the members' mean scores: side by side, the images' divided by the members.

    Returns:
        (N, D) of images, or all members' parts where one has several views an image, and (M, D) of captions, D summed
        over members; None where a member is a saved matrix.
    """
    pairs = [member.embeddings for member in request.members]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    texts: Float32 = np.concatenate([np.asarray(pair[1], np.float32) for pair in found], 1)
    plain = [np.asarray(pair[0], np.float32) for pair in found if not isinstance(pair[0], FactoredVectors)]
    if len(plain) < len(found):
        return _joined_parts([pair[0] for pair in found]), texts
    images: Float32 = np.concatenate(plain, 1)
    if len(found) > 1:
        images /= np.float32(len(found))
    return images, texts


def _joined_parts(members: Sequence[Images]) -> FactoredVectors:
    parts = [
        part
        for images in members
        for part in (images.parts if isinstance(images, FactoredVectors) else [Part(np.asarray(images, np.float32), 1)])
    ]
    if len(members) == 1:
        return FactoredVectors(tuple(parts))
    return FactoredVectors(tuple(Part(decode(part.rows) / np.float32(len(members)), part.views) for part in parts))


def retrieved_table(request: Request, parts: Sequence[Fold], k: int, threads: int = 1) -> pa.Table | None:
    """The k best candidates of every query in both directions.

    Args:
        request: members with embeddings, and the split.
        parts: folds, or the whole split; a query is searched within its fold.
        k: candidates of each query, fewer where its fold has fewer.
        threads: of the search.

    Returns:
        A table of RETRIEVED_SCHEMA; None where a member is a saved matrix, which has nothing to search.
    """
    embeddings = joined_embeddings(request)
    if embeddings is None:
        return None
    found = [_searched(embeddings, part, k, threads) for part in parts]
    tables = [
        _rows(request.captions, part, direction, result[at])
        for at, direction in enumerate(("i2t", "t2i"))
        for part, result in zip(parts, found, strict=True)
    ]
    return pa.concat_tables(tables)


def _searched(embeddings: Joined, part: Fold, k: int, threads: int) -> tuple[SearchResult, SearchResult]:
    """What the images of a fold find, and what its captions find."""
    images, texts = embeddings[0], np.ascontiguousarray(embeddings[1][part.captions])
    if isinstance(images, FactoredVectors):
        searcher = FactoredSearcher(images.images(part.images), threads)
        of_texts, of_images = searcher.search_both(texts, k)
        return _first(of_images, len(texts)), _first(of_texts, searcher.key_count)
    own = np.ascontiguousarray(images[part.images])
    i2t, t2i = (
        build_searcher(keys, threads=threads).search(queries, min(k, len(keys)))
        for queries, keys in ((own, texts), (texts, own))
    )
    return i2t, t2i


def _first(found: SearchResult, keys: int) -> SearchResult:
    return SearchResult(found.scores[:, :keys], found.ids[:, :keys])


def _rows(captions: CaptionSet, part: Fold, direction: str, found: SearchResult) -> pa.Table:
    count, k = found.ids.shape
    at, candidates = np.repeat(np.arange(count), k), found.ids.reshape(-1)
    image = (at if direction == "i2t" else candidates) + part.images.start
    caption = (candidates if direction == "i2t" else at) + part.captions.start
    image_ids, caption_ids = pa.array(captions.image_ids, pa.string()), pa.array(captions.caption_ids, pa.string())
    names = [image_ids.take(pa.array(image)), caption_ids.take(pa.array(caption))]
    query, candidate = names if direction == "i2t" else names[::-1]
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(at), np.int8)), pa.array([direction])),
        query,
        pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
        candidate,
        pa.array(found.scores.reshape(-1)),
        pa.array(np.asarray(captions.caption_image)[caption] == image),
    ]
    return pa.table(columns, schema=RETRIEVED_SCHEMA)
