"""What one release makes of CLIP, as measured by running it: quantizer maps without weights, and
known deviations.

``measure()`` runs in the environment of the release; its file,
``baselines/versions/<release>.json``, is read anywhere.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from harness import files
from harness.baselines import differences
from harness.baselines.overlay import REFUSED
from harness.errors import UsageError
from harness.evaluation import environment
from harness.formats import deviations
from harness.models import architectures, families
from harness.pull_requests import effect
from harness.quantization import maps, quantize
from harness.quantization.attention import ATTENTIONS
from harness.quantization.context import quiet
from harness.quantization.maps import Quantizer, QuantizerMap
from harness.recipes import finding, loading

ARCHITECTURES = effect.ARCHITECTURES
#: ModelOpt's presets (``mtq.NAME``) that its documentation gives for vision models and for the
#: formats of the recipes.
PRESETS = (
    "FP8_DEFAULT_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "INT4_AWQ_CFG",
    "W4A8_AWQ_BETA_CFG",
    "NVFP4_DEFAULT_CFG",
    "MXFP8_DEFAULT_CFG",
    "FP8_KV_CFG",
)
#: The package's recipes that say where quantizers go.
OWN = tuple(name for name in (*finding.DEFAULT, *finding.MORE) if name not in finding.SEARCHES)
#: Recipes of ModelOpt's own tree that quantize a vision transformer.
MODELOPT_RECIPES = ("huggingface/vit/ptq/fp8",)
_E4M3 = {"num_bits": (4, 3), "axis": None}
_ON = {
    "*weight_quantizer": _E4M3,
    "*input_quantizer": _E4M3,
    "*[qkv]_bmm_quantizer": _E4M3,
    "*bmm2_output_quantizer": _E4M3,
}
_OFF = {"default": {"enable": False}}
#: The dict form in the order in which FP8 for diffusers and CLIP was published, and with its
#: deny-all first (S2).
DEFAULT_LAST = {"quant_cfg": _ON | _OFF, "algorithm": "max"}
DEFAULT_FIRST = {"quant_cfg": _OFF | _ON, "algorithm": "max"}
#: Names of the subjects that show where an attention class lets quantizers be.
PLACES = {attention: differences.subject("places", attention) for attention in ATTENTIONS}


@dataclass(frozen=True)
class SubjectState:
    """The result of one recipe, preset or dict: its outcome in words, and its map by architecture
    if it was taken.
    """

    outcome: str
    maps: Mapping[str, QuantizerMap]


@dataclass(frozen=True)
class ReleaseMeasurement:
    """One release: the versions that were installed, the result of each subject, the state of each
    deviation.
    """

    versions: Mapping[str, str]
    subjects: Mapping[str, SubjectState]
    deviations: Mapping[str, str]

    @property
    def release(self) -> str:
        """ModelOpt's."""
        return self.versions["nvidia-modelopt"]

    def only(self, glob: str) -> ReleaseMeasurement:
        """The same with the subjects that *glob* means."""
        return replace(
            self, subjects={n: s for n, s in self.subjects.items() if fnmatch.fnmatchcase(n, glob)}
        )


def references() -> dict[str, str]:
    """Every subject but the places, by name, with what ``loading.load`` finds it under."""
    own = {name: name for name in OWN}
    presets = {name: f"modelopt.torch.quantization:{name}" for name in PRESETS}
    dicts = {name: f"{__name__}:{name}" for name in ("DEFAULT_LAST", "DEFAULT_FIRST")}
    return own | presets | dicts | {name: name for name in MODELOPT_RECIPES}


def measure(say: Callable[[str], object] = lambda _: None) -> ReleaseMeasurement:
    """Measure the installed release; *say* gets the name of each subject before it takes its
    seconds.
    """
    blanks = {name: architectures.build(name) for name in ARCHITECTURES}
    subjects = {}
    for attention, name in PLACES.items():
        say(name)
        maps = {a: _map(partial(quantize.insert, b, attention)) for a, b in blanks.items()}
        subjects[name] = SubjectState(f"{len(maps[ARCHITECTURES[0]])} quantizers inserted", maps)
    for name, reference in references().items():
        say(name)
        subjects[name] = subject(reference, blanks)
    say("known deviations")
    with quiet():
        states = {known.name: known.state() for known in deviations.KNOWN}
    return ReleaseMeasurement(environment.versions(), subjects, states)


