"""Train the embedded CLIP: emoji of some artists in, a checkpoint that reads another artist's out.

    python -m harness.tools.embedded.train --sources DIR --out DIR [--epochs N] [--seed N] [--device
    auto|cpu|cuda]

needs the ``make`` extra and ``npm`` (see README).  Everything is drawn from one seed; on the same
machine and versions the same weights come out.  The held-out artist is only ever *reported* while
training: the schedule is fixed beforehand and the last (averaged) weights are what is written.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from harness import compat  # noqa: F401  (before transformers)
from harness.tools.embedded import emoji, text

RENDERED = 64  #: pixels a drawing is rendered at for training; augmentation resamples it to IMAGE
IMAGE = 48
MEAN, STD = (0.8, 0.75, 0.7), (0.3, 0.32, 0.35)

SETTINGS: dict[str, Any] = {
    "vision": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": IMAGE,
        "patch_size": 8,
    },
    "text": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "vocab_size": text.VOCABULARY,
        "max_position_embeddings": text.CONTEXT,
    },
    "projection_dim": 128,
    "batch": 256,
    "names_a_step": 640,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "blend": 0.5,
    "average_decay": 0.998,
}


def build(tokenizer: Any) -> nn.Module:
    """A fresh ``CLIPModel`` of the sizes in SETTINGS."""
    from transformers import CLIPConfig, CLIPModel

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shared = {"projection_dim": SETTINGS["projection_dim"], "hidden_act": "quick_gelu"}
    config = CLIPConfig(
        vision_config=SETTINGS["vision"] | shared,
        text_config=SETTINGS["text"] | shared | special,
        projection_dim=SETTINGS["projection_dim"],
        logit_scale_init_value=math.log(1 / 0.07),
    )
    config._attn_implementation = (
        "eager"  # sdpa's bfloat16 backward is several times slower on a CPU
    )
    model: nn.Module = CLIPModel(config)
    return model


def augment(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Random placement, colour, background and erased box.

    uint8 RGBA (n, 4, s, s) to the model's input, float (n, 3, IMAGE, IMAGE).
    """
    n, device = len(rgba), rgba.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device=device).uniform_(low, high, generator=generator)

    angle, size = uniform(-0.35, 0.35), uniform(0.8, 1.35)
    cos, sin = size * angle.cos(), size * angle.sin()
    shear = uniform(-0.15, 0.15)
    matrix = torch.stack(
        [cos, shear - sin, uniform(-0.2, 0.2), sin, cos, uniform(-0.2, 0.2)], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(matrix, [n, 4, IMAGE, IMAGE], align_corners=False)
    pixels = F.grid_sample(rgba.float().div_(255), grid, align_corners=False)
    colour, alpha = pixels[:, :3], pixels[:, 3:]

    # Colour: a rotation of hue about the grey axis, then saturation, contrast and brightness.
    turn = uniform(-0.4, 0.4)
    third, root = 1 / 3, math.sqrt(1 / 3)
    diagonal = turn.cos() + third * (1 - turn.cos())
    plus = third * (1 - turn.cos()) + root * turn.sin()
    minus = third * (1 - turn.cos()) - root * turn.sin()
    hue = torch.stack(
        [diagonal, minus, plus, plus, diagonal, minus, minus, plus, diagonal], 1
    ).view(n, 3, 3)
    colour = torch.einsum("nij,njhw->nihw", hue, colour)
    grey = colour.mean(1, keepdim=True)
    saturation = torch.where(
        uniform(0, 1) < 0.1, torch.zeros(n, device=device), uniform(0.4, 1.6)
    ).view(n, 1, 1, 1)
    colour = (
        (grey + (colour - grey) * saturation - 0.5) * uniform(0.7, 1.3, 1, 1, 1)
        + 0.5
        + uniform(-0.2, 0.2, 1, 1, 1)
    )
    tinted = uniform(0, 1, 1, 1, 1) < 0.5
    background = torch.where(
        tinted, uniform(0.5, 1, 3, 1, 1), torch.ones(n, 3, 1, 1, device=device)
    )
    image = colour.clamp(0, 1) * alpha + background * (1 - alpha)

    blurred = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, blurred, image)
    axis = torch.arange(IMAGE, device=device)
    x, y, side = uniform(0, IMAGE, 1), uniform(0, IMAGE, 1), uniform(0, 14, 1)
    box = ((axis - x).abs() < side / 2)[:, None, None, :] & ((axis - y).abs() < side / 2)[
        :, None, :, None
    ]
    return normalise(torch.where(box, background, image))


