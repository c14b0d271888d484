"""`model_best.pth` of VSE-infinity: regions or grids, BERT or BiGRU.

The file is a dict {epoch, model: [image state, text state], best_rsum, opt: argparse.Namespace, Eiters}. A grid model
stores its trunk three times over: `backbone.resnet` by name, `backbone.base` and `backbone.top` by position; the two
latter are what it runs.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from transformers import BertConfig, PreTrainedTokenizerBase

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import mapping
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.weights import State, read_checkpoint, wrapped

TRUNK = "image_tower.backbone."
PLACES = {"conv1": "base.0", "bn1": "base.1", "layer1": "base.4", "layer2": "base.5", "layer3": "base.6"} | {
    "layer4": "top.0"
}
"""Where the original keeps the parts of a ResNet."""
REGION_RENAMES = (("image_head.fc.", "fc."), ("image_head.mlp.", "mlp."), ("image_pool.", "gpool."))
GRID_RENAMES = (
    *((f"{TRUNK}{part}.", f"backbone.{place}.") for part, place in PLACES.items()),
    ("image_head.fc.", "image_encoder.fc."),
    ("image_pool.", "image_encoder.gpool."),
)
BERT_RENAMES = (
    ("text_tower.backbone.", "bert."),
    ("text_head.proj.", "linear."),
    ("text_pool.", "gpool."),
)
BIGRU_RENAMES = (("text_tower.backbone.", ""), ("text_pool.", "gpool."))
COPY = "backbone.resnet."
UNUSED = rf"^image backbone\.resnet\.|^text bert.*{mapping.BERT_UNUSED}"
BASE_SIZE = 256
"""Pixels on a side at `--input_scale_factor 1`."""
LONGEST = 512
"""Tokens of a caption: the original cuts none, and BERT has positions for as many."""
DEFAULTS = {
    "data_name": "coco",
    "data_path": "",
    "backbone_path": "",
    "img_dim": 2048,
    "num_layers": 1,
    "word_dim": 300,
    "input_scale_factor": 1.0,
    "no_imgnorm": False,
    "no_txtnorm": False,
    "grad_clip": 2.0,
    "margin": 0.2,
    "max_violation": True,
    "optim": "adam",
    "learning_rate": 0.0005,
    "backbone_lr_factor": 0.01,
    "batch_size": 128,
    "workers": 5,
}
"""What the original's evaluation asks of `opt`, where the model does not say."""


class _Source(NamedTuple):
    """A value of `--backbone_source`: our backbone's name and pixels."""

    name: str
    pixels: str


SOURCES = {
    "detector": _Source("resnet101/caffe", "detector_bgr"),
    "imagenet": _Source("resnet101/caffe", "unit_rgb"),
    "imagenet_res50": _Source("resnet50/caffe", "unit_rgb"),
    "imagenet_res152": _Source("resnet152/caffe", "unit_rgb"),
    "imagenet_resnext": _Source("resnext101_32x8d/torchvision", "unit_rgb"),
    "wsl": _Source("resnext101_32x8d/torchvision", "unit_rgb"),
    "resnext": _Source("resnext101_32x8d/torchvision", "unit_rgb"),
}
"""The VSE++ baselines are called `vsepp_` and then as these."""


