"""The golden cases of MVPTR and models that have their weights; and small models of drawn weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizerFast

from alignment.mvptr.config import Lengths, MvptrConfig
from alignment.mvptr.heads import HeadConfig, Matcher, TaskModel, build
from alignment.mvptr.losses_config import MvptrLossConfig
from alignment.mvptr.model import Inputs, MvptrModel
from alignment.mvptr.objectives import Draws, draws_of
from alignment.mvptr.original_names import from_original
from alignment.mvptr.pair_losses import PairBatch, pair_losses, pair_rows, weighted_total
from xmatch.training.gather import gather_rows
from xmatch.training.recipe import SampleKey
from xmatch.training.sample_dropout import SampleDropout
from xmatch.training.step import average_gradients

GOLDEN = Path(__file__).parents[1] / "golden" / "agree_mvptr"
TINY = MvptrConfig(
    hidden_size=8,
    num_layers=4,
    num_heads=2,
    intermediate_size=16,
    dropout=0.0,
    attention_dropout=0.0,
    max_positions=24,
    vocab_size=60,
    only_word_size=40,
    region_width=10,
    lengths=Lengths(text=6, phrases=3, tags=5, regions=4),
)
"""The sizes of the golden weights."""
CLOSE = {"rtol": 1e-4, "atol": 1.2e-5}


def golden(name: str) -> dict[str, Any]:
    """A golden file of MVPTR."""
    return json.loads((GOLDEN / f"mvptr_{name}.json").read_text())


def golden_state(name: str = "tiny_weights") -> dict[str, torch.Tensor]:
    """Weights of a golden file under the original's names."""
    return {key: torch.tensor(value) for key, value in golden(name)["state_dict"].items()}


def golden_inputs() -> Inputs:
    """The four pairs of `mvptr_forward`."""
    given = golden("forward")["inputs"]
    return Inputs(**{name: torch.tensor(given[name]) for name in Inputs._fields})


def golden_task(head: HeadConfig, name: str = "tiny_weights", config: MvptrConfig = TINY) -> TaskModel:
    """The model of a task with the weights of a golden file."""
    model = build(config, head)
    state = from_original(golden_state(name), head.task)
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("qa_head")})
    return model.eval()


def golden_model(config: MvptrConfig = TINY) -> MvptrModel:
    """The bare model with the golden weights."""
    return golden_task(HeadConfig(task="pretraining", tied=False), config=config).mvptr


ORIGINAL = MvptrLossConfig(same_image="negative", max_logit_scale=0.0, wpg_pairing="as_drawn", negatives="local")
"""What the original counts."""


def golden_order(permutation: list[int]) -> torch.Tensor:
    """Numbers that sort pairs into the order that the original drew."""
    order = torch.zeros(len(permutation), dtype=torch.float64)
    order[permutation] = torch.arange(len(permutation), dtype=torch.float64) / len(permutation)
    return order


def golden_rank(ranks: list[int], of: int = 3) -> torch.Tensor:
    """Numbers in [0, 1) that choose places drawn by the original, of so many."""
    return (torch.tensor(ranks, dtype=torch.float64) + 0.5) / of


def golden_batch(draws: Draws) -> PairBatch:
    """The four pairs of `mvptr_forward` with the labels of `mvptr_pretrain_losses`."""
    given, labels = golden("forward")["inputs"], golden("pretrain_losses")
    return PairBatch(
        golden_inputs(),
        torch.arange(4),
        torch.arange(4),
        draws,
        torch.tensor(given["phrase_index"]),
        torch.tensor(labels["masked_lm_labels_a"]),
        torch.tensor(labels["masked_lm_labels_b"]),
    )


