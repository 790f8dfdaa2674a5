"""Pictures and words to model inputs, and model outputs to embeddings, in batches of one fixed
shape.

Why fixed shapes: a matrix product may sum in another order when it has another number of rows, and
then the same picture gets another embedding in the last batch, or in a shard, than elsewhere.  Here
every picture of a run sees the same shape (the last batch is filled up), and every prompt is cut to
a width that only its own length decides. Measured on a CPU in FP16, embeddings are then equal bit
for bit over batch sizes 3 to 256 and over thread counts; only a batch of one takes another kernel.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import compat  # noqa: F401  (before transformers)
from harness.data.pictures import PictureError, check_size
from harness.errors import UsageError
from harness.models import families
from harness.models.halves import half_products, looked_up

#: Pictures of a data set are kept in memory up to this many bytes; beyond it they are decoded again
#: on each pass.
MEMORY_LIMIT = 2 << 30
#: From this many pictures on, decoding is worth its own processes.
_WORTH_WORKERS = 4096
#: Prompts are cut to the next multiple of this many tokens.  At 16 the attention kernels sum as
#: they do over the full context, and a cut prompt keeps its embedding bit for bit (measured with
#: AVX2 and AVX-512); at 4 or 12 they do not.
_WIDTH_STEP = 16


def default_batch_size(device: torch.device) -> int:
    """Return the rows per forward that suit a device; results do not depend on it."""
    return 512 if device.type == "cuda" else 64


class Resize:
    """The resizing and cropping half of a checkpoint's preprocessing: PIL picture to uint8 (3,
    height, width).

    transformers 5 has two implementations; the one over PIL is used, which is what the published
    numbers were measured with and what does not depend on torchvision's version.
    """

    def __init__(self, image_processor: Any) -> None:
        self._processor = over_pil(image_processor)
        self.shape: tuple[int, ...] = ()
        probe = self(_picture(np.zeros((4, 4, 3), np.uint8)))
        self.shape = tuple(probe.shape)

    def __call__(self, picture: Any) -> Tensor:
        """Resize and crop one PIL picture.

        Raises:
            PictureError: it is so long and narrow that it would be resized to too many pixels.
        """
        check_size(*picture.size, edge=max(self.shape[1:], default=0))
        # Greyscale, palette and transparent pictures become three channels as CLIP_benchmark's
        # transforms do it.
        done = self._processor(
            picture.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np"
        )
        return torch.from_numpy(np.ascontiguousarray(done["pixel_values"][0], dtype=np.uint8))


def over_pil(image_processor: Any) -> Any:
    """The image processor's implementation over PIL, with the same settings."""
    name, kind = type(image_processor).__name__, type(image_processor).__module__.split(".")[-2]
    if name.endswith("Pil"):
        return image_processor
    try:
        module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    except ImportError:  # transformers 4: the plain class is the one over PIL
        return image_processor
    settings = {k: v for k, v in image_processor.to_dict().items() if k != "image_processor_type"}
    return getattr(module, f"{name.removesuffix('Fast')}Pil")(**settings)


def _picture(array: Any) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def shades(image_processor: Any) -> Tensor:
    """Return the model input for each channel and each 8-bit value: float32 (3, 256).

    The rescaling and normalising half of the preprocessing as a table, filled by the processor
    itself, so that pictures can be kept in 8 bits and still reach the model bit-equal to the
    processor's own output.
    """
    # Of four rows: transformers 4 takes a side of one or three for the channels.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (4, 256, 3))
    plain = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
    return torch.from_numpy(
        np.asarray(over_pil(image_processor)(_picture(ramp), **plain)["pixel_values"][0, :, 0])
    )


class PictureSet(Protocol):
    """Resized pictures by position (:class:`harness.data.pictures.Resized`)."""

    def __getitem__(self, index: int) -> Tensor:
        """Return a picture: uint8 (3, height, width)."""
        ...

    def where(self, index: int) -> Path:
        """Return the file that a picture is in."""
        ...


