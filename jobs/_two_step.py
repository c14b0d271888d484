"""What `eval_retrieval.py --rerank mvptr` does beside measuring: encode both sides, score pools, order them anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from alignment.mvptr import checkpoints as mvptr_checkpoints
from alignment.mvptr.pair_inputs import TagConfig
from alignment.mvptr.phrase_extraction import phrases_by_caption
from alignment.mvptr.published import published_text
from alignment.mvptr.recipe_data import places
from alignment.mvptr.tasks.samples import Sample, samples_table, write_samples
from alignment.mvptr.two_step import (
    FINE,
    PoolConfig,
    coarse_pools,
    pool_pairs,
    pool_recall,
    pool_scores,
    recall_fractions,
    two_step_stages,
)
from alignment.mvptr.two_step_scoring import plain_cost
from alignment.mvptr.two_step_shards import (
    IMAGES_FILE,
    PAIRS_FILE,
    SAMPLES_FILE,
    EncodeSide,
    Gallery,
    PairReader,
    RowReader,
    ScorePairs,
    plan_pair_shards,
    plan_shards,
    read_scores,
    write_pairs,
)
from alignment.mvptr.two_step_tuning import FusionConfig, plain_fusion, read_fusion, tune_fusion
from alignment.rerank.candidates import WAYS, Float32, Lists, Way
from alignment.rerank.figures import list_ranks, stage_figures, table_text
from alignment.rerank.results import plain_figures, stage_values, write_lists
from alignment.rerank.tuned_file import refuse_tuned_split, refuse_tuning_on_test, write_settings
from raydeploy.connect import RayConfig, connect
from raydeploy.forecast import Fact
from raydeploy.ledger import Ledger, run_hash
from raydeploy.run import Run
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.steps import Reader, Shard, Step
from xmatch.data.vectors import make_vectors, matrix, read_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.evaluation.evaluated import embedding_places
from xmatch.evaluation.gallery import GalleryConfig
from xmatch.evaluation.measures import ConfidenceConfig
from xmatch.evaluation.members import LINE_ID, Member, image_rows
from xmatch.evaluation.view_similarities import across
from xmatch.models import checkpoints
from xmatch.models.staging import local_folder

FOLDER, FINE_FOLDER, RESULTS_FILE = "two_step", "fine", "results.eval.json"


@dataclass(frozen=True, kw_only=True)
class TwoStepConfig:
    """Settings of `--rerank mvptr`."""

    regions: str = ""
    """Regions of the split's images: tables of jobs/extract_regions.py, or MVPTR's `predictions.tsv`, joined by commas.
    """
    phrases: str = ""
    """Phrases of its captions by caption id: output of jobs/extract_phrases.py; empty: none."""
    tags: TagConfig = field(default_factory=TagConfig)
    """What becomes of the object tags; as in training."""
    pools: PoolConfig = field(default_factory=PoolConfig)
    """Candidates that the cross encoder orders."""
    action: Literal["apply", "tune"] = "apply"
    """`tune`: choose on validation data how much the coarse score counts beside the fine one: OUTPUT/tuned.json."""
    tuned: str = ""
    """Weights that an earlier --two_step.action tune chose: its folder or tuned.json; empty: no fused figures."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """What is tried."""
    pairs_per_shard: int = 32_768
    """Pairs in one shard, the unit of resume."""
    rows_per_shard: int = 2048
    """Captions or images in one shard of the first step."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if min(self.pairs_per_shard, self.rows_per_shard) < 1:
            raise InputError("two_step.pairs_per_shard and rows_per_shard must be at least 1.")
        if self.action == "tune" and self.tuned:
            raise InputError("--two_step.action tune chooses the weights itself; leave two_step.tuned out.")


