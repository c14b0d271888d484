"""Inputs ten times the object store: every row exactly once, nothing spilled, memory below the bound that is stated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from small_models import golden, make_images
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vokenize.tokens import plan_token_shards, read_token_shard
from vokenize.voken_files import check_vokens, read_voken_shard
from xmatch.data import files
from xmatch.data.image_sets import OPEN_IMAGES_ID
from xmatch.data.vectors import make_vectors, matrix, read_vectors, write_vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
STORE_MB = 75
"""The smallest object store that Ray starts with."""
STORE_BYTES = STORE_MB << 20
PROCESS_BYTES, SHARDS_HELD, BYTES_OF_A_SHARD = 1_200_000_000, 16, 15_000
"""As docs/running.md states the bound."""
WORDS = [word for word in golden("tokenization")["vocab"] if word.isalpha()]


class Peaks(NamedTuple):
    """Most bytes that the driver, the actors and the readers took, and bytes that the object store wrote to disk."""

    driver: int
    actor: int
    task: int
    spilled: int


def watched(record: Path, job: str, *arguments: str) -> Peaks:
    """Run a job as a program, with the smallest object store."""
    command = [sys.executable, "benchmarks/watched_job.py", "--store_mb", str(STORE_MB), "--record", str(record), "--"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [*command, job, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    workers = found["worker_bytes"]
    return Peaks(found["driver_bytes"], workers["actor"], workers["task"], found["spilled_bytes"])


def require_bounded(peaks: Peaks, shard_bytes: int, shards: int, held_bytes: int) -> None:
    """What docs/running.md says of the memory of every process; `held_bytes` are of model and key bank."""
    common = PROCESS_BYTES + held_bytes + SHARDS_HELD * shard_bytes
    assert peaks.spilled == 0
    assert max(peaks.actor, peaks.task) < common + STORE_BYTES
    assert peaks.driver < common + BYTES_OF_A_SHARD * shards


def write_corpus(path: Path, lines: int) -> None:
    """Lines of a few known words, their own number, and long words of no vocabulary, nearly 2 kB each."""
    rng = np.random.default_rng(0)
    with open(path, "w") as sink:
        for start in range(0, lines, 4096):
            count = min(4096, lines - start)
            filling, picks = rng.bytes(960 * count).hex(), rng.integers(0, len(WORDS), (count, 4)).tolist()
            for at, picked in enumerate(picks):
                known = " ".join(WORDS[i] for i in picked)
                sink.write(f"{known} {start + at} {filling[1920 * at : 1920 * (at + 1)]}\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """Words between spaces, as they are: fast, and of the tiny model's vocabulary."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(golden("tokenization")["vocab"])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").save_pretrained(str(folder))
    return str(folder)


def test_a_corpus_of_ten_object_stores_is_vokenized_within_the_bound(tmp_path: Path, tokenizer, tiny_model) -> None:
    lines = 410_000
    write_corpus(tmp_path / "corpus.txt", lines)
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    write_vectors(str(tmp_path / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(60)], vectors))
    tokens, vokens = str(tmp_path / "tokens"), str(tmp_path / "vokens")
    first = watched(tmp_path / "1.json", "tokenize_corpus", "--corpus.path", str(tmp_path / "corpus.txt"),
        "--tokenizer", tokenizer, "--lines_per_shard", "4096", "--output", tokens)  # fmt: skip
    (tmp_path / "corpus.txt").unlink()
    second = watched(tmp_path / "2.json", "vokenize_corpus", "--tokens", tokens, "--keys", str(tmp_path / "keys"),
        "--model", tiny_model, "--vokenize.level", "both", "--vokenize.top_k", "4", "--output", vokens)  # fmt: skip
    seen, total, largest, shards = 0, 0, 0, plan_token_shards(tokens)
    for shard in shards:
        table = read_token_shard(shard)
        own = read_voken_shard(f"{vokens}/shards/{shard.id}.parquet")
        check_vokens(table, own, shard.id)
        assert table["line_id"].to_pylist() == list(range(seen, seen + len(table)))
        assert [int(text.split(" ", 5)[4]) for text in table["text"].to_pylist()] == table["line_id"].to_pylist()
        seen, total, largest = seen + len(table), total + table.nbytes, max(largest, table.nbytes)
    assert seen == lines
    assert total > 10 * STORE_BYTES
    weights = os.path.getsize(f"{tiny_model}/model.safetensors")
    require_bounded(first, largest, len(shards), 0)
    require_bounded(second, largest, len(shards), weights + vectors.nbytes)
    shutil.rmtree(tmp_path)


