"""VSE-infinity's encoders, put together of our parts, give the original's numbers."""

from __future__ import annotations

import pytest
import torch
from small_models import golden, tiny_config

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
KINDS = {"basic": "fc_mlp", "backbone": "fc"}


def region_model(case: dict, *, original: bool) -> DualEncoder:
    config = tiny_config(
        dim=case["embed_size"],
        image_pooling="gpo",
        image=ImageTowerConfig(kind="regions", output="grid", width=case["img_dim"]),
        image_head=HeadConfig(kind=KINDS[case["type"]]),
        padding_in_batch_norm=original,
    )
    words = wrap_words(WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", "cat")))
    model = DualEncoder.from_config(config, words).eval()
    names = {"gpool": "image_pool", "fc": "image_head.fc", "mlp": "image_head.mlp"}
    state = {
        f"{names[key.split('.')[0]]}.{key.split('.', 1)[1]}": torch.tensor(value)
        for key, value in case["params"].items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [k for k in missing if k.startswith(("image_head", "image_pool")) and "batches_tracked" not in k]
    return model


@pytest.mark.parametrize("case", golden("vse_image_encoder")["encoders"], ids=lambda c: c["type"])
def test_image_encoder_is_the_originals(case: dict) -> None:
    features = torch.tensor(case["features"])
    mask = torch.arange(features.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    model = region_model(case, original=True)
    with torch.no_grad():
        torch.testing.assert_close(
            model.image_embeddings_from_features(features, mask), torch.tensor(case["eval_embedding"]), **CLOSE
        )
        model.train()
        torch.testing.assert_close(
            model.image_embeddings_from_features(features, mask), torch.tensor(case["train_embedding"]), **CLOSE
        )
    if case["type"] == "basic":
        norm = model.image_head.mlp.bns[0]
        torch.testing.assert_close(
            norm.running_mean, torch.tensor(case["train_mlp_bn0_running_mean_after"]), atol=2e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            norm.running_var, torch.tensor(case["train_mlp_bn0_running_var_after"]), atol=2e-5, rtol=1e-4
        )


def test_padding_is_out_of_batch_statistics_by_default() -> None:
    case = golden("vse_image_encoder")["encoders"][0]
    features = torch.tensor(case["features"])
    mask = torch.arange(features.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    junk = torch.where(mask[..., None], features, torch.tensor(50.0))
    ours, theirs = region_model(case, original=False).train(), region_model(case, original=True).train()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.image_embeddings_from_features(features, mask),
            ours.image_embeddings_from_features(junk, mask),
            **CLOSE,
        )
        first = theirs.image_embeddings_from_features(features, mask)
        assert (first - theirs.image_embeddings_from_features(junk, mask)).abs().max() > 1e-3


def test_bigru_text_encoder_is_the_originals() -> None:
    case = golden("vse_bigru_text_encoder")
    words = ("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(case["vocab_size"] - 4)))
    tokenizer = wrap_words(WordVocabulary(words), mask=False)
    text = TextTowerConfig(
        kind="bigru", layers=(1,), trainable=True, word_dim=case["word_dim"], hidden_size=case["embed_size"]
    )
    config = tiny_config(dim=case["embed_size"], pooling="gpo", text=text, text_head=HeadConfig(kind="identity"))
    model = DualEncoder.from_config(config, tokenizer).eval()
    names = {"embed": "text_tower.backbone.embed", "rnn": "text_tower.backbone.rnn", "gpool": "text_pool"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.', 1)[1]}": torch.tensor(v) for k, v in case["params"].items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    ids, lengths = torch.tensor(case["ids"]), torch.tensor(case["lengths"])
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(model.embed_sentences(ids, mask), torch.tensor(case["embedding"]), **CLOSE)
        order = torch.tensor([2, 0, 1])  # the original needs batches sorted by length; we do not
        torch.testing.assert_close(
            model.embed_sentences(ids[order], mask[order]), torch.tensor(case["embedding"])[order], **CLOSE
        )
