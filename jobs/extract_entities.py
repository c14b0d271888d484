"""Find the entities of captions, and where they are in the images.

OUTPUT/entities gets a table with the spans of every caption: its noun phrases ("a tall structure"), and the longer ones
that prepositions build of them ("top of a tall structure"). With --boxes.model, a zero-shot detector of transformers
looks for each in its image, and OUTPUT/boxes gets the boxes. With --visual_genome.objects, OUTPUT/visual_genome gets
those of Visual Genome. embed makes vectors of them (--side prompts, --side masked_texts); train_alignment and rerank
read them.

Example: `python jobs/extract_entities.py --captions.captions dataset.json --captions.images images --output entities`.
A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from alignment.entities.entity_tables import (
    CaptionEntities,
    entity_rows,
    read_entity_file,
    table_files,
    write_boxes,
)
from alignment.entities.extraction import ExtractEntities, ExtractionConfig, caption_listing
from alignment.entities.grounding import GroundingConfig, GroundPhrases
from alignment.entities.phrases import phrase_listing
from alignment.entities.spice import read_spice
from alignment.entities.taggers import chosen_tagger, load_tagger
from alignment.entities.visual_genome import read_visual_genome
from raydeploy.connect import RayConfig
from raydeploy.forecast import STARTUP_S, Fact, Forecast, forecast_of
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.image_listing import plan_listing_shards, read_listing
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError
from xmatch.models.staging import content_hash, content_of, local_folder
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class VisualGenomeConfig:
    """Boxes of Visual Genome."""

    objects: str = ""
    """objects.json or region_descriptions.json, as Visual Genome distributes them; empty: none."""
    image_data: str = ""
    """image_data.json, with the sizes of its images."""
    prefix: str = ""
    """Put before its image ids, such as `vg_nococo/`."""

    def __post_init__(self) -> None:
        """Pixels are of no use without the size of their image."""
        if bool(self.objects) != bool(self.image_data):
            raise InputError("objects and image_data of Visual Genome belong together: give both, or none.")


@dataclass(frozen=True, kw_only=True)
class ExtractEntitiesConfig:
    """Settings of one extraction."""

    output: str
    """Folder for `entities`, `boxes` and `visual_genome`."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """The captions. With inputs=text, those of a Karpathy JSON alone: its images are needed for boxes only."""
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    """What counts as a textual entity."""
    boxes: GroundingConfig = field(default_factory=GroundingConfig)
    """Which detector looks for the entities in the images; none unless boxes.model is given."""
    visual_genome: VisualGenomeConfig = field(default_factory=VisualGenomeConfig)
    """Boxes of Visual Genome, without any detector."""
    captions_per_shard: int = 8192
    """Captions in one shard, the unit of resume."""
    images_per_shard: int = 64
    """Images in one shard of boxes."""
    device: str = "auto"
    """Of the detector: `auto`, `cpu` or `cuda`."""
    staging: str = ""
    """Folder or URI for the copy that workers load the detector from, shared by runs; empty: OUTPUT/models, and none
    where a local folder serves workers of this machine alone."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Something must be asked for, and boxes need images."""
        if not self.captions.captions and not self.visual_genome.objects:
            raise InputError("nothing to do: give --captions.captions, --visual_genome.objects, or both.")
        if self.boxes.model and (not self.captions.captions or self.captions.inputs != "images"):
            raise InputError("--boxes.model looks into images: give captions with their images (inputs=images).")
        if self.captions_per_shard < 1 or self.images_per_shard < 1:
            raise InputError("captions_per_shard and images_per_shard must be at least 1.")

    @property
    def entities_folder(self) -> str:
        """Folder of the run of entities."""
        return files.join(self.output, "entities")

    @property
    def boxes_folder(self) -> str:
        """Folder of the run of boxes."""
        return files.join(self.output, "boxes")


def extraction_step(config: ExtractEntitiesConfig) -> ExtractEntities:
    """The step that finds entities, with the tagger that every worker must have."""
    name = chosen_tagger(config.extraction.tagger)
    return ExtractEntities(name, config.extraction.max_words, load_tagger(name).identity)


