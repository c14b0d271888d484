"""Turn images into a key bank, texts into sentence embeddings, or both into features of frozen towers for training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.entities.entity_tables import table_files
from alignment.entities.entity_texts import EntityReader, EntitySource, Kind, entity_counts, plan_entity_shards
from alignment.entities.prompts import LEGACY_MASK, mask_word
from raydeploy.connect import RayConfig
from raydeploy.feature_bank import image_feature_bank, text_feature_bank
from raydeploy.forecast import PROCESS_BYTES, Fact, Forecast, byte_size, forecast_of
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards
from xmatch.data.region_sources import RegionReader, RegionSource, plan_region_shards, region_files
from xmatch.data.steps import Reader, Shard
from xmatch.data.text_lines import LineSource, TextReader, plan_line_shards
from xmatch.embedding import EmbedImages, EmbedRegions, EmbedTexts
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash, read_config, read_tokenizer, resolve, weight_counts
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.models.parts import BLOCKS
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Settings of one embedding run."""

    side: Literal["image", "regions", "text", "prompts", "masked_texts", "image_features", "text_features"]
    """`image` makes a key bank of photographs, `regions` one of ready-made region features, `text` a bank of sentence
    embeddings; a model with several views writes as many rows an image, in one group. `prompts` and `masked_texts`
    embed what extract_entities found: "a photo containing ENTITY", and captions with one entity masked.
    `image_features` and `text_features` run a frozen tower over captioned splits once, so that training need not: see
    features and text_features of train_xmatch."""
    output: str
    """Folder for the bank."""
    model: str = ""
    """Dual encoder of `image`, `regions` and `text`: a folder, or a hub name, NAME@REVISION to pin it."""
    captions: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(split="train,val,test"))
    """The captioned splits of the feature sides; ids are those that training looks up."""
    image_tower: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    """The tower of `image_features`, as model.image of the training run."""
    text_tower: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The tower of `text_features`, as model.text of the training run."""
    flip: bool = False
    """Features of mirrored images too, for training with augment=flip (`image_features`)."""
    tokenizer: str = ""
    """Tokenizer of the text tower; empty: its own (`text_features`)."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Number format of features."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of a key bank (`image`, `regions`). Half the bytes cost precision: searches are exact for what is
    stored."""
    images: ImageSource = field(default_factory=ImageSource)
    """The images of `--side image`."""
    regions: RegionSource = field(default_factory=RegionSource)
    """The features of `--side regions`."""
    texts: LineSource = field(default_factory=LineSource)
    """The texts of `--side text`."""
    entities: EntitySource = field(default_factory=EntitySource)
    """The entities of `--side prompts` and `--side masked_texts`."""
    rows_per_shard: int = 1024
    """Images or texts in one shard, the unit of resume."""
    batch_size: int = 32
    """Rows in one forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the image tower (`image`); `bfloat16` is faster where the processor or GPU has it."""
    decoders: int = 0
    """Threads of each worker that decode images ahead of the tower (`image`); 0: in turn, best where the tower runs on
    the same cores."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    staging: str = ""
    """Folder or URI for the copy that workers load the model from; empty: OUTPUT/models, and none where a local folder
    serves workers of this machine alone."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Each side needs its own input."""
        if self.side.endswith("features"):
            if not self.captions.captions:
                raise InputError(
                    f"--side {self.side} needs captioned splits: give --captions.captions and --captions.split."
                )
            return
        if not self.model:
            raise InputError(f"--side {self.side} needs --model, a saved dual encoder.")
        if self.side == "image" and not self.images.root:
            raise InputError("--side image needs images: give --images.root and --images.set_name.")
        if self.side == "regions" and not self.regions.path:
            raise InputError(
                "--side regions needs --regions.path, a bank of region features, or a precomputed folder with "
                "--regions.split."
            )
        if self.side == "text" and not self.texts.path:
            raise InputError("--side text needs --texts.path, a file with one text a line.")
        if self.side in ("prompts", "masked_texts") and not self.entities.path:
            raise InputError(f"--side {self.side} needs --entities.path, the output of extract_entities.")


def work_of(config: EmbedConfig) -> tuple[list[Shard], Reader, EmbedImages | EmbedRegions | EmbedTexts]:
    """The shards of a run, what reads them, and what embeds them."""
    threads = max(1, int(config.ray.cpus_per_actor))
    if config.side == "image":
        shards = plan_image_shards(config.images, config.rows_per_shard)
        step = EmbedImages(
            config.model,
            batch_size=config.batch_size,
            threads=threads,
            device=config.device,
            dtype=config.dtype,
            precision=config.precision,
            decoders=config.decoders,
        )
        return shards, ImageReader(config.images), step
    if config.side == "regions":
        regions = EmbedRegions(
            config.model,
            config.regions,
            batch_size=config.batch_size,
            threads=threads,
            device=config.device,
            dtype=config.dtype,
        )
        return plan_region_shards(config.regions, config.rows_per_shard), RegionReader(config.regions), regions
    texts = EmbedTexts(config.model, batch_size=config.batch_size, threads=threads, device=config.device)
    if config.side in ("prompts", "masked_texts"):
        kind: Kind = "prompts" if config.side == "prompts" else "masked_texts"
        shards = plan_entity_shards(config.entities, config.rows_per_shard)
        return shards, EntityReader(config.entities, kind, entity_mask(config)), texts
    return plan_line_shards(config.texts, config.rows_per_shard), TextReader(config.texts), texts


