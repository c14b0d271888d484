from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from small_models import golden, tiny_model_object
from small_originals import BertText, Grid, GruText, Regions, shaken
from torch import nn

from xmatch import DualEncoder
from xmatch.data.words import WordVocabulary
from xmatch.errors import InputError
from xmatch.models.importers.vse_infinity import _image, export_vse_infinity, import_vse_infinity

DIM, WORDS = 8, 40
IDS = torch.tensor([[2, 6, 7, 8, 3], [2, 9, 10, 3, 0], [2, 9, 3, 0, 0]])
LENGTHS = [5, 4, 3]
VOCABULARY = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(WORDS - 5))))


@pytest.fixture(scope="module")
def halves() -> dict[str, nn.Module]:
    torch.manual_seed(2)
    made = {
        "region": Regions(6, DIM),
        "grid": Grid(DIM),
        "bert": BertText(WORDS, DIM),
        "bigru": GruText(WORDS, DIM),
    }
    return {name: shaken(half) for name, half in made.items()}


def checkpoint(image: str, text: str, halves, prefix: bool, **options) -> dict:
    opt = argparse.Namespace(
        embed_size=DIM,
        precomp_enc_type="backbone" if image == "grid" else "basic",
        backbone_source="imagenet_res50",
        input_scale_factor=0.25,
        **options,
    )
    modules = [nn.DataParallel(halves[half]) if prefix else halves[half] for half in (image, text)]
    states = [module.state_dict() for module in modules]
    return {"epoch": 3, "model": states, "best_rsum": 400.1, "opt": opt, "Eiters": 7}


def load(content, tmp_path: Path, text: str, tokenizer) -> DualEncoder:
    path = str(tmp_path / "model_best.pth")
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch did then
    return import_vse_infinity(path, **({"tokenizer": tokenizer} if text == "bert" else {"vocabulary": VOCABULARY}))


@pytest.mark.parametrize("text", ["bert", "bigru"])
@pytest.mark.parametrize("image", ["region", "grid"])
def test_forward_is_the_originals_and_every_tensor_returns(
    tmp_path: Path, tokenizer, halves, image: str, text: str
) -> None:
    prefix = image == "grid" or text == "bert"
    content = checkpoint(image, text, halves, prefix)
    model = load(content, tmp_path, text, tokenizer)
    with torch.no_grad():
        ours = model.embed_sentences(IDS, (IDS != 0).long())
        torch.testing.assert_close(ours, halves[text](IDS, LENGTHS), atol=1e-5, rtol=0)
        if image == "grid":
            pixels = torch.randn(2, 3, 64, 64)
            torch.testing.assert_close(model.embed_images(pixels), halves["grid"](pixels), atol=1e-5, rtol=0)
        else:
            features, sizes = torch.randn(2, 5, 6), [5, 3]
            mask = torch.arange(5)[None] < torch.tensor(sizes)[:, None]
            ours = model.image_embeddings_from_features(features, mask)
            torch.testing.assert_close(ours, halves["region"](features, sizes), atol=1e-5, rtol=0)
    back = export_vse_infinity(model)
    for mine, theirs in zip(back["model"], content["model"], strict=True):
        unused = {k for k in theirs if ".resnet.fc." in k or ".pooler." in k or k.endswith("position_ids")}
        assert set(mine) == set(theirs) - unused
        assert all(torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype for key in mine)
    assert back["opt"].precomp_enc_type == content["opt"].precomp_enc_type
    if image == "grid":
        assert (back["opt"].backbone_source, back["opt"].input_scale_factor) == ("imagenet_res50", 0.25)
    again = load(back, tmp_path, text, tokenizer)
    assert again.config == model.config


def test_a_saved_import_returns(tmp_path: Path, tokenizer, halves) -> None:
    model = load(checkpoint("region", "bigru", halves, False), tmp_path, "bigru", tokenizer)
    model.save_pretrained(str(tmp_path / "m"))
    back = DualEncoder.from_pretrained(str(tmp_path / "m"))
    assert back.encode_texts(["w1 w2"]).tolist() == model.encode_texts(["w1 w2"]).tolist()


