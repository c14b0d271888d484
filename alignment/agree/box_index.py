"""Boxes by phrase and by image, as arrays: millions of them cost no objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.entities.entity_tables import Box

Numbers = npt.NDArray[np.int64]


class BoxIndex:
    """The boxes of a table; those of one phrase in one image are a group.

    Args:
        table: of BOX_SCHEMA.
    """

    def __init__(self, table: pa.Table) -> None:
        self._phrases, phrase = _coded(table, "phrase")
        self._images, image = _coded(table, "image_id")
        self.image_ids: list[str] = list(self._images)
        order = np.lexsort((image, phrase))  # stable: boxes of a group keep the table's order
        phrase, image = phrase[order], image[order]
        self._table, self._order = table.combine_chunks(), order
        is_first = np.ones(len(order), bool)
        is_first[1:] = (phrase[1:] != phrase[:-1]) | (image[1:] != image[:-1])
        self._starts = np.flatnonzero(is_first)
        self._stops = np.append(self._starts[1:], len(order))
        self._group_phrase, self._group_image = phrase[is_first], image[is_first]
        self._of_phrase = np.searchsorted(self._group_phrase, np.arange(len(self._phrases) + 1))
        self._by_image = np.argsort(self._group_image, kind="stable")
        self._of_image = np.searchsorted(self._group_image[self._by_image], np.arange(len(self._images) + 1))
        self.phrases: list[str] = list(self._phrases)

    def images_of(self, phrase: str, but: str = "") -> Numbers:
        """Places in `image_ids` of the images that show a phrase, but for the image `but`; none of an unknown one."""
        code = self._phrases.get(phrase)
        if code is None:
            return np.zeros(0, np.int64)
        images = self._group_image[self._of_phrase[code] : self._of_phrase[code + 1]]
        return images[images != self._images[but]] if but in self._images else images

    def phrases_of(self, image_id: str) -> list[str]:
        """What an image shows, in the order in which the table first names it."""
        code = self._images.get(image_id)
        if code is None:
            return []
        groups = self._by_image[self._of_image[code] : self._of_image[code + 1]]
        return [self.phrases[at] for at in self._group_phrase[groups]]

    def has(self, image_id: str, phrase: str) -> bool:
        """Whether an image has a box of a phrase."""
        return self._group(image_id, phrase) is not None

    def boxes(self, image_id: str, phrase: str) -> list[Box]:
        """The boxes of a phrase in an image, in the table's order."""
        group = self._group(image_id, phrase)
        if group is None:
            return []
        rows = self._order[self._starts[group] : self._stops[group]]
        return [Box(**row) for row in self._table.take(rows).to_pylist()]

    def _group(self, image_id: str, phrase: str) -> int | None:
        image, code = self._images.get(image_id), self._phrases.get(phrase)
        if image is None or code is None:
            return None
        first, last = self._of_phrase[code], self._of_phrase[code + 1]
        group = int(first + np.searchsorted(self._group_image[first:last], image))
        return group if group < last and self._group_image[group] == image else None


def _coded(table: pa.Table, name: str) -> tuple[dict[str, int], Numbers]:
    """The values of a text column in order of their first row, with their codes; and the code of each row."""
    column = table.column(name).combine_chunks()
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    return {value: code for code, value in enumerate(values)}, encoded.indices.to_numpy().astype(np.int64)
