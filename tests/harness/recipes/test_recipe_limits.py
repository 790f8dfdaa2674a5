"""Values that ModelOpt's schema accepts and ModelOpt cannot run are refused where the recipe is
loaded.

Each test also does what the message says: the corrected recipe loads.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.recipes import algorithms
from harness.recipes.loading import Recipe, load

HEAD = "metadata: {recipe_type: ptq}\nquantize:\n"
ENTRY = "  - {quantizer_name: '*weight_quantizer', cfg: {num_bits: 8}}\n"


def loaded(folder: Path, entry: str = ENTRY, algorithm: str | None = "max") -> Recipe:
    """The recipe of one entry and an algorithm (None: the key is not written)."""
    path = folder / "r.yaml"
    key = "" if algorithm is None else f"  algorithm: {algorithm}\n"
    path.write_text(f"{HEAD}{key}  quant_cfg:\n{entry}")
    return load(str(path))


def refused(folder: Path, entry: str = ENTRY, algorithm: str | None = "max") -> str:
    """The one line with which that recipe is refused, which begins with its file."""
    with pytest.raises(UsageError) as error:
        loaded(folder, entry, algorithm)
    line = str(error.value)
    assert line.startswith(str(folder / "r.yaml"))
    return line.removeprefix(str(folder / "r.yaml"))


def entry(cfg: str) -> str:
    """An entry that gives these attributes to every weight."""
    return f"  - {{quantizer_name: '*weight_quantizer', cfg: {{{cfg}}}}}\n"


# -- attributes ------------------------------------------------------------------------------------

NVFP4 = "num_bits: e2m1, block_sizes: {-1: 16, type: dynamic, scale_bits: e4m3}"


@pytest.mark.parametrize(
    ("cfg", "pattern", "correct"),
    [
        ("num_bits: '8'", "num_bits is the text '8'.*Write 8 without quotes", "num_bits: 8"),
        ("num_bits: fp8", "num_bits is the text 'fp8'.*for FP8", "num_bits: e4m3"),
        ("num_bits: 17", "num_bits is 17, integers have 2 to 16 bits. Write 8", "num_bits: 8"),
        ("num_bits: 1", "num_bits is 1, integers have 2 to 16", "num_bits: 2"),
        ("num_bits: 70", "num_bits is 70, integers", "num_bits: 16"),
        ("num_bits: e2m1", "num_bits is e2m1 without blocks.*NVFP4", NVFP4),
        (
            "num_bits: e2m1, block_sizes: {-1: 16}",
            "e2m1 without blocks that have a scale of e4m3",
            NVFP4,
        ),
        ("num_bits: 8, axis: []", "axis is an empty list.*axis: 0", "num_bits: 8, axis: 0"),
        ("num_bits: 8, axis: 99", "axis is 99, and no tensor", "num_bits: 8, axis: null"),
        ("num_bits: 8, axis: [0, 7]", "axis is 7, and no tensor", "num_bits: 8, axis: [0, -2]"),
        ("num_bits: 8, axis: -9", "axis is -9, and no tensor", "num_bits: 8, axis: 0"),
        (
            "num_bits: 4, block_sizes: {-1: 0}",
            "blocks of 0, expected 1 to 4096",
            "block_sizes: {-1: 32}",
        ),
        ("num_bits: 4, block_sizes: {-1: -16}", "blocks of -16, expected", "block_sizes: {-1: 32}"),
        (
            "num_bits: 4, block_sizes: {-1: 4611686018427387904}",
            "blocks of 4611686018427387904",
            "num_bits: 4",
        ),
        (
            "num_bits: 4, block_sizes: {99: 16}",
            "names dimension 99",
            "num_bits: 4, block_sizes: {-1: 32}",
        ),
        (
            "num_bits: 4, block_sizes: {}",
            "names no dimension",
            "num_bits: 4, block_sizes: {-1: 32}",
        ),
        (
            "num_bits: 4, block_sizes: {type: static}",
            "names no dimension",
            "num_bits: 4, block_sizes: {-1: 32}",
        ),
        (
            "num_bits: 4, block_sizes: {-1: 16, -2: null}",
            "mixes null and numbers",
            "block_sizes: {-1: 16}",
        ),
        (
            "num_bits: 4, block_sizes: {-1: 16, type: on_demand}",
            "has the type 'on_demand'",
            "num_bits: 4",
        ),
        (
            "num_bits: 4, block_sizes: {-1: '16'}",
            "block_sizes is refused: its keys or values",
            "block_sizes: {-1: 16}",
        ),
        (
            "num_bits: 4, block_sizes: {-1: 16, type: dynamic}",
            "NVFP4 and MX only, not for INT4",
            NVFP4,
        ),
        ("num_bits: 4, block_sizes: {-1: 16, scale_bits: 5}", "scale_bits is 5", NVFP4),
        (
            "num_bits: 4, block_sizes: {-1: 16, scale_bits: 8, scale_block_sizes: 7}",
            "scale_block_sizes is 7, expected a mapping",
            "num_bits: 4, block_sizes: {-1: 16, scale_bits: 8, scale_block_sizes: {-1: 256}}",
        ),
        (
            "num_bits: 4, block_sizes: {-1: 16, scale_bits: 8, scale_block_sizes: {-1: 0}}",
            "scale_block_sizes asks for blocks of 0",
            "num_bits: 4, block_sizes: {-1: 16, scale_bits: 8, scale_block_sizes: {-1: 256}}",
        ),
        ("num_bits: 8, rotate: true", "rotate turns the tensor.*Remove rotate", "num_bits: 8"),
        (
            "num_bits: 8, rotate: {enable: true}",
            "rotate turns the tensor",
            "num_bits: 8, rotate: {enable: false}",
        ),
        (
            "num_bits: 8, bias: {-1: null, type: dynamic}",
            "bias shifts the range.*Remove bias",
            "num_bits: 8",
        ),
        ("num_bits: 8, backend: mine", "backend is 'mine'.*Remove backend", "num_bits: 8"),
        ("num_bits: 8, fake_quant: false", "fake_quant is false.*Remove fake_quant", "num_bits: 8"),
        (
            "num_bits: 8, calibrator: histogram",
            "calibrator is histogram.*calibrator: max",
            "calibrator: max",
        ),
        (
            "num_bits: 8, constant_amax: .inf",
            "constant_amax is inf.*65504",
            "num_bits: 8, constant_amax: 65504",
        ),
        (
            "num_bits: 8, constant_amax: 1.0e-300",
            "constant_amax is 1e-300",
            "num_bits: 8, constant_amax: 0.001",
        ),
        (
            "num_bits: 8, constant_amax: 1.0e+39",
            r"constant_amax is 1e\+39",
            "num_bits: 8, constant_amax: 448.0",
        ),
        (
            "num_bits: 8, constant_amax: 4.0, type: dynamic",
            "constant_amax fixes the range",
            "constant_amax: 4.0",
        ),
        (
            "use_constant_amax: true, type: dynamic",
            "use_constant_amax fixes the range",
            "use_constant_amax: true",
        ),
    ],
)
def test_attribute_that_cannot_run(tmp_path: Path, cfg: str, pattern: str, correct: str) -> None:
    """The line of the entry is named with the value and a fix, and the fix loads."""
    line = refused(tmp_path, entry(cfg))

    assert re.match(rf":5: .*{pattern}", line), line
    assert loaded(tmp_path, entry(correct)).entries[0].cfg is not None


def test_long_sequence_is_refused(tmp_path: Path) -> None:
    """A list of attributes makes as many quantizers at every place, so its length is bounded."""
    several = ", ".join(["{num_bits: 8}"] * 5)

    assert "cfg lists 5 quantizers for one place" in refused(
        tmp_path, f"  - {{quantizer_name: '*', cfg: [{several}]}}\n"
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [("nn.linear", "nn.Linear"), ("Linear", "nn.Linear"), ("CLIPAtention", "CLIPAttention")],
)
def test_parent_class_that_is_not_registered(tmp_path: Path, name: str, meant: str) -> None:
    """A class that ModelOpt would raise for is reported with the one that was meant, which loads."""
    text = "  - {{quantizer_name: '*weight_quantizer', parent_class: {}, cfg: {{num_bits: 8}}}}\n"

    assert f"parent_class is {name!r}" in (line := refused(tmp_path, text.format(name)))
    assert f"Did you mean {meant!r}?" in line
    assert loaded(tmp_path, text.format(meant)).entries[0].parent_class == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{quantizer_name: '*', Enable: false}",
            "unknown attribute 'Enable'. Did you mean 'enable'?",
        ),
        (
            "{quantizer_name: '*', enable: false, _x: 1}",
            "unknown attribute '_x'. Known attributes: quantizer_name",
        ),
        ("{quantizer_name: '*', enable: false, '': 1}", "unknown attribute ''. Known attributes"),
        ("{quantizer_name: '*', enable: false, '3': 1}", "unknown attribute '3'. Known attributes"),
        (
            "{quantizer_name: '*', num_bits: 8, enable: true}",
            "'num_bits'. Write it under cfg: {num_bits: ...}.",
        ),
        (
            "{quantizer_name: '*', cfg: {Num_bits: 8}}",
            "unknown attribute 'cfg.Num_bits'. Did you mean 'num_bits'?",
        ),
        (
            "{quantizer_name: '*', cfg: {parent_class: x, num_bits: 8}}",
            "Write parent_class next to cfg, not in it.",
        ),
        (
            "{quantizer_name: '*', cfg: {num_bits: 8, '': 1}}",
            "unknown attribute 'cfg.'. Known attributes",
        ),
        (
            "{quantizer_name: '*', cfg: [{num_bits: 4}, {_: 1}]}",
            "unknown attribute 'cfg.1._'. Known attributes",
        ),
        (
            "{'*weight_quantizer': {Num_bits: 8}}",
            "unknown attribute 'cfg.Num_bits'. Did you mean 'num_bits'?",
        ),
    ],
)
def test_unknown_key_of_an_entry(tmp_path: Path, text: str, message: str) -> None:
    """However odd a key is, the message names it and the key that was meant, or all that there
    are.
    """
    assert message in refused(tmp_path, f"  - {text}\n")


# -- algorithms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "methods"),
    [
        (None, ("max",)),
        ("null", ()),
        ("[]", ()),
        ("[null]", ()),
        ("{method: null}", ()),
        ("max", ("max",)),
        ("[max]", ("max",)),
        ("{method: max}", ("max",)),
        ("[{method: smoothquant, alpha: 0.5}, mse]", ("smoothquant", "mse")),
    ],
)
def test_algorithm_in_each_form(
    tmp_path: Path, algorithm: str | None, methods: tuple[str, ...]
) -> None:
    """A name, a mapping, a list of them and no key at all mean what ModelOpt takes them to mean."""
    assert algorithms.methods(loaded(tmp_path, algorithm=algorithm).algorithm) == methods


@pytest.mark.parametrize(
    ("algorithm", "pattern", "correct"),
    [
        ("{method: max, Alpha: 1}", "unknown attribute 'Alpha'. Known attributes: method", "max"),
        (
            "{method: smoothquant, Alpha: 1}",
            "Did you mean 'alpha'",
            "{method: smoothquant, alpha: 1}",
        ),
        ("{method: max, '': 1}", "unknown attribute ''", "max"),
        ("{method: max, 3: 1}", "the key 3 is not a name", "max"),
        ("{}", "the key 'method' is missing", "{method: max}"),
        (
            "[max, max, max, max, max, max, max, max, max]",
            "algorithm lists 9 methods. Write at most 8",
            "[max, max]",
        ),
        (
            "{method: mse, step_size: 1.0e-9}",
            "step_size is 1e-09.*Write 0.00751",
            "{method: mse, step_size: 0.00752}",
        ),
        ("{method: mse, step_size: null}", "step_size is null.*Remove step_size", "mse"),
        (
            "{method: mse, stop_multiplier: .inf}",
            "stop_multiplier is inf",
            "{method: mse, stop_multiplier: 4}",
        ),
        (
            "{method: mse, start_multiplier: 5}",
            "start_multiplier is 5, above",
            "{method: mse, start_multiplier: 3}",
        ),
        ("{method: local_hessian, step_size: 1.0e-9}", "step_size is 1e-09", "local_hessian"),
        (
            "{method: awq_lite, alpha_step: 1.0e-9}",
            "alpha_step is 1e-09.*0.002005",
            "{method: awq_lite, alpha_step: 0.002005}",
        ),
        ("{method: awq_clip, shrink_step: 1.0e-9}", "shrink_step is 1e-09", "awq_clip"),
        ("{method: awq_full, alpha_step: 1.0e-9}", "alpha_step is 1e-09", "awq_full"),
        ("{method: awq_clip, max_co_batch_size: 0}", "max_co_batch_size is 0", "awq_clip"),
        ("{method: awq_clip, max_tokens_per_batch: -5}", "max_tokens_per_batch is -5", "awq_clip"),
        (
            "{method: awq_clip, max_tokens_per_batch: 1000000}",
            "is 1,024,000,000.*at most 262,144",
            "{method: awq_clip, max_tokens_per_batch: 256}",
        ),
        (
            "{method: svdquant, lowrank: 1000000000}",
            "lowrank is 1,000,000,000, expected 1 to 1,024",
            "svdquant",
        ),
        ("{method: svdquant, lowrank: 0}", "lowrank is 0", "{method: svdquant, lowrank: 32}"),
        ("{method: gptq, block_size: 0}", "block_size is 0", "{method: gptq, block_size: 128}"),
        ("{method: gptq, block_size: -1}", "block_size is -1", "{method: gptq, block_size: 128}"),
        ("{method: gptq, perc_damp: null}", "perc_damp is null", "gptq"),
        (
            "{method: max, shared_states: {weight_global_amax: {patterns: ['(a+)+b']}}}",
            "can take for ever",
            "{method: max, shared_states: {weight_global_amax: {patterns: ['.*[qkv]_proj']}}}",
        ),
        (
            "{method: lsq, scale_algorithm: {method: mse, step_size: 1.0e-9}}",
            "scale_algorithm: step_size is 1e-09",
            "{method: lsq, scale_algorithm: {method: mse}}",
        ),
    ],
)
def test_setting_that_cannot_run(
    tmp_path: Path, algorithm: str, pattern: str, correct: str
) -> None:
    """A setting that crashes, hangs or fills memory is reported with its value and a fix, and the fix
    loads.
    """
    line = refused(tmp_path, algorithm=algorithm)

    assert re.search(pattern, line), line
    assert loaded(tmp_path, algorithm=correct).algorithm is not None
