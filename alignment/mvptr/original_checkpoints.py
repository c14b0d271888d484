"""Checkpoints of the original program: a state dict, a BERT's config.json, vocab.txt; and our weights as such."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from alignment.mvptr.checkpoints import Saved, is_mvptr, load, read_phrases, require_vocabularies
from alignment.mvptr.config import Lengths, MvptrConfig, published, require_published_form
from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, Task, TaskModel, build
from alignment.mvptr.original_names import NAMES, State, from_original, to_original
from alignment.mvptr.phrase_vocabulary import read_vocabulary
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.hub import locate
from xmatch.models.towers.weights import plain_state, read_checkpoint, require_same

WEIGHTS = "pytorch_model.bin"
UNUSED = ("qa_head.",)
"""Weights of a classifier of answers that the original's model for captions has and no program of it trains."""
ROWS = ("words.rows", "tags.rows")
SIDES = "single_mapping.0.weight"
"""Of its VQA model that looks at both sides alone, too; the one of the pooled output alone is named as that of visual
entailment, and known as a classification."""
Words = Literal["as_saved", "tied"]


class Imported(NamedTuple):
    """A model, and the names in the checkpoint that it has no place for."""

    model: TaskModel
    left_out: list[str]


def task_of(state: Mapping[str, torch.Tensor]) -> Task:
    """Which of the original's models a state dict is of, by its names."""
    if "half_mlm.bias" in state:
        return "pretraining"
    if "cls.predictions.decoder.weight" in state or SIDES in state:
        return "vqa"
    last = next((state[name] for name in ("classifier.2.weight", "classifier.weight") if name in state), None)
    if last is None:
        return "none"
    if "logit_scale" in state:
        return "retrieval"
    return "refexp" if len(last) == 1 else "classification"


def head_of(state: Mapping[str, torch.Tensor], words: Words = "as_saved") -> HeadConfig:
    """The head of a state dict of the original: task, outputs, form of the classifier, whether words are tied.

    The heads of its released models were tied by copying the rows once, after which they learned apart.

    Args:
        state: under the original's names.
        words: `as_saved`: keep rows of their own where they differ from the shared table. `tied`: drop them.
    """
    task = task_of(state)
    outputs = 2
    if task == "vqa" and SIDES not in state:
        outputs = len(state["cls.predictions.bias"])
    elif task in ("vqa", "classification"):
        outputs = len(state["classifier.2.bias" if "classifier.2.bias" in state else "classifier.bias"])
    is_mlp = "classifier.0.weight" in state
    states = 2 if SIDES in state else 1
    scale = states * len(state["classifier.0.bias"]) // state["classifier.0.weight"].shape[1] if is_mlp else 2
    return HeadConfig(
        task=task,
        outputs=outputs,
        classifier="mlp" if is_mlp else "linear",
        hidden_scale=scale,
        tied=words == "tied" or not _parted(state, task),
        questions=task == "pretraining" and "qa_seq_relation.weight" in state,
        vqa_from="pooled_and_sides" if SIDES in state else "word_head",
    )


def _parted(state: Mapping[str, torch.Tensor], task: Task) -> bool:
    table = state.get("bert.embeddings.word_embeddings.weight")
    if task != "pretraining" or table is None:
        return False
    decoders = [state[name] for name in ("cls.predictions.decoder.weight", "half_mlm.decoder.weight") if name in state]
    return any(not torch.equal(rows, table[: len(rows)]) for rows in decoders)


def import_state(
    state: Mapping[str, torch.Tensor], config: MvptrConfig, where: str, words: Words = "as_saved"
) -> Imported:
    """A model with the weights of a state dict of the original, strictly.

    Args:
        state: of its models for pre-training, retrieval, VQA, visual entailment or referring expressions, or the bare
            one; the names say which.
        config: sizes and lengths.
        where: path, for messages.
        words: see `head_of`.

    Raises:
        InputError: names or shapes differ; lists the first differences of each kind.
    """
    given = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    left_out = sorted(name for name in given if name.startswith(UNUSED))
    given = {name: value for name, value in given.items() if name not in left_out}
    _require_rows(given, config, where)
    head = head_of(given, words)
    model = build(config, head)
    found = from_original(given, head.task)
    if head.task == "pretraining" and head.tied:
        found = {name: value for name, value in found.items() if name not in ROWS}
        left_out += [NAMES["pretraining"][name] for name in ROWS if words == "tied"]
    wanted = model.state_dict()
    require_same(to_original(found, head.task), to_original(wanted, head.task), where, "Is it an MVPTR of these sizes?")
    model.load_state_dict({name: value.to(wanted[name].dtype) for name, value in found.items()})
    return Imported(model.eval(), left_out)


