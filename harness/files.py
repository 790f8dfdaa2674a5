"""The one gateway through which everything that a user names is read.

A path from a command line, a configuration or an index is untrusted input: it may be a pipe that
never ends, a device, a folder, a link to nowhere, terabytes of zeros, or text in no encoding.
Whatever it is, the functions here return usable content or raise one
:class:`~harness.errors.UsageError` that names the file, the place in it, what is wrong and the fix.
No other module under ``harness`` opens such a path.

Files are opened without waiting (a named pipe without a writer would block for ever), their type is
read from the open descriptor, and sizes are bounded before and while they are read: files below
``/proc`` say that they are empty.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import re
import reprlib
import secrets
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError

T = TypeVar("T")
#: ``file:line (dotted.keys)`` of an entry, by its keys.
Place = Callable[..., str]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: Upper bounds in bytes, each well above the largest file of its kind that is published.
MAX_TEXT = 4 * MIB  # class names, templates, identifiers
MAX_YAML = 256 * KIB  # YAML that people write: budgets, expected differences
MAX_CONFIG = 4 * MIB  # config.json, preprocessor_config.json, tokenizer_config.json
MAX_INDEX = 32 * MIB  # model.safetensors.index.json
MAX_TOKENIZER = 256 * MIB  # tokenizer.json, vocab.json, merges.txt; Gemma's has 34 MB
MAX_ANNOTATIONS = 512 * MIB  # captions_train2017.json has 92 MB
MAX_MEASURED = 32 * MIB  # what the gate's own programs have measured and written
MAX_PICTURE = 256 * MIB  # one picture file, compressed
#: Bounds on what a JSON or YAML document may hold.
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 10_000_000
MAX_YAML_DEPTH = 24
MAX_YAML_VALUES = 20_000
MAX_DIGITS = 40  # of a whole number; tokenizer_config.json has 1000000000000000019884624838656
MAX_NAMES = 1_000_000  # files of one folder

_CHUNK = MIB
_CORRECT_PATH = "Correct the path."
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The escape of half a pair; a whole pair has two of them
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# -- paths -----------------------------------------------------------------------------------------


def expand(path: str | Path, *, option: str = "") -> Path:
    """Return *path* with a leading ``~`` or ``~user`` replaced by the home folder.

    Args:
        path: what the user wrote.
        option: the command-line option that it was given to, for the message.

    Raises:
        UsageError: it is empty, names an unknown user, holds a NUL or a character that no file name
            can hold, or is longer than the operating system allows.
    """
    text = os.fspath(path)
    where = f"{option} {_cut(text)}" if option else _cut(text)
    if not text:
        raise UsageError(option or "a path", "is empty", "Give a path.")
    try:
        expanded = os.path.expanduser(text)  # noqa: PTH111  (Path's raises RuntimeError)
        if expanded.startswith("~"):
            user = text.split("/", 1)[0]
            fix = f"Write the folder's path; for a file of that name, ./{_cut(text)}."
            raise UsageError(
                where,
                f"there is no user {_cut(user[1:])!r}, whose home folder {_cut(user)} is",
                fix,
            )
        os.lstat(expanded)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(
                where, f"a path of {len(text):,} characters is too long", _CORRECT_PATH
            ) from None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise UsageError(where, f"cannot be a path ({error})", _CORRECT_PATH) from None
    return Path(expanded)


def regular_file(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> Path:
    """Return *path*, expanded, once it is known to be a regular file (or a link to one).

    Args:
        path: what the user named.
        inside: the folder that the file must be in after all links are followed; None for anywhere.
        what: what the file is, for the message, such as "picture".
        fix: the sentence that ends the message.

    Raises:
        UsageError: it is absent, a folder, a named pipe, a device, a dangling link, or outside
            *inside*.
    """
    expanded = expand(path)
    mode = _status(expanded, what, fix).st_mode
    if not stat.S_ISREG(mode):
        _refuse_kind(expanded, mode, what, fix)
    _resolved(expanded, inside, what, fix)
    return expanded


def folder(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "folder",
    fix: str | None = None,
) -> Path:
    """Return *path*, expanded, once it is known to be a folder (or a link to one) that can be
    listed.

    Raises:
        UsageError: it is absent, not a folder, not readable, or outside *inside*.
    """
    expanded = expand(path)
    if not stat.S_ISDIR(_status(expanded, what, fix).st_mode):
        raise UsageError(_cut(expanded), f"is a file, expected a {what}", fix or "Give a folder.")
    _resolved(expanded, inside, what, fix)
    if not os.access(expanded, os.R_OK | os.X_OK):
        raise UsageError(
            _cut(expanded), f"the {what} cannot be read (permission denied)", fix or "Allow it."
        )
    return expanded


def exists(path: str | Path) -> bool:
    """True if *path* is a file or a folder, links followed; False for anything else, whatever is
    wrong with it.
    """
    return _mode(path) is not None


def is_file(path: str | Path) -> bool:
    """True if *path* is a regular file, links followed; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | Path) -> bool:
    """True if *path* is a folder, links followed; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def names(path: str | Path, *, what: str = "folder", fix: str | None = None) -> list[str]:
    """Return the names of what is in the folder *path*, sorted.

    Raises:
        UsageError: it is not a folder that can be listed, or holds more than ``MAX_NAMES`` names.
    """
    expanded = folder(path, what=what, fix=fix)
    entry_names: list[str] = []
    try:
        with os.scandir(expanded) as entries:
            for entry in entries:
                entry_names.append(entry.name)
                if len(entry_names) > MAX_NAMES:
                    problem = f"holds more than {MAX_NAMES:,} files"
                    raise UsageError(
                        _cut(expanded),
                        problem,
                        fix or "Give the folder of the files that are meant.",
                    )
    except OSError as error:
        _refuse_unreadable(expanded, error, fix)
    return sorted(entry_names)


# -- bytes and text --------------------------------------------------------------------------------


@contextmanager
def opened(
    path: str | Path,
    *,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> Iterator[BinaryIO]:
    """Open the regular file *path* for reading bytes, for the length of the block: what is too
    large to be kept.

    Raises:
        UsageError: as :func:`regular_file`, or it cannot be read.
    """
    expanded = expand(path)
    mode = _status(expanded, what, fix).st_mode
    if not stat.S_ISREG(mode):  # before it is opened: opening some devices has effects
        _refuse_kind(expanded, mode, what, fix)
    resolved = _resolved(expanded, inside, what, fix)
    try:
        file = open(resolved, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except OSError as error:
        _refuse_unreadable(expanded, error, fix)
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):  # it was replaced in between
            _refuse_kind(expanded, mode, what, fix)
        try:
            yield file
        except OSError as error:
            if error.filename is not None:  # of another file
                raise
            _refuse_unreadable(expanded, error, fix)


def read_bytes(
    path: str | Path,
    *,
    limit: int,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> bytes:
    """Return the content of the regular file *path*, at most *limit* bytes.

    Raises:
        UsageError: as :func:`opened`, or it is larger.
    """
    with opened(path, inside=inside, what=what, fix=fix) as file:
        chunks: list[bytes] = []
        total = os.fstat(file.fileno()).st_size
        if total <= limit:
            total = 0
            while total <= limit and (chunk := file.read(_CHUNK)):
                chunks.append(chunk)
                total += len(chunk)
    if total > limit:
        problem = f"is larger than {limit:,} bytes, the limit for this {what}"
        raise UsageError(_cut(path), problem, fix or "Give a smaller file.")
    return b"".join(chunks)


def read_text(
    path: str | Path,
    *,
    limit: int = MAX_TEXT,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> str:
    r"""Return the text of the UTF-8 file *path*: without a byte order mark, each end of line as
    ``\n``.

    Raises:
        UsageError: as :func:`read_bytes`, or it is not UTF-8 text; with the line and the byte.
    """
    data = read_bytes(path, limit=limit, inside=inside, what=what, fix=fix)
    return _decoded(data, path, fix).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(
    path: str | Path,
    *,
    limit: int = MAX_TEXT,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> list[str]:
    """Return the lines of the UTF-8 file *path*, blank ones included, so that line i + 1 is item i.

    Raises:
        UsageError: as :func:`read_text`.
    """
    text = read_text(path, limit=limit, inside=inside, what=what, fix=fix)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def _decoded(data: bytes, path: str | Path, fix: str | None) -> str:
    if data.startswith(_UTF16):
        raise UsageError(_cut(path), "is UTF-16, not UTF-8 text", fix or "Save it as UTF-8.")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        problem = f"byte {offset} (0x{data[offset]:02x}) is not UTF-8 text"
        raise UsageError(_line(path, data, offset), problem, fix or "Save it as UTF-8.") from None
    nul = data.find(b"\0")
    if nul >= 0:
        problem = f"byte {nul} is 0x00, expected text"
        raise UsageError(_line(path, data, nul), problem, fix or "Give a text file.")
    return text


def _line(path: str | Path, data: bytes, offset: int) -> str:
    number = data.count(b"\n", 0, offset) + 1
    return f"{_cut(path)}:{number}"


# -- JSON ------------------------------------------------------------------------------------------


def read_json(
    path: str | Path,
    model: type[T] | TypeAdapter[T],
    *,
    limit: int,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
) -> T:
    """Return the JSON file *path* as *model*, which pydantic validates as JSON: strictly where the
    model says so.

    A key that is written twice in one object is refused: JSON readers disagree on which one counts.
    ``NaN`` and ``Infinity`` are numbers unless the model says ``allow_inf_nan=False``.  Long lists
    in a model should be ``Annotated[list[...], pydantic.FailFast()]``: one error is enough.

    Args:
        path: what the user named.
        model: a pydantic model, or any type that a ``TypeAdapter`` takes.
        limit: the largest size in bytes, one of the constants of this module.
        inside: the folder that the file must be in.
        what: what the file is, for the message.
        fix: the sentence that ends the message.

    Raises:
        UsageError: as :func:`read_text`; it is not JSON (with line and column), nests too deeply,
            holds too many values, half a surrogate pair, or does not fit the model (with the path
            of the key).
    """
    data = read_bytes(path, limit=limit, inside=inside, what=what, fix=fix)
    text = _decoded(data, path, fix)
    return validate_json(text, path, model, fix=fix)


def validate_json(
    text: str, where: str | Path, model: type[T] | TypeAdapter[T], *, fix: str | None = None
) -> T:
    """Return JSON *text*, which was found at *where*, as *model*; as :func:`read_json`.

    Raises:
        UsageError: it is not JSON within the bounds, or does not fit the model.
    """
    content = _json(text, where, fix)
    try:
        return _adapter(model).validate_json(text)
    except ValidationError as error:
        _refuse_content(where, content, error, fix)


def validate_python(
    content: Any, where: str | Path, model: type[T] | TypeAdapter[T], *, fix: str | None = None
) -> T:
    """Return *content*, a part of a file's that was read by this module from *where*, as *model*.

    Raises:
        UsageError: it does not fit the model.
    """
    try:
        return _adapter(model).validate_python(content)
    except ValidationError as error:
        _refuse_content(where, content, error, fix)


def _json(text: str, where: str | Path, fix: str | None) -> Any:
    """The content of JSON *text*, within the bounds."""
    name = _cut(where)
    if text.count(",") + text.count("[") + text.count("{") > MAX_JSON_VALUES:
        raise UsageError(
            name, f"holds more than {MAX_JSON_VALUES:,} values", fix or "Give a smaller file."
        )
    too_deep = f"nests deeper than {MAX_JSON_DEPTH} levels"
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_int=_bounded_int)
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}"
        raise UsageError(
            place, f"is not JSON (column {error.colno}: {error.msg})", fix or "Correct it."
        ) from None
    except RecursionError:
        raise UsageError(name, too_deep, fix or "Correct it.") from None
    except ValueError as error:
        raise UsageError(
            name, f"is not JSON that can be used ({error})", fix or "Correct it."
        ) from None
    if _depth(content, MAX_JSON_DEPTH) > MAX_JSON_DEPTH:
        raise UsageError(name, too_deep, fix or "Correct it.")
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            problem = f"a string holds {half}, half of a surrogate pair, which is not text"
            raise UsageError(name, problem, fix or "Correct it.") from None
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict."""
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} is written twice in one object")
            seen.add(key)
    return content


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _depth(content: Any, limit: int) -> int:
    """Levels of nested lists and mappings in *content*; at most ``limit + 1``."""
    level = [content] if isinstance(content, (dict, list)) else []
    depth = 0
    while level and depth <= limit:
        depth += 1
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for items in children for child in items if isinstance(child, (dict, list))]
    return depth


