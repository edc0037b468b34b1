"""The pictures: grids of samples, strips from noise to image, curves of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GAP = 6
"""Pixels between two images of a grid."""

BACKGROUND: dict[str, int | tuple[int, int, int]] = {"L": 255, "RGB": (255, 255, 255)}


def image_grid(images: Sequence[Image.Image], columns: int | None = None, min_side: int = 64) -> Image.Image:
    """Lay images out row by row, with a gap between them.

    Args:
        images: of one size and mode, L or RGB; at least one.
        columns: images in a row; None makes the grid as square as it can be.
        min_side: smaller images are enlarged by a whole factor to at least this many pixels, smoothly: as squares the
            pixels of an 8x8 digit hide what they show.
    """
    if not images:
        raise ValueError("a grid needs at least one image")
    width, height = images[0].size
    factor = max(1, math.ceil(min_side / min(width, height)))
    width, height = width * factor, height * factor
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    grid = Image.new(images[0].mode, size, BACKGROUND[images[0].mode])
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
        grid.paste(enlarged, (column * (width + GAP), row * (height + GAP)))
    return grid


def save_png(image: Image.Image, file: Path) -> None:
    """Write a PNG so that a reader finds all of it or none; its folder is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}")
    image.save(aside, format="PNG")
    aside.replace(file)


def loss_curve(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot the loss and the learning rate of a run over its steps.

    Args:
        records: lines of metrics.jsonl, with step, loss and learning_rate.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure  # takes most of a second to import

    steps = np.array([record["step"] for record in records])
    losses = np.array([record["loss"] for record in records])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(*_smoothed(steps, losses), color="tab:blue", label="loss")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    rate = axes.twinx()
    rate.plot(steps, [record["learning_rate"] for record in records], color="tab:orange", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:orange")
    rate.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    figure.savefig(file, dpi=120)


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over a sliding window of a twentieth of the run."""
    window = max(1, len(values) // 20)
    kernel = np.full(window, 1 / window)
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")
