"""The forms of lines of region features, and the regions of one image that they become.

All are tab-separated without a header; arrays are base64 of little-endian numbers, float32 but for ids:

    lxmert      img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features
    caffe       image_id, image_w, image_h, num_boxes, boxes, features
    vinvl       image id, JSON {image_w, image_h, objects: [{class, conf, rect, feature}, ...]}
    vinvl_pair  features.tsv: image id, number of boxes, features; and predictions.tsv, as vinvl without `feature`
    mvptr       image id, JSON {feature, predictions: [class, ...]}; no boxes but those in the features
    d2obj36     image id, Python dict {objects_class, objects_id, objects_conf, boxes, features, img_h, img_w} (Maria)
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_BOXES = 10_000
GEOMETRY = 6
"""Last numbers of a VinVL feature: x1 / W, y1 / H, x2 / W, y2 / H, (x2 - x1) / W, (y2 - y1) / H."""
GEOMETRY_TOLERANCE = 1e-3
"""By which its numbers may miss each other: they were rounded."""


class ImageRegions(NamedTuple):
    """The K regions of one image.

    boxes: (K, 4) float32, x1, y1, x2, y2 in pixels; (0, 4) where the file does not say.
    features: (K, C) float32.
    width, height: of the image in pixels; 0 where the file does not say, 1 where boxes are fractions of the image.
    tags: K names of what is in them; () where not known.
    scores: (K,) float32 of the detector, or None.
    labels: (K,) int64, numbers of the detector's classes, or None.
    """

    image_id: str
    boxes: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    width: int
    height: int
    tags: tuple[str, ...] = ()
    scores: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int64] | None = None


class BadRegions(ValueError):
    """A row that cannot be used; the message says why."""


def floats(text: Any, count: int, what: str) -> npt.NDArray[np.float32]:
    """Base64 of float32 numbers as rows (K, W), K being `count`.

    Raises:
        BadRegions: it is not base64, not whole rows, or not finite.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRegions(f"{what} are not base64 ({error})") from error
    except TypeError as error:
        raise BadRegions(f"{what} are {type(text).__name__}, expected base64") from error
    if not data or len(data) % (4 * count):
        raise BadRegions(f"{what} have {len(data)} bytes, which are not {count} rows of float32")
    found = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(count, -1)
    if not np.isfinite(found).all():
        raise BadRegions(f"{what} hold a number that is not finite")
    return found


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 0 < int(text) <= MAX_BOXES:
        raise BadRegions(f"expected 1 to {MAX_BOXES} boxes, got {text[:20]!r}")
    return int(text)


def _size(width: Any, height: Any) -> tuple[int, int]:
    try:
        found = int(float(width)), int(float(height))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRegions(f"expected an image size in pixels, got {str(width)[:20]!r} x {str(height)[:20]!r}") from error
    if min(found) < 1:
        raise BadRegions(f"expected an image size in pixels, got {found[0]} x {found[1]}")
    return found


def parse_lxmert(fields: list[str]) -> ImageRegions:
    """A row of ten columns, as LXMERT writes it: height before width."""
    count = _count(fields[7])
    width, height = _size(fields[2], fields[1])
    return ImageRegions(
        fields[0],
        floats(fields[8], count, "boxes"),
        floats(fields[9], count, "features"),
        width,
        height,
        scores=_optional(fields[4], "<f4", count),
        labels=_optional(fields[3], "<i8", count),
    )


def _optional(text: Any, kind: str, count: int) -> npt.NDArray[Any] | None:
    """Base64 of numbers as an array of shape (count,); None where it is something else, since nothing rests on it."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None
    dtype = np.dtype(kind)
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")) if len(data) == count * dtype.itemsize else None


def parse_caffe(fields: list[str]) -> ImageRegions:
    """A row of six columns, as the Caffe bottom-up attention writes it: width before height."""
    count = _count(fields[3])
    width, height = _size(fields[1], fields[2])
    return ImageRegions(
        fields[0], floats(fields[4], count, "boxes"), floats(fields[5], count, "features"), width, height
    )


def parse_two(fields: list[str]) -> ImageRegions:
    """A row of an image id and what tells of its regions: JSON as VinVL's or MVPTR's, or Maria's Python dict."""
    if fields[1].startswith("{'"):
        return parse_d2obj36(fields[0], fields[1])
    content = _json(fields[1])
    if isinstance(content, dict) and "predictions" in content:
        return parse_mvptr(fields[0], content)
    return parse_vinvl(fields[0], content)


