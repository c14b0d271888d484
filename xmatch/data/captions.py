"""Captioned image sets in every published form, found out by their place and content."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionRequest, CaptionSet
from xmatch.data.caption_forms.json_forms import read_coco, read_karpathy, read_lxmert
from xmatch.data.caption_forms.packed_forms import read_parquet_captions, read_webdataset
from xmatch.data.caption_forms.tsv_form import read_conceptual
from xmatch.data.packed_images import split_packed
from xmatch.data.precomp import read_precomp_captions
from xmatch.errors import InputError

__all__ = ["FORMS", "CaptionSet", "form_of", "read_captions"]

FORMS: dict[str, Callable[[CaptionRequest], CaptionSet]] = {
    "karpathy": read_karpathy,
    "lxmert": read_lxmert,
    "coco": read_coco,
    "conceptual": read_conceptual,
    "precomp": read_precomp_captions,
    "webdataset": read_webdataset,
    "parquet": read_parquet_captions,
}


def read_captions(captions: str, images: str, split: str, source: str = "mscoco") -> CaptionSet:
    """Captions of a file or folder, whichever of the known forms it has.

    Args:
        captions: Karpathy, LXMERT or COCO captions JSON; a Conceptual Captions .tsv; a precomputed folder with
            `{split}_caps.txt`; .tar or .parquet files, as one file, a folder, or a glob.
        images: folder of the images; not used where the form holds them.
        split: of a Karpathy file, a precomputed folder or a Parquet `split` column, or several joined by commas
            ("train,restval"); the others have none and take all.
        source: language source of a LXMERT file.

    Raises:
        InputError: the form is unknown, it is empty, lacks the split, or names images that are not there or lead out
            of their folder.
    """
    form, content = form_of(captions)
    splits = [name.strip() for name in split.split(",")]
    found = FORMS[form](CaptionRequest(captions, images, splits, source, content))
    if not found.captions:
        why = f" All {found.bad_rows} rows are bad; the first: {found.first_bad[0]}." if found.bad_rows else ""
        raise InputError(f"{captions!r} holds no captions (split {split!r}, source {source!r}).{why} Nothing to read.")
    _require_images(found, images)
    return found


def form_of(captions: str) -> tuple[str, Any]:
    """Name of the form of a caption file or folder, and the content of a JSON form.

    Raises:
        InputError: it has none of the forms; says what they look like.
    """
    for suffix, form in ((".tsv", "conceptual"), (".tar", "webdataset"), (".parquet", "parquet")):
        if captions.endswith(suffix):
            return form, None
    if files.is_folder(captions):
        return _folder_form(captions), None
    content = files.read_json(captions)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return ("coco" if isinstance(content.get("annotations"), list) else "karpathy"), content
    if isinstance(content, list):
        return "lxmert", content
    raise InputError(
        f"{captions!r} is no caption file: expected Karpathy JSON, an object with a list 'images', COCO captions JSON, "
        "which has a list 'annotations' too, or LXMERT JSON, a list of objects with 'img_id' and 'sentf'."
    )


def _folder_form(folder: str) -> str:
    for suffix, form in (("_caps.txt", "precomp"), (".tar", "webdataset"), (".parquet", "parquet")):
        if files.list_files(folder, suffix):
            return form
    raise InputError(f"{folder!r} holds no captions: expected {{split}}_caps.txt, *.tar or *.parquet files in it.")


def _require_images(found: CaptionSet, images: str) -> None:
    """Check that images outside tars and Parquet files are there; those inside were seen when they were read."""
    paths = [path for path in found.image_paths if not split_packed(path)]
    if not paths:
        return
    if images and not files.is_folder(images):
        raise InputError(f"image folder {images!r} does not exist; expected the folder with the captioned images.")
    missing = [path for path in paths if not files.is_uri(path) and not os.path.exists(path)]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(found.image_paths)} captioned images are not there, the first are "
            f"{', '.join(repr(path) for path in missing[:3])}. Check the image folder, or drop them from the captions."
        )
    if images:
        files.require_inside(images, paths)