class Pictures:
    """``n`` pictures of one data set, as uint8 (3, height, width), each decoded once if all fit
    into memory.

    Args:
        dataset: the pictures by position.
        ids: one name per picture, for messages.
        shape: of one picture.
        memory_limit: bytes that may be kept.
    """

    def __init__(
        self,
        dataset: PictureSet,
        ids: Sequence[str],
        shape: tuple[int, ...],
        memory_limit: int | None = None,
    ) -> None:
        self._dataset, self._ids, self._shape = dataset, ids, shape
        self._keep = len(ids) * int(np.prod(shape)) <= (
            MEMORY_LIMIT if memory_limit is None else memory_limit
        )
        self._kept: Tensor | None = None
        self._missing = np.ones(len(ids), bool)

    def __len__(self) -> int:
        return len(self._ids)

    def decode(self) -> None:
        """Decode all pictures that fit in memory, so that a broken one is found now.

        Raises:
            UsageError: a picture cannot be read.
        """
        if self._keep:
            self._in_memory(range(len(self)))

    def digests(self, start: int, stop: int) -> list[bytes] | None:
        """A name for each of pictures *start* to *stop*, equal where they are; None where memory
        does not hold them.
        """
        if not self._keep:
            return None
        pictures = self._in_memory(range(start, stop))[start:stop]
        return [hashlib.blake2b(picture.numpy(), digest_size=16).digest() for picture in pictures]

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Pictures *start* to *stop* in order: uint8 (at most *size*, 3, height, width) each.

        Raises:
            UsageError: a picture cannot be read.
        """
        stop = len(self) if stop is None else stop
        if self._keep:
            yield from torch.split(self._in_memory(range(start, stop))[start:stop], size)
            return
        stream = self._decoded(range(start, stop))
        while batch := list(itertools.islice(stream, size)):
            yield torch.stack(batch)

    def take(self, positions: Sequence[int]) -> TakenPictures:
        """The pictures at *positions*, in that order."""
        return TakenPictures(self, positions)

    def at(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Single pictures by position."""
        if not self._keep:
            yield from self._decoded(positions)
            return
        pictures = self._in_memory(positions)
        for i in positions:
            yield pictures[i]

    def _in_memory(self, positions: Sequence[int]) -> Tensor:
        """Return all pictures, of which those at *positions* are decoded: uint8 (n, 3, height,
        width).
        """
        if self._kept is None:
            self._kept = torch.empty((len(self), *self._shape), dtype=torch.uint8)
        wanted = np.asarray(positions, np.int64)
        wanted = np.unique(wanted[self._missing[wanted]])
        for i, picture in zip(wanted, self._decoded(wanted.tolist()), strict=True):
            self._kept[i] = picture
        self._missing[wanted] = False
        return self._kept

    def _decoded(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """The pictures at *positions*, decoded one after the other, in several processes where it
        is worth it.

        They come from those processes as bytes: a tensor would come as an open file, and a batch is
        hundreds.
        """
        loader = torch.utils.data.DataLoader(
            _Reader(self._dataset, self._ids, positions, self._shape),
            batch_size=None,
            num_workers=self._workers(len(positions)),
            collate_fn=_as_it_is,
        )
        for item in loader:
            if isinstance(item, UsageError):
                raise item
            yield torch.from_numpy(item)

    def _workers(self, count: int) -> int:
        """Processes that decode *count* pictures: the data set's size decides, as one slice follows
        another.
        """
        return min(8, os.cpu_count() or 1, count) if len(self) >= _WORTH_WORKERS else 0


@dataclass(frozen=True)
class TakenPictures:
    """Some of the pictures of a data set, in another order; has a part of the interface of
    :class:`Pictures`.
    """

    pictures: Pictures
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """As :meth:`Pictures.batches`."""
        stream = self.pictures.at(self.positions[start:stop])
        while batch := list(itertools.islice(stream, size)):
            yield torch.stack(batch)


def _as_it_is(item: Any) -> Any:
    """Return the array unchanged: torch would convert it to a tensor."""
    return item


class _Reader(torch.utils.data.Dataset[Any]):
    """Pictures by position as arrays, or the error to raise: some exceptions cannot be sent between
    processes.
    """

    def __init__(
        self, dataset: PictureSet, ids: Sequence[str], chosen: Sequence[int], shape: tuple[int, ...]
    ) -> None:
        self._dataset, self._ids, self._chosen, self._shape = dataset, ids, chosen, shape

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8] | UsageError:
        position = self._chosen[index]
        try:
            picture = self._dataset[position]
        except UsageError as error:
            return error
        except PictureError as error:
            return self._unusable(position, error.what, error.fix)
        except Exception as error:
            return self._unusable(
                position, f"cannot be read ({type(error).__name__}: {error})", "Restore the file."
            )
        if tuple(picture.shape) != self._shape:
            actual, expected = (
                " x ".join(map(str, shape)) for shape in (picture.shape, self._shape)
            )
            fix = "Correct preprocessor_config.json: it must give every picture one size."
            return self._unusable(
                position, f"is {actual} after preprocessing, expected {expected}", fix
            )
        return picture.numpy()

    def _unusable(self, position: int, what: str, fix: str) -> UsageError:
        return UsageError(
            self._dataset.where(position), f"picture {self._ids[position]} {what}", fix
        )


