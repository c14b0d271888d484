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
from xmatch.evaluation.measures import Part, Request
from xmatch.search import build_searcher
from xmatch.search.exact import SearchResult

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


def joined_embeddings(request: Request) -> tuple[Float32, Float32] | None:
    """Embeddings whose inner products are the members' mean scores: side by side, the images' divided by the members.

    Returns:
        (N, D) of images and (M, D) of captions, D summed over members; None where a member is a saved matrix.
    """
    pairs = [member.embeddings for member in request.members]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    images: Float32 = np.concatenate([np.asarray(pair[0], np.float32) for pair in found], 1)
    texts: Float32 = np.concatenate([np.asarray(pair[1], np.float32) for pair in found], 1)
    if len(found) > 1:
        images /= np.float32(len(found))
    return images, texts


def retrieved_table(request: Request, parts: Sequence[Part], k: int, threads: int = 1) -> pa.Table | None:
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
    images, texts = embeddings
    tables = []
    for direction in ("i2t", "t2i"):
        for part in parts:
            sides = (images[part.images], texts[part.captions])
            queries, keys = sides if direction == "i2t" else sides[::-1]
            found = build_searcher(np.ascontiguousarray(keys), threads=threads).search(queries, min(k, len(keys)))
            tables.append(_rows(request.captions, part, direction, found))
    return pa.concat_tables(tables)


def _rows(captions: CaptionSet, part: Part, direction: str, found: SearchResult) -> pa.Table:
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
