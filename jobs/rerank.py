"""Re-rank what captions and images found, by their entities (EGR) and by what their candidates found in turn (TBR).

Before and after stand in one table with confidence intervals. Both steps can lower recall, so tune them first, on the
validation split: --action tune writes tuned.json, and --tuned applies it to another split; on the same it is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.rerank.candidates import WAYS, Way
from alignment.rerank.figures import Stage, losses, stage_figures, table_text
from alignment.rerank.inputs import (
    EntitiesConfig,
    PredictionsConfig,
    banks_of,
    entity_counts,
    one_bank,
    read_box_map,
    read_inputs,
    read_phrases,
    require_one_source,
)
from alignment.rerank.page import PageMaker
from alignment.rerank.pipeline import BIDIRECTIONAL, GUIDED, Vectors, evidence_of, pool_depths, pools_of, rerank
from alignment.rerank.results import (
    FIGURES_FILE,
    PAGE_FILE,
    explained_sections,
    plain_figures,
    stage_values,
    write_lists,
    write_page,
)
from alignment.rerank.settings import RerankSettings, described, without_entities
from alignment.rerank.tuned_file import (
    TunedFile,
    read_tuned,
    refuse_tuned_split,
    refuse_tuning_on_test,
    split_identity,
    write_tuned,
)
from alignment.rerank.tuning import Tuned, TuningConfig, tune, tuning_settings
from raydeploy.config import config_hash, to_plain
from raydeploy.connect import RayConfig
from raydeploy.forecast import byte_size
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.versions import versions
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.gallery import GalleryConfig, read_gallery
from xmatch.evaluation.measures import ConfidenceConfig
from xmatch.evaluation.members import EmbeddingsConfig

PAIRS_PER_S = 8e7
"""Pairs of a query and a key that exact search scores in a second at width 512, and"""
JUDGED_PER_S = 8e5
"""pairs of a caption and an image that ten entities judge in a second: on one slow core (benchmarks/results)."""
LISTED_BYTES = 64
"""Of memory for one listed candidate: its row, scores, what entities say, and copies while they are ordered."""


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """Settings of one re-ranking."""

    output: str
    """Folder for lists, table, figures and page, or for tuned settings."""
    action: Literal["apply", "tune"] = "apply"
    """`apply`: re-rank and measure. `tune`: choose weights, pools, k, and what is switched on, on validation data."""
    data: GalleryConfig = field(default_factory=lambda: GalleryConfig(split="test"))
    """The captioned split, which says what belongs together; its images are needed for the page alone."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    """Vectors of its images and captions: banks of jobs/embed.py, or .npy in the order of the split."""
    evaluation: str = ""
    """Output of jobs/eval_retrieval.py of one model on this split, instead: the embeddings that it keeps are used."""
    entities: EntitiesConfig = field(default_factory=EntitiesConfig)
    """The captions' entities; without their vectors, EGR is off."""
    predictions: PredictionsConfig = field(default_factory=PredictionsConfig)
    """Ready lists instead of vectors: TBR alone."""
    rerank: RerankSettings = field(default_factory=RerankSettings)
    """What is done; the published weights where nothing else is given."""
    tuned: str = ""
    """Settings that an earlier --action tune chose, instead of `rerank`: its folder or tuned.json."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """What --action tune tries."""
    allow_overlap: bool = False
    """Apply tuned settings to images that they were tuned on; never to a test split."""
    top_k: int = 20
    """Candidates of every query that are listed."""
    original_files: bool = False
    """Write the lists in AGREE's JSONL too."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    """Bootstrap confidence intervals."""
    page: int = 6
    """Queries on the page whose match rose the most, and as many whose match fell, in each direction; 0: no page."""
    shown: int = 6
    """Candidates shown of each."""
    threads: int = 1
    """Of the search."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used: it runs in this process."""

    def __post_init__(self) -> None:
        """One source of lists; tuning keeps away from test data."""
        if not self.data.captions:
            raise InputError("give data.captions, the captioned split that was embedded.")
        require_one_source(self.embeddings, self.evaluation, self.predictions)
        if min(self.top_k, self.threads, self.shown) < 1 or self.page < 0:
            raise InputError(
                f"top_k, threads and shown must be at least 1 and page 0 or more, got {self.top_k}, {self.threads}, "
                f"{self.shown} and {self.page}."
            )
        if self.action == "tune":
            refuse_tuning_on_test(self.data.split)
            if self.tuned:
                raise InputError("--action tune chooses the settings itself; leave --tuned out.")


