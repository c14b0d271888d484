from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_cache import COMMIT, fill_hub_cache
from huggingface_hub import constants

from xmatch.errors import InputError
from xmatch.models import hub
from xmatch.models.checkpoints import model_hash, resolve

OTHER = hashlib.sha1(b"second").hexdigest()


@pytest.fixture
def cache(tmp_path: Path, tiny_model: str, monkeypatch) -> Path:
    """A hub's cache with someone/matcher, and nothing remembered of another one."""
    hub._snapshot.cache_clear()
    cache = fill_hub_cache(tmp_path / "home", "someone/matcher", tiny_model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    yield cache
    hub._snapshot.cache_clear()


def test_a_hub_name_is_its_cached_commit(cache: Path, tiny_model: str) -> None:
    found = resolve("someone/matcher")
    assert found == str(cache / "models--someone--matcher" / "snapshots" / COMMIT)
    assert model_hash("someone/matcher") == model_hash(tiny_model)
    assert hub.locate("someone/matcher", "tokenizer") == found


def test_a_pinned_revision_is_another_commit(cache: Path, tmp_path: Path, tiny_model: str) -> None:
    fill_hub_cache(tmp_path / "home", "someone/matcher", tiny_model, OTHER, "v2")
    assert resolve("someone/matcher@v2").endswith(OTHER)
    assert resolve(f"someone/matcher@{COMMIT}").endswith(COMMIT)
    assert resolve("someone/matcher", revision="v2").endswith(OTHER)
    assert resolve("someone/matcher").endswith(COMMIT)


def test_a_branch_that_moves_during_a_run_changes_nothing(cache: Path, tmp_path: Path, tiny_model: str) -> None:
    before = resolve("someone/matcher")
    fill_hub_cache(tmp_path / "home", "someone/matcher", tiny_model, OTHER)
    assert resolve("someone/matcher") == before
    hub._snapshot.cache_clear()
    assert resolve("someone/matcher").endswith(OTHER)


@pytest.mark.parametrize("name", ["someone/else", "someone/matcher@v9"])
def test_a_name_that_is_not_cached_is_one_clear_error(cache: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is no local folder and is not in the hub's cache.*hf download"):
        resolve(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no", "a/b/c"])
def test_paths_are_not_asked_of_the_hub(cache: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        hub.locate(name, "model")
    with pytest.raises(InputError, match="does not exist"):
        resolve("no-folder")
