"""Move keys, tokens, vokens, models and entity data between our forms and the files of the original programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from alignment.mvptr.files import MvptrFiles, convert_mvptr
from alignment.original_files.kinds import AgreeConfig, convert_agree
from raydeploy.connect import RayConfig
from raydeploy.run import Plan, Report, Run, run_job
from vokenize.original_tokens import (
    CorpusFilter,
    drop_reason,
    export_tokens,
    import_tokens,
    load_sentencizer,
    read_original_tokens,
    sentence_offsets,
)
from vokenize.original_vokens import export_vokens, maria_lines, voken_base_name
from vokenize.tokens import load_tokenizer, plan_token_shards, read_token_shard
from vokenize.voken_files import check_vokens, read_voken_shard
from xmatch.data import files
from xmatch.data.image_sets import split_universal_id
from xmatch.data.key_files import export_keys, import_keys
from xmatch.data.legacy_pickle import convert_legacy
from xmatch.data.vectors import read_vectors, write_vectors
from xmatch.data.words import read_vocabulary
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.importers.kinds import ORIGINALS, Given, Kind


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of one conversion."""

    what: Literal[
        "export_keys",
        "import_keys",
        "export_tokens",
        "import_tokens",
        "export_vokens",
        "export_maria",
        "import_model",
        "export_model",
        "import_agree",
        "export_agree",
        "import_mvptr",
        "export_mvptr",
        "legacy",
    ]
    """What to convert; `export_` writes the originals' files, `import_` reads them. `legacy`: a pickled vocabulary,
    answer list or result as JSON or .npy."""
    output: str
    """Folder for what is written."""
    input: str = ""
    """Checkpoint of an original, or folder or hub name for `clip` (import_model); our model's folder or hub name
    (export_model); a file of AGREE (import_agree), or ours (export_agree); file or folder of regions (import_mvptr), or
    the output of extract_regions or of an import (export_mvptr); a pickle or an .npy that holds one
    (legacy)."""
    agree: AgreeConfig = field(default_factory=AgreeConfig)
    """Which file of AGREE, and what it needs (import_agree, export_agree)."""
    mvptr: MvptrFiles = field(default_factory=MvptrFiles)
    """Which files of regions, captions and phrases (import_mvptr, export_mvptr)."""
    kind: Kind = "vokenization"
    """Which original's checkpoint (import_model, export_model). `vokenization`, `maria`: BEST.pth. `vse_infinity`:
    model_best.pth. `vsrn`, `camera`, `selfalign`: model_best.pth.tar (import_model alone). `clip`: a CLIP or SigLIP of
    transformers. `openai_clip`: a plain state dict. `agree`: epoch_N.pt."""
    vocab: str = ""
    """SCAN vocabulary JSON of a model with a BiGRU or GRU (import_model); `legacy` makes one of VSRN's pickle."""
    image_name: str = ""
    """timm's name of the image tower of a Vokenization or Maria model; empty: the published ResNeXt (import_model)."""
    text_name: str = ""
    """Hub name or folder of its text tower where that is no BERT (import_model)."""
    name: str = ""
    """File name in the output folder, ending in .json or .npy; empty: the input's, as .json (legacy)."""
    keys: str = ""
    """Key bank (exports), or the folder of {SET}.hdf5, .ids, .path (import_keys)."""
    image_set: str = ""
    """Set to import."""
    tokens: str = ""
    """Token shards (exports), or the originals' prefix DATADIR/FNAME.TOKENIZER (import_tokens)."""
    vokens: str = ""
    """Folder of voken shards."""
    tokenizer: str = ""
    """Tokenizer of the token files, or of a model to import: folder or hub name."""
    corpus_name: str = "corpus"
    """File name of the corpus, first part of the originals' file names."""
    corpus_filter: CorpusFilter = "none"
    """The original's filter: `wiki103` for headings, `wiki` for single words, both for short lines."""
    sentences: bool = False
    """Write .sent beside .line (needs the extra `sentences` and a tokenizer)."""
    level: Literal["token", "sentence"] = "token"
    """Which vokens to write; `sentence` uses the originals' sign code."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used: a conversion runs in this process."""


