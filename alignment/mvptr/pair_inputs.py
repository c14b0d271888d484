"""Samples as the tensors that MVPTR reads: tokenised and looked up when they are asked for, sample by sample.

Shapes: B samples, S + Q text places, T tag places, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import PreTrainedTokenizerBase

from alignment.mvptr.config import Lengths
from alignment.mvptr.model import Inputs
from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.tensorize import cut_pair, plain_ids, stack, tag_text, tensorize
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError

QUESTION = 5
"""Places of the shortest question with its answer: a token each, [CLS] and two [SEP]."""


@dataclass(frozen=True, kw_only=True)
class TagConfig:
    """What becomes of the object tags."""

    unique: bool = False
    """Each tag once, in the detector's order; the original does so for Flickr30k, SNLI-VE and referring expressions."""
    beside_text: Literal["none", "unique", "all"] = "none"
    """Append the tags to the text, too: each once, or all, as the published VQA does (--use_b_text --b_as_list)."""


class PairText(NamedTuple):
    """The text side of one sample before it becomes tensors.

    tokens: ids, cut to what fits. words: the number of the word that each token is of. spelt: the words in lower case.
    phrases: ids, cut to what fits. links: words of each phrase where the sample says them, else None. answer: ids of a
    question's answer, cut with the tokens; None: the text is no question.
    """

    tokens: list[int]
    words: list[int]
    spelt: list[str]
    phrases: list[int]
    links: list[list[int]] | None
    answer: list[int] | None = None

    @property
    def phrase_places(self) -> tuple[int, int]:
        """First place of the phrases among the text places, and the place behind the last."""
        start = 1 + len(self.tokens)
        return start, start + len(self.phrases)


