"""Measure image-to-text and text-to-image retrieval on a benchmark, beside the published figures.

With --rerank mvptr the model is an MVPTR, and its cross encoder orders the candidates anew that its vectors found.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jobs import _two_step, _two_step_plan
from jobs._two_step import TwoStepConfig
from raydeploy.config import config_hash, to_plain
from raydeploy.connect import RayConfig, connect
from raydeploy.forecast import PROCESS_BYTES, Fact, Forecast, forecast_of
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.shard_actor import ShardActor
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from raydeploy.versions import versions
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.image_listing import image_listing, plan_listing_shards, read_listing
from xmatch.data.region_sources import RegionReader, RegionSource, plan_region_shards, region_files
from xmatch.data.vectors import make_vectors, matrix, read_vectors, write_vectors
from xmatch.embedding import EmbedImages, EmbedRegions
from xmatch.errors import InputError
from xmatch.evaluation.benchmarks import benchmark_of, size_warning
from xmatch.evaluation.comparison import comparison_text
from xmatch.evaluation.evaluated import embedding_places
from xmatch.evaluation.gallery import GalleryConfig, read_gallery
from xmatch.evaluation.measures import ConfidenceConfig, Request
from xmatch.evaluation.members import (
    LINE_ID,
    EmbeddingsConfig,
    Member,
    embeddings_member,
    image_rows,
    places,
    similarity_member,
)
from xmatch.evaluation.provenance import (
    data_hashes,
    evaluation_versions,
    overlap_of_models,
    overlap_text,
    record_of,
    unknown_overlap,
)
from xmatch.evaluation.results import write_results
from xmatch.evaluation.view_similarities import across
from xmatch.models import checkpoints
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig


@dataclass(frozen=True, kw_only=True)
class EvalRetrievalConfig:
    """Settings of one evaluation."""

    output: str
    """Folder for figures, ranks, plot, page and embeddings."""
    benchmark: str = ""
    """`flickr8k`, `flickr30k`, `coco_1k`, `coco_5k`, `cxc` or `eccv`; empty: both directions over any split."""
    model: list[str] | str = ""
    """Dual encoder: a folder or hub name; several, joined by commas or as a list, form an ensemble."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    """Ready embeddings instead of a model, or beside others in an ensemble."""
    similarity: list[str] | str = ""
    """Saved similarities as .npy (images x captions), memory-mapped, also the originals' results_*.npy; one or more."""
    data: GalleryConfig = field(default_factory=lambda: GalleryConfig(split="test"))
    """The captioned split, in the order of the benchmark's files."""
    cxc: str = ""
    """Folder with CxC's sits_test.csv, sis_test.csv and sts_test.csv, or VSE-infinity's cxc_annots (benchmark cxc)."""
    eccv: str = ""
    """Folder with eccv_image_to_caption.json and eccv_caption_to_image.json; empty: those of the package eccv_caption,
    whose own figures are then computed too (benchmark eccv)."""
    pmrp: str = ""
    """Folder with PCME's pm_image_to_caption.json and pm_caption_to_image.json; empty: no PMRP (benchmark eccv)."""
    allow_overlap: bool = False
    """Measure even if a model has seen images of the benchmark; the result says so."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    """Bootstrap confidence intervals."""
    worst: int = 20
    """Worst queries of each direction on the page; 0: no page."""
    top_k: int = 10
    """Candidates of every query listed in retrieved.parquet, found by exact search; 0: no list."""
    batch_size: int = 32
    """Images in one forward pass."""
    rerank: Literal["none", "mvptr"] = "none"
    """`mvptr`: the model is a saved MVPTR; the figures of its own vectors (coarse) come with those of its cross encoder
    (fine), and of both together where weights were tuned (fused)."""
    two_step: TwoStepConfig = field(default_factory=TwoStepConfig)
    """What --rerank mvptr needs."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where images are embedded."""

    def __post_init__(self) -> None:
        """Something to measure, and something to measure it on."""
        benchmark_of(self.benchmark)
        if not self.data.captions:
            raise InputError("give data.captions and data.images.")
        if not [*places(self.model), *places(self.embeddings.images), *places(self.similarity)]:
            raise InputError("nothing to measure: give --model, --embeddings.images and .texts, or --similarity.")
        if min(self.worst, self.top_k) < 0 or self.batch_size < 1:
            raise InputError(
                f"worst and top_k must be 0 or more and batch_size 1 or more, got {self.worst}, {self.top_k}, "
                f"{self.batch_size}."
            )

        if self.rerank == "mvptr":
            _two_step.check(self, places(self.model))

    @property
    def photo_models(self) -> list[str]:
        """The models that read photographs; an MVPTR reads ready-made regions."""
        return [] if self.rerank == "mvptr" else [model for model in places(self.model) if reads_photos(model)]

    @property
    def threads(self) -> int:
        """Of whatever reads photos."""
        return max(1, int(self.ray.cpus_per_actor))


