"""Report on a key bank, pack it for search, merge its duplicates, append images to it, or factor images of views.

A bank is a folder of jobs/embed.py, or one or more files: Arrow, Parquet with columns id and vector, or {SET}.hdf5 with
.ids and .path.
`--action report` checks the files against the records of their run, and tells of rows, norms, zero vectors, equal
images, packed forms and, from --threshold on, nearly equal images.
`--action pack` makes what the native search scans, once, beside the bank: searches then start from it.
`--action merge` writes a new bank in which one image stands for all that are equal, or nearly so from --threshold on,
and a table of who stands for whom.
`--action append` makes the images of a second bank (--add), embedded with the same model, one more shard of the first:
the rows that were there stay what they are, and so do vokens.
`--action factor` writes a bank of several rows an image as two, of the columns that differ by view (the first --dim)
and of those that all views share, so that search multiplies these once.
docs/key_banks.md says more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa

from raydeploy.connect import RayConfig
from raydeploy.forecast import byte_size
from raydeploy.ledger import Ledger, Marker, mark_done
from raydeploy.run import Plan, Report, Run, run_job
from xmatch.data import files
from xmatch.data.grown_banks import appended_hash, check_appendable, write_appended
from xmatch.data.key_banks import KeyBank, check_copy, open_key_bank
from xmatch.data.key_cache import HASH_DIGITS, bank_root, check_records, prune_cache
from xmatch.data.key_figures import norm_figures
from xmatch.data.steps import shard_name
from xmatch.data.vectors import write_vectors
from xmatch.errors import InputError
from xmatch.pages.duplicate_clusters import MOST_PHOTOS, ShownCluster, clusters_page
from xmatch.pages.render import render
from xmatch.search.cluster_figures import equal_figures, near_figures
from xmatch.search.duplicates import find_duplicates, merged_scan
from xmatch.search.exact import Keys
from xmatch.search.factored import open_factored, write_factored
from xmatch.search.grouped import require_no_views
from xmatch.search.merged_banks import alias_table, kept_tables
from xmatch.search.native_backend import Kind, NativeScan
from xmatch.search.near_duplicates import Clusters, NearPairs, cosines, find_clusters, smallest_similarity
from xmatch.search.packed import PackedFiles, packed_files
from xmatch.search.scores import decode, norms

ALIASES = "aliases.parquet"
Rows = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class KeyBankConfig:
    """Settings of one action on a key bank."""

    action: Literal["report", "pack", "merge", "append", "factor"]
    """What to do; `pack` writes beside the bank, `append` into it, the others leave it as it is."""
    bank: str
    """The key bank: a file, a folder of files, or a run's folder."""
    output: str
    """Folder for the report (report, pack, append) or the new bank (merge, factor); not the bank itself."""
    add: str = ""
    """Bank whose images are appended (append)."""
    dim: int = 0
    """Columns that differ by view (factor): the width of the model's shared space, 2048 for CAMERA."""
    threshold: float = 0.0
    """Cosine from which two images count as nearly equal, such as 0.97 (report, merge); 0: only equal ones count. Every
    image is searched for among all: time grows with the square of their number."""
    backend: Literal["auto", "native", "torch", "triton", "faiss"] = "auto"
    """Search backend for near duplicates."""
    threads: int = 1
    """CPU threads of search and packing."""
    kinds: list[str] = field(default_factory=lambda: ["int8", "bf16"])
    """Packed forms to make (pack); a search picks one of them by its first queries."""
    cache: str = ""
    """Local folder for packed forms and mapped copies; empty: beside the bank."""
    rows_per_shard: int = 65536
    """Rows of one shard of a new bank (merge)."""
    shown: int = 24
    """Clusters on the page of duplicates (report); 0: no page."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used: all of this runs in this process."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.output.rstrip("/") in (self.bank.rstrip("/"), bank_root(self.bank) if self.bank else ""):
            raise InputError(f"output must be another folder than the bank {self.bank!r}.")
        if self.action == "append" and not self.add:
            raise InputError("append needs --add, a bank of the new images.")
        if self.action == "factor" and self.dim < 1:
            raise InputError("factor needs --dim, how many columns differ by view; all that follow are shared.")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be a cosine from 0 (off) to 1, got {self.threshold}.")
        if min(self.threads, self.rows_per_shard) < 1 or self.shown < 0:
            raise InputError("threads and rows_per_shard must be at least 1, shown 0 or more.")
        unknown = [kind for kind in self.kinds if kind not in get_args(Kind)]
        if unknown or not self.kinds:
            raise InputError(f"kinds must be some of {', '.join(get_args(Kind))}, got {', '.join(unknown) or 'none'}.")


def open_bank(config: KeyBankConfig, path: str) -> KeyBank:
    """A bank with the job's cache folder."""
    return open_key_bank(path, config.cache or None)


