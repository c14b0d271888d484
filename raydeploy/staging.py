"""What workers are given as a model or tokenizer: what the driver found, where every worker can read it."""

from __future__ import annotations

import os
from dataclasses import replace

from raydeploy.environment import joins_a_cluster
from xmatch.data import files
from xmatch.models.dual_encoder_config import DualEncoderConfig
from xmatch.models.hub import Kind
from xmatch.models.staging import content_hash, content_of, is_staged, local_folder, stage, stage_file
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.models.towers.timm_backbones import hub_name

STAGED = "models"
"""Folder of staged models below a run's output."""


def place_for_workers(name: str, kind: Kind, output: str, staging: str = "") -> str:
    """A model or tokenizer as workers shall load it.

    A local folder is given as it is where the workers are on this machine and the output too. All else is staged, in
    folders named by content: hub names, URIs, and local folders that other machines may not have.

    Args:
        name: folder, URI or hub name.
        kind: which files are staged.
        output: folder or URI prefix of the run.
        staging: folder or URI prefix for staged folders, which is then always used; empty: OUTPUT/models.

    Raises:
        InputError: there is no such model or tokenizer, or the place cannot be written.
    """
    is_shared = files.is_uri(name) and is_staged(name)
    if is_shared or (os.path.isdir(name) and not staging and _is_one_machine(output)):
        return name
    return stage(local_folder(name, kind), kind, staging or files.join(output, STAGED))


def file_for_workers(path: str, output: str, staging: str = "") -> str:
    """A single file, such as weights or names of classes, as workers shall open it (`staging.opened_file`).

    A local one is staged, as `place_for_workers` has it. A URI is given as it is.

    Raises:
        InputError: it is not there, or the place cannot be written.
    """
    if files.is_uri(path) or (not staging and _is_one_machine(output)):
        return path
    return stage_file(path, staging or files.join(output, STAGED))


def _is_one_machine(output: str) -> bool:
    return not files.is_uri(output) and not joins_a_cluster()


def tokenizer_identity(name: str) -> str:
    """What identifies a tokenizer in a run: a local folder by its name, all else by its content.

    Raises:
        InputError: there is no such tokenizer.
    """
    if os.path.isdir(name):
        return name
    return f"sha256 {content_hash(content_of(local_folder(name, 'tokenizer'), 'tokenizer'))}"


def image_tower_for_workers(tower: ImageTowerConfig, output: str) -> ImageTowerConfig:
    """A tower as workers shall load it.

    Raises:
        InputError: the hub does not give it, or its file of weights is not there.
    """
    is_loaded = tower.weights == "pretrained"
    if tower.weights not in ("pretrained", "none"):
        place = file_for_workers(tower.weights, output)
        return tower if place == tower.weights else replace(tower, weights=place)
    if tower.kind not in ("timm", "clip") or (tower.kind == "timm" and not is_loaded):
        return tower
    name = tower.name
    if tower.kind == "timm" and not os.path.isdir(name):
        name = hub_name(name)
        if not name or not os.path.exists(os.path.join(local_folder(name, "model"), "config.json")):
            return tower  # its weights come from elsewhere, or timm's own cache has them without the rest
    kind: Kind = "model" if is_loaded else "tokenizer"  # else its configuration alone
    return replace(tower, name=place_for_workers(name, kind, output))


def text_tower_for_workers(tower: TextTowerConfig, output: str) -> TextTowerConfig:
    """A tower as workers shall load it.

    Raises:
        InputError: the hub does not give it.
    """
    if tower.is_recurrent or not tower.name:
        return tower
    return replace(tower, name=place_for_workers(tower.name, "model" if tower.pretrained else "tokenizer", output))


def model_for_workers(model: DualEncoderConfig, output: str) -> DualEncoderConfig:
    """A dual encoder whose towers are named as workers shall load them.

    Raises:
        InputError: the hub does not give a tower.
    """
    image, text = image_tower_for_workers(model.image, output), text_tower_for_workers(model.text, output)
    return replace(model, image=image, text=text)
