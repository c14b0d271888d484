from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from small_models import golden
from stub_encoder import KEYS, StubEncoder, golden_bank, line_rows

from vokenize.original_tokens import (
    export_tokens,
    import_tokens,
    load_sentencizer,
    read_original_tokens,
    sentence_lengths,
    sentence_offsets,
)
from vokenize.original_vokens import (
    export_vokens,
    import_vokens,
    line_vokens,
    maria_lines,
    rejoin,
    sentence_sign_code,
    voken_base_name,
)
from vokenize.tokens import tokenize
from vokenize.vokenizer import VokenizeConfig, vokenize_rows
from xmatch.errors import InputError
from xmatch.search import build_searcher

FILTERS = {"plain_three_lines": "none", "reddit_tabs": "none", "wiki103_filters": "wiki103"}
SENTENCES = KEYS["token_level_top1"]["sents"]


def tokens_of(case: dict, tokenizer) -> pa.Table:
    lines = case["text"].split("\n")[:-1]
    return tokenize(tokenizer, list(range(len(lines))), lines)


@pytest.mark.parametrize("name", FILTERS)
def test_token_files_equal_the_original_byte_by_byte(tmp_path: Path, tokenizer, name: str) -> None:
    case = golden("tokenization")[name]
    table = tokens_of(case, tokenizer)
    prefix = str(tmp_path / "x.toy")
    dropped = export_tokens([table.slice(0, 2), table.slice(2)], prefix, FILTERS[name])
    assert Path(prefix).read_text() == case["tokens_file"]
    assert Path(f"{prefix}.line").read_text() == case["line_file"]
    with h5py.File(f"{prefix}.hdf5") as store:
        data = store["tokens"]
        assert list(store) == case["hdf5"]["keys"]
        assert data[:].tolist() == case["hdf5"]["values"]
        assert str(data.dtype) == case["hdf5"]["dtype"]
        assert list(data.chunks) == case["hdf5"]["chunks"]
        assert (data.maxshape, data.compression) == ((None,), case["hdf5"]["compression"])
    assert len(dropped) == len(table) - case["line_file"].count("\n") + 1
    assert all(line.reason for line in dropped)


def test_imported_tokens_are_the_exported_ones(tmp_path: Path, tokenizer) -> None:
    table = tokens_of(golden("tokenization")["plain_three_lines"], tokenizer)
    export_tokens([table], str(tmp_path / "x"))
    back = import_tokens(str(tmp_path / "x"), tokenizer)
    assert back.column("token_ids").to_pylist() == table.column("token_ids").to_pylist()
    for row in back.to_pylist():
        words = [row["text"][s:e] for s, e in zip(row["starts"], row["ends"], strict=True)]
        assert tokenizer.convert_tokens_to_ids(words) == row["token_ids"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: Path(f"{p}.line").write_text("0\n7\n"), "must rise from 0 to the 17 tokens"),
        (lambda p: Path(f"{p}.line").write_text("0\nx\n"), "one number a line"),
        (lambda p: Path(f"{p}.hdf5").write_bytes(Path(f"{p}.hdf5").read_bytes()[:700]), "not a whole HDF5"),
        (lambda p: Path(f"{p}.hdf5").unlink(), "does not exist"),
    ],
)
def test_damaged_token_files_are_named(tmp_path: Path, tokenizer, damage, message: str) -> None:
    prefix = str(tmp_path / "x")
    export_tokens([tokens_of(golden("tokenization")["plain_three_lines"], tokenizer)], prefix)
    damage(prefix)
    with pytest.raises(InputError, match=message):
        read_original_tokens(prefix)


def test_token_ids_out_of_the_vocabulary_name_their_row(tmp_path: Path, tokenizer) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as store:
        store["tokens"] = np.array([5, 99], np.int32)
    (tmp_path / "x.line").write_text("0\n2\n")
    with pytest.raises(InputError, match="token 1: id 99 is outside the tokenizer's"):
        import_tokens(str(tmp_path / "x"), tokenizer)


def voken_table(level: str, k: int = 1, lines=SENTENCES) -> pa.Table:
    _, _, keys = golden_bank()
    config = VokenizeConfig(level=level, top_k=k, window=128, window_policy="original")
    return vokenize_rows(line_rows(lines), StubEncoder(), build_searcher(keys), config)


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_voken_files_equal_the_original(tmp_path: Path, level: str) -> None:
    ids, _, _ = golden_bank()
    assert ids == KEYS["universal_ids_order"]
    case = KEYS["token_level_top1" if level == "token" else "sent_level_top1"]
    base = str(tmp_path / "v")
    count = export_vokens([voken_table(level)], [True] * 3, base, ids, level)
    assert Path(base).read_text() == case["text_lines"]
    assert count == sum(map(len, SENTENCES))
    layout = golden("downstream_eval")["vokens_hdf5_layout"]
    with h5py.File(f"{base}.hdf5") as store:
        assert (str(store[layout["dataset"]].dtype), store["vokens"].chunks) == (layout["dtype"], layout["chunks"])
    vokens, names = import_vokens(base, count)
    assert " ".join(map(str, vokens)) == case["text_lines"].replace("\n", " ").strip()
    assert names == ids