def identity_of(path: str) -> dict[str, Any]:
    """What the run that made a bank wrote down of it; empty where there is nothing."""
    place = files.join(bank_root(path), "identity.json")
    is_there = files.is_folder(bank_root(path)) and files.exists(place)
    return dict(files.read_json(place)) if is_there else {}


def size_rows(bank: KeyBank) -> Rows:
    """How large a bank is."""
    count, width = bank.shape
    return [
        ("bank", bank.path),
        ("files", f"{len(bank.shards):,}"),
        ("rows", f"{count:,} x {width}, {bank.dtype}, {byte_size(bank.nbytes)}"),
    ]


def plan(config: KeyBankConfig) -> Plan:
    """Size and work; finds a bank that cannot be opened, and one that cannot be appended."""
    bank = open_bank(config, config.bank)
    rows = [("action", config.action), *size_rows(bank)]
    if config.action == "append":
        new = open_bank(config, config.add)
        if appended_hash(bank) != new.hash:
            check_appendable(bank, new, (identity_of(config.bank), identity_of(config.add)))
        rows.append(("appended", f"{new.shape[0]:,} rows of {config.add}"))
    if config.action == "merge":
        require_no_views(bank, "merging leaves out single rows, and every image must keep all of its views.")
        if not bank.shape[0]:
            raise InputError(f"{config.bank!r} has no rows, so there is nothing to merge.")
    if config.action in ("report", "merge"):
        count, width = bank.shape
        cost = f"cosine {config.threshold:g} or more: {2 * count * count * width / 1e12:,.1f} TFLOP of search"
        rows.append(("near duplicates", cost if config.threshold else "not looked for; give --threshold"))
    return Plan(rows)


def clusters_of(config: KeyBankConfig, bank: KeyBank, run: Run) -> Clusters:
    """Equal rows, and nearly equal ones where a threshold is given."""
    if config.threshold:
        with run.progress(bank.shape[0], "images") as progress:
            return find_clusters(
                bank.rows,
                config.threshold,
                backend=config.backend,
                threads=config.threads,
                advance=progress.advance,
            )
    duplicates = find_duplicates(bank.rows)
    labels = np.empty(bank.shape[0], np.int64)
    labels[duplicates.members] = np.repeat(duplicates.representatives, duplicates.sizes)
    none = np.empty(0, np.int64)
    return Clusters(labels, duplicates, NearPairs(none, none, np.empty(0)))


def cluster_values(config: KeyBankConfig, bank: KeyBank, clusters: Clusters) -> tuple[dict[str, Any], Rows]:
    """Figures of the duplicates in a bank, for a program and for a person."""
    equal = equal_figures(clusters)
    values: dict[str, Any] = {"equal": equal._asdict(), "near": None}
    rows = [("equal rows", f"{equal.rows:,} equal a lower one; at most {equal.most:,} of a kind")]
    if not config.threshold:
        return values, rows
    near = near_figures(bank, clusters, config.threshold)
    values["near"] = near._asdict() | {"largest": near.largest._asdict() if near.largest else None}
    rows += [
        ("near duplicates", f"{near.pairs:,} pairs of distinct rows at {near.threshold:g} or more"),
        ("clusters", f"{near.clusters:,}; a merge would leave out {near.left_out:,} rows"),
    ]
    if near.largest:
        text = f"{near.largest.rows:,} rows from {near.largest.id}"
        rows.append(("largest cluster", f"{text}; least similarity {near.largest.smallest_similarity:.4f}"))
    return values, rows


def packed_values(bank: KeyBank) -> dict[str, int]:
    """Bytes of each packed form of the bank as it is now, by file name."""
    paths = files.list_files(bank.cache) if bank.cache else []
    names = {path: path.rsplit("/", 1)[-1] for path in paths}
    mine = f"packed-{bank.hash[:HASH_DIGITS]}-"
    return {
        name.removeprefix(mine).removesuffix(".bin"): os.path.getsize(path)
        for path, name in names.items()
        if mine in name
    }


