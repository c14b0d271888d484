from __future__ import annotations

from pathlib import Path

import pytest
from small_gallery import small_gallery, write_gallery
from small_models import karpathy_json, make_images

from xmatch.errors import InputError
from xmatch.evaluation.gallery import GalleryConfig, coco_gallery, gallery_sha256, read_gallery


def test_captions_alone_are_enough_where_no_model_reads_photographs(tmp_path: Path) -> None:
    config = GalleryConfig(captions=write_gallery(tmp_path, small_gallery()), split="test")
    found = read_gallery(config, needs_images=False)
    assert (len(found.image_ids), len(found.captions)) == (10, 50)
    assert gallery_sha256(found) == gallery_sha256(small_gallery())
    with pytest.raises(InputError, match="give their folder as data.images"):
        read_gallery(config, needs_images=True)


def test_with_photographs_the_split_is_read_as_in_training(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 2)
    captions = karpathy_json(tmp_path / "c.json", {"test": ["a.jpg", "b.jpg"]})
    found = read_gallery(GalleryConfig(captions=captions, images=images, split="test"), needs_images=True)
    assert found.image_paths == [f"{images}/a.jpg", f"{images}/b.jpg"]


def test_a_precomputed_folder_needs_neither_features_nor_photographs(tmp_path: Path) -> None:
    (tmp_path / "test_caps.txt").write_text("".join(f"caption {i}\n" for i in range(10)))
    (tmp_path / "test_ids.txt").write_text("42\n7\n")
    (tmp_path / "test_capids.txt").write_text("".join(f"{i + 1}\n" for i in range(10)))
    found = read_gallery(GalleryConfig(captions=str(tmp_path), split="test"), needs_images=False)
    assert coco_gallery(found).image_ids.tolist() == [42, 7]
    assert coco_gallery(found).caption_ids.tolist() == list(range(1, 11))


def test_ids_that_are_no_numbers_of_coco_are_named() -> None:
    gallery = small_gallery()
    assert coco_gallery(gallery).image_ids[0] == 101
    assert coco_gallery(gallery).caption_ids[-1] == 1050
    with pytest.raises(InputError, match=r"caption 0 has the id '101:0', which is no number of COCO's \(1 of 50"):
        coco_gallery(gallery._replace(caption_ids=["101:0", *gallery.caption_ids[1:]]))
    with pytest.raises(InputError, match="image number 102 occurs twice"):
        coco_gallery(gallery._replace(image_ids=["102", *gallery.image_ids[1:]]))


def test_the_hash_sees_every_part() -> None:
    gallery = small_gallery()
    changed = [
        gallery._replace(captions=["x", *gallery.captions[1:]]),
        gallery._replace(caption_ids=["x", *gallery.caption_ids[1:]]),
        gallery._replace(image_ids=["x", *gallery.image_ids[1:]]),
        gallery._replace(caption_image=gallery.caption_image[::-1]),
    ]
    assert len({gallery_sha256(one) for one in (gallery, *changed)}) == 5