class TwoStepJob(Protocol):
    """What of the job's configuration is looked at."""

    @property
    def output(self) -> str: ...
    @property
    def benchmark(self) -> str: ...
    @property
    def data(self) -> GalleryConfig: ...
    @property
    def two_step(self) -> TwoStepConfig: ...
    @property
    def confidence(self) -> ConfidenceConfig: ...
    @property
    def allow_overlap(self) -> bool: ...
    @property
    def top_k(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def ray(self) -> RayConfig: ...


class TwoSteps(NamedTuple):
    """What came of both steps.

    Attributes:
        record: for retrieval.json; holds no times.
        figures: recalls of `coarse`, `fine` and `fused`, in per cent.
        cost: seconds a pair and of both steps, of what this run computed.
        rows: for a person.
        text: the table of the steps.
    """

    record: dict[str, Any]
    figures: dict[str, dict[str, float]]
    cost: dict[str, float]
    rows: list[tuple[str, str]]
    text: str


def check(config: TwoStepJob, models: Sequence[str]) -> None:
    """Refuse what cannot work before anything starts.

    Raises:
        InputError: says what is missing or does not go together.
    """
    if len(models) != 1:
        raise InputError("--rerank mvptr takes one --model, a saved MVPTR, which gives coarse and fine scores.")
    if not config.two_step.regions:
        raise InputError("--rerank mvptr needs --two_step.regions, the regions of the split's images.")
    if config.two_step.action == "tune":
        refuse_tuning_on_test(config.data.split)


def write_gallery(config: TwoStepJob, model: str, place: str, gallery: CaptionSet, folder: str) -> Gallery:
    """Write what workers read of a split, and say where.

    Args:
        config: of the job.
        model: saved MVPTR.
        place: where workers read it.
        gallery: the split.
        folder: to write to.

    Raises:
        InputError: phrases were asked for, and the model has no vocabulary of them.
    """
    known = _phrase_ids(config.two_step.phrases, model)
    samples = [
        Sample(identity, gallery.image_ids[image], text, known.get(identity, ()))
        for identity, image, text in zip(gallery.caption_ids, gallery.caption_image.tolist(), gallery.captions)
    ]
    write_samples(files.join(folder, SAMPLES_FILE), samples_table(samples))
    files.write_json(files.join(folder, IMAGES_FILE), gallery.image_ids)
    return Gallery(place, folder, tuple(places(config.two_step.regions)), config.two_step.tags, config.threads)


def _phrase_ids(place: str, model: str) -> dict[str, list[int]]:
    if not place:
        return {}
    folder = local_folder(model, "model")
    rows = mvptr_checkpoints.read_config(folder).model.vocab_size
    vocabulary = mvptr_checkpoints.read_phrases(folder, checkpoints.read_tokenizer(folder), rows)
    if vocabulary is None:
        raise InputError(f"{model!r} has no vocabulary of phrases; leave two_step.phrases out.")
    return {caption: vocabulary.ids(phrases) for caption, phrases in phrases_by_caption(place).items()}


def identity_of(given: Gallery, model_sha256: str) -> dict[str, Any]:
    """What decides the outputs' bytes."""
    return {
        "model": model_sha256,
        "samples": files.sha256(files.join(given.folder, SAMPLES_FILE)),
        "images": files.sha256(files.join(given.folder, IMAGES_FILE)),
        "regions": [run_hash(place) for place in given.regions],
        "tags": [given.tags.unique, given.tags.beside_text],
        "threads": given.threads,
    }


class _Pass(NamedTuple):
    """One pass over shards, and where its output goes."""

    step: Step
    reader: Reader
    shards: list[Shard]
    output: str
    suffix: Literal["arrow", "parquet"]
    unit: str


def _run_pass(one: _Pass, identity: Mapping[str, Any], config: TwoStepJob, run: Run, fact: Fact) -> list[str]:
    """Run what is not done yet; the files of all shards in order."""
    ledger = Ledger(one.output, identity)
    total = sum(shard.stop - shard.start for shard in one.shards)
    with run.progress(total, one.unit) as progress:
        for report in run_shards(one.shards, one.reader, one.step, ledger, suffix=one.suffix, ray=config.ray):
            progress.advance(report.counts[one.unit])
            fact.add(report, report.counts[one.unit])
            run.finished(report)
    ledger.finish([shard.id for shard in one.shards])
    return [files.join(one.output, "shards", f"{shard.id}.{one.suffix}") for shard in one.shards]


def coarse_member(config: TwoStepJob, run: Run, model: str, gallery: CaptionSet, given: Gallery) -> Member:
    """The scores of the first step; the vectors stay in <output>/embeddings, as those of any model."""
    digest = checkpoints.model_hash(model)
    kept, identity = embedding_places(config.output, digest, gallery), identity_of(given, digest)
    is_unique = len(set(gallery.caption_ids)) == len(gallery.captions)
    text_ids = gallery.caption_ids if is_unique else [f"{LINE_ID}{row}" for row in range(len(gallery.captions))]
    each = config.two_step.rows_per_shard
    images = _Pass(
        EncodeSide(given, "images", gallery.image_ids),
        RowReader(),
        plan_shards(given.folder, len(gallery.image_ids), each),
        kept.images,
        "arrow",
        "images",
    )
    _run_pass(images, identity, config, run, Fact())
    texts = _Pass(
        EncodeSide(given, "texts", text_ids),
        RowReader(),
        plan_shards(given.folder, len(text_ids), each),
        files.join(given.folder, "texts"),
        "arrow",
        "texts",
    )
    _run_pass(texts, identity, config, run, Fact())
    rows = np.asarray(matrix(read_vectors(texts.output)), np.float32)
    write_vectors(kept.texts, make_vectors(text_ids, rows))
    source = across(image_rows(kept.images, gallery), rows)
    return Member("model", model, source, (source.images, source.texts), {"model": digest})


def measure(config: TwoStepJob, run: Run, model: str, gallery: CaptionSet, fact: Fact) -> tuple[list[Member], TwoSteps]:
    """Both steps: the member that the first one is, and what came of the second.

    Args:
        config: of the job.
        run: for progress.
        model: saved MVPTR.
        gallery: the split.
        fact: takes what the second step took.
    """
    place = place_for_workers(model, "model", config.output)
    given = write_gallery(config, model, place, gallery, files.join(config.output, FOLDER))
    with connect(config.ray):
        member = coarse_member(config, run, model, gallery, given)
        assert member.embeddings is not None, "a model has vectors"
        return [member], two_steps(config, run, model, gallery, given, member.embeddings, fact)


def two_steps(
    config: TwoStepJob, run: Run, model: str, gallery: CaptionSet, given: Gallery, vectors: tuple[Any, Any], fact: Fact
) -> TwoSteps:
    """Pools by exact search, fine scores of their pairs, and the figures of every step.

    Args:
        config: of the job.
        run: for progress.
        model: saved MVPTR.
        gallery: the split.
        given: the same, as workers read it.
        vectors: (N, D) of images and (M, D) of captions.
        fact: takes what scoring took.
    """
    settings, owners, count = config.two_step, gallery.caption_image, len(gallery.image_ids)
    pools = coarse_pools(np.asarray(vectors[0]), np.asarray(vectors[1]), settings.pools, config.threads)
    pairs, path = pool_pairs(pools, count), files.join(given.folder, PAIRS_FILE)
    write_pairs(path, pairs)
    digest = checkpoints.model_hash(model)
    identity = identity_of(given, digest) | {"pairs": files.sha256(path)}
    shards = plan_pair_shards(path, pairs, settings.pairs_per_shard)
    output = files.join(given.folder, FINE_FOLDER)
    second = _Pass(ScorePairs(given), PairReader(), shards, output, "parquet", "pairs")
    scores = read_scores(_run_pass(second, identity, config, run, fact), pairs)
    fine = {way: pool_scores(way, pools[way], pairs, scores, count) for way in WAYS}
    weights, tuned = _weights(config, gallery, pools, fine)
    stages = two_step_stages(pools, fine, weights)
    figures = stage_figures(stages, owners, count, config.confidence)
    sizes = mvptr_checkpoints.read_config(local_folder(model, "model")).model
    recall = pool_recall(pools, owners)
    record = {
        "pools": {way: settings.pools.depth(way) for way in WAYS},
        "pool_recall": recall,
        "cost": plain_cost(sizes, len(pairs), len(gallery.captions), count),
        "stages": stage_values(figures),
        "coarse_weight": weights,
        "tuned": tuned,
    }
    in_order = next(stage for stage in stages if stage.name == FINE).lists
    fractions = {f"{way}_retrieval": recall_fractions(list_ranks(way, in_order[way], owners)) for way in WAYS}
    files.write_json(files.join(config.output, RESULTS_FILE), fractions)
    seconds = fact.stages.get("score", 0.0)
    cost = {"pairs_scored_now": float(fact.units), "seconds": seconds, "seconds_per_pair": seconds / max(1, fact.units)}
    rows = write_lists(config.output, stages, gallery, max(1, config.top_k), in_original_form=False)
    rows += [(f"pool recall {way}", f"{value:.1f} %") for way, value in recall.items()]
    rows += [("pairs", f"{len(pairs):,}, {cost['seconds_per_pair'] * 1e3:.2f} ms each, {fact.units:,} of them now")]
    plain = plain_figures(figures)
    text = "\n".join([table_text(figures, "Two-step retrieval"), published_text(config.benchmark, plain)])
    return TwoSteps(record, plain, cost, rows, text)


def _weights(
    config: TwoStepJob, gallery: CaptionSet, pools: Mapping[Way, Lists], fine: Mapping[Way, Float32]
) -> tuple[dict[Way, float] | None, dict[str, Any] | None]:
    """The weight of the coarse scores, tuned now or before; and where it is from."""
    settings, split = config.two_step, config.data.split
    if settings.action == "tune":
        found = tune_fusion(pools, fine, gallery.caption_image, settings.fusion)
        trials = [trial._asdict() for trial in found.trials]
        place = write_settings(config.output, plain_fusion(found.weights), trials, gallery, split, {})
        return None, {"written": place, "settings": plain_fusion(found.weights)}
    if not settings.tuned:
        return None, None
    tuned = read_fusion(settings.tuned)
    refuse_tuned_split(tuned, gallery, split, allow=config.allow_overlap, threads=config.threads)
    return tuned.settings, {"place": tuned.place, "sha256": tuned.sha256, "split": tuned.split}
