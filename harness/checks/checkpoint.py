"""Save a quantized model and restore it in a process that never saw it.

Two ways lead there: Hugging Face's ``save_pretrained`` under ModelOpt's checkpointing hook, and
``mto.save``.  A restored model must compute the same bits and have the same quantizer map; what a
careless load loses is found by ``diagnose`` and reported by name (S5).
"""

from __future__ import annotations

import atexit
import copy
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn

from harness.checks.registry import NotJudged, check
from harness.digests import of_bytes
from harness.models import composites, families, openclip
from harness.quantization import maps
from harness.quantization.maps import QuantizerMap

if TYPE_CHECKING:
    from harness.gate.case import Case

Form = Literal["pretrained", "mto"]
FORMS: tuple[Form, ...] = ("pretrained", "mto")


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is read back: the right way by default."""

    attention: str = "diffusers"
    attn_implementation: str = "sdpa"
    hook: bool = True


@dataclass(frozen=True)
class Restored:
    """What a fresh process saw: the outputs of one forward, the quantizer map as plain records, or
    the error.

    ``weights`` holds the SHA-256 of every parameter: quantization rounds a small change of a weight
    away.
    """

    outputs: dict[str, Tensor]
    quantizers: QuantizerMap
    error: str = ""
    weights: dict[str, str] = field(default_factory=dict)


def save(model: nn.Module, folder: Path, form: Form) -> None:
    """Write *model* (quantized) into *folder* in one of FORMS."""
    import modelopt.torch.opt as mto

    from harness.models import references
    from harness.quantization.context import quiet

    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), references.quiet_transformers():
        if form == "mto":
            mto.save(model, folder / "model.pth")
            _save_configuration(model, folder)
        else:
            mto.enable_huggingface_checkpointing()
            model.save_pretrained(folder)  # type: ignore[operator]


def restore(
    folder: Path, form: Form, how: Loading, dtype: torch.dtype = torch.float16
) -> nn.Module:
    """Read a quantized model back, on the CPU.  In a process of its own: hook and registry are
    global.
    """
    import modelopt.torch.opt as mto

    from harness.models import references
    from harness.quantization.attention import attention_registered
    from harness.quantization.context import quiet

    config: Any
    cls: Any
    if openclip.is_checkpoint(folder):
        config, cls = openclip.configuration(folder)["model_cfg"], openclip.build
    else:
        config, cls = _configuration(folder)
        config._attn_implementation = how.attn_implementation
    build: Callable[[], nn.Module] = partial(cls, config)
    with quiet(), references.quiet_transformers(), ExitStack() as hooks:
        if form == "pretrained" and how.hook:
            mto.enable_huggingface_checkpointing()
            hooks.enter_context(restored_once())
        with torch.device("meta"):
            blank = build()
        with attention_registered(blank, how.attention):
            if form == "mto":
                model: nn.Module = mto.restore(build().to(dtype), folder / "model.pth")
            else:
                model = cls.from_pretrained(folder, config=config, dtype=dtype)
    return model.eval()


@contextmanager
def restored_once() -> Iterator[None]:
    """Within the block ModelOpt restores its state into the loaded model only, and into no module
    inside it.

    Its hook on ``_from_config`` (ModelOpt 0.47) finds the same folder in the configuration that a
    ``CLIPTextModelWithProjection`` hands on to its ``CLIPTextModel`` (transformers 5), where
    modules have other names: an ApplyModeError for every such checkpoint.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel._modelopt_cache["_from_config"]
    with mock.patch.object(PreTrainedModel, "_from_config", classmethod(original.__func__)):
        yield


def forms_of(model: nn.Module) -> tuple[Form, ...]:
    """The ways in which *model* can be saved: open_clip's classes have no ``save_pretrained``."""
    return FORMS if hasattr(model, "save_pretrained") else ("mto",)


def _save_configuration(model: Any, folder: Path) -> None:
    """Save what ``restore`` needs to build the model again, besides its weights."""
    if hasattr(model, "open_clip_config"):
        (folder / openclip.CONFIG).write_text(json.dumps({"model_cfg": model.open_clip_config}))
        return
    config = copy.deepcopy(model.config)
    # ModelOpt's converted classes carry a prefix in their name.
    config.architectures = [type(model).__name__.removeprefix("Quant")]
    config.save_pretrained(folder)


def _configuration(folder: Path) -> tuple[object, object]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return config, composites.model_class(config.architectures[0].removeprefix("Quant"))


def observe(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], QuantizerMap]:
    """Return the embeddings of one forward, by tower, and the quantizer map with the calls of that
    forward.
    """
    embeddings: dict[str, Tensor] = {}
    quantizers = maps.quantizer_map(model, lambda m: embeddings.update(families.forward(m, inputs)))
    return embeddings, quantizers


def digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of each parameter, by name."""
    flat = {
        name: p.detach().cpu().reshape(-1).view(torch.uint8) for name, p in model.named_parameters()
    }
    return {name: of_bytes(bytes_.numpy().tobytes()) for name, bytes_ in flat.items()}


def _restore_and_run(
    folder: Path, form: Form, how: Loading, inputs: dict[str, Tensor], threads: int
) -> Restored:
    torch.set_num_threads(threads)
    try:
        model = restore(folder, form, how)
    except Exception as error:
        return Restored({}, (), f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000])
    return Restored(*observe(model, inputs), weights=digests(model))


_pool: multiprocessing.context.ForkServerContext | None = None


def warm() -> multiprocessing.context.ForkServerContext:
    """Start the server from which fresh processes are forked, so that its ten seconds of imports
    run during other work.
    """
    global _pool
    if _pool is None:
        _pool = multiprocessing.get_context("forkserver")
        _pool.set_forkserver_preload(["harness.checks.checkpoint_preload"])
        process = _pool.Process(target=int)
        process.start()
        atexit.register(process.join)
    return _pool


def restore_in_fresh_process(
    folder: Path, form: Form, inputs: dict[str, Tensor], how: Loading | None = None
) -> Restored:
    """Restore *folder* in a new process that has imported the libraries and nothing else, and run
    *inputs* there.
    """
    with ProcessPoolExecutor(1, mp_context=warm()) as pool:
        return pool.submit(
            _restore_and_run, folder, form, how or Loading(), inputs, torch.get_num_threads()
        ).result()


def diagnose(folder: Path, restored: Restored, how: Loading, expected: int) -> str:
    """Return why *restored* differs from what was saved, in a sentence that a person can act on;
    empty if nothing differs.

    Args:
        folder: the checkpoint.
        restored: what the fresh process saw.
        how: the way it was loaded.
        expected: enabled quantizers in the model that was saved.
    """
    if "ApplyModeError" in restored.error or "quantizer state" in restored.error:
        return (
            f"{folder.name}: restored with --attention {how.attention}, but it was saved with "
            f"another attention "
            f"class ({restored.error[:200]}). Register the class it was quantized with before "
            f"loading."
        )
    if restored.error:
        return f"{folder.name}: does not load: {restored.error}"
    enabled = [q for q in restored.quantizers if q.enabled]
    if not restored.quantizers:
        return (
            f"{folder.name}: loaded without a single quantizer, {expected} expected. The load went "
            f"round ModelOpt's "
            "hook: call mto.enable_huggingface_checkpointing() before from_pretrained()."
        )
    idle = [q for q in enabled if q.calls == 0]
    if idle:
        return (
            f"{folder.name}: {len(idle)} of {len(enabled)} enabled quantizers never run. It was "
            f"loaded with "
            f'attn_implementation="{how.attn_implementation}"; pass attn_implementation="sdpa".'
        )
    if len(enabled) != expected:
        return (
            f"{folder.name}: {len(enabled)} quantizers are enabled after loading, {expected} were "
            f"saved."
        )
    return ""


def problems(
    folder: Path,
    form: Form,
    how: Loading,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    saved: QuantizerMap,
    weights: dict[str, str] | None = None,
) -> list[str]:
    """Restore *folder* in a fresh process and compare with what was saved.

    Args:
        folder: where it was saved.
        form: how.
        how: how to load it.
        inputs: of one forward.
        expected: its outputs, compared by bits.
        saved: the quantizer map, compared with its ranges.
        weights: from :func:`digests`, compared by name; None leaves them out.
    """
    restored = restore_in_fresh_process(folder, form, inputs, how)
    reason = diagnose(folder, restored, how, sum(q.enabled for q in saved))
    if reason:
        return [reason]
    problems = maps.diff(saved, restored.quantizers, amax_tolerance=0.0)
    for name, value in expected.items():
        got = restored.outputs.get(name)
        if got is None or not torch.equal(got, value):
            differing = (
                "absent"
                if got is None
                else f"{int((got != value).sum())} of {value.numel()} elements differ"
            )
            problems.append(
                f"{folder.name}: output {name} is not bit-equal after restoring: {differing}."
            )
    changed = [
        name for name, digest in (weights or {}).items() if restored.weights.get(name) != digest
    ]
    if changed:
        problems.append(
            f"{folder.name}: {len(changed)} weights are not bit-equal after restoring, first "
            f"{changed[0]}."
        )
    return problems


def lost(case: Case, model: nn.Module, form: Form, folder: Path) -> list[str]:
    """Save *model*, made from the case's reference, into *folder*, restore it, and return what
    differs.
    """
    inputs = {name: tensor.cpu() for name, tensor in case.quantized.inputs.items()}
    model = model.to("cpu")
    try:
        save(model, folder, form)
        expected, before = observe(model, inputs)
        weights = digests(model)
    finally:
        model.to(case.setting.device)
    how = Loading(attention=case.setting.options.attention)
    return problems(folder, form, how, inputs, expected, before, weights)


@check("checkpoint", form=FORMS)
def restored_model_is_the_saved_one(case: Case, form: Form, folder: Path) -> list[str]:
    """Return what differs after the case's model was saved into *folder* and restored in a fresh
    process.
    """
    model = case.quantized.model
    if form not in forms_of(model):
        raise NotJudged(f"{type(model).__name__} has no save_{form}")
    return lost(case, model, form, folder / form)