def open_tuned(config: RerankConfig, gallery: CaptionSet) -> TunedFile[RerankSettings] | None:
    """The tuned settings, where they may be applied to this split."""
    if not config.tuned:
        return None
    tuned = read_tuned(config.tuned)
    refuse_tuned_split(tuned, gallery, config.data.split, allow=config.allow_overlap)
    return tuned


def settings_of(config: RerankConfig, tuned: TunedFile[RerankSettings] | None) -> RerankSettings:
    """What is to be done: tuned or given; where entities have no vectors, they re-rank nothing.

    Raises:
        InputError: tuned settings ask for entities, and their vectors are not given.
    """
    found = tuned.settings if tuned else config.rerank
    if config.action == "tune":
        found = tuning_settings(found, config.tuning)
    if config.entities.prompts and not config.predictions.texts:
        return found
    if tuned and any(found.of(way).egr.enabled for way in WAYS):
        raise InputError(
            f"{tuned.place!r} re-ranks by entities: give embeddings, --entities.prompts and --entities.masks."
        )
    return without_entities(found)


def plan(config: RerankConfig) -> Plan:
    """Sizes, memory, and the time that search and entities will take."""
    gallery = read_gallery(config.data, needs_images=False)
    tuned = open_tuned(config, gallery)
    settings = settings_of(config, tuned)
    banks = banks_of(config.embeddings, config.evaluation, gallery)
    for place in [*one_bank(banks), *config.entities.vector_places.values()]:
        if place and not files.exists(place):
            raise InputError(f"{place!r} does not exist; expected vectors there, as jobs/embed.py makes them.")
    depths = pool_depths(settings, config.top_k)
    images, captions = len(gallery.image_ids), len(gallery.captions)
    sizes: dict[Way, int] = {
        "t2i": captions * min(depths["t2i"], images),
        "i2t": images * min(depths["i2t"], captions),
    }
    judged = sum(sizes[way] for way in WAYS if settings.of(way).egr.enabled)
    searched = 0 if config.predictions.texts else 2 * images * captions
    seconds = searched / PAIRS_PER_S + judged / JUDGED_PER_S
    rows = [
        ("action", config.action),
        ("split", f"{config.data.split}: {images:,} images, {captions:,} captions"),
        ("settings", f"tuned on {tuned.split['name']!r}: {tuned.place}" if tuned else "as given, not tuned"),
        *(trial_rows(config.tuning) if config.action == "tune" else [(way, described(settings, way)) for way in WAYS]),
        ("searched", f"{searched:,} pairs"),
        ("judged by entities", f"{judged:,} pairs" if config.entities.prompts else "none: entities have no vectors"),
        ("memory", f"about {byte_size(LISTED_BYTES * sum(sizes.values()))} for lists, beside the vectors"),
        ("expected time", f"about {seconds:,.1f} s on one core{', and the trials' if config.action == 'tune' else ''}"),
    ]
    return Plan(rows)


def trial_rows(tuning: TuningConfig) -> list[tuple[str, str]]:
    """What tuning will try in each direction, for a person."""
    tried: dict[str, Sequence[float]] = {
        "masks": tuning.mask_weights,
        "prompts": tuning.prompt_weights,
        "pools": tuning.pools,
        "k": tuning.ks,
    }
    return [(f"tried {name}", ", ".join(f"{value:g}" for value in values)) for name, values in tried.items()]


