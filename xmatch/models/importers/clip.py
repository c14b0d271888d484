"""CLIP and SigLIP of transformers, the plain state dict of OpenAI's CLIP, and AGREE's `epoch_N.pt`.

OpenAI's names become transformers' names first: attention's fused input projection is cut in three, and the two
projections into the shared space are transposed.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
)

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers import clip
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

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

OPENAI_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    ("logit_scale", "logit_scale"),
)
OPENAI_PARTS = (
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
OPENAI_UNUSED = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold beside the weights."""


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
    missing = {key for key in info["missing_keys"] if not re.search(UNUSED, key)}
    if missing or info["mismatched_keys"]:
        shapes = [str(key) for key in info["mismatched_keys"]]
        raise InputError(f"{name!r} is no whole {kind}: {mapping.difference(missing, [], shapes)}")
    config = _settings(whole, kind, name, _processor(name))
    found = tokenizer if tokenizer is not None else _tokenizer(name)
    return _assemble(config, found, whole, loaded.state_dict(), name)


def _load_whole(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        loaded: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32
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


def _settings(
    whole: PretrainedConfig, kind: Literal["clip", "siglip"], name: str, processor: dict[str, Any]
) -> DualEncoderConfig:
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


def _assemble(
    config: DualEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    whole: PretrainedConfig,
    state: mapping.State,
    where: str,
) -> DualEncoder:
    mapping.check_tokenizer(tokenizer, int(whole.text_config.vocab_size), where)
    model = mapping.assemble(config, tokenizer, whole.text_config, whole.vision_config)
    mapping.fill(model, state, RENAMES[whole.model_type], where, UNUSED)
    return model


def _kind(model: DualEncoder) -> Literal["clip", "siglip"]:
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


def export_clip(model: DualEncoder) -> mapping.State:
    """The state dict of transformers' CLIPModel or SiglipModel.

    Raises:
        InputError: the model is of another kind.
    """
    kind = _kind(model)
    state = mapping.collect(model, RENAMES[kind])
    if kind == "siglip":
        state |= {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    return state


def write_clip(model: DualEncoder, folder: str) -> None:
    """Write a folder that transformers' CLIPModel or SiglipModel loads, with the tokenizer."""
    state = export_clip(model)
    text, image = model.text_tower.backbone.config, model.image_tower.backbone.config
    whole: Any
    if _kind(model) == "clip":
        halves = {"text_config": text.to_dict(), "vision_config": image.to_dict()}
        whole = CLIPModel(CLIPConfig(**halves, projection_dim=model.config.dim))
    else:
        whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=image.to_dict()))
    whole.load_state_dict(state)
    whole.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def from_openai(state: mapping.State) -> mapping.State:
    """OpenAI's weights under transformers' names; names that are not OpenAI's stay."""
    found: mapping.State = {}
    for key, value in state.items():
        if key in OPENAI_UNUSED:
            continue
        name = _swap(key, [(theirs, ours) for ours, theirs in OPENAI_NAMES], [(b, a) for a, b in OPENAI_PARTS])
        fused = re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name)
        if fused:
            found |= {f"{fused[1]}{q}_proj.{fused[2]}": part for q, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            found[name] = value.t() if name in TRANSPOSED else value
    return found


def to_openai(state: mapping.State) -> mapping.State:
    """Transformers' CLIP weights under OpenAI's names."""
    found: mapping.State = {}
    for key, value in state.items():
        name = _swap(key, OPENAI_NAMES, OPENAI_PARTS)
        part = re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", name)
        if part is None:
            found[name] = value.t().contiguous() if key in TRANSPOSED else value
        elif part[2] == "q":
            rows = [state[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            found[f"{part[1]}in_proj_{part[3]}"] = torch.cat(rows)
    return found


def _swap(key: str, beginnings: mapping.Renames, parts: mapping.Renames) -> str:
    name = mapping.original_name(key, beginnings) or key
    for old, new in parts if ".layers." in name or ".resblocks." in name else ():
        name = name.replace(old, new)
    return name


def openai_shape(state: mapping.State, where: str) -> CLIPConfig:
    """The configuration of OpenAI's CLIP from the shapes of its weights.

    Raises:
        InputError: it is no CLIP with a vision transformer.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise InputError(f"{where!r} has a ResNet as image half; import a CLIP with a vision transformer (ViT-…).")
    width, _, patch, _ = mapping.shape_of(state, "visual.conv1.weight", where)
    cells = mapping.shape_of(state, "visual.positional_embedding", where)[0] - 1
    text_width, dim = mapping.shape_of(state, "text_projection", where)
    words = mapping.shape_of(state, "token_embedding.weight", where)[0]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=mapping.count_blocks(state, "visual.transformer.resblocks."),
        num_attention_heads=max(1, width // mapping.HEAD_WIDTH),
        image_size=patch * round(cells**0.5),
        patch_size=patch,
        hidden_act="quick_gelu",
        projection_dim=dim,
    )
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=mapping.count_blocks(state, "transformer.resblocks."),
        num_attention_heads=max(1, text_width // mapping.HEAD_WIDTH),
        max_position_embeddings=mapping.shape_of(state, "positional_embedding", where)[0],
        hidden_act="quick_gelu",
        projection_dim=dim,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=0,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=dim)


def import_openai_clip(path: str, tokenizer: PreTrainedTokenizerBase) -> DualEncoder:
    """A plain state dict of OpenAI's CLIP, half precision or not.

    Args:
        path: the file; a TorchScript archive, the form that OpenAI gives out, is refused and says how to convert it.
        tokenizer: CLIP's; it ends every text with the end token, also a text that is cut.

    Returns:
        The model in eval mode, all of it trainable.

    Raises:
        InputError: the file cannot be read safely, or does not fit.
    """
    return _import_openai(mapping.plain_state(mapping.read_checkpoint(path), path), tokenizer, path)


def _import_openai(state: mapping.State, tokenizer: PreTrainedTokenizerBase, where: str) -> DualEncoder:
    whole = openai_shape(state, where)
    return _assemble(_settings(whole, "clip", "", {}), tokenizer, whole, from_openai(state), where)


def export_openai_clip(model: DualEncoder) -> mapping.State:
    """The state dict of OpenAI's CLIP, in float32.

    Raises:
        InputError: the model is no CLIP, or not of OpenAI's architecture.
    """
    towers = (model.text_tower, model.image_tower)
    if _kind(model) != "clip" or any(t.backbone.config.hidden_act != "quick_gelu" for t in towers):
        raise InputError("OpenAI's CLIP has the activation quick_gelu and plain projections; this model has not.")
    return to_openai(export_clip(model))


def import_agree(path: str, tokenizer: PreTrainedTokenizerBase) -> DualEncoder:
    """AGREE's `epoch_N.pt`, a dict {epoch, name, state_dict, optimizer} around OpenAI's state dict.

    Raises:
        InputError: the file cannot be read safely, or does not fit.
    """
    content = mapping.read_checkpoint(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(
            f"{path!r} is no checkpoint of AGREE: expected a dict with epoch, name, state_dict, optimizer."
        )
    return _import_openai(mapping.plain_state(content["state_dict"], path), tokenizer, path)


def export_agree(model: DualEncoder, epoch: int = 0) -> dict[str, Any]:
    """What `torch.save` writes as AGREE's `epoch_N.pt`; the optimizer's state is empty."""
    state = mapping.wrapped(export_openai_clip(model))
    return {"epoch": epoch, "name": "vokenray", "state_dict": state, "optimizer": {}}
