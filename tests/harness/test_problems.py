"""Problems, and long lists of names that a person can read."""

from __future__ import annotations

import pytest

from harness.problems import Problem, collapse

# -- the records


def test_problem_reads_what_where_mend() -> None:
    """A problem is reported in lines: what is wrong, the names folded and indented, the fix; an empty
    part has none.
    """
    names = ("v.layers.0.fc.w_quantizer", "v.layers.1.fc.w_quantizer", "head.w_quantizer")

    assert str(Problem("rule", "Two are wrong:", names, "Fix them.")) == (
        "Two are wrong:\n  v.layers.{0,1}.fc.w_quantizer\n  head.w_quantizer\nFix them."
    ).replace("{0,1}", "{0..1}")
    assert str(Problem("rule", "Wrong.", (), "")) == "Wrong."


# -- reading many names


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        ([], []),
        (["input_quantizer"], ["input_quantizer"]),
        (["input_quantizer", "weight_quantizer"], ["{input,weight}_quantizer"]),
        (["a.b.input_quantizer"], ["a.b.input_quantizer"]),
        (["a.layers.3.w_quantizer"], ["a.layers.3.w_quantizer"]),
        (
            [f"a.layers.{n}.w_quantizer" for n in (10, 2, 1, 9, 4)],
            ["a.layers.{1..2,4,9..10}.w_quantizer"],
        ),
        (
            ["a.layers.0.q_quantizer", "a.layers.1.k_quantizer"],
            ["a.layers.0.q_quantizer", "a.layers.1.k_quantizer"],
        ),
        (
            [
                f"a.layers.{n}.{k}_quantizer"
                for n in (0, 1)
                for k in ("q_bmm", "k_bmm", "bmm2_output")
            ],
            ["a.layers.{0..1}.{q,k}_bmm_quantizer bmm2_output_quantizer"],
        ),
        (
            [f"a.layers.1.fc.weight_quantizer.{n}" for n in (0, 1)],
            ["a.layers.1.fc.weight_quantizer.{0,1}"],
        ),
        (["a.w_quantizer", "b.w_quantizer"], ["a.w_quantizer", "b.w_quantizer"]),
        (["a.w_quantizer", "a.w_quantizer"], ["a.w_quantizer"]),
        (["a.w", "a.x"], ["a.{w,x}"]),
        (["a{0}#.1.{b}.w", "a{0}#.2.{b}.w"], ["a{0}#.{1..2}.{b}.w"]),
    ],
)
def test_names_are_folded(names: list[str], lines: list[str]) -> None:
    """Names that differ by the number of their layer or by their leaf make one line; others one
    each.
    """
    assert collapse(names) == lines


@pytest.mark.parametrize(
    ("stages", "lines"),
    [
        ([(2, 5)], ["v.stages.2.blocks.5.fc.w_quantizer"]),
        ([(0, 0), (0, 1), (1, 0), (1, 1)], ["v.stages.{0..1}.blocks.{0..1}.fc.w_quantizer"]),
        ([(0, 9), (0, 10), (1, 10), (1, 9)], ["v.stages.{0..1}.blocks.{9..10}.fc.w_quantizer"]),
        (
            [(10, 0), (9, 1)],
            ["v.stages.9.blocks.1.fc.w_quantizer", "v.stages.10.blocks.0.fc.w_quantizer"],
        ),
        (
            [(2, 0), (2, 1), (3, 7)],
            ["v.stages.2.blocks.{0..1}.fc.w_quantizer", "v.stages.3.blocks.7.fc.w_quantizer"],
        ),
    ],
)
def test_names_with_two_numbers_keep_both(stages: list[tuple[int, int]], lines: list[str]) -> None:
    """A name with two numbers, as of stages of blocks, is folded at each place, and no other name
    is reported.
    """
    assert collapse([f"v.stages.{a}.blocks.{b}.fc.w_quantizer" for a, b in stages]) == lines


def test_many_groups_are_cut_with_their_number() -> None:
    """Up to the limit every group is reported; of more the first and how many were left out."""
    names = [f"m{n}.w_quantizer" for n in range(14)]

    assert collapse(names[:12]) == names[:12]
    assert collapse(names[:13]) == [*names[:12], "... and 1 more groups"]
    assert collapse(names, 3) == [*names[:3], "... and 11 more groups"]
