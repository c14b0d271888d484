from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import golden
from transformers import BertConfig, BertModel

from xmatch import DualEncoder
from xmatch.data.region_places import position_code
from xmatch.errors import InputError
from xmatch.models.importers.camera import import_camera

IMAGE, TEXT = golden("camera_image_encoder"), golden("selfalign_camera")["text_params"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def bert() -> BertModel:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=40,
        hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=12,
        max_position_embeddings=40,
    )
    return BertModel(config).eval()


def checkpoint(**options) -> dict:
    """What CAMERA's training writes, in its own names, with BERT's layer norms as they were called then."""
    text = {k: v for k, v in tensors(TEXT).items() if not k.startswith(("ctx_", "fusion_"))}
    for key, value in bert().state_dict().items():
        old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        text[f"bert.{old}"] = value
    opt = argparse.Namespace(max_words=7, head=2, **options)
    states = [tensors(IMAGE["params"]), text]
    return {"epoch": 9, "model": states, "best_rsum": 400.0, "best_r1": 60.0, "opt": opt, "Eiters": 5}


def load(content: dict, tmp_path: Path, tokenizer) -> DualEncoder:
    path = str(tmp_path / "model_best.pth.tar")
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch did then
    return import_camera(path, tokenizer=tokenizer)


def test_golden_numbers_come_out_of_a_checkpoint(tmp_path: Path, tokenizer) -> None:
    model = load(checkpoint(), tmp_path, tokenizer)
    code = position_code(np.array(IMAGE["boxes_xyxy"]), np.array(IMAGE["imgs_wh"]))
    features = torch.tensor(IMAGE["images"], dtype=torch.float32)
    with torch.no_grad():
        views = model.image_embeddings_from_features(features, None, torch.from_numpy(code))
    torch.testing.assert_close(views, torch.tensor(IMAGE["views"]), **CLOSE)


def test_captions_are_padded_and_padding_takes_part(tmp_path: Path, tokenizer) -> None:
    """BERT does not see padding; what stands behind it does, as the original's mean over all places."""
    model, content = load(checkpoint(), tmp_path, tokenizer), checkpoint()
    text, ids = content["model"][1], torch.tensor([[2, 6, 7, 3, 0, 0, 0]])
    with torch.no_grad():
        hidden = bert()(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        mapped = hidden @ text["mapping.weight"].T + text["mapping.bias"]
        states = model.text_context.reasoning.layers[0].attention(mapped, torch.ones(1, 7, dtype=torch.bool))
        states = mapped + torch.nn.functional.batch_norm(
            states[0], *(text[f"agsa.bns.0.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        )
        inner = (states @ text["fc1.weight"].T + text["fc1.bias"]).relu() @ text["fc2.weight"].T + text["fc2.bias"]
        inner = torch.nn.functional.batch_norm(
            inner[0], *(text[f"bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        )
        expected = torch.nn.functional.normalize((states + inner).mean(1), dim=-1)
        torch.testing.assert_close(model.embed_sentences(ids, (ids != 0).long()), expected, **CLOSE)
    words = tokenizer.convert_ids_to_tokens([6, 7])
    np.testing.assert_allclose(model.encode_texts([" ".join(words)]), expected.numpy(), atol=2e-5)


def test_a_saved_import_returns(tmp_path: Path, tokenizer) -> None:
    model = load(checkpoint(), tmp_path, tokenizer)
    model.save_pretrained(str(tmp_path / "m"))
    back = DualEncoder.from_pretrained(str(tmp_path / "m"))
    assert back.encode_texts(["the cat"]).tolist() == model.encode_texts(["the cat"]).tolist()
    assert (back.config.views, back.config.image_context.heads, back.image_shape) == (3, 2, (3, 4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["model"][0].pop("mvs.convs_fc.bias"), r"1 missing: image mvs\.convs_fc\.bias"),
        (lambda c: c["model"][1].update({"agsa.more": torch.zeros(1)}), r"1 unexpected: text agsa\.more"),
        (lambda c: c["model"][1].pop("fc1.weight"), r"text fc1\.weight"),
        (lambda c: c["model"].pop(), "image state, text state"),
        (lambda c: c.pop("opt"), "no CAMERA checkpoint"),
        (lambda c: c["model"][0].pop("agsa.att_layers.0.fc_q.weight"), r"agsa\.att_layers\.0\.fc_q\.weight"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer, damage, message: str) -> None:
    content = checkpoint()
    damage(content)
    with pytest.raises(InputError, match=message):
        load(content, tmp_path, tokenizer)


def test_the_tokenizer_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tokenizer"):
        load(checkpoint(), tmp_path, None)