def reads_photos(model: str) -> bool:
    """Whether a saved model's image tower takes photographs rather than ready-made regions."""
    config = checkpoints.read_config(checkpoints.resolve(model), DualEncoderConfig)
    return config.image.kind != "regions"


def gallery_of(config: EvalRetrievalConfig) -> CaptionSet:
    """The split, with photographs if a model needs them."""
    return read_gallery(config.data, needs_images=bool(config.photo_models))


def request_of(config: EvalRetrievalConfig, gallery: CaptionSet, members: list[Member]) -> Request:
    """What is asked of the benchmark."""
    return Request(gallery, members, config.confidence, config.cxc, config.eccv, config.pmrp)


def plan(config: EvalRetrievalConfig) -> Plan:
    """Images, captions and members; refuses files that do not fit and, by ids and captions, a split that was seen."""
    gallery, benchmark = gallery_of(config), benchmark_of(config.benchmark)
    benchmark.check(request_of(config, gallery, []))
    ready = [*places(config.embeddings.images), *places(config.embeddings.texts), *places(config.similarity)]
    for place in ready:
        if not files.exists(place):
            raise InputError(f"{place!r} does not exist; expected embeddings or a saved similarity there.")
    known = overlap_of_models(places(config.model), gallery, allow=config.allow_overlap, threads=0)
    warning = size_warning(benchmark, len(gallery.image_ids), len(gallery.captions))
    two_step = config.rerank == "mvptr"
    found = (
        _two_step_plan.forecast_pairs(config, places(config.model)[0], gallery)
        if two_step
        else forecast_photos(config, gallery)
    )
    rows = [
        ("benchmark", benchmark.title or "any split"),
        ("images", f"{len(gallery.image_ids):,}"),
        ("captions", f"{len(gallery.captions):,}"),
        ("members", ", ".join([*places(config.model), *ready])),
        *([("overlap", overlap_text(known))] if known else []),
        *([("note", warning)] if warning else []),
        *([("bad rows", f"{gallery.bad_rows:,}; the first: {gallery.first_bad[0]}")] if gallery.bad_rows else []),
        *(_two_step_plan.plan_rows(config, places(config.model)[0], gallery) if two_step else []),
        ("scores", f"{len(gallery.image_ids) * len(gallery.captions):,} pairs for each member"),
    ]
    return Plan(rows, found)


def forecast_photos(config: EvalRetrievalConfig, gallery: CaptionSet) -> Forecast | str:
    """How long embedding the photographs will take, nearly all of the time; or why that is not known."""
    models = config.photo_models
    if not models:
        return "not measured: nothing is to be embedded"
    with tempfile.TemporaryDirectory() as folder:
        listing = files.join(folder, "images.parquet")
        files.write_parquet(listing, image_listing(gallery.image_ids, gallery.image_paths))
        found = forecast_of(
            EmbedImages(models[0], batch_size=config.batch_size, threads=config.threads),
            read_listing,
            plan_listing_shards(listing, images_per_shard=512),
            config.ray,
            unit="images",
            count=lambda counts: counts["images"],
            memory_bytes=PROCESS_BYTES + 4 * checkpoints.weight_counts(models[0]).total,
        )
    return found if isinstance(found, str) else found.times(len(models))


def embed_photos(config: EvalRetrievalConfig, run: Run, model: str, gallery: CaptionSet, bank: str, fact: Fact) -> str:
    """Embed the split's photographs in actors, resumably, into the folder `bank`; that folder.

    Raises:
        InputError: a photograph cannot be read.
    """
    listing = files.join(config.output, "images.parquet")
    files.write_parquet(listing, image_listing(gallery.image_ids, gallery.image_paths))
    shards = plan_listing_shards(listing, images_per_shard=512)
    identity = {"model": checkpoints.model_hash(model), "images": files.sha256(listing)}
    ledger = Ledger(bank, identity)
    place = place_for_workers(model, "model", config.output)
    step = EmbedImages(place, batch_size=config.batch_size, threads=config.threads)
    with connect(config.ray), run.progress(len(gallery.image_ids), "images") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(report.counts["images"])
            fact.add(report, report.counts["images"])
    counts = ledger.finish([shard.id for shard in shards])["counts"]
    if counts["quarantined"]:
        raise InputError(
            f"{counts['quarantined']} images of the split cannot be read, so recall would not be comparable; see "
            f"{files.join(ledger.output, 'quarantine')}."
        )
    return ledger.output


