"""Drawn pairs for the losses of SelfAlign, in one process or in several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from alignment.selfalign.concept import Prototypes
from alignment.selfalign.config import SelfAlignConfig
from alignment.selfalign.recipe import SelfAlignRecipe, SelfAlignRecipeConfig
from alignment.selfalign.rows import Side, aligned_losses, aligned_rows
from xmatch.data.epoch_order import epoch_indices
from xmatch.data.tokenizers import train_wordpiece
from xmatch.data.words import build_vocabulary, wrap_words
from xmatch.models.context.config import ContextConfig
from xmatch.models.context_head import Context
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.models.heads import HeadConfig, normalise
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.dual_encoder_recipe import RecipeConfig, RecipeData
from xmatch.training.objectives import LossConfig
from xmatch.training.recipe import SampleKey
from xmatch.training.samples import CaptionsConfig, read_split, write_samples
from xmatch.training.side_losses import SideLossConfig
from xmatch.training.step import StepConfig, Stepper, _gather, average_gradients

WIDTH = 6


class Drawn(NamedTuple):
    """Pairs before an encoder: regions (B, K, D), words (B, L, D), their masks, and the image of each (B,)."""

    regions: torch.Tensor
    region_mask: torch.Tensor
    words: torch.Tensor
    word_mask: torch.Tensor
    image_row: torch.Tensor


def draw(seed: int, count: int, regions: int = 4, words: int = 5) -> Drawn:
    """Pairs with padding and with captions of one image."""
    generator = torch.Generator().manual_seed(seed)

    def mask(size: int) -> torch.Tensor:
        lengths = torch.randint(1, size + 1, (count, 1), generator=generator)
        return torch.arange(size)[None, :] < lengths

    return Drawn(
        torch.randn(count, regions, WIDTH, generator=generator),
        mask(regions),
        torch.randn(count, words, WIDTH, generator=generator),
        mask(words),
        torch.randint(max(2, count - 1), (count,), generator=generator),
    )


class Encoder(nn.Module):
    """A linear map, prototypes, and contexts that are sums, without a BatchNorm, which would see a worker's rows."""

    def __init__(self, prototypes: int = 7) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.map = nn.Linear(WIDTH, 4)
        self.prototypes = Prototypes(prototypes, 4)

    def side(self, rows: torch.Tensor, mask: torch.Tensor) -> Side:
        """One side of drawn pairs."""
        mapped = self.map(rows)
        parts = normalise(mapped) * mask[..., None]
        guide = normalise(parts.sum(1))
        return Side(mapped, mask, Context(guide, parts, guide, parts.mean(1)), mask)

    def rows(self, drawn: Drawn, config: SelfAlignConfig) -> dict[str, torch.Tensor]:
        """What the losses take."""
        sides = self.side(drawn.regions, drawn.region_mask), self.side(drawn.words, drawn.word_mask)
        return {**aligned_rows(*sides, self.prototypes(), config), "image_row": drawn.image_row}


class Step(NamedTuple):
    """The losses of a step, and the gradients in the encoder."""

    values: dict[str, float]
    gradients: dict[str, torch.Tensor]


def values_of(encoder: Encoder, drawn: Drawn, config: SelfAlignConfig) -> dict[str, torch.Tensor]:
    """The losses of drawn pairs."""
    rows = encoder.rows(drawn, config)
    return aligned_losses(rows, drawn.image_row[:, None] == drawn.image_row[None, :], config)


def step(seed: int, count: int, config: SelfAlignConfig, rank: int = 0, world: int = 1) -> Step:
    """One step over `count` drawn pairs, of which a worker has every W-th, cut to its own longest caption."""
    encoder, drawn = Encoder(), draw(seed, count)
    own = Drawn(*(part[rank::world] for part in drawn))
    width = int(own.word_mask.sum(1).max())
    own = own._replace(words=own.words[:, :width], word_mask=own.word_mask[:, :width])
    rows = _gather(encoder.rows(own, config))
    values = aligned_losses(rows, rows["image_row"][:, None] == rows["image_row"][None, :], config)
    torch.stack(list(values.values())).sum().backward()
    average_gradients(encoder)
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return Step({name: value.item() for name, value in values.items()}, gradients)


def steps(cases: list[tuple[int, int, SelfAlignConfig]], rank: int, world: int) -> list[Step]:
    """`step` of every case, one after the other."""
    return [step(*case, rank, world) for case in cases]


