"""Made-up images with regions, captions with phrases, and files of every task, each in its own form; small recipes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from small_models import tiny_vocabulary

from alignment.mvptr.config import Lengths
from alignment.mvptr.corpus import write_corpus
from alignment.mvptr.pair_recipe import MvptrPairRecipe
from alignment.mvptr.phrase_extraction import PHRASE_TABLE
from alignment.mvptr.recipe_base import MvptrData
from alignment.mvptr.recipe_choice import recipe_class
from alignment.mvptr.recipe_config import MATCHING, MvptrTrainConfig, SizesConfig, SplitConfig
from alignment.mvptr.recipe_data import read_side, start_of
from alignment.mvptr.regions.table import write_regions
from alignment.mvptr.task_recipe import MvptrTaskRecipe
from alignment.mvptr.tasks.samples import Sample, write_samples
from xmatch.data import files
from xmatch.data.region_rows import ImageRegions
from xmatch.training.optim import GroupConfig
from xmatch.training.recipe import PartedLoss, SampleKey
from xmatch.training.step import StepConfig, Stepper

WIDTH = 10
SIDE = 100
"""Pixels of an image's sides."""
NOUNS = ("cat", "dog", "world", "mat")
ANSWERS = ["yes", "no", "2", "red", "cat"]
SMALL = SizesConfig(
    hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, attention_dropout=0.0, max_positions=64
)
LENGTHS = Lengths(text=12, phrases=4, tags=6, regions=4)


def image_name(row: int) -> str:
    """Ids as Flickr30k has them."""
    return str(1000000000 + row)


def regions_of(row: int, count: int | None = None) -> ImageRegions:
    """The regions of a made-up image, one to four, a function of its row."""
    draw = np.random.default_rng((7, row))
    count = count or 1 + row % 4
    corners = np.sort(draw.uniform(0, SIDE, (count, 2, 2)), axis=1).reshape(count, 4)
    boxes = np.stack([corners[:, 0], corners[:, 1], corners[:, 2] + 1, corners[:, 3] + 1], 1).clip(0, SIDE)
    features = draw.normal(size=(count, WIDTH)).astype(np.float32)
    tags = tuple(NOUNS[int(draw.integers(4))] for _ in range(count))
    return ImageRegions(image_name(row), boxes.astype(np.float32), features, SIDE, SIDE, tags)


def write_bank(folder: Path, count: int, each: int | None = None) -> str:
    """A table of regions of `count` images; `each` has so many, or one to four."""
    path = str(folder / "regions.arrow")
    write_regions(path, [regions_of(row, each) for row in range(count)])
    return path


def caption(row: int, number: int = 0) -> tuple[str, list[list[str]]]:
    """A caption of an image, and its phrases; every seventh has none."""
    noun, other = NOUNS[(row + number) % 4], NOUNS[(row // 4 + number) % 4]
    text = f"a big {noun} sat on the red {other} ."
    return (text, []) if row % 7 == 6 else (text, [[noun], [noun, "big"], [noun, "sit on", other]])


def write_pairs(path: Path, rows: range, each: int = 2) -> str:
    """Captions of images with their phrases, as jobs/extract_phrases.py writes them."""
    columns: list[list[Any]] = [[], [], [], [], []]
    for row in rows:
        for number in range(each):
            text, phrases = caption(row, number)
            for column, value in zip(columns, (f"{row}:{number}", image_name(row), text, phrases, None), strict=True):
                column.append(value)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PHRASE_TABLE, strict=True)]
    files.write_parquet(str(path), pa.table(arrays, schema=PHRASE_TABLE))
    return str(path)


def write_questions(folder: Path, rows: range, each: int = 2) -> dict[str, str]:
    """The original's corpus: of every image one caption with phrases, and questions with their answers."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for row in rows:
        image = f"gqa_{image_name(row)}"
        samples.append(Sample("", image, caption(row)[0], [7], links=[[2]]))
        for number in range(each):
            answer = NOUNS[(row + number) % 4] if row % 3 else "a big dog"
            text = "is it the lovely one ?" if number else "is it on the mat ?"
            samples.append(Sample("", image, text, [11], links=[[4]], answer=answer))
    places = {"pairs": str(folder / "corpus.tsv"), "phrases": str(folder / "sg.json")}
    write_corpus(*places.values(), samples, str(folder))
    return places | {"answers": f"gqa={folder}"}


def _json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def write_vqa(folder: Path, count: int) -> dict[str, str]:
    """Questions, their phrases and the answers; each question is right with one answer, and half right with another."""
    draw = np.random.default_rng(count)
    rows = []
    for row in range(count):
        label = int(draw.integers(len(ANSWERS)))
        own = {"an": [label, (label + 1) % len(ANSWERS)], "s": [1.0, 0.3], "img_id": image_name(row), "q_id": row}
        rows.append({"q": f"is the {NOUNS[row % 4]} big", "o": "cat;dog", **own})
    return {
        "data": _json(folder / "train_qla_mrcnn.json", rows),
        "phrases": _json(folder / "train_sg_tuples.json", [[[row % 30], {}] for row in range(count)]),
        "answers": _json(folder / "trainval_label2ans.json", ANSWERS),
    }


def write_entailment(folder: Path, count: int) -> dict[str, str]:
    """Sentences of all three classes, and their phrases."""
    from alignment.mvptr.tasks.entailment import LABELS

    draw, lines, phrases = np.random.default_rng(count), [], []
    for row in range(count):
        text, own = caption(row)
        label = LABELS[int(draw.integers(3))]
        record = {"pairID": f"{row}.jpg#{row}r1", "Flickr30K_ID": image_name(row), "sentence2": text}
        lines.append(json.dumps({**record, "gold_label": label}) + "\n")
        phrases.append([own, record["pairID"]])
    (folder / "snli_ve_train.jsonl").write_text("".join(lines))
    return {"data": str(folder / "snli_ve_train.jsonl"), "phrases": _json(folder / "train_sgs.json", phrases)}


def write_expressions(folder: Path, count: int) -> dict[str, str]:
    """Expressions that each mean one of their image's four regions."""
    draw, records = np.random.default_rng(count), []
    for row in range(count):
        box = regions_of(row, 4).boxes[int(draw.integers(4))].astype(float)
        sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        noun = NOUNS[row % 4]
        records.append({"id": row, "sentence": f"the {noun}", "image_id": int(image_name(row)), "bbox": sides})
    return {"data": _json(folder / "ve_splits.json", {"train": records, "val": records})}


