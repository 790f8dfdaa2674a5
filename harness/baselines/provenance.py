"""What a measurement belongs to: models and data by hash, versions, and the device it ran on.

Two measurements may be compared only if they belong to the same things.  ``mismatches`` says where they do not; the
device is the one thing that may differ, and then only verdicts are compared, never bits.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Releases of these bind a baseline: they compute the numbers.
BINDING_PACKAGES = ("nvidia-modelopt", "torch", "transformers")
#: Releases of these do not, and are named as suspects when the reference moves.
OTHER_PACKAGES = (
    "clip-benchmark",
    "diffusers",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "torchvision",
    "webdataset",
)

#: Instruction sets that decide which kernels run, so which bits come out.  Other CPU flags (mitigations, virtual
#: machines) come and go with the kernel of the operating system and are left out.
_VECTOR_FLAGS = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|sve|sme|fphp|bf16|i8mm|neon)\w*")
#: Endings of files that compute numbers.
_SOURCES = {".py", ".cu", ".cuh", ".cpp", ".h"}
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Nearness(Enum):
    """How near a record's device is to this one, nearest first: the declared order of the keys."""

    EXACT = "this very device"
    ARCHITECTURE = "another device of this architecture"
    ANY = "a device of another architecture"


@dataclass(frozen=True)
class DeviceKey:
    """Where a measurement ran: the exact device (CPU model and its vector units, or GPU name) and its architecture.

    Both consist of lower-case letters, digits, ``.``, ``_`` and ``-``: ``xeon-platinum-8488c-1f3a9c2e`` on
    ``x86_64-avx512``, ``nvidia-h200`` on ``sm90``, ``neoverse-v2-77ab01c3`` on ``aarch64-sve256``.

    Raises:
        ValueError: another character.

    """

    exact: str
    architecture: str

    def __post_init__(self) -> None:
        for key in (self.exact, self.architecture):
            if not _KEY.fullmatch(key) or len(key) > 80:
                raise ValueError(f"not a device key: {key!r}")

    def nearness(self, other: DeviceKey) -> Nearness:
        """How near *other* is to this device."""
        if self == other:
            return Nearness.EXACT
        return Nearness.ARCHITECTURE if self.architecture == other.architecture else Nearness.ANY

    @classmethod
    def of(cls, device: torch.device) -> DeviceKey:
        """The key of a device of this machine."""
        import torch

        if device.type == "cpu":
            name, flags = _cpu()
            digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
            return cls(f"{slug(name)}-{digest}", _cpu_architecture(torch.backends.cpu.get_cpu_capability()))
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            rocm = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
            architecture = slug(rocm.split(":")[0]) if rocm else f"sm{properties.major}{properties.minor}"
            return cls(slug(properties.name), architecture)
        return cls(slug(f"{device.type}-{platform.processor() or platform.machine()}"), slug(device.type))

    def __str__(self) -> str:
        return f"{self.exact} ({self.architecture})"


def slug(text: str) -> str:
    """*text* in the characters of a device key; trademark signs dropped."""
    plain = re.sub(r"\((r|tm|c)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:60] or "unknown"


def _cpu() -> tuple[str, list[str]]:
    """Name of the CPU and its vector instruction sets, from the operating system."""
    info: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip().lower(), value.strip())
    name = info.get("model name") or _arm_name(info) or platform.processor() or platform.machine()
    # A virtual machine may hide the model behind a generic name: family and model number tell more of them apart.
    numbers = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    flags = (info.get("flags") or info.get("features") or "").split()
    return "-".join([name, *numbers]), sorted({flag for flag in flags if _VECTOR_FLAGS.fullmatch(flag)})


def _arm_name(info: dict[str, str]) -> str:
    parts = [info.get(key, "") for key in ("cpu implementer", "cpu part", "cpu variant")]
    return f"arm-{'-'.join(filter(None, parts))}" if any(parts) else ""


