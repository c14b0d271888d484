from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models import staging
from xmatch.models.checkpoints import model_hash
from xmatch.models.staging import (
    LISTING,
    content_hash,
    content_of,
    is_staged,
    local_folder,
    opened,
    opened_file,
    stage,
    stage_file,
)

NAMES = st.sampled_from(["config.json", "vocab.txt", "a.safetensors", "b.safetensors", "spiece.model"])
PICKLES = ("pytorch_model.bin", "training_args.pt", "x.pkl", "weights.pth", "code.py")


def fill(folder: Path, contents: dict[str, bytes]) -> str:
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return str(folder)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch) -> Path:
    """This machine's folder for temporary files, empty."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@settings(deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=40), min_size=1), more=st.binary(min_size=1, max_size=9))
def test_a_staged_folder_is_named_by_its_content_alone(tmp_path_factory, files, more: bytes) -> None:
    base = tmp_path_factory.mktemp("s")
    files = {**files, "z.safetensors": b""}
    place = stage(fill(base / "one", files), "model", str(base / "staged"))
    again = stage(fill(base / "two", {**files, "pytorch_model.bin": more}), "model", str(base / "staged"))
    assert place == again == opened(place)
    assert {name: data for name, data in contents(place).items() if name != LISTING} == files
    assert hashlib.sha256(Path(place, LISTING).read_bytes()).hexdigest() == Path(place).name
    files["z.safetensors"] = more
    assert stage(fill(base / "three", files), "model", str(base / "staged")) != place


def test_pickles_and_code_are_never_staged(tmp_path: Path) -> None:
    folder = fill(tmp_path / "m", {name: b"x" for name in (*PICKLES, "a.safetensors", "config.json")})
    assert set(content_of(folder, "model")) == {"a.safetensors", "config.json"}
    assert set(content_of(folder, "tokenizer")) == {"config.json"}
    only = fill(tmp_path / "p", {name: b"x" for name in (*PICKLES, "config.json")})
    with pytest.raises(InputError, match="expected weights as .safetensors, found code.py"):
        content_of(only, "model")
    with pytest.raises(InputError, match=r"tokenizer\.json, found nothing"):
        content_of(fill(tmp_path / "e", {}), "tokenizer")


def test_what_is_there_is_not_written_again(tmp_path: Path, tiny_model: str) -> None:
    place = stage(tiny_model, "model", str(tmp_path))
    before = {path.name: path.stat().st_mtime_ns for path in Path(place).iterdir()}
    assert stage(tiny_model, "model", str(tmp_path)) == place
    assert {path.name: path.stat().st_mtime_ns for path in Path(place).iterdir()} == before


@pytest.mark.parametrize("lost", [LISTING, "model.safetensors", "tokenizer.json"])
def test_staging_that_was_cut_short_is_done_again(tmp_path: Path, tiny_model: str, lost: str) -> None:
    place = stage(tiny_model, "model", str(tmp_path))
    whole = contents(place)
    Path(place, lost).unlink()
    assert is_staged(place) == (lost != LISTING)
    assert contents(stage(tiny_model, "model", str(tmp_path))) == whole


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_staged_model_is_the_model(tmp_path: Path, copies: Path, tiny_model: str, scheme: str) -> None:
    place = scheme + stage(tiny_model, "model", str(tmp_path))
    assert model_hash(place) == model_hash(tiny_model)
    texts = ["the cat sat", "hello"]
    there = DualEncoder.from_pretrained(place).encode_texts(texts)
    assert (there == DualEncoder.from_pretrained(tiny_model).encode_texts(texts)).all()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_tampered_file_is_refused_by_name_and_hashes(tmp_path: Path, copies: Path, tiny_model, scheme: str) -> None:
    place = scheme + stage(tiny_model, "model", str(tmp_path))
    path = Path(place.removeprefix("file://"), "model.safetensors")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(InputError, match=f"model.safetensors'.*expected SHA-256 {expected}, got {found}"):
        DualEncoder.from_pretrained(place)
    assert not list(copies.glob(f"*/{Path(place).name}"))  # no copy of it got its name


def test_a_tampered_list_is_refused(tmp_path: Path, tiny_model: str) -> None:
    place = stage(tiny_model, "model", str(tmp_path))
    listing = json.loads(Path(place, LISTING).read_text())
    del listing["model.safetensors"]
    Path(place, LISTING).write_text(json.dumps(listing))
    with pytest.raises(InputError, match=f"staged.json'.*expected SHA-256 {Path(place).name}"):
        opened(place)


FETCH = "import sys, tempfile; tempfile.tempdir = sys.argv[2]; from xmatch.models.staging import opened; "
FETCH += "print(opened(sys.argv[1]))"


def test_a_machine_fetches_once_whoever_asks(tmp_path: Path, copies: Path, tiny_model: str, monkeypatch) -> None:
    place = "file://" + stage(tiny_model, "model", str(tmp_path))
    copied: list[str] = []
    plain = staging._copy
    monkeypatch.setattr(staging, "_copy", lambda *args: (copied.append(args[0]), plain(*args)))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(opened, [place] * 16))
    assert len(folders) == 1
    assert len(copied) == len(set(copied)) == len(content_of(tiny_model, "model"))
    [folder] = folders
    stamps = {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    other = subprocess.run(
        [sys.executable, "-c", FETCH, place, str(copies)], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == folder
    assert {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()} == stamps


def test_a_copy_that_was_cut_short_or_damaged_is_fetched_again(tmp_path: Path, copies: Path, tiny_model: str) -> None:
    place = "file://" + stage(tiny_model, "model", str(tmp_path))
    folder = Path(opened(place))
    whole = contents(str(folder))
    (folder / "model.safetensors").write_bytes(b"damaged")
    left = folder.with_name(f"{folder.name}.tmp-killed")
    left.mkdir()
    assert contents(opened(place)) == whole
    assert not left.exists()


def test_a_folder_that_only_has_such_a_name_is_a_folder(tmp_path: Path, tiny_model: str) -> None:
    own = tmp_path / ("ab" * 32)
    own.symlink_to(tiny_model)
    assert local_folder(str(own), "model") == str(own)
    assert opened("bert-base-uncased") == "bert-base-uncased"


def test_content_hash_tells_names_apart(tmp_path: Path) -> None:
    one = content_of(fill(tmp_path / "1", {"a.json": b"x"}), "tokenizer")
    other = content_of(fill(tmp_path / "2", {"b.json": b"x"}), "tokenizer")
    assert content_hash(one) != content_hash(other)


def test_a_single_file_is_staged_and_opened(tmp_path: Path, copies: Path, tiny_model: str) -> None:
    (tmp_path / "names.json").write_text("[]")
    place = stage_file(str(tmp_path / "names.json"), str(tmp_path / "shared"))
    assert is_staged(place) and stage_file(str(tmp_path / "names.json"), str(tmp_path / "shared")) == place
    for shown in (place, f"file://{place}"):
        assert Path(opened_file(shown)).read_text() == "[]" and opened_file(shown).endswith("/names.json")
    assert opened_file("plain.json") == "plain.json"
    several = stage(tiny_model, "model", str(tmp_path / "shared"))
    with pytest.raises(InputError, match="expected one"):
        opened_file(several)
