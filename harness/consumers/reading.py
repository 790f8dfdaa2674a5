"""Read a model's tokens as its consumers do, on one set of pictures and full-length texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import digests, isolation
from harness.consumers import contracts
from harness.consumers.contracts import Contract, Read
from harness.data import inputs, samples, words
from harness.data.inputs import Pictures, TakenPictures
from harness.data.pictures import Resized
from harness.data.tasks import context_of
from harness.errors import UsageError
from harness.models import checkpoint_files, families
from harness.models.halves import half_products, looked_up
from harness.models.hooks import after_each
from harness.models.references import Reference

#: Pictures and texts that are read at most, and bytes of tokens that are kept of one tower: a model
#: with long rows of wide tokens is read on fewer.
PICTURES, TEXTS, BYTES = 96, 96, 256 << 20
#: The data set whose pictures are read, and the one whose captions are, where no task was named.
_PICTURES_OF, _TEXTS_OF = "emoji", "emoji_captions"

#: A consumer and the name of one of its reads.
Reading = tuple[str, str]


@dataclass(frozen=True)
class Material:
    """The pictures, with their names, and the texts that are read.

    ``clusters`` numbers pictures of one drawing alike.  ``hash`` is the SHA-256 over the names and
    pixels of the pictures and over the texts.
    """

    pictures: TakenPictures | None
    picture_ids: tuple[str, ...]
    clusters: npt.NDArray[np.int32]
    shades: Tensor | None
    texts: tuple[str, ...]
    text_ids: tuple[str, ...]
    tokenizer: Any
    context: int
    hash: str

    @cached_property
    def pixels(self) -> Tensor:
        """The pictures as the model's preprocessing cuts them: uint8 (n, 3, height, width)."""
        assert self.pictures is not None, "a vision tower has pictures"
        return torch.cat(list(self.pictures.batches(len(self.picture_ids))))

    def ids(self, read: Read) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (n, positions) each, of the texts as *read*'s consumer pads
        them.
        """
        positions = min(read.positions or self.context, self.context)
        done = self.tokenizer(
            list(self.texts),
            padding="max_length",
            truncation=True,
            max_length=positions,
            return_tensors="pt",
            return_attention_mask=True,
        )
        ids, mask = done["input_ids"], done["attention_mask"]
        return (ids.masked_fill(mask == 0, 0) if read.padding == "zero" else ids), mask


def names_of(family: families.Family, ref: str, chosen: Sequence[str]) -> tuple[str, ...]:
    """The consumers whose contracts hold for a model.

    Args:
        family: its family.
        ref: the model as the person named it: a part of a pipeline is read as its pipeline does.
        chosen: the consumers that were named.
    """
    if chosen:
        return tuple(chosen)
    pipeline = contracts.of_pipeline(checkpoint_files.pipeline_class(ref))
    if pipeline and tuple(family.towers) == ("text",):
        return (pipeline,)
    return family.consumers


def check(model: nn.Module, name: str, chosen: Iterable[str]) -> None:
    """Refuse a consumer that cannot read *model*.

    Args:
        model: the reference.
        name: what the person calls it.
        chosen: the consumers that were named.

    Raises:
        UsageError: the model lacks a tower or a layer that the consumer reads.
    """
    for consumer in chosen:
        contract = contracts.of(consumer)
        why = _unreadable(model, contract)
        if why:
            fitting = [c for c, row in contracts.CONTRACTS.items() if not _unreadable(model, row)]
            fix = f"Of this model these can be read: {', '.join(fitting) or 'none'}."
            raise UsageError(f"--consumer {consumer}", f"cannot read {name}: {why}", fix)


def _unreadable(model: nn.Module, contract: Contract) -> str:
    """Return why *contract* does not hold for *model*, or an empty text."""
    family = families.of(model)
    for read in contract.reads:
        if read.tower not in family.towers:
            return f"it has no {read.tower} tower"
        tower = family.towers[read.tower]
        layers = len(families.layers_of(model, read.tower))
        if read.tokens == "pooled":
            continue
        if family.name == "open_clip":
            return "tokens of open_clip's form are not read; convert it to a CLIPModel"
        if not -layers <= read.layer <= layers:
            return f"hidden state {read.layer} is asked for, its {read.tower} has {layers} layers"
        if read.norm == "merged" and not tower.leading:
            return "it has no class token"
    return ""


def material(reference: Reference, task: str | None, data_root: Path | None) -> Material:
    """The pictures and texts for *reference*: of the embedded data, or of the first *task* that was
    named.

    Raises:
        UsageError: the data cannot be used.
    """
    towers = families.of(reference.model).towers
    used: list[str] = []
    pictures, shades = None, None
    picture_ids: tuple[str, ...] = ()
    clusters = np.zeros(0, np.int32)
    if "vision" in towers:
        loaded = samples.load(task or _PICTURES_OF, data_root)
        chosen = apart(loaded.clusters, PICTURES)
        resize = inputs.Resize(reference.image_processor)
        whole = Pictures(Resized(loaded.pictures, resize), loaded.ids, resize.shape)
        pictures, picture_ids = whole.take(chosen), tuple(loaded.ids[i] for i in chosen)
        clusters = loaded.clusters[chosen]
        shades = inputs.shades(reference.image_processor)
        used += [loaded.ids[i] for i in chosen]
        used.append(digests.of_bytes(torch.cat(list(pictures.batches(PICTURES))).numpy().tobytes()))
    texts: tuple[str, ...] = ()
    text_ids: tuple[str, ...] = ()
    if "text" in towers:
        loaded = samples.load(task or _TEXTS_OF, data_root)
        known = _texts_of(loaded)
        chosen = spread(len(known), TEXTS)
        texts, text_ids = tuple(known[i] for i in chosen), tuple(f"text{i}" for i in chosen)
        used += texts
    context = context_of(reference) if "text" in towers else 0
    return Material(
        pictures,
        picture_ids,
        clusters,
        shades,
        texts,
        text_ids,
        reference.tokenizer,
        context,
        digests.of_text("\0".join(used)),
    )


def spread(count: int, most: int) -> list[int]:
    """At most *most* positions of *count*, at equal distances."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()  # type: ignore[no-any-return]


