"""Find regions in images: boxes, what is in them and a vector of each, for MVPTR and other matchers of regions.

OUTPUT/shards gets a table of vectors, a row a region. A Faster R-CNN of torchvision, a DETR of transformers or, without
any detector, the cells of an image tower (--detector.kind) propose; --regions says how many are kept. Images that
cannot be read are in OUTPUT/quarantine. `convert --what export_mvptr` makes the originals' files of the table.

With --data, a JSON list of objects with `text`, `image_id` and `label`, the same command finds the phrases of the texts
too and writes what alignment.mvptr.dataset.MVPTRDataset reads: predictions.tsv and processed_DATA.json.

With --vokens and --keys, the images are the unique best ones of a vokenized set of dialogues, and OUTPUT gets Maria's
file of their concepts, SET_SPLIT_d2obj36_batch_noAttr.tsv, with 36 regions of each.

Example: `python jobs/extract_regions.py --images.root photos --detector.model fasterrcnn_resnet50_fpn_v2
--detector.weights FILE.pth --output regions`. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignment.mvptr.phrase_extraction import PhraseConfig, read_pairs
from alignment.mvptr.regions.detector_config import DetectorConfig, weights_file
from alignment.mvptr.regions.extraction import ExtractRegions, image_places, stems_of
from alignment.mvptr.regions.grid_detector import grid_tower
from alignment.mvptr.regions.region_tsv import MARIA_BOXES, write_maria, write_mvptr
from alignment.mvptr.regions.selection import SelectionConfig
from alignment.mvptr.regions.table import RegionTable
from jobs.extract_phrases import ExtractPhrasesConfig, extract
from jobs.extract_phrases import plan as phrase_plan
from raydeploy.connect import RayConfig
from raydeploy.forecast import Fact, forecast_of
from raydeploy.ledger import Ledger, run_hash
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import file_for_workers, image_tower_for_workers, place_for_workers
from raydeploy.streams import run_shards
from vokenize.original_vokens import best_images
from vokenize.voken_files import read_voken_shard
from xmatch.data import files
from xmatch.data.image_listing import image_listing, read_listing
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards, split_universal_id
from xmatch.data.steps import Reader, Shard, shard_name
from xmatch.data.vectors import read_vectors
from xmatch.errors import InputError
from xmatch.models.staging import content_hash, content_of, local_folder
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class ExtractRegionsConfig:
    """Settings of one extraction."""

    output: str
    """Folder for the table of regions, and for the files made of it."""
    images: ImageSource = field(default_factory=ImageSource)
    """The images; ids are SET/IMAGE. With `data`, images.root is the folder where its images lie."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captioned splits in their place; ids are those that training and evaluation look up."""
    data: str = ""
    """JSON list of objects with `text`, `image_id` and `label`: the images are those it names, by file name."""
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    """How the phrases of the texts of `data` are found."""
    vokens: str = ""
    """Voken run of dialogues at sentence level: the images are the best one of every dialogue."""
    keys: str = ""
    """Key bank of that run, whose uris say where the images are."""
    split: str = "train"
    """Second part of the name of Maria's file; the first are the key bank's image sets."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """What finds regions."""
    regions: SelectionConfig = field(default_factory=SelectionConfig)
    """How many are kept, and which; for Maria always 36."""
    geometry: bool = True
    """End each vector with the six numbers of where its box is, as VinVL and MVPTR do; for Maria never."""
    images_per_shard: int = 64
    """Images in one shard, the unit of resume."""
    batch_size: int = 4
    """Images in one forward pass."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    staging: str = ""
    """Folder or URI for the copy that workers load a detector of transformers from; empty: OUTPUT/models, and none
    where a local folder serves workers of this machine alone. Other weights lie where every worker can read them."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """One source of images."""
        if bool(self.vokens) != bool(self.keys):
            raise InputError("--vokens and --keys belong together: a voken is a row of the key bank.")
        if self.data and not self.images.root:
            raise InputError("--data names images: --images.root is the folder where they lie.")
        folder = bool(self.images.root) and not self.data
        if sum(map(bool, (self.data, folder, self.captions.captions, self.vokens))) != 1:
            raise InputError(
                "give the images in one way: --images.root, --captions.captions, --data with --images.root, or "
                "--vokens with --keys."
            )
        if self.captions.captions and self.captions.inputs != "images":
            raise InputError("regions are found in photographs: use captions.inputs=images.")
        if not self.detector.model:
            raise InputError(
                "--detector.model names what finds regions: a Faster R-CNN of torchvision with --detector.weights, a "
                "DETR with --detector.kind transformers, or an image tower of timm with --detector.kind grid."
            )
        if self.images_per_shard < 1 or self.batch_size < 1:
            raise InputError("images_per_shard and batch_size must be at least 1.")

    @property
    def selection(self) -> SelectionConfig:
        """How many regions are kept, and which."""
        if not self.vokens:
            return self.regions
        return dataclasses.replace(self.regions, min_regions=MARIA_BOXES, max_regions=MARIA_BOXES)

    @property
    def has_geometry(self) -> bool:
        """Whether vectors end with the six numbers of where their box is."""
        return self.geometry and not self.vokens


class Work(NamedTuple):
    """The images of a run: ids and places, or a source that names them itself."""

    ids: list[str]
    places: list[str]
    source: ImageSource | None = None


def work_of(config: ExtractRegionsConfig) -> Work:
    """Which images, and where they are."""
    if config.data:
        ids = [str(pair["image_id"]) for pair in read_pairs(config.data)]
        place_of = dict(zip(ids, image_places(config.images.root, ids, config.data), strict=True))
        return Work(list(place_of), list(place_of.values()))
    if config.vokens:
        places = _best_places(config)
        return Work(stems_of(places), places)
    if config.captions.captions:
        split = read_split(config.captions)
        return Work(list(split.image_ids), list(split.image_paths))
    return Work([], [], config.images)


def _best_places(config: ExtractRegionsConfig) -> list[str]:
    """Where the best images of the dialogues are, each once, in the order of the dialogues."""
    bank = read_vectors(config.keys)
    found: dict[int, None] = {}
    shards = files.list_files(files.join(config.vokens, "shards"), ".parquet")
    for path in shards:
        for line, row in enumerate(best_images(read_voken_shard(path))):
            if row is not None and row >= len(bank):
                raise InputError(f"{path!r}, row {line}: voken {row} is beyond the {len(bank)} images of the key bank.")
            if row is not None:
                found[row] = None
    if not found:
        raise InputError(f"{config.vokens!r} has no sentence vokens; expected a run of vokenize_corpus there.")
    uris = bank.column("uri").take(list(found)).to_pylist()
    for row, uri in zip(found, uris, strict=True):
        if not uri:
            raise InputError(f"{config.keys!r}, row {row}: no uri, so its image cannot be looked at; embed it again.")
    return [str(uri) for uri in uris]


def shards_of(config: ExtractRegionsConfig, work: Work, listing: str) -> tuple[list[Shard], Reader]:
    """The shards of a run, and what reads them."""
    if work.source is not None:
        return plan_image_shards(work.source, config.images_per_shard), ImageReader(work.source)
    starts = range(0, len(work.ids), config.images_per_shard)
    stops = [min(len(work.ids), start + config.images_per_shard) for start in starts]
    shards = [Shard(shard_name(at), listing, start, stop) for at, (start, stop) in enumerate(zip(starts, stops))]
    return shards, read_listing


def step_of(config: ExtractRegionsConfig, detector: DetectorConfig) -> ExtractRegions:
    """The step that finds regions."""
    return ExtractRegions(
        detector,
        config.selection,
        geometry=config.has_geometry,
        batch_size=config.batch_size,
        threads=max(1, int(config.ray.cpus_per_actor)),
        device=config.device,
    )


def plan(config: ExtractRegionsConfig) -> Plan:
    """Images and detector, and a forecast from a sample of the work."""
    work = work_of(config)
    shards, reader = shards_of(config, work, "")
    if work.source is None:
        table = image_listing(work.ids, work.places)
        reader = _Rows(table)
    found = forecast_of(
        step_of(config, config.detector),
        reader,
        shards,
        config.ray,
        unit="images",
        count=lambda counts: counts["images"],
    )
    count = f"{len(work.ids):,}" if work.source is None else f"{len(shards):,} shards of {config.images.root}"
    rows = [
        ("images", count),
        ("detector", f"{config.detector.kind} {config.detector.model}"),
        ("regions", f"{config.selection.min_regions} to {config.selection.max_regions} of each"),
        ("features", "with six numbers of the box" if config.has_geometry else "of the detector alone"),
        ("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU, {config.ray.gpus_per_actor:g} GPU"),
    ]
    if config.data:
        rows += phrase_plan(_phrases(config)).rows
    return Plan(rows, found)


class _Rows:
    """A reader of a table in memory, for a forecast: nothing is written before a run."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __call__(self, shard: Shard) -> Any:
        return self.table.slice(shard.start, shard.stop - shard.start)


