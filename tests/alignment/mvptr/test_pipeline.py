"""The pipeline: raw images and texts, in batches of any size, to masked words and embeddings."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mvptr_cases import PHRASES, TINY, WORDS, tiny_tokenizer
from PIL import Image

from alignment.mvptr import Pipeline
from alignment.mvptr.checkpoints import Saved, save
from alignment.mvptr.config import MvptrConfig
from alignment.mvptr.detected_regions import DetectedRegions
from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, build
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.pipeline import Candidate, Filled, _filled
from alignment.mvptr.regions.selection import Candidates, SelectionConfig
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError

TEXTS = ["two [MASK] playing on the ground", "a red dog", "a [MASK] [MASK] and a cat is the man"]


class Corners:
    """Regions from an image's colours: as many as its width in tens, named by brightness."""

    def __init__(self, width: int = 4) -> None:
        self.width, self.calls = width, []

    def __call__(self, images: Sequence[Image.Image]) -> list[ImageRegions]:
        self.calls.append(len(images))
        return [self.of(np.asarray(image, np.float32) / 255) for image in images]

    def of(self, pixels: np.ndarray) -> ImageRegions:
        height, width = pixels.shape[:2]
        count = width // 10
        boxes = np.array([[10 * i, 0, 10 * i + 10, height] for i in range(count)], np.float32).reshape(count, 4)
        features = [pixels[:, 10 * i : 10 * i + 10].mean((0, 1)) for i in range(count)]
        features = np.array(features, np.float32).reshape(count, 3)
        features = np.pad(features, ((0, 0), (0, self.width - 3)))
        return ImageRegions("", boxes, features, width, height, tuple("dog" if f[0] > 0.5 else "cat" for f in features))


