"""What is measured: the scores of one model, of ready embeddings, or of a saved matrix; several are an ensemble.

Each becomes a `Member` over one gallery of N images and M captions. Embeddings come as banks (one `.arrow` file or a
folder of them), which are put in the gallery's order by id, or as `.npy` in the order of the gallery.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.vectors import SUFFIX, matrix, read_vectors
from xmatch.errors import InputError
from xmatch.evaluation.original_results import open_original
from xmatch.evaluation.similarities import (
    EmbeddingSimilarities,
    EnsembleSimilarities,
    MatrixSimilarities,
    Similarities,
    holds_pickle,
    open_similarities,
)
from xmatch.evaluation.view_similarities import Images, across, among_images, chosen_views, view_rows
from xmatch.search.grouped import groups_of

LINE_ID = "line-"
"""Ids of a bank of texts that jobs/embed.py made: line-0, line-1 …"""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsConfig:
    """Ready embeddings of the split's images and captions; several of each, in the same order, form an ensemble."""

    images: list[str] | str = ""
    """Image embeddings: banks of embed --side image, matched by id (by group, where images have several views), or .npy
    in the order of the split; one or more."""
    texts: list[str] | str = ""
    """Caption embeddings of the same models: banks of embed --side text, or .npy, in the order of the captions."""

    def __post_init__(self) -> None:
        """Both sides of every member are needed."""
        images, texts = places(self.images), places(self.texts)
        if len(images) != len(texts):
            raise InputError(
                f"embeddings.images names {len(images)} and embeddings.texts {len(texts)}; give one of each per model."
            )


class Member(NamedTuple):
    """One member of an ensemble, or the only one.

    Attributes:
        kind: what it was read from.
        place: model, files or folder, as given.
        across: scores of (N images, M captions).
        embeddings: (N, D) of images, or several vectors an image in parts, and (M, D) of captions; None for a saved
            matrix, which has nothing within a kind.
        hashes: SHA-256 of what it was read from.
    """

    kind: Literal["model", "embeddings", "similarity"]
    place: str
    across: Similarities
    embeddings: tuple[Images, npt.NDArray[np.floating]] | None
    hashes: dict[str, str]


def places(given: list[str] | str) -> list[str]:
    """One place, several joined by commas, or a list, as a list."""
    listed = given.split(",") if isinstance(given, str) else given
    return [place.strip() for place in listed if place.strip()]


def ensemble(sources: Sequence[Similarities]) -> Similarities:
    """The only source itself, or the mean of several."""
    return sources[0] if len(sources) == 1 else EnsembleSimilarities(sources)


def within(members: Sequence[Member], side: Literal["images", "texts"]) -> Similarities | None:
    """Scores of images with images, or of captions with captions; None if a member has no embeddings.

    Two images of several views have the score of the best pair of views.
    """
    sources: list[Similarities] = []
    for member in members:
        if member.embeddings is None:
            return None
        images, texts = member.embeddings
        sources.append(among_images(images) if side == "images" else EmbeddingSimilarities(texts, texts))
    return ensemble(sources)


def embeddings_member(images: str, texts: str, gallery: CaptionSet) -> Member:
    """A member of ready embeddings.

    Args:
        images: bank or `.npy` of N image embeddings; an `.npy` may have each image once per caption, as the originals
            keep them, or V views of each image (N, V, D).
        texts: bank or `.npy` of M caption embeddings.
        gallery: the split.

    Raises:
        InputError: a file is broken, counts or widths differ, or ids do not match.
    """
    image_side = image_rows(images, gallery)
    text_rows = _text_rows(texts, gallery)
    hashes = {"images": place_sha256(images), "texts": place_sha256(texts)}
    source = across(image_side, text_rows)
    return Member("embeddings", f"{images}, {texts}", source, (source.images, source.texts), hashes)


def similarity_member(path: str, gallery: CaptionSet, folder: str) -> Member:
    """A member of a saved similarity matrix, memory-mapped.

    Args:
        path: `.npy` of (N, M); or (M, N), taken transposed; or (M, M), every image once per caption; or what the
            originals save, a pickled {"npts", "sims"}, mapped where it lies or else made plain once, in `folder`.
        gallery: the split.
        folder: local folder for that plain copy.

    Raises:
        InputError: it is broken, or its shape does not fit the split.
    """
    digest = place_sha256(path)
    found = open_original(path, folder, digest[:16]) if holds_pickle(path) else open_similarities(path)
    source = _oriented(found, gallery, path)
    return Member("similarity", path, source, None, {"similarity": digest})


