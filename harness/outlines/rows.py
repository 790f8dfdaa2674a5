"""All architectures: those of the table, and CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

from harness.models import architectures
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