def import_vse_infinity(
    path: str, *, tokenizer: PreTrainedTokenizerBase | None = None, vocabulary: WordVocabulary | None = None
) -> DualEncoder:
    """A `model_best.pth` or `checkpoint.pth`.

    Args:
        path: the file; nothing but tensors, plain values and `argparse.Namespace` is read from it.
        tokenizer: BERT's, for a model with BERT.
        vocabulary: SCAN's, for a model with a BiGRU; `<mask>` is added as the original does.

    Returns:
        The model in eval mode, trainable as the original is after its warm-up.

    Raises:
        InputError: the file cannot be read safely, does not fit, or needs what was not given.
    """
    images, texts, options = _parts(read_checkpoint(path, [argparse.Namespace]), path)
    has_bert = any(key.startswith("bert.") for key in texts)
    architecture = mapping.bert_shape(texts, "bert.", path) if has_bert else None
    words = mapping.shape_of(texts, "bert.embeddings.word_embeddings.weight" if has_bert else "embed.weight", path)[0]
    if has_bert:
        if tokenizer is None:
            raise InputError(f"{path!r} has a BERT; give its tokenizer (--tokenizer).")
        mapping.check_tokenizer(tokenizer, words, path)
    else:
        tokenizer = _words(vocabulary, words, path)
    config = _settings(images, texts, options, architecture, path)
    model = mapping.assemble(config, tokenizer, architecture)
    mapping.fill(model, mapping.named_halves(images, texts), _renames(model), path, unused=UNUSED)
    return model


def _check_copies(images: State, where: str) -> None:
    """Check that the trunk by name is the one by position, but for the classifier, which is never run.

    Raises:
        InputError: one of its weights is another, or has no counterpart.
    """
    for key in (key for key in images if key.startswith(COPY)):
        part, _, rest = key.removeprefix(COPY).partition(".")
        twin = f"backbone.{PLACES[part]}.{rest}" if part in PLACES else ""
        if part != "fc" and (twin not in images or not torch.equal(images[key], images[twin])):
            raise InputError(
                f"{where!r} holds its trunk twice and differently: {key!r} is not {twin or 'a part of the model'!r}. "
                "The original runs the one by position (backbone.base, backbone.top); take the other out of the file."
            )


def _parts(content: Any, where: str) -> tuple[State, State, dict[str, Any]]:
    """Image state, text state and options."""
    images, texts, options = mapping.halves_of(content, where, "VSE-infinity")
    _check_copies(images, where)
    return images, mapping.rename_bert_keys(texts), options


def _words(vocabulary: WordVocabulary | None, rows: int, where: str) -> PreTrainedTokenizerBase:
    if vocabulary is None:
        raise InputError(f"{where!r} has a BiGRU; give its SCAN vocabulary (--vocab).")
    extra = rows - len(vocabulary.words)
    if extra not in (0, 1):
        raise InputError(
            f"{where!r} has embeddings of {rows} words, the vocabulary {len(vocabulary.words)}; expected as many, or "
            "one more for <mask>. Give the vocabulary of its training data."
        )
    return wrap_words(vocabulary, mask=extra == 1)


def _settings(
    images: State,
    texts: State,
    options: dict[str, Any],
    architecture: BertConfig | None,
    where: str,
) -> DualEncoderConfig:
    """Our configuration of the original's."""
    if options.get("no_imgnorm") or options.get("no_txtnorm"):
        raise InputError(f"{where!r} was trained without normalisation, which a dual encoder of ours always does.")
    is_grid = any(key.startswith("backbone.") for key in images)
    dim, width = mapping.shape_of(images, "image_encoder.fc.weight" if is_grid else "fc.weight", where)
    has_bert = architecture is not None
    if architecture is not None:
        max_len = min(LONGEST, architecture.max_position_embeddings)
        text = TextTowerConfig(name=None, layers=(1,), trainable=True, max_len=max_len)
    else:
        if "rnn.weight_ih_l1" in texts:
            raise InputError(f"{where!r} has a BiGRU of several layers; one layer is what can be imported.")
        word_dim = mapping.shape_of(texts, "embed.weight", where)[1]
        text = TextTowerConfig(
            kind="bigru", layers=(1,), trainable=True, max_len=LONGEST, word_dim=word_dim, hidden_size=dim
        )
    return DualEncoderConfig(
        dim=dim,
        pooling="gpo",
        image_pooling="gpo",
        image=_image(options, where) if is_grid else ImageTowerConfig(kind="regions", output="grid", width=width),
        text=text,
        image_head=HeadConfig(kind="fc" if is_grid else "fc_mlp"),
        text_head=HeadConfig(kind="projection_bias" if has_bert else "identity"),
        padding_in_batch_norm=True,
    )