def grounding_step(config: ExtractEntitiesConfig) -> GroundPhrases:
    """The step that looks for entities in images."""
    return GroundPhrases(config.boxes, threads=max(1, int(config.ray.cpus_per_actor)), device=config.device)


def listing_of(config: ExtractEntitiesConfig, split: CaptionSet) -> pa.Table:
    """The captions as the step reads them."""
    tuples = read_spice(config.extraction.tuples) if config.extraction.tuples else None
    images = [split.image_ids[row] for row in split.caption_image]
    return caption_listing(split.caption_ids, images, split.captions, tuples)


def plan(config: ExtractEntitiesConfig) -> Plan:
    """Captions, tagger and detector, and a forecast from a sample of the work."""
    rows: list[tuple[str, str]] = []
    found: Forecast | str = ""
    if config.captions.captions:
        split, step = read_split(config.captions), extraction_step(config)
        rows += [
            ("captions", f"{len(split.captions):,} of {len(split.image_ids):,} images"),
            ("tagger", step.identity),
            ("longest entity", f"{config.extraction.max_words} words"),
        ]
        found = _forecast(config, split, step)
    if config.boxes.model:
        rows.append(("detector", f"{config.boxes.model}, boxes from a score of {config.boxes.threshold:g}"))
    if config.visual_genome.objects:
        rows.append(("visual genome", config.visual_genome.objects))
    rows.append(("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU"))
    return Plan(rows, found)


def _forecast(config: ExtractEntitiesConfig, split: CaptionSet, step: ExtractEntities) -> Forecast | str:
    """Of the extraction, or of it and the boxes, counted in images."""
    listing = listing_of(config, split)
    shards = _shards(len(listing), config.captions_per_shard)
    reader = _Slices(listing)
    extraction = forecast_of(step, reader, shards, config.ray, unit="captions", count=lambda counts: counts["captions"])
    if not config.boxes.model:
        return extraction
    middle = len(listing) // 2
    sample = step("forecast", listing.slice(middle, 5 * config.images_per_shard)).table
    places = dict(zip(split.image_ids, split.image_paths, strict=True))
    phrases = phrase_listing(entity_rows(sample), places).slice(0, config.images_per_shard)
    shards = _shards(len(split.image_ids), max(1, len(phrases)))
    found = forecast_of(
        grounding_step(config),
        lambda shard: phrases,
        shards if len(phrases) else [],
        config.ray,
        unit="images",
        count=lambda counts: counts["images"],
    )
    if isinstance(found, Forecast) and isinstance(extraction, Forecast):
        found = found._replace(seconds=found.seconds + extraction.seconds - STARTUP_S)
    return found


