"""Pairs of text and image as MVPTR reads them, under the names of the original's data set."""

from __future__ import annotations

from typing import Any, Protocol

from torch.utils.data import Dataset
from transformers import AutoTokenizer

from alignment.mvptr.config import Lengths
from alignment.mvptr.model import Inputs
from alignment.mvptr.phrase_extraction import read_pairs
from alignment.mvptr.phrase_vocabulary import read_vocabulary
from alignment.mvptr.regions.region_tsv import TsvRegions
from alignment.mvptr.regions.table import RegionTable, is_table, wrong_width
from alignment.mvptr.tensorize import plain_ids, tag_text, tensorize
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError
from xmatch.models.staging import local_folder


class Regions(Protocol):
    """Regions of images by id: a RegionTable, or a TsvRegions."""

    place: str

    def __contains__(self, image_id: str) -> bool:
        """Whether there are regions of an image."""
        ...

    def take(self, image_id: str) -> ImageRegions:
        """The regions of an image."""
        ...

    def where(self, image_id: str) -> str:
        """File and row of an image, for messages."""
        ...


def open_regions(place: str) -> Regions:
    """Regions by image: a table of regions, or MVPTR's `predictions.tsv`.

    Raises:
        InputError: it is not there, or broken.
    """
    return RegionTable(place) if is_table(place) else TsvRegions(place)


class MVPTRDataset(Dataset[tuple[int, Inputs]]):
    """Pairs of text and image with phrases, ready for an MVPTR.

    `dataset[index]` is the index and the seven tensors of `alignment.mvptr.model.Inputs`; torch's default collation
    makes batches of them. token_type_ids_b has max_tag_length places, as the original's program gives and reads it: its
    page speaks of max_tag_length + max_img_seq_length.

    Args:
        tokenizer_path: the model's tokenizer, folder or hub name.
        img_feat_file: `predictions.tsv` with its `.lineidx` and `imageid2idx.json`, or a table of regions.
        input_data: JSON list of objects with `text`, `image_id`, `phrases` and `label` (jobs/extract_phrases.py).
        id2phrase: JSON of the vocabulary of phrases.
        max_seq_length: places of tokens, [CLS] and [SEP] included.
        max_img_seq_length: places of regions.
        max_tag_length: places of tags, [CLS] and [SEP] included.
        max_phrases: places of phrases behind the tokens.
        region_width: numbers a region that the model reads; none: what the first image has.
        vocab_size: rows of the model's embeddings, which no id of a phrase may pass; none: not checked.

    Raises:
        InputError: a file is broken, an image has no regions, or an id is out of range; names file and row.
    """

    def __init__(
        self,
        tokenizer_path: str,
        img_feat_file: str,
        input_data: str,
        id2phrase: str,
        max_seq_length: int = 30,
        max_img_seq_length: int = 50,
        max_tag_length: int = 20,
        max_phrases: int = 5,
        *,
        region_width: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(local_folder(tokenizer_path, "tokenizer"), use_fast=True)
        self.lengths = Lengths(
            text=max_seq_length, phrases=max_phrases, tags=max_tag_length, regions=max_img_seq_length
        )
        self.input_data, self.regions = input_data, open_regions(img_feat_file)
        self.data = read_pairs(input_data)
        self.vocabulary = read_vocabulary(id2phrase, words=len(self.tokenizer), rows=vocab_size)
        for row, pair in enumerate(self.data):
            _check(pair, f"{input_data!r}, row {row}", self.regions)
        self.region_width = region_width or self.regions.take(str(self.data[0]["image_id"])).features.shape[1]

    def __len__(self) -> int:
        return len(self.data)

    def get_label(self, index: int) -> Any:
        """The label of a pair.

        Raises:
            InputError: it has none.
        """
        if "label" not in self.data[index]:
            raise InputError(f"{self.input_data!r}, row {index}: no label.")
        return self.data[index]["label"]

    def __getitem__(self, index: int) -> tuple[int, Inputs]:
        """The index, and the tensors of the pair.

        Raises:
            InputError: the regions have another width, or their line is broken; names the file.
        """
        pair = self.data[index]
        image = self.regions.take(str(pair["image_id"]))
        if image.features.shape[1] != self.region_width:
            where = self.regions.where(image.image_id)
            raise InputError(wrong_width(where, image.features.shape[1], self.region_width))
        tensors = tensorize(
            plain_ids(self.tokenizer, pair["text"]),
            self.vocabulary.ids(pair["phrases"]),
            plain_ids(self.tokenizer, tag_text(image.tags)),
            image.features,
            self.lengths,
            cls=self.tokenizer.cls_token_id,
            sep=self.tokenizer.sep_token_id,
        )
        return index, tensors


def _check(pair: dict[str, Any], where: str, regions: Regions) -> None:
    phrases = pair.get("phrases")
    if not isinstance(phrases, list) or not all(isinstance(one, list) for one in phrases):
        raise InputError(f"{where}: expected a list of phrases, got {phrases!r:.60}; jobs/extract_phrases.py makes it.")
    if str(pair["image_id"]) not in regions:
        raise InputError(f"{where}: image {pair['image_id']!r} has no regions in {regions.place!r}.")
