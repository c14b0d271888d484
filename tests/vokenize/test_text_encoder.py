from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vokenize import text_encoder
from vokenize.text_encoder import DualEncoderText
from xmatch import DualEncoder

PIECES = st.lists(st.lists(st.integers(5, 32), min_size=1, max_size=12), max_size=9)


@pytest.fixture(scope="module")
def model(tiny_model: str) -> DualEncoder:
    return DualEncoder.from_pretrained(tiny_model)


def encoded(encoder: DualEncoderText, pieces: list[list[int]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Embeddings of each piece's tokens, and of the pieces, in the order given."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    tokens: list[np.ndarray] = [np.zeros((0, 0))] * len(pieces)
    whole = np.zeros((len(pieces), encoder.model.config.dim), np.float32)
    seen: list[int] = []
    for group in encoder.encode(np.array(sum(pieces, []), np.int64), lengths):
        parts = np.split(group.tokens, np.cumsum(lengths[group.pieces])[:-1])
        seen += group.pieces.tolist()
        for piece, part, row in zip(group.pieces, parts, group.sentences, strict=True):
            tokens[piece], whole[piece] = part, row
    assert sorted(seen) == list(range(len(pieces)))
    return tokens, whole


@settings(deadline=None, max_examples=25)
@given(pieces=PIECES, budget=st.integers(1, 80), group=st.sampled_from([1, 10, 1 << 16]))
def test_a_piece_is_embedded_as_it_is_alone(model, pieces: list[list[int]], budget: int, group: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "GROUP_TOKENS", group)
        tokens, whole = encoded(DualEncoderText(model, budget), pieces)
    special = model.tokenizer("")["input_ids"]
    for piece, own, row in zip(pieces, tokens, whole, strict=True):
        ids = torch.tensor([[special[0], *piece, special[1]]])
        with torch.inference_mode():
            at_tokens, at_piece = model.embed_text_both(ids, torch.ones_like(ids))
        np.testing.assert_allclose(own, at_tokens[0, 1:-1].numpy(), atol=1e-5)
        np.testing.assert_allclose(row, at_piece[0].numpy(), atol=1e-5)


def test_half_precision_is_near_and_no_less_exact_in_form(model, tiny_model: str) -> None:
    pieces = [[5, 6, 7], [9], [20, 21, 22, 23, 24]]
    exact, _ = encoded(DualEncoderText(model, 64), pieces)
    encoder = DualEncoderText(DualEncoder.from_pretrained(tiny_model), 64, "bfloat16")
    near, whole = encoded(encoder, pieces)
    assert next(encoder.model.text_tower.parameters()).dtype == torch.bfloat16
    assert whole.dtype == np.float32
    for one, other in zip(exact, near, strict=True):
        assert 0 < np.abs(one - other).max() < 0.05
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)