def _phrases(config: ExtractRegionsConfig) -> ExtractPhrasesConfig:
    place = files.join(config.output, "phrases")
    return ExtractPhrasesConfig(output=place, data=config.data, phrases=config.phrases, ray=config.ray)


def detector_identity(detector: DetectorConfig) -> dict[str, Any]:
    """What decides a detector's output: its settings, files by their content."""
    settings = dataclasses.asdict(detector)
    if detector.kind == "transformers" or (detector.kind == "grid" and os.path.isdir(detector.model)):
        settings["model"] = content_hash(content_of(local_folder(detector.model, "model"), "model"))
    elif detector.kind == "torchscript":
        settings["model"] = files.sha256(detector.model)
    if detector.weights not in ("", "pretrained", "none"):
        settings["weights"] = files.sha256(weights_file(detector.weights))
    if detector.names:
        settings["names"] = files.sha256(detector.names)
    return settings


def for_workers(config: ExtractRegionsConfig) -> DetectorConfig:
    """The detector as workers shall load it: its files staged where other machines may read."""
    detector, model = config.detector, config.detector.model
    if detector.kind == "grid":
        tower = image_tower_for_workers(grid_tower(detector), config.output)
        return dataclasses.replace(detector, model=tower.name, weights=tower.weights)
    given = (config.output, config.staging)
    if detector.kind == "transformers":
        model = place_for_workers(model, "model", *given)
    elif detector.kind == "torchscript":
        model = file_for_workers(model, *given)
    weights = file_for_workers(weights_file(detector.weights), *given) if detector.weights else ""
    names = file_for_workers(detector.names, *given) if detector.names else ""
    return dataclasses.replace(detector, model=model, weights=weights, names=names)


