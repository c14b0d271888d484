from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import golden, tiny_config, tiny_model_object

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash
from xmatch.models.heads import HeadConfig, build_head, normalise


def test_embeddings_are_unit_and_independent_of_the_batch(captions: list[str], image_folder: str) -> None:
    model = tiny_model_object()
    together = model.encode_texts(captions)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, model.encode_texts(captions, batch_size=1), atol=1e-5)
    paths = [f"{image_folder}/{name}.jpg" for name in "abc"]
    images = model.encode_images(paths)
    assert images.shape == (3, 8)
    np.testing.assert_allclose(images, model.encode_images([Path(p).read_bytes() for p in paths], 1), atol=1e-5)
    np.testing.assert_allclose(images[0], model.encode_images([Image.open(paths[0])])[0], atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing(pooling: str) -> None:
    model = tiny_model_object(pooling=pooling)
    ids = torch.tensor([[2, 6, 7, 3]])
    padded, mask = torch.tensor([[2, 6, 7, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        tokens, sentence = model.embed_text_both(ids, torch.ones_like(ids))
        more_tokens, same_sentence = model.embed_text_both(padded, mask)
    torch.testing.assert_close(tokens, more_tokens[:, :4], atol=1e-5, rtol=0)
    torch.testing.assert_close(sentence, same_sentence, atol=1e-5, rtol=0)


def test_cls_pooling_is_the_first_position() -> None:
    model = tiny_model_object(pooling="cls")
    ids = torch.tensor([[2, 6, 7, 3]])
    with torch.no_grad():
        tokens, sentence = model.embed_text_both(ids, torch.ones_like(ids))
    torch.testing.assert_close(tokens[:, 0], sentence)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2e-2)])
def test_a_saved_model_returns(tmp_path: Path, captions: list[str], dtype: str, tolerance: float) -> None:
    model = tiny_model_object()
    model.save_pretrained(str(tmp_path), dtype=dtype, card="# A model\n")
    back = DualEncoder.from_pretrained(str(tmp_path))
    assert back.config == model.config
    assert not back.training
    assert next(back.parameters()).dtype == torch.float32
    np.testing.assert_allclose(model.encode_texts(captions), back.encode_texts(captions), atol=tolerance)
    assert (tmp_path / "README.md").read_text() == "# A model\n"


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    model = tiny_model_object()
    model.save_pretrained(str(tmp_path / "a"))
    model.save_pretrained(str(tmp_path / "b"))
    assert model_hash(str(tmp_path / "a")) == model_hash(str(tmp_path / "b"))
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(str(tmp_path / "b"))
    assert model_hash(str(tmp_path / "a")) != model_hash(str(tmp_path / "b"))


def test_frozen_towers_never_leave_eval_mode_nor_learn() -> None:
    model = tiny_model_object().train()
    assert model.training
    assert not model.image_tower.training
    assert not any(module.training for module in model.image_tower.modules())
    assert not any(p.requires_grad for p in model.image_tower.parameters())
    assert model.text_tower.training


def test_heads_have_the_originals_keys_and_sizes() -> None:
    case = golden("model")
    for name, kind, width, hidden, dim in [
        ("vok_lang_3072_256_64", "vokenization", 3072, 256, 64),
        ("vok_visn_2048_256_64", "vokenization", 2048, 256, 64),
        ("maria_lang_3072_1024_1024_512", "maria", 3072, 1024, 512),
        ("maria_visn_2048_1024_1024_512", "maria", 2048, 1024, 512),
    ]:
        head = build_head(width, dim, HeadConfig(kind=kind, hidden=hidden))
        assert sum(p.numel() for p in head.parameters()) == case["heads"][name]
        expected = case["head_state_dict"]["vok" if kind == "vokenization" else "maria"]
        assert set(head.state_dict()) == set(expected)


def test_head_forward_equals_the_original() -> None:
    case = golden("model")["head_forward_eval"]
    head = build_head(3, 2, HeadConfig(hidden=2)).eval()
    weights = {"mlp.0.weight": "W1", "mlp.0.bias": "b1", "mlp.3.weight": "W2", "mlp.3.bias": "b2"}
    head.load_state_dict({key: torch.tensor(case[name]) for key, name in weights.items()})
    with torch.no_grad():
        out = normalise(head(torch.tensor(case["x"])))
    torch.testing.assert_close(out, torch.tensor(case["out_normalised"]), atol=1e-4, rtol=0)


def test_a_zero_vector_stays_zero() -> None:
    assert normalise(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"xx"), "safetensors"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda f: _edit(f / "config.json", "dim", 9), "another shape"),
        (lambda f: _edit(f / "config.json", "dimm", 9), "dimm"),
        (lambda f: _edit(f / "config.json", "format", 9), "format 1"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage, message: str) -> None:
    tiny_model_object().save_pretrained(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        DualEncoder.from_pretrained(str(tmp_path))


def _edit(path: Path, key: str, value: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def test_a_single_text_and_a_missing_folder_are_refused() -> None:
    with pytest.raises(InputError, match="wrap it"):
        tiny_model_object().encode_texts("a cat")
    with pytest.raises(InputError, match="does not exist"):
        DualEncoder.from_pretrained("./no/such/folder")


def test_features_are_standardised_only_when_asked() -> None:
    width = tiny_model_object().image_tower.width
    mean, std = torch.full((width,), 2.0), torch.full((width,), 4.0)
    plain, scaled = tiny_model_object(), tiny_model_object(scale_features=True)
    features = torch.randn(2, width)
    before = plain.image_embeddings_from_features((features - 2) / 4)
    plain.set_feature_statistics(mean, std)
    scaled.set_feature_statistics(mean, std)
    assert plain.feature_mean.abs().sum() == 0
    torch.testing.assert_close(scaled.image_embeddings_from_features(features), before)


def test_the_default_configuration_is_the_published_one() -> None:
    config = tiny_config().__class__()
    assert (config.dim, config.text.layers, config.text.max_len) == (64, (4, 3, 2, 1), 20)
    assert (config.text_head.kind, config.text_head.hidden, config.text_head.dropout) == ("vokenization", 256, 0.3)
