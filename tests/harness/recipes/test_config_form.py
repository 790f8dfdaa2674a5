"""Lists and dicts of a ``quant_cfg`` say the same, or the gate says that they cannot."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import UsageError
from harness.recipes import config_form, finding, loading
from harness.recipes.installed import modelopt_config

E4M3: dict[str, Any] = {"num_bits": (4, 3), "axis": None}
W4A8: list[dict[str, Any]] = [{"num_bits": 4, "block_sizes": {-1: 128}}, E4M3]


def listed(*entries: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What entries say, whatever their form; attributes with ModelOpt's defaults filled in."""
    attributes = modelopt_config().QuantizerAttributeConfig

    def whole(cfg: Any) -> Any:
        if isinstance(cfg, (list, tuple)):
            return [whole(entry) for entry in cfg]
        return cfg and {k: v for k, v in attributes(**cfg).model_dump().items() if k != "enable"}

    filled = [
        e.model_dump(exclude_unset=True) if hasattr(e, "model_dump") else dict(e) for e in entries
    ]
    return [
        (e["quantizer_name"], e.get("parent_class"), e.get("enable", True), whole(e.get("cfg")))
        for e in filled
    ]


@pytest.mark.parametrize(
    "name", [n for n in (*finding.DEFAULT, *finding.MORE) if n not in finding.SEARCHES]
)
def test_a_recipe_of_this_package_can_be_written_as_a_dict(name: str) -> None:
    """ModelOpt itself, which still reads the old form, gets from the dict the entries that the
    recipe's list has.
    """
    if not config_form.takes_lists():
        pytest.skip("this ModelOpt has no list form to compare with")
    normalize = modelopt_config().normalize_quant_cfg_list
    every: list[dict[str, Any]] = [
        dict(e) for e in normalize(loading.load(name).quant_cfg["quant_cfg"])
    ]
    # A sequence under a class (W4A8) is what only the old releases read in this form.
    entries = [e for e in every if not (e.get("parent_class") and isinstance(e.get("cfg"), list))]

    with pytest.warns(DeprecationWarning, match="legacy dict"):
        read = normalize(config_form.as_dict(entries, name))

    assert listed(*read) == listed(*entries)


def test_what_is_off_keeps_its_attributes_and_a_sequence_its_parts() -> None:
    """On or off stands next to the attributes, for each quantizer of a sequence."""
    entries: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": W4A8},
        {
            "quantizer_name": "*input_quantizer",
            "parent_class": "nn.Linear",
            "cfg": E4M3,
            "enable": False,
        },
        {"quantizer_name": "*output_quantizer", "parent_class": "nn.Linear", "cfg": E4M3},
    ]

    assert config_form.as_dict(entries, "here") == {
        "*": {"enable": False},
        "*weight_quantizer": [W4A8[0] | {"enable": True}, E4M3 | {"enable": True}],
        "nn.Linear": {
            "*input_quantizer": E4M3 | {"enable": False},
            "*output_quantizer": E4M3 | {"enable": True},
        },
    }


@pytest.mark.parametrize(
    "entries",
    [
        [("*", None), ("*weight*", None), ("*", None)],
        [("*weight*", "nn.Linear"), ("*", None), ("*input*", "nn.Linear")],
        [("*weight*", "nn.Linear"), ("*weight*", "nn.Linear")],
    ],
    ids=["a pattern twice", "a class around another pattern", "a pattern of a class twice"],
)
def test_what_a_dict_cannot_say_is_refused(entries: list[tuple[str, str | None]]) -> None:
    """A dict holds each key once, at one place: a list that needs it twice is a usage error that
    names it.
    """
    repeated = [
        {"quantizer_name": p, "enable": False} | ({"parent_class": c} if c else {})
        for p, c in entries
    ]

    with pytest.raises(
        UsageError, match=r"^my\.yaml: .* as a dict, which cannot come back to .* 0\.44 or newer\.$"
    ):
        config_form.as_dict(repeated, "my.yaml")


def test_a_line_of_the_dict_form_is_read_as_modelopt_reads_it() -> None:
    """Both readings of the dict form, the gate's for old releases and ModelOpt's own, give the same
    entries.
    """
    if not config_form.takes_lists():
        pytest.skip("this ModelOpt has no list form to compare with")
    lines: list[dict[str, Any]] = [
        {"default": {"enable": False}},
        {"*weight_quantizer": E4M3},
        {"*weight_quantizer": W4A8},
        {"*q_bmm_quantizer": E4M3 | {"enable": False}},
        {"nn.Linear": {"*input_quantizer": E4M3, "*": {"enable": False}}},
    ]

    for line in lines:
        with pytest.warns(DeprecationWarning, match="legacy dict"):
            expected = modelopt_config().normalize_quant_cfg_list([line])
        assert listed(*config_form.entries_of(line)) == listed(*expected), line
