"""`model_best.pth.tar` of SelfAlign on VSRN or on CAMERA: the host's weights, and a context head on each side.

The file is a dict {epoch, model: [image state, text state, prototypes' state], best_rsum, opt: argparse.Namespace,
Eiters}. Prototypes are for training alone; they are checked and left out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from transformers import BertConfig, PreTrainedTokenizerBase

from xmatch.data.words import WordVocabulary, wrap_words
from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.importers import camera, mapping, vsrn
from xmatch.models.importers.mapping import Renames
from xmatch.models.towers.weights import State, plain_state, read_checkpoint

PROTOTYPES = "v_prototypes.weight"
CONTEXT_HEAD = (
    ("guide_fc.", "ctx_fc."),
    ("guide_norm.", "ctx_fc_bn1."),
    ("local_norm.", "ctx_fc_bn2."),
    ("gate.", "fusion_fn."),
)
"""Parts of our context head and the original's."""
IMAGE_HEAD, TEXT_HEAD = (
    tuple((f"{side}_context_head.{ours}", theirs) for ours, theirs in CONTEXT_HEAD) for side in ("image", "text")
)
VSRN_IMAGE: Renames = (*vsrn.IMAGE_RENAMES, *IMAGE_HEAD)
VSRN_TEXT: Renames = (
    ("text_tower.backbone.embed.", "embed."),
    ("text_head.fc.", "local_fc."),
    ("text_context.reasoning.rnn.", "rnn."),
    *TEXT_HEAD,
)
CAMERA_IMAGE: Renames = (*camera.IMAGE_RENAMES, *IMAGE_HEAD)
CAMERA_TEXT: Renames = (*camera.TEXT_RENAMES, *TEXT_HEAD)


def import_selfalign(
    path: str, *, tokenizer: PreTrainedTokenizerBase | None = None, vocabulary: WordVocabulary | None = None
) -> DualEncoder:
    """A `model_best.pth.tar` or `checkpoint.pth.tar`; which host it is on, its weights say.

    Args:
        path: the file; nothing but tensors, plain values and `argparse.Namespace` is read from it.
        tokenizer: BERT's, for CAMERA.
        vocabulary: of its training data, for VSRN (a pickled one becomes JSON by `convert --what legacy`).

    Returns:
        The model in eval mode, with the original's normalisation over regions, and padding taking part.

    Raises:
        InputError: the file cannot be read safely, does not fit, or needs what was not given.
    """
    images, texts, options = _parts(read_checkpoint(path, [argparse.Namespace]), path)
    mapping.refuse_options(options, ("no_imgnorm", "use_abs"), path)
    for name in ("ctx_relu", "ctx_fc_relu"):
        if not options.get(name, 1):
            raise InputError(f"{path!r} was trained with --{name} 0; a context head of ours always has its ReLU.")
    if "embed.weight" in texts:
        return _on_vsrn(images, texts, vocabulary, path)
    return _on_camera(images, texts, options, tokenizer, path)


def _parts(content: Any, where: str) -> tuple[State, State, dict[str, Any]]:
    """Image state, text state and options; the prototypes are checked."""
    states = content.get("model") if isinstance(content, dict) else None
    if not isinstance(states, list | tuple) or len(states) != 3:
        raise InputError(
            f"{where!r} is no SelfAlign checkpoint: expected a dict whose model is [image state, text state, the "
            "prototypes' state]. A host without SelfAlign has two states: import it as vsrn or camera."
        )
    prototypes = plain_state(states[2], where)
    if set(prototypes) != {PROTOTYPES}:
        raise InputError(f"{where!r}: expected the third state to be {PROTOTYPES} alone, got {sorted(prototypes)}.")
    return mapping.halves_of({**content, "model": list(states[:2])}, where, "SelfAlign")


def _on_vsrn(images: State, texts: State, vocabulary: WordVocabulary | None, where: str) -> DualEncoder:
    if vocabulary is None:
        raise InputError(f"{where!r} reads words; give the vocabulary of its training data (--vocab).")
    rows = mapping.shape_of(texts, "embed.weight", where)[0]
    if rows != len(vocabulary.words):
        raise InputError(
            f"{where!r} has embeddings of {rows} words, the vocabulary {len(vocabulary.words)}; give the vocabulary of "
            "its training data."
        )
    model = mapping.assemble(vsrn_selfalign_config(images, texts, where), wrap_words(vocabulary, mask=False), None)
    halves = mapping.named_halves(vsrn.plain_convolutions(images), texts)
    mapping.fill(model, halves, mapping.half_renames(VSRN_IMAGE, VSRN_TEXT), where)
    return model


def vsrn_selfalign_config(images: State, texts: State, where: str) -> DualEncoderConfig:
    """VSRN whose words are mapped to the shared space before the GRU, with a context head."""
    host = vsrn.vsrn_config(images, texts, where)
    return replace(
        host,
        text=replace(host.text, kind="words"),
        text_head=HeadConfig(kind="fc"),
        text_context=ContextConfig(kind="gru"),
        context_head=True,
        legacy_padding=True,
    )


def _on_camera(
    images: State, texts: State, options: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, where: str
) -> DualEncoder:
    if tokenizer is None:
        raise InputError(f"{where!r} has a BERT; give its tokenizer (--tokenizer).")
    texts = mapping.rename_bert_keys(texts)
    words = mapping.shape_of(texts, "bert.embeddings.word_embeddings.weight", where)[0]
    mapping.check_tokenizer(tokenizer, words, where)
    architecture = mapping.bert_shape(texts, "bert.", where)
    config = camera_selfalign_config(images, texts, architecture, int(options.get("max_words", camera.LONGEST)), where)
    model = mapping.assemble(config, tokenizer, architecture)
    renames = mapping.half_renames(CAMERA_IMAGE, CAMERA_TEXT)
    mapping.fill(model, mapping.named_halves(images, texts), renames, where, unused=camera.UNUSED)
    return model


def camera_selfalign_config(
    images: State, texts: State, architecture: BertConfig, max_len: int, where: str
) -> DualEncoderConfig:
    """CAMERA whose words are normalised before they are reasoned over, with a context head."""
    host = camera.camera_config(images, texts, architecture, max_len, where)
    return replace(host, text_context=replace(host.text_context, normalise_before=True), context_head=True)