def entity_mask(config: EmbedConfig) -> str:
    """What stands for a masked entity in the texts of this model."""
    if config.side == "prompts" or config.entities.legacy:
        return config.entities.mask or LEGACY_MASK
    return mask_word(read_tokenizer(resolve(config.model)).mask_token, config.entities.mask)


def source_of(config: EmbedConfig) -> str:
    """What is embedded, for the record of a run."""
    if config.side == "image":
        return repr(config.images)
    if config.side == "regions":
        contents = " ".join(files.sha256(path) for path in region_files(config.regions))
        return f"regions split={config.regions.split} {contents}"
    if config.side == "text":
        return f"{config.texts} {files.sha256(config.texts.path)}"
    hashes = [files.sha256(path) for path in table_files(config.entities.path, "entities")]
    made = f"slots={config.entities.slots} legacy={config.entities.legacy}"
    return f"{made} mask={entity_mask(config)} {' '.join(hashes)}"


def plan(config: EmbedConfig) -> Plan:
    """Shards and layout, or the splits and the tower."""
    if config.side.endswith("features"):
        split = read_split(config.captions)
        tower = config.image_tower.name if config.side == "image_features" else config.text_tower.name
        size = f"{len(split.captions):,} captions of {len(split.image_ids):,} images"
        return Plan(
            [("side", config.side), ("tower", str(tower)), ("splits", config.captions.split), ("holding", size)]
        )
    shards, reader, step = work_of(config)
    weights = weight_counts(config.model)
    found = forecast_of(
        step,
        reader,
        shards,
        config.ray,
        unit=unit_of(config),
        count=lambda counts: sum(counts.values()),
        memory_bytes=PROCESS_BYTES + 4 * weights.total,
    )
    rows = [
        ("side", config.side),
        ("shards", f"{len(shards):,} of up to {config.rows_per_shard:,} rows"),
        ("model", f"{weights.total:,} weights, {byte_size(4 * weights.total)} in every worker"),
        ("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU, {config.ray.gpus_per_actor:g} GPU"),
    ]
    if config.side in ("prompts", "masked_texts"):
        rows.append(("entities", str(entity_counts(config.entities))))
    if isinstance(found, Forecast):
        views, width = vectors_of(config)
        vectors = found.units * views
        amount = byte_size(vectors * width * (4 if config.dtype == "float32" else 2))
        rows.append(("bank", f"about {vectors:,.0f} vectors of width {width}, {amount}"))
    return Plan(rows, found)


def unit_of(config: EmbedConfig) -> str:
    """What is counted."""
    return "images" if config.side in ("image", "regions") else "texts"


def vectors_of(config: EmbedConfig) -> tuple[int, int]:
    """Vectors of one image or text, and their width."""
    model = read_config(resolve(config.model), DualEncoderConfig)
    has_views = unit_of(config) == "images" and model.image_pooling == "views"
    return model.views if has_views else 1, model.dim * (BLOCKS if model.context_head else 1)


def features(config: EmbedConfig, run: Run) -> Report:
    """Run a frozen tower over the splits."""
    split = read_split(config.captions)
    if config.side == "image_features":
        with run.progress(len(split.image_ids), "images") as progress:
            bank = image_feature_bank(
                config.image_tower,
                [split],
                config.output,
                has_flip=config.flip,
                dtype=config.feature_dtype,
                ray=config.ray,
                advance=progress.advance,
            )
        return Report([("bank", bank), *progress.rates()])
    tokenizer = config.tokenizer or config.text_tower.name
    if not tokenizer:
        raise InputError("--side text_features needs --text_tower.name: a tower from scratch has learnt nothing.")
    with run.progress(len(split.captions), "captions") as progress:
        bank = text_feature_bank(
            config.text_tower,
            tokenizer,
            [split],
            config.output,
            dtype=config.feature_dtype,
            ray=config.ray,
            advance=progress.advance,
        )
    return Report([("bank", bank), *progress.rates()])


def body(config: EmbedConfig, run: Run) -> Report:
    """Stream the shards through the tower."""
    if config.side.endswith("features"):
        return features(config, run)
    shards, reader, step = work_of(config)
    identity: dict[str, Any] = {"side": config.side, "model": model_hash(config.model)}
    identity |= {"source": source_of(config), "batch": config.batch_size}
    if unit_of(config) == "images" and config.dtype != "float32":
        identity["dtype"] = config.dtype
    if config.side == "image" and config.precision != "float32":
        identity["precision"] = config.precision
    ledger = Ledger(config.output, identity)
    step.model = place_for_workers(config.model, "model", config.output, config.staging)
    fact = Fact()
    with run.progress(None, unit_of(config)) as progress:
        for report in run_shards(shards, reader, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(sum(report.counts.values()))
            fact.add(report, sum(report.counts.values()))
            run.finished(report)
    manifest = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    rows = [("bank", files.join(config.output, "shards")), *progress.rates()]
    rows += [(n, f"{c:,}") for n, c in manifest["counts"].items()]
    if config.side in ("prompts", "masked_texts"):
        rows.append(("of", str(entity_counts(config.entities))))
    return Report(rows, {"counts": manifest["counts"]}, fact=fact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("embed", EmbedConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