def report(config: KeyBankConfig, run: Run) -> Report:
    """Figures of a bank, as rows, JSON and a page."""
    bank = open_bank(config, config.bank)
    checked = check_records([path for shard in bank.shards for path in shard.files], bank.path)
    check_copy(bank)
    lengths = norm_figures(bank)
    clusters = clusters_of(config, bank, run)
    packed = packed_values(bank)
    found, found_rows = cluster_values(config, bank, clusters)
    values = {
        "rows": bank.shape[0],
        "width": bank.shape[1],
        "dtype": str(bank.dtype),
        "bytes": bank.nbytes,
        "hash": bank.hash,
        "files_checked": checked,
        "norms": {"least": lengths.least, "mean": lengths.mean, "greatest": lengths.greatest},
        "zero_rows": lengths.zeros,
        "packed": packed,
        **found,
    }
    rows = [
        *size_rows(bank),
        ("hash", bank.hash),
        ("checked", f"{checked:,} of {len(bank.shards):,} files have a record of their run, and agree with it"),
        ("norms", f"{lengths.least:.6g} to {lengths.greatest:.6g}, mean {lengths.mean:.6g}; {lengths.zeros:,} zero"),
        *found_rows,
        ("packed", ", ".join(f"{name} ({byte_size(size)})" for name, size in packed.items()) or "no"),
    ]
    files.write_json(files.join(config.output, "key_bank.json"), values)
    page = write_page(config, bank, clusters, found_rows)
    return Report(rows + ([("page", page)] if page else []), values)


def write_page(config: KeyBankConfig, bank: KeyBank, clusters: Clusters, figures: Rows) -> str:
    """Write duplicates.html of the largest clusters; its path, or "" where no image of them can be shown."""
    lowest, counts = clusters.sizes()
    if not config.shown or not len(lowest) or bank.uris is None:
        return ""
    chosen: list[int] = []
    shown = []
    for first, size in zip(lowest[: config.shown].tolist(), counts.tolist()):
        members = clusters.members(first)
        some = members[:MOST_PHOTOS]
        is_zero = not bank.rows[first].astype(np.bool_).any()
        likeness = np.ones(len(some)) if is_zero else cosines(bank.rows, np.full(len(some), first), some)
        least = smallest_similarity(bank.rows, np.intersect1d(members, clusters.duplicates.representatives))
        shown.append(ShownCluster(range(len(chosen), len(chosen) + len(some)), likeness.tolist(), size, least))
        chosen += some.tolist()
    names = bank.ids.take(pa.array(chosen)).to_pylist()
    places = [place or "" for place in bank.uris.take(pa.array(chosen)).to_pylist()]
    page = clusters_page(shown, names, places, figures)
    if page is None:
        return ""
    path = files.join(config.output, "duplicates.html")
    files.write_bytes(path, render(page).encode())
    return path


def native_scan(threads: int, kind: str, keys: Keys, packed: PackedFiles | None) -> NativeScan:
    """The native scan of some keys, of a kind that the settings have checked."""
    return NativeScan(keys, threads, cast(Kind, kind), packed=packed)


def pack(config: KeyBankConfig, run: Run) -> Report:
    """Make the packed forms that are not there yet, and remove those of an earlier content of the bank."""
    bank = open_bank(config, config.bank)
    packed = packed_files(bank)
    if packed is None:
        raise InputError(f"{config.bank!r} is in a place that cannot be written; give --cache, a local folder.")
    freed = prune_cache(bank.cache, bank.hash)
    norm_figures(bank)  # names a row that is not finite
    if bank.rows.size:
        keys = Keys(bank.rows, norms(bank.rows))
        for kind in config.kinds:
            scan = merged_scan(keys, partial(native_scan, config.threads, kind), packed)
            scan.top(decode(bank.rows[:1]), 1)
    values = packed_values(bank)
    rows = [(name, f"{byte_size(size)}") for name, size in values.items()]
    return Report([("cache", bank.cache), *rows, ("removed", f"{byte_size(freed)}")], {"packed": values})


def merge(config: KeyBankConfig, run: Run) -> Report:
    """Write a bank of the rows that stand for their clusters, and the table of who stands for whom."""
    bank = open_bank(config, config.bank)
    norm_figures(bank)  # names a row that is not finite
    clusters = clusters_of(config, bank, run)
    found, found_rows = cluster_values(config, bank, clusters)
    identity = identity_of(config.bank) | {"merged": {"bank": bank.hash, "threshold": config.threshold}}
    ledger, names = Ledger(config.output, identity), []
    for number, table in enumerate(kept_tables(bank, clusters.labels, config.rows_per_shard)):
        names.append(shard_name(number))
        publish(ledger, names[-1], table)
    aliases = alias_table(bank, clusters.labels)
    files.write_parquet(files.join(config.output, ALIASES), aliases)
    manifest = ledger.finish(names)
    rows = [
        ("new bank", config.output),
        ("rows", f"{manifest['counts']['images']:,} of {bank.shape[0]:,}"),
        ("aliases", f"{len(aliases):,} in {files.join(config.output, ALIASES)}"),
        *found_rows,
    ]
    return Report(rows, found | {"rows": manifest["counts"]["images"], "aliases": len(aliases)})