def plan(config: ConvertConfig) -> Plan:
    """The conversion, and whether its inputs are named."""
    needed = {
        "export_keys": ["keys"],
        "import_keys": ["keys", "image_set"],
        "export_tokens": ["tokens"],
        "import_tokens": ["tokens", "tokenizer"],
        "export_vokens": ["tokens", "vokens", "keys"],
        "export_maria": ["tokens", "vokens", "keys"],
        "import_model": ["input"],
        "export_model": ["input"],
        "import_agree": ["input"],
        "export_agree": ["input"],
        "import_mvptr": ["input"],
        "export_mvptr": ["input"],
        "legacy": ["input"],
    }[config.what]
    missing = [name for name in needed if not getattr(config, name)]
    if missing:
        raise InputError(f"{config.what} needs --{missing[0]}.")
    return Plan([("conversion", config.what), ("output", config.output)])


def _export_keys(config: ConvertConfig) -> list[tuple[str, str]]:
    return [("image sets", ", ".join(export_keys(read_vectors(config.keys), config.output)))]


def _import_keys(config: ConvertConfig) -> list[tuple[str, str]]:
    table = import_keys(config.keys, config.image_set)
    write_vectors(files.join(config.output, "shards", "part-00000.arrow"), table)
    return [("keys", f"{len(table):,}")]


def _export_tokens(config: ConvertConfig) -> list[tuple[str, str]]:
    prefix = files.join(config.output, config.corpus_name)
    tables = (read_token_shard(shard) for shard in plan_token_shards(config.tokens))
    dropped = export_tokens(tables, prefix, config.corpus_filter)
    files.write_json(f"{prefix}.dropped.json", [line._asdict() for line in dropped])
    if config.sentences:
        found = read_original_tokens(prefix)
        words = load_tokenizer(config.tokenizer).convert_ids_to_tokens(found.tokens.tolist())
        offsets = sentence_offsets(found.offsets, words, load_sentencizer())
        files.write_bytes(f"{prefix}.sent", "".join(f"{offset}\n" for offset in offsets).encode())
    return [("token file", prefix), ("lines dropped", f"{len(dropped):,}, listed in {prefix}.dropped.json")]


def _import_tokens(config: ConvertConfig) -> list[tuple[str, str]]:
    table = import_tokens(config.tokens, load_tokenizer(config.tokenizer))
    files.write_parquet(files.join(config.output, "shards", "part-00000.parquet"), table)
    return [("lines", f"{len(table):,}")]


def _pairs(config: ConvertConfig) -> Iterator[tuple[pa.Table, pa.Table]]:
    folder = files.join(config.vokens, "shards")
    for shard in plan_token_shards(config.tokens):
        path = files.join(folder, f"{shard.id}.parquet")
        tokens, vokens = read_token_shard(shard), read_voken_shard(path)
        check_vokens(tokens, vokens, path)
        yield tokens, vokens


def _export_vokens(config: ConvertConfig) -> list[tuple[str, str]]:
    ids = read_vectors(config.keys).column("id").to_pylist()
    sets = sorted({split_universal_id(uid)[0] for uid in ids})
    base = files.join(config.output, voken_base_name(config.corpus_name, sets, len(ids)))
    keep = (
        bool(row["token_ids"]) and not drop_reason(row["text"], config.corpus_filter)
        for tokens, _ in _pairs(config)
        for row in tokens.select(["text", "token_ids"]).to_pylist()
    )
    count = export_vokens((vokens for _, vokens in _pairs(config)), keep, base, ids, config.level)
    return [("voken files", base), ("vokens", f"{count:,}")]


