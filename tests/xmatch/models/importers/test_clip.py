from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_models import tiny_model_object
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipModel

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models.importers import clip, openai_clip

WORDS = 40
START, END = WORDS - 2, WORDS - 1
IDS = torch.tensor([[START, 6, 7, 8, END], [START, 9, END, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 1}
VISION = SIZES | {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CLOSE = {"atol": 1e-5, "rtol": 0}


def unit(output) -> torch.Tensor:
    vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def original() -> CLIPModel:
    torch.manual_seed(3)
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    text = SIZES | special | {"vocab_size": WORDS, "max_position_embeddings": 12}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=10)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def check_is_original(model: DualEncoder, original: CLIPModel) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        theirs = unit(original.get_text_features(input_ids=IDS, attention_mask=MASK))
        torch.testing.assert_close(model.embed_sentences(IDS, MASK), theirs, **CLOSE)
        torch.testing.assert_close(model.embed_images(pixels), unit(original.get_image_features(pixels)), **CLOSE)
    assert model.logit_scale == original.logit_scale


@pytest.fixture
def folder(tmp_path: Path, tokenizer, original: CLIPModel) -> str:
    original.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) and a[key].shape == b[key].shape for key in a)


def test_clip_of_transformers(tmp_path: Path, folder: str, original: CLIPModel) -> None:
    model = clip.import_clip(folder)
    check_is_original(model, original)
    assert (model.config.pooling, model.config.text.padding, model.config.text.max_len) == ("last", "longest", 12)
    assert same(clip.export_clip(model), original.state_dict())
    model.save_pretrained(str(tmp_path / "ours"))
    check_is_original(DualEncoder.from_pretrained(str(tmp_path / "ours")), original)
    clip.write_clip(model, str(tmp_path / "theirs"))
    check_is_original(clip.import_clip(str(tmp_path / "theirs")), original)


def test_the_image_processors_settings_are_taken(folder: str) -> None:
    assert clip.import_clip(folder).config.image.mean == pytest.approx(clip.MEAN["clip"])
    Path(folder, "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "resample": 2}')
    config = clip.import_clip(folder).config.image
    assert (config.mean, config.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


def test_siglip_of_transformers(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(4)
    text = SIZES | {"vocab_size": WORDS, "max_position_embeddings": 6, "hidden_size": 128, "projection_size": 128}
    original = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    original.save_pretrained(tmp_path / "siglip")
    tokenizer.save_pretrained(tmp_path / "siglip")
    model = clip.import_clip(str(tmp_path / "siglip"))
    ids, pixels = torch.tensor([[6, 7, 8, 1, 0, 0], [6, 1, 0, 0, 0, 0]]), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = model.embed_sentences(ids, torch.ones_like(ids))
        torch.testing.assert_close(ours, unit(original.get_text_features(input_ids=ids)), **CLOSE)
        torch.testing.assert_close(model.embed_images(pixels), unit(original.get_image_features(pixels)), **CLOSE)
    assert model.config.text.padding == "max_length"
    assert same(clip.export_clip(model), original.state_dict())
    clip.write_clip(model, str(tmp_path / "theirs"))
    assert same(SiglipModel.from_pretrained(tmp_path / "theirs").state_dict(), original.state_dict())
    with pytest.raises(InputError, match="quick_gelu"):
        openai_clip.export_openai_clip(model)


def test_the_image_processor_comes_back(tmp_path: Path, folder: str) -> None:
    Path(folder, "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "resample": 2}')
    model = clip.import_clip(folder)
    clip.write_clip(model, str(tmp_path / "theirs"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 31, 3)).astype(np.uint8))
    theirs = CLIPImageProcessor.from_pretrained(tmp_path / "theirs")(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(theirs, model.image_tower.transform(train=False)(image), atol=0.02, rtol=0)
    assert replace(clip.import_clip(str(tmp_path / "theirs")).config.image, name=folder) == model.config.image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual_projection.weight"), "1 missing: visual_projection.weight"),
        (lambda s: s.update({"classifier.weight": torch.zeros(2)}), "1 unexpected: classifier.weight"),
        (lambda s: s.update({"visual_projection.weight": torch.zeros(3, 128)}), r"weight is \(3, 128\), expected"),
    ],
)
def test_what_does_not_fit_is_named(original: CLIPModel, folder: str, change, message: str) -> None:
    weights = original.state_dict() | {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    change(weights)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        clip.import_clip(folder)


def test_another_model_is_not_exported() -> None:
    with pytest.raises(InputError, match="no CLIP or SigLIP"):
        clip.export_clip(tiny_model_object())
    with pytest.raises(InputError, match="cannot load"):
        clip.import_clip("/no/such")
