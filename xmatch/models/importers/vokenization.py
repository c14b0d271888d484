"""`BEST.pth` of Vokenization and Maria: the state dict of the joint model (golden `model.json`)."""

from __future__ import annotations

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.weights import State, plain_state, read_checkpoint

RENAMES = (
    ("text_tower.backbone.", "lang_model.backbone."),
    ("text_head.mlp.", "lang_model.mlp."),
    ("image_tower.backbone.", "visn_model.backbone."),
    ("image_head.mlp.", "visn_model.mlp."),
)
GPT_MASKS = r"^lang_model\.backbone\.h\.\d+\.attn\.(bias|masked_bias)$"
"""Constants that a GPT of the original's time stores beside its weights: the causal mask, and its value."""
UNUSED = rf"lang_model.*{mapping.BERT_UNUSED}|{GPT_MASKS}"
HINT = (
    "Give timm's name of the ResNet that was used (--image_name), and the text tower's name where it is no BERT "
    "(--text_name)."
)
MAX_LEN = {"vokenization": 20, "maria": 75}
"""Longest caption that each was trained with, special tokens included."""
DROPOUT = {"vokenization": 0.3, "maria": 0.2}


def import_vokenization(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_name: str = "resnext101_32x8d.tv_in1k",
    text_name: str | None = None,
) -> DualEncoder:
    """A `BEST.pth`; which of the two it is, widths and layers are read off the weights.

    Args:
        path: the state dict.
        tokenizer: the one of the text tower, such as BERT's.
        image_name: timm's name of the torchvision ResNet that was used.
        text_name: hub name or folder of the text tower where it is no BERT; the configuration alone is read.

    Returns:
        The model in eval mode, its towers frozen as published.

    Raises:
        InputError: the file cannot be read safely, or does not fit; lists the differences.
    """
    state = mapping.rename_bert_keys(plain_state(read_checkpoint(path), path))
    kind = "maria" if any(key.startswith("lang_model.mlp.linears.") for key in state) else "vokenization"
    first, last = ("mlp.linears.0", "mlp.linears.2") if kind == "maria" else ("mlp.0", "mlp.3")
    hidden, width = mapping.shape_of(state, f"lang_model.{first}.weight", path)
    dim = mapping.shape_of(state, f"lang_model.{last}.weight", path)[0]
    text = _text_architecture(state, text_name, path)
    layers = width // text.hidden_size
    if layers < 1 or layers * text.hidden_size != width:
        raise InputError(
            f"{path!r}: the text head takes {width} features, no multiple of the text tower's {text.hidden_size}."
        )
    mapping.check_tokenizer(tokenizer, text.vocab_size, path)
    head = HeadConfig(kind="maria" if kind == "maria" else "vokenization", hidden=hidden, dropout=DROPOUT[kind])
    config = DualEncoderConfig(
        dim=dim,
        pooling="cls",
        image=ImageTowerConfig(name=image_name, weights="none"),
        text=TextTowerConfig(name=text_name, layers=tuple(range(layers, 0, -1)), max_len=MAX_LEN[kind]),
        image_head=head,
        text_head=head,
    )
    model = mapping.assemble(config, tokenizer, text)
    mapping.fill(model, state, RENAMES, path, unused=UNUSED, hint=HINT)
    return model


def _text_architecture(state: State, name: str | None, where: str) -> PretrainedConfig:
    if name is None:
        return mapping.bert_shape(state, "lang_model.backbone.", where)
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the configuration of the text tower {name!r}: {error}") from error
    return found


def export_vokenization(model: DualEncoder) -> State:
    """The state dict that the original loads strictly.

    What a text tower of the original's time stores and never reads is made up: zeros for BERT's pooler, the positions'
    numbers, GPT's causal masks.

    Raises:
        InputError: the model is no Vokenization or Maria.
    """
    kinds = {model.config.text_head.kind, model.config.image_head.kind}
    if kinds not in ({"vokenization"}, {"maria"}) or model.config.image.kind != "timm":
        raise InputError(
            f"a BEST.pth has a torchvision ResNet and heads of Vokenization or Maria, not {sorted(kinds)}."
        )
    found = mapping.collect(model, RENAMES)
    state = {key: tensor for key, tensor in found.items() if not key.endswith("num_batches_tracked")}
    return state | _made_up(model.text_tower.backbone.config)


def _made_up(text: PretrainedConfig) -> State:
    """What a text tower of the original's time stores and never reads, or can be read off its sizes."""
    prefix, made = "lang_model.backbone.", State()
    if text.model_type == "bert":
        made[f"{prefix}pooler.dense.weight"] = torch.zeros(text.hidden_size, text.hidden_size)
        made[f"{prefix}pooler.dense.bias"] = torch.zeros(text.hidden_size)
    if text.model_type in ("bert", "roberta"):
        made[f"{prefix}embeddings.position_ids"] = torch.arange(text.max_position_embeddings)[None]
    for block in range(text.num_hidden_layers if text.model_type in ("gpt2", "openai-gpt") else 0):
        causal = torch.ones(text.n_positions, text.n_positions).tril()[None, None]
        is_2 = text.model_type == "gpt2"
        made[f"{prefix}h.{block}.attn.bias"] = causal.byte() if is_2 else causal
        if is_2:
            made[f"{prefix}h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return made
