"""CAMERA's encoders, put together of our parts, give the original's numbers; and what we do otherwise by default."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import golden, tiny_model_object, tiny_vocabulary

from xmatch.data.region_places import position_code
from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.context.gated_attention import GatedAttentionContext
from xmatch.models.context.positions import PositionGate, grid_positions
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import camera, mapping
from xmatch.models.members import Masks
from xmatch.models.set_poolings import ViewsPooling
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.losses import pair_scores

OLD_SETTINGS = {
    "dim",
    "pooling",
    "image_pooling",
    "image",
    "text",
    "image_head",
    "text_head",
    "logit_scale",
    "logit_bias",
}
OLD_SETTINGS |= {"scale_features", "padding_in_batch_norm"}
"""Settings of a model before there were contexts."""
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
GOLDEN, IMAGE, TEXT = golden("camera"), golden("camera_image_encoder"), golden("selfalign_camera")


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def both(mask: torch.Tensor) -> Masks:
    return Masks(mask, mask)


def attention() -> GatedAttentionContext:
    case = GOLDEN["agsa"]
    context = GatedAttentionContext(case["embed"], ContextConfig(kind="gated_attention", heads=case["heads"]))
    renames = [(ours.removeprefix("reasoning."), f"{theirs}") for ours, theirs in camera.LAYER_RENAMES]
    mapping.fill(context, {f"agsa.{k}": v for k, v in tensors(case["params"]).items()}, renames, "agsa")
    return context.eval()


class Given(torch.nn.Module):
    """Stands in for the position gate: the codes themselves."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return positions


@pytest.mark.parametrize("case", ["eval_no_pos", "eval_pos", "eval_pos_mask", "train_pos"])
def test_gated_attention_is_the_originals(case: str) -> None:
    given, context = GOLDEN["agsa"], attention().train("train" in case)
    regions, whole = torch.tensor(given["regions"]), torch.ones(2, 5, dtype=torch.bool)
    if "no_pos" not in case:
        context.position_gate = Given()
    mask = torch.tensor(given["mask"])[:, 0, 0].bool() if "mask" in case else whole
    with torch.no_grad():
        found = context(regions, both(mask), torch.tensor(given["pos"]))
    torch.testing.assert_close(found[mask], torch.tensor(given[case])[mask], **CLOSE)


def test_position_codes_are_the_originals() -> None:
    case = GOLDEN["position"]
    code = position_code(np.array(case["boxes_xyxy"]), np.array(case["imgs_wh"]))
    np.testing.assert_allclose(code, np.array(case["absolute6"]), atol=2e-5, rtol=1e-4)
    gate = PositionGate(6)
    gate.load_state_dict(tensors(case["params"]))
    with torch.no_grad():
        torch.testing.assert_close(gate(torch.from_numpy(code)), torch.tensor(case["encoded"]), **CLOSE)


def test_cells_of_a_grid_are_boxes_of_a_square_image() -> None:
    corners = [[x, y, x + 50, y + 50] for y in (0, 50) for x in (0, 50)]
    np.testing.assert_allclose(grid_positions(4), position_code(np.array(corners), np.array([100, 100])), atol=1e-6)
    with pytest.raises(InputError, match="no square grid"):
        grid_positions(6)