def subject(reference: str, blanks: Mapping[str, nn.Module]) -> SubjectState:
    """What the installed release makes of a recipe on architectures without weights."""
    try:
        recipe = loading.load(reference, finding.HERE if _own(reference) else None)
        maps = {a: _map(partial(quantize.structure, b, recipe)) for a, b in blanks.items()}
    except (UsageError, quantize.QuantizationError) as error:
        return SubjectState(REFUSED + _plain(str(error)).partition(". ")[0], {})
    on = [q.tower for q in maps[ARCHITECTURES[0]] if q.enabled]
    return SubjectState(f"{on.count('vision')} vision, {on.count('text')} text quantizers on", maps)


def _own(reference: str) -> bool:
    """Whether it is a recipe of this package, which needs no tree of ModelOpt's."""
    return reference in OWN


def _map(make: Callable[[], nn.Module]) -> QuantizerMap:
    with quiet():
        return tuple(_essential(q) for q in maps.quantizer_map(make()))


def _essential(q: Quantizer) -> Quantizer:
    """*q* with what a difference shows: what a quantizer that is off would do, or how often, is
    nothing.
    """
    if q.enabled:
        return q
    return Quantizer(
        q.name,
        q.kind,
        q.tower,
        q.layer,
        q.module_class,
        q.module_kind,
        "",
        "",
        False,
        False,
        1,
        None,
    )


def _plain(text: str) -> str:
    """*text* without the places of this machine."""
    # Stored measurements name the recipes by the folder "harness/recipes".
    roots = {str(finding.HERE): "harness/recipes", "harness/recipes/library": "harness/recipes"}
    with contextlib.suppress(UsageError):
        roots[str(finding.installed_root())] = "modelopt_recipes"
    for root, name in roots.items():
        text = text.replace(root, name)
    return text


# --------------------------------------------------------------------------------------------------
# The file.


def path_of(release: str, baselines: Path) -> Path:
    """The file of the measurement of *release*."""
    return baselines / differences.FOLDER / f"{release}.json"


