"""The presets in miniature: tiny folders in the originals' layouts, and the settings that shrink each preset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from small_models import CAPTIONS, karpathy_json, tiny_vocabulary
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from jobs import convert

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
OURS = ("example", "recommended")
"""How the names of presets begin that no original has."""
ALIGNMENT = ("agree", "selfalign", "mvptr")
"""What stands in the names of those that jobs/train_alignment.py takes."""
PRESETS = sorted(
    path.stem
    for path in CONFIGS.glob("*.yaml")
    if not path.stem.startswith(OURS) and not any(word in path.stem for word in ALIGNMENT)
)
DIM, REGION_WIDTH, WORDS = 8, 6, 34
HALF = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "num_attention_heads": 2}
HOSTS = ("vsrn", "camera")
"""How the names of presets begin that reason over precomputed regions."""
LETTERS = "abcdefghijkl"


def precomp(folder: Path, *, regions: bool, members: int = 4) -> Path:
    """A precomputed tree of 7 training and 4 validation images, five captions each, with photos a.jpg … k.jpg."""
    places = {"train": range(7), "dev": range(7, 11)}
    tree = folder / "precomp"
    tree.mkdir(parents=True)
    for split, images in places.items():
        if regions:
            draw = np.random.default_rng(len(images))
            shape = (len(images), members, REGION_WIDTH) if members else (len(images), REGION_WIDTH)
            np.save(tree / f"{split}_ims.npy", draw.normal(size=shape).astype(np.float32))
            corners = np.sort(draw.uniform(0, 50, size=(len(images), members or 1, 2, 2)), axis=2)
            np.save(tree / f"{split}_boxes.npy", corners.reshape(len(images), -1, 4).astype(np.float32))
            np.save(tree / f"{split}_img_sizes.npy", np.full((len(images), 2), 50))
        lines = [f"{CAPTIONS[(image + n) % 4]} a {LETTERS[image]}" for image in images for n in range(5)]
        (tree / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
        (tree / f"{split}_ids.txt").write_text("".join(f"{image}\n" for image in images))
    names = {str(image): f"{LETTERS[image]}.jpg" for images in places.values() for image in images}
    (folder / "id_mapping.json").write_text(json.dumps(names))
    return tree


def save_bert(folder: Path, layers: int) -> str:
    """A BERT with its tokenizer."""
    torch.manual_seed(0)
    settings = HALF | {"num_hidden_layers": layers, "vocab_size": WORDS, "max_position_embeddings": 512}
    BertModel(BertConfig(**settings)).save_pretrained(folder)
    tiny_vocabulary().save_pretrained(folder)
    return str(folder)


def save_clip(folder: Path, kind: str) -> str:
    """A CLIP or SigLIP of transformers with its tokenizer."""
    torch.manual_seed(0)
    vision = HALF | {"image_size": 32, "patch_size": 16}
    text = HALF | {"vocab_size": WORDS, "max_position_embeddings": 20}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if kind == "clip":
        CLIPModel(CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=DIM)).save_pretrained(folder)
    else:
        halves = {"text_config": text | ends | {"projection_size": 16}, "vision_config": vision}
        SiglipModel(SiglipConfig(**halves)).save_pretrained(folder)
    tiny_vocabulary().save_pretrained(folder)
    return str(folder)


def data_of(name: str, folder: Path, images: str) -> list[str]:
    """Where a preset's captions and images lie."""
    if name.startswith(("vse_infty", *HOSTS)):
        is_region = "region" in name or name.startswith(HOSTS)
        tree = str(precomp(folder, regions=is_region))
        places = [] if is_region else ["--train.images", images, "--valid.images", images]
        return ["--train.captions", tree, "--valid.captions", tree, *places]
    names = [f"{letter}.jpg" for letter in LETTERS]
    captions = karpathy_json(folder / "captions.json", {"train": names[:8], "val": names[8:]})
    return [
        part for side in ("train", "valid") for part in (f"--{side}.captions", captions, f"--{side}.images", images)
    ]


def small_towers(name: str, folder: Path) -> list[str]:
    """The settings that make a preset's towers tiny; weights are random."""
    if name in ("clip_finetune", "siglip_finetune"):
        return small_clip(name.removesuffix("_finetune"), folder)
    if name.startswith(("vse_infty_region", *HOSTS)):
        image = ["--model.image.width", str(REGION_WIDTH)]
    elif name.startswith("vse_infty_grid"):
        image = ["--model.image.weights", "none", "--model.image.image_size", "64"]
    else:
        image = ["--model.image.name", "test_resnet.r160_in1k", "--model.image.weights", "none"]
        image += ["--model.image.image_size", "32", "--model.image.resize", "36"]
    if name.startswith("camera"):
        image += ["--model.image_context.heads", "2", "--model.text_context.heads", "2"]
    if name.endswith("_bigru") or name.startswith(("vse_pp", "vsrn")):
        text = ["--model.text.hidden_size", str(DIM), "--model.text.word_dim", "6"]
    else:
        text = ["--model.text.name", save_bert(folder / "bert", layers=4)]
    return ["--model.dim", str(DIM), *image, *text]


def small_clip(kind: str, folder: Path) -> list[str]:
    """A tiny CLIP or SigLIP, converted as the recipe says."""
    original, ours = save_clip(folder / kind, kind), str(folder / "converted")
    given = ["--what", "import_model", "--kind", "clip", "--input", original, "--output", ours]
    assert convert.main(given) == 0
    names = ["--model.image.name", original, "--model.text.name", original, "--init_from", ours]
    sizes = ["--model.image.image_size", "32", "--model.image.resize", "32", "--model.text.max_len", "20"]
    return [*names, *sizes, "--model.dim", str(DIM if kind == "clip" else 16)]


def miniature(name: str, folder: Path, images: str) -> list[str]:
    """The arguments of `jobs/train_xmatch.py` that run a preset in miniature; output goes to `folder`/out."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *("--config", str(CONFIGS / f"{name}.yaml")),
        *data_of(name, folder, images),
        *small_towers(name, folder),
        *("--trainer.batch_size", "8", "--trainer.epochs", "2", "--output", str(folder / "out")),
    ]
