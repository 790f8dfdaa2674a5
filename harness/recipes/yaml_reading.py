"""One YAML file of a recipe read as untrusted data: bounded in size, depth and expansion, every
line kept.

PyYAML's safe loader executes nothing, but it expands aliases without limit, recurses as deep as a
file nests, and keeps the last of two equal keys without a word.  Here each of these is a refusal
that names the line.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UsageError
from harness.files import shown

#: Limits, each an order of magnitude above the largest file of ModelOpt 0.47's tree.
MAX_FILE_BYTES = 128 * 1024
MAX_DEPTH = 24  # of nested YAML collections
MAX_NODES = 20_000  # of one file with its aliases expanded

_SCHEMA = re.compile(r"^\s*#\s*modelopt-schema:\s*(\S+)\s*$")
_MODELOPT_NAME = re.compile(r"^modelopt(\.[A-Za-z]\w*){2,}$", re.ASCII)
_EXMY = re.compile(r"^[Ee](\d{1,2})[Mm](\d{1,2})$")
SPLIT = "Split it, or raise the limit in harness/recipes/yaml_reading.py if the file is trusted."


class Place(str):
    """``file:line`` of something that a file holds, which also knows its column.

    Attributes:
        path: the file.
        line: from 1.
        column: from 1.
    """

    __slots__ = ("column", "line", "path")
    path: Path
    line: int
    column: int

    @classmethod
    def make(cls, path: Path, line: int, column: int = 1) -> Place:
        """Return the place at a *line* and *column* of the file *path*."""
        place = cls(f"{path}:{line}")
        place.path, place.line, place.column = path, line, column
        return place

    @classmethod
    def at(cls, path: Path, mark: Any) -> Place:
        """Return the place of PyYAML's *mark* in the file *path*."""
        return cls.make(path, mark.line + 1, mark.column + 1)

    @classmethod
    def of(cls, place: str, more: str) -> str:
        """Return *place*, described more closely: ``file:line, algorithm max``."""
        text = f"{place}{more}"
        if not isinstance(place, Place):
            return text
        closer = cls(text)
        closer.path, closer.line, closer.column = place.path, place.line, place.column
        return closer


def spot(place: str | Path) -> str:
    """Return ``file:line:column`` of a *place*, or an empty string where no line is known."""
    return f"{place.path}:{place.line}:{place.column}" if isinstance(place, Place) else ""


class Located(dict[Any, Any]):
    """A mapping that knows its place, which lets a message name the place of an entry, and those of
    its keys.
    """

    place: str = ""

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self.places: dict[Any, Place] = {}


class LocatedList(list[Any]):
    """A list that knows the places of its items, and of imported ones where the document at hand
    imports them.
    """

    def __init__(self, items: Iterable[Any] = (), places: Iterable[str] = ()) -> None:
        super().__init__(items)
        self.places = list(places)
        self.imported_at: dict[int, str] = {}

    def add(self, item: Any, place: str, imported_at: str = "") -> None:
        """Append *item*, which is at *place*."""
        if imported_at:
            self.imported_at[len(self)] = imported_at
        self.append(item)
        self.places.append(place)


def place_at(value: Any, keys: Iterable[Any], place: str) -> str:
    """Return the place of what is in *value* at *keys*: of the last one on the way there whose
    place is known.

    Args:
        value: data of a file, with their places.
        keys: names and numbers that lead into it; a name that is not there ends the way.
        place: where *value* itself is.
    """
    for key in keys:
        if isinstance(value, Located):
            place = value.places.get(key, place)
        elif isinstance(value, LocatedList) and isinstance(key, int) and key < len(value.places):
            place = value.places[key]
        try:
            value = value[key]
        except (LookupError, TypeError):
            break
    return place


def named_place(value: Any, what: str, place: str) -> str:
    """Return the place of the key of *value* that *what* names first, or else *place*."""
    keys: list[tuple[int, str]] = []
    _find_named(value, what, keys)
    return min(keys, key=lambda key: key[0], default=(0, place))[1]


def _find_named(value: Any, what: str, keys: list[tuple[int, str]]) -> None:
    is_list = isinstance(value, (list, tuple))
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if is_list else ()
    for key, item in pairs:
        match = (
            re.search(rf"(?<![\w.]){re.escape(str(key))}(?!\w)", what)
            if isinstance(key, str)
            else None
        )
        if match is not None and isinstance(value, Located) and key in value.places:
            keys.append((match.start(), value.places[key]))
        if isinstance(item, (Mapping, LocatedList)):
            _find_named(item, what, keys)


@dataclass(frozen=True)
class Document:
    """One parsed YAML file, its imports not yet resolved.

    ``body`` is a mapping or a list without the ``imports`` section, ``schema`` what its
    ``modelopt-schema`` comment names (a name only: nothing is imported), ``documents`` how many
    YAML documents the file holds (two: a header with ``imports`` and a body).
    """

    path: Path
    schema: str | None
    imports: dict[str, str]
    body: Any
    documents: int

    def import_place(self, name: str) -> str:
        """Return the place of the import *name*."""
        return place_at(self.imports, [name], str(self.path))


class UnreadableError(UsageError):
    """A file that is not read at all, or not to its end: it is not a file, or exceeds a limit."""


class NotYamlError(UsageError):
    """Text that is not YAML, or YAML that a recipe may not hold."""