def _oriented(source: MatrixSimilarities, gallery: CaptionSet, path: str) -> Similarities:
    images, captions = len(gallery.image_ids), len(gallery.captions)
    if source.shape == (images, captions):
        return source
    view = source.matrix
    if source.shape == (captions, images):
        view = view.T
    elif source.shape == (captions, captions):
        view = view[_first_captions(gallery)] if not _is_regular(gallery) else view[:: captions // images]
    else:
        raise InputError(
            f"{path!r} has the shape {source.shape}, but the split has {images} images and {captions} captions; "
            f"expected ({images}, {captions}). Give the split that it was computed on."
        )
    return MatrixSimilarities(view, source.name, source.mapping)


def _is_regular(gallery: CaptionSet) -> bool:
    """Whether each image has the same number of captions, one image after the other."""
    images, captions = len(gallery.image_ids), len(gallery.captions)
    return captions % images == 0 and bool(
        np.array_equal(gallery.caption_image, np.repeat(np.arange(images), captions // images))
    )


def _first_captions(gallery: CaptionSet) -> npt.NDArray[np.int64]:
    """Row of each image's first caption, of shape (N,)."""
    return np.unique(gallery.caption_image, return_index=True)[1]


def image_rows(path: str, gallery: CaptionSet) -> Images:
    """The images of a split from a bank, or from an `.npy` in its order; in parts where they have several views.

    Raises:
        InputError: the file is broken, or lacks an image.
    """
    if not path.endswith(".npy"):
        return _from_bank(read_vectors(path), gallery, path)
    rows = _load_npy(path, axes=(2, 3))
    images, captions = len(gallery.image_ids), len(gallery.captions)
    if rows.ndim == 3:
        return view_rows(_require_rows(rows, images, path, "image"))
    if len(rows) == captions != images:
        once = rows[_first_captions(gallery)]
        differing = np.flatnonzero((rows != once[gallery.caption_image]).any(1))
        if len(differing):
            raise InputError(
                f"{path!r} has a row for each of {captions} captions, but row {differing[0]} is not that of its "
                f"image's first caption; expected one row per image, {images}, or every image repeated."
            )
        return once
    return _require_rows(rows, images, path, "image")


def _text_rows(path: str, gallery: CaptionSet) -> npt.NDArray[np.floating]:
    """Embeddings (M, D) of the captions, in their order."""
    if path.endswith(".npy"):
        return _require_rows(_load_npy(path), len(gallery.captions), path, "caption")
    bank = read_vectors(path)
    ids = bank.column("id").to_pylist()
    if all(one.startswith(LINE_ID) for one in ids):  # lines of a file: the order of the captions
        return _require_rows(matrix(bank), len(gallery.captions), path, "caption")
    return _by_id(bank, gallery.caption_ids, path, "caption")


def _from_bank(bank: pa.Table, gallery: CaptionSet, path: str) -> Images:
    groups = groups_of(bank)
    if not groups.have_views:
        return _by_id(bank, gallery.image_ids, path, "image")
    places = _places(groups.names.to_pylist(), gallery.image_ids, path, "image")
    order = np.argsort(groups.of_rows, kind="stable")
    starts, sizes = np.cumsum(groups.sizes) - groups.sizes, groups.sizes
    odd = np.flatnonzero(sizes[places] != sizes[places[0]])
    if len(odd):
        raise InputError(
            f"{path!r} has {sizes[places[odd[0]]]} vectors of image {gallery.image_ids[odd[0]]!r} and "
            f"{sizes[places[0]]} of {gallery.image_ids[0]!r}; expected the same number for each. Embed them again."
        )
    return chosen_views(matrix(bank), order[starts[places][:, None] + np.arange(sizes[places[0]])])


def _by_id(bank: pa.Table, wanted: Sequence[str], path: str, kind: str) -> npt.NDArray[np.floating]:
    """The bank's rows (R, D) in the order of R `wanted`."""
    rows: npt.NDArray[np.floating] = matrix(bank)[_places(bank.column("id").to_pylist(), wanted, path, kind)]
    return rows


def _places(ids: list[str], wanted: Sequence[str], path: str, kind: str) -> npt.NDArray[np.int64]:
    """Where each of `wanted` is among ids, of shape (R,); ids may carry their set's name, as SET/ID."""
    row_of = {one.split("/", 1)[-1]: row for row, one in enumerate(ids)} | {one: row for row, one in enumerate(ids)}
    missing = [one for one in wanted if one not in row_of]
    if missing:
        raise InputError(
            f"{path!r} has no embedding of {kind} {missing[0]!r} ({len(missing)} of {len(wanted)} are missing; its own "
            f"{len(ids)} ids are such as {ids[0] if ids else 'none'!r}). Embed the {kind}s of this split, all of them."
        )
    return np.array([row_of[one] for one in wanted], np.int64)


def _load_npy(path: str, axes: tuple[int, ...] = (2,)) -> npt.NDArray[np.floating]:
    """A memory-mapped .npy of floating point, (R, D) or of other `axes`."""
    if files.is_uri(path):
        path = files.local_copy(path)
    if not os.path.exists(path):
        raise InputError(f"{path!r} does not exist; expected a .npy file of embeddings there.")
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path!r} is not a whole .npy of numbers: {error}. Save it again with numpy.save.") from error
    if found.ndim not in axes or found.dtype.kind != "f":
        raise InputError(f"{path!r} is {found.dtype} of shape {found.shape}; expected (rows, width) of floating point.")
    rows: npt.NDArray[np.floating] = found
    return rows


def _require_rows(rows: npt.NDArray[np.floating], count: int, path: str, kind: str) -> npt.NDArray[np.floating]:
    """The rows (R, ...) given, once R is known to be `count`."""
    if len(rows) != count:
        raise InputError(
            f"{path!r} has {len(rows)} rows, but the split has {count} {kind}s; expected one row for each, in the "
            "order of the captions file. Give the split that was embedded."
        )
    return rows


def place_sha256(path: str) -> str:
    """SHA-256 in hexadecimal of a file, or over the names and hashes of a bank's files."""
    if not files.is_folder(path):
        return files.sha256(path)
    parts = files.list_files(path, SUFFIX) or files.list_files(files.join(path, "shards"), SUFFIX)
    return files_sha256(parts)


def files_sha256(paths: Sequence[str]) -> str:
    """SHA-256 in hexadecimal over the names and contents of several files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.rsplit('/', 1)[-1]} {files.sha256(path)}\n".encode())
    return digest.hexdigest()