class PairInputs:
    """The samples of one split.

    Args:
        samples: table of `tasks.samples.SCHEMA`.
        regions: of their images.
        tokenizer: fast, of the model.
        lengths: of the model.
        tags: what becomes of the object tags.
        where: what the samples were read from, for messages.
        images: ids of all images in their order; none: those of the samples, as they come.

    Raises:
        InputError: an image has no regions; names the row. Or there is no room for answers.
    """

    def __init__(
        self,
        samples: pa.Table,
        regions: RegionBanks,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
        tags: TagConfig | None = None,
        where: str = "samples",
        images: Sequence[str] | None = None,
    ) -> None:
        self.samples, self.regions, self.tokenizer, self.lengths = samples, regions, tokenizer, lengths
        self.tags = tags or TagConfig()
        names = samples.column("image_id")
        ids = list(images) if images is not None else pc.unique(names).to_pylist()
        self.images: list[str] = regions.names_of(ids, where)
        """Different images, by the ids under which their regions are kept."""
        self.image_rows: npt.NDArray[np.int64] = (
            pc.index_in(names, pa.array(ids, pa.string())).to_numpy().astype(np.int64)
        )
        """(M,) image of each sample."""
        if lengths.text < QUESTION and samples.column("answer").null_count < len(samples):
            raise InputError(f"questions with answers need lengths.text of {QUESTION} or more, got {lengths.text}.")

    def __len__(self) -> int:
        return len(self.samples)

    def texts(
        self, indices: Sequence[int] | npt.NDArray[np.int64], answers: Sequence[str | None] | None = None
    ) -> list[PairText]:
        """The text sides of samples.

        Args:
            indices: of the samples, of shape (B,).
            answers: B of them to read instead of the samples' own; None where a sample is no question.
        """
        rows = self.samples.take(pa.array(np.asarray(indices, np.int64))).select(["text", "phrases", "links", "answer"])
        rows_list = rows.to_pylist()
        given = [row["answer"] for row in rows_list] if answers is None else answers
        encoded = self.tokenizer(
            [row["text"] for row in rows_list],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        found = []
        for place, (row, answer) in enumerate(zip(rows_list, given, strict=True)):
            tokens, behind = self._cut(encoded["input_ids"][place], answer)
            words = [-1 if one is None else one for one in encoded.word_ids(place)[: len(tokens)]]
            spelt = _spelt(row["text"], words, encoded["offset_mapping"][place])
            room = self.lengths.text_stream - 2 - len(tokens) - (0 if behind is None else len(behind) + 1)
            links = None if row["links"] is None else row["links"][:room]
            found.append(PairText(tokens, words, spelt, row["phrases"][:room], links, behind))
        return found

    def _cut(self, tokens: list[int], answer: str | None) -> tuple[list[int], list[int] | None]:
        if answer is None:
            return tokens[: self.lengths.text - 2], None
        return cut_pair(tokens, plain_ids(self.tokenizer, answer), self.lengths.text - 3)

    def tag_ids(self, image: ImageRegions, own: Sequence[str] | None, *, unique: bool | None = None) -> list[int]:
        """Tokens of the object tags of an image: the detector's, or the record's own where it says none.

        Args:
            image: the regions.
            own: of the record.
            unique: each once; none: as configured.
        """
        text = tag_text(image.tags or own or (), unique=self.tags.unique if unique is None else unique)
        found: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def example(self, text: PairText, image: ImageRegions, tags: Sequence[int], beside: Sequence[int] = ()) -> Inputs:
        """The tensors of one pair, without a batch's dimension.

        Args:
            text: tokens and phrases.
            image: the regions.
            tags: tokens of the image side.
            beside: tokens behind all of the text, of segment 1, as far as there is room.
        """
        cls, sep = int(self.tokenizer.cls_token_id), int(self.tokenizer.sep_token_id)
        given = (text.tokens, text.phrases, tags, image.features, self.lengths)
        found = tensorize(*given, cls=cls, sep=sep, answer=text.answer)
        if not beside:
            return found
        start = int(found.attention_mask_a.sum())
        more = list(beside)[: self.lengths.text_stream - start]
        places = slice(start, start + len(more))
        found.input_ids_a[places] = torch.tensor(more, dtype=torch.int64)
        found.attention_mask_a[places] = 1
        found.token_type_ids_a[places] = 1
        return found

    def image_of(self, index: int) -> ImageRegions:
        """The regions of a sample's image."""
        return self.regions.take(self.images[int(self.image_rows[index])])

    def own_tags(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[list[str] | None]:
        """The tags that the samples at `indices`, of shape (B,), bring along."""
        found: list[list[str] | None] = (
            self.samples.column("tags").take(pa.array(np.asarray(indices, np.int64))).to_pylist()
        )
        return found

    def examples(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[Inputs]:
        """The tensors of the samples at `indices`, of shape (B,), one by one."""
        found = []
        for index, text, own in zip(indices, self.texts(indices), self.own_tags(indices), strict=True):
            image, way = self.image_of(int(index)), self.tags.beside_text
            beside = [] if way == "none" else self.tag_ids(image, own, unique=way == "unique")
            found.append(self.example(text, image, self.tag_ids(image, own), beside))
        return found

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Inputs:
        """The tensors, (B, ...) each, of the samples at `indices`."""
        return stack(self.examples(indices))

    def text_batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """input_ids_a, attention_mask_a and token_type_ids_a (B, S + Q) of samples, without a look at their images."""
        nothing = ImageRegions("", np.zeros((0, 4), np.float32), np.zeros((0, self.regions.width), np.float32), 0, 0)
        examples = stack(self.example(text, nothing, ()) for text in self.texts(indices))
        return examples.input_ids_a, examples.attention_mask_a, examples.token_type_ids_a

    def image_batch(self, images: Sequence[int] | npt.NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """input_ids_b, attention_mask_b, token_type_ids_b, img_feats (B, R, C) of images by their rows in `images`."""
        nothing = PairText([], [], [], [], None)
        found = []
        for row in images:
            image = self.regions.take(self.images[int(row)])
            found.append(self.example(nothing, image, self.tag_ids(image, None)))
        whole = stack(found)
        return whole.input_ids_b, whole.attention_mask_b, whole.token_type_ids_b, whole.img_feats


def _spelt(text: str, words: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Each word in lower case, by its number; "" where no token is of it."""
    ends: dict[int, tuple[int, int]] = {}
    for word, (start, stop) in zip(words, offsets):
        first, last = ends.get(word, (start, stop))
        ends[word] = min(first, start), max(last, stop)
    found = [""] * (max(words, default=-1) + 1)
    for word, (start, stop) in ends.items():
        if word >= 0:
            found[word] = text[start:stop].lower()
    return found