@dataclass(frozen=True)
class Prompts:
    """``m`` texts as token ids: each different text once, and the rows that use it.

    ``ids`` int64 (different, context) filled up with the tokenizer's padding, ``lengths`` int64
    (different,) of what the model must see (the begin and end tokens counted), ``rows`` int64 (m,)
    into ``ids``.
    """

    ids: Tensor
    lengths: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def different(self, chosen: Sequence[int]) -> Prompts:
        """The texts that rows *chosen* of ``ids`` hold, each once."""
        return Prompts(self.ids[chosen], self.lengths[chosen], torch.arange(len(chosen)))

    def part(self, start: int, stop: int) -> Prompts:
        """Texts *start* to *stop*."""
        used, rows = torch.unique(self.rows[start:stop], return_inverse=True)
        return Prompts(self.ids[used], self.lengths[used], rows)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions in ``ids``, token ids (size, width)) in groups of one width; a last batch
        repeats its first row.

        The width depends on the prompt alone, never on its neighbours.
        """
        widths = (self.lengths + _WIDTH_STEP - 1).div(
            _WIDTH_STEP, rounding_mode="floor"
        ) * _WIDTH_STEP
        for width in sorted({int(w) for w in widths}):
            group = (widths == width).nonzero().flatten()
            for chosen in torch.split(group, size):
                yield chosen, filled(self.ids[chosen, :width], size)


def tokenize(tokenizer: Any, texts: Sequence[str], context: int, causal: bool = True) -> Prompts:
    """Tokenize *texts* for a text tower of *context* positions; longer ones are cut, keeping the
    end token.

    A *causal* tower, CLIP's, reads the sentence at its end token: what follows does not matter and
    need not be computed.  Another reads all of it.
    """
    different = list(dict.fromkeys(texts))
    row = {text: index for index, text in enumerate(different)}
    done = tokenizer(
        different,
        padding="max_length",
        truncation=True,
        max_length=context,
        return_tensors="pt",
        return_attention_mask=True,
    )
    ids = done["input_ids"]
    lengths = done["attention_mask"].sum(1) if causal else torch.full((len(ids),), context)
    return Prompts(ids, lengths, torch.tensor([row[text] for text in texts]))


def filled(batch: Tensor, size: int) -> Tensor:
    """*batch* with its first row repeated up to *size* rows."""
    return (
        batch
        if len(batch) == size
        else torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])
    )


def pixel_values(pictures: Tensor, table: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) to the model's input, with *table* from :func:`shades` in the wanted
    dtype.
    """
    return torch.stack(
        [table[channel][pictures[:, channel].long()] for channel in range(len(table))], dim=1
    )


@torch.no_grad()
@half_products()
@looked_up()
def embed_images(
    model: nn.Module,
    batches: Iterable[Tensor],
    table: Tensor,
    size: int,
    projection: nn.Module | None = None,
) -> Tensor:
    """Unit embeddings of uint8 picture batches: float32 (n, d) on the CPU.

    The model's output, through *projection* if there is one, is normalised in double precision, so
    that no step after the model adds an error of its own.
    """
    parameter = next(model.parameters())
    table = table.to(parameter.device, parameter.dtype)
    embeddings = []
    for batch in batches:
        pixels = pixel_values(filled(batch, size).to(parameter.device), table)
        output = _projected(families.encode(model, "vision", pixels), projection)
        embeddings.append(unit(output[: len(batch)].cpu()))
    return torch.cat(embeddings)


@torch.no_grad()
@half_products()
@looked_up()
def embed_texts(
    model: nn.Module, prompts: Prompts, size: int, projection: nn.Module | None = None
) -> Tensor:
    """Unit embeddings of *prompts*, in their order: float32 (m, d) on the CPU."""
    device = next(model.parameters()).device
    embeddings: Tensor | None = None
    for chosen, ids in prompts.batches(size):
        output = _projected(families.encode(model, "text", ids.to(device)), projection)
        part = unit(output[: len(chosen)].cpu())
        if embeddings is None:
            embeddings = torch.empty(len(prompts.ids), part.shape[1])
        embeddings[chosen] = part
    assert embeddings is not None, "a task has prompts"
    return embeddings[prompts.rows]


def _projected(features: Tensor, projection: nn.Module | None) -> Tensor:
    return features if projection is None else projection(features)


def unit(features: Tensor) -> Tensor:
    """Rows at length one: computed in double precision, float32 (n, d)."""
    return F.normalize(features.double(), dim=-1).float()
