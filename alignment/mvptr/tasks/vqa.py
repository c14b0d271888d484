"""Visual question answering: files, soft scores, losses, and the file that the challenge takes (golden `mvptr_vqa_ve`).

Shapes: B questions, A answers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from alignment.mvptr.tasks.samples import Sample, aligned, field_of, json_list
from xmatch.data import files
from xmatch.errors import InputError

KINDS = ("yes/no", "number", "other")
RESULTS_FILE = "test2015_results.json"
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "test-dev": {"accuracy": 76.16, "accuracy_yes/no": 91.55, "accuracy_number": 58.47, "accuracy_other": 67.04},
    "test-std": {"accuracy": 76.36, "accuracy_yes/no": 91.65, "accuracy_number": 58.45, "accuracy_other": 67.16},
}
"""What MVPTR's own page prints for VQA v2, in per cent."""
LossName = Literal["bce", "kl"]


def read_answers(path: str) -> list[str]:
    """Answers by label, of the JSON that `convert --what legacy` makes of `trainval_label2ans.pkl` or `…ans2label.pkl`.

    Raises:
        InputError: it is a pickle, or no list of texts or map to labels 0, 1, …; names file and row.
    """
    if not path.endswith(".json"):
        raise InputError(
            f"{path!r} is no JSON. If it is a pickle, make it plain first: "
            f"python jobs/convert.py --what legacy --input {path} --output FOLDER."
        )
    content = files.read_json(path)
    if isinstance(content, dict):
        labels = sorted(content.items(), key=lambda item: (not isinstance(item[1], int), str(item[1]), item[0]))
        for row, (answer, label) in enumerate(labels):
            if type(label) is not int:
                raise InputError(
                    f"{path!r}, row {row}: answer {answer!r} has the label {label!r:.40}, no whole number."
                )
        content = [answer for answer, label in sorted(labels, key=lambda item: item[1])]
        if sorted(label for _, label in labels) != list(range(len(labels))):
            raise InputError(f"{path!r}: labels must be 0 to {len(labels) - 1}, each once; expected {{answer: label}}.")
    if not isinstance(content, list) or not content:
        raise InputError(f"{path!r} is no list of answers: expected a JSON list of texts, or a map to labels.")
    for row, answer in enumerate(content):
        if not isinstance(answer, str):
            raise InputError(f"{path!r}, row {row}: expected an answer as text, got {answer!r:.40}.")
    return content


class Questions(NamedTuple):
    """What was read; dropped: records without any answer, from which nothing can be learnt or measured."""

    samples: list[Sample]
    dropped: int


