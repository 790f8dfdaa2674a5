"""YAML files that people write, read within bounds and held to a pydantic model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError
from harness.files.content import read_text
from harness.files.fitting import adapter, place_of, refuse_content
from harness.files.limits import MAX_DIGITS, MAX_YAML, MAX_YAML_DEPTH, MAX_YAML_VALUES
from harness.files.messages import cut, shown
from harness.files.paths import exists

T = TypeVar("T")
#: ``file:line (dotted.keys)`` of an entry, by its keys.
PlaceOf = Callable[..., str]
#: ``file:line (dotted.keys)`` of an entry, by its keys.


def read_yaml_with_places(
    path: str | Path,
    model: type[T] | TypeAdapter[T],
    *,
    limit: int = MAX_YAML,
    inside: str | Path | None = None,
    what: str = "file",
    fix: str | None = None,
    fixes: Mapping[str, str] | None = None,
) -> tuple[T, PlaceOf]:
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
        raise UsageError(cut(path), f"there is no {what}", fixes["absent"])
    text = read_text(path, limit=limit, inside=inside, what=what, fix=fix)
    content, lines = load_yaml(text, path, fix=fix)

    def place(*keys: Hashable) -> str:
        return place_of(path, keys, lines)

    try:
        return adapter(model).validate_python(content), place
    except ValidationError as error:
        refuse_content(path, content, error, fix, lines, fixes)


def load_yaml(
    text: str, where: str | Path, *, fix: str | None = None
) -> tuple[Any, dict[tuple[Hashable, ...], int]]:
    """Return the content of YAML *text*, which was found at *where*, and the line (from 1) of every
    entry by its keys.

    Raises:
        UsageError: it is not one YAML document of plain data, or exceeds a bound.
    """
    name = cut(where)
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
