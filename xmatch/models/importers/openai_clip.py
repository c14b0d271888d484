"""The plain state dict of OpenAI's CLIP, and AGREE's `epoch_N.pt`, which holds one.

OpenAI's names become transformers' names first: attention's fused input projection is cut in three, and the two
projections into the shared space are transposed.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.importers import clip, mapping
from xmatch.models.towers.weights import State, plain_state, read_checkpoint, require_same, wrapped

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
HALVED = r"\.(in_proj|out_proj|c_fc|c_proj)[._](weight|bias)$|^visual\.(conv1\.weight|proj)$|^text_projection$"
"""What OpenAI stores in half precision."""
OPENAI_UNUSED = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold beside the weights."""


def from_openai(state: State) -> State:
    """OpenAI's weights under transformers' names; names that are not OpenAI's stay."""
    found: State = {}
    for key, value in state.items():
        name = _swap(key, [(theirs, ours) for ours, theirs in OPENAI_NAMES], [(b, a) for a, b in OPENAI_PARTS])
        fused = re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name)
        if fused:
            found |= {f"{fused[1]}{q}_proj.{fused[2]}": part for q, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            found[name] = value.t() if name in TRANSPOSED else value
    return found


def to_openai(state: State) -> State:
    """Transformers' CLIP weights under OpenAI's names."""
    found: State = {}
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


def openai_shape(state: State, where: str) -> CLIPConfig:
    """The configuration of OpenAI's CLIP from the shapes of its weights.

    Raises:
        InputError: it is no CLIP with a vision transformer.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise InputError(f"{where!r} has a ResNet as image half; import a CLIP with a vision transformer (ViT-…).")
    width, _, patch, _ = mapping.shape_of(state, "visual.conv1.weight", where, axes=4)
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
    return _import_openai(plain_state(read_checkpoint(path), path), tokenizer, path)


def _import_openai(state: State, tokenizer: PreTrainedTokenizerBase, where: str) -> DualEncoder:
    whole = openai_shape(state, where)
    model = clip.assemble(clip.settings_of(whole, "clip", "", {}), tokenizer, whole, where)
    weights = {key: value for key, value in state.items() if key not in OPENAI_UNUSED}
    require_same(weights, to_openai(mapping.collect(model, clip.CLIP_RENAMES)), where, "")
    mapping.fill(model, from_openai(weights), clip.CLIP_RENAMES, where)
    return model


def export_openai_clip(model: DualEncoder) -> State:
    """The state dict of OpenAI's CLIP.

    OpenAI stores linear and convolutional weights in half precision, and the rest in float32; so do we where all of
    them are such numbers, as after an import, and else, after training, float32 for all. It loads either.

    Raises:
        InputError: the model is no CLIP, or not of OpenAI's architecture.
    """
    towers = (model.text_tower, model.image_tower)
    if clip.kind_of(model) != "clip" or any(t.backbone.config.hidden_act != "quick_gelu" for t in towers):
        raise InputError("OpenAI's CLIP has the activation quick_gelu and plain projections; this model has not.")
    state = to_openai(clip.export_clip(model))
    halves = {key: value.half() for key, value in state.items() if re.search(HALVED, key)}
    is_exact = all(torch.equal(half.float(), state[key]) for key, half in halves.items())
    return state | halves if is_exact else state


def import_agree(path: str, tokenizer: PreTrainedTokenizerBase) -> DualEncoder:
    """AGREE's `epoch_N.pt`, a dict {epoch, name, state_dict, optimizer} around OpenAI's state dict.

    Raises:
        InputError: the file cannot be read safely, or does not fit.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(
            f"{path!r} is no checkpoint of AGREE: expected a dict with epoch, name, state_dict, optimizer."
        )
    return _import_openai(plain_state(content["state_dict"], path), tokenizer, path)


def export_agree(model: DualEncoder, epoch: int = 0) -> dict[str, Any]:
    """What `torch.save` writes as AGREE's `epoch_N.pt`; the optimizer's state is empty."""
    state = wrapped(export_openai_clip(model))
    return {"epoch": epoch, "name": "vokenray", "state_dict": state, "optimizer": {}}
