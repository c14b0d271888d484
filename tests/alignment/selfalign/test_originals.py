"""SelfAlign on VSRN and on CAMERA, put together of our parts, gives the originals' numbers."""

from __future__ import annotations

import numpy as np
import torch
from small_models import golden, tiny_vocabulary
from torch import nn
from transformers import BertConfig

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.models.context.positions import position_code
from xmatch.models.context_head import Context
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.heads import normalise
from xmatch.models.importers import selfalign, vsrn
from xmatch.models.importers.mapping import Renames, assemble, fill

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def put(model: nn.Module, params: dict, renames: Renames) -> None:
    """Fill one half, strictly; the counters of BatchNorms, which the golden cases leave out, are put in."""
    state = {key: torch.as_tensor(value) for key, value in params.items()}
    for key in [key for key in state if key.endswith("running_mean")]:
        state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    fill(model, state, renames, "the golden case")


def assert_context(found: Context | None, expected: dict) -> None:
    assert found is not None
    for name, theirs in (("guide", "global"), ("locals", "locals"), ("fused", "fused")):
        values = torch.tensor(expected[f"context_{theirs}"]).float()
        torch.testing.assert_close(getattr(found, name), values, **CLOSE)


def camera(case: dict) -> DualEncoder:
    images, texts = ({k: torch.tensor(v) for k, v in case[f"{side}_params"].items()} for side in ("image", "text"))
    bert = BertConfig(hidden_size=len(case["bert_hidden"][0][0]), num_attention_heads=1, num_hidden_layers=1)
    config = selfalign.camera_selfalign_config(images, texts, bert, 5, "the golden case")
    model = assemble(config, tiny_vocabulary(), bert)
    put(model, case["image_params"], selfalign.CAMERA_IMAGE)
    put(model, case["text_params"], [pair for pair in selfalign.CAMERA_TEXT if pair[1] != "bert."])
    return model


def test_camera_with_selfalign_is_the_originals() -> None:
    case = golden("selfalign_camera")
    model = camera(case)
    positions = torch.from_numpy(position_code(np.array(case["boxes_xyxy"]), np.array(case["imgs_wh"])))
    with torch.no_grad():
        image = model.image_parts(torch.tensor(case["images"]), None, positions)
        hidden = torch.tensor(case["bert_hidden"])
        text = model.text_parts_from_features(hidden, torch.ones(hidden.shape[:2]))
    expected = case["image"]
    torch.testing.assert_close(image.projected, torch.tensor(expected["fc_regions_l2_over_regions"]), **CLOSE)
    torch.testing.assert_close(normalise(image.projected), torch.tensor(expected["concept_regions"]), **CLOSE)
    torch.testing.assert_close(image.members, torch.tensor(expected["agsa_l2_over_regions"]), **CLOSE)
    torch.testing.assert_close(image.view_scores, torch.tensor(expected["smry_mat"]), **CLOSE)
    assert_context(image.context, expected)
    expected = case["text"]
    torch.testing.assert_close(text.words, torch.tensor(expected["mapping_l2_over_tokens"]), **CLOSE)
    torch.testing.assert_close(normalise(text.words), torch.tensor(expected["concept_words"]), **CLOSE)
    torch.testing.assert_close(text.states, torch.tensor(expected["agsa"]), **CLOSE)
    assert_context(text.context, expected)
    torch.testing.assert_close(image.embeddings[:, :, :4], torch.tensor(case["image"]["views"]), **CLOSE)
    order = blocks(case["final_image_views"], 4)
    torch.testing.assert_close(image.embeddings, torch.cat([order[0], order[2], order[1]], -1), **CLOSE)
    order = blocks(case["final_caption"], 4)
    torch.testing.assert_close(text.embeddings, torch.cat([order[0], order[2], order[1]], -1), **CLOSE)
    scores = (image.embeddings @ text.embeddings.T).amax(1)
    torch.testing.assert_close(scores, torch.tensor(case["scores"]), **CLOSE)


def vsrn_model(case: dict) -> DualEncoder:
    images, texts = ({k: torch.tensor(v) for k, v in case[f"{side}_params"].items()} for side in ("image", "text"))
    config = selfalign.vsrn_selfalign_config(images, texts, "the golden case")
    words = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", *"abcdef"))
    model = assemble(config, wrap_words(words, mask=False), None)
    put(model, vsrn.plain_convolutions(images), selfalign.VSRN_IMAGE)
    put(model, texts, selfalign.VSRN_TEXT)
    return model


def test_vsrn_with_selfalign_is_the_originals() -> None:
    case = golden("selfalign")["vsrn_selfalign"]
    model = vsrn_model(case)
    ids = torch.tensor(case["ids"])
    mask = torch.arange(ids.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    with torch.no_grad():
        image, text = model.image_parts(torch.tensor(case["images"])), model.text_parts(ids, mask.long())
    expected = case["image"]
    torch.testing.assert_close(normalise(image.projected), torch.tensor(expected["concept_regions"]), **CLOSE)
    torch.testing.assert_close(image.members, torch.tensor(expected["gcn"]), **CLOSE)
    torch.testing.assert_close(image.embeddings[:, :4], torch.tensor(expected["features"]), **CLOSE)
    assert_context(image.context, expected)
    expected = case["text"]
    torch.testing.assert_close(normalise(text.words), torch.tensor(expected["concept_words"]), **CLOSE)
    torch.testing.assert_close(text.embeddings[:, :4], torch.tensor(expected["features"]), **CLOSE)
    assert_context(text.context, expected)
    torch.testing.assert_close(image.embeddings, torch.tensor(case["final_image_emb"]), **CLOSE)
    torch.testing.assert_close(text.embeddings, torch.tensor(case["final_caption_emb"]), **CLOSE)
    torch.testing.assert_close(image.embeddings @ text.embeddings.T, torch.tensor(case["scores"]), **CLOSE)


def blocks(values: list, dim: int) -> tuple[torch.Tensor, ...]:
    """The three blocks of final vectors; the originals' CAMERA has the two of the context the other way round."""
    return torch.tensor(values).split(dim, dim=-1)
