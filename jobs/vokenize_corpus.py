"""Assign to every token, or every line, of a tokenized corpus the images that fit it best: its vokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raydeploy.connect import RayConfig
from raydeploy.environment import joins_a_cluster
from raydeploy.forecast import (
    PROCESS_BYTES,
    TOO_LITTLE,
    Fact,
    Forecast,
    Sample,
    byte_size,
    can_measure,
    forecast,
    measure_step,
    with_larger_stage,
)
from raydeploy.ledger import Ledger, run_hash
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.search_actors import SearchActorsConfig, ShardedSearcher, health_rows, search_actors
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from vokenize.page import Line, PageConfig, build_page, page_lines
from vokenize.tokens import corpus_bytes, known_tokens, plan_token_shards, read_token_shard
from vokenize.voken_files import read_voken_shard
from vokenize.vokenizer import VokenizeConfig, VokenizeShard, open_bank
from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.data.steps import Shard
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash, weight_counts
from xmatch.pages.render import render
from xmatch.search.open_bank import bank_shape
from xmatch.search.planner import BankShape, Layout, search_flop
from xmatch.search.recall import recall_at_k

RECALL_LINES = 64
"""Lines whose tokens tell the recall of an approximate search."""


@dataclass(frozen=True, kw_only=True)
class VokenizeCorpusConfig:
    """Settings of one vokenization run."""

    tokens: str
    """Folder of token shards made by jobs/tokenize_corpus.py."""
    keys: str
    """Key bank of images made by jobs/embed.py --side image."""
    model: str
    """Dual encoder: a folder, or a hub name, NAME@REVISION to pin it."""
    output: str
    """Folder for the voken shards, their manifest and the page."""
    vokenize: VokenizeConfig = field(default_factory=VokenizeConfig)
    """Level, number of images, windows and batches."""
    search: SearchActorsConfig = field(default_factory=SearchActorsConfig)
    """How the key bank lies on the workers."""
    page: PageConfig = field(default_factory=PageConfig)
    """The page of sentences beside the images found for them."""
    staging: str = ""
    """Folder or URI for the copy that workers load the model from; empty: OUTPUT/models, and none where a local folder
    serves workers of this machine alone."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse an output that would mix with the input."""
        if self.output.rstrip("/") == self.tokens.rstrip("/"):
            raise InputError(f"output would overwrite the tokens at {self.tokens!r}; choose another folder.")


def plan(config: VokenizeCorpusConfig) -> Plan:
    """Rows, bytes, multiplications and layout from the heads of files, and a forecast from a sample of the work."""
    shards, shape = plan_token_shards(config.tokens), bank_shape(config.keys)
    layout = config.search.layout(shape, config.vokenize.backend, config.ray.actors)
    lines, tokens = sum(shard.stop - shard.start for shard in shards), known_tokens(config.tokens)
    weights = weight_counts(config.model)
    memory = weights.total * 4 + PROCESS_BYTES + (0 if layout.has_search_actors else layout.bytes_per_actor)
    found: Forecast | str = can_measure(config.ray)
    if not found:
        sample = measure(config, shards, shape, layout)
        units = tokens or (sample.units_in(len(shards)) if sample else 0)
        found = forecast(sample, "tokens", units, config.ray, memory_bytes=memory) if sample else TOO_LITTLE
    rows = [
        ("corpus", f"{lines:,} lines in {len(shards):,} shards, {byte_size(corpus_bytes(shards))}"),
        ("tokens", f"{tokens:,}" if tokens else "not counted: no manifest"),
        ("key bank", f"{shape.keys:,} images x {shape.width}, {byte_size(shape.stored_bytes)}"),
        ("vokens", f"level {config.vokenize.level}, top {config.vokenize.top_k}"),
        ("search", f"{'approximate' if is_approximate(config) else 'exact'}, backend {layout.backend}, {layout}"),
        ("memory for keys", f"{byte_size(layout.bytes_per_actor)} in each that holds them, at most"),
        *([("work", work_text(tokens, shape, weights.text))] if tokens else []),
        ("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU, {config.ray.gpus_per_actor:g} GPU"),
    ]
    cpus = layout.shards * layout.replicas * config.vokenize.threads if layout.has_search_actors else 0
    return Plan(rows, found, cpus)


def measure(config: VokenizeCorpusConfig, shards: Sequence[Shard], shape: BankShape, layout: Layout) -> Sample | None:
    """Vokenize a sample here; of a large bank only evenly spaced keys are searched, and the time scaled up."""
    small = open_bank(config.keys, config.vokenize).sample(config.vokenize.threads)
    step = VokenizeShard(config.model, config.keys, config.vokenize, small)
    sample = measure_step(step, read_token_shard, shards, lambda counts: counts["tokens"], config.ray.calibration_s)
    return sample and with_larger_stage(sample, "search", shape.keys / max(1, small.key_count) / layout.shards)


def work_text(tokens: int, shape: BankShape, weights: int) -> str:
    """Floating-point operations of a run, at most: repeated pieces are encoded and searched once."""
    encoder, search = 2.0 * weights * tokens, search_flop(tokens, shape)
    return f"{encoder:.2g} FLOP of encoding, {search:.2g} of search ({search / max(1.0, encoder + search):.0%})"