# -- YAML ------------------------------------------------------------------------------------------


def read_yaml_with_places(
    path: str | Path,
    model: type[T] | TypeAdapter[T],
    *,
    limit: int = MAX_YAML,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
    fixes: Mapping[str, str] | None = None,
) -> tuple[T, Place]:
    """Return the YAML file *path* as *model*, and a function from the keys of an entry to its
    ``file:line (keys)``.

    The file holds plain data only, no alias, no key twice.

    Args:
        path: the file.
        model: what it must hold.
        limit: its largest size in bytes.
        inside: a folder that it may not lead out of.
        what: what messages call it.
        fix: what messages say to do about anything that is wrong.
        fixes: what they say instead where it is ``absent``, misses a key (``missing``) or has one
            that does not exist (``extra_forbidden``).

    Raises:
        UsageError: as :func:`read_text`; it is not YAML, exceeds a bound, or does not fit the
            model; with the line.
    """
    if fixes and "absent" in fixes and not exists(path):
        raise UsageError(_cut(path), f"there is no {what}", fixes["absent"])
    text = read_text(path, limit=limit, inside=inside, what=what, fix=fix)
    content, lines = load_yaml(text, path, fix=fix)

    def place(*keys: Hashable) -> str:
        return place_of(path, keys, lines)

    try:
        return _adapter(model).validate_python(content), place
    except ValidationError as error:
        _refuse_content(path, content, error, fix, lines, fixes)


