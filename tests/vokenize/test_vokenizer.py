from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_model_object
from stub_encoder import KEYS, StubEncoder, WithSpecials, golden_bank, line_rows

from vokenize.vokenizer import (
    VOKEN_SCHEMA,
    Assigned,
    VokenizeConfig,
    VokenizeShard,
    assign_vokens,
    check_vocabulary,
    vokenize_rows,
)
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.search import build_searcher

SENTENCES = KEYS["token_level_top1"]["sents"]


def with_specials(bank: np.ndarray, backend: str, k: int) -> Assigned:
    """Vokens of the golden sentences, special positions included."""
    pieces = [[KEYS["cls"], *s, KEYS["sep"]] for s in SENTENCES]
    tokens, lengths = np.concatenate(pieces), np.array([len(piece) for piece in pieces])
    return assign_vokens(tokens, lengths, WithSpecials(), build_searcher(bank, backend), "token", k)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_token_vokens_equal_the_original(backend: str) -> None:
    found = with_specials(golden_bank()[2], backend, 3)
    assert found.tokens.tolist() == [row for piece in KEYS["token_level_top3"]["idx"] for row in piece]
    assert found.tokens[:, 0].tolist() == sum(KEYS["token_level_top1"]["idx_incl_special"], [])
    distances = sum(KEYS["token_level_top1"]["l2sq_scores"], [])
    np.testing.assert_allclose(2 - 2 * found.token_scores[:, 0], distances, atol=1e-3)  # keys are rounded to 4 places
    assert found.sentences is None


def test_fewer_images_change_the_vokens_as_in_the_original() -> None:
    found = with_specials(golden_bank()[2][:4], "torch", 1)
    assert found.tokens[:, 0].tolist() == sum(KEYS["max_img_num_4"]["idx"], [])


def test_the_overlong_line_equals_the_original() -> None:
    case = KEYS["overlength"]
    _, _, keys = golden_bank()
    config = VokenizeConfig(window=case["upper_bound"], window_policy="original")
    table = vokenize_rows(line_rows([case["ids"]]), StubEncoder(), build_searcher(keys), config)
    assert table.column("vokens")[0].as_py() == case["idx_incl_special"][1:-1]


@settings(deadline=None, max_examples=30)
@given(
    lines=st.lists(st.one_of(st.none(), st.lists(st.integers(5, 32), max_size=30)), min_size=1, max_size=8),
    level=st.sampled_from(["token", "sentence", "both"]),
    k=st.integers(1, 4),
    window=st.integers(1, 12),
)
def test_lines_out_are_lines_in_with_k_vokens_a_token(lines, level: str, k: int, window: int) -> None:
    _, _, keys = golden_bank()
    config = VokenizeConfig(level=level, top_k=k, window=window)
    table = vokenize_rows(line_rows(lines), StubEncoder(), build_searcher(keys), config)
    assert table.schema.equals(VOKEN_SCHEMA)
    assert len(table) == len(lines)
    for line, row in zip(lines, table.to_pylist(), strict=True):
        pieces = row["piece_lengths"] or []
        assert sum(pieces) == len(line or [])
        assert len(row["vokens"] or []) == (0 if level == "sentence" else k * len(line or []))
        assert len(row["sentence_vokens"] or []) == (0 if level == "token" else k * len(pieces))
        assert (row["piece_lengths"] is None) == (not line)


def test_a_line_does_not_depend_on_its_neighbours(tiny_model: str, tmp_path) -> None:
    rng = np.random.default_rng(0)
    write_vectors(str(tmp_path / "k.arrow"), make_vectors([f"s/{i}" for i in range(9)], rng.random((9, 8), np.float32)))
    lines = [list(rng.integers(5, 32, n)) for n in (3, 9, 1, 3, 14)]
    step = VokenizeShard(tiny_model, str(tmp_path / "k.arrow"), VokenizeConfig(level="both", top_k=2, window=6))

    def run(chosen: list[int]) -> list[dict]:
        rows = pa.table({"line_id": chosen, "token_ids": pa.array([lines[i] for i in chosen], pa.list_(pa.int32()))})
        return step("part-00000", rows).table.to_pylist()

    together = run([0, 1, 2, 3, 4])
    for i in range(5):
        alone = run([i])[0]
        assert alone["vokens"] == together[i]["vokens"]
        np.testing.assert_allclose(alone["scores"], together[i]["scores"], atol=1e-5)
    assert run([0, 1, 2, 3, 4]) == together
    assert step.seconds["encoder"] > 0
    assert step.seconds["search"] > 0


def test_a_bank_of_another_width_is_refused(tiny_model: str, tmp_path) -> None:
    write_vectors(str(tmp_path / "k.arrow"), make_vectors(["s/1"], np.ones((1, 5), np.float32)))
    rows = pa.table({"line_id": [0], "token_ids": pa.array([[5]], pa.list_(pa.int32()))})
    with pytest.raises(InputError, match="width 5.*width 8"):
        VokenizeShard(tiny_model, str(tmp_path / "k.arrow"), VokenizeConfig())("part-00000", rows)


def test_a_context_head_has_vokens_of_sentences_alone(tmp_path) -> None:
    """Its vectors of sentences are three blocks wide, those of tokens one."""
    model = tiny_model_object(context_head=True)
    model.save_pretrained(tmp_path / "model")
    keys = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    write_vectors(str(tmp_path / "k.arrow"), make_vectors(["s/1", "s/2", "s/3"], keys))
    rows = pa.table({"line_id": [0], "token_ids": pa.array([[5, 6]], pa.list_(pa.int32()))})
    places = str(tmp_path / "model"), str(tmp_path / "k.arrow")
    with pytest.raises(InputError, match="8 wide and its images 24.*level=sentence"):
        VokenizeShard(*places, VokenizeConfig(level="token"))("part-00000", rows)
    made = VokenizeShard(*places, VokenizeConfig(level="sentence"))("part-00000", rows).table
    ids, mask = torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4, dtype=torch.long)
    with torch.inference_mode():
        scores = model.embed_sentences(ids, mask).numpy() @ keys.T
    assert made.column("sentence_vokens").to_pylist() == [[int(scores.argmax())]]


def test_a_token_out_of_the_vocabulary_names_its_line() -> None:
    rows = line_rows([[1, 2], None, [], [40]])
    rows = rows.set_column(0, "line_id", pa.array([9, 10, 11, 12]))
    with pytest.raises(InputError, match="line 12 has token id 40.*33 words"):
        check_vocabulary(rows, 33)


def test_more_images_than_there_are_is_refused(tiny_model: str, tmp_path) -> None:
    write_vectors(str(tmp_path / "k.arrow"), make_vectors(["s/1"], np.ones((1, 8), np.float32)))
    rows = pa.table({"line_id": [0], "token_ids": pa.array([[5]], pa.list_(pa.int32()))})
    with pytest.raises(InputError, match="top_k is 4"):
        VokenizeShard(tiny_model, str(tmp_path / "k.arrow"), VokenizeConfig(top_k=4))("part-00000", rows)
