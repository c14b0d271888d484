"""Measure the vokens of a corpus: diversity, coverage, hubness, retrieval of captioned images, agreement of two runs.

No model is needed. Written are measures.json, token_types.parquet, images.parquet and vokens.png.

Example: `python jobs/eval_vokens.py --tokens run/tokens --vokens run/vokens --keys run/keys --output measures` tells
how varied the images of a token type are, and how evenly the images are used. With `--other run2/vokens`, how far
another run over the same tokens and key bank agrees. With `--captions.path FILE`, whether captions find their own
image: the corpus must be that file, tokenized with `--corpus.form captions` and vokenized with `--vokenize.top_k 10
--vokenize.level both`. `--convention original` counts as Vokenization's programs do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raydeploy.connect import RayConfig
from raydeploy.forecast import byte_size
from raydeploy.ledger import run_hash
from raydeploy.run import Plan, Report, Run, run_job
from vokenize.pair_counts import MOST_PAIRS, PairCounts
from vokenize.tokens import corpus_bytes, known_tokens, load_tokenizer, plan_token_shards
from vokenize.voken_evaluation import Evaluated, Evaluation
from vokenize.voken_report import figures_text, image_rows, type_rows, voken_plot
from vokenize.voken_retrieval import CaptionTruth, Convention, TruthConfig, read_truth
from vokenize.voken_runs import VokenRun, open_original_run, open_voken_run, require_comparable
from xmatch.data import files
from xmatch.data.key_banks import KeyBank, open_key_bank
from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvalVokensConfig:
    """Settings of one evaluation of vokens."""

    tokens: str
    """Folder of the token shards that the vokens were made from, or an original's prefix DATADIR/FNAME.TOKENIZER."""
    vokens: str
    """Folder of the voken run, or the base name of an original's voken files."""
    output: str
    """Folder for figures, tables and plot."""
    keys: str = ""
    """Key bank of the images; names them in the tables. Needed for retrieval and for --convention original."""
    other: str = ""
    """Another voken run over the same tokens and key bank, to be compared."""
    captions: TruthConfig = field(default_factory=TruthConfig)
    """Where the corpus is captions: the file with the image of each."""
    tokenizer: str = ""
    """Tokenizer of the tokens, a folder or hub name; spells the token types in the table."""
    convention: Convention = "corrected"
    """`corrected`: an image is a row of the key bank; captions whose image the bank lacks are left out. `original`:
    rows with one path are one image; a caption finds the file of its image's name; captions without one are missed."""
    max_lines: int = 0
    """Only the first so many lines; 0: all. The original's diversity took 10000."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used: vokens are read in this process."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.max_lines < 0:
            raise InputError(f"max_lines must be 0 or more, got {self.max_lines}.")
        needs = "--captions.path" if self.captions.path else "--convention original"
        if not self.keys and not self.is_original and (self.captions.path or self.convention == "original"):
            raise InputError(f"{needs} needs --keys, the key bank with the names of the images.")

    @property
    def is_original(self) -> bool:
        """Whether the files are those of an original."""
        return not files.is_folder(self.tokens) and files.exists(f"{self.tokens}.hdf5")


class Images:
    """Names of the key bank's images: (N,) ids and uris, nulls where they are not known."""

    def __init__(self, config: EvalVokensConfig, run: VokenRun) -> None:
        self.ids: list[str | None] = [None] * run.keys
        self.uris: list[str | None] = [None] * run.keys
        if run.original is not None:
            self.ids = list(run.original[2])
        elif config.keys:
            bank = open_key_bank(config.keys)
            require_bank(config, run, bank)
            self.ids = bank.ids.to_pylist()
            self.uris = self.uris if bank.uris is None else bank.uris.to_pylist()

    def photographs(self, convention: Convention) -> npt.NDArray[np.int64]:
        """(N,) the first row that shows what each row shows: itself, or in the original's way the row of one path."""
        if convention == "corrected":
            return np.arange(len(self.ids))
        first: dict[str | None, int] = {}
        names = (uri or uid for uri, uid in zip(self.uris, self.ids, strict=True))
        return np.array([first.setdefault(name, row) for row, name in enumerate(names)], np.int64)


def require_bank(config: EvalVokensConfig, run: VokenRun, bank: KeyBank) -> None:
    """Check that a key bank is the one the run searched.

    Raises:
        InputError: it has another number of images, or another content.
    """
    if bank.shape[0] != run.keys:
        raise InputError(
            f"{config.vokens!r} searched a bank of {run.keys:,} images, but {config.keys!r} has {bank.shape[0]:,}; "
            "give the key bank that the vokens were made with."
        )
    if run.key_hash and run.key_hash != bank.hash:
        raise InputError(
            f"{config.vokens!r} searched the key bank {run.key_hash[:12]}…, but {config.keys!r} is {bank.hash[:12]}…; "
            "give the key bank that the vokens were made with."
        )


