from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from raydeploy.config import config_hash, load_config, to_yaml
from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    top_k: int = 1
    """How many images."""
    layers: tuple[int, ...] = (2, 1)
    """Which layers."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings."""

    output: str
    """Where it goes."""
    inner: Inner = field(default_factory=Inner)
    """The inner part."""
    level: Literal["token", "sentence"] = "token"
    """Which level."""

    def __post_init__(self) -> None:
        """A rule of its own."""
        if self.inner.top_k < 1:
            raise InputError(f"inner.top_k must be at least 1, got {self.inner.top_k}.")


def load(*argv: str) -> Settings:
    return load_config(Settings, list(argv), name="x", description="A job.").config


def test_later_wins_over_yaml_over_defaults(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("output: from_yaml\ninner: {top_k: 3, layers: [4]}\n")
    assert load("--config", str(path)) == Settings(output="from_yaml", inner=Inner(top_k=3, layers=(4,)))
    assert load("--config", str(path), "--inner.top_k", "5").inner == Inner(top_k=5, layers=(4,))


def test_a_configuration_survives_its_yaml(tmp_path) -> None:
    config = load("--output", "o", "--inner.layers", "[3,1]")
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert load("--config", str(tmp_path / "a.yaml")) == config
    assert yaml.safe_load(to_yaml(config))["inner"]["layers"] == [3, 1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "o", "--inner.top_kk", "2"], "unknown setting 'inner.top_kk'; did you mean 'inner.top_k'"),
        (["--output", "o", "--inner.to", "2"], "unknown setting 'inner.to'; did you mean 'inner.top_k'"),
        (["--output", "o", "--levle", "token"], "did you mean 'level'"),
        (["--output", "o", "--inner.top_k", "many"], "inner.top_k.*many"),
        (["--output", "o", "--level", "word"], "level"),
        (["--output", "o", "--inner.top_k", "0"], "at least 1, got 0"),
        ([], "output"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(*argv)


@pytest.mark.parametrize(
    ("text", "near"), [("inner: {top_kk: 2}", "'inner.top_k'"), ("innr: {top_k: 2}", "'inner.top_k'")]
)
def test_unknown_yaml_keys_name_the_nearest(tmp_path, text: str, near: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=f"did you mean {near}"):
        load("--config", str(tmp_path / "a.yaml"), "--output", "o")


def test_the_hash_does_not_depend_on_order() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", ["embed", "tokenize_corpus", "vokenize_corpus", "train_xmatch", "eval_retrieval", "convert"]
)
def test_help_explains_every_field(job: str) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "400"},
    )
    fields = [line for line in done.stdout.splitlines() if "(type:" in line or "(required" in line]
    assert len(fields) > 5
    for line in fields:
        assert re.search(r"[.,;)a-z\]] \((required, )?type:", line), f"a field without explanation: {line}"
    assert "--plan" in done.stdout
