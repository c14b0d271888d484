"""A small captioned split with COCO's kind of ids, and scores for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from xmatch.data.captions import CaptionSet

IMAGES, CAPTIONS_EACH, WIDTH = 10, 5, 6


def small_gallery(images: int = IMAGES) -> CaptionSet:
    """Images 101, 102, … as COCO names them, five captions each, no photographs."""
    ids = [f"COCO_val2014_{101 + row:012}" for row in range(images)]
    owners = np.repeat(np.arange(images), CAPTIONS_EACH)
    texts = [f"caption {i} of image {row}" for row in range(images) for i in range(CAPTIONS_EACH)]
    return CaptionSet(ids, [""] * images, texts, [str(1001 + row) for row in range(len(owners))], owners)


def small_embeddings(images: int = IMAGES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit (N, D) and (5N, D) float32; captions lie near their image."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((images, WIDTH), dtype=np.float32)
    text = rng.standard_normal((images * CAPTIONS_EACH, WIDTH), dtype=np.float32)
    text += np.repeat(image, CAPTIONS_EACH, axis=0)
    for rows in (image, text):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return image, text


def write_gallery(folder: Path, gallery: CaptionSet) -> str:
    """The split as Karpathy's JSON; its path."""
    entries = []
    for row, name in enumerate(gallery.image_ids):
        own = np.flatnonzero(gallery.caption_image == row)
        sentences = [{"raw": gallery.captions[at], "sentid": int(gallery.caption_ids[at])} for at in own]
        entries.append({"filename": f"{name}.jpg", "split": "test", "sentences": sentences})
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    return str(path)


def write_cxc(folder: Path, gallery: CaptionSet) -> str:
    """CxC's three CSVs: every original pair matches, caption 0 and image 0 also match their neighbours; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"COCO_val2014:sentid:{one}" for one in gallery.caption_ids]
    images = [f"{one}.jpg" for one in gallery.image_ids]
    owners = gallery.caption_image.tolist()
    rows = {
        "sits": ("caption,image", [(t, images[owner], 5 - 0.1 * owner) for t, owner in zip(texts, owners)]),
        "sis": ("image1,image2", [(a, b, 5 * i / len(images)) for i, (a, b) in enumerate(zip(images, images[1:]))]),
        "sts": ("caption1,caption2", [(a, b, 5 * i / len(texts)) for i, (a, b) in enumerate(zip(texts, texts[7:]))]),
    }
    for kind, (head, lines) in rows.items():
        body = "".join(f"{a},{b},{score:.3f},any\n" for a, b, score in lines)
        (folder / f"{kind}_test.csv").write_text(f"{head},agg_score,sampling_method\n{body}")
    return str(folder)


def write_truth(folder: Path, gallery: CaptionSet, name: str = "eccv") -> str:
    """ECCV Caption's two JSON files over the first images of the split; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    image = [int(one[-12:]) for one in gallery.image_ids]
    text = [int(one) for one in gallery.caption_ids]
    forward = {image[row]: [text[at] for at in range(5 * row, 5 * row + 7)] for row in range(3)}
    backward = {text[at]: [image[at // 5], image[at // 5 + 1]] for at in range(10)}
    (folder / f"{name}_image_to_caption.json").write_text(json.dumps(forward))
    (folder / f"{name}_caption_to_image.json").write_text(json.dumps(backward))
    return str(folder)