def open_runs(config: EvalVokensConfig) -> tuple[VokenRun, VokenRun | None]:
    """The run, and the other one where there is one.

    Raises:
        InputError: one of them does not fit the tokens, or they cannot be compared.
    """
    tokens = "" if config.is_original else hash_of_tokens(config.tokens)
    opened = [
        open_original_run(config.tokens, place) if config.is_original else open_voken_run(config.tokens, place, tokens)
        for place in (config.vokens, config.other)
        if place
    ]
    if len(opened) == 1:
        return opened[0], None
    require_comparable(opened[0], opened[1])
    return opened[0], opened[1]


def hash_of_tokens(tokens: str) -> str:
    """What voken runs record of a token run."""
    plan_token_shards(tokens)  # says what is wrong with a folder that is none
    return run_hash(tokens)


def truth_of(config: EvalVokensConfig, images: Images) -> CaptionTruth | None:
    """Which image each line describes; None where the corpus is no captions."""
    if not config.captions.path:
        return None
    ids = [uid or "" for uid in images.ids]
    return CaptionTruth(read_truth(config.captions), ids, images.uris, config.convention, config.captions.path)


def plan(config: EvalVokensConfig) -> Plan:
    """Size of what is read, and the memory it takes at most; refuses runs and banks that do not fit."""
    run, other = open_runs(config)
    images = Images(config, run)
    truth = truth_of(config, images)
    lines = sum(shard.stop - shard.start for shard in run.shards)
    if run.original is not None:
        lines, tokens = len(run.original[0].offsets) - 1, len(run.original[1])
    else:
        tokens = known_tokens(config.tokens)
    size = corpus_bytes(run.shards)
    rows = [
        ("corpus", f"{lines:,} lines" + (f" in {len(run.shards):,} shards, {byte_size(size)}" if size else "")),
        ("tokens", f"{tokens:,}" if tokens else "not counted: no manifest"),
        ("vokens", f"level {run.level}, top {run.top_k}, of {run.keys:,} images"),
        ("other run", config.other or "none"),
        ("captions", f"{len(truth.texts):,} of {config.captions.path}" if truth else "none: retrieval is not measured"),
        ("convention", config.convention),
        ("memory for counts", f"{byte_size(32 * MOST_PAIRS + 80 * run.keys)} at most, the rest in temporary files"),
    ]
    return Plan(rows if other is None else [*rows, ("k compared", f"{min(run.top_k, other.top_k)}")])


def body(config: EvalVokensConfig, run: Run) -> Report:
    """Read the vokens once, then write figures, tables and plot."""
    ours, other = open_runs(config)
    images = Images(config, ours)
    truth = truth_of(config, images)
    names = None
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    with PairCounts(ours.keys) as pairs, run.progress(None, "lines") as progress:
        photographs = images.photographs(config.convention)
        evaluation = Evaluation(ours, pairs, photographs, truth, config.convention, other)
        found = evaluation.measure(config.max_lines, progress.advance)
    written = write(config, found, images, names)
    rows = [*written, *progress.rates()]
    return Report(rows, found.figures, figures_text(found.figures))


def write(
    config: EvalVokensConfig, found: Evaluated, images: Images, names: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Write measures.json, the two tables and the plot; where they are.

    Raises:
        InputError: a token id is outside the tokenizer's vocabulary.
    """
    last = int(found.types.token_ids.max(initial=-1))
    if names is not None and last >= len(names):
        raise InputError(
            f"{config.tokens!r} has token id {last}, but {config.tokenizer!r} has {len(names)} words; give the "
            "tokenizer that the tokens were made with."
        )
    record = {
        **found.figures,
        "of": {"tokens": config.tokens, "vokens": config.vokens, "other": config.other, "keys": config.keys},
        "convention": config.convention,
    }
    places = [files.join(config.output, f) for f in ("measures.json", "token_types.parquet", "images.parquet")]
    files.write_json(places[0], record)
    files.write_parquet(places[1], type_rows(found.types, names))
    files.write_parquet(places[2], image_rows(found, images.ids, images.uris))
    plot = files.join(config.output, "vokens.png")
    files.write_bytes(plot, voken_plot(found, config.vokens.rstrip("/").rsplit("/", 1)[-1]))
    return list(zip(("figures", "token types", "images", "plot"), [*places, plot], strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    description = __doc__ or ""
    return run_job(
        "eval_vokens", EvalVokensConfig, plan=plan, body=body, description=description, argv=argv, uses_ray=False
    )


if __name__ == "__main__":
    sys.exit(main())
