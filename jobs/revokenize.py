"""Move the vokens of a corpus to another tokenizer, by the characters its tokens share with the old ones.

Neither the model nor the key bank is needed. OUTPUT/tokens and OUTPUT/vokens are the folders that tokenize_corpus and
vokenize_corpus would make, so every other job reads them: same lines, same images, same scores. Each new token takes
the vokens of the old token with which it shares most characters.

Example: `python jobs/revokenize.py --tokens run/tokens --vokens run/vokens --tokenizer roberta-base --output moved`. A
run that was stopped goes on with the same command.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raydeploy.connect import RayConfig
from raydeploy.forecast import Fact, Forecast, byte_size, forecast_of
from raydeploy.ledger import Ledger, run_hash
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import place_for_workers
from raydeploy.streams import run_shards
from vokenize.revokenizer import AlignmentRule, MoveVokens, ReadMoves, ReadVokened, Retokenize, Revokenize
from vokenize.tokens import corpus_bytes, known_tokens, load_tokenizer, plan_token_shards, read_token_shard
from vokenize.voken_runs import VokenRun, open_voken_run
from xmatch.data import files
from xmatch.errors import InputError

SECOND_STREAM_S = 8.0
"""Seconds until the workers of the second step have imported what they need, Ray running: seen on two busy cores."""


@dataclass(frozen=True, kw_only=True)
class RevokenizeConfig:
    """Settings of one move."""

    tokens: str
    """Folder of token shards from which the vokens were made (tokenize_corpus)."""
    vokens: str
    """Folder of the voken run (vokenize_corpus)."""
    tokenizer: str
    """The new tokenizer: a folder, or a hub name, NAME@REVISION to pin it; any fast tokenizer."""
    output: str
    """Folder for the new `tokens` and `vokens`."""
    alignment: AlignmentRule = "overlap"
    """`overlap`: the old token with most shared characters; among equals the one of the very same characters, else the
    earlier; where none is shared, the nearest. `original`: Vokenization's greedy walk by intersection over union, for
    byte-level BPE alone."""
    staging: str = ""
    """Folder or URI for the copy that workers load the tokenizer from; empty: OUTPUT/models, and none where a local
    folder serves workers of this machine alone."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse an output that would mix with the input."""
        places = [place.rstrip("/") for place in (self.tokens, self.vokens)]
        for made in ("", "/tokens", "/vokens"):
            if f"{self.output.rstrip('/')}{made}" in places:
                raise InputError(f"output {self.output!r} would overwrite its own input; choose another folder.")

    @property
    def new_tokens(self) -> str:
        """Folder of the new token run."""
        return files.join(self.output, "tokens")

    @property
    def new_vokens(self) -> str:
        """Folder of the new voken run."""
        return files.join(self.output, "vokens")


def open_run(config: RevokenizeConfig) -> VokenRun:
    """The vokens to move, held against their tokens."""
    return open_voken_run(config.tokens, config.vokens, run_hash(config.tokens))


def step_of(config: RevokenizeConfig, run: VokenRun, tokenizer: str) -> MoveVokens:
    """The step that moves the vokens; `tokenizer` is where it loads the new one from."""
    return MoveVokens(run.info, config.alignment, tokenizer)


def plan(config: RevokenizeConfig) -> Plan:
    """Rows and bytes from the heads of files, and a forecast from a sample of the work."""
    shards, run = plan_token_shards(config.tokens), open_run(config)
    tokenizer_identity(config)
    lines, tokens = sum(shard.stop - shard.start for shard in shards), known_tokens(config.tokens)
    found = forecast_of(
        Revokenize(Retokenize(config.tokenizer), step_of(config, run, config.tokenizer)),
        ReadVokened(config.vokens, run.info),
        shards,
        config.ray,
        unit="tokens",
        count=lambda counts: counts["tokens"],
    )
    if isinstance(found, Forecast):
        found = found._replace(seconds=found.seconds + SECOND_STREAM_S)
    rows = [
        ("corpus", f"{lines:,} lines in {len(shards):,} shards, {byte_size(corpus_bytes(shards))}"),
        ("old tokens", f"{tokens:,}" if tokens else "not counted: no manifest"),
        ("vokens", f"level {run.level}, top {run.top_k}, of {run.keys:,} images"),
        ("new tokenizer", config.tokenizer),
        ("alignment", config.alignment),
        ("workers", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU"),
    ]
    return Plan(rows, found)


def tokenizer_identity(config: RevokenizeConfig) -> str:
    """SHA-256 of the new tokenizer, wherever it lies."""
    core = load_tokenizer(config.tokenizer).backend_tokenizer
    return hashlib.sha256(core.to_str().encode()).hexdigest()


def voken_identity(config: RevokenizeConfig, tokenizer: str) -> dict[str, Any]:
    """What decides the bytes of the new vokens; model and key bank are those of the old ones."""
    path = files.join(config.vokens, "identity.json")
    made = files.read_json(path) if files.exists(path) else {}
    kept = {name: made[name] for name in ("vokenize", "search", "model", "keys") if name in made}
    return kept | {
        "tokens": run_hash(config.new_tokens),
        "moved_from": {"tokens": run_hash(config.tokens), "vokens": run_hash(config.vokens)},
        "tokenizer": tokenizer,
        "alignment": config.alignment,
    }


def body(config: RevokenizeConfig, run: Run) -> Report:
    """Stream the lines through the new tokenizer, then the vokens to the new tokens."""
    shards, old, tokenizer = plan_token_shards(config.tokens), open_run(config), tokenizer_identity(config)
    ids, lines, fact = [shard.id for shard in shards], sum(shard.stop - shard.start for shard in shards), Fact()
    tokens = Ledger(config.new_tokens, {"tokens": run_hash(config.tokens), "tokenizer": tokenizer})
    place = place_for_workers(config.tokenizer, "tokenizer", config.output, config.staging)
    retokenize = Retokenize(place)
    with run.progress(2 * lines, "lines") as progress:
        for report in run_shards(shards, read_token_shard, retokenize, tokens, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["lines"])
            fact.add(report, 0)
            run.finished(report)
        retokenized = tokens.finish(ids)
        vokens = Ledger(config.new_vokens, voken_identity(config, tokenizer))
        reader = ReadMoves(config.vokens, config.new_tokens, old.info)
        for report in run_shards(shards, reader, step_of(config, old, place), vokens, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["lines"])
            fact.add(report, report.counts["tokens"])
            run.finished(report)
    counts = vokens.finish(ids)["counts"]
    counts |= {name: retokenized["counts"][name] for name in ("empty_lines", "tokens_without_vokens")}
    rows = [("tokens", config.new_tokens), ("vokens", config.new_vokens), *progress.rates()]
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    return Report(rows, {"counts": counts, "seconds": dict(fact.stages)}, fact=fact)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("revokenize", RevokenizeConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
