"""What an object store refuses: one paragraph for every job, exit code 2, and no credentials in what is said.

The server checks signatures and rights; jobs run in this process, and never come as far as starting Ray.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_gallery import small_embeddings, small_gallery, write_gallery
from small_models import karpathy_json, tiny_vocabulary
from small_vokens import write_bank, write_tokens, write_vokens
from toy_steps import Double, read_range, shards

from jobs import (
    embed,
    eval_retrieval,
    eval_vokens,
    key_bank,
    preflight,
    revokenize,
    status,
    tokenize_corpus,
    train_xmatch,
    vokenize_corpus,
)
from raydeploy.attempts import AttemptNotes
from raydeploy.ledger import Ledger
from raydeploy.preflight import write_and_remove
from raydeploy.shard_actor import ShardActor
from xmatch.data import files
from xmatch.data.decode import decode_rgb
from xmatch.data.stores import StoreError
from xmatch.errors import InputError

pytestmark = [pytest.mark.s3]
ROOT = Path(__file__).parents[2]
WHY = {
    "nobody": "have no right to do that",
    "forger": "the secret does not belong to the access key",
    "stranger": "the store does not know the access key",
}
READS = {
    "tokenize_corpus": (tokenize_corpus, "--corpus.path {in}/corpus.txt --tokenizer {tokenizer} --output {out}"),
    "embed": (embed, "--side image --model {model} --images.root {in}/images --images.set_name s --output {out}"),
    "texts": (embed, "--side text --model {model} --texts.path {in}/corpus.txt --output {out}"),
    "model": (embed, "--side text --model {in}/model --texts.path {local}/corpus.txt --output {out}"),
    "vokenize_corpus": (vokenize_corpus, "--tokens {in}/tokens --keys {local}/keys --model {model} --output {out}"),
    "keys": (vokenize_corpus, "--tokens {local}/tokens --keys {in}/keys --model {model} --output {out}"),
    "revokenize": (revokenize, "--tokens {in}/tokens --vokens {in}/vokens --tokenizer {tokenizer} --output {out}"),
    "eval_vokens": (eval_vokens, "--tokens {local}/tokens --vokens {in}/vokens --output {out}"),
    "key_bank": (key_bank, "--action report --bank {in}/keys --output {out}"),
    "append": (key_bank, "--action append --bank {local}/keys --add {in}/keys --output {out}"),
    "captions": (eval_retrieval, "--data.captions {in}/dataset.json --similarity {local}/s.npy --output {out}"),
    "embeddings": (
        eval_retrieval,
        "--data.captions {local}/dataset.json --embeddings.images {in}/i.npy --embeddings.texts {in}/t.npy "
        "--output {out}",
    ),
    "train_xmatch": (
        train_xmatch,
        "--train.captions {in}/c.json --train.images {in}/images --valid.captions {local}/c.json "
        "--valid.images {images} --output {out}",
    ),
    "status": (status, "{in}/run"),
    "preflight": (preflight, "--job {in}/run.yaml"),
}
WRITES = {
    "tokenize_corpus": (tokenize_corpus, "--corpus.path {local}/corpus.txt --tokenizer {tokenizer}"),
    "embed": (embed, "--side image --model {model} --images.root {images} --images.set_name s"),
    "vokenize_corpus": (vokenize_corpus, "--tokens {local}/tokens --keys {local}/keys --model {model}"),
    "revokenize": (revokenize, "--tokens {local}/tokens --vokens {local}/vokens --tokenizer {tokenizer}"),
    "eval_vokens": (eval_vokens, "--tokens {local}/tokens --vokens {local}/vokens"),
    "key_bank": (key_bank, "--action report --bank {local}/keys"),
    "merge": (key_bank, "--action merge --bank {local}/keys"),
    "eval_retrieval": (eval_retrieval, "--data.captions {local}/dataset.json --similarity {local}/s.npy"),
    "train_xmatch": (
        train_xmatch,
        "--train.captions {local}/c.json --train.images {images} --valid.captions {local}/c.json "
        "--valid.images {images} --config {local}/small.yaml",
    ),
}
MODEL = """
model:
  image: {name: test_resnet.r160_in1k, weights: none, image_size: 32, resize: 36}
  text: {name: null, trainable: true, hidden_size: 16, num_layers: 1, num_heads: 2, layers: [1], vocab_size: 60}
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, image_folder: str) -> dict[str, str]:
    """Small whole inputs of every job, on a disk."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = ["the cat sat", "a dog ran", "hello world"]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "small.yaml").write_text(MODEL)
    tiny_vocabulary().save_pretrained(str(folder / "tokenizer"))
    shards = write_tokens(folder / "tokens", tiny_vocabulary(), lines, 2)
    bank = write_bank(folder / "keys", [f"s/{number}" for number in range(8)])
    write_vokens(folder / "vokens", folder / "tokens", shards, keys_hash=bank, keys=8)
    write_gallery(folder, small_gallery())
    images, texts = small_embeddings()
    np.save(folder / "s.npy", images @ texts.T)
    names = [f"{letter}.jpg" for letter in "abcdefghijkl"]
    karpathy_json(folder / "c.json", {"train": names[:9], "val": names[9:]})
    found = {"local": str(folder), "tokenizer": str(folder / "tokenizer"), "model": tiny_model, "images": image_folder}
    return found


def said(job, capfd, *words: str) -> str:
    """The one paragraph that a job ends with."""
    code = job.main(list(words))
    out, err = capfd.readouterr()
    assert code == 2, out + err
    if job is not preflight:
        assert out == "" or "plan" in out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return out + err


def nothing_secret(text: str, environment: dict[str, str]) -> None:
    assert environment["AWS_SECRET_ACCESS_KEY"] not in text
    assert environment["AWS_ACCESS_KEY_ID"] not in text


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("user", WHY)
def test_every_job_says_why_it_may_not_read(strict_s3, become, places, tmp_path, capfd, user: str, name: str) -> None:
    become(strict_s3[user])
    job, words = READS[name]
    filled = words.format(**places, **{"in": "s3://runs/in", "out": tmp_path / "out"})
    text = said(job, capfd, *filled.split(" "))
    assert "s3://runs/in" in text
    assert WHY[user] in text
    nothing_secret(text, strict_s3[user])
    assert not (tmp_path / "out" / "shards").exists()


@pytest.mark.parametrize("name", WRITES)
def test_every_job_says_why_it_may_not_write(strict_s3, become, places, capfd, name: str) -> None:
    become(strict_s3["reader"])
    job, words = WRITES[name]
    calm = [] if job in (key_bank, train_xmatch) else ["--ray.calibration_s", "0"]
    text = said(job, capfd, *words.format(**places).split(" "), *calm, "--output", "s3://runs/forbidden")
    assert "s3://runs/forbidden/run/config.yaml" in text
    assert "AccessDenied" in text.replace("ACCESS_DENIED", "AccessDenied")
    assert "have no right to do that" in text
    nothing_secret(text, strict_s3["reader"])


@pytest.mark.parametrize("name", [*READS, *(f"to {name}" for name in WRITES)])
def test_every_job_names_a_bucket_that_is_not_there(strict_s3, become, places, tmp_path, capfd, name: str) -> None:
    become(strict_s3["owner"])
    job, words = READS.get(name) or WRITES[name.removeprefix("to ")]
    words = words if name in READS else f"{words} --output s3://no-such-bucket/out"
    filled = words.format(**places, **{"in": "s3://no-such-bucket/in", "out": tmp_path / "out"})
    text = said(job, capfd, *filled.split(" "))
    assert "s3://no-such-bucket/" in text
    assert "there is no such bucket" in text


@pytest.mark.parametrize("name", WRITES)
def test_results_go_to_no_other_kind_of_store_and_no_uri_holds_a_key(places, capfd, name: str) -> None:
    job, words = WRITES[name]
    given = words.format(**places).split(" ")
    assert "https://storage.googleapis.com" in said(job, capfd, *given, "--output", "gs://bucket/run")
    text = said(job, capfd, *given, "--output", "s3://AKIAEXAMPLE:topsecret@bucket/run")
    assert "holds credentials before '@'" in text
    assert "topsecret" not in text
    assert "AKIAEXAMPLE" not in text


@pytest.mark.parametrize("uri", ["s3://KEY:topsecret@runs/x", "gs://KEY:topsecret@runs/x", "s3://runs/x?key=topsecret"])
def test_no_message_repeats_what_a_uri_should_not_hold(uri: str) -> None:
    for use in (files.exists, files.read_bytes, lambda path: files.write_bytes(path, b"")):
        with pytest.raises(InputError) as refused:
            use(uri)
        assert "topsecret" not in str(refused.value)


def test_the_rights_that_the_guide_gives_a_node_suffice(strict_s3, become) -> None:
    become(strict_s3["node"])
    output = "s3://runs/of-a-node"
    for left in (2, 1):
        ledger, actor, notes = (
            Ledger(output, {"kind": "rights"}),
            ShardActor(Double(), output, "parquet"),
            AttemptNotes(output),
        )
        notes.clear()
        todo = [shard for shard in shards(2) if shard.id not in ledger.done()]
        assert len(todo) == left
        for shard in todo:
            notes.begin(shard.id, 16)
            actor.run_shard(shard.id, read_range(shard))
        assert len(ledger.finish([shard.id for shard in shards(2)])["shards"]) == 2
        files.remove(f"{output}/completions/part-00001.json")
    write_and_remove(f"{output}/probed")


def test_an_image_that_may_not_be_read_stops_the_run_and_is_not_left_out(strict_s3, become) -> None:
    for user, why in WHY.items():
        become(strict_s3[user])
        with pytest.raises(StoreError, match=why):
            decode_rgb("s3://runs/images/a.jpg")
    become(strict_s3["owner"])
    with pytest.raises(InputError, match="does not exist") as missing:
        decode_rgb("s3://runs/images/a.jpg")
    assert not isinstance(missing.value, StoreError)


def test_without_credentials_it_is_said_what_to_set(strict_s3, become, monkeypatch, tmp_path) -> None:
    become(strict_s3["owner"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    from raydeploy.object_store import put_if_absent

    with pytest.raises(StoreError, match="no credentials were found. Set AWS_ACCESS_KEY_ID"):
        put_if_absent("s3://runs/x", b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "tokenizer", "output"),
    [
        ("reader", "{tokenizer}", "s3://runs/forbidden"),
        ("forger", "{tokenizer}", "s3://runs/forbidden"),
        ("stranger", "s3://runs/in/tokenizer", "{local}/tokens-of-a-stranger"),  # found out where workers are there
    ],
)
def test_a_job_in_a_process_of_its_own_says_the_same(strict_s3, places, user, tokenizer, output) -> None:
    words = ["--corpus.path", "{local}/corpus.txt", "--tokenizer", tokenizer, "--output", output]
    command = [sys.executable, "jobs/tokenize_corpus.py", *(word.format(**places) for word in words)]
    environment = {name: value for name, value in strict_s3[user].items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "cannot use 's3://runs/" in done.stderr
    assert done.stderr.count("\n") == 1
    nothing_secret(done.stdout + done.stderr, environment)
