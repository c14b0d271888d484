from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_gallery import small_embeddings, small_gallery

from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.evaluation.members import (
    EmbeddingsConfig,
    embeddings_member,
    ensemble,
    place_sha256,
    places,
    similarity_member,
    within,
)

GALLERY = small_gallery()
IMAGES, TEXTS = small_embeddings()
SCORES = IMAGES @ TEXTS.T


def whole(source) -> np.ndarray:
    return source.block(slice(0, source.shape[0]), slice(0, source.shape[1]))


def saved(folder: Path, name: str, array: np.ndarray) -> str:
    np.save(folder / f"{name}.npy", array)
    return str(folder / f"{name}.npy")


def test_the_same_scores_come_of_every_form(tmp_path: Path) -> None:
    texts = saved(tmp_path, "texts", TEXTS)
    shuffled = np.random.default_rng(1).permutation(len(IMAGES))
    bank, lines = str(tmp_path / "images.arrow"), str(tmp_path / "lines.arrow")
    write_vectors(bank, make_vectors([f"coco/{GALLERY.image_ids[row]}" for row in shuffled], IMAGES[shuffled]))
    write_vectors(lines, make_vectors([f"line-{row}" for row in range(len(TEXTS))], TEXTS))
    by_id = str(tmp_path / "texts.arrow")
    write_vectors(by_id, make_vectors(GALLERY.caption_ids[::-1], np.ascontiguousarray(TEXTS[::-1])))
    repeated = saved(tmp_path, "repeated", IMAGES[GALLERY.caption_image])
    once = saved(tmp_path, "images", IMAGES)
    for images, captions in ((once, texts), (repeated, texts), (bank, lines), (bank, by_id)):
        assert np.array_equal(whole(embeddings_member(images, captions, GALLERY).across), SCORES)
    pickled = str(tmp_path / "results.npy")
    np.save(pickled, {"npts": 10, "sims": SCORES}, allow_pickle=True)
    saves = {"plain": SCORES, "transposed": SCORES.T, "repeated": SCORES[GALLERY.caption_image]}
    for path in [*(saved(tmp_path, f"s-{name}", matrix) for name, matrix in saves.items()), pickled]:
        member = similarity_member(path, GALLERY, str(tmp_path / "plain"))
        assert np.array_equal(whole(member.across), SCORES)
        assert member.embeddings is None
        assert member.hashes == {"similarity": place_sha256(path)}


def test_images_with_uneven_captions_may_be_repeated_too(tmp_path: Path) -> None:
    kept = np.delete(np.arange(50), [3, 4, 9])
    gallery = GALLERY._replace(
        captions=[GALLERY.captions[i] for i in kept],
        caption_ids=[GALLERY.caption_ids[i] for i in kept],
        caption_image=GALLERY.caption_image[kept],
    )
    scores = SCORES[:, kept]
    path = saved(tmp_path, "s", scores[gallery.caption_image])
    assert np.array_equal(whole(similarity_member(path, gallery, str(tmp_path)).across), scores)


def test_an_ensemble_is_the_mean_also_within_a_kind(tmp_path: Path) -> None:
    other = small_embeddings(seed=1)
    pairs = [
        (saved(tmp_path, f"i{i}", a), saved(tmp_path, f"t{i}", b)) for i, (a, b) in enumerate([(IMAGES, TEXTS), other])
    ]
    members = [embeddings_member(*pair, GALLERY) for pair in pairs]
    mean = (SCORES + other[0] @ other[1].T) / 2
    assert np.allclose(whole(ensemble([member.across for member in members])), mean, atol=1e-6)
    texts, images = within(members, "texts"), within(members, "images")
    assert np.allclose(whole(texts), (TEXTS @ TEXTS.T + other[1] @ other[1].T) / 2, atol=1e-6)
    assert images.shape == (10, 10)
    matrix = similarity_member(saved(tmp_path, "s", SCORES), GALLERY, str(tmp_path))
    assert within([*members, matrix], "texts") is None


def test_places() -> None:
    assert places("") == places([]) == []
    assert places("a, b") == places(["a", "b"]) == ["a", "b"]
    with pytest.raises(InputError, match=r"embeddings\.images names 2 and embeddings\.texts 1"):
        EmbeddingsConfig(images="a,b", texts="c")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    texts, images = saved(tmp_path, "t", TEXTS), saved(tmp_path, "i", IMAGES)
    cases = [
        (saved(tmp_path, "few", IMAGES[:9]), texts, "has 9 rows, but the split has 10 images"),
        (images, saved(tmp_path, "few-t", TEXTS[:7]), "has 7 rows, but the split has 50 captions"),
        (saved(tmp_path, "mixed", TEXTS), texts, "row 1 is not that of its image's first caption"),
        (saved(tmp_path, "flat", IMAGES[0]), texts, "expected \\(rows, width\\)"),
        (str(tmp_path / "none.npy"), texts, "does not exist"),
        (saved(tmp_path, "wide", np.ones((10, 7), np.float32)), texts, "must be matrices of one width"),
    ]
    for image_place, text_place, message in cases:
        with pytest.raises(InputError, match=message):
            embeddings_member(image_place, text_place, GALLERY)
    bank = str(tmp_path / "bank.arrow")
    write_vectors(bank, make_vectors(GALLERY.image_ids[:8], IMAGES[:8]))
    with pytest.raises(InputError, match=r"no embedding of image 'COCO_val2014_000000000109' \(2 of 10"):
        embeddings_member(bank, texts, GALLERY)
    with pytest.raises(InputError, match=r"shape \(10, 49\), but the split has 10 images and 50 captions"):
        similarity_member(saved(tmp_path, "s", SCORES[:, :49]), GALLERY, str(tmp_path))


def test_a_bank_is_hashed_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "bank" / "shards").mkdir(parents=True)
    write_vectors(str(tmp_path / "bank" / "shards" / "part-0.arrow"), make_vectors(["a"], IMAGES[:1]))
    first = place_sha256(str(tmp_path / "bank"))
    write_vectors(str(tmp_path / "bank" / "shards" / "part-1.arrow"), make_vectors(["b"], IMAGES[:1]))
    assert place_sha256(str(tmp_path / "bank")) != first
