"""What a measurement depends on besides model and data: releases, sources, device."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import platform
import re
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from harness.digests import of_text, slug

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


#: Instruction sets that decide which kernels run, so which bits come out.  Other CPU flags
#: (mitigations, virtual machines) come and go with the kernel of the operating system and are left
#: out.
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
    """Where a measurement ran: the exact device (CPU model and its vector units, or GPU name) and
    its architecture.

    Both consist of lower-case letters, digits, ``.``, ``_`` and ``-``:
    ``xeon-platinum-8488c-1f3a9c2e`` on ``x86_64-avx512``, ``nvidia-h200`` on ``sm90``,
    ``neoverse-v2-77ab01c3`` on ``aarch64-sve256``.

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
        """Return how near *other* is to this device."""
        if self == other:
            return Nearness.EXACT
        return Nearness.ARCHITECTURE if self.architecture == other.architecture else Nearness.ANY

    @classmethod
    def of(cls, device: torch.device) -> DeviceKey:
        """The key of a device of this machine."""
        import torch

        if device.type == "cpu":
            name, flags = _cpu()
            digest = of_text(" ".join(flags))[:8]
            return cls(
                f"{slug(name)}-{digest}", _cpu_architecture(torch.backends.cpu.get_cpu_capability())
            )
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            rocm = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
            architecture = (
                slug(rocm.split(":")[0]) if rocm else f"sm{properties.major}{properties.minor}"
            )
            return cls(slug(properties.name), architecture)
        return cls(
            slug(f"{device.type}-{platform.processor() or platform.machine()}"), slug(device.type)
        )

    def __str__(self) -> str:
        return f"{self.exact} ({self.architecture})"


def _cpu() -> tuple[str, list[str]]:
    """Name of the CPU and its vector instruction sets, from the operating system."""
    info: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip().lower(), value.strip())
    name = info.get("model name") or _arm_name(info) or platform.processor() or platform.machine()
    # A virtual machine may hide the model behind a generic name: family and model number say more
    # of them apart.
    numbers = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    flags = (info.get("flags") or info.get("features") or "").split()
    return "-".join([name, *numbers]), sorted(
        {flag for flag in flags if _VECTOR_FLAGS.fullmatch(flag)}
    )


def _arm_name(info: dict[str, str]) -> str:
    parts = [info.get(key, "") for key in ("cpu implementer", "cpu part", "cpu variant")]
    return f"arm-{'-'.join(filter(None, parts))}" if any(parts) else ""


def _cpu_architecture(capability: str) -> str:
    """``x86_64-avx512``: the machine, and the vector unit that torch dispatches to."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    vector = slug(capability)
    return (
        slug(machine) if vector in ("default", "no-avx", "unknown") else f"{slug(machine)}-{vector}"
    )


def bits_condition(device: torch.device, batch: int | None) -> str | None:
    """Return what must agree, besides the device, for equal inputs to give equal bits; None if they
    never do.

    A CPU computes the same bits for the same build, number of threads and batch size.  CUDA does
    only with ``torch.use_deterministic_algorithms(True)``.
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
    """Release of every package that binds a baseline, without the build suffix: ``{"torch":
    "2.13.0", ...}``.

    ``2.13.0+cpu`` and ``2.13.0+cu130`` are one release on two kinds of device; ``bits_condition``
    distinguishes builds.
    """
    return {name: _version(name).partition("+")[0] for name in BINDING_PACKAGES}


def facts() -> dict[str, str]:
    """Return versions that bind no baseline but explain differences: Python, platform and the
    packages that prepare the data.
    """
    named = {
        name: installed
        for name in OTHER_PACKAGES
        if (installed := _version(name)) != "not installed"
    }
    return {
        "python": platform.python_version(),
        "system": platform.system().lower(),
        "cpu": _cpu()[0],
        **named,
    }


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


def conditions(device: torch.device, batch_size: int) -> dict[str, str]:
    """Return what embeddings depend on in the process that computes them: releases, sources, device
    and its settings.
    """
    return {
        **versions(),
        **facts(),
        "sources of harness and ModelOpt": sources(),
        "device": str(DeviceKey.of(device)),
        "bits condition": bits_condition(device, batch_size) or "none",
        "batch size": str(batch_size),
    }
