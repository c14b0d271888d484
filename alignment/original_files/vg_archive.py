"""AGREE's `VG.tgz`: images of Visual Genome, copies with an object masked, and a list of both by the object's name."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from alignment.original_files.image_arrays import Arrays
from alignment.original_files.json_lines import read_lines
from alignment.original_files.objects import region_table
from xmatch.data import files
from xmatch.errors import InputError

IMAGES, MASKED, NAMES = "VG_images.224.npz", "VG_mask_images.224.npz", "vocab_VG_images_objs.jsonl"
PARTS = (IMAGES, MASKED, NAMES)


class VgArchive(NamedTuple):
    """The parts of the archive.

    Attributes:
        images: named by Visual Genome's ids.
        masked: named `{object}_{image}`.
        regions: table of REGION_SCHEMA.
    """

    images: Arrays
    masked: Arrays
    regions: pa.Table


@contextmanager
def open_vg(place: str) -> Iterator[VgArchive]:
    """The archive, packed, or as the folder it was unpacked to.

    Of a packed one the three parts alone are unpacked, into a temporary folder for as long as the block runs.

    Raises:
        InputError: a part is missing or broken; names it.
    """
    if files.is_folder(place):
        yield _opened(place)
        return
    with tempfile.TemporaryDirectory(prefix="vg-") as folder:
        _unpack(files.local_copy(place), folder)
        yield _opened(folder, place)


def _opened(folder: str, place: str = "") -> VgArchive:
    paths = {name: files.join(folder, name) for name in PARTS}
    missing = [name for name, path in paths.items() if not files.exists(path)]
    if missing:
        raise InputError(f"{place or folder!r} holds no {missing[0]!r}; expected {', '.join(PARTS)} in it.")
    images, masked = (Arrays(paths[name], f"{place or folder}/{name}") for name in (IMAGES, MASKED))
    return VgArchive(images, masked, region_table(read_lines(paths[NAMES]), paths[NAMES]))


def _unpack(path: str, folder: str) -> None:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                source = archive.extractfile(member) if name in PARTS and member.isfile() else None
                if source is not None:
                    with open(os.path.join(folder, name), "wb") as sink:
                        shutil.copyfileobj(source, sink)
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected VG.tgz, or the folder of its parts.") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path!r} is no whole tar archive: {error}. It may be cut short; copy it again.") from error
