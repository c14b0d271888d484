from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import tiny_model_object
from small_originals import Matcher, tiny_bert
from transformers import GPT2Config, GPT2Model

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models.heads import HeadConfig
from xmatch.models.importers.vokenization import export_vokenization, import_vokenization

IDS = torch.tensor([[2, 6, 7, 8, 3], [2, 9, 3, 0, 0]])
MASK = (IDS != 0).long()
POOLER = "lang_model.backbone.pooler.dense."


@pytest.fixture(scope="module", params=["vokenization", "maria"])
def original(request) -> Matcher:
    torch.manual_seed(1)
    return Matcher(40, request.param)


def load(state, tmp_path: Path, tokenizer) -> DualEncoder:
    torch.save(state, tmp_path / "BEST.pth")
    return import_vokenization(str(tmp_path / "BEST.pth"), tokenizer, image_name="resnet18")


def test_forward_is_the_originals(tmp_path: Path, tokenizer, original: Matcher) -> None:
    model = load(original.saved(), tmp_path, tokenizer)
    assert model.config.text_head.kind == original.kind
    assert model.config.text.layers == (4, 3, 2, 1)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed_images(pixels), original.images(pixels), atol=1e-5, rtol=0)
        ours = model.embed_text_both(IDS, MASK)[original.kind == "maria"]
        torch.testing.assert_close(ours, original.texts(IDS, MASK), atol=1e-5, rtol=0)


def test_export_gives_every_tensor_back(tmp_path: Path, tokenizer, original: Matcher) -> None:
    state = original.saved()
    back = export_vokenization(load(state, tmp_path, tokenizer))
    assert set(back) == set(state)
    for key, tensor in state.items():
        assert back[key].shape == tensor.shape
        assert key.startswith(POOLER) or torch.equal(back[key], tensor), key
    again = export_vokenization(load(back, tmp_path, tokenizer))
    assert all(torch.equal(again[key], back[key]) for key in back)
    assert not original.load_state_dict(
        {k: v for k, v in back.items() if not k.endswith("position_ids")}, strict=False
    ).unexpected_keys


def test_spellings_of_old_files_are_read(tmp_path: Path, tokenizer, original: Matcher) -> None:
    state = original.saved()
    old = {
        f"module.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in state.items()
        if not key.startswith(POOLER)
    }
    assert any(key.endswith("gamma") for key in old)
    model = load(old, tmp_path, tokenizer)
    with torch.no_grad():
        new = load(state, tmp_path, tokenizer)
        assert torch.equal(model.embed_sentences(IDS, MASK), new.embed_sentences(IDS, MASK))


def test_a_saved_import_returns(tmp_path: Path, tokenizer, original: Matcher) -> None:
    model = load(original.saved(), tmp_path, tokenizer)
    model.save_pretrained(str(tmp_path / "m"))
    back = DualEncoder.from_pretrained(str(tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(model.embed_sentences(IDS, MASK), back.embed_sentences(IDS, MASK))


def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer, original: Matcher) -> None:
    state = original.saved()
    state["visn_model.backbone.layer1.0.conv9.weight"] = state.pop("visn_model.backbone.layer1.0.conv1.weight")
    with pytest.raises(
        InputError, match=r"missing: visn_model.backbone.layer1.0.conv1.weight \(nearest there: .*conv9"
    ):
        load(state, tmp_path, tokenizer)
    with pytest.raises(InputError, match="missing: lang_model.mlp.0.weight"):
        load({"a": torch.zeros(1)}, tmp_path, tokenizer)
    state = original.saved()
    state["lang_model.backbone.embeddings.word_embeddings.weight"] = torch.zeros(7, 64)
    with pytest.raises(InputError, match="the tokenizer has"):
        load(state, tmp_path, tokenizer)
    first = "mlp.linears.0" if original.kind == "maria" else "mlp.0"
    state[f"lang_model.{first}.weight"] = torch.zeros(12, 100)
    with pytest.raises(InputError, match="100 features, no multiple of the text tower's 64"):
        load(state, tmp_path, tokenizer)


def test_another_text_tower_is_named_by_its_folder(tmp_path: Path, tokenizer, original: Matcher) -> None:
    tiny_bert(40).save_pretrained(tmp_path / "bert")
    torch.save(original.saved(), tmp_path / "BEST.pth")
    path, folder = str(tmp_path / "BEST.pth"), str(tmp_path / "bert")
    model = import_vokenization(path, tokenizer, image_name="resnet18", text_name=folder)
    with torch.no_grad():
        ours = model.embed_text_both(IDS, MASK)[original.kind == "maria"]
        torch.testing.assert_close(ours, original.texts(IDS, MASK), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="/no/such"):
        import_vokenization(path, tokenizer, text_name="/no/such")


def gpt_masks(blocks: int, positions: int) -> dict[str, torch.Tensor]:
    """What a GPT-2 of the original's time stored in every block."""
    masks = {}
    for block in range(blocks):
        name = f"lang_model.backbone.h.{block}.attn"
        masks[f"{name}.bias"] = torch.ones(positions, positions, dtype=torch.uint8).tril()[None, None]
        masks[f"{name}.masked_bias"] = torch.tensor(-1e4)
    return masks


def test_a_gpt_as_text_tower_goes_there_and_back(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(8)
    gpt = GPT2Model(
        GPT2Config(vocab_size=40, n_positions=12, n_embd=64, n_layer=4, n_head=1, bos_token_id=2, eos_token_id=3)
    )
    original = Matcher(40, "vokenization", gpt)
    state = original.saved() | gpt_masks(4, 12)
    gpt.save_pretrained(tmp_path / "gpt")
    torch.save(state, tmp_path / "BEST.pth")
    path, folder = str(tmp_path / "BEST.pth"), str(tmp_path / "gpt")
    model = import_vokenization(path, tokenizer, image_name="resnet18", text_name=folder)
    with torch.no_grad():
        torch.testing.assert_close(model.embed_tokens(IDS, MASK), original.texts(IDS, MASK), atol=1e-5, rtol=0)
    back = export_vokenization(model)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)


def test_another_resnet_is_hinted_at(tmp_path: Path, tokenizer, original: Matcher) -> None:
    torch.save(original.saved(), tmp_path / "BEST.pth")
    with pytest.raises(InputError, match=r"missing: .*of another shape: .*--image_name"):
        import_vokenization(str(tmp_path / "BEST.pth"), tokenizer, image_name="resnet50")


def test_another_model_is_not_exported() -> None:
    with pytest.raises(InputError, match="heads of Vokenization or Maria"):
        export_vokenization(tiny_model_object(text_head=HeadConfig(kind="linear")))
