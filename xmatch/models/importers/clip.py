"""CLIP and SigLIP of transformers."""

from __future__ import annotations

import re
import tempfile
from typing import Any, Literal

import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
)

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers import clip
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.weights import State, difference

CLIP_RENAMES = (
    ("text_tower.backbone.", "text_model."),
    ("image_tower.backbone.", "vision_model."),
    ("text_head.proj.", "text_projection."),
    ("image_head.proj.", "visual_projection."),
    ("logit_scale", "logit_scale"),
)
SIGLIP_RENAMES = (
    ("text_tower.backbone.", "text_model."),
    ("image_tower.backbone.", "vision_model."),
    ("text_head.proj.", "text_model.head."),
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
)
RENAMES = {"clip": CLIP_RENAMES, "siglip": SIGLIP_RENAMES}
UNUSED = r"embeddings\.position_ids$"
MEAN = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
STD = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}


def import_clip(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> DualEncoder:
    """A CLIP or SigLIP of transformers.

    Args:
        name: folder or hub name.
        tokenizer: None: the one beside the weights.

    Returns:
        The model in eval mode, all of it trainable.

    Raises:
        InputError: it cannot be had, is of another kind, or weights are missing from it.
    """
    whole = clip.read_whole_config(name)
    kind: Literal["clip", "siglip"] = "siglip" if whole.model_type == "siglip" else "clip"
    loaded, info = _load_whole(name)
    missing, unexpected = (
        {key for key in info[f"{side}_keys"] if not re.search(UNUSED, key)} for side in ("missing", "unexpected")
    )
    shapes = [f"{key} is {tuple(found)}, expected {tuple(own)}" for key, found, own in info["mismatched_keys"]]
    if missing or unexpected or shapes:
        raise InputError(
            f"{name!r} is no whole {kind}: {difference(missing, unexpected, shapes)} Give the model that was trained "
            "on images and texts, not one half or a classifier made of it."
        )
    config = settings_of(whole, kind, name, _processor(name))
    found = tokenizer if tokenizer is not None else _tokenizer(name)
    model = assemble(config, found, whole, name)
    mapping.fill(model, loaded.state_dict(), RENAMES[kind], name, unused=UNUSED)
    return model


def _load_whole(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        loaded: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except Exception as error:
        raise InputError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    return loaded


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name!r} has no tokenizer that can be read; give one (--tokenizer).") from error
    return found


def _processor(name: str) -> dict[str, Any]:
    """The image processor's settings beside a model; empty where there are none."""
    try:
        found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except OSError:
        return {}
    return found


def settings_of(
    whole: PretrainedConfig, kind: Literal["clip", "siglip"], name: str, processor: dict[str, Any]
) -> DualEncoderConfig:
    """Our configuration of a CLIP or SigLIP.

    Args:
        whole: its own.
        kind: which of the two.
        name: folder or hub name; empty where there is none.
        processor: its image processor's settings; what they do not say is as published.
    """
    size = int(whole.vision_config.image_size)
    mean, std = (
        tuple(processor.get(key, standard)) for key, standard in (("image_mean", MEAN[kind]), ("image_std", STD[kind]))
    )
    text = TextTowerConfig(
        name=name or None,
        layers=(1,),
        trainable=True,
        max_len=int(whole.text_config.max_position_embeddings),
        padding="max_length" if kind == "siglip" else "longest",
    )
    image = ImageTowerConfig(
        kind="clip",
        name=name or "clip",
        weights="none",
        trainable="all",
        image_size=size,
        resize=size,
        crop="stretch" if kind == "siglip" else "center",
        interpolation="bicubic" if processor.get("resample", 3) == 3 else "bilinear",
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
    is_clip = kind == "clip"
    return DualEncoderConfig(
        dim=int(whole.projection_dim if is_clip else whole.vision_config.hidden_size),
        pooling="last",
        image=image,
        text=text,
        image_head=HeadConfig(kind="projection" if is_clip else "identity"),
        text_head=HeadConfig(kind="projection" if is_clip else "projection_bias"),
    )


def assemble(
    config: DualEncoderConfig, tokenizer: PreTrainedTokenizerBase, whole: PretrainedConfig, where: str
) -> DualEncoder:
    """A CLIP or SigLIP to be filled, in eval mode.

    Raises:
        InputError: the tokenizer has more words than the model; names `where`.
    """
    mapping.check_tokenizer(tokenizer, int(whole.text_config.vocab_size), where)
    return mapping.assemble(config, tokenizer, whole.text_config, whole.vision_config)


def kind_of(model: DualEncoder) -> Literal["clip", "siglip"]:
    """Which of the two a model is.

    Raises:
        InputError: neither.
    """
    heads = (model.config.image_head.kind, model.config.text_head.kind)
    types = (
        {str(getattr(tower.backbone.config, "model_type", "")) for tower in (model.image_tower, model.text_tower)}
        if (model.config.image.kind == "clip")
        else set()
    )
    for kind, expected in (("clip", ("projection", "projection")), ("siglip", ("identity", "projection_bias"))):
        if types == {f"{kind}_vision_model", f"{kind}_text_model"} and heads == expected:
            return "clip" if kind == "clip" else "siglip"
    raise InputError(f"the model is no CLIP or SigLIP: its towers are {sorted(types)}, its heads {heads}.")


def export_clip(model: DualEncoder) -> State:
    """The state dict of transformers' CLIPModel or SiglipModel.

    Raises:
        InputError: the model is of another kind.
    """
    kind = kind_of(model)
    state = mapping.collect(model, RENAMES[kind])
    if kind == "siglip":
        state |= {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    return state


def write_clip(model: DualEncoder, folder: str) -> None:
    """Write what transformers' CLIPModel or SiglipModel, its tokenizer and its image processor load.

    Args:
        model: a CLIP or SigLIP.
        folder: local or a URI; files there are replaced.

    Raises:
        InputError: the model is of another kind.
    """
    state, kind = export_clip(model), kind_of(model)
    text, image = model.text_tower.backbone.config, model.image_tower.backbone.config
    whole: Any
    if kind == "clip":
        halves = {"text_config": text.to_dict(), "vision_config": image.to_dict()}
        whole = CLIPModel(CLIPConfig(**halves, projection_dim=model.config.dim))
    else:
        whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=image.to_dict()))
    whole.load_state_dict(state)
    with tempfile.TemporaryDirectory() as local:
        whole.save_pretrained(local)
        model.tokenizer.save_pretrained(local)
        files.write_json(files.join(local, "preprocessor_config.json"), _processor_of(model.config.image, kind))
        files.copy_folder(local, folder)


def _processor_of(image: ImageTowerConfig, kind: str) -> dict[str, Any]:
    """The settings of transformers' image processor that does what our evaluation transform does."""
    size, is_clip = image.image_size, kind == "clip"
    cropped = {"do_center_crop": True, "crop_size": {"height": size, "width": size}} if is_clip else {}
    return cropped | {
        "image_processor_type": "CLIPImageProcessor" if is_clip else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image.resize} if is_clip else {"height": size, "width": size},
        "resample": {"bicubic": 3, "bilinear": 2}[image.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
