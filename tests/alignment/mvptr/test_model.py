"""The model: the numbers of the original, and what its three encoders do not see of each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvptr_cases import CLOSE, TINY, golden, golden_inputs, golden_model

from alignment.mvptr.config import MvptrConfig
from alignment.mvptr.model import Cross, Dual, Inputs, MvptrModel
from xmatch.errors import InputError


def run(config: MvptrConfig = TINY, inputs: Inputs | None = None) -> tuple[Dual, Cross]:
    """Both sides and the pairs, of the golden weights."""
    with torch.no_grad():
        return golden_model(config)(inputs or golden_inputs())


def test_every_output_is_that_of_the_original() -> None:
    expected = {name: torch.tensor(value) for name, value in golden("forward")["outputs"].items()}
    sides, pairs = run()
    found = {
        "sequence_output": pairs.sequence,
        "pooled_output": pairs.pooled,
        "txt_encoder_output": sides.text.states,
        "vis_encoder_output": sides.image.states,
        "sim_mat": sides.text.vector @ sides.image.vector.T,
        "global_txt": sides.text.vector,
        "global_img": sides.image.vector,
        "mid_output_phrase_layer0": pairs.layers[0],
    }
    assert set(expected) == {*found, "sequence_output_shape_if_max_tag_length_3"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(pairs.layers[-1], pairs.sequence)


def test_reading_from_a_wrong_place_must_be_asked_for_and_is_then_that_of_the_original() -> None:
    inputs = golden_inputs()
    shorter = inputs._replace(input_ids_b=inputs.input_ids_b[:, :3], token_type_ids_b=inputs.token_type_ids_b[:, :3])
    with pytest.raises(InputError, match=r"tag ids: expected \(batch, 5\).*got \(4, 3\)"):
        run(inputs=shorter)
    shape = golden("forward")["outputs"]["sequence_output_shape_if_max_tag_length_3"]
    asked = dataclasses.replace(TINY, cross_from=3)
    assert list(run(asked)[1].sequence.shape) == shape == [4, asked.cross_length, 8]


@pytest.mark.parametrize("part", Inputs._fields)
def test_inputs_of_another_length_are_refused(part: str) -> None:
    inputs = golden_inputs()
    wrong = inputs._replace(**{part: getattr(inputs, part)[:, :-1]})
    with pytest.raises(InputError, match="which is lengths"):
        run(inputs=wrong)


def test_regions_of_another_width_and_ids_outside_the_table_are_refused() -> None:
    inputs = golden_inputs()
    with pytest.raises(InputError, match=r"expected \(batch, 4, 10\).*region_width"):
        run(inputs=inputs._replace(img_feats=inputs.img_feats[..., :9]))
    phrases = inputs.input_ids_a.clone()
    phrases[2, 1] = 60
    with pytest.raises(InputError, match="row 2 of the batch: expected 0 to 59 .* got 60"):
        run(inputs=inputs._replace(input_ids_a=phrases))
    with pytest.raises(InputError, match="got -1"):
        run(inputs=inputs._replace(input_ids_b=-torch.ones_like(inputs.input_ids_b)))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_padding_is_never_seen(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs, sides = golden_inputs(), run()
    text, image = inputs.attention_mask_a.bool(), inputs.attention_mask_b.bool()
    noise = Inputs(*(part.clone() for part in inputs))
    noise.input_ids_a[~text] = torch.randint(0, 60, (int((~text).sum()),), generator=draw)
    noise.input_ids_b[~image[:, :5]] = torch.randint(0, 60, (int((~image[:, :5]).sum()),), generator=draw)
    noise.img_feats[~image[:, 5:]] = torch.randn(int((~image[:, 5:]).sum()), 10, generator=draw) * 50
    again = run(inputs=noise)
    for old, new, mask in (
        (sides[0].text.states, again[0].text.states, text),
        (sides[0].image.states, again[0].image.states, image),
        (sides[1].sequence, again[1].sequence, sides[1].mask),
    ):
        torch.testing.assert_close(new[mask], old[mask], rtol=1e-5, atol=1e-5)


def test_a_pair_is_the_same_in_any_batch_and_the_sides_can_be_encoded_apart() -> None:
    inputs, (sides, pairs) = golden_inputs(), run()
    rows = torch.tensor([3, 1])
    again = run(inputs=inputs.take(rows))
    torch.testing.assert_close(again[1].sequence, pairs.sequence[rows], rtol=1e-5, atol=1e-6)
    model = golden_model()
    with torch.no_grad():
        crossed = model.cross(sides.text.take(torch.tensor([0, 0])), sides.image.take(torch.tensor([0, 2])))
    torch.testing.assert_close(crossed.pooled[0], pairs.pooled[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(crossed.pooled[1], pairs.pooled[0], atol=1e-2)


def test_sides_have_unit_vectors_and_know_nothing_of_each_other() -> None:
    inputs, (sides, _) = golden_inputs(), run()
    for side in sides:
        torch.testing.assert_close(side.vector.norm(dim=1), torch.ones(4))
    other = run(inputs=inputs._replace(img_feats=inputs.img_feats + 1))[0]
    assert torch.equal(other.text.states, sides.text.states)
    assert not torch.allclose(other.image.states, sides.image.states, atol=1e-2)


def test_starting_weights_follow_the_configuration() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, hidden_size=64, vocab_size=2000, initializer_range=0.5, region_norm=False)
    model = MvptrModel(config)
    table = model.embeddings.word_embeddings.weight
    assert table[1:].std().item() == pytest.approx(0.5, rel=0.05)
    assert not table[0].any()
    assert model.text_projection.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert not model.region_embedding.bias.any()
    assert not any("region_norm" in name for name in model.state_dict())
    assert len(model.text_encoder.layer) == len(model.cross_encoder.layer) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_the_same_numbers() -> None:
    sides, pairs = run()
    with torch.no_grad():
        there = golden_model().cuda()(golden_inputs().to("cuda"))
    torch.testing.assert_close(there[1].sequence.cpu(), pairs.sequence, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there[0].image.vector.cpu(), sides.image.vector, rtol=1e-3, atol=1e-3)
