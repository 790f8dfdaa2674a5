"""YAML that people write, read as untrusted data: bounded in size, depth and expansion, every line
kept.

PyYAML's safe loader executes nothing, but it expands aliases without limit, recurses as deep as a
file nests, and keeps the last of two equal keys without a word.  Here each of these is a refusal
that names the line.  libyaml's parser, which PyYAML has in most installations, is nine times as
fast as PyYAML's own; what is refused, and how, is the same with both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from harness.errors import UsageError
from harness.files.content import read_text
from harness.files.fitting import adapter, place_of, refuse_content
from harness.files.limits import MAX_DIGITS, MAX_YAML, MAX_YAML_DEPTH, MAX_YAML_VALUES
from harness.files.located import Located, LocatedList, Place
from harness.files.messages import cut, shown
from harness.files.paths import exists

T = TypeVar("T")
#: ``file:line (dotted.keys)`` of an entry, by its keys.
PlaceOf = Callable[..., str]
#: What libyaml reads in another way than PyYAML, which is what ModelOpt reads recipes with: tabs,
#: byte order marks, tags, and a comment right after the mark of a block of text.
_READ_IN_ANOTHER_WAY = re.compile("[\t\ufeff]|(?:^|[\\s\\[\\]{},:?-])!|[|>][-+0-9]*#", re.M)


class NotYamlError(UsageError):
    """Text that is not YAML, or YAML that holds something else than plain data."""


class YamlLimitError(UsageError):
    """YAML that nests too deeply, or holds too much."""


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
    content = _read(text, path, _Loader.get_single_data, aliases=False, fix=fix)

    def place(*keys: Hashable) -> str:
        return place_of(path, keys, content)

    try:
        return adapter(model).validate_python(content), place
    except ValidationError as error:
        refuse_content(path, content, error, fix, fixes)


def load_documents(text: str, path: str | Path, *, most: int) -> list[Any]:
    """Return the first *most* YAML documents of *text*, which was found at *path*: plain data that
    know their places.  Aliases are expanded, and counted so.

    Raises:
        NotYamlError: it is not YAML, or holds something else than plain data; with the place.
        YamlLimitError: it exceeds a bound.
    """

    def take(loader: _Loader) -> list[Any]:
        documents: list[Any] = []
        while len(documents) < most and loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
        return documents

    return _read(text, path, take, aliases=True)


def _read(
    text: str,
    path: str | Path,
    take: Callable[[_Loader], T],
    *,
    aliases: bool,
    fix: str | None = None,
) -> T:
    """What *take* gets from a loader of *text*."""
    try:
        if yaml.__with_libyaml__ and not _READ_IN_ANOTHER_WAY.search(text):
            try:
                return take(_FastLoader(text, path, aliases))
            except _RefusedError:
                raise
            except (yaml.YAMLError, UnicodeEncodeError):
                pass  # PyYAML's own parser has the last word, and the plainer words
        return take(_PlainLoader(text, path, aliases))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place.at(Path(path), mark) if mark else cut(path)
        problem = error.problem or error.context or "not YAML"
        if isinstance(error, _LimitError):
            raise YamlLimitError(place, problem, fix or "Split it.") from None
        raise NotYamlError(
            place, f"is not YAML that can be used: {problem}", fix or "Correct it."
        ) from None
    except yaml.YAMLError as error:  # the reader's: a character that YAML does not allow
        raise NotYamlError(cut(path), f"is not YAML ({error})", fix or "Correct it.") from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        # PyYAML lets some malformed scalars through its resolver ("0b_", "!!int x") and then fails
        # on them.
        raise NotYamlError(
            cut(path), f"holds a value that YAML cannot read ({error})", fix or "Put it in quotes."
        ) from None


class _RefusedError(yaml.MarkedYAMLError):
    """Something that is YAML, and may not be in a file all the same."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _LimitError(_RefusedError):
    """More than a file may hold."""


class _Loader(Composer, SafeConstructor, Resolver):
    """What comes after the parser: PyYAML's safe loader with bounds on depth and size (aliases
    counted expanded), places kept, keys written twice and types that JSON does not have refused.
    """

    def __init__(self, path: str | Path, aliases: bool) -> None:
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self.path = Path(path)
        self.aliases = aliases
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[attr-defined]
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            return self._alias(parent, index, mark)
        before = self.values
        self._count(1, mark)
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise _LimitError(f"nests deeper than {MAX_YAML_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.sizes[id(node)] = self.values - before
        return node

    def _alias(self, parent: Any, index: Any, mark: Any) -> Any:
        if not self.aliases:
            raise _RefusedError("an alias (write the value out)", mark)
        node = super().compose_node(parent, index)
        if id(node) not in self.sizes:
            raise _RefusedError("an alias inside what it names", mark)
        self._count(self.sizes[id(node)], mark)
        return node

    def _count(self, values: int, mark: Any) -> None:
        self.values += values
        if self.values > MAX_YAML_VALUES:
            raise _LimitError(f"expands to more than {MAX_YAML_VALUES:,} values", mark)

    def construct_map(self, node: yaml.MappingNode) -> Iterator[Located]:
        content = Located()
        content.place = Place.at(self.path, node.start_mark)
        yield content
        for key_node, _ in node.value:
            mark = key_node.start_mark
            if key_node.tag == "tag:yaml.org,2002:merge":
                if not self.aliases:
                    raise _RefusedError("a merge key '<<' (write the values out)", mark)
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int)):
                raise _RefusedError(f"the key {shown(key)}, expected a name", mark)
            if key in content.places:
                problem = f"the key {shown(key)} is written twice, of which YAML keeps the last"
                raise _RefusedError(problem, mark)
            content.places[key] = Place.at(self.path, mark)
        content.update(self.construct_mapping(node))

    def construct_list(self, node: yaml.SequenceNode) -> Iterator[LocatedList]:
        content = LocatedList((), (Place.at(self.path, item.start_mark) for item in node.value))
        yield content
        content.extend(self.construct_sequence(node))

    def construct_int(self, node: yaml.ScalarNode) -> int:
        problem = f"a number of {len(node.value)} digits, which is over 63 bits"
        if len(node.value) > MAX_DIGITS:
            raise _RefusedError(problem, node.start_mark)
        number: int = self.construct_yaml_int(node)
        if number.bit_length() > 63:  # Python itself refuses to print far longer ones
            raise _RefusedError(problem, node.start_mark)
        return number

    def refuse_type(self, node: yaml.Node) -> NoReturn:
        kind = node.tag.rsplit(":", 1)[-1]
        problem = f"a value of the type {shown(kind)} (put it in quotes)"
        raise _RefusedError(problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_map)  # type: ignore[type-var]
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_list)  # type: ignore[type-var]
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)  # type: ignore[type-var]
for _tag in ("timestamp", "binary", "set", "omap", "pairs", None):  # types that JSON does not have
    _Loader.add_constructor(_tag and f"tag:yaml.org,2002:{_tag}", _Loader.refuse_type)  # type: ignore[type-var]


class _PlainLoader(_Loader, Reader, Scanner, Parser):
    """The loader on PyYAML's own parser."""

    def __init__(self, text: str, path: str | Path, aliases: bool) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        _Loader.__init__(self, path, aliases)


if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]

    class _FastLoader(_Loader, CParser):
        """The loader on libyaml's parser."""

        def __init__(self, text: str, path: str | Path, aliases: bool) -> None:
            CParser.__init__(self, text)
            _Loader.__init__(self, path, aliases)
