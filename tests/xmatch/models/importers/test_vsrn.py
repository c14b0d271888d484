from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from small_models import golden
from torch import nn

from xmatch import DualEncoder
from xmatch.data.words import WordVocabulary
from xmatch.errors import InputError
from xmatch.models.importers.vsrn import import_vsrn

GOLDEN = golden("vsrn")
CASES = ("image_encoder_coco_precomp", "image_encoder_f30k_precomp")
VOCABULARY = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(6))))
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def checkpoint(case: str, **options) -> dict:
    """What VSRN's training writes, in its own names."""
    states = [tensors(GOLDEN[case]["params"]), tensors(GOLDEN["text_encoder"]["params"])]
    for key in [key for key in states[0] if key.endswith("running_mean")]:
        states[0][key.replace("running_mean", "num_batches_tracked")] = torch.tensor(7)
    opt = argparse.Namespace(data_name=case, max_violation=True, no_imgnorm=False, use_abs=False)
    for name, value in options.items():
        setattr(opt, name, value)
    return {"epoch": 12, "model": states, "best_rsum": 310.5, "opt": opt, "Eiters": 900}


def load(content: dict, tmp_path: Path, vocabulary: WordVocabulary | None = VOCABULARY) -> DualEncoder:
    path = str(tmp_path / "model_best.pth.tar")
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch did then
    return import_vsrn(path, vocabulary=vocabulary)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_golden_numbers_come_out_of_a_checkpoint(tmp_path: Path, case: str, prefix: bool) -> None:
    content = checkpoint(case)
    if prefix:
        content["model"] = [{f"module.{key}": value for key, value in half.items()} for half in content["model"]]
    model, given = load(content, tmp_path), GOLDEN[case]
    ids = torch.tensor(GOLDEN["text_encoder"]["ids"])
    with torch.no_grad():
        images = model.image_embeddings_from_features(torch.tensor(given["images"]))
        texts = model.embed_sentences(ids, (ids != 0).long())
    torch.testing.assert_close(images, torch.tensor(given["features"]), **CLOSE)
    torch.testing.assert_close(texts, torch.tensor(GOLDEN["text_encoder"]["embedding"]), **CLOSE)


def test_a_saved_import_returns(tmp_path: Path) -> None:
    model = load(checkpoint(CASES[1]), tmp_path)
    model.save_pretrained(str(tmp_path / "m"))
    back = DualEncoder.from_pretrained(str(tmp_path / "m"))
    assert back.encode_texts(["w1 w2"]).tolist() == model.encode_texts(["w1 w2"]).tolist()
    assert back.config.legacy_norm_axis


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["model"][0].pop("fc.bias"), "1 missing: image fc.bias"),
        (lambda c: c["model"][0].update({"Rs_GCN_1.g.more": torch.zeros(1)}), r"1 unexpected: image Rs_GCN_1\.g\.more"),
        (lambda c: [c["model"][0].pop(k) for k in list(c["model"][0]) if "Rs_GCN_4" in k], "4 graph convolutions"),
        (lambda c: c["model"][0].update({"img_rnn.weight_hh_l0": torch.zeros(3, 4)}), "image img_rnn.weight_hh_l0 is"),
        (lambda c: c["model"][1].update({"rnn.weight_ih_l1": torch.zeros(1)}), "one layer"),
        (lambda c: c["model"].pop(), "image state, text state"),
        (lambda c: c.pop("opt"), "no VSRN checkpoint"),
        (lambda c: setattr(c["opt"], "no_imgnorm", True), "--no_imgnorm"),
        (lambda c: c["model"][1].update({"embed.weight": torch.zeros(99, 3)}), "embeddings of 99 words"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, damage, message: str) -> None:
    content = checkpoint(CASES[0])
    damage(content)
    with pytest.raises(InputError, match=message):
        load(content, tmp_path)


def test_the_vocabulary_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--vocab"):
        load(checkpoint(CASES[0]), tmp_path, None)


def test_the_graph_blocks_are_where_training_can_find_them(tmp_path: Path) -> None:
    model = load(checkpoint(CASES[1]), tmp_path)
    assert isinstance(model.image_pool.norm, nn.BatchNorm1d)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning >= {"image_head", "image_context", "image_pool", "text_tower"}
