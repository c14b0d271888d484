"""Conceptual Captions: a TSV of caption and image name."""

from __future__ import annotations

import os

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionBuilder, CaptionRequest, CaptionSet
from xmatch.data.image_sets import image_path
from xmatch.errors import InputError


def read_conceptual(request: CaptionRequest) -> CaptionSet:
    """Conceptual Captions as Vokenization lays it out: lines `caption TAB image name`, no header.

    Images lie flat in the folder, or in images/{training,validation}/ below it (the set's path rule). Lines without
    two fields, without a caption, or whose local image is not there are counted as bad rows: many of the set's links
    are dead, so a download is never complete.

    Raises:
        InputError: an image name leaves the folder, or is a link instead of a name; names file and line.
    """
    where, images = request.captions, request.images
    is_ruled = files.is_folder(files.join(images, "images"))
    builder = CaptionBuilder()
    for row, line in enumerate(files.read_text(where).split("\n")):
        line = line.removesuffix("\r")
        if not line:
            continue
        caption, _, name = line.partition("\t")
        caption, name = caption.strip(), name.strip()
        if not caption or not name or "\t" in name:
            builder.refuse(f"{where!r}, line {row + 1}: expected caption TAB image name, got {line[:80]!r}")
            continue
        path = _image_path(name, images, is_ruled, f"{where!r}, line {row + 1}")
        if not files.is_uri(path) and not os.path.exists(path):
            builder.refuse(f"{where!r}, line {row + 1}: image {path!r} is not there")
            continue
        builder.add_to(name, path, [(f"{name}:{row}", caption)])
    return builder.build()


def _image_path(name: str, images: str, is_ruled: bool, where: str) -> str:
    if files.is_uri(name):
        raise InputError(
            f"{where}: expected the name of a downloaded image, got the link {name!r}. Download the images first, and "
            "write their file names in the second column."
        )
    try:
        return image_path("cc", name, images) if is_ruled else files.join(images, name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
