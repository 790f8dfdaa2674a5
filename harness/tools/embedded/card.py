"""The embedded CLIP's model card: what it is, how it was trained and what it scores, as measured.

    python -m harness.tools.embedded.card [--model DIR]

evaluates the checkpoint on the three embedded tasks, adds the scores to its ``training.json`` and
writes its ``README.md`` from that file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from harness.tools.embedded import emoji, text

CLIP = Path(__file__).parents[2] / "models" / "embedded" / "clip"
#: What each score is, in the order of the card; the target is what the checkpoint had to reach, in
#: percent.
_SCORES = {
    ("emoji100", "acc1"): ("100 names, ten views a drawing", 70),
    ("emoji", "acc1"): ("all {classes} names, one drawing each", 35),
    ("emoji_captions", "image_retrieval_recall@5"): (
        "a caption finds its picture among five",
        None,
    ),
    ("emoji_captions", "text_retrieval_recall@5"): (
        "a picture finds one of its captions among five",
        None,
    ),
}


def measure(folder: Path) -> dict[str, Any]:
    """Scores of the checkpoint in *folder* on the embedded tasks, FP16 on the CPU: task -> metric
    -> (share, n).
    """
    import torch

    from harness.data import tasks
    from harness.models import references

    reference = references.load(str(folder), torch.device("cpu"))
    scores: dict[str, Any] = {}
    for task in tasks.load_tasks(None, None, reference):
        run = tasks.evaluate(reference.model, task, keep_scores=False)
        scores[task.name] = {
            name: {"score": o.accuracy, "n": o.n} for name, o in run.outcomes.items()
        }
        scores[task.name]["classes"] = len(task.classes)
    return scores


def render(record: dict[str, Any], parameters: int) -> str:
    """The card's text from a training record with its ``scores`` and the model's number of
    *parameters*.
    """
    vision, words = record["vision"], record["text"]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: zero-shot-image-classification",
            "---",
            "",
            "# Embedded CLIP",
            "",
            "A small CLIP that was really trained, so that a quantization recipe can be judged on "
            "it in seconds: it names",
            "emoji that an artist drew whose work it has never seen. It is a test instrument and "
            "good for nothing else.",
            "",
            "| tower | layers | width | MLP | heads | input |",
            "|---|---|---|---|---|---|",
            f"| vision | {vision['num_hidden_layers']} | {vision['hidden_size']} | "
            f"{vision['intermediate_size']} | "
            f"{vision['num_attention_heads']} | {vision['image_size']} x {vision['image_size']} "
            f"pixels, patches of "
            f"{vision['patch_size']} |",
            f"| text | {words['num_hidden_layers']} | {words['hidden_size']} | "
            f"{words['intermediate_size']} | "
            f"{words['num_attention_heads']} | {words['max_position_embeddings']} tokens out of "
            f"{words['vocab_size']} |",
            "",
            f"{parameters / 1e6:.1f} million parameters, FP16, {record['projection_dim']} "
            f"dimensions in common.",
            "",
            "## Scores",
            "",
            "Zero-shot on the drawings of one artist (Noto, Google); no set of that artist was in "
            "the training data.",
            "",
            "| task | metric | | samples | score | wanted |",
            "|---|---|---|---|---|---|",
            *_score_rows(record["scores"]),
            "",
            "## Training",
            "",
            f"{record['epochs']} epochs, seed {record['seed']}, {record['minutes']} minutes on: "
            f"{record['device']}; "
            f"torch {record['torch']}.",
            f"Batches of {record['batch']} pictures against {record['names_a_step']} names; Muon "
            f"for the matrices,",
            f"AdamW for the rest; learning rate {record['learning_rate']}, one cycle; weight decay",
            f"{record['weight_decay']}; label smoothing {record['label_smoothing']}. A share of "
            f"{record['blend']:.0%} of",
            "the pictures are two artists' drawings of one thing laid over one another. The "
            "weights are a moving average",
            f"(decay {record['average_decay']}) and the last ones, whatever they score: the unseen "
            f"artist was only looked",
            "at, for this curve:",
            "",
            "| epoch | top-1 of all names | top-5 | top-1 of 100 |",
            "|---|---|---|---|",
            *(
                f"| {h['epoch']} | {h['top1']:.1%} | {h['top5']:.1%} | {h['top1_of_100']:.1%} |"
                for h in record["history"]
            ),
            "",
            "Made by `python -m harness.tools.embedded.train --sources DIR`, this card by `python "
            "-m "
            "harness.tools.embedded.card`.",
            f"Prompts: {', '.join(f'`{t}`' for t in text.TEMPLATES)}.",
            "",
            "## Data",
            "",
            "| set | version | licence | artist | used for |",
            "|---|---|---|---|---|",
            *_set_rows(),
            "",
            "The sets are packages `@iconify-json/<set>` of the npm registry. Only pictures from "
            "Apache-2.0 and MIT sets",
            "are passed on with this project (`../data/NOTICE`).",
            "",
        ]
    )


def _score_rows(scores: dict[str, Any]) -> list[str]:
    rows = []
    for (task, metric), (what, target) in _SCORES.items():
        score = scores[task][metric]
        meaning = what.format(classes=scores[task]["classes"])
        wanted = "" if target is None else f"at least {target} %"
        rows.append(
            f"| {task} | {metric} | {meaning} | {score['n']} | {score['score']:.1%} | {wanted} |"
        )
    return rows


def _use_of(name: str) -> str:
    """What the set of drawings *name* is used for."""
    uses = {emoji.EVALUATION: "evaluation", emoji.CALIBRATION: "training and calibration"}
    if name in uses:
        return uses[name]
    return "training" if name in emoji.TRAINING else "nothing: the artist of the evaluation"


def _set_rows() -> list[str]:
    return [
        f"| {name} | {version} | {licence} | {artist} | {_use_of(name)} |"
        for name, (version, licence, artist) in emoji.SETS.items()
    ]


def parameters(folder: Path) -> int:
    """Number of parameters in the checkpoint's safetensors file."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as tensors:
        return sum(_product(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=CLIP)
    folder = parser.parse_args().model
    path = folder / "training.json"
    record = json.loads(path.read_text())
    record["scores"] = measure(folder)
    path.write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(render(record, parameters(folder)))


if __name__ == "__main__":
    main()