def normalise(image: Tensor) -> Tensor:
    """Float (n, 3, h, w) in 0..1 to the model's input."""
    mean, std = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (image - mean) / std


def plain(rgba: Tensor) -> Tensor:
    """The picture as it is, on white, at IMAGE pixels."""
    pixels = rgba.float() / 255
    image = pixels[:, :3] * pixels[:, 3:] + (1 - pixels[:, 3:])
    return normalise(
        F.interpolate(
            image,
            (IMAGE, IMAGE),
            mode="area" if RENDERED % IMAGE == 0 else "bilinear",
            antialias=RENDERED % IMAGE != 0,
        )
    )


def parameter_groups(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices inside the layers (for Muon), other weights, and those that take no decay."""
    matrices, others, plain_ones = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            others.append(parameter)
        else:
            plain_ones.append(parameter)
    return matrices, others, plain_ones


@torch.inference_mode()
def features(model: nn.Module, pixels: Tensor) -> Tensor:
    """Unit image embeddings, (n, d)."""
    return torch.cat(
        [
            F.normalize(model.get_image_features(pixel_values=b).pooler_output, dim=-1)  # type: ignore[operator]
            for b in torch.split(pixels, 256)
        ]
    )


@torch.inference_mode()
def classifier(model: nn.Module, tokenizer: Any, names: list[str]) -> Tensor:
    """One unit embedding a name, averaged over text.TEMPLATES: (names, d)."""
    sums: Any = 0
    for template in text.TEMPLATES:
        ids = tokenizer(
            [template.format(c=name) for name in names],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        ids = {k: v.to(next(model.parameters()).device) for k, v in ids.items()}
        sums = sums + F.normalize(model.get_text_features(**ids).pooler_output, dim=-1)  # type: ignore[operator]
    return F.normalize(sums, dim=-1)


def score(
    model: nn.Module, tokenizer: Any, labels: list[str], pixels: Tensor, targets: Tensor
) -> dict[str, float]:
    """Zero-shot accuracy of *pixels* over all *labels*, and over random hundreds of them (20
    draws).
    """
    logits = features(model, pixels) @ classifier(model, tokenizer, labels).T
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)
    hundred, generator = [], torch.Generator().manual_seed(0)
    for _ in range(20):
        chosen = torch.randperm(len(targets), generator=generator)[:100]
        part = logits[chosen][:, targets[chosen]]
        hundred.append((part.argmax(1).cpu() == torch.arange(100)).double().mean())
    return {
        "top1": (ranks == 0).double().mean().item(),
        "top5": (ranks < 5).double().mean().item(),
        "top1_of_100": torch.stack(hundred).mean().item(),
    }


def train(sources: Path, out: Path, epochs: int, seed: int, device: torch.device) -> None:
    """Train for *epochs* passes and write the checkpoint with its model card into *out*."""
    from transformers import CLIPTokenizer

    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator(device=device).manual_seed(seed)
    known = emoji.concepts(sources)
    labels = [concept.label for concept in known]
    text.write_tokenizer([t for c in known for t in text.captions(c, 5, random.Random(seed))], out)
    tokenizer = CLIPTokenizer.from_pretrained(out)

    drawings, concept_of = [], []
    for name in (*emoji.TRAINING, emoji.EVALUATION):
        wanted = [(i, c.icons[name]) for i, c in enumerate(known) if name in c.icons]
        rendered = emoji.pictures(sources, name, [icon for _, icon in wanted], RENDERED)
        progress = tqdm(rendered, total=len(wanted), desc=f"draw {name}")
        drawings.append(torch.from_numpy(np.stack(list(progress))).permute(0, 3, 1, 2).contiguous())
        concept_of.append(torch.tensor([i for i, _ in wanted]))
    held_out, held_concepts = plain(drawings.pop().to(device)), concept_of.pop().to(device)
    pictures, concepts = torch.cat(drawings).to(device), torch.cat(concept_of)
    drawn_by_concept = [(concepts == i).nonzero().flatten().tolist() for i in range(len(known))]

    model = build(tokenizer).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    matrices, others, undecayed = parameter_groups(model)
    rate, decay = SETTINGS["learning_rate"], SETTINGS["weight_decay"]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": others, "weight_decay": decay}, {"params": undecayed, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.98),
        ),
    ]
    batch = SETTINGS["batch"]
    steps = epochs * (len(pictures) // batch)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        for o in optimizers
    ]
    began, step, history = time.monotonic(), 0, []
    bar = tqdm(total=steps, desc="train", smoothing=0.01)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(
            len(pictures), generator=torch.Generator().manual_seed(seed * 10_000 + epoch)
        )
        for chosen in torch.split(order[: len(order) // batch * batch], batch):
            images = augment(pictures[chosen.to(device)], generator)
            # The same concept as two artists drew it, laid over one another: a style nobody draws
            # in.
            partner = torch.tensor(
                [rng.choice(drawn_by_concept[int(concepts[i])]) for i in chosen]
            ).to(device)
            share = torch.rand(batch, 1, 1, 1, generator=generator, device=device)
            blend = (
                torch.rand(batch, 1, 1, 1, generator=generator, device=device) < SETTINGS["blend"]
            )
            share = torch.where(blend, share, torch.ones_like(share))
            images = images * share + augment(pictures[partner], generator) * (1 - share)

            asked = list(dict.fromkeys(concepts[chosen].tolist()))
            asked += rng.sample(
                sorted(set(range(len(known))) - set(asked)), SETTINGS["names_a_step"] - len(asked)
            )
            row = {concept: index for index, concept in enumerate(asked)}
            target = torch.tensor([row[int(c)] for c in concepts[chosen]], device=device)
            words = tokenizer(
                [text.caption(known[i], rng) for i in asked],
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                seen = model.get_image_features(pixel_values=images).pooler_output  # type: ignore[operator]
                read = model.get_text_features(**words).pooler_output  # type: ignore[operator]
            logits = model.logit_scale.exp().clamp(max=100) * (  # type: ignore[operator]
                F.normalize(seen.float(), dim=-1) @ F.normalize(read.float(), dim=-1).T
            )
            loss = F.cross_entropy(logits, target, label_smoothing=SETTINGS["label_smoothing"])
            # The other direction: of the batch's pictures, which belong to this caption?
            positive = F.one_hot(target, len(asked)).T[: int(target.max()) + 1].float()
            loss = (
                loss
                - 0.3
                * (logits.T[: len(positive)].log_softmax(1) * positive)
                .sum(1)
                .div(positive.sum(1))
                .mean()
            )
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            step += 1
            momentum = min(SETTINGS["average_decay"], step / (step + 10))
            with torch.no_grad():
                for averaged, now in zip(average.parameters(), model.parameters(), strict=True):
                    averaged.lerp_(now, 1 - momentum)
            bar.update()
        if epoch % 5 == 0 or epoch == epochs:
            scores = score(average, tokenizer, labels, held_out, held_concepts)
            history.append({"epoch": epoch, "loss": loss.item(), **scores})
            bar.write(
                f"epoch {epoch}: loss {loss.item():.3f}, "
                + ", ".join(f"{k} {v:.1%}" for k, v in scores.items())
            )
            write(
                average,
                out,
                {
                    "epochs": epochs,
                    "seed": seed,
                    "device": _device_name(device),
                    "minutes": round((time.monotonic() - began) / 60, 1),
                    "torch": torch.__version__,
                    "history": history,
                    **SETTINGS,
                },
            )
    bar.close()


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    )


def write(model: nn.Module, out: Path, record: dict[str, Any]) -> None:
    """Save *model* in FP16 with its preprocessing; the record goes next to it for the model
    card.
    """
    from transformers import CLIPImageProcessor

    copy.deepcopy(model).half().save_pretrained(out)  # type: ignore[operator]
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE},
        crop_size={"height": IMAGE, "width": IMAGE},
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sources",
        type=Path,
        required=True,
        help="folder for the emoji packages; fetched if absent",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "models" / "embedded" / "clip"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    chosen = (
        args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    emoji.fetch(args.sources)
    train(args.sources, args.out, args.epochs, args.seed, torch.device(chosen))


if __name__ == "__main__":
    main()
