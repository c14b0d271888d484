from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_models import golden, tiny_vocabulary
from small_vokens import random_vokens, write_tokens, write_vokens
from stub_encoder import StubEncoder

from vokenize.pair_counts import PairCounts
from vokenize.tokens import tokenize
from vokenize.voken_evaluation import Evaluation
from vokenize.voken_retrieval import CaptionTruth, TruthConfig, ranks_of, read_truth
from vokenize.voken_runs import open_voken_run
from vokenize.vokenizer import VokenizeConfig, vokenize_rows
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.search import build_searcher

CASE = golden("evaluation")
CAPTIONS = [caption for entry in CASE["data"] for caption in entry["sentf"]["mscoco"]]
LINES = ["the cat", "", "a dog ran , running . a dog ran", "it is big", "the mat"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    """Tokens, top-10 vokens and captions of the golden case."""
    folder = tmp_path_factory.mktemp("captions")
    tokens = tokenize(tiny_vocabulary(), list(range(len(CAPTIONS))), CAPTIONS)
    files.write_parquet(str(folder / "tokens" / "shards" / "part-00000.parquet"), tokens)
    encoder = StubEncoder()
    encoder.table = np.array(CASE["token_table_E"])
    searcher = build_searcher(np.array(CASE["keys"], np.float32))
    config = VokenizeConfig(level="both", top_k=10)
    vokens = vokenize_rows(tokens, encoder, searcher, config)
    files.write_parquet(str(folder / "vokens" / "shards" / "part-00000.parquet"), vokens)
    (folder / "captions.json").write_text(json.dumps(CASE["data"]))
    return folder


def measured(captions: Path, convention: str):
    run = open_voken_run(str(captions / "tokens"), str(captions / "vokens"))
    ids = [f"coco_minival/{image}" for image in CASE["ids"]]
    uris = [f"images/val2014/{image}.jpg" for image in CASE["ids"]]
    path = str(captions / "captions.json")
    truth = CaptionTruth(read_truth(TruthConfig(path=path)), ids, uris, convention, path)
    with PairCounts(run.keys) as pairs:
        return Evaluation(run, pairs, np.arange(run.keys), truth, convention).measure().figures


@pytest.mark.parametrize("convention", ["corrected", "original"])
def test_retrieval_and_diversity_equal_the_original(captions: Path, convention: str) -> None:
    figures = measured(captions, convention)
    for level, name in (("token", "tokX"), ("sentence", "sentX")):
        found = figures["retrieval"][level]
        printed = [
            f"R{k}: {found[f'recall_at_{k}']:.2f}%, (Random: {found[f'chance_at_{k}']:.4f}%)" for k in (1, 5, 10)
        ]
        assert printed == CASE["results"][name]
    found = figures["diversity"]
    assert [
        f"With {found['token_types']} tokens, ",
        f"Average of Num Images is {found['images']:.2f}",
        f"Average of Max Cnt is {found['max_count']:.2f}",
        f"Average of Avg Cnt is {found['mean_count']:.2f}",
        f"Average of Std Cnt is {found['std_count']:.2f}",
        f"Cover {figures['coverage']['token']['images_used']} images",
    ] == CASE["results"]["diversity_on_coco_minival"]


def test_ranks_equal_the_original(captions: Path) -> None:
    run = open_voken_run(str(captions / "tokens"), str(captions / "vokens"))
    [part] = run.parts()
    wanted = np.repeat(np.arange(len(CAPTIONS)) // 2, part.tokens_per_line)
    ranks = [r if r <= 10 else None for r in ranks_of(part.vokens, np.arange(12), wanted).tolist()]
    assert ranks == [rank for ranks in CASE["results"]["tokX_gt_rank_within_top10"] for rank in ranks]
    ranks = ranks_of(part.sentence_vokens, np.arange(12), np.arange(len(CAPTIONS)) // 2).tolist()
    assert [[r if r <= 10 else None] for r in ranks] == CASE["results"]["sentX_gt_rank_within_top10"]


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    """Tokens with the voken runs `a` and `b`."""
    shards = write_tokens(tmp_path / "tokens", tiny_vocabulary(), LINES, 2)
    for name, offset in (("a", 0), ("b", 40)):
        write_vokens(tmp_path / name, tmp_path / "tokens", shards)
        for number, shard in enumerate(shards):
            vokens = random_vokens(shard, seed=number + offset)
            files.write_parquet(str(tmp_path / name / "shards" / f"part-{number:05d}.parquet"), vokens)
    return tmp_path


def evaluated(folder: Path, other: str = "", photographs=None, max_lines: int = 0):
    run = open_voken_run(str(folder / "tokens"), str(folder / "a"))
    beside = open_voken_run(str(folder / "tokens"), str(folder / other)) if other else None
    with PairCounts(run.keys) as pairs:
        rows = np.arange(run.keys) if photographs is None else photographs
        return run, Evaluation(run, pairs, rows, other=beside).measure(max_lines)


def test_uses_and_types_are_those_of_a_plain_count(two_runs: Path) -> None:
    run, found = evaluated(two_runs)
    parts = list(run.parts())
    best = Counter(v for part in parts for v in part.vokens[:, 0].tolist())
    pairs = Counter(
        pair for part in parts for pair in zip(part.token_ids.tolist(), part.vokens[:, 0].tolist(), strict=True)
    )
    assert found.uses["token"].best.tolist() == [best[row] for row in range(9)]
    assert found.uses["sentence"].among_k.sum() == 2 * sum(part.pieces_per_line.sum() for part in parts)
    assert found.types_per_image.tolist() == [sum(image == row for _, image in pairs) for row in range(9)]
    for token, images, most in zip(found.types.token_ids, found.types.images, found.types.max_counts, strict=True):
        counts = [count for (kind, _), count in pairs.items() if kind == token]
        assert (images, most) == (len(counts), max(counts))
    assert found.figures["corpus"] == {"lines": 5, "tokens": sum(best.values())}


def test_rows_of_one_photograph_count_as_one(two_runs: Path) -> None:
    _, found = evaluated(two_runs, photographs=np.zeros(9, np.int64))
    assert found.figures["diversity"]["images"] == 1
    assert found.figures["coverage"]["token"] == {"images_used": 1, "share": 1.0}
    assert found.figures["hubness"]["token"]["never_used"] < 1


def test_a_run_agrees_with_itself_and_less_with_another(two_runs: Path) -> None:
    same, other = (evaluated(two_runs, name)[1].figures["agreement"] for name in ("a", "b"))
    for level in ("token", "sentence"):
        assert same[level]["same_best"] == same[level]["overlap_at_k_by_line"] == 1
        assert other[level]["same_best"] < 1
    assert same["token"]["queries"] == 17


def test_the_first_lines_alone_can_be_measured(two_runs: Path) -> None:
    _, found = evaluated(two_runs, "b", max_lines=3)
    assert found.figures["corpus"] == {"lines": 3, "tokens": 12}
    assert found.figures["agreement"]["token"]["queries"] == 12


def test_runs_with_other_windows_are_refused_with_their_first_line(two_runs: Path) -> None:
    shard = two_runs / "b" / "shards" / "part-00001.parquet"
    table = files.read_parquet(str(shard))
    rows = table.to_pylist()
    rows[0] |= {"piece_lengths": [10], "sentence_vokens": [1, 2], "sentence_scores": [0.5, 0.4]}
    files.write_parquet(str(shard), type(table).from_pylist(rows, schema=table.schema))
    with pytest.raises(InputError, match="a' and .*b' cannot be compared: line 2 has 3 sentence queries .* and 1 in"):
        evaluated(two_runs, "b")


def test_a_run_of_sentences_alone_has_no_diversity(two_runs: Path) -> None:
    shards = write_tokens(two_runs / "same", tiny_vocabulary(), LINES, 2)
    write_vokens(two_runs / "a", two_runs / "tokens", shards, level="sentence")
    _, found = evaluated(two_runs)
    assert "diversity" not in found.figures
    assert set(found.figures["hubness"]) == {"sentence"}
