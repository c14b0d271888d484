"""What all recipes of an MVPTR share: samples as tensors, the model to start from, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from alignment.mvptr.pair_inputs import PairInputs
from alignment.mvptr.recipe_config import MvptrTrainConfig
from alignment.mvptr.recipe_data import Start, places
from alignment.mvptr.recipe_start import begin, load_task_model, save_task_model
from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.tasks.samples import read_samples
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.training.optim import GroupConfig, parameter_groups
from xmatch.training.recipe import ParameterGroup
from xmatch.training.step import Precision


@dataclass(frozen=True, kw_only=True)
class MvptrData:
    """Where a recipe's samples lie: files or URIs that every worker can read."""

    train: str
    """Samples written by `tasks.samples.write_samples`."""
    valid: str
    """The same, of the split that chooses the best epoch."""
    init_from: str = ""
    """Saved model to start from, as workers read it; empty: anew."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of what lies at URIs."""


def open_inputs(config: MvptrTrainConfig, start: Start, data: MvptrData) -> tuple[PairInputs, PairInputs]:
    """The samples of training and validation as tensors."""
    fetch = LocalCache(data.cache).hold
    regions = RegionBanks(places(config.regions), start.config.region_width, fetch)
    given = (regions, start.tokenizer, start.config.lengths, config.tags)
    train, valid = (PairInputs(read_samples(path, fetch), *given, where=path) for path in (data.train, data.valid))
    return train, valid


class MvptrRecipe:
    """The part of a recipe, in the sense of `xmatch.training.recipe.Recipe`, that no task changes.

    Args:
        config: task, losses, schedule.
        start: sizes and vocabularies.
        groups: rates and decay.
        data: the samples.
        precision: number format of what a loss itself computes with the model, such as pairs of hard negatives.
    """

    def __init__(
        self,
        config: MvptrTrainConfig,
        start: Start,
        groups: GroupConfig,
        data: MvptrData,
        precision: Precision = "fp32",
    ) -> None:
        self.config, self.start, self.groups, self.data = config, start, groups, data
        self.precision: Precision = precision
        self.train, self.valid = open_inputs(config, start, data)
        self.prepare()

    def prepare(self) -> None:
        """Check the samples, and make what one task needs beside them."""

    @property
    def num_samples(self) -> int:
        """Training samples."""
        return len(self.train)

    def build_model(self) -> nn.Module:
        """The model to start from."""
        return begin(self.start, self.config, self.data.init_from).train()

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters by decay, rate and time of thawing."""
        return parameter_groups(model, self.groups)

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `alignment.mvptr.checkpoints.load` reads."""
        save_task_model(model, self.start, folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`."""
        load_task_model(model, folder)
