"""Every kind of original by name: how its file becomes a model of ours, and how ours becomes its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from xmatch.data import files
from xmatch.data.words import WordVocabulary
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.importers import camera, clip, openai_clip, selfalign, vokenization, vse_infinity, vsrn

Kind = Literal["vokenization", "maria", "vse_infinity", "clip", "openai_clip", "agree", "vsrn", "camera", "selfalign"]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an import may need beside the file."""

    tokenizer: PreTrainedTokenizerBase | None = None
    """Of the text tower."""
    vocabulary: WordVocabulary | None = None
    """SCAN's, of a BiGRU or GRU."""
    image_name: str = ""
    """timm's name of the image tower; empty: the published one."""
    text_name: str = ""
    """Hub name or folder of the text tower; empty: a BERT."""


class Original(NamedTuple):
    """One kind of original."""

    read: Callable[[str, Given], DualEncoder]
    write: Callable[[DualEncoder, str], str]
    """Into a folder; gives the path written."""


def _required(given: Given, kind: str) -> PreTrainedTokenizerBase:
    if given.tokenizer is None:
        raise InputError(f"a checkpoint of kind {kind!r} does not hold its tokenizer; give it (--tokenizer).")
    return given.tokenizer


def _read_vokenization(kind: str, path: str, given: Given) -> DualEncoder:
    names = {"image_name": given.image_name} if given.image_name else {}
    model = vokenization.import_vokenization(path, _required(given, kind), text_name=given.text_name or None, **names)
    found = model.config.text_head.kind
    if found != kind:
        raise InputError(f"{path!r} is a checkpoint of kind {found!r}, not {kind!r}; give --kind {found}.")
    return model


def _vokenization(kind: str) -> Original:
    return Original(
        lambda path, given: _read_vokenization(kind, path, given),
        lambda model, folder: _save(vokenization.export_vokenization(model), folder, "BEST.pth"),
    )


def _save(content: object, folder: str, name: str) -> str:
    path = files.join(folder, name)
    with files.open_atomic(path) as sink:
        torch.save(content, sink)
    return path


def _not_written(model: DualEncoder, folder: str) -> str:
    """Files of these kinds are read alone.

    Raises:
        InputError: always.
    """
    raise InputError(
        "checkpoints of VSRN, CAMERA and SelfAlign can be imported, not exported; keep the model's own folder."
    )


def _write_clip(model: DualEncoder, folder: str) -> str:
    clip.write_clip(model, folder)
    return folder


ORIGINALS: dict[str, Original] = {
    "vokenization": _vokenization("vokenization"),
    "maria": _vokenization("maria"),
    "vse_infinity": Original(
        lambda path, given: vse_infinity.import_vse_infinity(
            path, tokenizer=given.tokenizer, vocabulary=given.vocabulary
        ),
        lambda model, folder: _save(vse_infinity.export_vse_infinity(model), folder, "model_best.pth"),
    ),
    "vsrn": Original(lambda path, given: vsrn.import_vsrn(path, vocabulary=given.vocabulary), _not_written),
    "camera": Original(lambda path, given: camera.import_camera(path, tokenizer=given.tokenizer), _not_written),
    "selfalign": Original(
        lambda path, given: selfalign.import_selfalign(path, tokenizer=given.tokenizer, vocabulary=given.vocabulary),
        _not_written,
    ),
    "clip": Original(lambda path, given: clip.import_clip(path, given.tokenizer), _write_clip),
    "openai_clip": Original(
        lambda path, given: openai_clip.import_openai_clip(path, _required(given, "openai_clip")),
        lambda model, folder: _save(openai_clip.export_openai_clip(model), folder, "clip.pt"),
    ),
    "agree": Original(
        lambda path, given: openai_clip.import_agree(path, _required(given, "agree")),
        lambda model, folder: _save(openai_clip.export_agree(model), folder, "epoch_0.pt"),
    ),
}
