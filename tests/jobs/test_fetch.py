"""The fetch job through its main, against a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs import fetch
from xmatch.data import registry
from xmatch.data.registry import Entry, RemoteFile

FAST = ["--download.attempts", "1", "--download.backoff_s", "0"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server of two archives' worth of files, which the registry knows as `toy` and `toys`."""
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy.zip", "w") as archive:
        archive.writestr("photos/a.jpg", b"a")
        archive.writestr("photos/b.jpg", b"b")
    for name in ("one.json", "two.json"):
        (folder / name).write_text(json.dumps(name))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{httpd.server_address[1]}"
    digest = hashlib.sha256((folder / "toy.zip").read_bytes()).hexdigest()
    toy = RemoteFile(url=f"{base}/gone.zip", mirrors=(f"{base}/toy.zip",), sha256=digest, unpack="zip")
    loose = tuple(RemoteFile(url=f"{base}/{name}") for name in ("one.json", "two.json"))
    monkeypatch.setitem(registry.ENTRIES, "toy", Entry(what="a toy", licence="CC0", layout="photos/", files=(toy,)))
    monkeypatch.setitem(registry.ENTRIES, "toys", Entry(what="toys", licence="CC0", layout="*.json", files=loose))
    yield base
    httpd.shutdown()
    httpd.server_close()
    thread.join(5)


def test_a_name_given_first_is_fetched_checked_and_unpacked_once(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fetch.main(["toy", "--output", str(out), *FAST]) == 0
    assert sorted(p.name for p in (out / "photos").iterdir()) == ["a.jpg", "b.jpg"]
    assert not list(out.glob("*.zip*"))
    shown = capsys.readouterr().out
    assert "(checked)" in shown and "2 files unpacked" in shown and "No hash is published" not in shown
    assert json.loads((out / "fetched" / "toy.json").read_text())["gone.zip"]["url"] == f"{served}/toy.zip"
    assert fetch.main(["toy", "--output", str(out), *FAST]) == 0
    assert "already here" in capsys.readouterr().out
    (out / "photos" / "a.jpg").unlink()
    (out / "photos" / "b.jpg").unlink()
    (out / "photos").rmdir()
    assert fetch.main(["toy", "--output", str(out), "--keep_archive", "true", *FAST]) == 0
    assert (out / "photos" / "a.jpg").exists() and (out / "gone.zip").exists()


def test_an_unknown_hash_is_said_and_can_be_pinned(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, digest = tmp_path / "out", hashlib.sha256(b'"one.json"').hexdigest()
    assert fetch.main(["toys", "--output", str(out), *FAST]) == 0
    shown = capsys.readouterr().out
    assert "not checked" in shown and f"--only one.json --sha256 {digest}" in shown
    pinned = ["toys", "--output", str(tmp_path / "2"), "--only", "one.json", "--sha256", digest, *FAST]
    assert fetch.main(pinned) == 0
    assert "(checked)" in capsys.readouterr().out
    assert not (tmp_path / "2" / "two.json").exists()
    assert fetch.main([*pinned[:6], "0" * 64, "--output", str(tmp_path / "3"), *FAST]) == 2
    assert not (tmp_path / "3" / "one.json").exists()


def test_another_address_keeps_name_and_hash(served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert fetch.main(["toy", "--output", str(out), "--url", f"{served}/toy.zip?x=1", *FAST]) == 0
    assert fetch.main(["toy", "--output", str(tmp_path / "2"), "--url", f"{served}/one.json", *FAST]) == 2
    assert "wrong bytes" in capsys.readouterr().err


def test_the_plan_shows_address_size_licence_and_hash_and_touches_nothing(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fetch.main(["toy", "--output", str(out), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in (f"{served}/gone.zip", f"{served}/toy.zip", "CC0", "size not published"))
    assert fetch.main(["visual_genome_images", "--output", str(out), "--plan"]) == 0
    assert "no hash published" in capsys.readouterr().out
    assert fetch.main(["coco_val2017", "--output", str(out), "--plan"]) == 0
    assert "815,585,330 bytes; sha256 4f7e2ccb" in capsys.readouterr().out
    assert fetch.main(["--name", "bert_base_uncased", "--output", str(out), "--plan"]) == 0
    assert "google-bert/bert-base-uncased" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no name given"),
        (["coco_val17"], "did you mean 'coco_val2017'"),
        (["scan_features", "--output", "x"], "Kaggle"),
        (["toy", "--output", "s3://bucket/x"], "needs a local folder"),
        (["toy"], "output is empty"),
        (["toy", "--output", "x", "--url", "ftp://x/y"], "no web address"),
        (["toy", "--output", "x", "--only", "b.zip"], "it has gone.zip"),
        (["toys", "--output", "x", "--url", "http://x/y"], "choose it with --only"),
        (["bert_base_uncased", "--output", "x", "--sha256", "0" * 8], "come from the hub"),
        (["toy", "--output", "x", "--sha256", "zz"], "no SHA-256"),
        (["toy", "--ouput", "x"], "did you mean 'output'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(
    served: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert fetch.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("x").exists()
