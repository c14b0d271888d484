"""Downloads against a real server on this machine that can cut, stall and lie; archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from xmatch.data import download as module
from xmatch.data.download import DownloadConfig, download, download_hub, part_path, unpack
from xmatch.data.registry import HubFiles
from xmatch.errors import InputError

DATA = random.Random(0).randbytes(3_000_000)
HASH = hashlib.sha256(DATA).hexdigest()
FAST = DownloadConfig(attempts=2, backoff_s=0.01, timeout_s=5)


class Served(ThreadingHTTPServer):
    """What is served and how, and every request that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.status, self.kind = DATA, '"one"', 200, "application/zip"
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.has_ranges = self.has_if_range = True
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.zip"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up midway is what some tests are about: no traceback."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        served, asked = self.server, self.headers.get("Range")
        served.requests.append((self.path, asked))
        if self.path.startswith("/dead") or served.status != 200:
            self.send_error(served.status if served.status != 200 else 404)
            return
        start, total = 0, len(served.data)
        guard = self.headers.get("If-Range")
        is_same = not served.has_if_range or guard is None or guard == served.etag
        if asked and served.has_ranges and is_same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", served.kind)
        self.send_header("Content-Length", str(total - start))
        if served.etag:
            self.send_header("ETag", served.etag)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else total
        self.wfile.write(served.data[start : start + cut])
        if cut < total - start:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join(5)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "out" / "file.zip")