def _image(options: dict[str, Any], where: str) -> ImageTowerConfig:
    source = str(options.get("backbone_source", "detector"))
    plain = source.removeprefix("vsepp_")
    known = next((name for name in ("detector", "wsl") if name in plain), plain)
    if known not in SOURCES:
        raise InputError(f"{where!r}: unknown backbone_source {source!r}; expected one of {', '.join(SOURCES)}.")
    return ImageTowerConfig(
        kind="updown",
        name=SOURCES[known].name,
        weights="none",
        output="grid",
        trainable="all",
        batch_norm="affine",
        crop="stretch",
        pixels="detector_bgr" if SOURCES[known].pixels == "detector_bgr" else "unit_rgb",
        image_size=int(BASE_SIZE * float(options.get("input_scale_factor", 1))),
    )


def _renames(model: DualEncoder) -> list[tuple[str, str]]:
    """The map of both halves, each key behind the half's name."""
    image = GRID_RENAMES if model.config.image.kind == "updown" else REGION_RENAMES
    text = BIGRU_RENAMES if model.config.text.is_recurrent else BERT_RENAMES
    return mapping.half_renames(image, text)


def export_vse_infinity(model: DualEncoder) -> dict[str, Any]:
    """What `torch.save` writes as a `model_best.pth` that the original's evaluation loads.

    Keys have DataParallel's prefix where the original expects it; without it, the original, which does not load
    strictly, would keep its random weights and say nothing. The trunk's classifier and BERT's pooler, which it never
    reads, are left out.

    Raises:
        InputError: the model is no VSE-infinity.
    """
    settings = model.config
    is_grid, is_bigru = settings.image.kind == "updown", settings.text.is_recurrent
    kinds = (settings.image_head.kind, settings.text_head.kind)
    expected = ("fc" if is_grid else "fc_mlp", "identity" if is_bigru else "projection_bias")
    if kinds != expected or {settings.pooling, settings.image_pooling} != {"gpo"}:
        raise InputError(
            f"a model_best.pth has GPO on both sides and heads {expected}; this model's heads are {kinds}."
        )
    both = mapping.collect(model, _renames(model))
    images, texts = (
        {k.split(" ", 1)[1]: v for k, v in both.items() if k.startswith(half)} for half in ("image", "text")
    )
    for part, place in PLACES.items() if is_grid else ():
        images |= {
            f"backbone.resnet.{part}.{key.split(f'{place}.', 1)[1]}": value
            for key, value in list(images.items())
            if key.startswith(f"backbone.{place}.")
        }
    if is_grid or not is_bigru:
        images, texts = wrapped(images), wrapped(texts)
    options = _options(model)
    return {"epoch": 0, "model": [images, texts], "best_rsum": 0.0, "opt": options, "Eiters": 0}


def _options(model: DualEncoder) -> argparse.Namespace:
    image, text = model.config.image, model.config.text
    is_grid = image.kind == "updown"
    source = next((name for name, found in SOURCES.items() if found == (image.name, image.pixels)), "detector")
    values = DEFAULTS | {
        "embed_size": model.config.dim,
        "img_dim": model.image_tower.width,
        "precomp_enc_type": "backbone" if is_grid else "basic",
        "backbone_source": source,
        "input_scale_factor": image.image_size / BASE_SIZE if is_grid else 1.0,
        "vocab_size": _rows(model),
        "word_dim": text.word_dim,
    }
    return argparse.Namespace(**values)


def _rows(model: DualEncoder) -> int:
    embedding: torch.nn.Embedding = (
        model.text_tower.backbone.embed
        if model.config.text.is_recurrent
        else model.text_tower.backbone.get_input_embeddings()
    )
    return embedding.num_embeddings
