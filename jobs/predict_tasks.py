"""Answer questions (VQA), judge sentences (SNLI-VE) or find what expressions mean, with a fine-tuned MVPTR.

The task is the model's. OUTPUT gets the file that its challenge takes (test2015_results.json, predictions.jsonl), a
table of predictions, and, where the data has labels, figures beside the published ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from alignment.mvptr import checkpoints as mvptr_checkpoints
from alignment.mvptr.heads import HeadConfig
from alignment.mvptr.pair_inputs import PairInputs, TagConfig
from alignment.mvptr.recipe_data import places
from alignment.mvptr.recipe_start import read_model_answers
from alignment.mvptr.tasks import entailment, refexp, vqa
from alignment.mvptr.tasks.outcomes import choice_figures, picked_box, task_figures
from alignment.mvptr.tasks.predict_shards import PredictTask, TaskPlace
from alignment.mvptr.tasks.refexp import DetectionRule
from alignment.mvptr.tasks.samples import Sample, samples_table, write_samples
from alignment.mvptr.two_step_shards import RowReader, plan_shards
from raydeploy.config import config_hash, to_plain
from raydeploy.connect import RayConfig
from raydeploy.forecast import Fact, Forecast, forecast_of
from raydeploy.ledger import Ledger, run_hash
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from raydeploy.versions import versions
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.staging import local_folder

FIGURES_FILE, SAMPLES_FILE = "figures.json", "samples.arrow"


@dataclass(frozen=True, kw_only=True)
class PredictTasksConfig:
    """Settings of one prediction."""

    output: str
    """Folder for predictions and figures."""
    model: str
    """An MVPTR that was fine-tuned for vqa, snli_ve or refexp (train_alignment --method mvptr)."""
    data: str
    """vqa: `*_qla_mrcnn.json`. snli_ve: `snli_ve_*.jsonl`. refexp: `ve_splits.json`."""
    phrases: str = ""
    """vqa: `*_sg_tuples.json`. snli_ve: `*_sgs.json`. Empty: no phrases."""
    split: str = ""
    """refexp: val, testA or testB. Else the split's name, to choose the published figures set beside ours."""
    regions: str = ""
    """Regions of the images: tables of jobs/extract_regions.py or MVPTR's `predictions.tsv`, joined by commas."""
    labelled: bool = True
    """vqa: the questions have answers, and those without are left out; false for the challenge's test questions."""
    answer_kinds: str = ""
    """vqa: VQA v2's annotations, which say the kind of each question's answer; empty: by the answer's form."""
    detections: str = ""
    """refexp: given boxes, one of which is chosen; empty: of the regions."""
    detection_rule: DetectionRule = "best_region"
    """refexp: the detection that overlaps the best region most, or the one with the greatest overlap weighted by the
    regions' scores (the original's det_mod 1 and 2)."""
    tags: TagConfig = field(default_factory=TagConfig)
    """What becomes of the object tags; as in training."""
    samples_per_shard: int = 4096
    """Samples in one shard, the unit of resume."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not (self.model and self.data and self.regions) or self.samples_per_shard < 1:
            raise InputError("give model, data and regions; samples_per_shard is at least 1.")

    @property
    def threads(self) -> int:
        """Of torch in every worker."""
        return max(1, int(self.ray.cpus_per_actor))


class Task(NamedTuple):
    """The model's head and vocabularies, and the samples."""

    head: HeadConfig
    answers: list[str]
    samples: pa.Table


def task_of(config: PredictTasksConfig) -> Task:
    """Read the samples as the model's task has them.

    Raises:
        InputError: the model is of no such task, or a file is broken; names file and row.
    """
    folder = local_folder(config.model, "model")
    saved = mvptr_checkpoints.read_config(folder)
    rows, answers = saved.model.vocab_size, []
    found: list[Sample]
    if saved.head.task == "vqa":
        answers = read_model_answers(folder)
        kinds = vqa.read_kinds(config.answer_kinds) if config.answer_kinds else None
        given = {"has_answers": config.labelled, "rows": rows, "kinds": kinds}
        found = vqa.read_questions(config.data, config.phrases, answers, **given).samples  # type: ignore[arg-type]
    elif saved.head.task == "classification":
        answers = list(entailment.LABELS)
        vocabulary = mvptr_checkpoints.read_phrases(folder, checkpoints.read_tokenizer(folder), rows)
        found = entailment.read_entailment(config.data, config.phrases, vocabulary)
    elif saved.head.task == "refexp":
        found = refexp.read_expressions(config.data, config.split)
    else:
        raise InputError(f"{config.model!r} is an MVPTR for {saved.head.task}; expected vqa, snli_ve or refexp.")
    if not found:
        raise InputError(f"{config.data!r} has no samples.")
    return Task(saved.head, answers, samples_table(found))


