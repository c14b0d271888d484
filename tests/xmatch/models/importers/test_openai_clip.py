from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_originals import OpenAiClip

from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.models.importers import clip, openai_clip

WORDS = 40
START, END = WORDS - 2, WORDS - 1
IDS = torch.tensor([[START, 6, 7, 8, END], [START, 9, END, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def original() -> OpenAiClip:
    torch.manual_seed(3)
    return OpenAiClip(WORDS)


def check_is_original(model: DualEncoder, original: OpenAiClip) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = model.embed_sentences(IDS, MASK), model.embed_images(pixels)
        for mine, theirs in zip(ours, (original.texts(IDS), original.images(pixels)), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert model.logit_scale == original.logit_scale


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(
        torch.equal(a[key], b[key]) and (a[key].shape, a[key].dtype) == (b[key].shape, b[key].dtype) for key in a
    )


def load(state: dict[str, torch.Tensor], tmp_path: Path, tokenizer) -> DualEncoder:
    torch.save(state, tmp_path / "clip.pt")
    return openai_clip.import_openai_clip(str(tmp_path / "clip.pt"), tokenizer)


def test_a_plain_state_dict_goes_there_and_back(tmp_path: Path, tokenizer, original: OpenAiClip) -> None:
    model = load(original.state_dict(), tmp_path, tokenizer)
    check_is_original(model, original)
    back = openai_clip.export_openai_clip(model)
    assert same(back, original.state_dict())
    check_is_original(load(back, tmp_path, tokenizer), original)
    model.save_pretrained(str(tmp_path / "ours"))
    check_is_original(DualEncoder.from_pretrained(str(tmp_path / "ours")), original)


def test_half_precision_becomes_float32_and_half_again(tmp_path: Path, tokenizer, original: OpenAiClip) -> None:
    state = original.saved_in_half()
    assert {v.dtype for v in state.values()} == {torch.float16, torch.float32, torch.int64}
    halved = OpenAiClip(WORDS)
    halved.load_state_dict(state, strict=False)
    model = load(state, tmp_path, tokenizer)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check_is_original(model, halved)
    back = openai_clip.export_openai_clip(model)
    assert same(back, {key: value for key, value in state.items() if key not in openai_clip.OPENAI_UNUSED})
    with torch.no_grad():
        model.text_head.proj.weight += 1e-5
    assert {v.dtype for v in openai_clip.export_openai_clip(model).values()} == {torch.float32}


def test_agrees_checkpoint_goes_there_and_back(tmp_path: Path, tokenizer, original: OpenAiClip) -> None:
    path = str(tmp_path / "epoch_2.pt")
    wrapped = torch.nn.DataParallel(original).state_dict()
    optimizer = torch.optim.AdamW(original.parameters(), lr=1e-5)
    content = {"epoch": 2, "name": "lr=1e-05", "state_dict": wrapped, "optimizer": optimizer.state_dict()}
    torch.save(content, path)
    model = openai_clip.import_agree(path, tokenizer)
    check_is_original(model, original)
    back = openai_clip.export_agree(model, 2)
    assert same(back["state_dict"], wrapped)
    assert (back["epoch"], set(back)) == (2, set(content))
    torch.save(original.state_dict(), path)
    with pytest.raises(InputError, match="no checkpoint of AGREE"):
        openai_clip.import_agree(path, tokenizer)
    torch.save(content, path)
    with pytest.raises(InputError, match="holds 'state_dict'"):
        openai_clip.import_openai_clip(path, tokenizer)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("visual.ln_pre.bias"), "1 missing: visual.ln_pre.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "1 unexpected: more"),
        (lambda s: s.pop("visual.conv1.weight"), "missing: visual.conv1.weight"),
        (lambda s: s.update({"visual.proj": torch.zeros(9, 9)}), r"visual.proj is \(9, 9\), expected \(128, 10\)"),
        (lambda s: s.update({"text_projection": torch.zeros(9)}), "expected 2 axes"),
        (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}), "ResNet as image half"),
        (lambda s: s.update({"token_embedding.weight": torch.zeros(9, 64)}), "the tokenizer has"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer, original: OpenAiClip, damage, message: str) -> None:
    state = dict(original.state_dict())
    damage(state)
    with pytest.raises(InputError, match=message):
        load(state, tmp_path, tokenizer)


def test_fused_projections_split_and_join() -> None:
    fused = {"transformer.resblocks.0.attn.in_proj_weight": torch.arange(18.0).reshape(6, 3)}
    split = openai_clip.from_openai(fused)
    assert sorted(key.split(".")[-2] for key in split) == ["k_proj", "q_proj", "v_proj"]
    assert same(openai_clip.to_openai(split), fused)


def test_the_same_model_in_transformers_computes_the_same(tmp_path: Path, tokenizer, original: OpenAiClip) -> None:
    clip.write_clip(load(original.state_dict(), tmp_path, tokenizer), str(tmp_path / "theirs"))
    check_is_original(clip.import_clip(str(tmp_path / "theirs")), original)
