"""The precomputed trees of SCAN, VSRN and VSE-infinity: captions, ids and region features of a split.

    {split}_caps.txt       a caption a line, the captions of one image together
    {split}_ims.npy        float32 (N, K, C), or (5N, K, C) with every image five times
    {split}_ids.txt        an image id a line, one for each image or one for each caption
    {split}_boxes.npy      (N, K, 4), optional: x1, y1, x2, y2 in pixels
    {split}_img_sizes.npy  (N, 2), optional: width, height
    ../id_mapping.json     image id to file name below ../images, optional
    {split}_capids.txt     caption ids, optional, here or in ../cxc_annots

An image has five captions where captions and images differ in number, else one (the originals' `im_div`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionBuilder, CaptionRequest, CaptionSet, require_splits
from xmatch.errors import InputError

CAPTIONS_PER_IMAGE = 5
DEV_CAPTIONS = 5_000
"""Captions of the split `dev` that the originals use: the first 1,000 images."""
BLOCKS_COMPARED = 8


class Precomp(NamedTuple):
    """A split of a precomputed tree: N images, K regions of C numbers each; every image once.

    regions: (N, K, C) float32, memory-mapped, or null where the split has no features.
    boxes: (N, K, 4), pixels, or null. sizes: (N, 2), width and height, or null. Both memory-mapped.
    """

    captions: CaptionSet
    regions: npt.NDArray[np.floating] | None
    boxes: npt.NDArray[np.floating] | None
    sizes: npt.NDArray[np.number] | None


class SplitPlan(NamedTuple):
    """How the rows of a split's files belong together: image i is row i * row_stride of the features."""

    num_images: int
    captions_per_image: int
    row_stride: int
    image_ids: list[str]


def precomp_splits(folder: str) -> list[str]:
    """Names of the splits in a folder: those with a `{split}_caps.txt`."""
    names = [path.rsplit("/", 1)[-1] for path in files.list_files(folder, "_caps.txt")]
    return [name.removesuffix("_caps.txt") for name in names]


