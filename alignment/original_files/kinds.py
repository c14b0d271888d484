"""Every file of AGREE by name: how it becomes files of ours, and how ours become it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from alignment.entities.entity_tables import (
    box_table,
    boxes_of_images,
    entity_rows,
    entity_table,
    read_boxes,
    read_entities,
    write_boxes,
    write_entities,
)
from alignment.original_files import captions, features, image_arrays, objects, predictions, scores, truth, vg_archive
from alignment.original_files.json_lines import WHOLE, read_lines
from alignment.original_files.predictions import Key
from alignment.rerank.candidates import read_predictions
from alignment.rerank.entity_slots import read_bare_text, read_slots
from xmatch.data import files
from xmatch.data.image_sets import IMAGE_SUFFIXES
from xmatch.data.text_captions import read_text_captions
from xmatch.data.vectors import read_vectors, write_vectors
from xmatch.errors import InputError

AgreeFile = Literal[
    "train",
    "val",
    "segs",
    "truth",
    "images",
    "objects",
    "vg",
    "grounding",
    "image_features",
    "text_features",
    "prompt_features",
    "mask_features",
    "predictions",
    "score",
]
Rows = list[tuple[str, str]]
"""(what, where or how many) of what a conversion wrote, for a person."""

CAPTIONS, ENTITIES, GROUNDED = "captions.json", "entities.parquet", "grounded.parquet"
BOXES, OBJECTS, REGIONS, IMAGES = "boxes.parquet", "objects.parquet", "regions.parquet", "images"
VISUAL_GENOME, GROUNDING = "visual_genome", "grounding"
SHOWN = 3
"""Of what was left out, named in the report; the file beside names all."""


@dataclass(frozen=True, kw_only=True)
class AgreeConfig:
    """What a file of AGREE needs beside itself."""

    file: AgreeFile = "predictions"
    """Which file. `train`: training JSONL with segs and preds. `val`: flickr30k_val.json. `segs`: *_segs.jsonl.
    `truth`: test texts and images JSONL. `images`: an npz of images. `objects`: *_imgs_objs.jsonl. `vg`: VG.tgz or
    its folder. `grounding`: flickr30k_visual_grounding.224.npz. `image_features`, `text_features`, `prompt_features`,
    `mask_features`: features JSONL. `predictions`: lists JSONL. `score`: score JSON."""
    side: Literal["texts", "images"] = "texts"
    """Who found the lists: captions, or images (export predictions)."""
    split: str = "test"
    """Name of the split of captions that are read (train, val, truth)."""
    images: str = ""
    """The npz of the images themselves (import grounding), or a folder of image files (export vg, grounding)."""
    captions: str = ""
    """captions.json that was made of `train`, which says which array is which image (import grounding); the captions of
    features (export prompt_features, mask_features)."""
    truth: str = ""
    """Texts JSONL of the ground truth (import segs, export score)."""
    entities: str = ""
    """Entities table: empty slots of features are left out by it (import prompt_features, mask_features)."""
    prompts: str = ""
    """Vectors of prompts (export prompt_features, mask_features)."""
    masks: str = ""
    """Vectors of masked captions (export prompt_features, mask_features)."""
    bare_text: str = ""
    """Vector of the empty text, for empty slots (export prompt_features, mask_features)."""
    slots: int = 10
    """Entities of a caption (export prompt_features, mask_features)."""


class AgreeForm(NamedTuple):
    """One file of AGREE.

    Attributes:
        read: from its path, and a folder for ours.
        write: from the place of ours, and a folder for it.
        reads: settings that reading needs.
        writes: settings that writing needs.
    """

    read: Callable[[str, str, AgreeConfig], Rows]
    write: Callable[[str, str, AgreeConfig], Rows]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def convert_agree(way: Literal["import", "export"], source: str, output: str, config: AgreeConfig) -> Rows:
    """Read a file of AGREE into ours, or write it from ours.

    Raises:
        InputError: a setting that the file needs is missing, or the input is broken.
    """
    form = AGREE_FILES[config.file]
    for name in form.reads if way == "import" else form.writes:
        if not getattr(config, name):
            raise InputError(f"{way} of AGREE's {config.file} needs --agree.{name}.")
    return (form.read if way == "import" else form.write)(source, output, config)


def _left_out(output: str, found: Sequence[str]) -> Rows:
    """All of it in a file, the first of it for a person; nothing where there is none."""
    if not found:
        return []
    path = files.join(output, "left_out.json")
    files.write_json(path, list(found))
    return [("left out", f"{len(found):,}, listed in {path}"), *(("", one) for one in found[:SHOWN])]


def _read_captions(read: Callable[[str, str], captions.Captions]) -> Callable[[str, str, AgreeConfig], Rows]:
    def convert(source: str, output: str, config: AgreeConfig) -> Rows:
        found = read(source, config.split)
        files.write_json(files.join(output, CAPTIONS), found.karpathy)
        count = sum(len(image["sentences"]) for image in found.karpathy["images"])
        rows = [("captions", f"{count:,} of {len(found.karpathy['images']):,} images, {files.join(output, CAPTIONS)}")]
        if found.entities:
            write_entities(files.join(output, ENTITIES), entity_table(found.entities))
            files.write_parquet(files.join(output, GROUNDED), found.grounded)
            rows.append(("entities", f"{sum(len(one.entities) for one in found.entities):,}"))
        return rows + _left_out(output, found.not_in_caption)

    return convert


def _write_train(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "train.jsonl")
    grounded = files.join(source, GROUNDED)
    count = captions.write_train(
        path,
        files.read_json(files.join(source, CAPTIONS)),
        entity_rows(read_entities(files.join(source, ENTITIES))),
        files.read_parquet(grounded) if files.exists(grounded) else None,
    )
    return [("captions", f"{count:,}, {path}")]


def _write_val(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "flickr30k_val.json")
    return [("images", f"{captions.write_val(path, files.read_json(files.join(source, CAPTIONS))):,}, {path}")]


def _read_segs(source: str, output: str, config: AgreeConfig) -> Rows:
    found, missing = captions.read_segs(source, truth.read_truth(config.truth).items)
    path = files.join(output, ENTITIES)
    write_entities(path, entity_table(found))
    return [("entities", f"{sum(len(one.entities) for one in found):,}, {path}"), *_left_out(output, missing)]


def _write_segs(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "test_segs.jsonl")
    return [("captions", f"{captions.write_segs(path, entity_rows(read_entities(source))):,}, {path}")]


def _read_truth(source: str, output: str, config: AgreeConfig) -> Rows:
    found = truth.karpathy_of(truth.read_truth(source), config.split)
    path = files.join(output, CAPTIONS)
    files.write_json(path, found)
    return [("images", f"{len(found['images']):,}"), ("captions", path)]


def _write_truth(source: str, output: str, config: AgreeConfig) -> Rows:
    texts, images = (files.join(output, f"test_{side}.jsonl") for side in ("texts", "images"))
    truth.write_truth(texts, images, read_text_captions(source, config.split))
    return [("texts", texts), ("images", images)]


def _read_images(source: str, output: str, config: AgreeConfig) -> Rows:
    arrays = image_arrays.Arrays(source, source)
    folder = _save_images(arrays, output)
    return [("images", f"{len(arrays.names):,}, {folder}")]


def _save_images(arrays: image_arrays.Arrays, output: str) -> str:
    folder = files.join(output, IMAGES)
    for name in arrays.names:
        pixels = image_arrays.pixels_of(arrays.read(name), f"{arrays.where!r}, array {name!r}")
        image_arrays.save_png(files.join(folder, f"{name}.png"), pixels)
    return folder


def image_paths(folder: str) -> dict[str, str]:
    """Path of every image of a folder by its name without suffix; numbers in their order, before other names.

    Raises:
        InputError: there are none.
    """
    paths = [path for path in files.list_files(folder) if path.lower().endswith(tuple(IMAGE_SUFFIXES))]
    named = {path.rsplit("/", 1)[-1].rsplit(".", 1)[0]: path for path in paths}
    if not named:
        raise InputError(f"no images in {folder!r}; expected files such as 1000092795.jpg in it.")
    order = sorted(named, key=lambda name: (0, int(name), "") if WHOLE.fullmatch(name) else (1, 0, name))
    return {name: named[name] for name in order}


def _write_images(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "images.224.npz")
    found = ((name, image_arrays.array_of(place)) for name, place in image_paths(source).items())
    return [("images", f"{image_arrays.write_arrays(path, found):,}, {path}")]


def _read_objects(source: str, output: str, config: AgreeConfig) -> Rows:
    table = objects.object_table(read_lines(source), source)
    files.write_parquet(files.join(output, OBJECTS), table)
    return [("images", f"{len(table):,}, {files.join(output, OBJECTS)}")]


def _write_objects(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "imgs_objs.jsonl")
    return [("images", f"{objects.write_objects(path, files.read_parquet(source)):,}, {path}")]


def _read_vg(source: str, output: str, config: AgreeConfig) -> Rows:
    with vg_archive.open_vg(source) as archive:
        files.write_parquet(files.join(output, REGIONS), archive.regions)
        folder = _save_images(archive.images, output)
        found = image_arrays.boxes_of_masks(archive.masked, archive.images, {}, VISUAL_GENOME, phrase_first=True)
    write_boxes(files.join(output, BOXES), box_table(found.boxes))
    return [("images", folder), ("boxes", f"{len(found.boxes):,}"), *_left_out(output, found.left_out)]


def _write_vg(source: str, output: str, config: AgreeConfig) -> Rows:
    places = image_paths(files.join(source, IMAGES))
    boxes = boxes_of_images(read_boxes(files.join(source, BOXES)))
    own = [box for image in boxes.values() for box in image if box.source == VISUAL_GENOME]
    images = ((name, image_arrays.array_of(place)) for name, place in places.items())
    counts = [
        image_arrays.write_arrays(files.join(output, vg_archive.IMAGES), images),
        image_arrays.write_arrays(
            files.join(output, vg_archive.MASKED), image_arrays.masked_copies(own, places, phrase_first=True)
        ),
        objects.write_regions(files.join(output, vg_archive.NAMES), files.read_parquet(files.join(source, REGIONS))),
    ]
    return list(zip(("images", "masked copies", "names"), (f"{count:,}" for count in counts)))


def _read_grounding(source: str, output: str, config: AgreeConfig) -> Rows:
    key_of = {}
    if config.captions:
        entries = files.read_json(config.captions)["images"]
        key_of = {entry["filename"].rsplit(".", 1)[0]: str(entry["imgid"]) for entry in entries if "imgid" in entry}
    masked, images = (image_arrays.Arrays(path, path) for path in (source, config.images))
    found = image_arrays.boxes_of_masks(masked, images, key_of, GROUNDING, phrase_first=False)
    write_boxes(files.join(output, BOXES), box_table(found.boxes))
    return [("boxes", f"{len(found.boxes):,}, {files.join(output, BOXES)}"), *_left_out(output, found.left_out)]


def _write_grounding(source: str, output: str, config: AgreeConfig) -> Rows:
    path = files.join(output, "flickr30k_visual_grounding.224.npz")
    boxes = boxes_of_images(read_boxes(source))
    own = [box for image in boxes.values() for box in image if box.source == GROUNDING]
    copies = image_arrays.masked_copies(own, image_paths(config.images), phrase_first=False)
    return [("masked copies", f"{image_arrays.write_arrays(path, copies):,}, {path}")]


def _features(key: Key) -> AgreeForm:
    def read(source: str, output: str, config: AgreeConfig) -> Rows:
        table = features.read_features(source, key)
        write_vectors(files.join(output, "shards", "part-00000.arrow"), table)
        return [("vectors", f"{len(table):,}, {files.join(output, 'shards')}")]

    def write(source: str, output: str, config: AgreeConfig) -> Rows:
        path = files.join(output, "img_feat.jsonl" if key == "image_id" else "txt_feat.jsonl")
        return [("vectors", f"{features.write_features(path, read_vectors(source), key):,}, {path}")]

    return AgreeForm(read, write)


def _entity_features(side: features.Side) -> AgreeForm:
    def read(source: str, output: str, config: AgreeConfig) -> Rows:
        counts = None
        if config.entities:
            counts = {one.caption_id: len(one.entities) for one in entity_rows(read_entities(config.entities))}
        found = features.read_entity_features(source, side, counts)
        write_vectors(files.join(output, "shards", "part-00000.arrow"), found.vectors)
        rows = [("vectors", f"{len(found.vectors):,}, {files.join(output, 'shards')}")]
        if found.bare_text is not None:
            path = files.join(output, "bare_text.arrow")
            write_vectors(path, found.bare_text)
            rows += [("empty slots left out", f"{found.left_out:,}"), ("empty text", path)]
        return rows

    def write(source: str, output: str, config: AgreeConfig) -> Rows:
        ids = read_text_captions(config.captions, config.split).caption_ids
        slots = read_slots(config.prompts, config.masks, ids, config.slots)
        bare = np.asarray(read_bare_text(config.bare_text)[0], np.float32) if config.bare_text else None
        path = files.join(output, "prompt_feat.jsonl" if side == "prompts" else "mask_feat.jsonl")
        return [("captions", f"{features.write_entity_features(path, ids, slots, side, bare):,}, {path}")]

    return AgreeForm(read, write, writes=("captions", "prompts", "masks"))


def _read_predictions(source: str, output: str, config: AgreeConfig) -> Rows:
    table, key = predictions.read_prediction_lines(source)
    path = files.join(output, f"{SIDE_OF[key]}_predictions.parquet")
    files.write_parquet(path, table)
    return [("queries", f"{len(table):,}, {path}")]


SIDE_OF: dict[Key, str] = {"query_id": "text", "image_id": "image"}
"""Who asks, in names of files."""


def _write_predictions(source: str, output: str, config: AgreeConfig) -> Rows:
    key: Key = "query_id" if config.side == "texts" else "image_id"
    path = files.join(output, f"{SIDE_OF[key]}_predictions.jsonl")
    predictions.write_prediction_lines(path, read_predictions(source), key)
    return [("predictions", path)]


def _read_score(source: str, output: str, config: AgreeConfig) -> Rows:
    found = scores.read_score(source)
    files.write_json(files.join(output, "score.json"), found._asdict())
    return [(name, f"{value:.2f}") for name, value in found._asdict().items()]


def _write_score(source: str, output: str, config: AgreeConfig) -> Rows:
    """The failure's form is written too, for programs that look for it, and then the failure is told."""
    path = files.join(output, "score.json")
    lists, right = truth.lists_by_query(read_predictions(source)), truth.read_truth(config.truth).items
    try:
        found = scores.score_lists(lists, right)
    except InputError as error:
        missing: Any = next((one for one in right if one not in lists), str(error))
        files.write_json(path, scores.error_json(int(missing) if WHOLE.fullmatch(missing) else missing))
        raise
    files.write_json(path, scores.score_json(found))
    return [(name, f"{value:.2f}") for name, value in found._asdict().items()]


AGREE_FILES: dict[AgreeFile, AgreeForm] = {
    "train": AgreeForm(_read_captions(captions.read_train), _write_train),
    "val": AgreeForm(_read_captions(captions.read_val), _write_val),
    "segs": AgreeForm(_read_segs, _write_segs, reads=("truth",)),
    "truth": AgreeForm(_read_truth, _write_truth),
    "images": AgreeForm(_read_images, _write_images),
    "objects": AgreeForm(_read_objects, _write_objects),
    "vg": AgreeForm(_read_vg, _write_vg),
    "grounding": AgreeForm(_read_grounding, _write_grounding, reads=("images",), writes=("images",)),
    "image_features": _features("image_id"),
    "text_features": _features("query_id"),
    "prompt_features": _entity_features("prompts"),
    "mask_features": _entity_features("masked_texts"),
    "predictions": AgreeForm(_read_predictions, _write_predictions),
    "score": AgreeForm(_read_score, _write_score, writes=("truth",)),
}