def _export_maria(config: ConvertConfig) -> list[tuple[str, str]]:
    bank = read_vectors(config.keys)
    uris = [uri or uid for uri, uid in zip(bank.column("uri").to_pylist(), bank.column("id").to_pylist(), strict=True)]
    sets = sorted({split_universal_id(uid)[0] for uid in bank.column("id").to_pylist()})
    base = files.join(config.output, voken_base_name(config.corpus_name, sets, len(bank)))
    count = 0
    with files.open_atomic(base) as sink:
        for _, vokens in _pairs(config):
            lines = maria_lines(vokens, uris)
            sink.write("".join(f"{line}\n" for line in lines).encode())
            count += len(lines)
    files.write_bytes(f"{base}.ids", "".join(f"{uid}\n" for uid in bank.column("id").to_pylist()).encode())
    return [("lines of image names", base), ("lines", f"{count:,}")]


def _import_model(config: ConvertConfig) -> list[tuple[str, str]]:
    given = Given(
        tokenizer=load_tokenizer(config.tokenizer) if config.tokenizer else None,
        vocabulary=read_vocabulary(config.vocab) if config.vocab else None,
        image_name=config.image_name,
        text_name=config.text_name,
    )
    model = ORIGINALS[config.kind].read(config.input, given)
    source = os.path.basename(config.input.rstrip("/"))
    card = str(model.generate_model_card(imported=f"`{source}`, a checkpoint of kind {config.kind}"))
    model.save_pretrained(config.output, card=card)
    settings = model.config
    return [
        ("model", config.output),
        ("kind", config.kind),
        ("image tower", f"{settings.image.kind}, {model.image_tower.width} wide"),
        ("text tower", f"{settings.text.kind}, {model.text_tower.width} wide, at most {settings.text.max_len} tokens"),
        ("dimensions", str(settings.dim)),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
    ]


def _export_model(config: ConvertConfig) -> list[tuple[str, str]]:
    path = ORIGINALS[config.kind].write(DualEncoder.from_pretrained(config.input), config.output)
    return [("checkpoint", path), ("kind", config.kind)]


def _import_agree(config: ConvertConfig) -> list[tuple[str, str]]:
    return convert_agree("import", config.input, config.output, config.agree)


def _export_agree(config: ConvertConfig) -> list[tuple[str, str]]:
    return convert_agree("export", config.input, config.output, config.agree)


def _import_mvptr(config: ConvertConfig) -> list[tuple[str, str]]:
    return convert_mvptr("import", config.input, config.output, config.mvptr)


def _export_mvptr(config: ConvertConfig) -> list[tuple[str, str]]:
    return convert_mvptr("export", config.input, config.output, config.mvptr)


def _legacy(config: ConvertConfig) -> list[tuple[str, str]]:
    name = config.name or f"{os.path.splitext(os.path.basename(config.input))[0]}.json"
    path = files.join(config.output, name)
    return [("file", path), ("holds", convert_legacy(config.input, path))]


CONVERSIONS: dict[str, Callable[[ConvertConfig], list[tuple[str, str]]]] = {
    "export_keys": _export_keys,
    "import_keys": _import_keys,
    "export_tokens": _export_tokens,
    "import_tokens": _import_tokens,
    "export_vokens": _export_vokens,
    "export_maria": _export_maria,
    "import_model": _import_model,
    "export_model": _export_model,
    "import_agree": _import_agree,
    "export_agree": _export_agree,
    "import_mvptr": _import_mvptr,
    "export_mvptr": _export_mvptr,
    "legacy": _legacy,
}


def body(config: ConvertConfig, run: Run) -> Report:
    """Do the conversion."""
    return Report(CONVERSIONS[config.what](config))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("convert", ConvertConfig, plan=plan, body=body, description=__doc__ or "", argv=argv, uses_ray=False)


if __name__ == "__main__":
    sys.exit(main())