def read_precomp(
    folder: str,
    split: str,
    *,
    original: bool = True,
    images: str | None = None,
    fetch: Callable[[str], str] = files.local_copy,
) -> Precomp:
    """A split with its features, which are not read before they are used.

    Args:
        folder: a folder or URI as above, such as data/coco_precomp.
        split: train, dev, test or testall.
        original: take the first 1,000 images of `dev`, as the originals do; false: all of them.
        images: folder of the images that `id_mapping.json` names; null: `images` beside that file.
        fetch: gives a local file with the content of a URI, and a local path as it is; arrays are mapped there.

    Raises:
        InputError: a file is missing, broken, or of another shape, or counts differ; names both files and counts.
    """
    require_splits([split], precomp_splits(folder), folder)
    stem = os.path.join(folder, split)
    features = _map_array(f"{stem}_ims.npy", fetch)
    captions = _read_captions(f"{stem}_caps.txt")
    plan = plan_split(len(captions), _read_ids(f"{stem}_ids.txt"), features, stem)
    if split == "dev" and original:
        plan = _first_images(plan, DEV_CAPTIONS // plan.captions_per_image)
    regions = features
    if features is not None:
        regions = (features if features.ndim == 3 else features[:, None])[:: plan.row_stride][: plan.num_images]
    rows = None if features is None else len(features)
    return Precomp(
        _caption_set(stem, captions, plan, images),
        regions,
        _side_array(_map_array(f"{stem}_boxes.npy", fetch), f"{stem}_boxes.npy", plan, rows, regions, 3, 4),
        _side_array(_map_array(f"{stem}_img_sizes.npy", fetch), f"{stem}_img_sizes.npy", plan, rows, None, 2, 2),
    )


def read_precomp_captions(request: CaptionRequest) -> CaptionSet:
    """The captions of a tree whose `id_mapping.json` says where the photographs are.

    Raises:
        InputError: as `read_precomp`; or there is no such mapping.
    """
    builder = CaptionBuilder()
    for split in request.splits:
        found = read_precomp(request.captions, split, images=request.images or None).captions
        if not all(found.image_paths):
            raise InputError(
                f"{request.captions!r} has no id_mapping.json in it or beside it, so its images cannot be found; "
                "expected one from image id to file name. Train on its features instead, or add the file."
            )
        start = 0
        for row, path in enumerate(found.image_paths):
            stop = start + len(found.captions) // len(found.image_paths)
            texts = list(zip(found.caption_ids[start:stop], found.captions[start:stop], strict=True))
            builder.add(found.image_ids[row], path, texts)
            start = stop
        for message in found.first_bad:
            builder.refuse(message)
        builder.bad_rows += found.bad_rows - len(found.first_bad)
    return builder.build()


def plan_split(
    num_captions: int, ids: Sequence[str] | None, features: npt.NDArray[np.floating] | None, stem: str
) -> SplitPlan:
    """Which captions, ids and rows of features belong together.

    Args:
        num_captions: M.
        ids: one for each image or each caption, or null.
        features: (N, ...) or (5N, ...), or null.
        stem: path before `_caps.txt`, for messages.

    Raises:
        InputError: the counts fit no convention, or an id repeats.
    """
    if ids is None and features is None:
        raise InputError(f"{stem}_ids.txt and {stem}_ims.npy are both missing; expected at least one of them.")
    if ids is not None and len(ids) == num_captions and _is_fivefold(np.asarray(ids)):
        ids = ids[::CAPTIONS_PER_IMAGE]
    if ids is not None:
        num_images = len(ids)
    else:
        assert features is not None, "one of the two is there"
        is_redundant = len(features) == num_captions and _is_fivefold(features)
        num_images = len(features) // (CAPTIONS_PER_IMAGE if is_redundant else 1)
        ids = [str(row) for row in range(num_images)]
    _require_counts(num_captions, num_images, features, stem)
    if len(set(ids)) != len(ids):
        repeated = next(name for row, name in enumerate(ids) if name in ids[:row])
        raise InputError(f"{stem}_ids.txt: image id {repeated!r} repeats; expected each image once.")
    stride = 1 if features is None else len(features) // num_images
    return SplitPlan(num_images, num_captions // num_images, stride, list(ids))


def _require_counts(num_captions: int, num_images: int, features: npt.NDArray[np.floating] | None, stem: str) -> None:
    """Check that captions, images and features, (N, ...) or (M, ...), may belong together."""
    if not num_images or num_captions not in (num_images, CAPTIONS_PER_IMAGE * num_images):
        raise InputError(
            f"{stem}_caps.txt has {num_captions} captions for {num_images} images; expected one or five each. The "
            "files are of different splits, or one is truncated."
        )
    if features is not None and len(features) not in (num_images, num_captions):
        raise InputError(
            f"{stem}_ims.npy has {len(features)} rows for the {num_images} images of {stem}_ids.txt; expected one "
            "for each image, or one for each caption. Take both files from one split."
        )


def _is_fivefold(rows: npt.NDArray[np.generic]) -> bool:
    """Whether every row comes five times in a row; of (R, ...) features only blocks spread over them are compared."""
    if len(rows) == 0 or len(rows) % CAPTIONS_PER_IMAGE:
        return False
    blocks = np.unique(np.linspace(0, len(rows) // CAPTIONS_PER_IMAGE - 1, BLOCKS_COMPARED).astype(np.int64))
    if rows.ndim == 1:
        blocks = np.arange(len(rows) // CAPTIONS_PER_IMAGE)
    starts = (int(block) * CAPTIONS_PER_IMAGE for block in blocks)
    return all(bool((rows[start : start + CAPTIONS_PER_IMAGE] == rows[start]).all()) for start in starts)


def _first_images(plan: SplitPlan, count: int) -> SplitPlan:
    return plan._replace(num_images=min(count, plan.num_images), image_ids=plan.image_ids[:count])


def _caption_set(stem: str, captions: list[str], plan: SplitPlan, images: str | None) -> CaptionSet:
    """Captions in place, also blank ones, which are counted: leaving one out would shift all after it."""
    caption_ids = _read_caption_ids(stem, len(captions))
    mapping, folder = _read_mapping(stem, images)
    builder = CaptionBuilder()
    for row, image_id in enumerate(plan.image_ids):
        if mapping is not None and not isinstance(mapping.get(image_id), str):
            raise InputError(f"{folder!r}: id_mapping.json has no file name for image {image_id!r} of {stem}_ids.txt.")
        start = row * plan.captions_per_image
        texts = captions[start : start + plan.captions_per_image]
        ids = [caption_ids[start + i] if caption_ids else f"{image_id}:{i}" for i in range(len(texts))]
        path = files.join(folder, mapping[image_id]) if mapping is not None else ""
        builder.add(image_id, path, list(zip(ids, texts, strict=True)))
        for i, text in enumerate(texts):
            if not text:
                builder.refuse(f"{stem}_caps.txt, line {start + i + 1}: the caption is blank; it keeps its place")
    if mapping is not None:
        files.require_inside(folder, builder.image_paths)
    return builder.build()


def _read_captions(path: str) -> list[str]:
    return [line.strip() for line in _lines(path)]


def _read_ids(path: str) -> list[str] | None:
    if not files.exists(path):
        return None
    ids = [line.strip() for line in _lines(path)]
    if "" in ids:
        raise InputError(f"{path!r}, line {ids.index('') + 1}: expected an image id, got a blank line.")
    return ids


def _lines(path: str) -> list[str]:
    text = files.read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _read_caption_ids(stem: str, num_captions: int) -> list[str] | None:
    folder, split = os.path.split(stem)
    for place in (folder, os.path.join(_above(folder), "cxc_annots")):
        path = os.path.join(place, f"{split}_capids.txt")
        ids = _read_ids(path)
        if ids is not None and len(ids) != num_captions:
            raise InputError(f"{path!r} has {len(ids)} ids, but {stem}_caps.txt has {num_captions} captions.")
        if ids is not None:
            return ids
    return None


def _read_mapping(stem: str, images: str | None) -> tuple[dict[str, str] | None, str]:
    """File name by image id and the folder that they are in; null where the tree has no mapping."""
    folder = os.path.dirname(stem)
    for place in (folder, _above(folder)):
        path = os.path.join(place, "id_mapping.json")
        if files.exists(path):
            mapping = files.read_json(path)
            if not isinstance(mapping, dict):
                raise InputError(f"{path!r}: expected an object from image id to file name.")
            return mapping, images or os.path.join(place, "images")
    return None, ""


def _above(folder: str) -> str:
    """The folder that a folder or URI lies in."""
    return folder.rstrip("/").rpartition("/")[0] if files.is_uri(folder) else os.path.dirname(os.path.abspath(folder))


def _map_array(path: str, fetch: Callable[[str], str]) -> npt.NDArray[np.floating] | None:
    """Numbers (R, C) or (R, K, C) on disk, memory-mapped; null where there is no such file."""
    if not files.exists(path):
        return None
    local = fetch(path)
    try:
        found: npt.NDArray[np.floating] = np.load(local, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path!r} is not a whole array of numbers: {error}. Copy it again; an array of Python objects is refused."
        ) from error
    if found.ndim not in (2, 3) or found.dtype.kind not in "fiu":
        raise InputError(f"{path!r}: expected numbers of two or three axes, got {found.dtype} {found.shape}.")
    return found


def _side_array(
    found: npt.NDArray[np.floating] | None,
    path: str,
    plan: SplitPlan,
    feature_rows: int | None,
    regions: npt.NDArray[np.floating] | None,
    axes: int,
    width: int,
) -> npt.NDArray[np.floating] | None:
    """Boxes (N, K, 4) or sizes (N, 2) of the planned images, of a file with as many rows as features, or as images."""
    if found is None:
        return None
    if found.ndim != axes or found.shape[-1] != width:
        raise InputError(f"{path!r}: expected {axes} axes, the last of {width} numbers, got {found.shape}.")
    all_images = len(found) // plan.row_stride if len(found) == feature_rows else len(found)
    if feature_rows is not None and all_images != feature_rows // plan.row_stride:
        raise InputError(f"{path!r} has {len(found)} rows, but the split's features have {feature_rows}.")
    if regions is not None and found.shape[1] != regions.shape[1]:
        raise InputError(f"{path!r} has {found.shape[1]} boxes an image, but there are {regions.shape[1]} regions.")
    stride = plan.row_stride if len(found) == feature_rows else 1
    return found[::stride][: plan.num_images]