def left(target: str) -> list[str]:
    folder = os.path.dirname(target)
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def interrupted(server: Served, target: str, sha256: str | None = None) -> int:
    """A run that a person stops midway; the bytes it leaves."""
    seen = 0

    def stop(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download([server.url], target, sha256=sha256, config=FAST, progress=stop)
    size = os.path.getsize(part_path(target, server.url))
    assert not os.path.exists(target) and 0 < size < len(DATA)
    server.requests.clear()
    return size


def test_a_whole_file_is_checked_and_nothing_else_is_left(server: Served, target: str) -> None:
    shown: list[int] = []
    found = download([server.url], target, sha256=HASH, size_bytes=len(DATA), config=FAST, progress=shown.append)
    assert Path(target).read_bytes() == DATA and left(target) == ["file.zip"]
    assert (found.sha256, found.is_checked, found.resumed_from, sum(shown)) == (HASH, True, 0, len(DATA))
    again = download([server.url], target, sha256=HASH[:8], config=FAST)
    assert again.url == "" and len(server.requests) == 1


def test_a_connection_cut_midway_is_resumed_by_range(server: Served, target: str) -> None:
    server.cuts = [1_500_000, 700_000]
    shown: list[int] = []
    download([server.url], target, sha256=HASH, config=FAST, progress=shown.append)
    assert Path(target).read_bytes() == DATA and sum(shown) == len(DATA)
    asked = [int(r.removeprefix("bytes=").removesuffix("-")) for _, r in server.requests if r]
    assert server.requests[0][1] is None and len(asked) == 2 and 0 < asked[0] < asked[1]


@pytest.mark.parametrize("sha256", [HASH, None])
def test_a_later_run_goes_on_from_the_part_of_an_earlier_one(server: Served, target: str, sha256: str | None) -> None:
    size = interrupted(server, target, sha256)
    found = download([server.url], target, sha256=sha256, config=FAST)
    assert server.requests == [("/file.zip", f"bytes={size}-")]
    assert found.resumed_from == size and Path(target).read_bytes() == DATA and left(target) == ["file.zip"]


@pytest.mark.parametrize("has_if_range", [True, False])
def test_a_file_that_changed_between_runs_is_never_joined(server: Served, target: str, has_if_range: bool) -> None:
    interrupted(server, target)
    server.data, server.etag, server.has_if_range = b"new" * 900_000, '"two"', has_if_range
    download([server.url], target, config=FAST)
    assert Path(target).read_bytes() == server.data


def test_without_validator_or_hash_a_part_is_not_trusted(server: Served, target: str) -> None:
    server.etag = ""
    interrupted(server, target)
    download([server.url], target, config=FAST)
    assert server.requests == [("/file.zip", None)] and Path(target).read_bytes() == DATA


def test_a_server_without_ranges_starts_over(server: Served, target: str) -> None:
    interrupted(server, target)
    server.has_ranges = False
    shown: list[int] = []
    download([server.url], target, config=FAST, progress=shown.append)
    assert Path(target).read_bytes() == DATA and sum(shown) == len(DATA)


def test_a_file_that_shrank_starts_over(server: Served, target: str) -> None:
    interrupted(server, target, HASH)
    server.data = DATA[:10]
    download([server.url], target, sha256=hashlib.sha256(DATA[:10]).hexdigest(), config=FAST)
    assert Path(target).read_bytes() == DATA[:10]


def test_a_run_killed_before_the_rename_asks_for_nothing(server: Served, target: str) -> None:
    part = part_path(target, server.url)
    os.makedirs(os.path.dirname(target))
    Path(part).write_bytes(DATA)
    Path(f"{part}.json").write_text(json.dumps({"url": server.url, "validator": '"one"', "total": len(DATA)}))
    download([server.url], target, sha256=HASH, config=FAST)
    assert server.requests == [] and left(target) == ["file.zip"]


@pytest.mark.parametrize("wrong", ["0" * 64, "0" * 8])
def test_a_wrong_hash_leaves_nothing(server: Served, target: str, wrong: str) -> None:
    with pytest.raises(InputError, match=f"expected sha256 {wrong}, got {HASH}"):
        download([server.url], target, sha256=wrong, config=FAST)
    assert left(target) == []


def test_a_hash_prefix_is_enough(server: Served, target: str) -> None:
    assert download([server.url], target, sha256=HASH[:8].upper(), config=FAST).is_checked


def test_an_existing_file_with_another_hash_is_not_touched(server: Served, target: str) -> None:
    os.makedirs(os.path.dirname(target))
    Path(target).write_bytes(b"mine")
    with pytest.raises(InputError, match="Move it away"):
        download([server.url], target, sha256=HASH, config=FAST)
    assert Path(target).read_bytes() == b"mine" and server.requests == []


def test_the_mirror_is_used_when_the_first_is_dead_or_wrong(server: Served, target: str) -> None:
    base = server.url.removesuffix("/file.zip")
    found = download(["http://127.0.0.1:9/file.zip", f"{base}/dead", server.url], target, sha256=HASH, config=FAST)
    assert found.url == server.url and left(target) == ["file.zip"]
    assert [path for path, _ in server.requests] == ["/dead", "/file.zip"]  # a 404 is not asked twice


def test_when_all_are_dead_each_is_named_with_its_reason(server: Served, target: str) -> None:
    server.status = 503
    with pytest.raises(InputError, match="file.zip: answered 503") as error:
        download([server.url, "http://127.0.0.1:9/x"], target, config=FAST)
    assert "127.0.0.1:9/x: ConnectionError" in str(error.value) and "--url" in str(error.value)
    assert len(server.requests) == FAST.attempts


def test_a_web_page_or_another_size_is_refused_before_it_is_read(server: Served, target: str) -> None:
    with pytest.raises(InputError, match="offers 3,000,000 bytes, expected 7"):
        download([server.url], target, size_bytes=7, config=FAST)
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="web page"):
        download([server.url], target, config=FAST)
    assert left(target) == []


def test_a_full_disk_is_said_before_the_body(server: Served, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(InputError, match="5 bytes free, but 3,000,000"):
        download([server.url], target, config=FAST)


# Archives.


def make_zip(path: Path, members: dict[str, bytes], mode: int = 0) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return str(path)


def make_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> str:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"abc") if member.size else None)
    return str(path)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


def test_archives_unpack_beside_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "old").write_text("old")
    found = unpack(
        make_zip(tmp_path / "x.zip", {"a/": b"", "a/b.txt": b"B", "c.txt": b"C"}), str(out), "zip", max_bytes=99
    )
    assert (found.count, found.top_level) == (2, ["a", "c.txt"])
    unpack(make_tar(tmp_path / "x.tar.gz", "a/d.txt"), str(out), "tar", max_bytes=99)
    assert files_below(out) == ["a", "a/b.txt", "a/d.txt", "a/old", "c.txt"]


