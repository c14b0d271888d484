"""The names of weights in the original's checkpoints, and ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from alignment.mvptr.heads import Task

State = dict[str, torch.Tensor]

BODY = {
    "mvptr.embeddings.": "bert.embeddings.",
    "mvptr.text_encoder.": "bert.txt_encoder.",
    "mvptr.vision_encoder.": "bert.vis_encoder.",
    "mvptr.cross_encoder.": "bert.mul_encoder.",
    "mvptr.pooler.": "bert.pooler.",
    "mvptr.region_embedding.": "bert.img_embedding.",
    "mvptr.region_norm.": "bert.LayerNorm.",
    "mvptr.text_projection": "bert.txt_proj",
    "mvptr.vision_projection": "bert.vis_proj",
}
"""How names begin in `MvptrModel`, and in the original."""
NAMES: dict[Task, Mapping[str, str]] = {
    "none": BODY,
    "pretraining": BODY
    | {
        "words.rows": "cls.predictions.decoder.weight",
        "words.": "cls.predictions.",
        "tags.rows": "half_mlm.decoder.weight",
        "tags.": "half_mlm.",
        "matching.": "cls.seq_relationship.",
        "questions.": "qa_seq_relation.",
    },
    "retrieval": BODY,
    "vqa": BODY
    | {
        "transform.": "cls.predictions.transform.",
        "answers.weight": "cls.predictions.decoder.weight",
        "answers.bias": "cls.predictions.bias",
        "sides.": "single_mapping.",
    },
    "classification": BODY,
    "refexp": BODY,
}
"""The same for the models of the tasks; names that no beginning fits (logit_scale, classifier) are equal."""


def to_original(state: Mapping[str, torch.Tensor], task: Task) -> State:
    """Our weights under the original's names."""
    return _renamed(state, NAMES[task])


def from_original(state: Mapping[str, torch.Tensor], task: Task) -> State:
    """The original's weights under our names."""
    return _renamed(state, {theirs: ours for ours, theirs in NAMES[task].items()})


def _renamed(state: Mapping[str, torch.Tensor], beginnings: Mapping[str, str]) -> State:
    """The longest beginning that fits decides; a name that none fits stays."""
    longest_first = sorted(beginnings, key=len, reverse=True)
    renamed: State = {}
    for name, value in state.items():
        old = next((beginning for beginning in longest_first if name.startswith(beginning)), "")
        renamed[beginnings.get(old, "") + name[len(old) :]] = value
    return renamed
