"""Files of MVPTR and Maria by name: how they become files of ours, and how ours become them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from alignment.mvptr.phrase_extraction import read_phrases
from alignment.mvptr.regions.pt_files import (
    CAPTIONS,
    FEATURES,
    LABELS,
    CaptionedImage,
    karpathy_json,
    pt_path,
    read_pt_captions,
    read_pt_phrases,
    read_pt_regions,
    write_pt_captions,
    write_pt_phrases,
    write_pt_regions,
)
from alignment.mvptr.regions.region_tsv import FEATURES as VINVL_FEATURES
from alignment.mvptr.regions.region_tsv import PREDICTIONS as VINVL_PREDICTIONS
from alignment.mvptr.regions.region_tsv import read_all, write_maria, write_mvptr, write_vinvl
from alignment.mvptr.regions.table import RegionTable, write_regions
from xmatch.data import files
from xmatch.data.region_rows import ImageRegions
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError

Rows = list[tuple[str, str]]
REGIONS, CAPTIONS_JSON = "shards/part-00000.arrow", "captions.json"
PHRASE_TABLE_FILE = "phrases/shards/part-00000.parquet"


@dataclass(frozen=True, kw_only=True)
class MvptrFiles:
    """Which files of MVPTR, and what they need beside themselves."""

    file: Literal["tsv", "vinvl", "flickr", "maria"] = "tsv"
    """`tsv`: predictions.tsv of MVPTR's own tool, with .lineidx and imageid2idx.json; as input also the TSV of LXMERT,
    bottom-up attention, Maria, or VinVL with features in it. `vinvl`: a folder with features.tsv and predictions.tsv.
    `flickr`: a folder with the .pt files of a split. `maria`: the concepts of 36 regions, as a path ending in .tsv."""
    split: str = "test"
    """Split of the .pt files (flickr)."""
    phrases: str = ""
    """*_sg.pt of the captions (import flickr)."""
    name: str = "open_images_train_d2obj36_batch_noAttr.tsv"
    """Name of Maria's file (export maria)."""


def convert_mvptr(way: Literal["import", "export"], source: str, output: str, config: MvptrFiles) -> Rows:
    """Read files of MVPTR into a table of regions, captions and phrases, or write them from these.

    Raises:
        InputError: the input is broken; names file and row.
    """
    return FORMS[way][config.file](source, output, config)


def _read_tsv(source: str, output: str, config: MvptrFiles) -> Rows:
    path = files.join(output, REGIONS)
    return [("images", f"{write_regions(path, read_all(source)):,}, {path}")]


def _read_vinvl(source: str, output: str, config: MvptrFiles) -> Rows:
    path = files.join(output, REGIONS)
    pair = (files.join(source, name) for name in (VINVL_FEATURES, VINVL_PREDICTIONS))
    return [("images", f"{write_regions(path, read_all(*pair)):,}, {path}")]


def _read_flickr(source: str, output: str, config: MvptrFiles) -> Rows:
    path = files.join(output, REGIONS)
    places = [pt_path(source, config.split, part) for part in (FEATURES, LABELS, CAPTIONS)]
    rows = [("images", f"{write_regions(path, read_pt_regions(*places[:2])):,}, {path}")]
    if files.exists(places[2]):
        captioned = read_pt_captions(places[2])
        files.write_json(files.join(output, CAPTIONS_JSON), karpathy_json(captioned, config.split))
        rows.append(("captions", f"{sum(len(image.captions) for image in captioned):,}"))
        if config.phrases:
            table = read_pt_phrases(config.phrases, captioned)
            files.write_parquet(files.join(output, PHRASE_TABLE_FILE), table)
            rows.append(("captions with phrases", f"{len(table):,}"))
    elif config.phrases:
        raise InputError(f"phrases are of captions, but {places[2]!r} does not exist.")
    return rows


def _named_as_theirs(source: str) -> Iterator[ImageRegions]:
    """The regions of a table; where all ids are SET/IMAGE of one set, by IMAGE alone, as the originals name images."""
    table = RegionTable(source)
    is_one_set = len({name.partition("/")[0] if "/" in name else name for name in table.rows}) == 1
    for image in table:
        name = image.image_id.partition("/")[2] if is_one_set else ""
        yield image._replace(image_id=name or image.image_id)


def _write_tsv(source: str, output: str, config: MvptrFiles) -> Rows:
    return [("images", f"{write_mvptr(output, _named_as_theirs(source)):,}, {files.join(output, VINVL_PREDICTIONS)}")]


def _write_vinvl(source: str, output: str, config: MvptrFiles) -> Rows:
    return [("images", f"{write_vinvl(output, lambda: _named_as_theirs(source)):,}, {output}")]


def _write_maria(source: str, output: str, config: MvptrFiles) -> Rows:
    path = files.join(output, config.name)
    return [("images", f"{write_maria(path, _named_as_theirs(source)):,}, {path}")]


def _write_flickr(source: str, output: str, config: MvptrFiles) -> Rows:
    rows = [("images", f"{write_pt_regions(output, config.split, _named_as_theirs(source)):,}, {output}")]
    captions, phrases = files.join(source, CAPTIONS_JSON), files.join(source, "phrases")
    if files.exists(captions):
        found = read_text_captions(captions, config.split)
        own: dict[str, list[str]] = {image_id: [] for image_id in found.image_ids}
        for caption, image in zip(found.captions, found.caption_image, strict=True):
            own[found.image_ids[image]].append(caption)
        captioned = [CaptionedImage(image_id, tuple(texts)) for image_id, texts in own.items()]
        write_pt_captions(pt_path(output, config.split, CAPTIONS), captioned)
        rows.append(("captions", f"{len(found.captions):,}"))
    if files.is_folder(phrases):
        path = pt_path(output, config.split, "sg")
        write_pt_phrases(path, read_phrases(phrases))
        rows.append(("phrases", path))
    return rows


Form = Callable[[str, str, MvptrFiles], Rows]
FORMS: dict[str, dict[str, Form]] = {
    "import": {"tsv": _read_tsv, "vinvl": _read_vinvl, "flickr": _read_flickr, "maria": _read_tsv},
    "export": {"tsv": _write_tsv, "vinvl": _write_vinvl, "flickr": _write_flickr, "maria": _write_maria},
}
