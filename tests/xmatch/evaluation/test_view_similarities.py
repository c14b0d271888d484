from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_gallery import small_embeddings, small_gallery, write_cxc, write_truth

from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.evaluation.benchmarks import BENCHMARKS, benchmark_of
from xmatch.evaluation.measures import ConfidenceConfig, Request, measure_folds, measure_whole
from xmatch.evaluation.members import Member, embeddings_member, ensemble, within
from xmatch.evaluation.ranks import MISSED
from xmatch.evaluation.retrieved import retrieved_table
from xmatch.evaluation.similarities import MatrixSimilarities, Similarities
from xmatch.evaluation.view_similarities import across, among_images, chosen_views, view_rows
from xmatch.search.factored import FactoredVectors

GALLERY = small_gallery()
VIEWS, DIM, SHARED = 3, 6, 4


def several(seed: int = 0, shared: int = SHARED) -> tuple[np.ndarray, np.ndarray]:
    """(N, V, E) images and (M, E) captions near one of their image's views; the last columns are shared."""
    rng = np.random.default_rng(seed)
    images, texts = small_embeddings(seed=seed)
    views = images[:, None] + 0.5 * rng.standard_normal((len(images), VIEWS, DIM), dtype=np.float32)
    tail = rng.standard_normal((len(images), 1, shared), dtype=np.float32)
    whole = np.concatenate([views, np.repeat(0.3 * tail, VIEWS, 1)], 2)
    return whole, np.concatenate([texts, rng.standard_normal((len(texts), shared), dtype=np.float32)], 1)


def whole(source: Similarities) -> np.ndarray:
    return source.block(slice(0, source.shape[0]), slice(0, source.shape[1]))


