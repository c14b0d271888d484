"""The one door for pickles: vocabularies, answer lists and saved results of the originals become JSON or plain .npy.

A pickle is a program. Here it may build numbers, text and containers and nothing else: no name in it is ever imported.
The few classes that the originals' files hold, numpy's arrays among them, are stand-ins made anew for every file, which
only record what they are given; the arrays are made afterwards from plain bytes of a checked dtype.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from xmatch.data import files, words
from xmatch.errors import InputError

NPY_MAGIC = b"\x93NUMPY"
NUMBER_DTYPE = re.compile(r"[<>|=]?[biuf][1248]")
"""Arrays of these become .npy."""
MAX_VALUES = 10_000_000
"""Values in one file, counted each time they are referred to; an array of numbers is one."""
FAILURES = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What broken or hostile bytes raise inside the unpickler."""


class Record:
    """What a file says of one object; `kind` is vocabulary, dtype, array or scalar."""

    kind = ""
    given: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PlainUnpickler(pickle._Unpickler):
    """An unpickler that imports nothing: names stand for records of this file, and every other name is refused.

    It is the one written in Python: broken bytes can make the one in C free memory that is in use.
    """

    def __init__(self, source: io.BytesIO, where: str, encoding: str) -> None:
        super().__init__(source, fix_imports=False, encoding=encoding)
        self._where = where
        self._names = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name.

        Raises:
            InputError: it has none; names the refused class.
        """
        known = self._names.get((module, name)) or (self._names[("", name)] if name == "Vocabulary" else None)
        if known is None:
            raise InputError(
                f"{self._where!r} asks for {module}.{name}, which is refused: a pickle may hold numbers, text, "
                "containers, numpy arrays and a Vocabulary. If you trust the file, convert it where it was made."
            )
        return known


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a name in a pickle stands for; made anew for every file, so that none can change them for the next."""

    class Vocabulary(Record):
        kind = "vocabulary"

    class Dtype(Record):
        kind = "dtype"

    class Array(Record):
        kind = "array"

    class Scalar(Record):
        kind = "scalar"

    def reconstruct(*given: Any) -> Array:
        return Array()  # numpy sets shape, dtype and content afterwards

    def from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> Array:
        found = Array()
        found.state = (1, shape, dtype, order == "F", buffer)
        return found

    def old_instance(cls: Any, base: Any, state: Any) -> Any:
        if cls is not Vocabulary:
            raise ValueError("an object of Python 2 that is no Vocabulary")
        return Vocabulary()

    def text_to_bytes(text: Any, encoding: Any = "latin1") -> bytes:
        return str(text).encode("latin1")

    def to_bytearray(*given: Any) -> bytes:
        return given[0].encode("latin1") if given and isinstance(given[0], str) else bytes(b"".join(given))

    def to_dict(pairs: Any = ()) -> dict[Any, Any]:
        return dict(pairs) if isinstance(pairs, list | dict) else {}

    def to_set(items: Any = ()) -> set[Any]:
        return set(items)

    found: dict[tuple[str, str], Any] = {
        ("", "Vocabulary"): Vocabulary,
        ("numpy", "dtype"): Dtype,
        ("numpy", "ndarray"): Array,
        ("_codecs", "encode"): text_to_bytes,
        ("collections", "OrderedDict"): to_dict,
        ("collections", "Counter"): to_dict,
        ("collections", "defaultdict"): to_dict,
    }
    for package in ("numpy.core", "numpy._core"):
        found[(f"{package}.multiarray", "_reconstruct")] = reconstruct
        found[(f"{package}.multiarray", "scalar")] = Scalar
        found[(f"{package}.numeric", "_frombuffer")] = from_buffer
    for builtins in ("builtins", "__builtin__"):
        found |= {
            (builtins, "set"): to_set,
            (builtins, "frozenset"): to_set,
            (builtins, "bytearray"): to_bytearray,
            (builtins, "object"): Record,
            (builtins, "bytes"): to_bytearray,
            (builtins, "int"): to_dict,  # this and the next: factories of a defaultdict, which are never called
            (builtins, "long"): to_dict,
            (builtins, "list"): to_dict,
        }
    for module in ("copyreg", "copy_reg"):
        found[(module, "_reconstructor")] = old_instance
    return found


def load_plain(data: bytes, where: str) -> Any:
    """The content of a pickle as numbers, text, lists, tuples, dicts and numpy arrays.

    A Vocabulary becomes the dict of its attributes, an array of objects a list.

    Args:
        data: the pickle, of any protocol, also of Python 2.
        where: path, for messages.

    Raises:
        InputError: it asks for any other class, or is broken.
    """
    failure: Exception | None = None
    for encoding in ("utf-8", "latin1"):  # text of Python 2, else its arrays, whose bytes are no UTF-8
        try:
            return _Resolver().resolve(PlainUnpickler(io.BytesIO(data), where, encoding).load())
        except FAILURES as error:
            failure = failure or error
    raise InputError(f"{where!r} is no whole pickle ({failure!r:.120}). Copy it again.") from failure


