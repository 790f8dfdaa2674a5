"""All architectures: those of the table, and CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

import json

from harness.models import architectures
from harness.models.checkpoint_files import EMBEDDED
from harness.outlines.table import PUBLISHED, Row, Stack

#: CLIP, SigLIP and SigLIP 2, whose sizes :mod:`harness.models.architectures` holds.
_CONTRASTIVE = {
    "vision": ("vision_model.", "visual_projection"),
    "language": ("text_model.", "text_projection"),
}
_TOWERS = (
    Stack("text_model.encoder.layers", "text_config"),
    Stack("vision_model.encoder.layers", "vision_config"),
)
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}

ROWS = (
    *PUBLISHED,
    *(
        Row(
            name,
            family,
            _CLASSES[family],
            "harness/models/architectures.py",
            known.sizes,
            _TOWERS,
            _CONTRASTIVE,
            panel=False,
        )
        for name, known in architectures.ARCHITECTURES.items()
        if (family := known.family) in _CLASSES
    ),
)


def embedded() -> Row:
    """The architecture of the embedded model, which no recipe is for and no option names."""
    sizes = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    shapes = {name: sizes[name] for name in ("text_config", "vision_config", "projection_dim")}
    return Row(
        "embedded", "clip", "CLIPModel", "config.json", shapes, _TOWERS, _CONTRASTIVE, panel=False
    )