def body(config: RerankConfig, run: Run) -> Report:
    """Find the candidates, and re-rank them, or tune how."""
    gallery = read_gallery(config.data, needs_images=False)
    tuned = open_tuned(config, gallery)
    settings = settings_of(config, tuned)
    banks = banks_of(config.embeddings, config.evaluation, gallery)
    read = read_inputs(banks, config.predictions, config.entities, settings, gallery)
    pools = read.lists
    if pools is None:
        assert read.vectors is not None, "either lists or vectors were read"
        pools = pools_of(read.vectors, pool_depths(settings, config.top_k), config.threads)
    evidence = evidence_of(read.vectors, pools, settings) if read.vectors else {}
    slots, plain = read.vectors.slots if read.vectors else None, to_plain(config)
    record: dict[str, Any] = {
        "split": split_identity(gallery, config.data.split),
        "inputs_sha256": read.hashes,
        "entities": entity_counts(slots, gallery.captions),
        "config": plain,
        "config_sha256": config_hash(plain),
        "versions": versions(),
    }
    if config.action == "tune":
        found = tune(pools, evidence, settings, gallery.caption_image, config.tuning)
        path = write_tuned(config.output, found, gallery, config.data.split, record)
        return Report([("tuned settings", path), *tuned_rows(found)], record)
    ids: dict[Way, list[str]] = {"t2i": gallery.image_ids, "i2t": gallery.caption_ids}
    stages = rerank(pools, evidence, settings, ids, config.top_k)
    record |= {"settings": to_plain(settings), "tuned": None}
    if tuned:
        record["tuned"] = {"place": tuned.place, "sha256": tuned.sha256, "split": tuned.split}
    return measured(config, gallery, stages, read.vectors, settings, record)


def measured(
    config: RerankConfig,
    gallery: CaptionSet,
    stages: list[Stage],
    vectors: Vectors | None,
    settings: RerankSettings,
    record: dict[str, Any],
) -> Report:
    """Lists, page and figures of what was re-ranked."""
    figures = stage_figures(stages, gallery.caption_image, len(gallery.image_ids), config.confidence)
    warnings = [line for name in (GUIDED, BIDIRECTIONAL) for line in losses(figures, name)]
    record |= {"figures": plain_figures(figures), "stages": stage_values(figures), "warnings": warnings}
    title = f"Re-ranking of {config.data.captions.rsplit('/', 1)[-1]}, split {config.data.split}"
    rows = write_lists(config.output, stages, gallery, config.top_k, in_original_form=config.original_files)
    if config.page:
        path, slots = files.join(config.output, PAGE_FILE), vectors.slots if vectors else None
        phrases = read_phrases(config.entities, gallery, slots, settings)
        maker = PageMaker(gallery, slots, phrases, read_box_map(config.entities))
        explained = explained_sections(stages, vectors, settings, gallery, count=config.page, depth=config.shown)
        write_page(path, explained, maker, figures, title)
        rows.append(("page", path))
    files.write_json(files.join(config.output, FIGURES_FILE), record)
    rows.append(("figures", files.join(config.output, FIGURES_FILE)))
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in (record["entities"] or {}).items()]
    rows += [("warning", line) for line in warnings]
    return Report(rows, record, table_text(figures, title))


def tuned_rows(tuned: Tuned) -> list[tuple[str, str]]:
    """What was chosen, and what it gained, for a person."""
    rows = [("tried", f"{len(tuned.trials):,} settings")]
    for way in WAYS:
        rows.append((way, described(tuned.settings, way)))
        for step in ("egr", "tbr"):
            trials = [trial for trial in tuned.trials if (trial.way, trial.step) == (way, step)]
            if trials:
                taken = next(trial for trial in trials if trial.is_taken)
                off = next(trial for trial in trials if not trial.setting)
                rows.append((f"{way} {step}", f"mean recall {off.mean_recall:.2f} → {taken.mean_recall:.2f}"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("rerank", RerankConfig, plan=plan, body=body, description=__doc__ or "", argv=argv, uses_ray=False)


if __name__ == "__main__":
    sys.exit(main())