def plan(config: PredictTasksConfig) -> Plan:
    """Task and samples, and a forecast from some of them."""
    task = task_of(config)
    rows = [("task", task.head.task), ("samples", f"{len(task.samples):,}"), ("model", config.model)]
    return Plan(rows, forecast_samples(config, task))


def forecast_samples(config: PredictTasksConfig, task: Task) -> Forecast | str:
    """How long the samples will take; or why that is not known.

    Raises:
        InputError: an image has no regions, or they do not fit the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = files.join(folder, SAMPLES_FILE)
        write_samples(path, task.samples)
        model, regions = local_folder(config.model, "model"), tuple(places(config.regions))
        return forecast_of(
            PredictTask(TaskPlace(model, path, regions, config.tags, config.threads)),
            RowReader(),
            plan_shards(path, len(task.samples), config.samples_per_shard),
            config.ray,
            unit="samples",
            count=lambda counts: counts["samples"],
        )


def predict(config: PredictTasksConfig, run: Run, task: Task) -> tuple[TaskPlace, pa.Table, Fact]:
    """Predictions of all samples, shard by shard, resumably."""
    path = files.join(config.output, SAMPLES_FILE)
    write_samples(path, task.samples)
    regions = tuple(places(config.regions))
    identity = {
        "model": checkpoints.model_hash(config.model),
        "samples": files.sha256(path),
        "regions": [run_hash(place) for place in regions],
        "tags": [config.tags.unique, config.tags.beside_text],
        "threads": config.threads,
    }
    place = TaskPlace(
        place_for_workers(config.model, "model", config.output), path, regions, config.tags, config.threads
    )
    ledger, fact = Ledger(files.join(config.output, "predictions"), identity), Fact()
    shards = plan_shards(path, len(task.samples), config.samples_per_shard)
    with run.progress(len(task.samples), "samples") as progress:
        for report in run_shards(shards, RowReader(), PredictTask(place), ledger, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["samples"])
            fact.add(report, report.counts["samples"])
            run.finished(report)
    ledger.finish([shard.id for shard in shards])
    made = [files.read_parquet(files.join(ledger.output, "shards", f"{shard.id}.parquet")) for shard in shards]
    return place, pa.concat_tables(made), fact


def body(config: PredictTasksConfig, run: Run) -> Report:
    """Predict, write what the challenge takes, and measure."""
    task = task_of(config)
    place, predicted, fact = predict(config, run, task)
    ids, choices = task.samples.column("id").to_pylist(), predicted.column("choice").to_numpy()
    if task.head.task == "refexp":
        _, inputs = place.inputs()
        path, figures = _expressions(config, task, inputs, predicted)
    else:
        chosen = zip(ids, (task.answers[choice] for choice in choices.tolist()), strict=True)
        name, write = (
            (vqa.RESULTS_FILE, vqa.write_results)
            if task.head.task == "vqa"
            else (entailment.RESULTS_FILE, entailment.write_results)
        )
        path = files.join(config.output, name)
        write(path, chosen)
        is_labelled = task.head.task == "classification" or config.labelled
        figures = choice_figures(task.samples, choices) if is_labelled else {}
    published = _published(task.head.task, config.split)
    plain = to_plain(config)
    record: dict[str, Any] = {
        "task": task.head.task,
        "samples": len(ids),
        "figures": figures,
        "published": published,
        "model_sha256": checkpoints.model_hash(config.model),
        "config": plain,
        "config_sha256": config_hash(plain),
        "versions": versions(),
    }
    files.write_json(files.join(config.output, FIGURES_FILE), record)
    rows = [("predictions", path)]
    for name, value in figures.items():
        beside = f" (published {published[name]:.2f})" if name in published else ""
        rows.append((name, f"{value:.2f} %{beside}"))
    return Report(rows, record, fact=fact)


def _expressions(
    config: PredictTasksConfig, task: Task, inputs: PairInputs, predicted: pa.Table
) -> tuple[str, dict[str, float]]:
    """The file of boxes, and the figures."""
    scores = np.stack(predicted.column("regions").to_numpy(zero_copy_only=False)).astype(np.float32)
    detections = refexp.read_detections(config.detections) if config.detections else None
    rows = []
    for index, identity in enumerate(task.samples.column("id").to_pylist()):
        found = picked_box(inputs, index, scores[index], detections, config.detection_rule)
        rows.append((identity, found.box.astype(float).tolist(), found.score))
    path = files.join(config.output, refexp.RESULTS_FILE)
    refexp.write_results(path, rows)
    return path, task_figures(task.head, inputs, scores, detections)


def _published(task: str, split: str) -> Mapping[str, float]:
    """What the original's page prints for a split of that name; none of referring expressions."""
    tables = {"vqa": vqa.PUBLISHED, "classification": entailment.PUBLISHED}
    return tables.get(task, {}).get(split, {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("predict_tasks", PredictTasksConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