HOSTILE_NAMES = ["/etc/x", "../x", "a/../../x", "C:/x", "a\\..\\x"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "in" / "x"
    path.parent.mkdir()
    archive = make_zip(path, {"fine": b"1", name: b"2"}) if kind == "zip" else make_tar(path, name)
    with pytest.raises(InputError, match="leads outside"):
        unpack(archive, str(tmp_path / "out"), kind, max_bytes=10**6)
    assert files_below(tmp_path) == ["in", "in/x", "out"]


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "fine"),
        (tarfile.LNKTYPE, "../../x"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, link: str) -> None:
    with pytest.raises(InputError, match="link or device"):
        unpack(make_tar(tmp_path / "x.tgz", "member", kind, link), str(tmp_path / "out"), "tar", max_bytes=10**6)
    assert files_below(tmp_path / "out") == []


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o600, stat.S_IFIFO | 0o600])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match="link or device"):
        unpack(make_zip(tmp_path / "x.zip", {"m": b"/etc"}, mode), str(tmp_path / "out"), "zip", max_bytes=10**6)
    assert files_below(tmp_path / "out") == []


def test_bombs_and_damage_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(10**7)})
    assert os.path.getsize(bomb) < 20_000
    with pytest.raises(InputError, match="would unpack to 10,000,000 bytes"):
        unpack(bomb, out, "zip", max_bytes=10**6)
    with pytest.raises(InputError, match="would unpack to 3 bytes"):
        unpack(make_tar(tmp_path / "x.tgz", "a"), out, "tar", max_bytes=2)
    whole = make_zip(tmp_path / "x.zip", {"a": os.urandom(999), "b": b"2"})
    for number, data in enumerate([Path(whole).read_bytes()[:-40], b"", b"not an archive"]):
        broken = tmp_path / f"broken{number}"
        broken.write_bytes(data)
        for kind in ("zip", "tar"):
            with pytest.raises(InputError, match="cannot be unpacked"):
                unpack(str(broken), out, kind, max_bytes=10**6)
    assert files_below(Path(out)) == []


# The hub, whose client is another's: what is ours is the choice of files and the check of hashes.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    lfs = SimpleNamespace(sha256=hashlib.sha256(b"weights").hexdigest())
    siblings = [
        SimpleNamespace(rfilename="m/best.pth", lfs=lfs),
        SimpleNamespace(rfilename="m/log.txt", lfs=None),
        SimpleNamespace(rfilename="other/best.pth", lfs=lfs),
    ]
    asked: dict[str, object] = {"bytes": b"weights"}

    class Api:
        def model_info(self, repo_id: str, revision: str, files_metadata: bool) -> SimpleNamespace:
            return SimpleNamespace(sha="c0ffee", siblings=siblings)

    def snapshot(repo_id: str, *, revision: str, local_dir: str, allow_patterns: list[str]) -> None:
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns)
        os.makedirs(f"{local_dir}/m")
        Path(local_dir, "m", "best.pth").write_bytes(asked["bytes"])  # type: ignore[arg-type]
        Path(local_dir, "m", "log.txt").write_bytes(b"log")

    monkeypatch.setattr(module, "HfApi", Api)
    monkeypatch.setattr(module, "snapshot_download", snapshot)
    return asked


def test_hub_files_are_pinned_to_a_commit_and_checked(hub: dict[str, object], tmp_path: Path) -> None:
    found = download_hub(HubFiles(repo_id="a/b", patterns=("m/*",)), str(tmp_path))
    assert hub["revision"] == "c0ffee" and hub["patterns"] == ["m/*"]
    assert [(os.path.basename(f.path), f.is_checked) for f in found] == [("best.pth", True), ("log.txt", False)]


def test_a_hub_file_with_a_wrong_hash_is_deleted(hub: dict[str, object], tmp_path: Path) -> None:
    hub["bytes"] = b"other"
    with pytest.raises(InputError, match="it was deleted"):
        download_hub(HubFiles(repo_id="a/b", patterns=("m/*",)), str(tmp_path))
    assert not (tmp_path / "m" / "best.pth").exists()


def test_a_hub_that_cannot_be_reached_is_one_paragraph(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be fetched from the hub"):  # the tests run with the hub offline
        download_hub(HubFiles(repo_id="a/b", patterns=("*",)), str(tmp_path))


def test_a_pattern_without_files_is_said(hub: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file like nothing"):
        download_hub(HubFiles(repo_id="a/b", patterns=("nothing",)), str(tmp_path))