class _Slices:
    """A reader of a table in memory, for a forecast: nothing is written before a run."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __call__(self, shard: Shard) -> pa.Table:
        return self.table.slice(shard.start, shard.stop - shard.start)


def _shards(count: int, per_shard: int) -> list[Shard]:
    starts = range(0, count, per_shard)
    return [Shard(shard_name(at), "", start, min(count, start + per_shard)) for at, start in enumerate(starts)]


def body(config: ExtractEntitiesConfig, run: Run) -> Report:
    """Entities of the captions, then their boxes, then those of Visual Genome."""
    rows: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    fact = Fact()
    if config.captions.captions:
        split = read_split(config.captions)
        made = extract(config, run, split, fact)
        rows, values = made.rows, made.values
    if config.boxes.model:
        grounded = ground(config, run, dict(zip(split.image_ids, split.image_paths, strict=True)), fact)
        rows, values = [*rows, *grounded.rows], {**values, **grounded.values}
    if config.visual_genome.objects:
        source = config.visual_genome
        table, found = read_visual_genome(source.objects, source.image_data, source.prefix)
        place = files.join(config.output, "visual_genome", "boxes.parquet")
        write_boxes(place, table)
        values["visual_genome"] = found._asdict()
        rows += [("visual genome", place), *((name, f"{count:,}") for name, count in found._asdict().items())]
    return Report(rows, values, fact=fact)


def extract(config: ExtractEntitiesConfig, run: Run, split: CaptionSet, fact: Fact) -> Report:
    """Stream the captions through the tagger."""
    step, listing = extraction_step(config), files.join(config.entities_folder, "inputs.parquet")
    files.write_parquet(listing, listing_of(config, split))
    identity = {"inputs": files.sha256(listing), "tagger": step.identity, "max_words": step.max_words}
    ledger = Ledger(config.entities_folder, identity)
    shards = plan_listing_shards(listing, config.captions_per_shard)
    ray = dataclasses.replace(config.ray, gpus_per_actor=0)
    with run.progress(len(split.captions), "captions") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="parquet", ray=ray):
            progress.advance(report.counts["captions"])
            fact.add(report, 0 if config.boxes.model else report.counts["captions"])
            run.finished(report)
    finished = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    counts = finished["counts"]
    figures = entity_figures(config.entities_folder)
    rows = [("entities", config.entities_folder), ("tagger", step.identity), *progress.rates()]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    rows += [
        ("entities per caption", f"{counts['entities'] / max(1, counts['captions']):.2f}"),
        ("most entities", f"{figures['most_entities']}"),
        ("longest entity", repr(figures["longest_entity"])),
    ]
    return Report(rows, {"counts": counts, **figures})


def entity_figures(folder: str) -> dict[str, Any]:
    """How many captions have how many entities, the most that one has, and the entity of most words."""
    captions_by_entities: dict[int, int] = {}
    longest, words = "", 0
    for path in table_files(folder, "entities"):
        entities = files.read_parquet(path).column("entities")
        for pair in pc.list_value_length(entities).value_counts().to_pylist():
            captions_by_entities[pair["values"]] = captions_by_entities.get(pair["values"], 0) + pair["counts"]
        texts = pc.struct_field(pc.list_flatten(entities), "text")
        if len(texts):
            counts = pc.count_substring_regex(texts, r"\s+")
            most = pc.max(counts).as_py()
            if most >= words:
                longest, words = texts[pc.index(counts, most).as_py()].as_py(), most + 1
    by_count = {str(count): captions_by_entities[count] for count in sorted(captions_by_entities)}
    most_entities = max(captions_by_entities, default=0)
    return {"captions_by_entities": by_count, "most_entities": most_entities, "longest_entity": longest}


def ground(config: ExtractEntitiesConfig, run: Run, places: dict[str, str], fact: Fact) -> Report:
    """Stream the images through the detector, each with the entities of its captions."""
    listing = files.join(config.boxes_folder, "inputs.parquet")
    files.write_parquet(listing, phrase_listing(_all_rows(config.entities_folder), places))
    shards = plan_listing_shards(listing, config.images_per_shard)
    if not shards:
        raise InputError("no caption has an entity, so there is nothing to look for; leave --boxes.model out.")
    settings = dataclasses.asdict(config.boxes)
    settings["model"] = content_hash(content_of(local_folder(config.boxes.model, "model"), "model"))
    ledger = Ledger(config.boxes_folder, {"inputs": files.sha256(listing), "detector": settings})
    step = grounding_step(config)
    step.model = place_for_workers(config.boxes.model, "model", config.output, config.staging)
    with run.progress(sum(shard.stop - shard.start for shard in shards), "images") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["images"] + report.counts["quarantined"])
            fact.add(report, report.counts["images"])
            run.finished(report)
    finished = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    rows = [("boxes", config.boxes_folder), *progress.rates()]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in finished["counts"].items()]
    return Report(rows, {"boxes": finished["counts"]})


def _all_rows(folder: str) -> Iterator[CaptionEntities]:
    for path in table_files(folder, "entities"):
        yield from entity_rows(read_entity_file(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job(
        "extract_entities", ExtractEntitiesConfig, plan=plan, body=body, description=__doc__ or "", argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
