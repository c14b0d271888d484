"""Assign to every token, or every line, of a tokenized corpus the images that fit it best: its vokens."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.streams import run_shards
from vokenize.page import Line, PageConfig, build_page, page_lines
from vokenize.tokens import plan_token_shards, read_token_shard
from vokenize.voken_files import read_voken_shard
from vokenize.vokenizer import VokenizeConfig, VokenizeShard
from xmatch.data import files
from xmatch.data.vectors import matrix, read_vectors
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash
from xmatch.pages.render import render


@dataclass(frozen=True, kw_only=True)
class VokenizeCorpusConfig:
    """Settings of one vokenization run."""

    tokens: str
    """Folder of token shards made by jobs/tokenize_corpus.py."""
    keys: str
    """Key bank of images made by jobs/embed.py --side image."""
    model: str
    """Dual encoder: a folder, or a hub name."""
    output: str
    """Folder for the voken shards, their manifest and the page."""
    vokenize: VokenizeConfig = field(default_factory=VokenizeConfig)
    """Level, number of images, windows and batches."""
    page: PageConfig = field(default_factory=PageConfig)
    """The page of sentences beside the images found for them."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse an output that would mix with the input."""
        if self.output.rstrip("/") == self.tokens.rstrip("/"):
            raise InputError(f"output would overwrite the tokens at {self.tokens!r}; choose another folder.")


def plan(config: VokenizeCorpusConfig) -> Plan:
    """Rows, bytes and the layout, from file footers alone."""
    shards = plan_token_shards(config.tokens)
    keys = matrix(read_vectors(config.keys))
    lines = sum(shard.stop - shard.start for shard in shards)
    return Plan(
        [
            ("corpus", f"{lines:,} lines in {len(shards):,} shards"),
            ("key bank", f"{keys.shape[0]:,} images x {keys.shape[1]} ({keys.nbytes / 1e6:,.1f} MB in every actor)"),
            ("vokens", f"level {config.vokenize.level}, top {config.vokenize.top_k}"),
            ("search", f"exact, backend {config.vokenize.backend}"),
            ("actors", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU, {config.ray.gpus_per_actor:g} GPU"),
        ]
    )


def body(config: VokenizeCorpusConfig, run: Run) -> Report:
    """Stream the shards through text tower and search, then publish manifest and page."""
    shards = plan_token_shards(config.tokens)
    step = VokenizeShard(config.model, config.keys, config.vokenize)
    identity = {
        "vokenize": asdict(config.vokenize),
        "model": model_hash(config.model),
        "keys": bank_hash(config.keys),
        "tokens": bank_hash(config.tokens),
    }
    ledger = Ledger(config.output, identity)
    lines = sum(shard.stop - shard.start for shard in shards)
    seconds: Counter[str] = Counter()
    with run.progress(lines, "lines") as progress:
        for report in run_shards(shards, read_token_shard, step, ledger, suffix="parquet", ray=config.ray):
            progress.advance(report.counts["lines"])
            seconds.update(report.seconds)
    manifest = ledger.finish([shard.id for shard in shards])
    rows = [("voken shards", files.join(config.output, "shards")), *progress.rates()]
    rows += [(name, f"{count:,}") for name, count in manifest["counts"].items()]
    if config.page.write:
        rows.append(("page", write_page(config, [*progress.rates()[1:], ("lines", f"{lines:,}")])))
    return Report(rows, {"counts": manifest["counts"], "seconds": dict(seconds)})


def write_page(config: VokenizeCorpusConfig, figures: Sequence[tuple[str, str]]) -> str:
    """Write page.html of the corpus's first lines; its path."""
    shown: list[Line] = []
    for shard in plan_token_shards(config.tokens):
        if len(shown) >= config.page.max_lines:
            break
        vokens = read_voken_shard(files.join(config.output, "shards", f"{shard.id}.parquet"))
        shown += page_lines(read_token_shard(shard), vokens, config.vokenize.top_k)
    bank = read_vectors(config.keys)
    uris, names = bank.column("uri").to_pylist(), bank.column("id").to_pylist()
    credits = {}
    if config.page.credits:
        credits = {row["file_name"]: (row["credit"], row["link"]) for row in files.read_json(config.page.credits)}
    figures = [*figures, ("images in the key bank", f"{len(bank):,}")]
    page = build_page(shown[: config.page.max_lines], uris, names, figures, config.page, credits)
    path = files.join(config.output, "page.html")
    files.write_bytes(path, render(page).encode())
    return path


def bank_hash(folder: str) -> str:
    """What identifies a finished folder: the hash of its manifest, or else of the names and hashes of its files."""
    manifest = files.join(folder, "manifest.json")
    if files.exists(manifest):
        return files.sha256(manifest)
    names = files.list_files(folder) if files.is_folder(folder) else [folder]
    return " ".join(f"{name.rsplit('/', 1)[-1]}:{files.sha256(name)}" for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("vokenize_corpus", VokenizeCorpusConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
