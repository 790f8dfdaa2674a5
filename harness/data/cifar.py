"""CIFAR-10 and CIFAR-100 in their own formats: Python pickles, or the binary version.

A pickle is a program.  Here an interpreter runs it that knows numbers, texts, bytes, tuples, lists,
dictionaries and NumPy arrays, and nothing else; arrays are described, and made only once their size
is known to be that of their bytes.  Anybody's part of the data set is read: torchvision takes
nothing but the original files.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import files
from harness.data import words
from harness.errors import UsageError

#: CLIP_benchmark's name -> (folder, test pictures, class names, key of the labels, key of the class
#: names)
_PYTHON = {
    "cifar10": ("cifar-10-batches-py", "test_batch", "batches.meta", "labels", "label_names"),
    "cifar100": ("cifar-100-python", "test", "meta", "fine_labels", "fine_label_names"),
}
#: CLIP_benchmark's name -> (folder, test pictures, class names, label bytes before each picture's)
_BINARY = {
    "cifar10": ("cifar-10-batches-bin", "test_batch.bin", "batches.meta.txt", 1),
    "cifar100": ("cifar-100-binary", "test.bin", "fine_label_names.txt", 2),
}
_SIDE = 32
_BYTES = 3 * _SIDE * _SIDE
_MAX_BYTES = 1 << 30
_INTEGERS = {f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)}


@dataclass(frozen=True)
class Cifar:
    """The test pictures with their labels and class names."""

    path: Path
    pixels: npt.NDArray[np.uint8]  #: (n, 32, 32, 3)
    labels: list[int]
    classes: list[str]


def folders(name: str) -> tuple[str, ...]:
    """Return the folders that the data set *name* is unpacked as, either of which will do."""
    return _PYTHON[name][0], _BINARY[name][0]


def read(place: Path, name: str) -> Cifar:
    """Return the test split of *name* (cifar10 or cifar100) in the folder *place*.

    Raises:
        UsageError: a file is missing, damaged, or holds anything else.
    """
    if files.exists(place / _PYTHON[name][0]):
        folder, test, meta, labels_key, classes_key = _PYTHON[name]
        path, about = place / folder / test, place / folder / meta
        content = _load(path)
        rows, labels = (
            _rows(path, _entry(path, content, "data")),
            _labels(path, _entry(path, content, labels_key)),
        )
        names = _texts(about, _entry(about, _load(about), classes_key))
    else:
        folder, test, meta, before = _BINARY[name]
        path, about = place / folder / test, place / folder / meta
        rows, labels = _records(path, before)
        names = [line for line in files.read_lines(about, what="list of class names") if line]
    if len(rows) != len(labels):
        raise UsageError(
            path,
            f"holds {len(rows)} pictures and {len(labels)} labels",
            "Give each picture its label.",
        )
    for number, text in enumerate(names):
        problem = words.problem(text)
        if problem is not None:
            raise UsageError(about, f"class name {number} {problem}", "Write the class name.")
    pixels = rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Cifar(path, pixels, labels, names)


def _records(path: Path, before: int) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Pixels (n, 3072) and labels of the binary version: label bytes (the last one counts), then
    the picture.
    """
    data = files.read_bytes(path, limit=_MAX_BYTES, what="CIFAR file")
    width = before + _BYTES
    if len(data) % width:
        what = f"has {len(data):,} bytes, expected a multiple of {width:,}"
        raise UsageError(path, what, "Unpack the data set again.")
    table = np.frombuffer(data, np.uint8).reshape(-1, width)
    return table[:, before:], table[:, before - 1].tolist()


# -- what the pickles hold -------------------------------------------------------------------------


def _entry(path: Path, content: dict[Any, Any], key: str) -> Any:
    """The value under *key*, which Python 2 and 3 write differently."""
    for written in (key, key.encode()):
        if written in content:
            return content[written]
    held = ", ".join(sorted(files.shown(k) for k in content))[:200]
    raise UsageError(
        path, f"has no entry {key!r} (it has {held or 'none'})", "Give the data set's own file."
    )


def _rows(path: Path, value: Any) -> npt.NDArray[np.uint8]:
    """Pixels (n, 3072), channels first."""
    array = value.made() if isinstance(value, _Array) else value
    shape = getattr(array, "shape", None)
    rows = (
        shape is not None
        and len(shape) in (2, 4)
        and tuple(shape[1:]) in ((_BYTES,), (3, _SIDE, _SIDE))
    )
    if not rows or array.dtype != np.uint8:
        described = f"{array.dtype} {shape}" if shape is not None else type(value).__name__
        what = f"'data' is {described}, expected uint8 (pictures, {_BYTES})"
        raise UsageError(path, what, "Give the pictures as CIFAR stores them.")
    pixel_rows: npt.NDArray[np.uint8] = array.reshape(-1, _BYTES)
    return pixel_rows


