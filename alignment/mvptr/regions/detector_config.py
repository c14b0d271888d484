"""Which detector finds regions, what it gives, and the files that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from alignment.mvptr.regions.selection import Candidates
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.staging import opened_file

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector finds regions."""

    kind: Literal["torchvision", "transformers", "grid", "torchscript"] = "torchvision"
    """`torchvision`: a Faster R-CNN, features of its box head. `transformers`: DETR and its kin, features of the
    queries. `grid`: no detector; the cells of an image tower are regions without names, good enough to try things on a
    laptop. `torchscript`: a program such as VinVL's, which runs code of its own."""
    model: str = ""
    """torchvision's name of the model, such as `fasterrcnn_resnet50_fpn_v2`; folder, URI or hub name for
    `transformers`; timm's name or a folder for `grid`; the .pt file for `torchscript`."""
    weights: str = ""
    """torchvision: state dict (.pth, .safetensors), or a folder with one. grid: `pretrained` (empty means that too),
    `none`, or a state dict."""
    names: str = ""
    """File with the names of the classes: a JSON list, a JSON object with `label_to_idx` (VinVL's), or a line each.
    Empty: those of COCO for torchvision's 91 classes, and the model's own for transformers."""
    cells: int = 6
    """grid: cells on a side, so that an image has their square."""
    image_size: int = 224
    """grid: pixels on a side of what the tower sees; the whole image, stretched."""
    trust_torchscript: bool = False
    """torchscript: yes, run the code in that file. Only for files from people whom you would let use your machine."""
    width: int = 2048
    """torchscript: numbers of a feature."""

    def __post_init__(self) -> None:
        """Each kind needs its own."""
        if not self.model:
            return
        if self.kind == "torchvision" and not self.weights:
            raise InputError(
                "a detector of torchvision needs --detector.weights, the file of its trained weights; nothing is "
                "downloaded. Without one, --detector.kind grid cuts images into cells."
            )
        if self.kind == "torchscript" and not self.trust_torchscript:
            raise InputError(
                f"{self.model!r}: a TorchScript file is a program, which may do whatever you may. If you trust who "
                "made it, say so with --detector.trust_torchscript true; else take torchvision or transformers."
            )
        if self.kind == "torchscript" and not self.names:
            raise InputError("a TorchScript detector gives numbers of classes: --detector.names says what they are.")
        if self.cells < 1 or self.image_size < 1 or self.width < 1:
            raise InputError("cells, image_size and width must be at least 1.")


class RegionDetector(Protocol):
    """Finds candidates in images of one size."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes, by label."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        """The candidates of each image."""
        ...


def weights_file(place: str) -> str:
    """A file of weights: itself, or the only one in a folder.

    Raises:
        InputError: the folder has none, or several.
    """
    place = opened_file(place)
    if not files.is_folder(place):
        return place
    found = [path for path in files.list_files(place) if path.endswith(WEIGHT_SUFFIXES)]
    if len(found) != 1:
        raise InputError(f"{place!r} has {len(found)} files of weights ({', '.join(WEIGHT_SUFFIXES)}); expected one.")
    return found[0]


def read_names(path: str) -> list[str]:
    """Names of classes by label; an object `label_to_idx` may leave labels out, which are "".

    Raises:
        InputError: the file has none of the forms.
    """
    path = opened_file(path)
    if not path.endswith(".json"):
        return files.read_text(path).splitlines()
    content = files.read_json(path)
    content = content.get("label_to_idx", content) if isinstance(content, dict) else content
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if not isinstance(content, dict) or not all(type(at) is int and 0 <= at < 1 << 20 for at in content.values()):
        raise InputError(f"{path!r} names no classes: expected a JSON list of names, or an object from name to number.")
    names = [""] * (max(content.values(), default=-1) + 1)
    for name, at in content.items():
        names[at] = name
    return names
