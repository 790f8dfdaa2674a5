"""The table of contracts says what the libraries do, and what cannot be read is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.consumers import contracts, reading
from harness.data import inputs
from harness.errors import UsageError
from harness.models import families
from harness.models.references import Reference


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two pictures of noise for the embedded model."""
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)).half()


def states(reference: Reference, tower: str, x: Tensor) -> tuple[Tensor, ...]:
    """The hidden states that transformers itself returns."""
    model = reference.model.get_submodule(f"{tower}_model")
    with torch.no_grad():
        return model(x, output_hidden_states=True).hidden_states  # type: ignore[no-any-return]


def test_llava_reads_the_patches_of_the_layer_before_the_last(
    reference: Reference, pixels: Tensor
) -> None:
    """What is read is ``hidden_states[-2]`` of transformers without the class token, bit for
    bit.
    """
    expected = states(reference, "vision", pixels)[-2][:, 1:]
    seen: dict[int, Tensor] = {}
    layers = families.layers_of(reference.model, "vision")
    layers[-2].register_forward_hook(lambda _m, _a, output: seen.update({-2: output}))
    with torch.no_grad():
        families.encode(reference.model, "vision", pixels)
    layers[-2]._forward_hooks.clear()

    tokens = reading._tokens(reference.model, contracts.of("llava").reads[0], seen)

    assert len(layers) == 4
    assert torch.equal(tokens, expected)


def test_stable_diffusion_reads_every_position_after_the_norm(reference: Reference) -> None:
    """The last hidden state, padding included, as ``CLIPTextModel`` returns it."""
    of = reading.material(reference, None, None)
    ids, _ = of.ids(contracts.of("sd15").reads[0])
    with torch.no_grad():
        expected = reference.model.text_model(inputs.filled(ids[:4], 4)).last_hidden_state

    tokens = reading.read_all(reference.model, of, ("sd15",), 64)["sd15", "positions"]

    assert tokens.shape == (96, 24, 96)
    assert torch.allclose(tokens[:4].float(), expected.float(), atol=2e-2)


@pytest.mark.parametrize(("consumer", "last"), [("sd15", 1199), ("sd2", 0), ("owlvit", 0)])
def test_texts_are_padded_as_the_consumer_pads(
    reference: Reference, consumer: str, last: int
) -> None:
    """Stable Diffusion 1 pads with the end token of the tokenizer, 2 and OWL-ViT with the word
    0.
    """
    of = reading.material(reference, None, None)
    read = contracts.of(consumer).reads[-1]

    ids, mask = of.ids(read)

    assert ids.shape[1] == (read.positions or 24)
    assert set(ids[mask == 0].tolist()) == {last}


def test_one_row_per_consumer_and_each_has_its_source() -> None:
    """No name is given twice, no two reads of a contract have one name, and each row names a file
    of the library that loads the tower.
    """
    for consumer, row in contracts.CONTRACTS.items():
        names = [read.name for read in row.reads]
        assert len(set(names)) == len(names) > 0, consumer
        assert row.source.startswith(("diffusers: ", "transformers: ")), consumer
        assert ".py" in row.source, consumer


def test_the_consumers_of_every_family_are_in_the_table() -> None:
    """What a family is gated for by default has a contract, and the family has its towers."""
    for family in families.FAMILIES:
        for consumer in family.consumers:
            for read in contracts.of(consumer).reads:
                assert read.tower in family.towers, (family.name, consumer)


@pytest.mark.parametrize(
    ("consumer", "what"), [("clipseg", "hidden state 7"), ("vip-llava", "hidden state -5")]
)
def test_a_consumer_of_layers_that_are_not_there_is_refused(
    reference: Reference, consumer: str, what: str
) -> None:
    """The line names the consumer, the hidden state that is missing and those that can be read."""
    with pytest.raises(UsageError) as refused:
        reading.check(reference.model, "embedded", (consumer,))

    assert f"--consumer {consumer}" in str(refused.value)
    assert what in str(refused.value)
    assert "llava" in str(refused.value)


def test_an_unknown_consumer_is_refused_with_those_that_are_known() -> None:
    """A name that no row has is a usage error that lists the rows."""
    with pytest.raises(UsageError, match=r"--consumer lava.*llava"):
        contracts.of("lava")
