"""A head that demands the token, as all cluster files start it: with it a job runs, without it nothing is answered."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest
from own_ray import RAY, ROOT, own_head, submit

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_jobs_need_the_token(tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat\n")
    places = ["--corpus.path", str(tmp_path / "corpus.txt"), "--tokenizer", tiny_model, "--output", str(tmp_path / "t")]
    with own_head(["--num-cpus=2"], auth="token", RAY_AUTH_TOKEN=secrets.token_hex(32)) as ray:
        listing = [RAY, "job", "list", "--address", ray.dashboard]
        stranger = {**ray.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        refused = subprocess.run(listing, env=stranger, capture_output=True, text=True, cwd=ROOT, timeout=120)
        job = submit(ray, "jobs/tokenize_corpus.py", *places)
        said = job.communicate(timeout=150)[0]
    assert refused.returncode != 0
    assert "token" in refused.stdout + refused.stderr
    assert job.returncode == 0, said
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["counts"]["lines"] == 1