def _labels(path: Path, value: Any) -> list[int]:
    values = value.made().tolist() if isinstance(value, _Array) else value
    if not isinstance(values, list) or any(type(label) is not int for label in values):
        raise UsageError(
            path, "the labels are not a list of whole numbers", "Give one number for each picture."
        )
    return values


def _texts(path: Path, value: Any) -> list[str]:
    if not isinstance(value, list) or any(not isinstance(text, (str, bytes)) for text in value):
        raise UsageError(
            path, "the class names are not a list of texts", "Give the data set's own file."
        )
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in value]


# -- a pickle interpreter that knows data only -----------------------------------------------------


class _DType:
    """A NumPy data type as a pickle describes it."""

    def __init__(self, code: Any) -> None:
        if code not in _INTEGERS:
            raise pickle.UnpicklingError(
                f"an array of the type {files.shown(code)}, expected whole numbers"
            )
        self.dtype: np.dtype[Any] = np.dtype(code)

    def restore(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"the byte order {files.shown(order)}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A NumPy array as a pickle describes it."""

    def __init__(self) -> None:
        self._array: npt.NDArray[Any] = np.empty(0, np.uint8)

    def restore(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.set(shape, dtype, "F" if by_column else "C", data)

    def set(self, shape: Any, dtype: Any, order: str, data: Any) -> None:
        raw = data.encode("latin1") if isinstance(data, str) else data
        known = isinstance(shape, tuple) and len(shape) <= 4 and isinstance(dtype, _DType)
        if (
            not known
            or not isinstance(raw, (bytes, bytearray))
            or any(type(n) is not int or n < 0 for n in shape)
        ):
            raise pickle.UnpicklingError(
                "an array that is not described by a shape, a type and bytes"
            )
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of the shape {shape} in {len(raw):,} bytes")
        self._array = np.frombuffer(raw, dtype.dtype).reshape(
            shape, order="F" if order == "F" else "C"
        )

    def made(self) -> npt.NDArray[Any]:
        return self._array


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.set(shape, dtype, order, data)
    return array


def _scalar(dtype: Any, data: Any) -> int:
    array = _Array()
    array.set((1,), dtype, "C", data)
    return int(array.made()[0])


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _DType:
    return _DType(code)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {files.shown(encoding)}")
    return text.encode("latin1")


def _no_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("a call of numpy.ndarray")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _no_call,  # named as an argument, never called
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _from_buffer

_CONSTANTS = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    }
)
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Named:
    """A function that a pickle names."""

    def __init__(self, module: object, name: object) -> None:
        known = isinstance(module, str) and isinstance(name, str) and (module, name) in _NAMES
        if not known:
            raise pickle.UnpicklingError(
                f"a use of {files.shown(f'{module}.{name}')}, which is not run"
            )
        self.call = _NAMES[str(module), str(name)]


class _Interpreter:
    """Runs the instructions of a pickle that make data; any other ends it.

    There are none for classes, instances, sets, extensions and persistent ids, and calls reach
    _NAMES alone.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return what the pickle *data* leaves."""
        for instruction, argument, _ in pickletools.genops(data):
            self._step(instruction.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        else:
            self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        """The instructions that make something of what is on the stack."""
        stack = self._stack
        if name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "DICT":
            items = self._marked()
            stack.append({})
            self._set(items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            self._set(items)
        elif name == "GLOBAL":
            stack.append(_Named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_Named(stack.pop(-2), stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            if not isinstance(arguments, tuple):
                raise pickle.UnpicklingError("a call without arguments")
            stack.append(self._popped(_Named).call(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._top((_Array, _DType)).restore(state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise pickle.UnpicklingError(f"the instruction {name}, which makes no data")

    def _marked(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        at = self._marks.pop()
        items = self._stack[at:]
        del self._stack[at:]
        return items

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise pickle.UnpicklingError(
                f"{type(self._stack[-1]).__name__} where something else belongs"
            )
        return self._stack[-1]

    def _popped(self, kind: type) -> Any:
        self._top(kind)
        return self._stack.pop()

    def _set(self, items: Sequence[Any]) -> None:
        """Set entries of a dictionary: key, value, key, value."""
        # Hashing a deeply nested tuple would end the process.
        if any(not isinstance(key, (str, bytes)) for key in items[::2]):
            raise pickle.UnpicklingError("a dictionary with other keys than texts")
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))


def _load(path: Path) -> dict[Any, Any]:
    """The dictionary that is pickled in *path*."""
    data = files.read_bytes(
        path, limit=_MAX_BYTES, what="CIFAR file", fix="Unpack the data set there."
    )
    try:
        content = _Interpreter().run(data)
    except Exception as error:
        what = f"is not a pickle of CIFAR that can be read ({type(error).__name__}: {error})"
        raise UsageError(
            path, what, "Unpack the data set again, or give the binary version."
        ) from error
    if not isinstance(content, dict):
        what = f"holds {type(content).__name__}, expected a dictionary"
        raise UsageError(path, what, "Give the data set's own file.")
    return content
