"""Fetch a public data set or weights by name: resumed where it stopped, checked, and unpacked safely."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raydeploy.connect import RayConfig
from raydeploy.run import Plan, Progress, Report, Run, run_job
from xmatch.data import files
from xmatch.data.download import DownloadConfig, Downloaded, download, download_hub, unpack
from xmatch.data.registry import Entry, RemoteFile, check_sha256, find_entry
from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Settings of one fetch; the name may come first on the command line, without `--name`."""

    name: str = ""
    """What to fetch; without it, the known names are listed."""
    output: str = ""
    """Local folder for the files."""
    only: str = ""
    """One file of several, by its name."""
    url: str = ""
    """Another address of the one file that is fetched; its hash is still checked."""
    sha256: str = ""
    """Expected hash of the one file that is fetched: 64 hexadecimal digits, or the first 8."""
    keep_archive: bool = False
    """Keep an archive after it is unpacked."""
    max_unpacked_gb: int = 200
    """Refuse an archive that unpacks to more."""
    download: DownloadConfig = field(default_factory=DownloadConfig)
    """How patient the download is."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used: a fetch runs in this process."""

    def __post_init__(self) -> None:
        entry = find_entry(self.name)
        if entry.manual:
            raise InputError(
                f"{self.name} ({entry.what}) is not for a program to fetch. {entry.manual} "
                f"Licence: {entry.licence}. Layout: {entry.layout}."
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InputError(f"url {self.url!r} is no web address; expected http:// or https://.")
        if files.is_uri(self.output):
            raise InputError(
                f"output {self.output!r} is a URI; a fetch needs a local folder. Copy it there afterwards."
            )
        chosen_files(entry, self)


def chosen_files(entry: Entry, config: FetchConfig) -> tuple[RemoteFile, ...]:
    """The files to download, with what the command line changes.

    Raises:
        InputError: there is no such file, or an override does not name one file.
    """
    chosen = tuple(file for file in entry.files if not config.only or file.name == config.only)
    names = ", ".join(file.name for file in entry.files) or "none that can be chosen: they come from the hub"
    if config.only and not chosen:
        raise InputError(f"{config.name} has no file {config.only!r}; it has {names}.")
    if not config.url and not config.sha256:
        return chosen
    if len(chosen) != 1:
        raise InputError(f"--url and --sha256 are for one file; choose it with --only. {config.name} has {names}.")
    one = chosen[0]
    if config.url:
        one = dataclasses.replace(one, url=config.url, mirrors=(), file_name=one.name)
    if config.sha256:
        one = dataclasses.replace(one, sha256=check_sha256(config.sha256))
    return (one,)


def plan(config: FetchConfig) -> Plan:
    """Address, size, licence and hash of every file; nothing is asked of the network."""
    entry = find_entry(config.name)
    rows = [("name", f"{config.name}: {entry.what}"), ("licence", entry.licence), ("layout", entry.layout)]
    for file in chosen_files(entry, config):
        size = "size not published" if file.size_bytes is None else f"{file.size_bytes:,} bytes"
        rows.append((file.name, f"{file.url}; {size}; {file.hash_state}"))
        rows += [("mirror", mirror) for mirror in file.mirrors]
    if entry.hub is not None:
        rows.append(("hub", f"{entry.hub.repo_id} at {entry.hub.revision}: {', '.join(entry.hub.patterns)}"))
        rows.append(("hash", "published by the hub for large files, and checked; none for small ones"))
    rows += [("note", entry.note)] if entry.note else []
    return Plan([*rows, ("output", config.output)])


def _receipt_path(config: FetchConfig) -> str:
    return files.join(config.output, "fetched", f"{config.name}.json")


def _is_done(file: RemoteFile, receipt: dict[str, Any] | None, output: str) -> bool:
    """Whether an earlier run fetched and unpacked this very file, and all of it is still there."""
    if receipt is None or not receipt["sha256"].startswith(file.sha256 or ""):
        return False
    names = receipt["top_level"] or [file.name]
    return all(files.exists(files.join(output, name)) for name in names)


def _row(name: str, found: Downloaded) -> dict[str, Any]:
    values = dataclasses.asdict(found) | {"name": name, "top_level": [], "unpacked": 0}
    return {key: value for key, value in values.items() if key != "path"}


def _fetch_file(file: RemoteFile, config: FetchConfig, progress: Progress) -> dict[str, Any]:
    path = files.join(config.output, file.name)
    found = download(
        (file.url, *file.mirrors),
        path,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        config=config.download,
        progress=progress.advance,
    )
    row = _row(file.name, found)
    if file.unpack:
        unpacked = unpack(path, config.output, file.unpack, max_bytes=config.max_unpacked_gb * 10**9)
        row |= {"top_level": unpacked.top_level, "unpacked": unpacked.count}
        if not config.keep_archive:
            os.unlink(path)
    return row


def _describe(row: dict[str, Any]) -> tuple[str, str]:
    state = "checked" if row["is_checked"] else "no hash published, so not checked"
    unpacked = f"; {row['unpacked']:,} files unpacked" if row["unpacked"] else ""
    resumed = f"; resumed from byte {row['resumed_from']:,}" if row["resumed_from"] else ""
    return row["name"], f"{row['size_bytes']:,} bytes; sha256 {row['sha256']} ({state}){resumed}{unpacked}"


def body(config: FetchConfig, run: Run) -> Report:
    """Fetch what is not there yet."""
    entry = find_entry(config.name)
    path = _receipt_path(config)
    receipts: dict[str, Any] = files.read_json(path) if files.exists(path) else {}
    chosen = chosen_files(entry, config)
    todo = [file for file in chosen if not _is_done(file, receipts.get(file.name), config.output)]
    known = [file.size_bytes for file in todo if file.size_bytes is not None]
    with run.progress(sum(known) if len(known) == len(todo) else None, "bytes") as progress:
        for file in todo:
            receipts[file.name] = _fetch_file(file, config, progress)
            files.write_json(path, receipts)
    fetched = [receipts[file.name] for file in todo]
    if entry.hub is not None:
        fetched = [_row(os.path.relpath(f.path, config.output), f) for f in download_hub(entry.hub, config.output)]
        files.write_json(path, {row["name"]: row for row in fetched})
    here = [(file.name, "already here") for file in chosen if file not in todo]
    text = "\n".join(
        f"No hash is published for {file.name}. To be sure of the same bytes elsewhere: "
        f"--only {file.name} --sha256 {receipts[file.name]['sha256']}"
        for file in todo
        if file.sha256 is None
    )
    return Report([*here, *map(_describe, fetched), ("receipt", path)], {"files": fetched}, text)


def named_first(argv: Sequence[str]) -> list[str]:
    """Arguments in which a name given first is `--name`."""
    arguments = list(argv)
    return ["--name", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    arguments = named_first(sys.argv[1:] if argv is None else argv)
    return run_job(
        "fetch", FetchConfig, plan=plan, body=body, description=__doc__ or "", argv=arguments, uses_ray=False
    )


if __name__ == "__main__":
    sys.exit(main())