def load_yaml(
    text: str, where: str | Path, *, fix: str | None = None
) -> tuple[Any, dict[tuple[Hashable, ...], int]]:
    """Return the content of YAML *text*, which was found at *where*, and the line (from 1) of every
    entry by its keys.

    Raises:
        UsageError: it is not one YAML document of plain data, or exceeds a bound.
    """
    name = _cut(where)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _lines(node)
        content = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = error.problem or error.context or "not YAML"
        raise UsageError(
            place, f"is not YAML that can be used: {problem}", fix or "Correct that line."
        ) from None
    except yaml.YAMLError as error:  # the reader's: a character that YAML does not allow
        raise UsageError(name, f"is not YAML ({error})", fix or "Correct it.") from None
    except RecursionError:
        raise UsageError(
            name, f"nests deeper than {MAX_YAML_DEPTH} levels", fix or "Correct it."
        ) from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        # PyYAML lets some malformed scalars through its resolver ("0b_", "!!int x") and then fails
        # on them.
        raise UsageError(
            name, f"holds a value that YAML cannot read ({error})", fix or "Put it in quotes."
        ) from None
    return content, lines


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds on depth and size; aliases, keys written twice and rare
    types are refused.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            self._refuse("an alias (write the value out)", mark)
        self.depth += 1
        self.values += 1
        if self.depth > MAX_YAML_DEPTH:
            self._refuse(f"nests deeper than {MAX_YAML_DEPTH} levels", mark)
        if self.values > MAX_YAML_VALUES:
            self._refuse(f"more than {MAX_YAML_VALUES:,} values", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_unique(self, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
        content: dict[Any, Any] = {}
        yield content
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._refuse("a merge key '<<' (write the values out)", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)):
                self._refuse(f"the key {shown(key)}, expected a name", key_node.start_mark)
            if key in content:
                self._refuse(f"the key {shown(key)} is written twice", key_node.start_mark)
            content[key] = None
        content.update(self.construct_mapping(node))

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > MAX_DIGITS:
            self._refuse(f"a number of {len(node.value)} digits", node.start_mark)
        construct: Callable[[yaml.ScalarNode], int | float] = self.construct_yaml_float
        if node.tag.endswith(":int"):
            construct = self.construct_yaml_int
        return construct(node)

    def refuse_type(self, node: yaml.Node) -> NoReturn:
        kind = node.tag.rsplit(":", 1)[-1]
        self._refuse(f"a value of the type {shown(kind)} (put it in quotes)", node.start_mark)

    def _refuse(self, problem: str, mark: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_unique)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
for _tag in ("timestamp", "binary", "set", "omap", "pairs", None):  # types that JSON does not have
    _Loader.add_constructor(_tag and f"tag:yaml.org,2002:{_tag}", _Loader.refuse_type)


def _lines(
    node: yaml.Node | None, keys: tuple[Hashable, ...] = ()
) -> dict[tuple[Hashable, ...], int]:
    """Line (from 1) of every entry of a YAML document, by its keys as text."""
    lines: dict[tuple[Hashable, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at = (*keys, str(key.value))
            lines[at] = key.start_mark.line + 1
            lines |= _lines(value, at)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[(*keys, number)] = value.start_mark.line + 1
            lines |= _lines(value, (*keys, number))
    return lines


# -- writing ---------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes, *, temporary: str, durable: bool = True) -> None:
    """Replace *path* as a whole: readers and a kill at any moment see the old bytes or the new.

    Args:
        path: the file; its folder is made if there is none.
        data: the new content.
        temporary: how the name of the file begins that is written next to it first.
        durable: whether the content is on the disk before the name is, and the name before this
            returns.

    Raises:
        OSError: it could not be written; nothing is left of the attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.parent / f"{temporary}{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unnamed, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            unnamed.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":
        # The rename itself reaches the disk only with its folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# -- messages --------------------------------------------------------------------------------------


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlong = MAX_DIGITS
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """Return *value* as a message shows it: quoted, control characters spelled out, long values
    cut.
    """
    return _REPR.repr(value)


def _cut(path: str | Path) -> str:
    """A path for a message: its middle left out where it is very long."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"


def _adapter(model: type[T] | TypeAdapter[T]) -> TypeAdapter[T]:
    return model if isinstance(model, TypeAdapter) else TypeAdapter(model)


def _refuse_content(
    where: str | Path,
    content: Any,
    error: ValidationError,
    fix: str | None,
    lines: dict[tuple[Hashable, ...], int] | None = None,
    fixes: Mapping[str, str] | None = None,
) -> NoReturn:
    """Raise the UsageError of the first thing that pydantic found wrong with *content*."""
    first = error.errors(include_url=False, include_context=False)[0]
    fix = (fixes or {}).get(first["type"], fix)
    keys = _keys(first["loc"], content, first["type"] == "missing")
    place = place_of(where, keys, lines or {})
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        raise UsageError(
            place, f"the key {shown(keys[-1] if keys else '')} is missing", fix or "Add it."
        ) from None
    if first["type"] == "extra_forbidden":
        problem = f"there is no setting {shown(keys[-1] if keys else '')}"
        raise UsageError(place, problem, fix or "Remove it, or correct its spelling.") from None
    if first["type"] in ("json_invalid", "value_error"):
        raise UsageError(place, reason, fix or "Correct it.") from None
    raise UsageError(
        place, f"is {_value(first['input'])}: {reason}", fix or "Correct it."
    ) from None


def _value(value: object) -> str:
    """A value as its file spells it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else shown(value)


def _keys(loc: Iterable[int | str], content: Any, missing: bool) -> tuple[int | str, ...]:
    """The keys of *loc* that lead into *content*: without the names of the alternatives of a
    union.
    """
    keys: list[int | str] = []
    path = list(loc)
    for number, key in enumerate(path):
        is_key = isinstance(content, dict) and key in content
        is_index = isinstance(content, list) and isinstance(key, int) and key < len(content)
        if is_key or is_index:
            content = content[key]
        elif not (missing and number == len(path) - 1):
            continue
        keys.append(key)
    return tuple(keys)


def place_of(
    path: str | Path, keys: Iterable[Hashable], lines: dict[tuple[Hashable, ...], int]
) -> str:
    """Return ``file:line (dotted.keys)`` of the entry at *keys*, by the *lines* that
    :func:`load_yaml` found.
    """
    at = tuple(keys)
    known = tuple(key if isinstance(key, int) else str(key) for key in at)
    while known and known not in lines:
        known = known[:-1]
    line = f":{lines[known]}" if known in lines else ""
    dotted = "".join(
        f"[{key}]" if isinstance(key, int) else f".{_cut(str(key))}" for key in at
    ).removeprefix(".")
    return f"{_cut(path)}{line}" + (f" ({dotted})" if dotted else "")


# -- system calls ----------------------------------------------------------------------------------


def _mode(path: str | Path) -> int | None:
    """The type bits of *path*, links followed; None where there is nothing that can be looked
    at.
    """
    try:
        return os.stat(expand(path)).st_mode  # noqa: PTH116
    except (OSError, ValueError, UsageError):
        return None


def _status(path: Path, what: str, fix: str | None) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            problem = f"is a link to {_cut(os.readlink(path))}, which does not exist"  # noqa: PTH115
            raise UsageError(_cut(path), problem, fix or "Correct the link.") from None
        raise UsageError(_cut(path), f"there is no such {what}", fix or _CORRECT_PATH) from None
    except OSError as error:
        _refuse_unreadable(path, error, fix)


def _resolved(path: Path, inside: str | Path | None, what: str, fix: str | None) -> Path:
    """*path* with every link followed, which must be in the folder *inside*; as it is where it may
    be anywhere.
    """
    if inside is None:
        return path  # following links costs more than reading a small file
    try:
        resolved = Path(os.path.realpath(path, strict=True))
        if not resolved.is_relative_to(os.path.realpath(expand(inside), strict=True)):
            problem = f"is outside of {_cut(inside)}, which the {what} must be in"
            raise UsageError(
                _cut(path), problem, fix or "Move it there, and name it by its path in there."
            )
    except OSError as error:
        _refuse_unreadable(path, error, fix)
    return resolved


def _open_without_waiting(path: str, _flags: int) -> int:
    """A descriptor for reading; that of a pipe or a device is open at once and is looked at before
    it is read.
    """
    return os.open(path, _FLAGS)


def _refuse_kind(path: Path, mode: int, what: str, fix: str | None) -> NoReturn:
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    raise UsageError(_cut(path), f"is {kind}, expected a {what}", fix or "Give a regular file.")


def _refuse_unreadable(path: Path, error: OSError, fix: str | None) -> NoReturn:
    reason = error.strerror or str(error)
    raise UsageError(
        _cut(path), f"cannot be read ({reason})", fix or "Correct the path or its permissions."
    ) from None
