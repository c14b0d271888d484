"""What a training of an MVPTR is made of, read once before it starts: samples, vocabularies, sizes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.mvptr import checkpoints as mvptr_checkpoints
from alignment.mvptr.config import MvptrConfig
from alignment.mvptr.corpus import own_name, read_corpus
from alignment.mvptr.heads import HeadConfig
from alignment.mvptr.phrase_extraction import count_sentences, read_phrases
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary, build_vocabulary, read_vocabulary
from alignment.mvptr.phrases import Phrase
from alignment.mvptr.recipe_config import HEADS, MATCHING, MvptrTrainConfig, SplitConfig
from alignment.mvptr.tasks import entailment, refexp, vqa
from alignment.mvptr.tasks.samples import Sample, samples_table
from xmatch.data.captions import CaptionSet
from xmatch.data.text_captions import read_text_captions, spellings
from xmatch.data.tokenizers import train_wordpiece
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.staging import local_folder

Side = Literal["train", "valid"]


class Start(NamedTuple):
    """Everything of a model but its weights.

    Attributes:
        config: sizes and lengths.
        head: of the task.
        tokenizer: of the texts.
        phrases: vocabulary of phrases; None where there is none.
        tags: the detector's classes; empty where unknown.
        answers: of VQA, by label; empty for other tasks.
    """

    config: MvptrConfig
    head: HeadConfig
    tokenizer: PreTrainedTokenizerBase
    phrases: PhraseVocabulary | None
    tags: tuple[str, ...]
    answers: list[str]


def places(listed: str) -> list[str]:
    """Places joined by commas."""
    return [one.strip() for one in listed.split(",") if one.strip()]


def start_of(config: MvptrTrainConfig, init_from: str, region_width: int) -> Start:
    """Sizes and vocabularies: those of the model to start from, or anew.

    Args:
        config: of the training.
        init_from: saved MVPTR; "": anew, or from a BERT.
        region_width: numbers a region has.

    Raises:
        InputError: something is missing, or does not fit the model.
    """
    answers = vqa.read_answers(config.answers) if config.task == "vqa" else []
    outputs = {"vqa": len(answers), "snli_ve": len(entailment.LABELS)}.get(config.task, config.head.outputs)
    questions = "qa" in config.losses.active
    head = dataclasses.replace(config.head, task=HEADS[config.task], outputs=outputs, questions=questions)
    if init_from:
        folder = local_folder(init_from, "model")
        old = mvptr_checkpoints.read_config(folder).model
        tokenizer = checkpoints.read_tokenizer(folder)
        phrases = mvptr_checkpoints.read_phrases(folder, tokenizer, old.vocab_size)
        if region_width != old.region_width:
            raise InputError(
                f"{config.regions!r} has regions of {region_width} numbers, but {init_from!r} reads {old.region_width} "
                "(region_width). Give the features that it was trained on."
            )
        tags = mvptr_checkpoints.read_tags(os.path.join(folder, mvptr_checkpoints.TAGS))
        lengths, cross_from, dropout = config.lengths, config.cross_from, config.dropout
        sizes = dataclasses.replace(old, lengths=lengths, cross_from=cross_from, dropout=dropout)
        return Start(sizes, head, tokenizer, phrases, tags, answers)
    tokenizer = _tokenizer(config)
    phrases = _vocabulary(config, tokenizer)
    words = len(tokenizer)
    sizes = MvptrConfig(
        **dataclasses.asdict(config.model),
        dropout=config.dropout,
        region_width=region_width,
        only_word_size=words,
        vocab_size=max(words, phrases.rows if phrases else 0),
        lengths=config.lengths,
        cross_from=config.cross_from,
    )
    return Start(sizes, head, tokenizer, phrases, (), answers)


def _tokenizer(config: MvptrTrainConfig) -> PreTrainedTokenizerBase:
    if name := config.tokenizer or config.bert:
        return AutoTokenizer.from_pretrained(local_folder(name, "tokenizer"), use_fast=True)
    if config.task not in MATCHING:
        raise InputError(f"mvptr.task={config.task} starts from a saved model: give init_from, or mvptr.tokenizer.")
    return train_wordpiece(_texts(config.train), config.wordpieces)


def _texts(split: SplitConfig) -> list[str]:
    found: list[str] = []
    for place in places(split.pairs):
        if place.endswith(".tsv"):
            found += [f"{one.text} {one.answer or ''}" for one in read_corpus(place, "", answers=split.answers)]
        else:
            found += read_phrases(place).column("caption").to_pylist()
    return found


def _vocabulary(config: MvptrTrainConfig, tokenizer: PreTrainedTokenizerBase) -> PhraseVocabulary | None:
    if config.id2phrase:
        return read_vocabulary(config.id2phrase, words=len(tokenizer))
    tables = [place for place in places(config.train.pairs) if not place.endswith(".tsv")]
    if not config.min_sentences or not tables or config.task not in MATCHING:
        return None
    counts = sum((count_sentences(place) for place in tables[1:]), count_sentences(tables[0]))
    return build_vocabulary(counts, tokenizer, config.min_sentences)


def read_side(config: MvptrTrainConfig, side: Side, start: Start) -> pa.Table:
    """The samples of a split, as a table of `tasks.samples.SCHEMA`.

    Raises:
        InputError: a file is broken, or nothing is left; names file and row.
    """
    split: SplitConfig = getattr(config, side)
    if config.task in MATCHING:
        found = samples_table(_pairs(split, start))
        if split.exclude:
            found = _without(found, split)
    elif config.task == "vqa":
        found = samples_table(_questions(config, split, start))
    elif config.task == "snli_ve":
        found = samples_table(entailment.read_entailment(split.data, split.phrases, start.phrases))
    else:
        with_boxes = side == "valid" or not config.is_weak
        found = samples_table(refexp.read_expressions(split.data, split.split, with_boxes=with_boxes))
    if not len(found):
        raise InputError(f"mvptr.{side} has no samples; see {split.pairs or split.data!r} and what is excluded.")
    return found


def _pairs(split: SplitConfig, start: Start) -> list[Sample]:
    found: list[Sample] = []
    for place in places(split.pairs):
        if place.endswith(".tsv"):
            found += read_corpus(place, split.phrases, start.config.vocab_size, split.answers)
            continue
        table = read_phrases(place)
        names = ("caption_id", "image_id", "caption", "phrases")
        for identity, image_id, text, phrases in zip(*(table.column(one).to_pylist() for one in names), strict=True):
            found.append(Sample(identity, image_id, text, _ids(phrases, start.phrases)))
    return found


def _ids(phrases: Sequence[Phrase], vocabulary: PhraseVocabulary | None) -> list[int]:
    return vocabulary.ids(phrases) if vocabulary is not None else []


def _without(table: pa.Table, split: SplitConfig) -> pa.Table:
    """The samples of images that are not left out."""
    left_out = spellings(read_text_captions(split.exclude, split.exclude_split).image_ids)
    names = pc.unique(table.column("image_id")).to_pylist()
    kept = [name for name in names if not spellings([name, own_name(name)]) & left_out]
    return table.filter(pc.is_in(table.column("image_id"), pa.array(kept, pa.string())))


def _questions(config: MvptrTrainConfig, split: SplitConfig, start: Start) -> list[Sample]:
    data, phrases = places(split.data), places(split.phrases)
    if phrases and len(phrases) != len(data):
        raise InputError(f"{len(data)} files of questions came with {len(phrases)} of phrases; give one for each.")
    kinds = vqa.read_kinds(config.answer_kinds) if config.answer_kinds else None
    rows = start.config.vocab_size
    return [
        sample
        for path, own in zip(data, phrases or [""] * len(data), strict=True)
        for sample in vqa.read_questions(path, own, start.answers, has_answers=True, rows=rows, kinds=kinds).samples
    ]


def captions_of(table: pa.Table) -> CaptionSet:
    """Texts and images of samples, for the record of what a model has seen; where the photographs lie is not known."""
    names = table.column("image_id").combine_chunks().dictionary_encode()
    names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    ids = [own_name(name) for name in names.dictionary.to_pylist()]
    rows = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return CaptionSet(
        image_ids=ids,
        image_paths=[""] * len(ids),
        captions=table.column("text").to_pylist(),
        caption_ids=table.column("id").to_pylist(),
        caption_image=rows,
    )
