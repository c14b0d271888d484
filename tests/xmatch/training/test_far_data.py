"""Training data behind URIs, through the local copies, is the training data of local paths."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from far_store import FarStore
from small_models import CAPTIONS, make_images, tiny_config, tiny_vocabulary

from xmatch.data.augment import SizeAugmentConfig
from xmatch.data.captions import CaptionSet
from xmatch.data.decode import UnreadableImage
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.recipe import SampleKey
from xmatch.training.sample_inputs import PixelInputs
from xmatch.training.samples import CaptionsConfig, read_split, write_samples

NAMES = [f"{letter}.jpg" for letter in "abcdefghijkl"]
REGIONS = tiny_config(
    image=ImageTowerConfig(kind="regions", output="grid", width=4),
    image_pooling="mean",
    image_head=HeadConfig(kind="fc"),
)


@pytest.fixture
def far(tmp_path: Path, monkeypatch) -> FarStore:
    make_images(tmp_path / "far" / "images")
    return FarStore(tmp_path / "far", tmp_path / "log").install(monkeypatch)


def captions_of(images: str) -> CaptionSet:
    return CaptionSet(
        caption_ids=[str(i) for i in range(24)],
        captions=[f"{CAPTIONS[i % 4]} {CAPTIONS[i // 4 % 4]}" for i in range(24)],
        caption_image=[i // 2 for i in range(24)],
        image_ids=NAMES,
        image_paths=[f"{images}/{name}" for name in NAMES],
    )


def made(tmp_path: Path, base: str, model=None, **places: str) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Two batches and the figures of an evaluation, of samples below `base`."""
    data = RecipeData(
        train=f"{base}/samples",
        valid=f"{base}/samples",
        cache=CacheConfig(folder=str(tmp_path / "cache"), limit_gb=1e-3),
        **places,
    )
    recipe = DualEncoderRecipe(RecipeConfig(model=model or tiny_config()), tiny_vocabulary(), data)
    torch.manual_seed(0)
    network = recipe.build_model()
    batches = [recipe.batch(np.array([0, 7, 23]), SampleKey(1, epoch)) for epoch in (0, 1)]
    return [tensor for batch in batches for tensor in batch.values()], recipe.evaluate(network.eval())


def assert_same(one, other) -> None:
    assert one[1] == other[1]
    for local, remote in zip(one[0], other[0], strict=True):
        assert torch.equal(local, remote)


def test_photographs_in_a_store_are_fetched_once_and_train_alike(tmp_path: Path, far: FarStore) -> None:
    local = str(tmp_path / "far")
    write_samples(captions_of(f"{local}/images"), f"{local}/samples")
    one = made(tmp_path, local)
    assert not (tmp_path / "cache").exists()
    write_samples(captions_of("far://images"), f"{local}/samples")
    assert_same(one, made(tmp_path, "far://"))
    fetched = Counter(name for name in far.asked("fetch") if name.startswith("images/"))
    assert fetched == Counter(f"images/{name}" for name in NAMES)
    assert not [name for name in far.asked("look") if name.startswith("images/")][len(NAMES) :]
    assert_same(one, made(tmp_path, "far://"))
    assert Counter(name for name in far.asked("fetch") if name.startswith("images/")) == fetched


def test_a_bank_in_a_store_is_mapped_from_its_copy(tmp_path: Path, far: FarStore) -> None:
    local = str(tmp_path / "far")
    write_samples(captions_of(f"{local}/images"), f"{local}/samples")
    rows = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
    for part in (0, 1):
        ids = [f"{name}/{view}" for name in NAMES[6 * part : 6 * part + 6] for view in (0, 1)]
        table = make_vectors(ids, rows[12 * part : 12 * part + 12], groups=[i.rpartition("/")[0] for i in ids])
        write_vectors(f"{local}/bank/part-{part}.arrow", table)
    one = made(tmp_path, local, REGIONS, features=f"{local}/bank")
    assert_same(one, made(tmp_path, "far://", REGIONS, features="far://bank"))
    assert Counter(far.asked("fetch"))["bank/part-1.arrow"] == 1
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 4


def test_regions_in_a_store_are_mapped_from_their_copy(tmp_path: Path, far: FarStore) -> None:
    local = tmp_path / "far"
    (local / "precomp").mkdir()
    np.save(local / "precomp" / "train_ims.npy", np.random.default_rng(0).normal(size=(12, 3, 4)).astype(np.float32))
    (local / "precomp" / "train_caps.txt").write_text("".join(f"{CAPTIONS[i % 4]} {i}\n" for i in range(60)))
    results = []
    for base in (str(local), "far://"):
        config = CaptionsConfig(captions=f"{base}/precomp".replace(":///", "://"), inputs="regions")
        copies = LocalCache(CacheConfig(folder=str(tmp_path / "cache"), limit_gb=1e-3))
        write_samples(read_split(config, copies.hold), str(local / "samples"), config)
        results.append(made(tmp_path, base, REGIONS))
    assert_same(*results)
    assert Counter(far.asked("fetch"))["precomp/train_ims.npy"] == 1
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def pixels_of(tmp_path: Path, uris: list[str], limit: float = 1e-3) -> torch.Tensor:
    copies = LocalCache(CacheConfig(folder=str(tmp_path / "cache"), limit_gb=limit))
    inputs = PixelInputs(uris, lambda i: torch.from_numpy(np.array(i)), 0, SizeAugmentConfig(), copies)
    draws = [np.random.default_rng(0) for _ in uris]
    return inputs.batch(np.arange(len(uris)), draws).values


@pytest.mark.parametrize("limit", [1e-3, 1e-9])
def test_photographs_of_a_tar_are_read_from_its_copy_or_where_it_lies(tmp_path: Path, far: FarStore, limit) -> None:
    with tarfile.open(tmp_path / "far" / "images" / "all.tar", "w") as tar:
        for name in NAMES:
            tar.add(tmp_path / "far" / "images" / name, name)
    local = pixels_of(tmp_path, [f"{tmp_path}/far/images/{name}" for name in NAMES])
    packed = pixels_of(tmp_path, [f"far://images/all.tar#{name}" for name in NAMES], limit)
    assert torch.equal(local, packed)
    fetched = Counter(far.asked("fetch"))["images/all.tar"]
    assert fetched == 1 if limit > 1e-4 else fetched > 1
    assert bool(list((tmp_path / "cache").glob("*.tar"))) == (limit > 1e-4)


def test_a_broken_photograph_is_named_as_the_store_names_it(tmp_path: Path, far: FarStore) -> None:
    (tmp_path / "far" / "images" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="'far://images/a.jpg' "):
        pixels_of(tmp_path, ["far://images/a.jpg"])