def embed_regions(config: EvalRetrievalConfig, model: str, bank: str) -> str:
    """Embed the ready-made regions of a precomputed folder in this process, into the folder `bank`; that folder.

    Raises:
        InputError: the folder has none, or lacks what the model has to know of them.
    """
    source = RegionSource(path=config.data.captions, split=config.data.split)
    hashes = {path.rsplit("/", 1)[-1]: files.sha256(path) for path in region_files(source)}
    ledger = Ledger(bank, {"model": checkpoints.model_hash(model), "regions": hashes})
    step = EmbedRegions(model, source, batch_size=config.batch_size, threads=config.threads)
    worker, read = ShardActor(step, bank, "arrow"), RegionReader(source)
    shards = plan_region_shards(source, images_per_shard=512)
    for shard in shards:
        worker.run_shard(shard.id, read(shard))
    ledger.finish([shard.id for shard in shards])
    return ledger.output


def model_member(config: EvalRetrievalConfig, run: Run, model: str, gallery: CaptionSet, fact: Fact) -> Member:
    """A saved model's scores; its embeddings stay in <output>/embeddings, to be measured again without it."""
    digest = checkpoints.model_hash(model)
    kept = embedding_places(config.output, digest, gallery)
    if reads_photos(model):
        images = image_rows(embed_photos(config, run, model, gallery, kept.images, fact), gallery)
    else:
        images = image_rows(embed_regions(config, model, kept.images), gallery)
    bank = kept.texts
    if not files.exists(bank):
        texts = DualEncoder.from_pretrained(model).encode_texts(gallery.captions)
        is_unique = len(set(gallery.caption_ids)) == len(texts)
        ids = gallery.caption_ids if is_unique else [f"{LINE_ID}{row}" for row in range(len(texts))]
        write_vectors(bank, make_vectors(ids, texts))
    texts = np.asarray(matrix(read_vectors(bank)), dtype=np.float32)
    source = across(images, texts)
    return Member("model", model, source, (source.images, source.texts), {"model": digest})


def members_of(config: EvalRetrievalConfig, run: Run, gallery: CaptionSet, fact: Fact) -> list[Member]:
    """Whatever is measured, in the order of the settings."""
    plain = files.join(config.output, "similarity")
    folder = tempfile.mkdtemp(prefix="similarity-") if files.is_uri(plain) else os.path.abspath(plain)
    pairs = zip(places(config.embeddings.images), places(config.embeddings.texts), strict=True)
    return [
        *(model_member(config, run, model, gallery, fact) for model in places(config.model)),
        *(embeddings_member(images, texts, gallery) for images, texts in pairs),
        *(similarity_member(path, gallery, folder) for path in places(config.similarity)),
    ]


def body(config: EvalRetrievalConfig, run: Run) -> Report:
    """Embed what is not embedded yet, measure, and write the result."""
    gallery, benchmark, models = gallery_of(config), benchmark_of(config.benchmark), places(config.model)
    overlap = overlap_of_models(models, gallery, allow=config.allow_overlap, threads=config.threads)
    fact, steps = Fact(), None
    if config.rerank == "mvptr":
        members, steps = _two_step.measure(config, run, models[0], gallery, fact)
    else:
        members = members_of(config, run, gallery, fact)
    overlap += unknown_overlap(members)
    request = request_of(config, gallery, members)
    measured = benchmark.measure(request)
    warning = size_warning(benchmark, len(gallery.image_ids), len(gallery.captions))
    record = record_of(
        measured, benchmark=config.benchmark, captions=gallery, members=members, overlap=overlap, warning=warning
    )
    hashes = data_hashes(config.data, gallery, reads_photos=bool(config.photo_models), threads=config.threads)
    plain = to_plain(config)
    record |= {
        "config": plain,
        "config_sha256": config_hash(plain),
        "data_sha256": hashes | measured.hashes,
        "versions": versions() | evaluation_versions(),
    }
    if steps is not None:
        record |= {"figures": measured.figures | steps.figures, "two_step": steps.record}
    title = f"{benchmark.title or config.data.captions.rsplit('/', 1)[-1]}, split {config.data.split}"
    rows = write_results(
        config.output,
        request,
        measured,
        record,
        title=title,
        worst=config.worst,
        top_k=config.top_k,
        threads=config.threads,
    )
    rows += [("ties", ", ".join(f"{name} {count:,}" for name, count in measured.ties.items()))]
    rows += [("overlap", overlap_text(overlap))] + ([("note", warning)] if warning else [])
    rows += [("not measured", f"{name}: {why}") for name, why in measured.skipped.items()]
    heading = f"{title}: {record['images']:,} images, {record['captions']:,} captions"
    text = comparison_text(config.benchmark, measured.figures, measured.intervals, heading)
    if steps is not None:
        return Report(rows + steps.rows, record | {"cost": steps.cost}, f"{text}\n{steps.text}", fact)
    return Report(rows, record, text, fact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    description = __doc__ or ""
    return run_job(
        "eval_retrieval", EvalRetrievalConfig, plan=plan, body=body, description=description, argv=argv, uses_ray=False
    )


if __name__ == "__main__":
    sys.exit(main())