def drawn_batch(count: int, seed: int = 0, config: MvptrConfig = TINY) -> PairBatch:
    """Made-up pairs of all lengths: texts of phrases and words, some without phrases, tags, regions, masked places."""
    draw, lengths = torch.Generator().manual_seed(seed), config.lengths

    def numbers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (count, 1), generator=draw)

    tokens, phrases = numbers(1, lengths.text - 1), numbers(0, lengths.phrases + 1)
    tags, regions = numbers(0, lengths.tags - 1), numbers(1, lengths.regions + 1)
    text, image = torch.arange(lengths.text_stream), torch.arange(lengths.vision_stream)
    text_mask = text < tokens + phrases + 2
    tag_mask, region_mask = image[: lengths.tags] < tags + 2, image[: lengths.regions] < regions
    words = torch.randint(3, config.only_word_size, (count, lengths.text_stream), generator=draw)
    tag_ids = torch.randint(3, config.only_word_size, (count, lengths.tags), generator=draw)
    is_masked = (torch.rand(words.shape, generator=draw) < 0.3) & (text >= 1) & (text <= tokens)
    tag_masked = (torch.rand(tag_ids.shape, generator=draw) < 0.3) & (image[: lengths.tags] >= 1) & tag_mask
    inputs = Inputs(
        torch.where(text_mask, words, 0).masked_fill(is_masked, 3),
        text_mask.long(),
        torch.zeros_like(words),
        torch.where(tag_mask, tag_ids, 0).masked_fill(tag_masked, 3),
        torch.cat([tag_mask, region_mask], dim=1).long(),
        tag_mask.long(),
        torch.randn(count, lengths.regions, config.region_width, generator=draw) * region_mask[..., None],
    )
    tag_labels = torch.where(tag_masked, tag_ids, -1)
    nothing = torch.full((count, lengths.regions), -1)
    samples = torch.arange(count)
    return PairBatch(
        inputs,
        samples,
        samples,
        draws_of(samples.tolist(), SampleKey(seed, 0), lengths.text_stream),
        torch.cat([1 + tokens, 1 + tokens + phrases], dim=1),
        torch.where(is_masked, words, -1),
        torch.cat([tag_labels, nothing], dim=1),
        torch.randint(-1, 2, (count,), generator=draw),
    )


STEPS: list[tuple[int, MvptrLossConfig]] = [
    (6, MvptrLossConfig(wpg_negatives="other_image")),
    (8, MvptrLossConfig(wpg_negatives="hard", hard="sampled", wpg_layer=0)),
    (7, MvptrLossConfig(use=("vsc", "qa"))),
    (5, MvptrLossConfig(wpg_regions="max")),
]
"""Batches that two workers compute together; of the odd one, one worker has a row less, as at the end of an epoch."""


def step(count: int, config: MvptrLossConfig, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Losses and gradients of a step over `count` drawn pairs, of which a worker has every W-th, with dropout."""
    torch.manual_seed(7)
    sizes = dataclasses.replace(TINY, initializer_range=0.3, dropout=0.2, attention_dropout=0.2)
    model = build(sizes, HeadConfig(task="pretraining", questions="qa" in config.active))
    assert isinstance(model, Matcher)
    batch = drawn_batch(count)._replace(image_row=torch.arange(count) // 2)
    own = torch.arange(rank, -(-count // world) * world, world)
    is_real, own = own < count, own.clamp(max=count - 1)
    torch.manual_seed(11)
    with SampleDropout(batch.sample[own]):
        rows = pair_rows(model, _taken(batch, own), config)
    valid = gather_rows(is_real)
    whole = {name: gather_rows(value)[valid] for name, value in sorted(rows.items())}
    losses = pair_losses(model, whole, config)
    weighted_total(losses, config).backward()
    average_gradients(model)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": {name: value.item() for name, value in losses.items()}, "gradients": gradients}


def _taken(batch: PairBatch, rows: torch.Tensor) -> PairBatch:
    draws = Draws(*(part[rows] for part in batch.draws))
    given = (batch.phrase_index, batch.words, batch.tags, batch.answers)
    labels = (part[rows] for part in given if part is not None)
    return PairBatch(batch.inputs.take(rows), batch.image_row[rows], batch.sample[rows], draws, *labels)


def steps(cases: list[tuple[int, MvptrLossConfig]], rank: int, world: int) -> list[dict[str, Any]]:
    """`step` of every case, one after the other."""
    return [step(*case, rank, world) for case in cases]


WORDS = """[PAD] [CLS] [SEP] [MASK] [UNK] a the two dog dogs cat on ground playing are is and red umbrella child ##s
man""".split()
PHRASES: dict[int, tuple[str, ...]] = {
    8: ("dog",),
    40: ("dog", "red"),
    41: ("cat", "on", "ground"),
    59: ("child", "the"),
}
"""Phrases for the tiny model: one of them is a word."""


def tiny_tokenizer() -> Any:
    """A BERT tokenizer of a few words, whose [CLS] and [SEP] are those of the golden cases."""
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})


def write_original(folder: Path, state: dict[str, torch.Tensor], **changes: Any) -> str:
    """A checkpoint folder as the original writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 24,
        "vocab_size": 60,
        "only_word_size": 40,
        "img_feature_dim": 10,
        "use_img_layernorm": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    (folder / "config.json").write_text(json.dumps(values | changes))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save(state, folder / "pytorch_model.bin")
    return str(folder)
