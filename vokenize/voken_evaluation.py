"""All measures of a voken run, added up in one pass over its parts; memory grows with images and token types alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vokenize.pair_counts import PairCounts
from vokenize.voken_agreement import Agreement
from vokenize.voken_measures import TypeTable, coverage, diversity, hubness, type_table
from vokenize.voken_retrieval import CaptionTruth, Convention, Retrieval, first_pieces
from vokenize.voken_runs import Part, VokenRun, first_lines
from xmatch.errors import InputError

Int64 = npt.NDArray[np.int64]
LEVELS = ("token", "sentence")


class Uses(NamedTuple):
    """How often each image was used at one level, (N,) int64 each: as the best, and among the k."""

    best: Int64
    among_k: Int64


class Evaluated(NamedTuple):
    """What was measured.

    Attributes:
        figures: by name of the measure, then by level, as `measures.json` holds them.
        types: a row for each token type; empty where the run has no vokens of tokens.
        types_per_image: (N,) token types whose tokens took the image.
        uses: by level, those the run has.
    """

    figures: dict[str, Any]
    types: TypeTable
    types_per_image: Int64
    uses: dict[str, Uses]


class Evaluation:
    """Adds up the measures of one run, and of its agreement with another.

    Args:
        run: what is measured.
        pairs: counts token types with images; its files are removed by whoever made it.
        photographs: (N,) number of the photograph each row of the key bank shows; rows of one count as one image in
            diversity and coverage.
        truth: of a corpus of captions.
        convention: of retrieval.
        other: a run over the same corpus and key bank.
    """

    def __init__(
        self,
        run: VokenRun,
        pairs: PairCounts,
        photographs: Int64,
        truth: CaptionTruth | None = None,
        convention: Convention = "corrected",
        other: VokenRun | None = None,
    ) -> None:
        self.run, self.pairs, self.photographs, self.truth, self.other = run, pairs, photographs, truth, other
        levels = [level for level in LEVELS if run.level in (level, "both")]
        self.uses = {level: Uses(np.zeros(run.keys, np.int64), np.zeros(run.keys, np.int64)) for level in levels}
        self.lines = self.tokens = 0
        self.agreement: dict[str, Agreement] = {}
        if other is not None:
            common = [level for level in levels if other.level in (level, "both")]
            self.agreement = {level: Agreement(run.keys, min(run.top_k, other.top_k)) for level in common}
        self.retrieval: dict[str, Retrieval] = {}
        if truth is not None:
            images = len(truth.labels) if convention == "original" else int(truth.labels.max()) + 1
            self.retrieval = {level: Retrieval(run.top_k, images, convention) for level in levels}

    def measure(self, max_lines: int = 0, advance: Callable[[int], None] = lambda lines: None) -> Evaluated:
        """Read the runs, or their first `max_lines` lines, and measure.

        Args:
            max_lines: 0: all.
            advance: is told how many lines were read.
        """
        for part, beside in self._parts(max_lines):
            self._add(part, beside)
            advance(len(part.tokens_per_line))
        if self.truth is not None and not max_lines:
            self.truth.require_all_read()
        return self._evaluated()

    def _parts(self, max_lines: int) -> Iterator[tuple[Part, Part | None]]:
        ours = first_lines(self.run.parts(), max_lines)
        if self.other is None:
            yield from zip(ours, repeat(None), strict=False)
        else:
            yield from zip(ours, first_lines(self.other.parts(), max_lines), strict=True)

    def _add(self, part: Part, beside: Part | None) -> None:
        self.lines += len(part.tokens_per_line)
        self.tokens += len(part.token_ids)
        wanted = self.truth.of(part) if self.truth is not None else None
        for level, uses in self.uses.items():
            vokens, per_line = of_level(part, level)
            np.add(uses.best, np.bincount(vokens[:, 0], minlength=self.run.keys), out=uses.best)
            np.add(uses.among_k, np.bincount(vokens.reshape(-1), minlength=self.run.keys), out=uses.among_k)
            if level == "token" and len(vokens):
                self.pairs.add(part.token_ids, self.photographs[vokens[:, 0]])
            if beside is not None and level in self.agreement:
                self.agreement[level].add(vokens, self._queries_beside(part, beside, level, per_line), per_line)
            if self.truth is not None and wanted is not None:
                if level == "sentence":
                    vokens, per_line = first_pieces(vokens, per_line)
                self.retrieval[level].add(vokens, per_line, self.truth.labels, wanted)

    def _queries_beside(self, part: Part, beside: Part, level: str, per_line: Int64) -> Int64:
        """The other run's vokens of the same lines.

        Raises:
            InputError: it has other queries; names both runs and the first line that differs.
        """
        vokens, counts = of_level(beside, level)
        wrong = np.flatnonzero(counts != per_line)
        if len(wrong) and self.other is not None:
            at = int(wrong[0])
            raise InputError(
                f"{self.run.folder!r} and {self.other.folder!r} cannot be compared: line {part.first_line + at} has "
                f"{per_line[at]} {level} queries in the first and {counts[at]} in the second. Lines are cut alike only "
                "with the same --vokenize.window and --vokenize.window_policy."
            )
        return vokens

    def _evaluated(self) -> Evaluated:
        types_per_image = np.zeros(self.run.keys, np.int64)

        def counted() -> Iterator[Any]:
            for pairs in self.pairs.blocks():
                types_per_image.__iadd__(np.bincount(pairs.images, minlength=len(types_per_image)))
                yield pairs

        types = type_table(counted())
        figures: dict[str, Any] = {
            "corpus": {"lines": self.lines, "tokens": self.tokens},
            "run": {"level": self.run.level, "top_k": self.run.top_k, "images": self.run.keys},
        }
        if "token" in self.uses:
            figures["diversity"] = diversity(types)
        figures["coverage"] = {level: coverage(self._by_photograph(uses.best)) for level, uses in self.uses.items()}
        figures["hubness"] = {level: hubness(uses.best) for level, uses in self.uses.items()}
        figures["hubness_at_k"] = {level: hubness(uses.among_k) for level, uses in self.uses.items()}
        for name, found in (("retrieval", self.retrieval), ("agreement", self.agreement)):
            if found:
                figures[name] = {level: one.figures() for level, one in found.items()}
        return Evaluated(figures, types, types_per_image[self.photographs], self.uses)

    def _by_photograph(self, counts: Int64) -> Int64:
        """Uses of each different photograph."""
        merged = np.zeros_like(counts)
        np.add.at(merged, self.photographs, counts)
        return merged[np.unique(self.photographs)]


def of_level(part: Part, level: str) -> tuple[Int64, Int64]:
    """(Q, k) vokens of a part's tokens or pieces, and (L,) how many of them each line has."""
    if level == "token":
        found, per_line = part.vokens, part.tokens_per_line
    else:
        found, per_line = part.sentence_vokens, part.pieces_per_line
    if found is None:
        raise ValueError(f"{part.where} has no vokens of level {level}")
    return found, per_line
