"""Public data sets and weights of this field: where they are, their hashes, licences and layout.

A hash is only stated where somebody published it: in a file name, on the hub, in the checksum lists of TensorFlow
Datasets, or as the content of a pinned git commit. Where none is, `sha256` is None and whoever downloads is told so.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from xmatch.errors import InputError

COCO = "http://images.cocodataset.org"
COCO_MIRROR = "https://s3.amazonaws.com/images.cocodataset.org"
UNC = "https://nlp.cs.unc.edu/data"
UNC_MIRROR = "https://nlp1.cs.unc.edu/data"
UNC_NOTE = "A university server that has been down for days at a time and has served a broken certificate."
TORCH = "https://download.pytorch.org/models"
CXC = (
    "https://raw.githubusercontent.com/google-research-datasets/Crisscrossed-Captions/"
    "7d6634be173a6f6a16ab1e61bebc217de8444513/data"
)
COCO_PHOTOS = "annotations CC BY 4.0; the photos belong to their Flickr authors, each under its own licence"
IMAGENET_WEIGHTS = "torchvision BSD-3-Clause; trained on ImageNet, whose own terms are non-commercial research"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file on a web server."""

    url: str
    mirrors: tuple[str, ...] = ()
    """Other addresses of the same bytes, tried in order."""
    sha256: str | None = None
    """64 hexadecimal digits, or the first 8 where only those are published; None: nobody published one."""
    size_bytes: int | None = None
    unpack: Literal["", "zip", "tar"] = ""
    file_name: str = ""
    """Local name; empty takes the last part of the address."""

    @property
    def name(self) -> str:
        """Local file name."""
        return self.file_name or unquote(posixpath.basename(urlsplit(self.url).path))

    @property
    def hash_state(self) -> str:
        """What is known about the hash, in words."""
        if self.sha256 is None:
            return "no hash published"
        return f"sha256 {self.sha256}" if len(self.sha256) == 64 else f"sha256 begins with {self.sha256}"


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of one repository on the Hugging Face hub."""

    repo_id: str
    patterns: tuple[str, ...]
    revision: str = "main"
    sha256: tuple[tuple[str, str], ...] = ()
    """(path, hash) known here; the hub's own hashes of large files are checked too."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set or set of weights: files to download, or instructions where a person must fetch it."""

    what: str
    licence: str
    layout: str
    """What lies in the output folder afterwards."""
    files: tuple[RemoteFile, ...] = ()
    hub: HubFiles | None = None
    manual: str = ""
    """How a person gets it, where no program may."""
    note: str = ""


def _coco(path: str, sha256: str, size_bytes: int) -> tuple[RemoteFile, ...]:
    mirrors = (f"{COCO_MIRROR}/{path}",)
    return (RemoteFile(url=f"{COCO}/{path}", mirrors=mirrors, sha256=sha256, size_bytes=size_bytes, unpack="zip"),)


def _cxc(name: str, sha256: str, size_bytes: int) -> RemoteFile:
    return RemoteFile(url=f"{CXC}/{name}.csv", sha256=sha256, size_bytes=size_bytes)


def _lxmert(name: str) -> RemoteFile:
    path = f"lxmert_data/lxmert/{name}.json"
    return RemoteFile(url=f"{UNC}/{path}", mirrors=(f"{UNC_MIRROR}/{path}",))


def _torchvision(what: str, name: str) -> Entry:
    """Weights of torchvision, which ends a file name with the first 8 digits of its hash."""
    prefix = name.rsplit("-", 1)[1].removesuffix(".pth")
    return Entry(
        what=what, licence=IMAGENET_WEIGHTS, layout=name, files=(RemoteFile(url=f"{TORCH}/{name}", sha256=prefix),)
    )


def _vse_infty(folder: str, what: str) -> Entry:
    return Entry(
        what=f"VSE-infinity weights, {what}",
        licence="MIT, as the code's repository states",
        layout=f"{folder}/ with model_best.pth as its authors saved it: a pickle, import it weights-only",
        hub=HubFiles(repo_id="cccjc/vse-infty", patterns=(f"{folder}/*",)),
    )


