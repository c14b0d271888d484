from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from xmatch.data.registry import ENTRIES, RemoteFile, check_sha256, find_entry
from xmatch.errors import InputError

FILES = [(name, file) for name, entry in ENTRIES.items() for file in entry.files]


def test_every_entry_comes_from_exactly_one_kind_of_place_and_says_its_terms() -> None:
    for name, entry in ENTRIES.items():
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert [bool(entry.files), entry.hub is not None, bool(entry.manual)].count(True) == 1, name
        assert entry.what and entry.licence and entry.layout, name
    assert list(ENTRIES) == sorted(ENTRIES)


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{n}-{f.name}" for n, f in FILES])
def test_every_file_is_well_formed(name: str, file: RemoteFile) -> None:
    for url in (file.url, *file.mirrors):
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https") and parts.netloc and not parts.query
        assert parts.path.rsplit("/", 1)[1] == file.name
    assert file.sha256 is None or check_sha256(file.sha256) == file.sha256
    assert file.unpack == ("zip" if file.name.endswith(".zip") else "")
    assert file.url.startswith("https") or file.sha256, "an unencrypted address needs a hash"


def test_file_names_within_an_entry_differ() -> None:
    for entry in ENTRIES.values():
        names = [file.name for file in entry.files]
        assert len(set(names)) == len(names)


def test_hashes_in_file_names_are_the_hashes_checked() -> None:
    found = [file for _, file in FILES if file.name.endswith(".pth")]
    assert len(found) == 5
    assert all(f"-{file.sha256}.pth" in file.name for file in found)


def test_torchvision_names_are_those_of_the_installed_torchvision() -> None:
    from torchvision.models import ResNet50_Weights, ResNet101_Weights, ResNet152_Weights, ResNeXt101_32X8D_Weights

    kinds = (ResNet50_Weights, ResNet101_Weights, ResNet152_Weights, ResNeXt101_32X8D_Weights)
    ours = {file.url for name, file in FILES if name.endswith("_imagenet")}
    assert ours == {kind.IMAGENET1K_V1.url for kind in kinds}


def test_unknown_and_missing_names_list_all_and_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'coco_val2017'") as error:
        find_entry("coco_val17")
    assert all(name in str(error.value) for name in ENTRIES)
    with pytest.raises(InputError, match="no name given"):
        find_entry("")


@pytest.mark.parametrize("value", ["", "abc", "g" * 64, "a" * 9, "a" * 63])
def test_what_is_no_hash_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="no SHA-256"):
        check_sha256(value)


def test_hash_states_are_said_in_words() -> None:
    assert RemoteFile(url="https://x/y").hash_state == "no hash published"
    assert RemoteFile(url="https://x/y", sha256="a" * 8).hash_state.startswith("sha256 begins with")
    assert RemoteFile(url="https://x/a%20b.zip?download=1").name == "a b.zip"