def body(config: VokenizeCorpusConfig, run: Run) -> Report:
    """Stream the shards through text tower and search, then publish manifest and page."""
    shards, shape = plan_token_shards(config.tokens), bank_shape(config.keys)
    layout = config.search.layout(shape, config.vokenize.backend, config.ray.actors)
    identity = {
        "vokenize": {k: v for k, v in asdict(config.vokenize).items() if k not in ("backend", "approximate")},
        "search": [config.vokenize.backend, asdict(config.vokenize.approximate)] if is_approximate(config) else "exact",
        "model": model_hash(config.model),
        "keys": open_key_bank(config.keys).hash,
        "tokens": run_hash(config.tokens),
    }
    ledger = Ledger(config.output, identity)
    model = place_for_workers(config.model, "model", config.output, config.staging)
    lines, fact = sum(shard.stop - shard.start for shard in shards), Fact()
    if is_approximate(config) and not layout.has_search_actors:  # built once, for all workers
        open_bank(config.keys, config.vokenize)(0, shape.keys, config.vokenize.threads)
    with search_of(config, shape, layout) as search, run.progress(lines, "lines") as progress:
        step = VokenizeShard(model, config.keys, config.vokenize, search)
        for report in run_shards(shards, read_token_shard, step, ledger, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["lines"])
            fact.add(report, report.counts["tokens"])
            run.finished(report)
        health = search.health() if search else []
    figures = {"search": recall_of(config, shards)} if is_approximate(config) else {}
    manifest = ledger.finish(
        [shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined, values=figures
    )
    rows = [("voken shards", files.join(config.output, "shards")), *progress.rates()]
    rows += [(name, f"{count:,}") for name, count in manifest["counts"].items()]
    rows += [("search", recall_text(figures["search"]) if figures else search_text(fact)), *health_rows(health)]
    if config.page.write:
        rows.append(("page", write_page(config, [*progress.rates()[1:], ("lines", f"{lines:,}")])))
    search_values = {**layout._asdict(), **fact.notes, **fact.tallies}
    values = {"counts": manifest["counts"], "seconds": dict(fact.stages), "search": search_values}
    return Report(rows, values, fact=fact)


def is_approximate(config: VokenizeCorpusConfig) -> bool:
    """Whether some of the best images may be missed."""
    return open_bank(config.keys, config.vokenize).is_approximate


def recall_of(config: VokenizeCorpusConfig, shards: Sequence[Shard]) -> dict[str, Any]:
    """Recall of the approximate search against the exact one, on lines from the middle of the corpus."""
    bank, threads = open_bank(config.keys, config.vokenize), config.vokenize.threads
    rows = read_token_shard(shards[len(shards) // 2]).slice(0, RECALL_LINES)
    approximate = bank(0, bank_shape(config.keys).keys, threads)
    queries = VokenizeShard(config.model, config.keys, config.vokenize, approximate).queries(rows)
    found = recall_at_k(approximate, bank.exact(threads), queries, config.vokenize.top_k)
    return {"backend": config.vokenize.backend, "recall_at_k": found._asdict()}


def recall_text(values: Mapping[str, Any]) -> str:
    """What an approximate search found of the exact answer."""
    found = values["recall_at_k"]
    return (
        f"approximate, {values['backend']}: recall@{found['k']} {found['recall']:.4f} ({found['low']:.4f} to "
        f"{found['high']:.4f}) on {found['queries']:,} queries"
    )


def search_text(fact: Fact) -> str:
    """How the workers searched, and what it took."""
    queries = fact.tallies["queries"]
    if not queries:
        return "exact"
    each, fallbacks = fact.tallies["candidates"] / queries, fact.tallies["fallbacks"]
    return (
        f"exact, backend {fact.notes['backend']}: {queries:,} queries, {each:,.1f} candidates each, {fallbacks:,} "
        "scored against every key"
    )


@contextmanager
def search_of(config: VokenizeCorpusConfig, shape: BankShape, layout: Layout) -> Iterator[ShardedSearcher | None]:
    """The actors that hold the key bank; none where every worker holds it itself."""
    if not layout.has_search_actors:
        yield None
        return
    gpus, threads = config.search.gpus_per_actor, config.vokenize.threads
    opener = replace(open_bank(config.keys, config.vokenize), device="cuda" if gpus else "cpu")
    memory = layout.bytes_per_actor + PROCESS_BYTES if joins_a_cluster() else 0
    with search_actors(
        opener, layout, key_count=shape.keys, width=shape.width, threads=threads, memory_bytes=memory, gpus=gpus
    ) as searcher:
        yield searcher


def write_page(config: VokenizeCorpusConfig, figures: Sequence[tuple[str, str]]) -> str:
    """Write page.html of the corpus's first lines; its path."""
    shown: list[Line] = []
    for shard in plan_token_shards(config.tokens):
        if len(shown) >= config.page.max_lines:
            break
        vokens = read_voken_shard(files.join(config.output, "shards", f"{shard.id}.parquet"))
        shown += page_lines(read_token_shard(shard), vokens, config.vokenize.top_k)
    bank = open_key_bank(config.keys)
    names = bank.ids.to_pylist()
    uris = [uri or "" for uri in bank.uris.to_pylist()] if bank.uris is not None else [""] * len(names)
    credits = {}
    if config.page.credits:
        credits = {row["file_name"]: (row["credit"], row["link"]) for row in files.read_json(config.page.credits)}
    figures = [*figures, ("images in the key bank", f"{len(names):,}")]
    page = build_page(shown[: config.page.max_lines], uris, names, figures, config.page, credits)
    path = files.join(config.output, "page.html")
    files.write_bytes(path, render(page).encode())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("vokenize_corpus", VokenizeCorpusConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
