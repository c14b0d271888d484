from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data.legacy_pickle import convert_legacy, load_plain
from xmatch.data.words import SPECIAL_WORDS, read_vocabulary
from xmatch.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def dump(path: Path, value: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(value, protocol))
    return str(path)


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object of a class `vocab.Vocabulary`, whose module is gone when it is read."""

    class Vocabulary:
        pass

    module = types.ModuleType("vocab")
    module.Vocabulary = Vocabulary  # type: ignore[attr-defined]
    Vocabulary.__module__, Vocabulary.__qualname__ = "vocab", "Vocabulary"
    monkeypatch.setitem(sys.modules, "vocab", module)
    found = Vocabulary()
    words = [*SPECIAL_WORDS, "a", "café"]
    found.__dict__ |= {"word2idx": {w: i for i, w in enumerate(words)}, "idx2word": dict(enumerate(words)), "idx": 6}
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_vocabulary_becomes_json(
    tmp_path: Path, vocabulary: Any, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dump(tmp_path / "v.pkl", vocabulary, protocol)
    monkeypatch.delitem(sys.modules, "vocab")
    assert convert_legacy(path, str(tmp_path / "v.json")) == "vocabulary"
    assert read_vocabulary(str(tmp_path / "v.json")).words == (*SPECIAL_WORDS, "a", "café")
    assert "vocab" not in sys.modules


def test_a_vocabulary_of_python_2_becomes_json(tmp_path: Path) -> None:
    words = "(dp3\n" + "".join(f"S'{w}'\nI{i}\ns" for i, w in enumerate(SPECIAL_WORDS))
    names = "(dp4\n" + "".join(f"I{i}\nS'{w}'\ns" for i, w in enumerate(SPECIAL_WORDS))
    text = f"(ivocab\nVocabulary\np1\n(dp2\nS'word2idx'\n{words}sS'idx2word'\n{names}sS'idx'\nI4\nsb."
    (tmp_path / "v.pkl").write_bytes(text.encode())
    convert_legacy(str(tmp_path / "v.pkl"), str(tmp_path / "v.json"))
    assert read_vocabulary(str(tmp_path / "v.json")).words == SPECIAL_WORDS


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_saved_results_become_plain_npy(tmp_path: Path, protocol: int, kind: str, order: Any) -> None:
    sims = np.asarray(np.random.default_rng(0).normal(size=(3, 15)), dtype=kind, order=order)
    path = dump(tmp_path / "r.pkl", {"npts": np.int64(3), "sims": sims}, protocol)
    assert convert_legacy(path, str(tmp_path / "r.npy")) == "similarity"
    found = np.load(tmp_path / "r.npy", allow_pickle=False)
    assert found.dtype == sims.dtype and np.array_equal(found, sims)


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value]])
def test_results_inside_npy_objects_become_plain_npy(tmp_path: Path, wrap: Any) -> None:
    sims = np.arange(20, dtype=np.float32).reshape(2, 10)
    np.save(tmp_path / "r.npy", wrap({"npts": 2, "sims": sims}))
    convert_legacy(str(tmp_path / "r.npy"), str(tmp_path / "plain.npy"))
    assert np.array_equal(np.load(tmp_path / "plain.npy", allow_pickle=False), sims)
    with pytest.raises(InputError, match=r"plain\.npy.*already"):
        convert_legacy(str(tmp_path / "plain.npy"), str(tmp_path / "again.npy"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_become_json(tmp_path: Path, protocol: int) -> None:
    answers = [["net", "pitcher"], collections.OrderedDict({"net": 0, "pitcher": 1})]
    for value in answers:
        path = dump(tmp_path / "a.pkl", value, protocol)
        assert convert_legacy(path, str(tmp_path / "a.json")) == "answers"
        assert json.loads((tmp_path / "a.json").read_text()) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back_as_they_are(protocol: int) -> None:
    counts = collections.defaultdict(int, {"a": 2})
    value = {
        "t": (1, 2.5, None, True),
        "b": b"\x00\xff",
        "e": b"",
        3: [counts, {"y", "x"}, bytearray(b"z"), frozenset({1})],
    }
    expected = {"t": (1, 2.5, None, True), "b": b"\x00\xff", "e": b"", 3: [{"a": 2}, ["x", "y"], b"z", [1]]}
    assert load_plain(pickle.dumps(value, protocol), "x") == expected
    assert np.array_equal(load_plain(pickle.dumps(np.zeros((2, 0, 3)), protocol), "x"), np.zeros((2, 0, 3)))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.given = (function, given)

    def __reduce__(self) -> Any:
        return self.given


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(os.system, "touch {0}"), "system"),
        (Call(eval, "open('{0}', 'w')"), "eval"),
        (Call(exec, "open('{0}', 'w')"), "exec"),
        (Call(getattr, {}, "get"), "getattr"),
        (Call(open, "{0}", "w"), "open"),
        (Call(np.load, "{0}"), "load"),
        (Call(print, "x"), "print"),
        (np.ma.masked_array([1.0]), "masked|_mareconstruct"),
        (np.random.default_rng(0), "__generator_ctor|bit_generator"),
    ],
)
def test_every_other_class_is_refused_before_it_is_imported(
    tmp_path: Path, call: Any, name: str, protocol: int
) -> None:
    mark = tmp_path / "touched"
    if isinstance(call, Call):
        function, given = call.given
        call = Call(function, *(g.format(mark) if isinstance(g, str) else g for g in given))
    for value in (call, {"npts": 1, "sims": call}, [call]):
        path = dump(tmp_path / "evil.pkl", value, protocol)
        with pytest.raises(InputError, match=rf"evil\.pkl.*({name}).*refused"):
            convert_legacy(path, str(tmp_path / "out.json"))
    objects = np.empty(1, dtype=object)
    objects[0] = call
    np.save(tmp_path / "evil.npy", objects)
    with pytest.raises(InputError, match="refused"):
        convert_legacy(str(tmp_path / "evil.npy"), str(tmp_path / "out.npy"))
    assert not mark.exists() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"a": [1, 2, 3]})[:-4],
        b"cnumpy\ndtype\n.",  # a bare class
        b"cvocab\nVocabulary\n.",
        b"cvocab\nVocabulary\n)\x81.",  # a vocabulary without attributes
        b"cnumpy.core.multiarray\n_reconstruct\n(tR.",  # an array without content
        b"cnumpy.core.multiarray\n_reconstruct\n}S'x'\nI1\nsb.",  # attributes of a function
        b"cbuiltins\nlist\nN}S'x'\nI1\ns\x86b.",
        b"ccopyreg\n_reconstructor\n(cnumpy\nndarray\ncbuiltins\nobject\nNtR.",
        b"]q\x00h\x00a.",  # a list in itself
        b"r\xff\xff\xff\x7f.",
        b"\x80\x02\x8a\xff",
        b"\x80\x05\x96\xff\x00\x00\x00\x00\x00\x00\x00a.",  # a bytearray that ends early
        b"J\x01.",
        b"P1\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
    ],
)
def test_broken_and_hostile_bytes_are_one_error(data: bytes) -> None:
    with pytest.raises(InputError, match="x.pkl"):
        load_plain(data, "x.pkl")


def test_a_small_file_cannot_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmatch.data.legacy_pickle.MAX_VALUES", 10_000)
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(InputError, match="more than 10,000 values"):
        load_plain(pickle.dumps(value), "bomb.pkl")


def test_arrays_of_other_shape_or_dtype_than_their_bytes_are_refused() -> None:
    whole = pickle.dumps(np.arange(6, dtype=np.int32).reshape(2, 3), 2)
    assert whole.count(b"K\x02K\x03\x86") == 1
    for data in (whole.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86"), whole.replace(b"i4", b"O8")):
        with pytest.raises(InputError, match="no whole pickle"):
            load_plain(data, "x")
    with pytest.raises(InputError, match="expected numbers"):
        load_plain(pickle.dumps(np.zeros(2, dtype="M8[s]")), "x")


@pytest.mark.parametrize(
    ("value", "output", "message"),
    [
        (["net"], "o.npy", "becomes .json"),
        ({"npts": 1, "sims": np.zeros((1, 5))}, "o.json", "becomes .npy"),
        ({"npts": 2, "sims": np.zeros((1, 5))}, "o.npy", "npts is 2"),
        ({"npts": 2, "sims": [1.0]}, "o.npy", "matrix"),
        ({"npts": 2, "sims": np.zeros((1, 5), np.int64)}, "o.npy", "matrix"),
        ({"word2idx": {"a": 0}, "idx2word": {0: "a"}, "idx": 1}, "o.json", "first words"),
        (3, "o.json", "holds int"),
        ([], "o.json", "holds list"),
        ({1: b"x"}, "o.json", "holds dict"),
    ],
)
def test_what_is_none_of_them_is_named(tmp_path: Path, value: Any, output: str, message: str) -> None:
    path = dump(tmp_path / "x.pkl", value)
    with pytest.raises(InputError, match=message):
        convert_legacy(path, str(tmp_path / output))
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


def test_missing_files_and_broken_npy_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        convert_legacy(str(tmp_path / "no.pkl"), "o.json")
    np.save(tmp_path / "r.npy", np.asarray({"npts": 2}, dtype=object))
    data = (tmp_path / "r.npy").read_bytes()
    for broken in (data[:9], data[:40], data[:-3], b"\x93NUMPY\x09\x00" + data[8:]):
        (tmp_path / "r.npy").write_bytes(broken)
        with pytest.raises(InputError, match=r"r\.npy.*no whole"):
            convert_legacy(str(tmp_path / "r.npy"), "o.npy")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_any_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    value = {"npts": np.int64(2), "sims": np.ones((2, 3), np.float32), "t": [("a", 1), {"b": None}]}
    content = bytearray(pickle.dumps(value, data.draw(st.sampled_from(PROTOCOLS))))
    places = st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), min_size=1, max_size=4)
    for place, byte in data.draw(places).items():
        content[place] = byte
    with contextlib.suppress(InputError):
        load_plain(bytes(content), "x.pkl")
