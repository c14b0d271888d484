"""`model_best.pth.tar` of VSRN: graph convolutions and a GRU over regions, and a GRU over words.

The file is a dict {epoch, model: [image state, text state], best_rsum, opt: argparse.Namespace, Eiters}; the caption
generator is not in it. A model with a BatchNorm on the image is the one of Flickr30k, which does not normalise the
regions before the graph convolutions; the one of COCO does.
"""

from __future__ import annotations

import argparse

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.weights import State, read_checkpoint

BLOCKS = 4
LONGEST = 512
"""Tokens of a caption: the original cuts none where it embeds."""
PARTS = {"theta": "theta", "phi": "phi", "g": "g", "out": "W.0", "norm": "W.1"}
"""Parts of one of our graph blocks and the original's."""
BLOCK_RENAMES = tuple(
    (f"image_context.reasoning.blocks.{block}.{ours}.", f"Rs_GCN_{block + 1}.{theirs}.")
    for block in range(BLOCKS)
    for ours, theirs in PARTS.items()
)
IMAGE_RENAMES = (
    ("image_head.fc.", "fc."),
    ("image_pool.rnn.", "img_rnn."),
    ("image_pool.norm.", "bn."),
    *BLOCK_RENAMES,
)
TEXT_RENAMES = (("text_tower.backbone.", ""),)


def import_vsrn(path: str, *, vocabulary: WordVocabulary | None = None) -> DualEncoder:
    """A `model_best.pth.tar` or `checkpoint.pth.tar`.

    Args:
        path: the file; nothing but tensors, plain values and `argparse.Namespace` is read from it.
        vocabulary: of its training data (a pickled one becomes JSON by `convert --what legacy`).

    Returns:
        The model in eval mode, with the original's normalisation over the regions.

    Raises:
        InputError: the file cannot be read safely, does not fit, or the vocabulary is missing or another.
    """
    images, texts, options = mapping.halves_of(read_checkpoint(path, [argparse.Namespace]), path, "VSRN")
    mapping.refuse_options(options, ("no_imgnorm", "use_abs"), path)
    if vocabulary is None:
        raise InputError(f"{path!r} reads words; give the vocabulary of its training data (--vocab).")
    config = vsrn_config(images, texts, path)
    rows = mapping.shape_of(texts, "embed.weight", path)[0]
    if rows != len(vocabulary.words):
        raise InputError(
            f"{path!r} has embeddings of {rows} words, the vocabulary {len(vocabulary.words)}; give the vocabulary of "
            "its training data."
        )
    model = mapping.assemble(config, wrap_words(vocabulary, mask=False), None)
    halves = mapping.named_halves(plain_convolutions(images), texts)
    mapping.fill(model, halves, mapping.half_renames(IMAGE_RENAMES, TEXT_RENAMES), path)
    return model


def vsrn_config(images: State, texts: State, where: str) -> DualEncoderConfig:
    """Our configuration of the original's, from the shapes of its weights."""
    dim, width = mapping.shape_of(images, "fc.weight", where)
    if mapping.count_blocks({k.removeprefix("Rs_GCN_"): v for k, v in images.items()}, "") != BLOCKS:
        raise InputError(f"{where!r} does not fit: expected {BLOCKS} graph convolutions, Rs_GCN_1 to Rs_GCN_{BLOCKS}.")
    if "rnn.weight_ih_l1" in texts:
        raise InputError(f"{where!r} has a GRU of several layers; one layer is what can be imported.")
    is_flickr = "bn.weight" in images
    return DualEncoderConfig(
        dim=dim,
        pooling="last",
        image_pooling="gru",
        pooling_batch_norm=is_flickr,
        image=ImageTowerConfig(kind="regions", output="grid", width=width),
        text=TextTowerConfig(
            kind="gru",
            name=None,
            layers=(1,),
            trainable=True,
            max_len=LONGEST,
            word_dim=mapping.shape_of(texts, "embed.weight", where)[1],
            hidden_size=dim,
        ),
        image_head=HeadConfig(kind="fc"),
        text_head=HeadConfig(kind="identity"),
        image_context=ContextConfig(kind="gcn", layers=BLOCKS, normalise_before=not is_flickr, normalise_after=True),
        legacy_norm_axis=True,
    )


def plain_convolutions(images: State) -> State:
    """Convolutions over one place, (D, D, 1), as the linear maps they are, (D, D)."""
    return {key: value.squeeze(-1) if value.ndim == 3 and "Rs_GCN" in key else value for key, value in images.items()}
