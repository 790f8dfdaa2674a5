"""What one would write without the gate (``python -m harness.tools.plain RECIPE [TASK ...]``):
quantize, and evaluate.

Bare ModelOpt and CLIP_benchmark's own evaluation, checkpoint and quantized model, accuracy for
accuracy.  It shares no forward, picture or prompt with the gate: it is what the gate's speed is
measured against (:mod:`harness.tools.benchmark`).  In FP16, as the gate; ``--fp32`` is what a CPU
without FP16 arithmetic would rather do.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor, nn

from harness import compat  # noqa: F401  (before clip_benchmark)
from harness.data.samples import EMBEDDED as DATA
from harness.models.references import EMBEDDED
from harness.quantization.context import quiet
from harness.recipes import loading

TASKS = ("emoji100", "emoji", "emoji_captions")
BATCH = 64


class _AsOpenClip:
    """The two methods that CLIP_benchmark calls, of a ``CLIPModel``."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embeddings (n, d)."""
        pixels = pixels.to(self._model.dtype)
        embeddings: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return embeddings

    def encode_text(self, ids: Tensor) -> Tensor:
        """Embeddings (n, d)."""
        return self._model.get_text_features(input_ids=ids).pooler_output  # type: ignore[no-any-return]


def main(recipe: str, *tasks: str, dtype: torch.dtype = torch.float16) -> None:
    """Print accuracies and seconds as JSON; of all *tasks* where none is named."""
    import modelopt.torch.quantization as mtq
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from modelopt.torch.quantization.plugins.diffusion.diffusers import _QuantAttention
    from torch.utils.data import DataLoader
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
    from transformers.models.clip.modeling_clip import CLIPAttention

    began = time.perf_counter()
    model = CLIPModel.from_pretrained(EMBEDDED, dtype=dtype, attn_implementation="sdpa").eval()
    processor, words = (
        CLIPImageProcessor.from_pretrained(EMBEDDED),
        CLIPTokenizer.from_pretrained(EMBEDDED),
    )

    def transform(picture: Any) -> Tensor:
        return processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]

    def tokenize(texts: list[str]) -> Tensor:
        context = model.config.text_config.max_position_embeddings
        encoded = words(
            texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        )
        ids: Tensor = encoded["input_ids"]
        return ids

    def loader(name: str, task: str) -> Any:
        dataset = build_dataset(f"wds/{name}", str(DATA / name), transform, "test", task=task)
        batched = dataset.batched(BATCH, collation_fn=get_dataset_collate_fn(f"wds/{name}"))
        return dataset, DataLoader(batched, batch_size=None)

    def accuracies(of: nn.Module) -> dict[str, float]:
        wrapped = _AsOpenClip(of)
        values: dict[str, Any] = {}
        for name in tasks or TASKS:
            retrieval = name == "emoji_captions"
            task = "zeroshot_retrieval" if retrieval else "zeroshot_classification"
            dataset, batches = loader(name, task)
            if retrieval:
                values |= zeroshot_retrieval.evaluate(wrapped, batches, tokenize, "cpu", amp=False)
            else:
                # Its evaluate() counts what is right by a conversion that NumPy 2.4 refuses.
                words_of = zeroshot_classification.zero_shot_classifier
                classes = words_of(
                    wrapped, tokenize, dataset.classes, dataset.templates, "cpu", amp=False
                )
                scores, labels = zeroshot_classification.run_classification(
                    wrapped, classes, batches, "cpu", False
                )
                values[f"{name} acc1"] = (scores.argmax(1) == labels).double().mean()
        return {name: float(value) for name, value in values.items()}

    def calibrate(of: Any) -> None:
        with torch.no_grad():
            for pixels, texts in loader("calibration", "zeroshot_retrieval")[1]:
                of(
                    pixel_values=pixels.to(dtype),
                    input_ids=tokenize([captions[0] for captions in texts]),
                )

    values: dict[str, Any] = {}
    with quiet():
        values["reference"] = accuracies(model)
        mtq.register(CLIPAttention, _QuantAttention)
        quantized = mtq.quantize(
            model, dict(loading.load(recipe).quant_cfg), forward_loop=calibrate
        )
        values["quantized"] = accuracies(quantized)
    print(json.dumps(values | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m harness.tools.plain", description=main.__doc__)
    parser.add_argument("recipe")
    parser.add_argument("task", nargs="*", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--fp32", action="store_true", help="in FP32 instead of FP16")
    arguments = parser.parse_args()
    main(
        arguments.recipe, *arguments.task, dtype=torch.float32 if arguments.fp32 else torch.float16
    )
