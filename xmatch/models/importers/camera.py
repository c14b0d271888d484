"""`model_best.pth.tar` of CAMERA: gated self-attention over regions and words, and several views of an image.

The file is a dict {epoch, model: [image state, text state], best_rsum, best_r1, opt: argparse.Namespace, Eiters}.
"""

from __future__ import annotations

import argparse

from transformers import BertConfig, PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.weights import State, read_checkpoint

LONGEST = 32
"""Tokens of a caption, `--max_words`; shorter ones are padded to as many, and padding takes part."""
ATTENTION = {"query": "linears.0", "key": "linears.1", "value": "linears.2"} | {
    "gate_query": "fc_q",
    "gate_key": "fc_k",
    "gate": "fc_g",
}
"""Parts of our gated attention and the original's."""
LAYER_RENAMES = (
    *((f"reasoning.layers.0.attention.{ours}.", f"agsa.att_layers.0.{theirs}.") for ours, theirs in ATTENTION.items()),
    ("reasoning.layers.0.norm.", "agsa.bns.0."),
)
IMAGE_RENAMES = (
    ("image_head.fc.", "fc."),
    ("image_context.reasoning.position_gate.", "position_enc."),
    *((f"image_context.{ours}", theirs) for ours, theirs in LAYER_RENAMES),
    ("image_pool.convs.", "mvs.convs_dilate."),
    ("image_pool.score.", "mvs.convs_fc."),
)
TEXT_RENAMES = (
    ("text_tower.backbone.", "bert."),
    ("text_head.proj.", "mapping."),
    *((f"text_context.{ours}", theirs) for ours, theirs in LAYER_RENAMES),
    ("text_context.feed_forward.fc1.", "fc1."),
    ("text_context.feed_forward.fc2.", "fc2."),
    ("text_context.feed_forward.norm.", "bn."),
)
UNUSED = rf"^text bert.*{mapping.BERT_UNUSED}"


def import_camera(path: str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> DualEncoder:
    """A `model_best.pth.tar` or `checkpoint.pth.tar`.

    Args:
        path: the file; nothing but tensors, plain values and `argparse.Namespace` is read from it.
        tokenizer: BERT's.

    Returns:
        The model in eval mode, with the original's normalisation over regions, and padding taking part.

    Raises:
        InputError: the file cannot be read safely, does not fit, or the tokenizer is missing or another.
    """
    images, texts, options = mapping.halves_of(read_checkpoint(path, [argparse.Namespace]), path, "CAMERA")
    texts = mapping.rename_bert_keys(texts)
    if tokenizer is None:
        raise InputError(f"{path!r} has a BERT; give its tokenizer (--tokenizer).")
    mapping.check_tokenizer(tokenizer, mapping.shape_of(texts, "bert.embeddings.word_embeddings.weight", path)[0], path)
    architecture = mapping.bert_shape(texts, "bert.", path)
    config = camera_config(images, texts, architecture, int(options.get("max_words", LONGEST)), path)
    model = mapping.assemble(config, tokenizer, architecture)
    renames = mapping.half_renames(IMAGE_RENAMES, TEXT_RENAMES)
    mapping.fill(model, mapping.named_halves(images, texts), renames, path, unused=UNUSED)
    return model


def camera_config(images: State, texts: State, architecture: BertConfig, max_len: int, where: str) -> DualEncoderConfig:
    """Our configuration of the original's, from the shapes of its weights."""
    dim, width = mapping.shape_of(images, "fc.weight", where)
    heads = {name: _heads(half, dim, where) for name, half in (("image", images), ("text", texts))}
    return DualEncoderConfig(
        dim=dim,
        pooling="mean",
        image_pooling="views",
        views=mapping.shape_of(images, "mvs.convs_fc.weight", where)[0],
        image=ImageTowerConfig(kind="regions", output="grid", width=width),
        text=TextTowerConfig(
            name=None,
            layers=(1,),
            trainable=False,
            max_len=min(max_len, architecture.max_position_embeddings),
            padding="fixed",
        ),
        image_head=HeadConfig(kind="fc"),
        text_head=HeadConfig(kind="projection_bias"),
        image_context=ContextConfig(
            kind="gated_attention",
            heads=heads["image"],
            positions=True,
            normalise_before=True,
            normalise_after=True,
        ),
        text_context=ContextConfig(kind="gated_attention", heads=heads["text"], feed_forward=True),
        legacy_norm_axis=True,
        legacy_padding=True,
    )


def _heads(half: State, dim: int, where: str) -> int:
    return dim // mapping.shape_of(half, "agsa.att_layers.0.fc_q.weight", where)[0]