def publish(ledger: Ledger, name: str, table: pa.Table) -> None:
    """Write one shard of a bank and mark it done."""
    write_vectors(files.join(ledger.output, "shards", f"{name}.arrow"), table)
    note_shard(ledger.output, name, len(table))


def note_shard(root: str, name: str, count: int) -> None:
    """Mark a shard of images as done, as a streaming run does."""
    file = f"shards/{name}.arrow"
    size, digest = files.size_and_sha256(files.join(root, file))
    counts = {"images": count, "quarantined": 0}
    mark_done(root, name, Marker(counts, count, count, 0, file, size, digest))


def append(config: KeyBankConfig, run: Run) -> Report:
    """Make the new images the bank's last shard, and bring its run's records up to date."""
    bank, new = open_bank(config, config.bank), open_bank(config, config.add)
    identities = identity_of(config.bank), identity_of(config.add)
    is_there = appended_hash(bank) == new.hash
    if not is_there:
        check_appendable(bank, new, identities)
        if identities[0]:
            require_records(bank_root(config.bank), identities[0])
    path = bank.shards[-1].path if is_there else write_appended(bank, new)
    if identities[0]:
        note_appended(bank_root(config.bank), identities, path, new)
    grown = open_bank(config, config.bank)
    freed = prune_cache(grown.cache, grown.hash)
    rows = [
        *size_rows(grown),
        ("appended", "was there already" if is_there else f"{new.shape[0]:,} rows as {path.rsplit('/', 1)[-1]}"),
        ("hash", f"{grown.hash}, was {bank.hash}"),
        ("removed", f"{byte_size(freed)} of packed forms and copies of the bank as it was"),
    ]
    return Report(rows, {"rows": grown.shape[0], "hash": grown.hash, "before": bank.hash})


def factored(config: KeyBankConfig, run: Run) -> Report:
    """Write the columns that differ by view and those that are shared as two banks, and open them again."""
    bank = open_bank(config, config.bank)
    write_factored(bank, config.dim, config.output)
    views, shared = open_factored(config.output).vectors.parts
    rows = [
        *size_rows(bank),
        ("views", f"{views.views} of each of {len(shared.rows):,} images, {views.rows.shape[1]} wide"),
        ("shared", f"{shared.rows.shape[1]} wide"),
        (
            "numbers",
            f"{(views.rows.size + shared.rows.size) / max(1, bank.shape[0] * bank.shape[1]):.0%} of the bank's",
        ),
    ]
    return Report(rows, {"images": len(shared.rows), "views": views.views})


def note_appended(root: str, identities: tuple[dict[str, Any], dict[str, Any]], path: str, new: KeyBank) -> None:
    """Add an appended shard to the records of the run that made a bank."""
    name = path.rsplit("/", 1)[-1].removesuffix(".arrow")
    entry = {"shard": name, "bank": new.hash, "source": identities[1].get("source", "")}
    known = identities[0].get("appended", [])
    identity = identities[0] | {"appended": known + [entry] * (entry not in known)}
    files.write_json(files.join(root, "identity.json"), identity)
    note_shard(root, name, new.shape[0])
    Ledger(root, identity).finish(shard_names(root))


def require_records(root: str, identity: Mapping[str, Any]) -> None:
    """Check that every shard of a run has its completion marker, so that another one can be noted beside them.

    Raises:
        InputError: some have none.
    """
    missing = sorted(set(shard_names(root)) - Ledger(root, identity).done())
    if missing:
        raise InputError(
            f"{len(missing)} shards of {root!r} have no record in completions/, the first is {missing[0]!r}: the run "
            "is not finished, or was not copied whole. Finish it, or copy it again."
        )


def shard_names(root: str) -> list[str]:
    """Ids of the shards in a run's folder."""
    paths = files.list_files(files.join(root, "shards"), ".arrow")
    return [path.rsplit("/", 1)[-1].removesuffix(".arrow") for path in paths]


ACTIONS: dict[str, Callable[[KeyBankConfig, Run], Report]] = {
    "report": report,
    "pack": pack,
    "merge": merge,
    "append": append,
    "factor": factored,
}


def body(config: KeyBankConfig, run: Run) -> Report:
    """Do it."""
    return ACTIONS[config.action](config, run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job(
        "key_bank", KeyBankConfig, plan=plan, body=body, description=__doc__ or "", argv=argv, uses_ray=False
    )


if __name__ == "__main__":
    sys.exit(main())
