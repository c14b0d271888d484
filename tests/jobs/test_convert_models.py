"""Checkpoints and pickles of the originals, through the job's own main."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import golden
from small_originals import GruText, Matcher, Regions, shaken
from transformers import CLIPConfig, CLIPModel

from jobs import convert
from xmatch import DualEncoder
from xmatch.data.words import WordVocabulary, write_vocabulary

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 256, "num_attention_heads": 1}


@pytest.fixture
def words(tmp_path: Path, tokenizer) -> str:
    tokenizer.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def run(what: str, *arguments: object) -> int:
    return convert.main(["--what", what, *(str(argument) for argument in arguments)])


def there_and_back(folder: Path, kind: str, path: Path, name: str, *more: object) -> str:
    """Import, then export; the path of what was exported."""
    assert run("import_model", "--kind", kind, "--input", path, "--output", folder / "m", *more) == 0
    assert run("export_model", "--kind", kind, "--input", folder / "m", "--output", folder / "x") == 0
    return str(folder / "x" / name)


@pytest.mark.parametrize("kind", ["vokenization", "maria"])
def test_a_matcher_goes_there_and_back(tmp_path: Path, words: str, kind: str, capsys) -> None:
    state = Matcher(40, kind).saved()
    torch.save(state, tmp_path / "BEST.pth")
    more = ["--tokenizer", words, "--image_name", "resnet18"]
    back = torch.load(there_and_back(tmp_path, kind, tmp_path / "BEST.pth", "BEST.pth", *more), weights_only=True)
    assert {k: (v.shape, v.dtype) for k, v in back.items()} == {k: (v.shape, v.dtype) for k, v in state.items()}
    assert all(torch.equal(back[key], state[key]) for key in state if ".pooler." not in key)
    other = "maria" if kind == "vokenization" else "vokenization"
    path = tmp_path / "BEST.pth"
    assert run("import_model", "--kind", other, "--input", path, "--output", tmp_path / "o", *more) == 2
    assert f"--kind {kind}" in capsys.readouterr().err


def test_vse_infinity_goes_there_and_back(tmp_path: Path, capsys) -> None:
    vocabulary = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", "cat", "dog"))
    write_vocabulary(str(tmp_path / "vocab.json"), vocabulary)
    halves = [shaken(Regions(6, 8)).state_dict(), GruText(7, 8).state_dict()]
    content = {"model": halves, "opt": argparse.Namespace(embed_size=8, precomp_enc_type="basic")}
    torch.save(content, tmp_path / "model_best.pth")
    path = tmp_path / "model_best.pth"
    back = there_and_back(tmp_path, "vse_infinity", path, "model_best.pth", "--vocab", tmp_path / "vocab.json")
    printed = capsys.readouterr().out
    for fact in ("vse_infinity", "regions, 6 wide", "bigru, 8 wide, at most 512 tokens", "model_best.pth"):
        assert fact in printed
    card = (tmp_path / "m" / "README.md").read_text()
    assert "imported: `model_best.pth`, a checkpoint of kind vse_infinity" in card
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(back, weights_only=True)
    for mine, theirs in zip(found["model"], halves, strict=True):
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_vsrn_comes_in_and_does_not_go_out(tmp_path: Path, capsys) -> None:
    case, words = golden("vsrn"), ("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(6)))
    write_vocabulary(str(tmp_path / "vocab.json"), WordVocabulary(words))
    cases = (case["image_encoder_f30k_precomp"], case["text_encoder"])
    halves = [{k: torch.tensor(v) for k, v in one["params"].items()} for one in cases]
    torch.save({"model": halves, "opt": argparse.Namespace()}, tmp_path / "model_best.pth.tar")
    given = ["--kind", "vsrn", "--input", tmp_path / "model_best.pth.tar", "--output", tmp_path / "m"]
    assert run("import_model", *given, "--vocab", tmp_path / "vocab.json") == 0
    assert "regions, 5 wide" in capsys.readouterr().out
    model = DualEncoder.from_pretrained(str(tmp_path / "m"))
    found = model.encode_features(np.array(cases[0]["images"], np.float32))
    np.testing.assert_allclose(found, np.array(cases[0]["features"]), atol=2e-5, rtol=1e-4)
    assert run("export_model", "--kind", "vsrn", "--input", tmp_path / "m", "--output", tmp_path / "x") == 2
    assert "not exported" in capsys.readouterr().err


def test_selfalign_comes_in_and_does_not_go_out(tmp_path: Path, capsys) -> None:
    case, words = golden("selfalign")["vsrn_selfalign"], ("<pad>", "<start>", "<end>", "<unk>", *"abcdef")
    write_vocabulary(str(tmp_path / "vocab.json"), WordVocabulary(words))
    states = [{k: torch.tensor(v) for k, v in case[f"{side}_params"].items()} for side in ("image", "text")]
    states = [
        state | {k.replace("running_mean", "num_batches_tracked"): torch.tensor(1) for k in state if "_mean" in k}
        for state in states
    ]
    states.append({"v_prototypes.weight": torch.ones(5, 4)})
    torch.save({"model": states, "opt": argparse.Namespace()}, tmp_path / "model_best.pth.tar")
    given = ["--kind", "selfalign", "--input", tmp_path / "model_best.pth.tar", "--output", tmp_path / "m"]
    assert run("import_model", *given, "--vocab", tmp_path / "vocab.json") == 0
    found = DualEncoder.from_pretrained(str(tmp_path / "m")).encode_features(np.array(case["images"], np.float32))
    np.testing.assert_allclose(found, np.array(case["final_image_emb"]), atol=2e-5, rtol=1e-4)
    assert run("export_model", "--kind", "selfalign", "--input", tmp_path / "m", "--output", tmp_path / "x") == 2
    assert "not exported" in capsys.readouterr().err


KINDS = ["vokenization", "maria", "vse_infinity", "vsrn", "camera", "selfalign", "openai_clip", "agree"]


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch owned",))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, words: str, kind: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": [Hostile()], "opt": argparse.Namespace(), "state_dict": Hostile()}, tmp_path / "a.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "b.pt"))
    for name, message in (("a.pth", "posix.system, which is refused"), ("b.pt", "torch.jit.load(")):
        given = ["--kind", kind, "--input", name, "--tokenizer", words, "--output", "m"]
        assert run("import_model", *given) == 2
        assert message in capsys.readouterr().err
    assert not Path("owned").exists()
    assert not Path("m", "model.safetensors").exists()


def test_clip_becomes_agree_and_openai(tmp_path: Path, words: str, tokenizer, capsys) -> None:
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 12, "bos_token_id": 38, "eos_token_id": 39}
    vision = SIZES | {"image_size": 16, "patch_size": 8}
    original = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    original.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    theirs = there_and_back(tmp_path, "clip", tmp_path / "clip", "")
    back = CLIPModel.from_pretrained(theirs).state_dict()
    assert all(torch.equal(back[key], value) for key, value in original.state_dict().items())
    texts = DualEncoder.from_pretrained(tmp_path / "m").encode_texts(["the cat"])
    for kind, name in (("openai_clip", "clip.pt"), ("agree", "epoch_0.pt")):
        folder = tmp_path / kind
        assert run("export_model", "--kind", kind, "--input", tmp_path / "m", "--output", folder) == 0
        given = ["--kind", kind, "--input", folder / name]
        assert run("import_model", *given, "--tokenizer", words, "--output", folder / "m") == 0
        np.testing.assert_allclose(
            DualEncoder.from_pretrained(folder / "m").encode_texts(["the cat"]), texts, atol=1e-6
        )
        assert run("import_model", *given, "--output", folder / "n") == 2
        assert "--tokenizer" in capsys.readouterr().err


def test_pickles_become_json_and_npy(tmp_path: Path, capsys) -> None:
    (tmp_path / "answers.pkl").write_bytes(pickle.dumps(["yes", "no"]))
    out = tmp_path / "out"
    assert run("legacy", "--input", tmp_path / "answers.pkl", "--output", out) == 0
    assert json.loads((out / "answers.json").read_text()) == ["yes", "no"]
    np.save(tmp_path / "sims.npy", {"npts": 2, "sims": np.eye(2, dtype=np.float32)}, allow_pickle=True)
    assert run("legacy", "--input", tmp_path / "sims.npy", "--output", out, "--name", "sims.npy") == 0
    assert np.load(out / "sims.npy").tolist() == np.eye(2).tolist()
    assert run("legacy", "--input", tmp_path / "sims.npy", "--output", out) == 2
    assert ".npy" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["import_model", "export_model", "legacy"])
def test_bad_input_is_one_paragraph(tmp_path: Path, capsys, what: str) -> None:
    assert run(what, "--output", tmp_path / "o") == 2
    assert f"{what} needs --input" in capsys.readouterr().err
    assert run(what, "--input", "/no/such/file", "--output", tmp_path / "o") == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert ("--tokenizer" if what == "import_model" else "/no/such/file") in errors