def _cpu_architecture(capability: str) -> str:
    """``x86_64-avx512``: the machine, and the vector unit that torch dispatches to."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    vector = slug(capability)
    return slug(machine) if vector in ("default", "no-avx", "unknown") else f"{slug(machine)}-{vector}"


def bits_condition(device: torch.device, batch: int | None) -> str | None:
    """What must agree, beside the device, before equal inputs may be expected to give equal bits; None: nothing helps.

    A CPU computes the same bits for the same build, number of threads and batch size.  CUDA does only with
    ``torch.use_deterministic_algorithms(True)``.
    """
    import torch

    build = f"torch {torch.__version__}, batch {batch or 'default'}"
    if device.type == "cpu":
        return f"{build}, {torch.get_num_threads()} threads"
    if device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return f"{build}, cuDNN {cudnn}"
    return None


def versions() -> dict[str, str]:
    """Release of every package that binds a baseline, without the build suffix: ``{"torch": "2.13.0", ...}``.

    ``2.13.0+cpu`` and ``2.13.0+cu130`` are one release on two kinds of device; ``bits_condition`` tells builds apart.
    """
    return {name: _version(name).partition("+")[0] for name in BINDING_PACKAGES}


def facts() -> dict[str, str]:
    """What does not bind, but explains: Python, platform and the packages that prepare the data."""
    named = {name: found for name in OTHER_PACKAGES if (found := _version(name)) != "not installed"}
    return {"python": platform.python_version(), "system": platform.system().lower(), "cpu": _cpu()[0], **named}


@functools.cache
def sources() -> str:
    """SHA-256 (hex) over the source files of this harness and of ModelOpt as they are imported.

    A checkout that people edit keeps its release; its numbers do not keep.
    """
    digest = hashlib.sha256()
    for package in ("harness", "modelopt"):
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec and spec.submodule_search_locations) or ()):
            for path in sorted(p for p in root.rglob("*") if p.suffix in _SOURCES):
                digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def digest(value: Any) -> str:
    """SHA-256 (hex) of *value*'s canonical JSON: sorted keys, no spaces, no NaN.

    Raises:
        ValueError, TypeError: not JSON.

    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids in their order."""
    return digest(list(ids))


def set_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids whatever their order."""
    return digest(sorted(ids))


@dataclass(frozen=True)
class Provenance:
    """What every number of one record was measured on.

    ``model_revision``, ``recipe_hash`` (after $import resolution) and ``calibration_hash`` are SHA-256 in hex;
    ``calibration_size`` counts pairs; ``attention`` names ModelOpt's attention class; ``versions`` come from
    ``versions()`` and ``facts``, which explain and never bind, from ``facts()``: those of this process unless given;
    ``bits`` comes from ``bits_condition``.
    """

    model: str
    model_revision: str
    recipe: str
    recipe_hash: str
    calibration_hash: str
    calibration_size: int
    attention: str
    device: DeviceKey
    bits: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    facts: dict[str, str] = field(default_factory=facts)


@dataclass(frozen=True)
class Mismatch:
    """One thing that a baseline belongs to and this run does not have (``fresh`` empty: ``stored`` says it all)."""

    what: str
    stored: str
    fresh: str

    def __str__(self) -> str:
        found = f"; this run has {self.fresh}" if self.fresh else ""
        return f"this baseline belongs to {self.what} {self.stored}{found}"


def short(value: str) -> str:
    """A hash as messages show it: its first 12 digits."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{20,}", value) else value


def mismatches(stored: Provenance, fresh: Provenance) -> tuple[Mismatch, ...]:
    """Where two provenances bind to different things; the device, ``bits`` and ``facts`` are not among them."""
    pairs = [
        ("model", stored.model, fresh.model),
        ("model revision", stored.model_revision, fresh.model_revision),
        ("recipe", stored.recipe, fresh.recipe),
        ("recipe hash", stored.recipe_hash, fresh.recipe_hash),
        ("calibration data", stored.calibration_hash, fresh.calibration_hash),
        ("calibration size", f"{stored.calibration_size:,} pairs", f"{fresh.calibration_size:,} pairs"),
        ("attention class", stored.attention, fresh.attention),
    ]
    for package in sorted({*stored.versions, *fresh.versions}):
        was, now = (p.versions.get(package, "not recorded") for p in (stored, fresh))
        pairs.append((package, was, now))
    return tuple(Mismatch(what, short(a), short(b)) for what, a, b in pairs if a != b)


def same_bits(stored: Provenance, fresh: Provenance) -> bool:
    """Whether equal bits may be expected of two measurements that otherwise belong together."""
    return stored.device == fresh.device and stored.bits is not None and stored.bits == fresh.bits


def changed_facts(stored: Provenance, fresh: Provenance) -> tuple[str, ...]:
    """``pillow 11.0 to 12.0``: unbound facts that are not what they were."""
    names = sorted({*stored.facts, *fresh.facts})
    was, now = ({n: p.facts.get(n, "none") for n in names} for p in (stored, fresh))
    return tuple(f"{name} {was[name]} to {now[name]}" for name in names if was[name] != now[name])