def read_questions(
    path: str,
    phrases: str,
    answers: Sequence[str],
    *,
    has_answers: bool,
    rows: int | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Questions:
    """Questions of a `*_qla_mrcnn.json` and their phrases.

    Args:
        path: JSON list of {q, o, an, s, img_id, q_id}.
        phrases: `*_sg_tuples.json`, an aligned list of [phrase ids, …]; "": no phrases.
        answers: by label.
        has_answers: false for test questions, whose `an` and `s` are not looked at; else those without are dropped.
        rows: of the model's embeddings, beyond which no phrase may lie; none: not checked.
        kinds: of answers by question id (`read_kinds`); none: by the best answer's form.

    Raises:
        InputError: a record is broken, an answer is not among the answers, or lists differ in length; names file and
            row, from 0.
    """
    records = json_list(path, "questions")
    found = json_list(phrases, "phrases") if phrases else [[[]]] * len(records)
    aligned(records, found, path, phrases)
    samples: list[Sample] = []
    for row, (record, own) in enumerate(zip(records, found, strict=True)):
        where = f"{path!r}, row {row}"
        question = field_of(record, "q", str, where)
        image_id, question_id = (str(field_of(record, name, (int, str), where)) for name in ("img_id", "q_id"))
        labels, scores = _answers(record, answers, where) if has_answers else ([], [])
        if has_answers and not labels:
            continue
        tags = [tag for tag in str(record.get("o") or "").split(";") if tag]
        sample = Sample(question_id, image_id, question, phrase_ids(own, rows, f"{phrases!r}, row {row}"), tags=tags)
        kind = ""
        if has_answers:
            kind = (kinds or {}).get(question_id) or kind_of(answers[labels[scores.index(max(scores))]])
        samples.append(sample._replace(labels=labels, scores=scores, kind=kind))
    return Questions(samples, len(records) - len(samples))


def phrase_ids(entry: Any, rows: int | None, where: str) -> list[int]:
    """The ids of an entry [ids, …].

    Raises:
        InputError: it has another form, or an id is out of range.
    """
    ids = entry[0] if isinstance(entry, list) and entry else None
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise InputError(f"{where}: expected [phrase ids, …], got {entry!r:.60}.")
    wrong = [one for one in ids if one < 0 or (rows is not None and one >= rows)]
    if wrong:
        raise InputError(
            f"{where}: phrase id {wrong[0]} is out of range; the model has {rows} rows of embeddings. Give the phrases "
            "made with its id2phrase.json."
        )
    return ids


def _answers(record: Mapping[str, Any], answers: Sequence[str], where: str) -> tuple[list[int], list[float]]:
    labels, scores = field_of(record, "an", list, where), field_of(record, "s", list, where)
    if len(labels) != len(scores):
        raise InputError(
            f"{where}: {len(labels)} answers ('an') with {len(scores)} scores ('s'); expected one for each."
        )
    for label, score in zip(labels, scores, strict=True):
        if type(label) is not int or not 0 <= label < len(answers):
            raise InputError(
                f"{where}: unknown answer label {label!r:.40}; the answers are 0 to {len(answers) - 1}. Give the list "
                "of answers that these questions were made with."
            )
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError(f"{where}: score {score!r:.40} of answer {label}; expected 0 to 1.")
    return labels, [float(score) for score in scores]


def kind_of(answer: str) -> str:
    """The kind of an answer by its form, where the data set does not say it: yes or no, a number, or other."""
    if answer.lower() in ("yes", "no"):
        return KINDS[0]
    return KINDS[1] if answer.replace(".", "", 1).replace(",", "").isdecimal() else KINDS[2]


def read_kinds(path: str) -> dict[str, str]:
    """Kinds of answers by question id, of VQA v2's annotations: {annotations: [{question_id, answer_type}]}.

    Raises:
        InputError: it has another form; names the row.
    """
    content = files.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{path!r} is no annotations file of VQA v2: expected an object with a list 'annotations'.")
    found = {}
    for row, record in enumerate(content["annotations"]):
        where = f"{path!r}, annotation {row}"
        kind = field_of(record, "answer_type", str, where)
        if kind not in KINDS:
            raise InputError(f"{where}: answer_type {kind!r}; expected one of {', '.join(KINDS)}.")
        found[str(field_of(record, "question_id", (int, str), where))] = kind
    return found


def soft_targets(labels: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], answers: int) -> torch.Tensor:
    """(B, A) float32: how right each answer is; 0 where nobody gave it."""
    targets = torch.zeros(len(labels), answers)
    for row, (own, values) in enumerate(zip(labels, scores, strict=True)):
        targets[row, list(own)] = torch.tensor(list(values))
    return targets


def answer_loss(logits: torch.Tensor, targets: torch.Tensor, kind: LossName) -> torch.Tensor:
    """The loss of each question, (B,).

    Args:
        logits: (B, A).
        targets: (B, A) from 0 to 1.
        kind: `bce`: binary cross-entropy summed over answers. `kl`: Kullback-Leibler divergence of the softmax from
            the targets as they are.
    """
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
    return F.kl_div(logits.float().log_softmax(1), targets, reduction="none").sum(1)


def soft_scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How right the answer with the greatest logit is, of equal ones the first: (B, A) and (B, A) to (B,)."""
    return targets.gather(1, logits.argmax(1, keepdim=True))[:, 0]


def accuracy_by_kind(scores: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """`accuracy`, and `accuracy_KIND` of every kind there is, in per cent."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for score, kind in zip(scores, kinds, strict=True):
        by_kind[kind].append(score)
    each = {f"accuracy_{kind}": _percent(by_kind[kind]) for kind in sorted(by_kind) if kind}
    return {"accuracy": _percent(scores), **each}


def _percent(scores: Sequence[float]) -> float:
    return 100.0 * sum(scores) / max(1, len(scores))


def write_results(path: str, answers: Iterable[tuple[str, str]]) -> None:
    """Write answers as the challenge takes them: a JSON list of {question_id, answer}, ids as numbers where they are.

    Args:
        path: usually ends in RESULTS_FILE.
        answers: question id and answer.
    """
    rows = [{"question_id": int(one) if one.isdecimal() else one, "answer": answer} for one, answer in answers]
    files.write_bytes(path, json.dumps(rows, ensure_ascii=False).encode())


def read_results(path: str) -> list[tuple[str, str]]:
    """A file of results as (question id, answer).

    Raises:
        InputError: it has another form; names the row.
    """
    found = []
    for row, record in enumerate(json_list(path, "results")):
        where = f"{path!r}, row {row}"
        identity = str(field_of(record, "question_id", (int, str), where))
        found.append((identity, field_of(record, "answer", str, where)))
    return found