def parse(text: str, path: Path) -> Document:
    """*text*, read from *path*, as a document.

    Raises:
        UsageError: it is not YAML, exceeds a limit, or is not of the shape of a recipe or a
            snippet.
    """
    schema = _schema_comment(text, path)
    documents = _load_all(text, path)
    header: dict[Any, Any] = {}
    body: Any = documents[-1] if documents else None
    if len(documents) == 2:
        if not isinstance(documents[0], dict):
            raise UsageError(
                path, "the first of its two YAML documents is not a mapping", "Put imports: there."
            )
        header = documents[0]
    elif len(documents) > 2:
        raise UsageError(
            path,
            f"holds {len(documents)} YAML documents or more",
            "One, or imports and a body, fit.",
        )
    if body is None:
        body = {}
    if not isinstance(body, (dict, list)):
        raise UsageError(
            path, f"holds {shown(body)}, no mapping and no list", "Write a recipe or a snippet."
        )
    if isinstance(body, dict):
        merged = Located({**header, **body})
        merged.place = getattr(body, "place", str(path))
        merged.places = {**getattr(header, "places", {}), **getattr(body, "places", {})}
        imports = merged.pop("imports", None)
        body = merged
    else:
        imports = header.get("imports")
    imports = imports or {}
    if not isinstance(imports, dict) or not all(isinstance(k, str) for k in imports):
        raise UsageError(
            path,
            "'imports' is not a mapping of names to paths",
            "Write imports: {fp8: configs/...}.",
        )
    return Document(path, schema, imports, _exmy(body), len(documents))


def _schema_comment(text: str, path: Path) -> str | None:
    """The name in the preamble's ``# modelopt-schema:``; never imported, only compared with known
    ones.
    """
    schema: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.strip().startswith("#"):
            break
        if not (match := _SCHEMA.match(line)):
            continue
        if schema is not None:
            raise UsageError(
                Place.make(path, number), "a second modelopt-schema comment", "Keep one."
            )
        schema = match[1]
        if not _MODELOPT_NAME.match(schema):
            fix = "Name one such as modelopt.torch.quantization.config.QuantizerCfgListConfig."
            raise UsageError(
                Place.make(path, number),
                f"the schema {shown(schema)} is not one of ModelOpt's",
                fix,
            )
    return schema


class _Loader(yaml.SafeLoader):
    """SafeLoader with limits on depth and size (aliases counted expanded), lines kept, doubled keys
    refused.
    """

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.path = path
        self.depth = self.nodes = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                raise yaml.constructor.ConstructorError(
                    None, None, "an alias inside what it names", mark
                )
            self._count(self.sizes[id(node)], mark)
            return node
        before = self.nodes
        self._count(1, mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Excess(f"nests deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.sizes[id(node)] = self.nodes - before
        return node

    def _count(self, nodes: int, mark: Any) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise _Excess(f"expands to more than {MAX_NODES} values", mark)

    def construct_map(self, node: yaml.MappingNode) -> Iterator[Located]:
        data = Located()
        data.place = Place.at(self.path, node.start_mark)
        yield data
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int)):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is not a name", key_node.start_mark
                )
            if key in seen:
                problem = f"the key {shown(key)} twice, of which YAML keeps the last"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
            data.places[key] = Place.at(self.path, key_node.start_mark)
        data.update(self.construct_mapping(node))

    def construct_list(self, node: yaml.SequenceNode) -> Iterator[LocatedList]:
        data = LocatedList((), (Place.at(self.path, item.start_mark) for item in node.value))
        yield data
        data.extend(self.construct_sequence(node))

    def construct_int(self, node: yaml.ScalarNode) -> int:
        number: int = self.construct_yaml_int(node)
        if number.bit_length() > 63:  # Python itself refuses to print far longer ones
            raise yaml.constructor.ConstructorError(
                None, None, "a number of over 63 bits", node.start_mark
            )
        return number

    def refuse(self, node: yaml.Node) -> Any:
        kind = node.tag.rsplit(":", 1)[-1]
        raise yaml.constructor.ConstructorError(
            None, None, f"a value of the kind {shown(kind)}", node.start_mark
        )


class _Excess(yaml.MarkedYAMLError):
    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_map)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_list)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
for _kind in ("timestamp", "binary", "set", "omap", "pairs", None):  # what JSON has no word for
    _Loader.add_constructor(_kind and f"tag:yaml.org,2002:{_kind}", _Loader.refuse)


def _load_all(text: str, path: Path) -> list[Any]:
    """Up to three YAML documents of *text* as plain data: the third says only that there are too
    many.
    """
    documents: list[Any] = []
    try:
        loader = _Loader(text, path)
        while len(documents) < 3 and loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    except _Excess as error:
        raise UnreadableError(_at(path, error), str(error.problem), SPLIT) from error
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "not YAML"
        raise NotYamlError(
            _at(path, error), f"is not YAML that a recipe may hold: {problem}", "Correct it."
        ) from error
    except yaml.YAMLError as error:  # the reader's: a character that YAML does not allow
        raise NotYamlError(path, f"is not YAML: {error}", "Correct it.") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        # PyYAML lets some malformed scalars through its resolver ("0b_", "!!int x") and then trips
        # over them.
        raise NotYamlError(
            path, f"holds a value that YAML cannot read: {error}", "Put it in quotes."
        ) from error
    return documents


def _at(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return Place.at(path, mark) if mark else str(path)


def _exmy(value: Any) -> Any:
    """*value* with the strings ``e4m3`` at num_bits and scale_bits as pairs (4, 3), as ModelOpt
    reads them.
    """
    if isinstance(value, dict):
        result = Located()
        result.place, result.places = getattr(value, "place", ""), getattr(value, "places", {})
        for key, item in value.items():
            match = (
                _EXMY.match(item)
                if key in ("num_bits", "scale_bits") and isinstance(item, str)
                else None
            )
            result[key] = (int(match[1]), int(match[2])) if match else _exmy(item)
        return result
    if isinstance(value, list):
        return LocatedList((_exmy(item) for item in value), getattr(value, "places", ()))
    return value
