"""Regions of images from several places, found by the ids that a task's own files have for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignment.mvptr.regions.region_tsv import TsvRegions
from alignment.mvptr.regions.table import RegionTable, is_table, wrong_width
from xmatch.data.image_keys import image_key
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError


class RegionBanks:
    """Regions by image id.

    An id is looked for as it is; else in any spelling that `image_key` knows; else by the number at its end, as the
    original looks for the images of VQA and referring expressions ("COCO_val2014_000000000042" is 42).

    Args:
        places: tables of regions or MVPTR's `predictions.tsv`, the first that has an image counts.
        width: numbers a region that the model reads; none: that of the first table.
        fetch: from a file of a table to where that is read; may give a local copy of a URI.

    Raises:
        InputError: none is given, one is broken, or has another width.
    """

    def __init__(self, places: Sequence[str], width: int | None = None, fetch: Callable[[str], str] = str) -> None:
        if not places:
            raise InputError("no regions are given; name the table of jobs/extract_regions.py, or a predictions.tsv.")
        self.places = list(places)
        self.banks = [RegionTable(one, fetch) if is_table(one) else TsvRegions(one) for one in places]
        self._spelt: dict[str, str | None] = {}
        self.width = width or _width(self.banks[0])
        for bank in self.banks:
            if (found := _width(bank)) != self.width:
                raise InputError(wrong_width(f"{bank.place!r}, row 0", found, self.width))

    def name_of(self, image_id: str) -> str:
        """The id under which an image is kept.

        Raises:
            InputError: it is not there, or several could be meant.
        """
        if any(image_id in bank for bank in self.banks):
            return image_id
        if not self._spelt:
            self._learn_spellings()
        for spelling in _spellings(image_id):
            if spelling in self._spelt:
                found = self._spelt[spelling]
                if found is None:
                    raise InputError(f"image {image_id!r} may be several of those in {self._said()}; rename them.")
                return found
        raise InputError(
            f"{self._said()} has no regions of image {image_id!r}; its ids are such as "
            f"{next(iter(self.banks[0].rows), 'none')!r}. Extract them, or give another place, too, after a comma."
        )

    def _learn_spellings(self) -> None:
        names = dict.fromkeys(name for bank in self.banks for name in bank.rows)
        for name in names:
            for spelling in _spellings(name):
                self._spelt[spelling] = name if self._spelt.get(spelling, name) == name else None

    def _said(self) -> str:
        return ", ".join(map(repr, self.places))

    def names_of(self, image_ids: Sequence[str], where: str) -> list[str]:
        """The ids under which images are kept, all of which must be there.

        Raises:
            InputError: some are not; names `where` and the row of the first.
        """
        known: dict[str, str] = {}
        for row, image_id in enumerate(image_ids):
            if image_id not in known:
                try:
                    known[image_id] = self.name_of(image_id)
                except InputError as error:
                    raise InputError(f"{where!r}, row {row}: {error}") from error
        return [known[image_id] for image_id in image_ids]

    def take(self, name: str) -> ImageRegions:
        """The regions of an image, by the id under which it is kept.

        Raises:
            InputError: it is not there, its line is broken, or its regions have another width.
        """
        bank = next((bank for bank in self.banks if name in bank), self.banks[0])
        found = bank.take(name)
        if found.features.shape[1] != self.width:
            raise InputError(wrong_width(f"{bank.place!r}, image {name!r}", found.features.shape[1], self.width))
        return found


def _width(bank: RegionTable | TsvRegions) -> int:
    if isinstance(bank, RegionTable):
        return bank.width
    if not bank.rows:
        raise InputError(f"{bank.place!r} has no images.")
    return int(bank.take(next(iter(bank.rows))).features.shape[1])


def _spellings(image_id: str) -> list[str]:
    """What else an id may be found by: kinds are told apart by how they begin."""
    key, tail = image_key(image_id), image_id.rsplit(".", 1)[0].rsplit("_", 1)[-1]
    return [*([f"key {key}"] if key else []), *([f"number {int(tail)}"] if tail.isdecimal() else [])]
