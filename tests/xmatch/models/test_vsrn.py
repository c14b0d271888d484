"""VSRN's encoders, put together of our parts, give the original's numbers; and what we do otherwise by default."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import golden

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.models.context.config import ContextConfig
from xmatch.models.context.gcn import GraphBlock
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.importers import mapping, vsrn
from xmatch.models.members import masks_of

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
GOLDEN = golden("vsrn")
WORDS = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(6))))


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def encoder(case: str, **changes) -> DualEncoder:
    """A model with the weights of a golden image encoder and of the golden text encoder."""
    images, texts = tensors(GOLDEN[case]["params"]), tensors(GOLDEN["text_encoder"]["params"])
    config = replace(vsrn.vsrn_config(images, texts, case), **changes)
    model = DualEncoder.from_config(config, wrap_words(WORDS, mask=False)).eval()
    state = mapping.named_halves(vsrn.plain_convolutions(images), texts)
    mapping.fill(model, state, mapping.half_renames(vsrn.IMAGE_RENAMES, vsrn.TEXT_RENAMES), case)
    return model


CASES = ("image_encoder_coco_precomp", "image_encoder_f30k_precomp")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_graph_block_is_the_originals(mode: str) -> None:
    case = GOLDEN["rs_gcn"]
    block = GraphBlock(case["in_channels"])
    theirs = {name: value.squeeze(-1) if value.ndim == 3 else value for name, value in tensors(case["params"]).items()}
    mapping.fill(block, theirs, [(f"{ours}.", f"{name}.") for ours, name in vsrn.PARTS.items()], "rs_gcn")
    rows = torch.tensor(case["input_B_D_N"]).transpose(1, 2)
    found = block.train(mode == "train")(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(found.transpose(1, 2), torch.tensor(case[f"{mode}_output"]), **CLOSE)


def test_a_fresh_graph_block_changes_nothing() -> None:
    rows = torch.randn(2, 5, 4)
    assert torch.equal(GraphBlock(4)(rows, torch.ones(2, 5, dtype=torch.bool)), rows)
    assert GOLDEN["rs_gcn"]["max_abs_deviation_from_identity_at_init"] == 0.0


@pytest.mark.parametrize("case", CASES)
def test_image_encoder_is_the_originals(case: str) -> None:
    model, given = encoder(case), GOLDEN[case]
    with torch.no_grad():
        parts = model.image_parts(torch.tensor(given["images"]))
    torch.testing.assert_close(parts.embeddings, torch.tensor(given["features"]), **CLOSE)
    torch.testing.assert_close(parts.members, torch.tensor(given["gcn_l2norm_over_regions"]), **CLOSE)


def test_text_encoder_is_the_originals() -> None:
    case, model = GOLDEN["text_encoder"], encoder(CASES[0])
    ids, lengths = torch.tensor(case["ids"]), torch.tensor(case["lengths"])
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(model.embed_sentences(ids, mask), torch.tensor(case["embedding"]), **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_regions_are_of_unit_length_by_default(case: str) -> None:
    model = encoder(case, legacy_norm_axis=False)
    with torch.no_grad():
        parts = model.image_parts(torch.tensor(GOLDEN[case]["images"]))
    torch.testing.assert_close(parts.members.norm(dim=-1), torch.ones(2, 6))
    torch.testing.assert_close(parts.embeddings.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_stands_in_padding_never_matters(case: str, training: bool) -> None:
    images = torch.tensor(GOLDEN[case]["images"])
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    for junk in (0.0, 50.0, float("nan")):
        model = encoder(case, legacy_norm_axis=False).train(training)
        filled = torch.where(mask[..., None], images, torch.tensor(junk))
        wider = torch.cat([filled, torch.full((2, 3, 5), junk)], 1)
        more = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
        with torch.no_grad():
            found = model.image_embeddings_from_features(wider, more)
        if junk == 0.0:
            first = found
        torch.testing.assert_close(found, first, **CLOSE)
    if not training:
        alone = images[1:, [0, 2, 3]]
        with torch.no_grad():
            torch.testing.assert_close(model.image_embeddings_from_features(alone), first[1:], **CLOSE)


def test_graph_blocks_follow_the_order_of_their_regions() -> None:
    model, images = encoder(CASES[1], legacy_norm_axis=False), torch.tensor(GOLDEN[CASES[1]]["images"])
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    with torch.no_grad():
        there, here = model.image_parts(images[:, order]), model.image_parts(images)
    torch.testing.assert_close(there.states, here.states[:, order], **CLOSE)
    assert (there.embeddings - here.embeddings).abs().max() > 1e-3  # the GRU reads in order


def test_a_recurrent_text_context_is_the_recurrent_tower() -> None:
    """Embeddings, an identity and a GRU behind it are the GRU tower."""
    case, tower = GOLDEN["text_encoder"], encoder(CASES[0])
    config = replace(
        tower.config,
        text=replace(tower.config.text, kind="words", word_dim=4),
        text_context=ContextConfig(kind="gru"),
    )
    model = DualEncoder.from_config(config, tower.tokenizer).eval()
    ids = torch.tensor(case["ids"])
    mask = ids != 0
    with torch.no_grad():
        parts = model.text_parts(ids, mask)
        states, _ = model.text_context.reasoning.rnn(parts.words[:1])
        torch.testing.assert_close(parts.states[:1], states, **CLOSE)
        torch.testing.assert_close(parts.words, model.text_tower.backbone.embed(ids))
        assert not parts.states[~masks_of(mask, padding_counts=False).real].any()