def test_golden_numbers_of_the_original_come_out_of_its_checkpoint(tmp_path: Path, tokenizer) -> None:
    case = golden("vse_image_encoder")["encoders"][0]
    region = Regions(case["img_dim"], case["embed_size"])
    region.load_state_dict({k: torch.tensor(v) for k, v in case["params"].items()}, strict=False)
    content = checkpoint("region", "bigru", {"region": region, "bigru": GruText(WORDS, case["embed_size"])}, False)
    features, mask = torch.tensor(case["features"]), torch.arange(5)[None] < torch.tensor(case["lengths"])[:, None]
    with torch.no_grad():
        ours = load(content, tmp_path, "bigru", tokenizer).image_embeddings_from_features(features, mask)
    torch.testing.assert_close(ours, torch.tensor(case["eval_embedding"]), atol=2e-5, rtol=1e-4)

    case = golden("vse_bigru_text_encoder")
    params = {k: torch.tensor(v) for k, v in case["params"].items()}
    words = WordVocabulary(VOCABULARY.words[: case["vocab_size"] - 1])
    image = Regions(6, case["embed_size"])
    content = checkpoint("region", "bigru", {"region": image, "bigru": image}, False)
    content["model"][1] = params
    torch.save(content, tmp_path / "text.pth")
    model = import_vse_infinity(str(tmp_path / "text.pth"), vocabulary=words)
    ids, lengths = torch.tensor(case["ids"]), torch.tensor(case["lengths"])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        ours = model.embed_sentences(ids, mask)
    torch.testing.assert_close(ours, torch.tensor(case["embedding"]), atol=2e-5, rtol=1e-4)


def test_a_trunk_that_is_stored_twice_must_be_one(tmp_path: Path, tokenizer, halves) -> None:
    for name, value in (
        ("backbone.resnet.conv1.weight", torch.zeros(1)),
        ("backbone.resnet.layer9.weight", torch.zeros(1)),
    ):
        content = checkpoint("grid", "bigru", halves, False)
        content["model"][0][name] = value
        with pytest.raises(InputError, match=f"trunk twice and differently: '{name}'"):
            load(content, tmp_path, "bigru", tokenizer)


@pytest.mark.parametrize(
    ("source", "name", "pixels"),
    [
        ("detector", "resnet101/caffe", "detector_bgr"),
        ("wsl_resnext", "resnext101_32x8d/torchvision", "unit_rgb"),
        ("imagenet_resnext", "resnext101_32x8d/torchvision", "unit_rgb"),
        ("imagenet_res152", "resnet152/caffe", "unit_rgb"),
        ("vsepp_imagenet_res50", "resnet50/caffe", "unit_rgb"),
        ("vsepp_resnext", "resnext101_32x8d/torchvision", "unit_rgb"),
    ],
)
def test_backbone_sources(source: str, name: str, pixels: str) -> None:
    config = _image({"backbone_source": source, "input_scale_factor": 2.0}, "x.pth")
    assert (config.name, config.pixels, config.image_size, config.crop) == (name, pixels, 512, "stretch")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["model"][0].pop("fc.bias"), "1 missing: image fc.bias"),
        (lambda c: c["model"][1].update({"gpool.more": torch.zeros(1)}), "1 unexpected: text gpool.more"),
        (lambda c: c["model"][1].update({"rnn.weight_ih_l1": torch.zeros(1)}), "one layer"),
        (lambda c: c["model"].pop(), "image state, text state"),
        (lambda c: c.pop("opt"), "no VSE-infinity checkpoint"),
        (lambda c: c.update(opt={"embed_size": 8}), "Namespace"),
        (lambda c: setattr(c["opt"], "no_imgnorm", True), "without normalisation"),
        (lambda c: c["model"][1].update({"embed.weight": torch.zeros(99, 10)}), "embeddings of 99 words"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer, halves, damage, message: str) -> None:
    content = checkpoint("region", "bigru", halves, False)
    damage(content)
    with pytest.raises(InputError, match=message):
        load(content, tmp_path, "bigru", tokenizer)


def test_what_an_import_needs_is_asked_for(tmp_path: Path, tokenizer, halves) -> None:
    content = checkpoint("grid", "bert", halves, True)
    content["opt"].backbone_source = "vgg"
    with pytest.raises(InputError, match="unknown backbone_source 'vgg'"):
        load(content, tmp_path, "bert", tokenizer)
    with pytest.raises(InputError, match="--tokenizer"):
        load(content, tmp_path, "bigru", tokenizer)
    with pytest.raises(InputError, match="--vocab"):
        load(checkpoint("region", "bigru", halves, False), tmp_path, "bert", tokenizer)


def test_another_model_is_not_exported() -> None:
    with pytest.raises(InputError, match="GPO on both sides"):
        export_vse_infinity(tiny_model_object())
