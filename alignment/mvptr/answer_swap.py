"""Wrong answers for questions: which question gets one, and which, is a function of (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.mvptr.objectives import IGNORED
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

ANSWERS = 17
"""Sets the numbers of this module apart from other draws by (seed, epoch, sample)."""
RIGHT, WRONG = 0, 1


class Drawn(NamedTuple):
    """Of each sample the answer to read and whether it is wrong; None and -1 where it is no question."""

    answers: list[str | None]
    labels: list[int]


class AnswerSwap:
    """Draws answers of questions: half of them keep the right one, half get another question's.

    A wrong answer is drawn from all questions with another answer, so that it is as frequent as it is in the data.

    Args:
        answers: of all samples; null where one is no question.
        where: what they were read from, for messages.

    Raises:
        InputError: there are no two different answers, so that nothing could be wrong.
    """

    def __init__(self, answers: pa.ChunkedArray, where: str) -> None:
        coded = answers.combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        self.known: list[str] = coded.dictionary.to_pylist()
        if len(self.known) < 2:
            raise InputError(
                f"the loss 'qa' is in use, but {where} has {len(self.known)} different answers; give a corpus with "
                "questions and mvptr.train.answers, or switch it off in losses.use."
            )
        self.codes: npt.NDArray[np.int64] = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        """(M,) number of each sample's answer; -1: none."""
        self.ends = np.bincount(self.codes[self.codes >= 0]).cumsum()

    def draw(self, samples: Sequence[int] | npt.NDArray[np.int64], key: SampleKey) -> Drawn:
        """The answers that `samples`, of shape (B,), are read with in an epoch."""
        found = Drawn([], [])
        for sample, own in zip(samples, self.codes[np.asarray(samples, np.int64)].tolist(), strict=True):
            if own < 0:
                found.answers.append(None)
                found.labels.append(IGNORED)
                continue
            drawn = self._drawn(own, np.random.default_rng((key.seed, key.epoch, int(sample), ANSWERS)))
            found.answers.append(self.known[drawn])
            found.labels.append(RIGHT if drawn == own else WRONG)
        return found

    def _drawn(self, own: int, draw: np.random.Generator) -> int:
        """The number of the answer to read instead of `own`, or `own`."""
        if draw.random() < 0.5:
            return own
        start, end = (int(self.ends[own - 1]) if own else 0), int(self.ends[own])
        place = int(draw.integers(int(self.ends[-1]) - (end - start)))
        return int(np.searchsorted(self.ends, place + (end - start) * (place >= start), side="right"))