def apart(clusters: npt.NDArray[np.int32], most: int) -> list[int]:
    """At most *most* positions at equal distances, each of another cluster if there are enough.

    Tokens of one cluster move together: pictures of few clusters say little.
    """
    first_of_each = np.sort(np.unique(clusters, return_index=True)[1])
    if len(first_of_each) < most:
        return spread(len(clusters), most)
    return first_of_each[spread(len(first_of_each), most)].tolist()  # type: ignore[no-any-return]


def _texts_of(loaded: samples.Samples) -> list[str]:
    """The first caption of each picture, or each class in the words of one template
    after the other.
    """
    if loaded.captions is not None:
        return [group[0] for group in loaded.captions]
    templates = itertools.cycle(loaded.templates)
    return [words.fill(next(templates), name) for name in loaded.classes]


def read_all(
    model: nn.Module, of: Material, consumers: Sequence[str], size: int
) -> dict[Reading, Tensor]:
    """What each of *consumers* reads of *model*: (n, tokens, d) in the model's dtype, on the CPU.

    One forward of the vision tower serves all that read it, and one of the text tower all that pad
    alike.

    Args:
        model: in evaluation mode.
        of: the pictures and texts.
        consumers: whose contracts are read.
        size: rows of a forward.

    Raises:
        UsageError: a function of torch is not torch's own.
    """
    isolation.check()
    wanted = {
        (consumer, read.name): read
        for consumer in consumers
        for read in contracts.of(consumer).reads
    }
    return {
        key: tokens
        for group in _alike(wanted)
        for key, tokens in _read(model, of, group, size).items()
    }


def _alike(wanted: Mapping[Reading, Read]) -> list[dict[Reading, Read]]:
    """The reads of one forward together: of one tower, and of one form of its texts."""
    groups: dict[tuple[object, ...], dict[Reading, Read]] = {}
    for key, read in wanted.items():
        form = (read.tower, read.masked, read.padding, read.positions)
        groups.setdefault(form, {})[key] = read
    return list(groups.values())


@torch.no_grad()
@half_products()
@looked_up()
def _read(
    model: nn.Module, of: Material, group: Mapping[Reading, Read], size: int
) -> dict[Reading, Tensor]:
    first = next(iter(group.values()))
    layers = families.layers_of(model, first.tower)
    watched = {
        read.layer: layers[read.layer - 1 if read.layer > 0 else read.layer]
        for read in group.values()
        if read.tokens != "pooled"
    }
    tokens_by_reading: dict[Reading, list[Tensor]] = {key: [] for key in group}
    states: dict[int, Tensor] = {}

    def keep(layer: int, _module: object, _arguments: object, output: Any) -> None:
        states[layer] = output[0] if isinstance(output, tuple) else output

    size_in_bytes = 0
    for x, mask, rows in _batches(model, of, first, size):
        with after_each(watched, keep):
            pooled = families.encode(model, first.tower, x, mask)
        for key, read in group.items():
            tokens = pooled[:, None] if read.tokens == "pooled" else _tokens(model, read, states)
            tokens_by_reading[key].append(tokens[:rows].cpu())
            size_in_bytes += tokens_by_reading[key][-1].nbytes
        if size_in_bytes > BYTES:
            break
    return {key: torch.cat(parts) for key, parts in tokens_by_reading.items()}


def _batches(
    model: nn.Module, of: Material, read: Read, size: int
) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """Inputs of *read*'s tower, attention masks where it is given them, and how many rows are real;
    a last batch is filled up.
    """
    parameter = next(model.parameters())
    size = max(2, size)
    if read.tower == "vision":
        assert of.shades is not None, "a vision tower has pictures"
        table = of.shades.to(parameter.device, parameter.dtype)
        for batch in torch.split(of.pixels, size):
            pixels = inputs.filled(batch, size).to(parameter.device)
            yield inputs.pixel_values(pixels, table), None, len(batch)
        return
    ids, mask = of.ids(read)
    for some, seen in zip(torch.split(ids, size), torch.split(mask, size), strict=True):
        attention_mask = inputs.filled(seen, size).to(parameter.device) if read.masked else None
        yield inputs.filled(some, size).to(parameter.device), attention_mask, len(some)


def _tokens(model: nn.Module, read: Read, states: Mapping[int, Tensor]) -> Tensor:
    """The tokens of one batch as *read* says, from the hidden states of its layers."""
    tokens = states[read.layer]
    leading = families.of(model).towers[read.tower].leading
    if read.norm != "none":
        tokens = families.norm_of(model, read.tower)(tokens)
    if read.norm == "merged":
        merged = tokens[:, leading:] * tokens[:, :1]
        return F.layer_norm(merged, merged.shape[-1:])
    return tokens[:, leading:] if read.tokens == "patches" else tokens
