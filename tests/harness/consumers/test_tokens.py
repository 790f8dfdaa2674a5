"""Measures of tokens have their definitions' values, and the worst token its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.consumers import labels, probes, tokens
from harness.consumers.tokens import Moved
from harness.errors import UsageError
from harness.statistics.limits import Limits

ITEMS = ("a", "b")


@pytest.fixture
def before() -> Tensor:
    """Two items of five tokens."""
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def moved(before: Tensor, after: Tensor, **limits: float) -> Moved:
    """The measures of one read."""
    return tokens.compare(("llava", "patches"), ITEMS, before, after, Limits(**limits))


def values(measured: Moved) -> dict[str, float]:
    """The measures by name."""
    return {measurement.name: measurement.value for measurement in measured.measurements}


def test_equal_tokens_have_not_moved(before: Tensor) -> None:
    """Each limit of tokens is measured: cosines and agreements are one, errors and changes nothing."""
    values_by_name = values(moved(before, before.clone()))

    assert set(values_by_name) == {
        name for name in Limits.model_fields if name.startswith("token_")
    }
    assert all(
        value == pytest.approx(0.0 if "error" in name or "change" in name else 1.0)
        for name, value in values_by_name.items()
    )


def test_the_worst_token_is_named(before: Tensor) -> None:
    """One token turned round has cosine -1 and error 2, and the message says where it is."""
    after = before.clone()
    after[1, 3] *= -1

    measured = moved(before, after, token_cosine_min=0.5)

    assert values(measured)["token_cosine_min"] == pytest.approx(-1.0)
    assert values(measured)["token_error_max"] == pytest.approx(2.0)
    assert values(measured)["token_error_mean"] == pytest.approx(0.2)
    assert measured.where == ("b", 3)
    (line,) = measured.problems()
    assert "llava (patches): token_cosine_min is -1" in line
    assert "worst token: 3 of b" in line


def test_a_norm_outlier_that_shrinks_is_noticed(before: Tensor) -> None:
    """A token of ten times the usual norm that loses half of it changes no cosine."""
    before[0, 2] *= 10
    after = before.clone()
    after[0, 2] *= 0.5

    values_by_name = values(moved(before, after))

    assert values_by_name["token_norm_change"] == pytest.approx(0.5)
    assert values_by_name["token_cosine_min"] == pytest.approx(1.0)


def test_tokens_that_are_not_finite_keep_no_limit(before: Tensor) -> None:
    """NaN in the quantized model exceeds whatever limit there is, at the token that has it."""
    after = before.clone()
    after[0, 4, 1] = torch.nan

    measured = moved(before, after, token_error_mean=10.0)

    assert measured.problems()
    assert measured.where == ("a", 4)


def test_a_reference_that_is_not_finite_is_refused(before: Tensor) -> None:
    """There is nothing to compare with."""
    before[0, 0, 0] = torch.inf

    with pytest.raises(UsageError, match="llava/patches"):
        moved(before, before)


def test_labels_are_those_of_the_pixels() -> None:
    """A red square on white is foreground and red in its patches; white inside it stays its own."""
    picture = np.full((16, 16, 3), 255, np.uint8)
    picture[:8, 8:] = (200, 10, 10)
    picture[3:5, 11:13] = 255

    shown, coloured = labels.of_patches(picture.transpose(2, 0, 1)[None], 2, 2)

    assert shown.tolist() == [[0, 1, 0, 0]]
    assert [labels.COLOURS[c] for c in coloured[0]] == ["white", "red", "white", "white"]
    assert labels.foreground(picture)[3, 11]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((255, 0, 0), "red"),
        ((255, 0, 40), "red"),
        ((255, 128, 0), "orange"),
        ((255, 230, 0), "yellow"),
        ((0, 200, 0), "green"),
        ((0, 60, 255), "blue"),
        ((180, 0, 255), "purple"),
    ],
)
def test_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    """Each colour is called what people call it."""
    picture = np.full((1, 1, 3), rgb, np.uint8)

    assert labels.COLOURS[int(labels.colours(picture)[0, 0])] == name


def test_a_probe_finds_what_its_tokens_say() -> None:
    """Least squares on tokens that hold their answers read them back; -1 is asked of nobody."""
    right = np.tile(np.asarray([3, 7, -1]), 20)
    x = torch.from_numpy(right)[:, None].float() * torch.ones(1, 4)

    weight, bias, classes = probes.fit(x, right, 1e-6)

    answers = (x.double() @ weight.double() + bias.double()).argmax(1)
    assert classes == (3, 7)
    assert [classes[a] for a in answers[:2]] == [3, 7]
