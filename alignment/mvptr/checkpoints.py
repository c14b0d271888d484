"""A saved MVPTR: weights, its one configuration, the tokenizer and the vocabularies in one folder.

config.json          model and head: sizes, lengths, where the cross encoder reads, region width
model.safetensors    weights
tokenizer files      as transformers writes them
id2phrase.json       phrases by id, where there are any
tags.json            names of the detector's classes in their order, where they are known
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from alignment.mvptr.config import MvptrConfig, config_from
from alignment.mvptr.heads import HeadConfig, TaskModel, build
from alignment.mvptr.phrase_vocabulary import FILE as PHRASES
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary, read_vocabulary
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.staging import local_folder

KIND = "mvptr"
TAGS = "tags.json"


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """What `config.json` holds."""

    kind: str = KIND
    model: MvptrConfig = field(default_factory=MvptrConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


class Saved(NamedTuple):
    """A model with what belongs to it.

    phrases: its phrase vocabulary; None where it has none. tags: the detector's classes; empty where unknown.
    """

    model: TaskModel
    tokenizer: PreTrainedTokenizerBase
    phrases: PhraseVocabulary | None = None
    tags: tuple[str, ...] = ()


def is_mvptr(folder: str) -> bool:
    """Whether a local folder holds a model written by `save`."""
    path = os.path.join(folder, checkpoints.CONFIG)
    values = files.read_json(path) if os.path.exists(path) else {}
    return isinstance(values, dict) and values.get("kind") == KIND


def require_vocabularies(
    config: MvptrConfig, tokenizer: PreTrainedTokenizerBase, phrases: PhraseVocabulary | None, where: str
) -> None:
    """Check that every id that tokenizer and phrases can give is a row of the embedding table.

    Raises:
        InputError: one is not.
    """
    if len(tokenizer) > config.only_word_size:
        raise InputError(
            f"{where!r}: the tokenizer has {len(tokenizer)} tokens, but the model's table has {config.only_word_size} "
            "rows of words (only_word_size); give the tokenizer that the model was trained with."
        )
    if phrases is not None:
        phrases.require_rows(config.vocab_size, where)


def save(folder: str, saved: Saved, dtype: Literal["float32", "float16"] = "float32", card: str = "") -> None:
    """Write a model and what belongs to it; the weights last, so that a folder with weights is complete.

    Args:
        folder: local folder or URI.
        saved: the model, its tokenizer and vocabularies.
        dtype: number format of the weights on disk.
        card: text of README.md; empty: none.

    Raises:
        InputError: tokenizer or phrases do not fit the model.
    """
    model = saved.model
    require_vocabularies(model.config, saved.tokenizer, saved.phrases, folder)
    if files.is_uri(folder):
        with tempfile.TemporaryDirectory() as local:
            save(local, saved, dtype, card)
            files.copy_folder(local, folder)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    if saved.phrases is not None:
        saved.phrases.write(os.path.join(folder, PHRASES))
    if saved.tags:
        files.write_json(os.path.join(folder, TAGS), list(saved.tags))
    config = SavedConfig(model=model.config, head=model.head)
    none = checkpoints.Architectures(None, None)
    checkpoints.save(folder, config, model.state_dict(), saved.tokenizer, none, dtype, card)


def read_config(folder: str) -> SavedConfig:
    """The configuration of a saved model.

    Raises:
        InputError: it is missing, of another kind or format, or names a setting that we do not know.
    """
    path = os.path.join(folder, checkpoints.CONFIG)
    values = files.read_json(path)
    is_ours = isinstance(values, dict) and values.get("kind") == KIND
    if not is_ours or values.get("format") != checkpoints.FORMAT_VERSION:
        raise InputError(
            f"{path!r} is no configuration of a saved MVPTR of format {checkpoints.FORMAT_VERSION}. A checkpoint of "
            "the original is read by `from_pretrained` with the lengths that it was trained with."
        )
    return SavedConfig(model=config_from(values.get("model", {}), path), head=_head(values.get("head", {}), path))


def _head(values: Mapping[str, Any], path: str) -> HeadConfig:
    known = {item.name for item in dataclasses.fields(HeadConfig)}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{path!r} holds {unknown[0]!r}, which HeadConfig does not know.")
    return HeadConfig(**values)


def load(folder_or_uri: str) -> Saved:
    """A saved model in eval mode, on the CPU, in float32.

    Args:
        folder_or_uri: written by `save`; local, a URI, a staged folder or a hub name.

    Raises:
        InputError: something is missing or broken, or does not fit; says which.
    """
    folder = local_folder(folder_or_uri, "model")
    config = read_config(folder)
    model = build(config.model, config.head)
    checkpoints.load_state(model, folder)
    tokenizer = checkpoints.read_tokenizer(folder)
    phrases = read_phrases(folder, tokenizer, config.model.vocab_size)
    require_vocabularies(config.model, tokenizer, phrases, folder)
    return Saved(model.eval(), tokenizer, phrases, read_tags(os.path.join(folder, TAGS)))


def read_phrases(folder: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> PhraseVocabulary | None:
    """The phrase vocabulary beside a model; None where there is none."""
    path = os.path.join(folder, PHRASES)
    return read_vocabulary(path, words=len(tokenizer), rows=rows) if os.path.exists(path) else None


def read_tags(path: str) -> tuple[str, ...]:
    """The detector's classes in a file of their names; none where it is not there.

    Raises:
        InputError: it is no list of texts.
    """
    if not os.path.exists(path):
        return ()
    values = files.read_json(path)
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path!r}: expected a list of the names of the detector's classes.")
    return tuple(values)