class _Resolver:
    """Makes plain values of records, all the way down; copies, so that its budget bounds what a file can grow to."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def resolve(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.resolve(inner) for inner in value]
        if isinstance(value, tuple):
            return tuple(self.resolve(inner) for inner in value)
        if isinstance(value, set | frozenset):
            return sorted(self.resolve(inner) for inner in value)
        if isinstance(value, Record):
            makers = {"vocabulary": self._vocabulary, "dtype": _dtype, "array": self._array, "scalar": self._scalar}
            return makers[value.kind](value)
        if callable(value):
            raise ValueError("a bare class or function")
        return value

    def _vocabulary(self, record: Record) -> dict[str, Any]:
        if not isinstance(record.state, dict):
            raise ValueError("a Vocabulary without attributes")
        return {str(key): self.resolve(inner) for key, inner in record.state.items()}

    def _array(self, record: Record) -> Any:
        """A number array, or the list of an object array; the value itself where it has no axes."""
        _, shape, dtype, is_fortran, content = record.state
        shape = tuple(int(length) for length in shape)
        code = self.resolve(dtype)
        if code.lstrip("<>|=").startswith("O"):
            items = self.resolve(content)
            if not isinstance(items, list) or len(items) != math.prod(shape):
                raise ValueError("an array of objects with other content than its shape says")
            return items[0] if shape == () else items
        return _numbers(code, content, shape, bool(is_fortran))

    def _scalar(self, record: Record) -> Any:
        dtype, content = record.given
        return _numbers(self.resolve(dtype), content, (), False).item()


def _dtype(record: Record) -> str:
    """The dtype's code with its byte order, such as `<f4`."""
    code = record.given[0] if record.given else ""
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "|"
    if not isinstance(code, str) or order not in ("<", ">", "|", "="):
        raise ValueError(f"dtype {code!r:.40}")
    return f"{order}{code.lstrip('<>|=')}"


def _numbers(code: str, content: Any, shape: tuple[int, ...], is_fortran: bool) -> npt.NDArray[Any]:
    """An array of this shape, of dtype `code`, from plain bytes."""
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    if not NUMBER_DTYPE.fullmatch(code) or not isinstance(content, bytes | bytearray):
        raise ValueError(f"an array of dtype {code!r:.40}; expected numbers")
    return np.frombuffer(bytes(content), dtype=np.dtype(code)).reshape(shape, order="F" if is_fortran else "C")


def convert_legacy(path: str, output: str) -> str:
    """Convert a pickle, or an .npy that holds one, to what everything else reads.

    A vocabulary becomes SCAN's JSON, an answer list or map JSON, saved results {"npts", "sims"} the array `sims` as
    plain .npy.

    Args:
        path: the file; never trusted.
        output: ends in .json or .npy, as the content needs.

    Returns:
        What it was: `vocabulary`, `answers` or `similarity`.

    Raises:
        InputError: the file asks for another class, is broken, holds something else, or `output` has another ending.
    """
    data = files.read_bytes(path)
    value = _load_npy(data, path) if data.startswith(NPY_MAGIC) else load_plain(data, path)
    kind, suffix, write = _plan(value, path)
    if not output.endswith(suffix):
        raise InputError(f"{path!r} holds {kind}, which becomes {suffix}, but the output is {output!r}; rename it.")
    write(output)
    return kind


def _load_npy(data: bytes, where: str) -> Any:
    """The objects in an .npy file, whose content is a pickle after the header."""
    source = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(source)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read(source)
    except (ValueError, EOFError) as error:
        raise InputError(f"{where!r} is no whole .npy file ({error}). Copy it again.") from error
    if not dtype.hasobject:
        raise InputError(f"{where!r} is a plain .npy of {dtype} already; use it as it is.")
    return load_plain(source.read(), where)


def _plan(value: Any, path: str) -> tuple[str, str, Callable[[str], None]]:
    """What a value is, the ending of its file, and how it is written."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # np.save([{...}])
    if isinstance(value, dict) and "word2idx" in value:
        vocabulary = words.vocabulary_of(value, path)
        return "vocabulary", ".json", lambda output: words.write_vocabulary(output, vocabulary)
    if isinstance(value, dict) and "sims" in value:
        sims = _similarity(value, path)
        return "similarity", ".npy", lambda output: _write_npy(output, sims)
    if isinstance(value, list | dict) and value and _is_json(value):
        return "answers", ".json", lambda output: files.write_json(output, value)
    raise InputError(
        f"{path!r} holds {type(value).__name__}; expected a vocabulary with word2idx, results with npts and sims, or a "
        "list or map of answers."
    )


def _similarity(value: dict[Any, Any], path: str) -> npt.NDArray[Any]:
    """The similarities (N, M) of a saved result."""
    sims = value["sims"]
    if not isinstance(sims, np.ndarray) or sims.ndim != 2 or sims.dtype.kind != "f":
        raise InputError(f"{path!r}: expected sims to be a matrix of floating-point numbers, got {sims!r:.60}.")
    npts = value.get("npts", len(sims))
    if npts != len(sims):
        raise InputError(f"{path!r}: npts is {npts!r:.20}, but sims has {len(sims)} rows; the file is not whole.")
    return sims


def _is_json(value: Any) -> bool:
    """Whether a value is text, numbers, lists, and maps from text or whole numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and _all_json(value.values())
    return _all_json(value) if isinstance(value, list) else value is None or isinstance(value, str | int | float)


def _all_json(values: Iterable[Any]) -> bool:
    return all(_is_json(value) for value in values)


def _write_npy(output: str, array: npt.NDArray[Any]) -> None:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    files.write_bytes(output, sink.getvalue())