def _json(payload: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadRegions(f"expected JSON after the image id ({error!r:.80})") from error


def parse_vinvl(image_id: str, content: Any) -> ImageRegions:
    """JSON whose objects hold `rect` and `feature`."""
    objects, found = _vinvl_objects(image_id, content)
    if not all(isinstance(thing.get("feature"), str) for thing in objects):
        raise BadRegions("an object has no 'feature'; features in a file of their own are read with `predictions`")
    rows = [floats(thing["feature"], 1, "features") for thing in objects]
    if len({row.shape for row in rows}) != 1:
        raise BadRegions("the objects' features differ in width")
    return found._replace(features=np.concatenate(rows))


def parse_mvptr(image_id: str, content: dict[str, Any]) -> ImageRegions:
    """JSON of all features together and the classes; boxes are fractions, read from the features' last six numbers."""
    names = content["predictions"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRegions(f"expected a list of classes as 'predictions', got {names!r:.60}")
    if not 0 < len(names) <= MAX_BOXES or not isinstance(content.get("feature"), str):
        raise BadRegions(f"expected 1 to {MAX_BOXES} predictions and their 'feature', got {len(names)} predictions")
    features = floats(content["feature"], len(names), "features")
    boxes = boxes_of_geometry(features)
    side = 1 if len(boxes) else 0
    return ImageRegions(image_id, boxes, features, side, side, tuple(names))


def boxes_of_geometry(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Boxes (K, 4) as fractions of the image from the last six numbers of (K, C) features; (0, 4) if they are none."""
    none = np.zeros((0, 4), np.float32)
    if features.shape[1] < GEOMETRY:
        return none
    boxes, sides = features[:, -GEOMETRY:-2], features[:, -2:]
    is_outside = (boxes < -GEOMETRY_TOLERANCE) | (boxes > 1 + GEOMETRY_TOLERANCE)
    is_other = (sides < 0) | (np.abs(boxes[:, 2:] - boxes[:, :2] - sides) > GEOMETRY_TOLERANCE)
    return none if is_outside.any() or is_other.any() else boxes.copy()


def parse_d2obj36(image_id: str, payload: str) -> ImageRegions:
    """A Python dict, of which only literals are read."""
    try:
        content = ast.literal_eval(payload)
        names, width, height = list(content["objects_class"]), content["img_w"], content["img_h"]
        parts = [content[name] for name in ("boxes", "features", "objects_conf", "objects_id")]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise BadRegions(f"expected a Python dict of boxes, features and classes ({error!r:.80})") from error
    if not 0 < len(names) <= MAX_BOXES or not all(isinstance(name, str) for name in names):
        raise BadRegions(f"expected 1 to {MAX_BOXES} names as objects_class, got {names!r:.60}")
    return ImageRegions(
        image_id,
        floats(parts[0], len(names), "boxes"),
        floats(parts[1], len(names), "features"),
        *_size(width, height),
        tuple(names),
        _optional(parts[2], "<f4", len(names)),
        _optional(parts[3], "<i8", len(names)),
    )


def parse_vinvl_pair(fields: list[str]) -> ImageRegions:
    """A row of features.tsv (id, count, base64) joined with the id and JSON of its row of predictions.tsv."""
    image_id, count, features, other_id, payload = fields
    if image_id != other_id:
        raise BadRegions(f"image {image_id!r} meets the predictions of {other_id!r}: both files need one order")
    objects, found = _vinvl_objects(image_id, _json(payload))
    if _count(count) != len(objects):
        raise BadRegions(f"{count} features meet {len(objects)} predicted objects")
    return found._replace(features=floats(features, len(objects), "features"))


def _vinvl_objects(image_id: str, content: Any) -> tuple[list[dict[str, Any]], ImageRegions]:
    """Objects, and what they say but for their features; a bare list of objects has no size: 0 and 0."""
    try:
        objects = content if isinstance(content, list) else content["objects"]
        boxes = np.asarray([thing["rect"] for thing in objects], dtype=np.float32)
        width, height = (0, 0) if content is objects else _size(content["image_w"], content["image_h"])
        scores = _column(objects, "conf")
        found = None if scores is None else np.asarray(scores, dtype=np.float32)
    except BadRegions:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BadRegions(f"expected JSON with image_w, image_h and objects with rect ({error!r:.80})") from error
    if not 0 < len(objects) <= MAX_BOXES or boxes.shape != (len(objects), 4):
        raise BadRegions(f"expected 1 to {MAX_BOXES} objects with four numbers of rect each, got {boxes.shape}")
    declared = content.get("num_boxes", len(objects)) if isinstance(content, dict) else len(objects)
    if declared != len(objects):
        raise BadRegions(f"num_boxes is {declared}, but there are {len(objects)} objects")
    tags = tuple(str(name) for name in _column(objects, "class") or ())
    return objects, ImageRegions(image_id, boxes, np.zeros((0, 0), np.float32), width, height, tags, found)


def _column(objects: Sequence[dict[str, Any]], name: str) -> list[Any] | None:
    """A value of every object; None where one has none."""
    return [thing[name] for thing in objects] if all(name in thing for thing in objects) else None


PARSERS: dict[str, Callable[[list[str]], ImageRegions]] = {
    "lxmert": parse_lxmert,
    "caffe": parse_caffe,
    "vinvl, mvptr or d2obj36": parse_two,
    "vinvl_pair": parse_vinvl_pair,
}
PAIR_COLUMNS = 5
"""Three of features.tsv and two of predictions.tsv."""
FORM_OF_COLUMNS = {10: "lxmert", 6: "caffe", 2: "vinvl, mvptr or d2obj36", PAIR_COLUMNS: "vinvl_pair"}