class Halves:
    """A detector that finds both halves of an image, and nothing in one without an inside."""

    names, width = ("left", "right"), 4

    def __init__(self) -> None:
        self.sizes: list[list[tuple[int, int]]] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        self.sizes.append([image.size for image in images])
        return [self.of(*image.size) for image in images]

    def of(self, width: int, height: int) -> Candidates:
        boxes = torch.tensor([[0, 0, width // 2, height], [width // 2, 0, 2 * (width // 2), height]])
        return Candidates(boxes.float(), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), torch.ones(2, 4))


def photo(seed: int, width: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def parsed(text: str) -> list[tuple[str, ...]]:
    return [phrase for phrase in PHRASES.values() if all(word in text for word in phrase)]


def pipeline(task: str = "pretraining", config: MvptrConfig = TINY, **changes: object) -> Pipeline:
    torch.manual_seed(2)
    model = build(dataclasses.replace(config, initializer_range=0.4), HeadConfig(task=task))
    saved = Saved(model, tiny_tokenizer(), PhraseVocabulary(PHRASES))
    return Pipeline(saved, **{"regions": Corners(), "phrases": parsed, **changes})


def test_paths_bytes_and_open_images_are_alike_in_batches_of_any_size(tmp_path: Path) -> None:
    photos = [photo(1), photo(2, 50), photo(3, 20)]
    encoded = []
    for number, one in enumerate(photos):
        one.save(tmp_path / f"{number}.png")
        buffer = io.BytesIO()
        one.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    expected = pipeline().embed(photos, TEXTS)
    for images, size in ((paths, 1), (encoded, 2), ([paths[0], encoded[1], photos[2]], 3)):
        found = pipeline(batch_size=size).embed(images, TEXTS)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_the_dictionary_has_every_part_with_its_mask() -> None:
    found = pipeline().embed([photo(1), photo(2, 50)], ["a red dog", "cat"])
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "token": (2, 5, 8),
        "token_mask": (2, 5),
        "phrase": (2, 7, 8),
        "phrase_mask": (2, 7),
        "phrase_id": (2, 7),
        "region": (2, 4, 8),
        "region_mask": (2, 4),
        "pooled": (2, 8),
        "text": (2, 8),
        "image": (2, 8),
        "text_states": (2, 9, 8),
        "text_mask": (2, 9),
        "image_states": (2, 9, 8),
        "image_mask": (2, 9),
    }
    assert found["token_mask"].sum(1).tolist() == [4, 2]
    assert [row[row >= 0].tolist() for row in found["phrase_id"]] == [[8, 40], []]
    assert found["phrase_mask"].sum(1).tolist() == [2, 0]
    assert found["region_mask"].sum(1).tolist() == [3, 4]
    assert torch.isfinite(found["phrase"]).all() and found["phrase"].dtype == torch.float32
    assert not found["token"][~found["token_mask"]].any()
    torch.testing.assert_close(found["text"].norm(dim=1), torch.ones(2))


def test_the_parts_are_the_places_of_the_cross_encoder() -> None:
    one = pipeline()
    found = one.embed([photo(1)], ["a red dog"])
    pair = one._pair("a red dog", one._regions([photo(1)])[0])
    inputs = type(pair.inputs)(*(part[None] for part in pair.inputs))
    assert inputs.input_ids_a.tolist() == [[1, 5, 17, 8, 8, 40, 2, 0, 0]]
    assert inputs.input_ids_b[0, 0] == 1
    with torch.no_grad():
        sequence = one.model.mvptr(inputs)[1].sequence[0]
    torch.testing.assert_close(found["token"][0, :4], sequence[:4])
    torch.testing.assert_close(found["phrase"][0, :2], sequence[4:6])
    torch.testing.assert_close(found["region"][0, :3], sequence[9:12])


def test_masks_are_filled_with_the_likeliest_words_in_any_batch() -> None:
    photos = [photo(1), photo(2, 50), photo(3, 20)]
    filled = pipeline().fill_masks(photos, TEXTS, top_k=3)
    alone = [pipeline().fill_masks([p], [t], top_k=3)[0] for p, t in zip(photos, TEXTS, strict=True)]
    assert [one.text for one in filled] == [one.text for one in alone]
    shares = [[[c.probability for c in best] for best in one.candidates] for one in (*filled, *alone)]
    np.testing.assert_allclose(np.concatenate(shares[0] + shares[2]), np.concatenate(shares[3] + shares[5]), rtol=1e-4)
    assert [len(one.candidates) for one in filled] == [1, 0, 2]
    assert filled[1].text == TEXTS[1]
    for one in filled:
        for candidates in one.candidates:
            assert len(candidates) == 3 and {c.word for c in candidates} <= set(WORDS)
            shares = [c.probability for c in candidates]
            assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
    assert filled[0].candidates[0][0].word.removeprefix("##") in filled[0].text


def test_a_model_that_knows_the_word_says_it() -> None:
    one = pipeline()
    assert isinstance(one.model, MvptrForPretraining)
    with torch.no_grad():
        one.model.words.bias[WORDS.index("dogs")] += 100.0
    filled = one.fill_masks([photo(1)], ["two [MASK] playing [MASK]"])[0]
    assert filled.text == "two dogs playing dogs"
    assert filled.candidates[0][0] == Candidate("dogs", pytest.approx(1.0))


def test_pieces_are_joined_and_masks_out_of_reach_stay() -> None:
    made = _filled("a dog[MASK] [MASK] on [MASK]", "[MASK]", [[Candidate("##s", 0.9)], [Candidate("##s", 0.5)]])
    assert made == Filled("a dogss on [MASK]", [[Candidate("##s", 0.9)], [Candidate("##s", 0.5)], []])
    late = pipeline().fill_masks([photo(1)], ["a a a a a a [MASK]"])[0]
    assert late == Filled("a a a a a a [MASK]", [[]])


def test_one_image_with_many_texts_is_read_once() -> None:
    corners, one = Corners(), photo(1)
    found = pipeline(regions=corners).embed([one, one, photo(2)], ["a dog", "a cat", "the man"])
    assert corners.calls == [2]
    torch.testing.assert_close(found["image"][0], found["image"][1])


def test_features_that_end_in_geometry_are_taken_as_they_are() -> None:
    with_own = pipeline(regions=lambda images: [Corners(4).of(np.asarray(i, np.float32) / 255) for i in images])
    width = with_own._regions([photo(1)])[0].features.shape[1]
    assert width == TINY.region_width == 4 + 6
    torch.testing.assert_close(
        torch.from_numpy(with_own._regions([photo(1)])[0].features[0, 4:]),
        torch.tensor([0.0, 0.0, 1 / 3, 1.0, 1 / 3, 1.0]),
    )
    with pytest.raises(InputError, match="regions have 5 numbers, the model reads 10"):
        pipeline(regions=Corners(5)).embed([photo(1)], ["a dog"])


def test_an_image_without_regions_has_none_and_stays_finite() -> None:
    found = pipeline().embed([photo(1, 9), photo(2)], ["a red dog", "a red dog"])
    assert found["region_mask"].sum(1).tolist() == [0, 3]
    assert all(torch.isfinite(value).all() for value in found.values())


def test_a_detector_makes_regions_of_images_of_several_sizes() -> None:
    detected = DetectedRegions(Halves(), SelectionConfig(min_regions=1, max_regions=4, threshold=0.5))
    images = [photo(1), photo(2, 50), photo(3)]
    found = detected(images)
    assert detected.detector.sizes == [[(30, 12), (30, 12)], [(50, 12)]]
    assert [(one.width, one.height, one.tags) for one in found] == [
        (image.width, 12, ("left", "right")) for image in images
    ]
    assert found[1].boxes.tolist() == [[0, 0, 25, 12], [25, 0, 50, 12]]
    assert detected([Image.new("RGB", (1, 4))])[0].features.shape == (0, 4)
    shown = pipeline(regions=detected).embed(images, ["a dog"] * 3)
    assert shown["region_mask"].sum(1).tolist() == [2, 2, 2]


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match="this one is for retrieval"):
        pipeline("retrieval").fill_masks([photo(1)], ["[MASK]"])
    with pytest.raises(InputError, match="1 images and 2 texts"):
        pipeline().embed([photo(1)], ["a", "b"])
    with pytest.raises(InputError, match="no pairs"):
        pipeline().embed([], [])
    with pytest.raises(InputError, match="0 sets of regions for 1 images"):
        pipeline(regions=lambda images: []).embed([photo(1)], ["a"])
    with pytest.raises(InputError, match="batch_size"):
        pipeline(batch_size=0)
    with pytest.raises(InputError, match="does not exist|missing|no such"):
        pipeline().embed(["/nowhere/x.jpg"], ["a"])
    assert pipeline().fill_masks([], []) == []


def test_a_saved_folder_and_phrases_by_rule(tmp_path: Path) -> None:
    pytest.importorskip("textblob")
    saved = Saved(build(TINY, HeadConfig(task="pretraining")), tiny_tokenizer(), PhraseVocabulary(PHRASES))
    save(str(tmp_path), saved)
    one = Pipeline(str(tmp_path), regions=Corners())
    ids = one.embed([photo(1)], ["A red dog is playing."])["phrase_id"]
    assert sorted(ids[ids >= 0].tolist()) == [8, 40]
    save(str(tmp_path), saved._replace(phrases=None))
    (tmp_path / "id2phrase.json").unlink()
    assert Pipeline(str(tmp_path), regions=Corners()).phrases is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_the_same_embeddings() -> None:
    here, there = (pipeline(device=d).embed([photo(1)], ["a red dog"]) for d in ("cpu", "cuda"))
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-3)