PAIRS, REGIONS, REGION_WIDTH = 64, 5, 12
TEXT = {
    "vsrn": TextTowerConfig(kind="words", name=None, layers=(1,), trainable=True, word_dim=16),
    "camera": TextTowerConfig(name=None, trainable=True, hidden_size=32, num_layers=1, num_heads=2, layers=(1,)),
}
TEXT["vse_infty"] = replace(TEXT["vsrn"], kind="bigru", hidden_size=32)
HOSTS: dict[str, dict[str, Any]] = {
    "vsrn": {
        "pooling": "last",
        "image_pooling": "gru",
        "image_context": ContextConfig(kind="gcn", layers=4, normalise_before=True, normalise_after=True),
        "text_context": ContextConfig(kind="gru"),
    },
    "camera": {
        "pooling": "mean",
        "image_pooling": "views",
        "views": 3,
        "image_context": ContextConfig(
            kind="gated_attention", heads=4, positions=True, normalise_before=True, normalise_after=True
        ),
        "text_context": ContextConfig(kind="gated_attention", heads=4, feed_forward=True, normalise_before=True),
    },
    "vse_infty": {"pooling": "gpo", "image_pooling": "gpo", "text_head": HeadConfig(kind="identity")},
}
SIDE_LOSSES = {
    "vsrn": SideLossConfig(caption_generation=1.0, caption_hidden=16, caption_word_dim=8),
    "camera": SideLossConfig(diversity=0.01),
    "vse_infty": SideLossConfig(),
}


def write_pairs(folder: Path, pairs: int = PAIRS) -> str:
    """A precomputed folder of regions with boxes, one caption each, no two alike; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("red", "big", "old", "wet"), ("cat", "dog", "cow", "hen"), ("runs", "sleeps", "eats", "looks up at us")
    captions = [" ".join(["a", *(kind[i // 4**place % 4] for place, kind in enumerate(words))]) for i in range(pairs)]
    draw = np.random.default_rng(4)
    regions = draw.normal(size=(pairs, REGIONS, REGION_WIDTH)).astype(np.float32)
    corners = draw.uniform(0, 50, (pairs, REGIONS, 2)).astype(np.float32)
    for split in ("train", "dev"):
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in range(pairs)))
        np.save(folder / f"{split}_ims.npy", regions)
        np.save(folder / f"{split}_boxes.npy", np.concatenate([corners, corners + 30], -1))
        np.save(folder / f"{split}_img_sizes.npy", np.full((pairs, 2), 100))
    return str(folder)


def host_config(host: str, **changes: Any) -> DualEncoderConfig:
    """A small host with a context head, on regions."""
    settings: dict[str, Any] = {
        "dim": 32,
        "image": ImageTowerConfig(kind="regions", output="grid", width=REGION_WIDTH),
        "image_head": HeadConfig(kind="fc"),
        "text": TEXT[host],
        "text_head": HeadConfig(kind="fc"),
        "context_head": True,
    }
    return DualEncoderConfig(**(settings | HOSTS[host] | changes))


def host_recipe(
    folder: Path, host: str, selfalign: SelfAlignConfig | None = None, pairs: int = PAIRS, **model: Any
) -> SelfAlignRecipe:
    """A recipe over drawn regions and their captions, with the host's own side losses."""
    place = write_pairs(folder / "precomp", pairs)
    for side, split in (("train", "train"), ("valid", "dev")):
        config = CaptionsConfig(captions=place, inputs="regions", split=split)
        write_samples(read_split(config), str(folder / side), config)
    captions = read_split(CaptionsConfig(captions=place, inputs="regions")).captions
    tokenizer = wrap_words(build_vocabulary(captions)) if TEXT[host].is_recurrent else train_wordpiece(captions, 200)
    matching = RecipeConfig(
        model=host_config(host, **model),
        loss=LossConfig(name="hardest_triplet", margin=0.2, warmup_epochs=1),
        side_losses=SIDE_LOSSES[host],
    )
    settings = SelfAlignRecipeConfig(matching=matching, selfalign=selfalign or SelfAlignConfig(prototypes=16))
    data = RecipeData(train=str(folder / "train"), valid=str(folder / "valid"))
    return SelfAlignRecipe(settings, tokenizer, data)


Found = tuple[float, dict[str, float], dict[str, torch.Tensor]]


def first_step(folder: Path, host: str, rank: int = 0, world: int = 1, step: StepConfig | None = None) -> Found:
    """Loss, its parts and the gradients of one step over 10 pairs, with BatchNorms as after training."""
    recipe = host_recipe(folder / f"{host}-{rank}-of-{world}", host, pairs=12, selfalign=SelfAlignConfig(prototypes=9))
    torch.manual_seed(0)
    model = recipe.build_model().eval()
    indices = epoch_indices(12, seed=3, epoch=0, worker_rank=rank, world_size=world, batch_size=10)[0]
    outcome = Stepper(recipe, model, step or StepConfig()).backward(
        recipe.batch(indices, SampleKey(3, 0)),
        torch.ones(len(indices), dtype=torch.bool),
        samples=torch.from_numpy(indices),
        epoch=1,
        seed=11,
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(outcome.loss), {name: float(value) for name, value in outcome.parts.items()}, gradients


def first_steps(folder: Path, rank: int, world: int) -> list[Found]:
    """`first_step` of every host."""
    return [first_step(folder, host, rank, world) for host in HOSTS]