def save_tokenizer(folder: Path) -> str:
    """The toy tokenizer in a folder."""
    tiny_vocabulary().save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def train_config(folder: Path, task: str, count: int = 8, **changes: Any) -> MvptrTrainConfig:
    """A training of a task on made-up data, which is written; validation is the same data."""
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if task in MATCHING:
        split = SplitConfig(pairs=write_pairs(folder / "pairs.parquet", range(count)))
        valid = split
    elif task == "vqa":
        made = write_vqa(folder, count)
        more["answers"] = made.pop("answers")
        split = valid = SplitConfig(**made)
    elif task == "snli_ve":
        split = valid = SplitConfig(data=write_entailment(folder, count)["data"])
    else:
        made = write_expressions(folder, count)
        split, valid = (SplitConfig(**made, split=name) for name in ("train", "val"))
    settings: dict[str, Any] = {
        "task": task,
        "train": split,
        "valid": valid,
        "regions": write_bank(folder, count, 4 if task == "refexp" else None),
        "tokenizer": save_tokenizer(folder),
        "lengths": LENGTHS,
        "model": SMALL,
        "dropout": 0.0,
        "min_sentences": 1,
    }
    return MvptrTrainConfig(**(settings | more | changes))


def recipe_of(folder: Path, config: MvptrTrainConfig, init_from: str = "") -> MvptrPairRecipe | MvptrTaskRecipe:
    """The recipe of a training, as the job hands it to its workers."""
    start = start_of(config, init_from, WIDTH)
    for side in ("train", "valid"):
        write_samples(str(folder / f"{side}.arrow"), read_side(config, side, start))
    data = MvptrData(train=str(folder / "train.arrow"), valid=str(folder / "valid.arrow"), init_from=init_from)
    return recipe_class(config)(config, start, GroupConfig(), data)


def learn(
    recipe: Any, steps: int, lr: float = 3e-3, rows: int | None = None, epoch: int = 0
) -> tuple[Any, list[float]]:
    """The recipe's model after so many steps over its first samples, and the loss of each."""
    torch.manual_seed(0)
    model = recipe.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    indices, losses = np.arange(rows or recipe.num_samples), []
    for step in range(steps):
        batch = recipe.batch(indices, SampleKey(0, epoch))
        torch.manual_seed(step)
        optimizer.zero_grad()
        found = recipe.loss(model, recipe.embed(model, batch), epoch)
        total = found.total if isinstance(found, PartedLoss) else found
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return model, losses


def worker_step(given: tuple[str, MvptrTrainConfig], rank: int, world: int) -> dict[str, Any]:
    """Loss, its parts and gradients of one step over seven samples, of which a worker has every W-th, with dropout."""
    folder, config = Path(given[0]) / f"{rank}-{world}", given[1]
    folder.mkdir()
    recipe = recipe_of(folder, config)
    torch.manual_seed(1)
    model = recipe.build_model()
    with torch.no_grad():
        for parameter in model.parameters():  # states far from each other, so that a wrong row shows
            parameter.mul_(4.0) if parameter.ndim > 1 else None
    own = np.arange(rank, -(-7 // world) * world, world)
    is_real = torch.from_numpy(own < 7)
    own = own.clip(max=6)
    outcome = Stepper(recipe, model, StepConfig()).backward(
        recipe.batch(own, SampleKey(3, 1)), is_real, samples=torch.from_numpy(own), epoch=1, seed=5
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "loss": float(outcome.loss),
        "parts": {k: float(v) for k, v in outcome.parts.items()},
        "gradients": gradients,
    }


def worker_steps(given: list[tuple[str, MvptrTrainConfig]], rank: int, world: int) -> list[dict[str, Any]]:
    """`worker_step` of every training, one after the other."""
    return [worker_step(one, rank, world) for one in given]


def with_dropout(config: MvptrTrainConfig, share: float = 0.2) -> MvptrTrainConfig:
    """The same with dropout everywhere."""
    return dataclasses.replace(config, dropout=share, model=dataclasses.replace(SMALL, attention_dropout=share))