def test_the_captions_of_coco_are_a_corpus_within_the_bound(tmp_path: Path, tokenizer: str) -> None:
    images, captions = 40_000, tmp_path / "dataset_coco.json"
    pick = np.random.default_rng(1).integers(0, len(WORDS), (images, 5, 9)).tolist()
    texts = [[" ".join([*(WORDS[i] for i in words), str(5 * at + n)]) for n, words in enumerate(own)] for at, own in enumerate(pick)]  # fmt: skip # noqa: E501
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{at:012d}.jpg",
            "split": "train" if at % 10 else "val",
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 5 * at + n} for n, text in enumerate(own)],
        }
        for at, own in enumerate(texts)
    ]
    captions.write_text(json.dumps({"images": rows, "dataset": "coco"}))
    tokens = str(tmp_path / "tokens")
    peaks = watched(tmp_path / "1.json", "tokenize_corpus", "--corpus.path", str(captions), "--corpus.form", "captions",
        "--corpus.split", "train", "--tokenizer", tokenizer, "--output", tokens)  # fmt: skip
    tables = [read_token_shard(shard) for shard in plan_token_shards(tokens)]
    wanted = [text for at, own in enumerate(texts) if at % 10 for text in own]
    assert pa.concat_tables(tables)["text"].to_pylist() == wanted
    require_bounded(peaks, max(table.nbytes for table in tables), len(tables), 0)


def test_a_hundred_thousand_open_images_ids_are_a_key_bank_within_the_bound(tmp_path: Path, tiny_model: str) -> None:
    count, photos = 100_000, sorted(Path(make_images(tmp_path / "photos")).iterdir())
    ids = [f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}" for number in range(count)]
    assert all(map(OPEN_IMAGES_ID.fullmatch, ids))
    (tmp_path / "open" / "images").mkdir(parents=True)
    for number, name in enumerate(ids):
        os.link(photos[number % len(photos)], tmp_path / "open" / "images" / f"{name}.jpg")
    (tmp_path / "open.ids").write_text("\n".join(ids) + "\n")
    keys = str(tmp_path / "keys")
    peaks = watched(tmp_path / "1.json", "embed", "--side", "image", "--model", tiny_model, "--images.kind", "ids",
        "--images.set_name", "open_images_100k", "--images.root", str(tmp_path / "open"), "--images.ids_file",
        str(tmp_path / "open.ids"), "--rows_per_shard", "8192", "--batch_size", "256", "--output", keys)  # fmt: skip
    bank = read_vectors(keys)
    assert bank["id"].to_pylist() == [f"open_images_100k/{name}" for name in ids]
    vectors = matrix(bank)
    assert len(np.unique(vectors[: len(photos)], axis=0)) == len(photos)
    repeated = vectors[np.arange(count) % len(photos)]
    assert np.abs(vectors - repeated).max() < 1e-5  # a photo's place in its batch moves the last bit
    assert files.read_json(f"{keys}/manifest.json")["quarantined"] == 0
    shards = files.list_files(f"{keys}/shards")
    weights = os.path.getsize(f"{tiny_model}/model.safetensors")
    require_bounded(peaks, max(map(os.path.getsize, shards)), len(shards), weights)
    shutil.rmtree(tmp_path)