ENTRIES: dict[str, Entry] = {
    "bert_base_uncased": Entry(
        what="BERT base uncased, weights and tokenizer",
        licence="Apache-2.0",
        layout="model.safetensors, config.json, tokenizer files",
        hub=HubFiles(
            repo_id="google-bert/bert-base-uncased",
            revision="86b5e0934494bd15c9632b12f734a8a67f723594",
            patterns=("config.json", "model.safetensors", "tokenizer*.json", "vocab.txt"),
            sha256=(("model.safetensors", "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"),),
        ),
    ),
    "butd_backbone": Entry(
        what="ResNet-101 of bottom-up attention in the Caffe layout, original_updown_backbone.pth",
        licence="not stated; converted by the authors of VSE-infinity from peteanderson80/bottom-up-attention (MIT)",
        layout="original_updown_backbone.pth",
        manual="In a browser open https://drive.google.com/file/d/1gNdV1Qx_7yYzkhHrzqbP-bbNkdrKw_w1/view and save "
        "original_updown_backbone.pth; users report the link dead at times (woodfrog/vse_infty issues 3 and 12).",
    ),
    "clip_vit_b32": Entry(
        what="CLIP ViT-B/32, weights, tokenizer and image settings in the form of transformers",
        licence="MIT, as the code's repository states",
        layout="pytorch_model.bin, config.json, tokenizer and preprocessor files",
        hub=HubFiles(
            repo_id="openai/clip-vit-base-patch32",
            revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            patterns=("*.json", "merges.txt", "pytorch_model.bin"),
            sha256=(("pytorch_model.bin", "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"),),
        ),
    ),
    "coco_annotations_2014": Entry(
        what="COCO 2014 captions, instances and keypoints of train and val",
        licence="CC BY 4.0",
        layout="annotations/captions_{train,val}2014.json and others",
        files=_coco(
            "annotations/annotations_trainval2014.zip",
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            252_872_794,
        ),
    ),
    "coco_annotations_2017": Entry(
        what="COCO 2017 captions, instances and keypoints of train and val",
        licence="CC BY 4.0",
        layout="annotations/captions_{train,val}2017.json and others",
        files=_coco(
            "annotations/annotations_trainval2017.zip",
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            252_907_541,
        ),
    ),
    "coco_train2014": Entry(
        what="COCO 2014 training photos, 82,783",
        licence=COCO_PHOTOS,
        layout="train2014/COCO_train2014_*.jpg",
        files=_coco(
            "zips/train2014.zip", "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775", 13_510_573_713
        ),
    ),
    "coco_val2014": Entry(
        what="COCO 2014 validation photos; the Karpathy val and test splits are among them",
        licence=COCO_PHOTOS,
        layout="val2014/COCO_val2014_*.jpg",
        files=_coco(
            "zips/val2014.zip", "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0", 6_645_013_297
        ),
    ),
    "coco_val2017": Entry(
        what="COCO 2017 validation photos, 5,000",
        licence=COCO_PHOTOS,
        layout="val2017/*.jpg",
        files=_coco(
            "zips/val2017.zip", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 815_585_330
        ),
    ),
    "conceptual_captions": Entry(
        what="Conceptual Captions, the tables of captions and photo addresses",
        licence="free for any purpose, acknowledgement of Google appreciated; the photos belong to their owners",
        layout="Train_GCC-training.tsv, Validation_GCC-1.1.0-Validation.tsv",
        manual="In a browser open https://ai.google.com/research/ConceptualCaptions/download and save both tables; the "
        "photos are separate downloads from the addresses in them, of which many are gone.",
    ),
    "cxc": Entry(
        what="Crisscrossed Captions, aggregated ratings of val and test",
        licence="free for any purpose, acknowledgement of Google appreciated",
        layout="{sts,sis,sits}_{val,test}.csv",
        files=(
            _cxc("sis_test", "01f2ceb349414aff84065c0548837d1630408283601a5c97d86c2f6681cc1571", 3_440_207),
            _cxc("sis_val", "f31ed6a1369e3799b7ef3411b1d612e2a5639591612d170ce57d2d4b2de44a24", 3_153_935),
            _cxc("sits_test", "f92fd6d36329fb52fd5429eb5c2211f0ab3ad86bb737323f415375a144697ce6", 3_339_144),
            _cxc("sits_val", "482d996eb91998e0a6fbaf8c70f1e2cb127370a05346720caef1c0bbd3139a0f", 3_333_118),
            _cxc("sts_test", "33eea25bf41061c513ef4b39282aaf64bdf9b17ff233e343a6d6ae44d73e0272", 3_096_467),
            _cxc("sts_val", "36d4fbdb88aed1ea90463f95ce40a4c081d25874fb6badd2dfaa62a28b25170b", 3_092_201),
        ),
    ),
    "eccv_caption": Entry(
        what="ECCV Caption, its ground truth and metrics",
        licence="MIT",
        layout="a Python package",
        manual="Run `pip install eccv_caption`: the ground truth is inside the package.",
    ),
    "flickr30k_images": Entry(
        what="Flickr30k photos, 31,014 in the Karpathy splits",
        licence="non-commercial research and education only; the photos belong to their Flickr authors",
        layout="flickr30k-images/*.jpg",
        manual="Fill in the form at https://shannon.cs.illinois.edu/DenotationGraph/ and unpack what you are sent. The "
        "splits and captions are in karpathy_splits.",
    ),
    "flickr8k_images": Entry(
        what="Flickr8k photos",
        licence="non-commercial research and education only; the photos belong to their Flickr authors",
        layout="Flicker8k_Dataset/*.jpg (spelt so)",
        manual="Fill in the form at https://illinois.edu/fb/sec/1713398 and unpack Flickr8k_Dataset.zip. The splits "
        "and captions are in karpathy_splits.",
    ),
    "karpathy_splits": Entry(
        what="Karpathy splits and captions of COCO, Flickr30k and Flickr8k",
        licence="not stated; COCO captions CC BY 4.0, Flickr captions for non-commercial research",
        layout="dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
        files=(
            RemoteFile(
                url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                mirrors=("https://huggingface.co/datasets/gpantaz/karpathy_split/resolve/main/caption_datasets.zip",),
                sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
                size_bytes=36_745_453,
                unpack="zip",
            ),
        ),
        note="The first address has been reported dead at times; the mirror is a private copy; the hash decides.",
    ),
    "lxmert_captions": Entry(
        what="LXMERT's captions and questions of COCO and Visual Genome, read by Vokenization and Maria",
        licence="not stated for these files; COCO and Visual Genome captions CC BY 4.0",
        layout="mscoco_{train,nominival,minival}.json, vgnococo.json",
        files=(
            _lxmert("mscoco_train"),
            _lxmert("mscoco_nominival"),
            _lxmert("mscoco_minival"),
            _lxmert("vgnococo"),
        ),
        note=UNC_NOTE,
    ),
    "open_images": Entry(
        what="Open Images photos, keys of Maria",
        licence="annotations CC BY 4.0; photos listed as CC BY 2.0",
        layout="as its downloader writes it",
        manual="Follow https://storage.googleapis.com/openimages/web/download.html: choose the image ids you need and "
        "give them to the downloader named there.",
    ),
    "resnet101_imagenet": _torchvision("ResNet-101, ImageNet", "resnet101-63fe2227.pth"),
    "resnet152_imagenet": _torchvision("ResNet-152, ImageNet", "resnet152-394f9c45.pth"),
    "resnet50_imagenet": _torchvision("ResNet-50, ImageNet", "resnet50-0676ba61.pth"),
    "resnext101_imagenet": _torchvision(
        "ResNeXt-101 32x8d, ImageNet; the image tower of Vokenization", "resnext101_32x8d-8ba56ff5.pth"
    ),
    "resnext101_wsl": Entry(
        what="ResNeXt-101 32x8d trained on Instagram hashtags (WSL), the grid backbone of VSE-infinity",
        licence="CC BY-NC 4.0: not for commercial use",
        layout="ig_resnext101_32x8-c38310e5.pth",
        files=(RemoteFile(url=f"{TORCH}/ig_resnext101_32x8-c38310e5.pth", sha256="c38310e5"),),
    ),
    "scan_features": Entry(
        what="Bottom-up attention features, captions and vocabularies of COCO and Flickr30k, as SCAN packed them",
        licence="as stated on the Kaggle page",
        layout="{coco,f30k}_precomp/{train,dev,test}_{ims.npy,caps.txt,ids.txt}, vocab/*.json",
        manual="Sign in to Kaggle, accept the terms at https://www.kaggle.com/datasets/kuanghueilee/scan-features, and "
        "run `kaggle datasets download kuanghueilee/scan-features`. The older addresses at "
        "scanproject.blob.core.windows.net and iudata.blob.core.windows.net are dead.",
    ),
    "vinvl_features": Entry(
        what="VinVL region features and corpora",
        licence="as stated by microsoft/Oscar",
        layout="TSV files",
        manual="Follow https://github.com/microsoft/Oscar/blob/master/VinVL_DOWNLOAD.md. Its container refuses public "
        "access, and users report that the token given there is refused too (pzzhang/VinVL issues 38 and 40).",
    ),
    "visual_genome_images": Entry(
        what="Visual Genome photos, the usual keys of Vokenization",
        licence="CC BY 4.0; the photos belong to their Flickr authors",
        layout="VG_100K/*.jpg, VG_100K_2/*.jpg",
        files=(
            RemoteFile(url="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", unpack="zip"),
            RemoteFile(url="https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", unpack="zip"),
        ),
        note="About 9 and 5 GB.",
    ),
    "vokenization_xmatching": Entry(
        what="Vokenization's released matching model: BERT, ResNeXt-101 32x8d, 64 dimensions, trained on COCO",
        licence="not stated",
        layout="the folder that Vokenization's programs load, with BEST.pth.model: a pickle, import it weights-only",
        files=(
            RemoteFile(
                url=f"{UNC}/vokenization/coco_hinge05_dim64_resxt101_bertl4.zip",
                mirrors=(f"{UNC_MIRROR}/vokenization/coco_hinge05_dim64_resxt101_bertl4.zip",),
                unpack="zip",
            ),
        ),
        note=UNC_NOTE,
    ),
    "vse_infty_coco_butd_grid_bert": _vse_infty("coco_butd_grid_bert", "COCO, BUTD grid, BERT"),
    "vse_infty_coco_butd_grid_bigru": _vse_infty("coco_butd_grid_bigru", "COCO, BUTD grid, BiGRU"),
    "vse_infty_coco_butd_region_bert": _vse_infty("coco_butd_region_bert", "COCO, BUTD regions, BERT"),
    "vse_infty_coco_butd_region_bigru": _vse_infty("coco_butd_region_bigru", "COCO, BUTD regions, BiGRU"),
    "vse_infty_coco_wsl_grid_bert": _vse_infty("coco_wsl_grid_bert", "COCO, WSL grid, BERT"),
    "vse_infty_f30k_butd_grid_bert": _vse_infty("f30k_butd_grid_bert", "Flickr30k, BUTD grid, BERT"),
    "vse_infty_f30k_butd_grid_bigru": _vse_infty("f30k_butd_grid_bigru", "Flickr30k, BUTD grid, BiGRU"),
    "vse_infty_f30k_butd_region_bert": _vse_infty("f30k_butd_region_bert", "Flickr30k, BUTD regions, BERT"),
    "vse_infty_f30k_butd_region_bigru": _vse_infty("f30k_butd_region_bigru", "Flickr30k, BUTD regions, BiGRU"),
    "vse_infty_f30k_wsl_grid_bert": _vse_infty("f30k_wsl_grid_bert", "Flickr30k, WSL grid, BERT"),
}


def check_sha256(value: str) -> str:
    """A hash in lower case.

    Raises:
        InputError: it is neither 64 hexadecimal digits nor the first 8.
    """
    if not re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", value.lower()):
        raise InputError(f"{value!r} is no SHA-256: expected 64 hexadecimal digits, or the first 8 of them.")
    return value.lower()


def find_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        InputError: the name is empty or unknown; lists all names and the nearest.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    listing = "\n".join(f"  {known}: {entry.what}" for known, entry in sorted(ENTRIES.items()))
    if not name:
        raise InputError(
            f"no name given; expected one of these, as in `fetch.py coco_val2017 --output data`:\n{listing}"
        )
    near = difflib.get_close_matches(name, ENTRIES, n=1, cutoff=0.0)[0]
    raise InputError(f"unknown name {name!r}; did you mean {near!r}? Known names:\n{listing}")
