"""Find the phrases of sentences, and make the vocabulary of those that are general: MVPTR's concepts of text.

OUTPUT/shards gets a table with the phrases of every sentence: objects ("kitchen"), objects with an attribute
("kitchen", "narrow") and relations ("kitchen", "fill with", "appliance"). With --phrases.tokenizer, the vocabulary of
the phrases that are in at least --phrases.min_sentences of them is OUTPUT/id2phrase.json. With --phrases.tuples the
phrases are those of SPICE, and the report tells how far the parser agrees with them.

Example: `python jobs/extract_phrases.py --data pairs.json --output phrases` takes a JSON list of objects with `text`,
`image_id` and `label`, and writes the same list with `phrases` as phrases/processed_pairs.json. A run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from alignment.entities.extraction import caption_listing
from alignment.entities.spice import read_spice
from alignment.entities.taggers import chosen_tagger, load_tagger
from alignment.mvptr.phrase_extraction import (
    ExtractPhrases,
    PhraseConfig,
    agreements,
    count_sentences,
    pair_ids,
    phrases_by_caption,
    read_pairs,
    write_processed,
)
from alignment.mvptr.phrase_vocabulary import FILE, build_vocabulary
from alignment.mvptr.phrases import overall
from raydeploy.connect import RayConfig
from raydeploy.forecast import Fact, forecast_of
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.streams import run_shards
from vokenize.tokens import load_tokenizer
from xmatch.data import files
from xmatch.data.image_listing import plan_listing_shards, read_listing
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class ExtractPhrasesConfig:
    """Settings of one extraction."""

    output: str
    """Folder for the table of phrases, the vocabulary and the processed list."""
    data: str = ""
    """JSON list of objects with `text` and `image_id`, and whatever else."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captions in their place. With inputs=text, those of a Karpathy JSON alone, without its images."""
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    """How phrases are found, and which make the vocabulary."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """One source of sentences."""
        if bool(self.data) == bool(self.captions.captions):
            raise InputError("give the sentences as --data or as --captions.captions, one of them.")


def listing_of(config: ExtractPhrasesConfig) -> pa.Table:
    """The sentences as the step reads them."""
    tuples = read_spice(config.phrases.tuples) if config.phrases.tuples else None
    if config.data:
        pairs = read_pairs(config.data)
        texts = [pair["text"] for pair in pairs]
        return caption_listing(pair_ids(pairs), [str(pair["image_id"]) for pair in pairs], texts, tuples)
    split = read_split(config.captions)
    images = [split.image_ids[row] for row in split.caption_image]
    return caption_listing(split.caption_ids, images, split.captions, tuples)


def step_of(config: ExtractPhrasesConfig) -> ExtractPhrases:
    """The step that finds phrases, with the tagger that every worker must have."""
    name = chosen_tagger(config.phrases.tagger)
    return ExtractPhrases(name, load_tagger(name).identity)


def plan(config: ExtractPhrasesConfig) -> Plan:
    """Sentences and tagger, and a forecast from a sample of the work."""
    listing, step = listing_of(config), step_of(config)
    starts = range(0, len(listing), config.phrases.per_shard)
    shards = [Shard(shard_name(at), "", start, start + config.phrases.per_shard) for at, start in enumerate(starts)]
    found = forecast_of(
        step,
        lambda shard: listing.slice(shard.start, config.phrases.per_shard),
        shards,
        config.ray,
        unit="sentences",
        count=lambda counts: counts["sentences"],
    )
    vocabulary = (
        f"of phrases in {config.phrases.min_sentences} sentences" if config.phrases.tokenizer else "none: no tokenizer"
    )
    rows = [
        ("sentences", f"{len(listing):,}"),
        ("phrases", f"of SPICE, {config.phrases.tuples}" if config.phrases.tuples else "of the parser"),
        ("tagger", step.identity),
        ("vocabulary", vocabulary),
        ("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU"),
    ]
    return Plan(rows, found)


def body(config: ExtractPhrasesConfig, run: Run) -> Report:
    """Stream the sentences through the parser, then count phrases and write what is asked for."""
    return extract(config, run, Fact())


def extract(config: ExtractPhrasesConfig, run: Run, fact: Fact) -> Report:
    """The same, counted in `fact`."""
    step, listing = step_of(config), files.join(config.output, "inputs.parquet")
    table = listing_of(config)
    files.write_parquet(listing, table)
    ledger = Ledger(config.output, {"inputs": files.sha256(listing), "tagger": step.identity, "what": "phrases"})
    shards = plan_listing_shards(listing, config.phrases.per_shard)
    ray = dataclasses.replace(config.ray, gpus_per_actor=0)
    with run.progress(len(table), "sentences") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="parquet", ray=ray):
            progress.advance(report.counts["sentences"])
            fact.add(report, report.counts["sentences"])
            run.finished(report)
    finished = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    rows = [("phrases", config.output), ("tagger", step.identity), *progress.rates()]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in finished["counts"].items()]
    made = results(config)
    return Report([*rows, *made.rows], {"counts": finished["counts"], **made.values}, fact=fact)


def results(config: ExtractPhrasesConfig) -> Report:
    """What is made of all phrases: agreement, vocabulary, processed list."""
    rows: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    if config.phrases.tuples:
        found = agreements(config.output)
        names = ("precision", "recall", "jaccard")
        columns = {name: pa.array([getattr(one, name) for _, one in found], pa.float32()) for name in names}
        path = files.join(config.output, "agreement.parquet")
        files.write_parquet(path, pa.table({"caption_id": pa.array([one for one, _ in found], pa.string()), **columns}))
        values["agreement"] = overall([one for _, one in found])
        rows += [(name.replace("_", " "), f"{value:.4f}") for name, value in values["agreement"].items()]
        rows.append(("agreement of each", path))
    if config.phrases.tokenizer:
        vocabulary = build_vocabulary(
            count_sentences(config.output), load_tokenizer(config.phrases.tokenizer), config.phrases.min_sentences
        )
        path = files.join(config.output, FILE)
        vocabulary.write(path)
        values["vocabulary"] = {"phrases": len(vocabulary), "embedding_rows": vocabulary.rows}
        rows.append(("vocabulary", f"{len(vocabulary):,} phrases, {path}"))
    if config.data:
        path = files.join(config.output, f"processed_{config.data.rstrip('/').rsplit('/', 1)[-1]}")
        write_processed(path, read_pairs(config.data), phrases_by_caption(config.output))
        rows.append(("processed", path))
    return Report(rows, values)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("extract_phrases", ExtractPhrasesConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