def write(measurement: ReleaseMeasurement, path: Path) -> None:
    """Write *measurement*, the names of alike quantizers folded; equal measurements give equal
    files.
    """
    content = {
        "versions": dict(measurement.versions),
        "subjects": {
            name: {"outcome": state.outcome, "maps": {a: _groups(m) for a, m in state.maps.items()}}
            for name, state in measurement.subjects.items()
        },
        "deviations": dict(measurement.deviations),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> ReleaseMeasurement:
    """A measurement from its file.

    Raises:
        UsageError: there is none, or it is not one.
    """
    fix = "Measure the release in its environment: python -m harness.tools.versions measure."
    content = files.read_json(path, dict[str, Any], limit=files.MAX_MEASURED, fix=fix)
    try:
        subjects = {
            name: SubjectState(
                str(state["outcome"]), {a: _map_of(groups) for a, groups in state["maps"].items()}
            )
            for name, state in content["subjects"].items()
        }
        return ReleaseMeasurement(dict(content["versions"]), subjects, dict(content["deviations"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            path, f"is not a measurement of a release ({type(error).__name__}: {error})", fix
        ) from error


def every(baselines: Path) -> tuple[ReleaseMeasurement, ...]:
    """All measurements under the folder of *baselines*, oldest release first."""
    measurements = [read(path) for path in (baselines / differences.FOLDER).glob("*.json")]
    return tuple(sorted(measurements, key=lambda m: differences.release(m.release)))


def find(name: str, baselines: Path) -> ReleaseMeasurement:
    """The measurement that *name* means: a file, or a release such as 0.44 (of several patches the
    newest).

    Raises:
        UsageError: there is none.
    """
    if files.is_file(name):
        return read(Path(name))
    measured = every(baselines)
    for measurement in reversed(measured):
        if measurement.release == name or measurement.release.startswith(f"{name}."):
            return measurement
    known = ", ".join(m.release for m in measured) or "none"
    fix = (
        f"Measured: {known}. In that release's environment: python -m harness.tools.versions "
        f"measure."
    )
    raise UsageError(name, "is neither a measured release nor a file", fix)


#: What the names of a group have in common: class and kind of their module, and the state of the
#: quantizer.
_GROUP = re.compile(
    r"(?P<module_class>\S+) (?P<module_kind>\S+): (?:off|(?P<format>\S+) (?P<granularity>\S+?)"
    r"(?P<dynamic> dynamic)?(?: called (?P<calls>\d+) times)?)"
)


def _groups(quantizer_map: QuantizerMap) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for q in quantizer_map:
        groups[f"{q.module_class} {q.module_kind}: {maps.state(q)}"].append(q.name)
    return {state: fold(names) for state, names in groups.items()}


def _map_of(groups: Mapping[str, Iterable[str]]) -> QuantizerMap:
    quantizers = []
    for state, patterns in groups.items():
        match = _GROUP.fullmatch(state)
        if match is None:
            raise ValueError(f"{state!r} is not a state of quantizers")
        on = match["format"] is not None
        quantizers += [
            Quantizer(
                name=name,
                kind=maps.kind_of(name),
                tower=families.tower_of(families.CLIP, name),
                layer=families.layer_of(name),
                module_class=match["module_class"],
                module_kind=match["module_kind"],
                format=match["format"] or "",
                granularity=match["granularity"] or "",
                enabled=on,
                dynamic=match["dynamic"] is not None,
                calls=int(match["calls"] or 1),
                amax=None,
            )
            for pattern in patterns
            for name in unfold(pattern)
        ]
    return tuple(quantizers)


def fold(names: Iterable[str]) -> list[str]:
    """*names* with what is alike in braces, as a shell writes it:
    ``layers.{0..23}.mlp.{fc1,fc2}.input_quantizer``.
    """
    layers: dict[str, list[int]] = defaultdict(list)
    names = list(names)
    bare = [name for name in names if not maps.holder_of(name)]  # of a model that is one layer
    for name in (name for name in names if maps.holder_of(name)):
        number = families.layer_of(name)
        layers[re.sub(r"\.layers\.\d+\.", ".layers.#.", name)] += [] if number is None else [number]
    leaves: dict[tuple[str, str], list[str]] = defaultdict(list)
    for shape, numbers in sorted(layers.items()):
        holder = maps.holder_of(shape)
        leaves[holder, _range(numbers)].append(shape.removeprefix(f"{holder}."))
    modules: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (holder, numbers_), kinds in leaves.items():
        parent, _, module = f".{holder}".rpartition(".")
        modules[parent, numbers_, _braced(kinds)].append(module)
    folded = [
        (parent, numbers_, _braced(leaves_alike), kinds)
        for (parent, numbers_, kinds), leaves_alike in modules.items()
    ]
    return bare + [f"{p}.{m}.{k}".replace("#", n).lstrip(".") for p, n, m, k in folded]


def _braced(words: list[str]) -> str:
    return words[0] if len(words) == 1 else "{" + ",".join(words) + "}"


def _range(numbers: list[int]) -> str:
    ends = sorted({min(numbers, default=-1), max(numbers, default=-1)})
    whole = len(numbers) > 1 and len(numbers) == ends[-1] - ends[0] + 1
    return (
        f"{{{ends[0]}..{ends[-1]}}}"
        if whole
        else _braced([str(n) for n in sorted(numbers) or ends])
    )


def unfold(pattern: str) -> Iterator[str]:
    """The names that :func:`fold` folded."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    options = map(str, range(int(span[1]), int(span[2]) + 1)) if span else match[1].split(",")
    for option in options:
        yield from unfold(pattern[: match.start()] + option + pattern[match.end() :])