def test_the_summariser_is_the_originals() -> None:
    case = golden("camera_summarization")
    pooling = ViewsPooling(case["embed"], case["k"])
    renames = [("convs.", "convs_dilate."), ("score.", "convs_fc.")]
    mapping.fill(pooling, tensors(case["params"]), renames, "summarization")
    regions = torch.tensor(case["regions"])
    with torch.no_grad():
        scores = pooling.scores(regions, torch.ones(regions.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(scores, torch.tensor(case["smry_mat"]), **CLOSE)


def test_scores_are_the_greatest_of_the_views() -> None:
    case = GOLDEN["multiview"]
    for shape in ("square", "rect"):
        found = pair_scores(torch.tensor(case[f"caps_{shape}"]), torch.tensor(case["imgs"]))
        torch.testing.assert_close(found.T, torch.tensor(case[f"scores_{shape}"]), **CLOSE)


def config(**changes) -> DualEncoderConfig:
    """CAMERA in the sizes of the goldens, in its own ways."""
    settings = {
        "dim": IMAGE["embed"],
        "pooling": "mean",
        "image_pooling": "views",
        "views": IMAGE["k"],
        "image": ImageTowerConfig(kind="regions", output="grid", width=IMAGE["img_dim"]),
        "image_head": HeadConfig(kind="fc"),
        "image_context": ContextConfig(
            kind="gated_attention", heads=IMAGE["heads"], positions=True, normalise_before=True, normalise_after=True
        ),
        "text": TextTowerConfig(name=None, layers=(1,), hidden_size=6, num_layers=1, num_heads=2),
        "text_head": HeadConfig(kind="projection_bias"),
        "text_context": ContextConfig(kind="gated_attention", heads=IMAGE["heads"], feed_forward=True),
        "legacy_norm_axis": True,
        "legacy_padding": True,
    }
    return DualEncoderConfig(**(settings | changes))


def encoder(**changes) -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder.from_config(config(**changes), tiny_vocabulary()).eval()
    mapping.fill(model, tensors(IMAGE["params"]), camera.IMAGE_RENAMES, "image")
    return model


def regions() -> tuple[torch.Tensor, torch.Tensor]:
    code = position_code(np.array(IMAGE["boxes_xyxy"]), np.array(IMAGE["imgs_wh"]))
    return torch.tensor(IMAGE["images"], dtype=torch.float32), torch.from_numpy(code)


def test_image_encoder_is_the_originals() -> None:
    features, code = regions()
    with torch.no_grad():
        parts = encoder().image_parts(features, None, code)
    torch.testing.assert_close(parts.embeddings, torch.tensor(IMAGE["views"]), **CLOSE)
    torch.testing.assert_close(parts.view_scores, torch.tensor(IMAGE["smry_mat"]), **CLOSE)


def test_text_encoder_is_the_originals() -> None:
    """From BERT's hidden states, which the golden case gives, with the normalisation that SelfAlign adds."""
    changed = ContextConfig(kind="gated_attention", heads=2, feed_forward=True, normalise_before=True)
    model = encoder(text_context=changed)
    own = {k: v for k, v in tensors(TEXT["text_params"]).items() if not k.startswith(("ctx_", "fusion_"))}
    mapping.fill(model, own, [pair for pair in camera.TEXT_RENAMES if pair[1] != "bert."], "text")
    hidden = torch.tensor(TEXT["bert_hidden"])
    with torch.no_grad():
        parts = model.text_parts_from_features(hidden, torch.ones(hidden.shape[:2]))
    torch.testing.assert_close(parts.words, torch.tensor(TEXT["text"]["mapping_l2_over_tokens"]), **CLOSE)
    torch.testing.assert_close(parts.states, torch.tensor(TEXT["text"]["agsa"]), **CLOSE)
    torch.testing.assert_close(parts.embeddings, torch.tensor(TEXT["text"]["cap_emb"]), **CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_padding_never_matters(training: bool) -> None:
    features, code = regions()
    mask = torch.tensor([[True, True, True], [False, True, True]])
    more = torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], 1)
    found = []
    for junk in (0.0, 30.0, float("nan")):
        model = encoder(legacy_norm_axis=False, legacy_padding=False).train(training)
        rows, places = (
            torch.cat([torch.where(mask[..., None], part, torch.tensor(junk)), torch.full((2, 2, n), junk)], 1)
            for part, n in ((features, 4), (code, 6))
        )
        with torch.no_grad():
            parts = model.image_parts(rows, more, places)
        assert not parts.view_scores[~more].any()
        found.append(parts.embeddings)
        torch.testing.assert_close(found[-1], found[0], **CLOSE)
    torch.testing.assert_close(found[0].norm(dim=-1), torch.ones(2, 3))
    if not training:
        with torch.no_grad():
            alone = model.image_embeddings_from_features(features[1:, 1:], None, code[1:, 1:])
        torch.testing.assert_close(alone, found[0][1:], **CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_padded_words_never_matter(training: bool) -> None:
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    mask, longer = (ids != 0).long(), torch.nn.functional.pad(ids, (0, 4))
    found = []
    for tokens in (ids, longer):
        model = encoder(legacy_norm_axis=False, legacy_padding=False).train(training)
        with torch.no_grad():
            found.append(model.embed_sentences(tokens, torch.nn.functional.pad(mask, (0, tokens.shape[1] - 5))))
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    with torch.no_grad():
        counted = encoder(legacy_padding=True).embed_sentences(longer, torch.nn.functional.pad(mask, (0, 4)))
    assert (counted - found[0]).abs().max() > 1e-3


def test_attention_follows_the_order_of_the_regions() -> None:
    features, code = regions()
    order = torch.tensor([2, 0, 1])
    model = encoder(legacy_norm_axis=False, legacy_padding=False)
    with torch.no_grad():
        here, there = (
            model.image_parts(f, None, c) for f, c in ((features, code), (features[:, order], code[:, order]))
        )
    torch.testing.assert_close(there.states, here.states[:, order], **CLOSE)


def test_missing_positions_are_asked_for() -> None:
    with pytest.raises(InputError, match="boxes and image sizes"):
        encoder().image_parts(regions()[0])


def test_a_tower_without_sets_is_refused() -> None:
    pooled = ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=32, resize=36)
    with pytest.raises(InputError, match="output=grid"):
        DualEncoder.from_config(config(image=pooled), tiny_vocabulary())


def test_a_saved_model_is_the_same_without_what_only_training_needs(tmp_path) -> None:
    model = encoder()
    model.training_only["extra"] = torch.nn.Linear(2, 2)
    model.save_pretrained(str(tmp_path))
    again = DualEncoder.from_pretrained(str(tmp_path))
    assert again.config == replace(model.config, image=again.config.image)
    assert not [name for name in again.state_dict() if name.startswith("training_only")]
    features, code = regions()
    found, expected = (m.encode_features(features.numpy(), None, positions=code.numpy()) for m in (again, model))
    assert found.shape == (2, *model.image_shape) == (2, 3, 4)
    np.testing.assert_array_equal(found, expected)


def test_models_saved_before_there_were_contexts_still_load(tmp_path) -> None:
    model = tiny_model_object()
    model.save_pretrained(str(tmp_path))
    settings, new = json.loads((tmp_path / "config.json").read_text()), set(asdict(model.config)) - OLD_SETTINGS
    assert len(new) == 7
    for name in new:
        del settings[name]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    again = DualEncoder.from_pretrained(str(tmp_path))
    np.testing.assert_array_equal(again.encode_texts(["a dog"]), model.encode_texts(["a dog"]))
    assert not [name for name in again.state_dict() if "context" in name]


def test_cells_of_a_grid_tower_know_where_they_lie(image_folder: str) -> None:
    image = ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=64, resize=72, output="grid")
    model = DualEncoder.from_config(config(image=image), tiny_vocabulary()).eval()
    found = model.encode_images([f"{image_folder}/a.jpg", f"{image_folder}/b.jpg"])
    pixels = torch.stack([model.image_tower.transform(train=False)(Image.open(f"{image_folder}/a.jpg").convert("RGB"))])
    with torch.no_grad():
        features = model.image_features(pixels)
    places = grid_positions(features.shape[1])[None]
    np.testing.assert_allclose(model.encode_features(features.numpy(), None, positions=places)[0], found[0], atol=1e-5)
    assert found.shape == (2, 3, 4)
