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
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from harness import files
from harness.data import words
from harness.errors import UsageError

T = TypeVar("T")

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


def _entry(path: Path, content: dict[object, object], key: str) -> object:
    """The value under *key*, which Python 2 and 3 write differently."""
    for written in (key, key.encode()):
        if written in content:
            return content[written]
    held = ", ".join(sorted(files.shown(k) for k in content))[:200]
    raise UsageError(
        path, f"has no entry {key!r} (it has {held or 'none'})", "Give the data set's own file."
    )


def _rows(path: Path, value: object) -> npt.NDArray[np.uint8]:
    """Pixels (n, 3072), channels first."""
    array = value.build() if isinstance(value, _Array) else None
    if (
        array is None
        or array.ndim not in (2, 4)
        or array.shape[1:] not in ((_BYTES,), (3, _SIDE, _SIDE))
        or array.dtype != np.uint8
    ):
        described = type(value).__name__ if array is None else f"{array.dtype} {array.shape}"
        what = f"'data' is {described}, expected uint8 (pictures, {_BYTES})"
        raise UsageError(path, what, "Give the pictures as CIFAR stores them.")
    return array.reshape(-1, _BYTES).view(np.uint8)


def _labels(path: Path, value: object) -> list[int]:
    values = value.build().tolist() if isinstance(value, _Array) else value
    if not isinstance(values, list) or any(type(label) is not int for label in values):
        raise UsageError(
            path, "the labels are not a list of whole numbers", "Give one number for each picture."
        )
    return values


def _texts(path: Path, value: object) -> list[str]:
    if not isinstance(value, list) or any(not isinstance(text, (str, bytes)) for text in value):
        raise UsageError(
            path, "the class names are not a list of texts", "Give the data set's own file."
        )
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in value]


# -- a pickle interpreter that knows data only -----------------------------------------------------


class _Described:
    """A thing of NumPy as a pickle describes it."""

    def restore(self, state: object) -> None:
        """Take over the state that the pickle gives it."""
        raise NotImplementedError


class _DType(_Described):
    """A NumPy data type."""

    def __init__(self, code: object) -> None:
        if code not in _INTEGERS:
            raise pickle.UnpicklingError(
                f"an array of the type {files.shown(code)}, expected whole numbers"
            )
        self.dtype: np.dtype[np.integer] = np.dtype(str(code))

    def restore(self, state: object) -> None:
        order = _state(state)[1]
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"the byte order {files.shown(order)}")
        self.dtype = np.dtype(order + self.dtype.str[1:])


class _Array(_Described):
    """A NumPy array."""

    def __init__(self) -> None:
        self._array: npt.NDArray[np.integer] = np.empty(0, np.uint8)

    def restore(self, state: object) -> None:
        _, shape, dtype, by_column, data = _state(state)
        self.set(shape, dtype, "F" if by_column else "C", data)

    def set(self, shape: object, dtype: object, order: object, data: object) -> None:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not (
            isinstance(shape, tuple)
            and len(shape) <= 4
            and isinstance(dtype, _DType)
            and isinstance(raw, (bytes, bytearray))
            and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise pickle.UnpicklingError(
                "an array that is not described by a shape, a type and bytes"
            )
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of the shape {shape} in {len(raw):,} bytes")
        self._array = np.frombuffer(raw, dtype.dtype).reshape(
            shape, order="F" if order == "F" else "C"
        )

    def build(self) -> npt.NDArray[np.integer]:
        return self._array


def _state(state: object) -> tuple[object, ...]:
    if not isinstance(state, tuple):
        raise pickle.UnpicklingError(f"the state {files.shown(state)}")
    return state


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.set(shape, dtype, order, data)
    return array


def _scalar(dtype: object, data: object) -> int:
    array = _Array()
    array.set((1,), dtype, "C", data)
    return int(array.build()[0])


def _dtype(code: object, align: object = False, copy: object = True) -> _DType:
    return _DType(code)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {files.shown(encoding)}")
    return text.encode("latin1")


def _no_call(*_: object) -> NoReturn:
    raise pickle.UnpicklingError("a call of numpy.ndarray")


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
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
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[object, object] = {}

    def run(self, data: bytes) -> object:
        """Return what the pickle *data* leaves."""
        for instruction, argument, _ in pickletools.genops(data):
            self._step(instruction.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: object) -> None:
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

    def _combine(self, name: str, argument: object) -> None:
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
            stack.append(_Named(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_Named(stack.pop(-2), stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            if not isinstance(arguments, tuple):
                raise pickle.UnpicklingError("a call without arguments")
            stack.append(self._popped(_Named).call(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._top(_Described).restore(state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise pickle.UnpicklingError(f"the instruction {name}, which makes no data")

    def _marked(self) -> list[object]:
        """Take what was put on the stack since the last mark."""
        at = self._marks.pop()
        items = self._stack[at:]
        del self._stack[at:]
        return items

    def _top(self, kind: type[T]) -> T:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise pickle.UnpicklingError(f"{type(top).__name__} where something else belongs")
        return top

    def _popped(self, kind: type[T]) -> T:
        top = self._top(kind)
        self._stack.pop()
        return top

    def _set(self, items: Sequence[object]) -> None:
        """Set entries of a dictionary: key, value, key, value."""
        # Hashing a deeply nested tuple would end the process.
        if any(not isinstance(key, (str, bytes)) for key in items[::2]):
            raise pickle.UnpicklingError("a dictionary with other keys than texts")
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))


def _load(path: Path) -> dict[object, object]:
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
