"""The original's pre-training corpus: there and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.mvptr.corpus import own_name, read_corpus, write_corpus
from alignment.mvptr.tasks.samples import SCHEMA, Sample, read_samples, samples_table, write_samples
from xmatch.errors import InputError

TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters="\u0085"), max_size=20)
SAMPLE = st.builds(
    lambda text, phrases: (text, phrases),
    TEXT,
    st.lists(st.tuples(st.integers(0, 90), st.sets(st.integers(0, 30), max_size=3)), max_size=4),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=5))
def test_a_corpus_comes_back(tmp_path: Path, made: list[tuple[str, list[tuple[int, set[int]]]]]) -> None:
    samples = [
        Sample(
            str(row), f"coco_{row}", text, [one for one, _ in phrases], links=[sorted(words) for _, words in phrases]
        )
        for row, (text, phrases) in enumerate(made)
    ]
    places = str(tmp_path / "corpus.tsv"), str(tmp_path / "sg.json")
    write_corpus(*places, samples)
    assert read_corpus(*places) == samples


def test_words_are_linked_with_the_phrases_made_of_them(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("flickr30k_1000092795\t0\ta dog runs\n")
    (tmp_path / "sg.json").write_text(json.dumps([[[7, 50], {"1": [0, 1], "2": [1]}, 0]]))
    [sample] = read_corpus(str(tmp_path / "c.tsv"), str(tmp_path / "sg.json"), rows=60)
    assert (sample.phrases, sample.links) == ([7, 50], [[1], [1, 2]])
    assert own_name(sample.image_id) == "1000092795"


@pytest.mark.parametrize(
    ("line", "entry", "message"),
    [
        ("coco_1\t0", [[], {}, 0], r"c.tsv', row 1: 2 columns"),
        ("\t0\tx", [[], {}, 0], r"c.tsv', row 1: 3 columns"),
        ("coco_1\t0\tx", [[60], {}, 0], r"sg.json', row 1: phrase id 60 is out of range; the model has 60 rows"),
        ("coco_1\t0\tx", [[7], {"1": [1]}, 0], r"sg.json', row 1: word '1' is linked with \[1\]"),
        ("coco_1\t0\tx", [[7]], r"sg.json', row 1: expected \[phrase ids"),
    ],
)
def test_bad_input_names_file_and_row(tmp_path: Path, line: str, entry: Any, message: str) -> None:
    (tmp_path / "c.tsv").write_text(f"coco_1\t0\tfine\n{line}\n")
    (tmp_path / "sg.json").write_text(json.dumps([[[], {}, 0], entry]))
    with pytest.raises(InputError, match=message):
        read_corpus(str(tmp_path / "c.tsv"), str(tmp_path / "sg.json"), rows=60)


def test_a_text_that_breaks_the_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample 0 holds a tab"):
        write_corpus(str(tmp_path / "c.tsv"), str(tmp_path / "sg.json"), [Sample("0", "coco_1", "a\tb")])


def test_samples_come_back_from_arrow(tmp_path: Path) -> None:
    samples = [
        Sample("a", "i", "text", [3], [[1, 2]], ["cat"], [1], [0.5], [1.0, 2.0, 3.0, 4.0], "other", "yes"),
        Sample("b", "j", ""),
    ]
    write_samples(str(tmp_path / "s.arrow"), samples_table(samples))
    table = read_samples(str(tmp_path / "s.arrow"))
    assert table.schema == SCHEMA
    assert table.to_pylist()[0] == samples[0]._asdict()
    assert (table.to_pylist()[1]["links"], table.to_pylist()[1]["answer"]) == (None, None)
