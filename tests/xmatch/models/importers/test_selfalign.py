"""SelfAlign's checkpoints on both hosts: what they hold, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import golden
from small_originals import tiny_bert

from xmatch import DualEncoder
from xmatch.data.words import WordVocabulary
from xmatch.errors import InputError
from xmatch.models.context.positions import position_code
from xmatch.models.importers import mapping, selfalign
from xmatch.models.importers.selfalign import import_selfalign

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
VOCABULARY = WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", *"abcdef"))
WORDS = 34


def state_of(params: dict) -> dict[str, torch.Tensor]:
    """A state dict of golden parameters, with the counters that torch keeps beside running means."""
    state = {key: torch.tensor(value) for key, value in params.items()}
    means = [key for key in state if key.endswith("running_mean")]
    return state | {key.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for key in means}


def content_of(case: dict, **options) -> dict:
    """A checkpoint of a golden case."""
    texts = state_of(case["text_params"])
    if "mapping.weight" in texts:
        bert = tiny_bert(WORDS, layers=2).state_dict()
        texts |= {f"bert.{key}": value for key, value in bert.items()}
        texts["mapping.weight"] = torch.randn(4, 64)
    prototypes = {selfalign.PROTOTYPES: torch.randn(6, 4)}
    states = [state_of(case["image_params"]), texts, prototypes]
    return {"epoch": 3, "model": states, "best_rsum": 1.0, "opt": argparse.Namespace(**options), "Eiters": 7}


def load(content: object, tmp_path: Path, **given) -> DualEncoder:
    path = str(tmp_path / "model_best.pth.tar")
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch did then
    return import_selfalign(path, **given)


def vsrn_case() -> dict:
    return golden("selfalign")["vsrn_selfalign"]


def test_a_file_on_vsrn_scores_as_the_original_after_saving_too(tmp_path: Path) -> None:
    case = vsrn_case()
    model = load(content_of(case, ctx_relu=1), tmp_path, vocabulary=VOCABULARY)
    model.save_pretrained(str(tmp_path / "ours"))
    ids = torch.tensor(case["ids"])
    mask = torch.arange(ids.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    for found in (model, DualEncoder.from_pretrained(str(tmp_path / "ours"))):
        images = torch.from_numpy(found.encode_features(np.array(case["images"], np.float32)))
        with torch.no_grad():
            texts = found.embed_sentences(ids, mask.long())
        assert found.embedding_width == 12
        torch.testing.assert_close(images @ texts.T, torch.tensor(case["scores"]), **CLOSE)


def test_a_file_on_camera_gives_every_tensor_to_its_place(tmp_path: Path, tokenizer) -> None:
    case = golden("selfalign_camera")
    content = content_of(case, max_words=9, ctx_fc_relu=1)
    model = load(content, tmp_path, tokenizer=tokenizer)
    assert (model.config.text.max_len, model.config.views, model.image_shape) == (9, 3, (3, 12))
    renames = mapping.half_renames(selfalign.CAMERA_IMAGE, selfalign.CAMERA_TEXT)
    theirs = mapping.named_halves(*content["model"][:2])
    ours = mapping.collect(model, renames)
    unused = {key for key in theirs if "pooler" in key or key.endswith("position_ids")}
    assert set(ours) == set(theirs) - unused
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    positions = position_code(np.array(case["boxes_xyxy"]), np.array(case["imgs_wh"]))
    images = model.encode_features(np.array(case["images"], np.float32), positions=positions)
    views, local, fused = torch.tensor(case["final_image_views"]).split(4, dim=-1)  # in the original's order
    torch.testing.assert_close(torch.from_numpy(images), torch.cat([views, fused, local], -1), **CLOSE)


def test_what_does_not_fit_is_refused(tmp_path: Path, tokenizer) -> None:
    content = content_of(vsrn_case())
    with pytest.raises(InputError, match="give the vocabulary"):
        load(content, tmp_path)
    with pytest.raises(InputError, match="embeddings of 10 words, the vocabulary 5"):
        load(content, tmp_path, vocabulary=WordVocabulary(("<pad>", "<start>", "<end>", "<unk>", "a")))
    with pytest.raises(InputError, match="ctx_relu 0"):
        load(content | {"opt": argparse.Namespace(ctx_relu=0)}, tmp_path, vocabulary=VOCABULARY)
    with pytest.raises(InputError, match="import it as vsrn or camera"):
        load(content | {"model": content["model"][:2]}, tmp_path, vocabulary=VOCABULARY)
    with pytest.raises(InputError, match=r"v_prototypes.weight alone, got \['other'\]"):
        load(content | {"model": [*content["model"][:2], {"other": torch.ones(1)}]}, tmp_path, vocabulary=VOCABULARY)
    images = {key: value for key, value in content["model"][0].items() if key != "ctx_fc.weight"}
    images["ctx_fcc.weight"] = torch.ones(4, 4)
    with pytest.raises(InputError, match=r"ctx_fc\.weight"):
        load(content | {"model": [images, *content["model"][1:]]}, tmp_path, vocabulary=VOCABULARY)
    with pytest.raises(InputError, match="give its tokenizer"):
        load(content_of(golden("selfalign_camera")), tmp_path)
