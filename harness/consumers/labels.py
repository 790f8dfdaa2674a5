"""What a probe is asked of each token: labels from the pictures' pixels and from the texts.

The drawings of the embedded data stand on one plain colour.  What that colour covers, connected to
the edge of the picture, is the background: where the drawing was transparent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

#: Largest difference of a channel from the colour of the edge that still is background: what
#: lossy compression leaves.
_NEAR = 24
#: Share of a patch's pixels that are the drawing's where the patch is foreground.
_COVERED = 0.5
#: The colours that a patch may have; hues in degrees, each up to the next one's beginning.
COLOURS = ("black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple")
_HUES = ((0.0, 3), (18.0, 4), (45.0, 5), (70.0, 6), (170.0, 7), (260.0, 8), (335.0, 3))
_PALE, _DARK, _BRIGHT = 0.2, 0.25, 0.85

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]


def foreground(picture: Bytes) -> npt.NDArray[np.bool_]:
    """Which pixels of *picture*, (height, width, 3), are the drawing's."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = np.median(edge, axis=0)
    near = (np.abs(picture.astype(np.int16) - background) <= _NEAR).all(axis=-1)
    regions, _ = ndimage.label(near)
    outer = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return np.asarray(~np.isin(regions, outer[outer > 0]))


def colours(picture: Bytes) -> Ints:
    """The colour of each pixel of *picture*, (height, width, 3), as an index of COLOURS."""
    rgb = picture.astype(np.float64) / 255
    value, spread = rgb.max(axis=-1), np.ptp(rgb, axis=-1)
    safe = np.where(spread == 0, 1.0, spread)
    red, green, blue = (rgb[..., channel] for channel in range(3))
    hue = np.select(
        [value == red, value == green],
        [((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    begins = np.asarray([begin for begin, _ in _HUES])
    named = np.asarray([colour for _, colour in _HUES])
    indices = named[np.searchsorted(begins, 60 * hue, side="right") - 1]
    pale = spread < _PALE * np.where(value == 0, 1.0, value)
    indices = np.where(pale & (value < _BRIGHT), COLOURS.index("grey"), indices)
    indices = np.where(pale & (value >= _BRIGHT), COLOURS.index("white"), indices)
    return np.asarray(np.where(value < _DARK, COLOURS.index("black"), indices), dtype=np.int32)


def of_patches(pictures: Bytes, rows: int, columns: int) -> tuple[Ints, Ints]:
    """Of each patch, row by row: 1 where it is foreground and 0 elsewhere, and its dominant colour.

    Args:
        pictures: (n, 3, height, width).
        rows: patches from top to bottom.
        columns: patches from left to right.
    """
    shown, coloured = [], []
    for picture in pictures.transpose(0, 2, 3, 1):
        drawn, shades = foreground(picture), colours(picture)
        height, width = picture.shape[0] // rows, picture.shape[1] // columns
        for row in range(rows):
            for column in range(columns):
                patch = (
                    slice(row * height, (row + 1) * height),
                    slice(column * width, (column + 1) * width),
                )
                shown.append(int(drawn[patch].mean() >= _COVERED))
                counts = np.bincount(shades[patch].ravel(), minlength=len(COLOURS))
                coloured.append(int(counts.argmax()))
    shape = (len(pictures), rows * columns)
    return (
        np.asarray(shown, np.int32).reshape(shape),
        np.asarray(coloured, np.int32).reshape(shape),
    )
