from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_vocabulary
from small_vokens import write_tokens, write_vokens

from vokenize.pair_counts import PairCounts
from vokenize.voken_evaluation import Evaluated, Evaluation
from vokenize.voken_report import figures_text, image_rows, lorenz_curve, number, type_rows, voken_plot
from vokenize.voken_runs import open_voken_run


def evaluated(folder: Path, level: str) -> Evaluated:
    shards = write_tokens(folder / "t", tiny_vocabulary(), ["the cat", "", "a dog ran", "the mat"])
    write_vokens(folder / "v", folder / "t", shards, level=level)
    run = open_voken_run(str(folder / "t"), str(folder / "v"))
    with PairCounts(run.keys) as pairs:
        return Evaluation(run, pairs, np.arange(run.keys), other=run).measure()


@pytest.mark.parametrize("level", ["token", "sentence", "both"])
def test_every_figure_is_shown_and_every_image_has_its_row(tmp_path: Path, level: str) -> None:
    found = evaluated(tmp_path, level)
    shown = figures_text(found.figures)
    assert "same best" in shown
    assert "never used" in shown
    assert ("Images of a token type" in shown) == (level != "sentence")
    rows = image_rows(found, [f"s/{i}" for i in range(9)], [None] * 9)
    assert rows.column("row").to_pylist() == list(range(9))
    assert rows.column("best_of_tokens").null_count == (9 if level == "sentence" else 0)
    assert rows.column("token_types").null_count == (9 if level == "sentence" else 0)
    assert rows.column("among_k_of_pieces").null_count == (9 if level == "token" else 0)
    assert voken_plot(found, "run").startswith(b"\x89PNG")


def test_types_have_their_names_where_they_are_known(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "both")
    names = tiny_vocabulary().convert_ids_to_tokens(range(34))
    rows = type_rows(found.types, names)
    assert dict(zip(rows["token"].to_pylist(), rows["occurrences"].to_pylist(), strict=True))["the"] == 2
    assert rows.column("mean_count").to_pylist()[0] == pytest.approx(
        rows.column("occurrences").to_pylist()[0] / rows.column("images").to_pylist()[0]
    )
    assert type_rows(found.types, None).column("token").null_count == len(rows)


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_the_lorenz_curve_rises_below_the_diagonal(counts: list[int]) -> None:
    images, uses = lorenz_curve(np.array(counts))
    assert (images[0], uses[0], images[-1]) == (0, 0, 1)
    assert (np.diff(uses) >= 0).all()
    assert (uses <= images + 1e-9).all()


def test_numbers_are_written_as_a_person_reads_them() -> None:
    assert [number(value) for value in (None, 12345, 0.123456, 33.333333)] == ["–", "12,345", "0.1235", "33.33"]