def _require_rows(state: Mapping[str, torch.Tensor], config: MvptrConfig, where: str) -> None:
    """Say the commonest difference in its own words."""
    table = state.get("bert.embeddings.word_embeddings.weight")
    if table is not None and len(table) != config.vocab_size:
        raise InputError(
            f"{where!r} has {len(table)} rows of embeddings, the configuration vocab_size {config.vocab_size}: words "
            "and phrases are rows of one table, so take the vocabulary that the model was trained with."
        )


def export_state(model: TaskModel) -> State:
    """The weights of a model under the original's names; tied heads get copies of the shared rows."""
    state = dict(model.state_dict())
    if isinstance(model, MvptrForPretraining) and model.head.tied:
        state |= {name: model.mvptr.word_rows.detach().clone() for name in ROWS}
    return to_original(state, model.head.task)


def original_config(values: Mapping[str, Any], state: Mapping[str, torch.Tensor], base: MvptrConfig) -> MvptrConfig:
    """The configuration of a checkpoint of the original.

    Args:
        values: of its config.json.
        state: its weights, whose table says how many rows there are.
        base: lengths and reading place, of which its config.json says nothing.

    Raises:
        InputError: it has another activation or epsilon than the published models.
    """
    require_published_form(values, "its config.json")
    table = state.get("bert.embeddings.word_embeddings.weight")
    biases = [state[name] for name in ("half_mlm.bias",) if name in state]
    return MvptrConfig(
        hidden_size=int(values["hidden_size"]),
        num_layers=int(values["num_hidden_layers"]),
        num_heads=int(values["num_attention_heads"]),
        intermediate_size=int(values["intermediate_size"]),
        dropout=float(values.get("hidden_dropout_prob", 0.1)),
        attention_dropout=float(values.get("attention_probs_dropout_prob", 0.1)),
        max_positions=int(values["max_position_embeddings"]),
        vocab_size=int(values["vocab_size"]) if table is None else len(table),
        only_word_size=len(biases[0]) if biases else int(values.get("only_word_size", base.only_word_size)),
        region_width=int(values.get("img_feature_dim", base.region_width)),
        region_norm=bool(values.get("use_img_layernorm", 0)),
        initializer_range=float(values.get("initializer_range", 0.02)),
        lengths=base.lengths,
        cross_from=base.cross_from,
    )


def read_original(
    folder: str, base: MvptrConfig, phrases: str | None = None, words: Words = "as_saved"
) -> tuple[Saved, list[str]]:
    """A checkpoint folder of the original, and the names of the weights that were left out.

    Args:
        folder: local; config.json, pytorch_model.bin and vocab.txt. Its training_args.bin is a pickle and not read.
        base: lengths and reading place that it was trained with.
        phrases: its id2phrase JSON; none: that of the folder, if there.
        words: see `head_of`.

    Raises:
        InputError: a file is missing or broken, or the weights do not fit; says which and how.
    """
    values = files.read_json(os.path.join(folder, "config.json"))
    path = os.path.join(folder, WEIGHTS)
    state = plain_state(read_checkpoint(path), path)
    try:
        config = original_config(values, state, base)
    except InputError as error:
        raise InputError(f"{folder!r}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder!r}: config.json is not that of an MVPTR: {error!r}.") from error
    model, left_out = import_state(state, config, path, words)
    tokenizer = _read_tokenizer(folder)
    rows = config.vocab_size
    found = (
        read_vocabulary(phrases, words=len(tokenizer), rows=rows) if phrases else read_phrases(folder, tokenizer, rows)
    )
    require_vocabularies(config, tokenizer, found, folder)
    return Saved(model, tokenizer, found), left_out


def _read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Its config.json names no kind of model, but the original's tokenizer is always BERT's."""
    if not os.path.exists(os.path.join(folder, "vocab.txt")):
        raise InputError(f"{folder!r} has no vocab.txt; copy that of the BERT that the model was made of beside it.")
    tokenizer: PreTrainedTokenizerBase = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    return tokenizer


def from_pretrained(
    folder_or_uri: str, recipe: str = "pipeline", *, lengths: Lengths | None = None, phrases: str | None = None
) -> Saved:
    """A saved MVPTR, ours or the original's.

    Args:
        folder_or_uri: folder, URI or hub name.
        recipe: of the original's, which does not store its lengths: the published recipe that it was trained by.
        lengths: of the original's, instead of a recipe.
        phrases: of the original's: its id2phrase JSON; none: that of the folder, if there.

    Raises:
        InputError: it is neither, or lengths are given for a model that stores its own and they differ.
    """
    folder = locate(folder_or_uri, "model")
    if not is_mvptr(folder):
        base = MvptrConfig(lengths=lengths) if lengths else published(recipe)
        return read_original(folder, base, phrases)[0]
    saved = load(folder_or_uri)
    if lengths is not None and lengths != saved.model.config.lengths:
        raise InputError(
            f"{folder_or_uri!r} was trained with {saved.model.config.lengths}, which is stored with it; asked for was "
            f"{lengths}. Leave lengths out, or train it with them (alignment.mvptr.starts.for_task)."
        )
    return saved