def direct(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    return np.einsum("nve,me->nvm", images.astype(np.float64), texts.astype(np.float64)).max(1)


def member(seed: int, shared: int = SHARED) -> Member:
    images, texts = several(seed, shared)
    source = across(view_rows(images), texts)
    return Member("embeddings", str(seed), source, (source.images, source.texts), {})


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    shared=st.integers(0, 5),
    top=st.integers(0, 9),
    left=st.integers(0, 49),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_a_rectangle_is_of_the_best_views(seed: int, shared: int, top: int, left: int, dtype: str) -> None:
    images, texts = several(seed, shared)
    images = images.astype(dtype)
    source = across(view_rows(images), texts)
    assert source.shape == (10, 50)
    assert len(source.images.parts) == (2 if shared else 1)
    rows, columns = slice(top, 10), slice(left, min(50, left + 7))
    expected = direct(images, texts)[rows, columns]
    np.testing.assert_allclose(source.block(rows, columns), expected, atol=1e-5)
    pairs = np.einsum("nve,mwe->nvmw", images.astype(np.float64), images.astype(np.float64)).max((1, 3))
    np.testing.assert_allclose(among_images(source.images).block(rows, slice(2, 9)), pairs[rows, 2:9], atol=1e-5)


def test_every_form_of_several_views_gives_the_same_scores(tmp_path: Path) -> None:
    images, texts = several()
    expected = direct(images, texts)
    rows, captions = images.reshape(-1, DIM + SHARED), str(tmp_path / "t.npy")
    np.save(tmp_path / "i.npy", images)
    np.save(captions, texts)
    names = [name for name in GALLERY.image_ids for _ in range(VIEWS)]
    ids = [f"{name}#v{view:02d}" for name in GALLERY.image_ids for view in range(VIEWS)]
    shuffled = np.random.default_rng(0).permutation(len(rows))
    write_vectors(str(tmp_path / "own.arrow"), make_vectors(ids, rows, groups=names))
    mixed = make_vectors(
        [f"coco/{ids[row]}" for row in shuffled], rows[shuffled], groups=[f"coco/{names[row]}" for row in shuffled]
    )
    write_vectors(str(tmp_path / "mixed.arrow"), mixed)
    for place in ("i.npy", "own.arrow"):
        found = embeddings_member(str(tmp_path / place), captions, GALLERY)
        np.testing.assert_allclose(whole(found.across), expected, atol=1e-5)
        assert isinstance(found.embeddings[0], FactoredVectors)
        assert [part.rows.shape for part in found.embeddings[0].parts] == [(30, DIM), (10, SHARED)]
    bank = embeddings_member(
        str(tmp_path / "mixed.arrow"), captions, GALLERY
    )  # views in another order: the same maxima
    np.testing.assert_allclose(whole(bank.across), expected, atol=1e-5)
    uneven = make_vectors(ids[:-1], rows[:-1], groups=names[:-1])
    write_vectors(str(tmp_path / "uneven.arrow"), uneven)
    with pytest.raises(InputError, match=r"has 2 vectors of image 'COCO_val2014_000000000110' and 3 of"):
        embeddings_member(str(tmp_path / "uneven.arrow"), captions, GALLERY)
    np.save(captions, texts[:, :-1])
    with pytest.raises(InputError, match="images are 10 wide and texts have the shape"):
        embeddings_member(str(tmp_path / "i.npy"), captions, GALLERY)


def test_gathered_in_blocks_the_shared_columns_are_those_of_all() -> None:
    images, _ = several()
    rows = images.reshape(-1, DIM + SHARED).copy()
    rows[28, DIM + 1] += 1  # the last image's views share less
    chosen = np.arange(30).reshape(10, 3)[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmatch.evaluation.view_similarities.GATHERED", 200)
        found = chosen_views(rows, chosen)
    assert [part.rows.shape for part in found.parts] == [(30, DIM + 2), (10, SHARED - 2)]
    np.testing.assert_array_equal(found.parts[0].rows, rows[chosen.reshape(-1), : DIM + 2])
    np.testing.assert_array_equal(found.parts[1].rows, rows[chosen[:, 0], DIM + 2 :])


@pytest.mark.parametrize("measure", [measure_whole, measure_folds])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_lists_give_the_ranks(measure, seeds) -> None:
    asked = Request(GALLERY, [member(seed) for seed in seeds], ConfidenceConfig(resamples=5))
    measured, k = measure(asked), 7
    table = retrieved_table(asked, measured.parts, k)
    scores = whole(asked.across)
    for direction, ids in (("i2t", GALLERY.image_ids), ("t2i", GALLERY.caption_ids)):
        first: dict[str, int] = {}
        for row in table.to_pylist():
            if row["direction"] == direction and row["is_match"]:
                first[row["query_id"]] = min(first.get(row["query_id"], MISSED), row["rank"])
            image, caption = (
                (row["query_id"], row["candidate_id"]) if direction == "i2t" else (row["candidate_id"], row["query_id"])
            )
            if row["direction"] == direction:
                at = GALLERY.image_ids.index(image), GALLERY.caption_ids.index(caption)
                assert abs(scores[at] - row["score"]) < 1e-5
        ranks = np.concatenate([getattr(part, direction).ranks for part in measured.parts])
        assert {i: r for i, r in zip(ids, ranks.tolist()) if r <= k} == {i: r for i, r in first.items() if r <= k}


def test_models_of_one_and_of_several_vectors_make_an_ensemble() -> None:
    images, texts = small_embeddings(seed=7)
    plain = Member("embeddings", "plain", across(images, texts), (images, texts), {})
    viewed = member(0)
    together = ensemble([plain.across, viewed.across])
    expected = (images @ texts.T + direct(*several())) / 2
    np.testing.assert_allclose(whole(together), expected, atol=1e-5)
    asked = Request(GALLERY, [plain, viewed], ConfidenceConfig(resamples=5))
    table = retrieved_table(asked, measure_whole(asked).parts, 50).to_pylist()
    of_first = [row for row in table if row["query_id"] == GALLERY.image_ids[0] and row["direction"] == "i2t"]
    order = np.argsort(-expected[0], kind="stable")
    assert [row["candidate_id"] for row in of_first] == [GALLERY.caption_ids[at] for at in order]
    assert within([plain, viewed], "images").shape == (10, 10)


@pytest.mark.parametrize("benchmark", list(BENCHMARKS))
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_every_benchmark_measures_what_the_matrix_gives(tmp_path: Path, benchmark: str, seeds: tuple[int, ...]) -> None:
    members = [member(seed) for seed in seeds]
    matrix = np.mean([direct(*several(seed)) for seed in seeds], axis=0).astype(np.float32)
    saved = Member("similarity", "m", MatrixSimilarities(matrix), None, {})
    places = {"cxc": write_cxc(tmp_path / "cxc", GALLERY)}
    places["eccv"] = places["pmrp"] = ""
    for name in ("eccv", "pm"):
        places["eccv" if name == "eccv" else "pmrp"] = write_truth(tmp_path / "truth", GALLERY, name)
    found, expected = (
        benchmark_of(benchmark).measure(Request(GALLERY, list(given), ConfidenceConfig(resamples=5), **places)).figures
        for given in (members, [saved])
    )
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    if benchmark == "cxc":
        assert found["i2i_recall_at_10"] is not None


def test_an_embedding_that_is_not_finite_is_named() -> None:
    images, texts = several()
    images[4, 1, 2] = np.inf
    with pytest.raises(InputError, match="image embedding 4 holds NaN or infinity"):
        across(view_rows(images), texts)
    images, texts = several()
    texts[7, 0] = np.nan
    with pytest.raises(InputError, match="text embedding 7 holds NaN"):
        across(view_rows(images), texts)