def test_lines_the_original_drops_have_no_vokens(tmp_path: Path) -> None:
    ids, _, _ = golden_bank()
    export_vokens([voken_table("token")], [True, False, True], str(tmp_path / "v"), ids, "token")
    expected = KEYS["token_level_top1"]["text_lines"].split("\n")
    assert (tmp_path / "v").read_text() == f"{expected[0]}\n{expected[2]}\n"


def test_bad_voken_files_are_named(tmp_path: Path) -> None:
    ids, _, _ = golden_bank()
    base = str(tmp_path / "v")
    count = export_vokens([voken_table("token")], [True] * 3, base, ids, "token")
    with pytest.raises(InputError, match="vokens for 3 tokens"):
        import_vokens(base, 3)
    Path(f"{base}.ids").write_text("a/b\n")
    with pytest.raises(InputError, match="row 0: voken 3 is outside the 1 images"):
        import_vokens(base, count)


@pytest.mark.parametrize(("made", "asked"), [("token", "sentence"), ("sentence", "token")])
def test_vokens_of_a_level_that_was_not_made_are_not_exported_as_blank_lines(
    tmp_path: Path, made: str, asked: str
) -> None:
    ids, paths, _ = golden_bank()
    with pytest.raises(InputError, match=f"made at level '{made}', so there are none of level '{asked}'"):
        export_vokens([voken_table(made)], [True] * 3, str(tmp_path / "v"), ids, asked)
    assert not list(tmp_path.iterdir())
    if made == "token":
        with pytest.raises(InputError, match="level 'sentence'"):
            maria_lines(voken_table(made), paths)
    export_vokens([voken_table("both")], [True] * 3, str(tmp_path / "v"), ids, asked)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.5, 2.0]), "is float64; expected whole numbers"),
        (np.array([True, False]), "is bool; expected whole numbers"),
        (np.array([1, 2**40]), "row 1: 1099511627776 is no int32"),
        (np.array([2**31], np.uint32), "row 0: 2147483648 is no int32"),
        (np.array([-(2**31) - 1]), "row 0: -2147483649 is no int32"),
    ],
)
def test_numbers_that_are_no_int32_are_named_not_cast(tmp_path: Path, tokenizer, values, message: str) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as store:
        store["tokens"] = store["vokens"] = values
    (tmp_path / "x.line").write_text(f"0\n{len(values)}\n")
    (tmp_path / "x.ids").write_text("a/b\n")
    for read in (lambda p: import_tokens(p, tokenizer), lambda p: import_vokens(p, len(values))):
        with pytest.raises(InputError, match=message):
            read(str(tmp_path / "x"))


def test_whole_numbers_of_another_width_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as store:
        store["tokens"] = np.array([5, 7], np.int64)
    (tmp_path / "x.line").write_text("0\n2\n")
    found = read_original_tokens(str(tmp_path / "x")).tokens
    assert (found.tolist(), found.dtype) == ([5, 7], np.int32)


@pytest.mark.parametrize(("length", "voken", "code"), golden("naming")["sent_sign"])
def test_the_sign_code_equals_the_original(length: int, voken: int, code: list[int]) -> None:
    assert sentence_sign_code(voken, length) == code


def test_overlong_sentences_rejoin_as_in_the_original() -> None:
    case = KEYS["overlength_sent_level"]
    ids = KEYS["overlength"]["ids"]
    _, _, keys = golden_bank()
    config = VokenizeConfig(level="sentence", window=case["upper_bound"], window_policy="original")
    row = vokenize_rows(line_rows([ids]), StubEncoder(), build_searcher(keys), config).to_pylist()[0]
    assert line_vokens(row, "sentence", 1) == case["idx_incl_special"][1:-1]
    assert rejoin([[1, 2, 3], [4, 5, 6]]) == [1, 2, 5, 6]


@pytest.mark.parametrize(("corpus", "sets", "count", "name"), golden("naming")["voken_output_names"])
def test_file_names_equal_the_original(corpus: str, sets: list[str], count: int, name: str) -> None:
    assert voken_base_name(corpus, sets, count) == name


def test_maria_lines_equal_the_original_and_empty_dialogues_keep_their_line() -> None:
    _, paths, _ = golden_bank()
    lines = maria_lines(voken_table("sentence", 3), paths)
    assert "".join(f"{line}\n" for line in lines) == KEYS["maria_topk_lines_k3"]
    kept = maria_lines(voken_table("sentence", 3, [SENTENCES[0], None, SENTENCES[2]]), paths)
    assert kept == [lines[0], "", lines[2]]


def test_sentences_are_split_as_by_the_original() -> None:
    pytest.importorskip("spacy")
    sentencizer = load_sentencizer()
    for case in golden("downstream_eval")["sentencizer"]:
        assert sentence_lengths(case["tokens"], sentencizer) == case["sentence_token_counts"]


def test_sent_offsets_follow_the_lines() -> None:
    pytest.importorskip("spacy")
    words = "the cat sat . it is big ! hello world a dog . it ran .".split()
    assert sentence_offsets(np.array([0, 8, 10, 16]), words, load_sentencizer()) == [0, 4, 8, 10, 13, 16]
