"""Tokenize a text corpus: plain lines, dialogues, or captions, every line kept, with character offsets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from raydeploy.connect import RayConfig
from raydeploy.forecast import Fact, forecast_of
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import place_for_workers, tokenizer_identity
from raydeploy.streams import run_shards
from vokenize.tokens import TokenizeLines
from xmatch.data import files
from xmatch.data.text_lines import LineReader, LineSource, plan_line_shards


@dataclass(frozen=True, kw_only=True)
class TokenizeCorpusConfig:
    """Settings of one tokenization run."""

    corpus: LineSource = field(default_factory=LineSource)
    """The text."""
    tokenizer: str
    """Tokenizer: a folder (a dual encoder's folder has one), or a hub name, NAME@REVISION to pin it; it must be a fast
    tokenizer."""
    output: str
    """Folder for the token shards."""
    lines_per_shard: int = 8192
    """Lines in one shard, the unit of resume."""
    staging: str = ""
    """Folder or URI for the copy that workers load the tokenizer from; empty: OUTPUT/models, and none where a local
    folder serves workers of this machine alone."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""


def plan(config: TokenizeCorpusConfig) -> Plan:
    """Lines and shards, by one pass over the text."""
    shards = plan_line_shards(config.corpus, config.lines_per_shard)
    found = forecast_of(
        TokenizeLines(config.tokenizer),
        LineReader(config.corpus),
        shards,
        config.ray,
        unit="lines",
        count=lambda counts: counts["lines"],
    )
    rows = [("corpus", config.corpus.path), ("shards", f"{len(shards):,} of {config.lines_per_shard:,} lines")]
    return Plan(rows, found)


def body(config: TokenizeCorpusConfig, run: Run) -> Report:
    """Stream the lines through the tokenizer."""
    shards = plan_line_shards(config.corpus, config.lines_per_shard)
    identity = {
        "corpus": files.sha256(config.corpus.path),
        "form": repr(config.corpus),
        "tokenizer": tokenizer_identity(config.tokenizer),
    }
    ledger = Ledger(config.output, identity)
    step = TokenizeLines(place_for_workers(config.tokenizer, "tokenizer", config.output, config.staging))
    fact = Fact()
    with run.progress(None, "lines") as progress:
        for report in run_shards(shards, LineReader(config.corpus), step, ledger, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["lines"])
            fact.add(report, report.counts["lines"])
            run.finished(report)
    manifest = ledger.finish([shard.id for shard in shards], max_quarantined=config.ray.faults.max_quarantined)
    rows = [("token shards", files.join(config.output, "shards")), *progress.rates()]
    rows += [(n, f"{c:,}") for n, c in manifest["counts"].items()]
    return Report(rows, {"counts": manifest["counts"]}, fact=fact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("tokenize_corpus", TokenizeCorpusConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
