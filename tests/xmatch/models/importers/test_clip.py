from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import tiny_model_object
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models.importers import clip, mapping

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


def openai_state(model: CLIPModel) -> dict[str, torch.Tensor]:
    """The same weights as OpenAI's code names them."""
    source, out = model.state_dict(), {}
    for theirs, ours in {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "logit_scale": "logit_scale",
    }.items():
        out[theirs] = source[ours]
    out["visual.proj"] = source["visual_projection.weight"].T.contiguous()
    out["text_projection"] = source["text_projection.weight"].T.contiguous()
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for block in range(2):
        for theirs, ours in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
            there, here = f"{theirs}.resblocks.{block}", f"{ours}.encoder.layers.{block}"
            for kind in ("weight", "bias"):
                parts = [source[f"{here}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                out[f"{there}.attn.in_proj_{kind}"] = torch.cat(parts)
            norms |= {
                f"{there}.attn.out_proj": f"{here}.self_attn.out_proj",
                f"{there}.mlp.c_fc": f"{here}.mlp.fc1",
                f"{there}.mlp.c_proj": f"{here}.mlp.fc2",
                f"{there}.ln_1": f"{here}.layer_norm1",
                f"{there}.ln_2": f"{here}.layer_norm2",
            }
    for theirs, ours in norms.items():
        out |= {f"{theirs}.{kind}": source[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    assert sum(v.numel() for v in out.values()) == sum(v.numel() for v in source.values())
    return out


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
        clip.export_openai_clip(model)


def test_openais_state_dict(tmp_path: Path, tokenizer, original: CLIPModel) -> None:
    state, path = openai_state(original), str(tmp_path / "clip.pt")
    torch.save(state | {"input_resolution": torch.tensor(16), "vocab_size": torch.tensor(WORDS)}, path)
    model = clip.import_openai_clip(path, tokenizer)
    check_is_original(model, original)
    assert same(clip.export_openai_clip(model), state)
    model.save_pretrained(str(tmp_path / "ours"))
    check_is_original(DualEncoder.from_pretrained(str(tmp_path / "ours")), original)


def test_half_precision_becomes_float32(tmp_path: Path, tokenizer, original: CLIPModel) -> None:
    torch.save({k: v.half() for k, v in openai_state(original).items()}, tmp_path / "clip.pt")
    model = clip.import_openai_clip(str(tmp_path / "clip.pt"), tokenizer)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_agrees_checkpoint(tmp_path: Path, tokenizer, original: CLIPModel) -> None:
    state, path = openai_state(original), str(tmp_path / "epoch_2.pt")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 2, "name": "run", "state_dict": wrapped, "optimizer": {"param_groups": []}}, path)
    model = clip.import_agree(path, tokenizer)
    check_is_original(model, original)
    back = clip.export_agree(model, 2)
    assert same(back["state_dict"], wrapped)
    assert (back["epoch"], set(back)) == (2, {"epoch", "name", "state_dict", "optimizer"})
    torch.save(state, path)
    with pytest.raises(InputError, match="no checkpoint of AGREE"):
        clip.import_agree(path, tokenizer)


def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer, original: CLIPModel, folder: str) -> None:
    path = str(tmp_path / "clip.pt")
    for damage, message in (
        (lambda s: s.pop("visual.ln_pre.bias"), "1 missing: vision_model.pre_layrnorm.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "1 unexpected: more"),
        (lambda s: s.pop("visual.conv1.weight"), "missing: visual.conv1.weight"),
        (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}), "ResNet as image half"),
        (lambda s: s.update({"token_embedding.weight": torch.zeros(9, 64)}), "the tokenizer has"),
    ):
        state = openai_state(original)
        damage(state)
        torch.save(state, path)
        with pytest.raises(InputError, match=message):
            clip.import_openai_clip(path, tokenizer)
    weights = {k: v for k, v in original.state_dict().items() if k != "visual_projection.weight"}
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="1 missing: visual_projection.weight"):
        clip.import_clip(folder)


def test_another_model_is_not_exported(folder: str, tmp_path: Path) -> None:

    with pytest.raises(InputError, match="no CLIP or SigLIP"):
        clip.export_clip(tiny_model_object())
    with pytest.raises(InputError, match="cannot load"):
        clip.import_clip("/no/such")


def test_fused_projections_split_and_join() -> None:
    fused = {"transformer.resblocks.0.attn.in_proj_weight": torch.arange(18.0).reshape(6, 3)}
    split = clip.from_openai(fused)
    assert sorted(key.split(".")[-2] for key in split) == ["k_proj", "q_proj", "v_proj"]
    assert same(clip.to_openai(split), fused)
    assert mapping.original_name("logit_bias", clip.CLIP_RENAMES) is None
