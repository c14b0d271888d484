"""Whether the vokens of captions find the captioned image: recall by token and by sentence.

Shapes: L lines, Q queries (tokens, or first pieces), k images per query, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vokenize.voken_measures import Figures
from vokenize.voken_runs import Part
from xmatch.data.caption_forms.common import CaptionRequest, CaptionSet
from xmatch.data.captions import FORMS, form_of
from xmatch.errors import InputError

Int64 = npt.NDArray[np.int64]
Convention = Literal["corrected", "original"]
DEPTHS = (1, 5, 10)
NOT_FOUND = np.int64(1 << 60)
"""Rank of an image that is not among the k."""


@dataclass(frozen=True, kw_only=True)
class TruthConfig:
    """The captions that the corpus was made of."""

    path: str = ""
    """Caption file that tokenize_corpus read with --corpus.form captions; empty: retrieval is not measured."""
    split: str = ""
    """Split of Karpathy captions, or several joined by commas; empty: all."""
    source: str = "mscoco"
    """Language source of LXMERT captions."""


def read_truth(config: TruthConfig) -> CaptionSet:
    """Captions in the order of the corpus, with the image of each; no image file is looked for.

    Raises:
        InputError: it is no caption file, or holds no captions.
    """
    form, content = form_of(config.path)
    splits = [name.strip() for name in config.split.split(",") if name.strip()]
    if form == "karpathy" and not splits:
        splits = sorted({str(entry.get("split")) for entry in content["images"]})
    found = FORMS[form](CaptionRequest(config.path, "", splits, config.source, content))
    if not found.captions:
        raise InputError(f"{config.path!r} holds no captions (split {config.split!r}, source {config.source!r}).")
    return found


class CaptionTruth:
    """Says which image each line of a caption corpus describes, line after line.

    Args:
        captions: of the corpus.
        bank_ids: (N,) ids of the key bank, SET/IMAGE.
        bank_uris: (N,) where the images are, or nulls.
        convention: `corrected`: an image is the one whose id is the caption's, in whatever set. `original`: the one
            whose file has that name and `.jpg`.
        where: name of the caption file.
    """

    def __init__(
        self,
        captions: CaptionSet,
        bank_ids: Sequence[str],
        bank_uris: Sequence[str | None],
        convention: Convention,
        where: str,
    ) -> None:
        self.texts, self.where, self._place = captions.captions, where, 0
        names = [uid.split("/", 1)[-1] for uid in bank_ids]
        if convention == "original":
            names = [
                (uri or name).rsplit("/", 1)[-1].removesuffix(".jpg")
                for uri, name in zip(bank_uris, names, strict=True)
            ]
        number: dict[str, int] = {}
        self.labels = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
        wanted = np.array([number.get(name, -1) for name in captions.image_ids], np.int64)
        self._wanted = wanted[captions.caption_image]

    def of(self, part: Part) -> Int64:
        """(L,) label of each line's image; -1 where the bank does not have it, or the line is blank.

        Raises:
            InputError: a line is not the caption that should be there.
        """
        texts = [None] * len(part.tokens_per_line) if part.texts is None else part.texts.to_pylist()
        found = np.full(len(texts), -1, np.int64)
        for row, text in enumerate(texts):
            if text is not None and not text.strip():
                continue
            if self._place >= len(self.texts):
                raise InputError(f"the corpus has more lines than the {len(self.texts):,} captions of {self.where!r}.")
            caption = " ".join(self.texts[self._place].split("\n"))
            if text not in (None, caption):
                raise InputError(
                    f"line {part.first_line + row} of the corpus reads {text[:60]!r}, but caption {self._place} of "
                    f"{self.where!r} reads {caption[:60]!r}; expected the captions that the corpus was tokenized from."
                )
            found[row] = self._wanted[self._place]
            self._place += 1
        return found

    def require_all_read(self) -> None:
        """Check that every caption had its line.

        Raises:
            InputError: some are left.
        """
        if self._place != len(self.texts):
            raise InputError(
                f"the corpus ends after caption {self._place:,} of the {len(self.texts):,} of {self.where!r}; give the "
                "captions that it was tokenized from, with their split and source."
            )


def ranks_of(vokens: Int64, labels: Int64, wanted: Int64) -> Int64:
    """(Q,) 1-based rank of the wanted image among each query's, NOT_FOUND where it is not there.

    Args:
        vokens: (Q, k), best first.
        labels: (N,) of the key bank's images; equal labels are one photograph.
        wanted: (Q,) labels.
    """
    hits = labels[vokens] == wanted[:, None]
    return np.where(hits.any(1), hits.argmax(1) + 1, NOT_FOUND)


class Retrieval:
    """Adds up recall at 1, 5 and 10, as far as k goes, with each query's rank decided by its own caption.

    Args:
        k: images per query.
        images: different photographs in the key bank.
        convention: `corrected`: captions whose image the bank lacks are left out. `original`: they count as missed,
            and chance may exceed 100.
    """

    def __init__(self, k: int, images: int, convention: Convention) -> None:
        self.depths = [depth for depth in DEPTHS if depth <= k]
        self.images, self.convention = images, convention
        self.queries = self.lines = self.left_out = 0
        self._hits = np.zeros(len(self.depths), np.int64)
        self._by_line = np.zeros(len(self.depths))

    def add(self, vokens: Int64, per_line: Int64, labels: Int64, wanted: Int64) -> None:
        """Count a part: (Q, k) vokens, (L,) queries of each line, (N,) labels and (L,) wanted ones."""
        line = np.repeat(np.arange(len(per_line)), per_line)
        if self.convention == "corrected":
            kept = wanted[line] >= 0
            self.left_out += int(np.count_nonzero(per_line[wanted < 0]))
            vokens, line = vokens[kept], line[kept]
        counts = np.bincount(line, minlength=len(per_line))
        ranks = ranks_of(vokens, labels, wanted[line])
        self.queries += len(ranks)
        self.lines += int(np.count_nonzero(counts))
        for row, depth in enumerate(self.depths):
            hits = ranks <= depth
            self._hits[row] += int(hits.sum())
            self._by_line[row] += float((np.bincount(line, hits, len(per_line)) / np.maximum(1, counts)).sum())

    def figures(self) -> dict[str, Any]:
        """Recall over queries and over captions, and that of chance, in per cent; counts of what they rest on."""
        limit = 100.0 if self.convention == "corrected" else np.inf
        found: Figures = {}
        for row, depth in enumerate(self.depths):
            found[f"recall_at_{depth}"] = 100 * float(self._hits[row]) / max(1, self.queries)
            found[f"recall_at_{depth}_by_caption"] = 100 * float(self._by_line[row]) / max(1, self.lines)
            found[f"chance_at_{depth}"] = min(limit, 100 * depth / self.images)
        return {**found, "queries": self.queries, "captions": self.lines, "captions_without_image": self.left_out}


def first_pieces(vokens: Int64, pieces_per_line: Int64) -> tuple[Int64, Int64]:
    """Vokens of each line's first piece, and how many that is for each line, 1 or 0."""
    starts = np.cumsum(pieces_per_line) - pieces_per_line
    has = pieces_per_line > 0
    return vokens[starts[has]], has.astype(np.int64)