def body(config: ExtractRegionsConfig, run: Run) -> Report:
    """Stream the images through the detector, then write the files that the images were for."""
    fact, work, listing = Fact(), work_of(config), files.join(config.output, "inputs.parquet")
    identity: dict[str, Any] = {"detector": detector_identity(config.detector)}
    identity |= {"regions": dataclasses.asdict(config.selection), "geometry": config.has_geometry}
    identity["batch"] = config.batch_size
    if work.source is None:
        files.write_parquet(listing, image_listing(work.ids, work.places))
        identity["images"] = files.sha256(listing)
    else:
        identity["images"] = repr(work.source)
    if config.vokens:
        identity["vokens"] = run_hash(config.vokens)
    ledger = Ledger(config.output, identity)
    shards, reader = shards_of(config, work, listing)
    step = step_of(config, for_workers(config))
    with run.progress(len(work.ids) or None, "images") as progress:
        for report in run_shards(shards, reader, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(report.counts["images"] + report.counts["quarantined"])
            fact.add(report, report.counts["images"])
            run.finished(report)
    finished = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    rows = [("regions", files.join(config.output, "shards")), *progress.rates()]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in finished["counts"].items()]
    made = results(config, run, fact)
    return Report([*rows, *made.rows], {"counts": finished["counts"], **made.values}, fact=fact)


def results(config: ExtractRegionsConfig, run: Run, fact: Fact) -> Report:
    """The files that the images were for: of one's own data, or Maria's."""
    if config.data:
        count = write_mvptr(config.output, RegionTable(config.output))
        found = extract(_phrases(config), run, fact)
        rows = [("predictions.tsv", f"{count:,} images, {config.output}"), *found.rows]
        return Report(rows, {"phrases": found.values})
    if config.vokens:
        path = files.join(config.output, f"{_bank_sets(config.keys)}_{config.split}_d2obj36_batch_noAttr.tsv")
        count = write_maria(path, RegionTable(config.output))
        return Report([("concepts", f"{count:,} images, {path}")], {"concepts": path})
    return Report([])


def _bank_sets(keys: str) -> str:
    ids = read_vectors(keys).column("id").to_pylist()
    return "_".join(sorted({split_universal_id(uid)[0] for uid in ids}))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("extract_regions", ExtractRegionsConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
