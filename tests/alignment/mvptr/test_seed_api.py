"""The original's class: its argument names, its three outputs, both shapes of what its page and its program say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mvptr_cases import CLOSE, TINY, golden, golden_inputs, golden_state, tiny_tokenizer, write_original

from alignment.mvptr import BiImageBertRep
from alignment.mvptr.checkpoints import Saved, save
from alignment.mvptr.heads import HeadConfig, build
from xmatch.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BiImageBertRep:
    folder = write_original(tmp_path_factory.mktemp("original"), golden_state())
    return BiImageBertRep.from_pretrained(folder, lengths=TINY.lengths)


def test_the_three_outputs_are_those_of_the_original(model: BiImageBertRep) -> None:
    expected = golden("forward")["outputs"]
    with torch.no_grad():
        sequence, pooled, (text, vision) = model(**golden_inputs()._asdict(), max_tag_length=5)
    for found, name in (
        (sequence, "sequence_output"),
        (pooled, "pooled_output"),
        (text, "txt_encoder_output"),
        (vision, "vis_encoder_output"),
    ):
        torch.testing.assert_close(found, torch.tensor(expected[name]), **CLOSE)
    assert (sequence.shape, text.shape, vision.shape) == ((4, 9 + 4, 8), (4, 9, 8), (4, 5 + 4, 8))


def test_segments_may_cover_the_regions_too_and_the_mask_the_tags_alone(model: BiImageBertRep) -> None:
    inputs = golden_inputs()
    shown = inputs.attention_mask_b[:, 5:, None]
    inputs = inputs._replace(img_feats=inputs.img_feats * shown)
    with torch.no_grad():
        plain = model(**inputs._asdict())[0]
        long = torch.cat([inputs.token_type_ids_b, torch.ones(4, 4, dtype=torch.int64)], dim=1)
        assert torch.equal(model(**inputs._replace(token_type_ids_b=long)._asdict())[0], plain)
        short = inputs._replace(attention_mask_b=inputs.attention_mask_b[:, :5])
        assert torch.equal(model(**short._asdict())[0], plain)


def test_what_is_left_out_is_zero_or_there(model: BiImageBertRep) -> None:
    inputs = golden_inputs()
    inputs = inputs._replace(img_feats=inputs.img_feats + 0.1)
    zeros, ones = torch.zeros_like(inputs.input_ids_b), torch.ones(4, 9, dtype=torch.int64)
    with torch.no_grad():
        few = model(inputs.input_ids_a, input_ids_b=inputs.input_ids_b, img_feats=inputs.img_feats)[1]
        full = inputs._replace(attention_mask_a=ones, attention_mask_b=ones, token_type_ids_b=zeros)
        torch.testing.assert_close(few, model(**full._asdict())[1])


def test_a_wrong_slice_or_a_missing_side_is_refused(model: BiImageBertRep) -> None:
    inputs = golden_inputs()._asdict()
    with pytest.raises(InputError, match="max_tag_length 3: this model has 5 places for tags"):
        model(**inputs, max_tag_length=3)
    with pytest.raises(InputError, match="both input_ids_b"):
        model(inputs["input_ids_a"], img_feats=inputs["img_feats"])


def test_our_own_folders_are_read_too(tmp_path: Path) -> None:
    saved = build(TINY, HeadConfig(task="retrieval")).eval()
    save(str(tmp_path), Saved(saved, tiny_tokenizer()))
    model = BiImageBertRep.from_pretrained(str(tmp_path))
    assert not model.training
    with torch.no_grad():
        found = model(**golden_inputs()._asdict())[1]
        torch.testing.assert_close(found, saved.mvptr(golden_inputs())[1].pooled)
