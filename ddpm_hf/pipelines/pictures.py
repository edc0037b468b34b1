"""The pictures: grids of samples, strips from noise to image, curves of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from ddpm_hf.pipelines.ddpm import DDPMPipelineOutput
from ddpm_hf.pipelines.images import to_output
from ddpm_hf.runtime.files import atomic_write
from ddpm_hf.schedulers.process import posterior_coefficients, snr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 6
"""Pixels between two images of a grid."""


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
    grid = Image.new(images[0].mode, size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
        grid.paste(enlarged, (column * (width + GAP), row * (height + GAP)))
    return grid


def denoising_strips(outputs: Sequence[DDPMPipelineOutput], form: Literal["x_t", "x_0"] = "x_t") -> Image.Image:
    """Lay out one row per image: what it was at each intermediate step, from noise to image, and then the image.

    Args:
        outputs: of the pipeline, with PIL images and equally many intermediates; at least one.
        form: "x_t" shows what the network saw, "x_0" the image that it predicted then.
    """
    columns: list[list[Any]] = [[], *([] for _ in outputs[0].intermediates or ())]
    for output in outputs:
        stages = [to_output(getattr(stage, form), "pil") for stage in output.intermediates or ()]
        for column, images in zip(columns, [*stages, output.images], strict=True):
            column.extend(images)
    return image_grid([image for row in zip(*columns, strict=True) for image in row], columns=len(columns))


def save_png(image: Image.Image, file: Path) -> None:
    """Write a PNG so that a reader finds all of it or none; its folder is made if need be."""
    with atomic_write(file) as aside:
        image.save(aside, format="PNG")


def save_gif(images: Sequence[Image.Image], file: Path, min_side: int = 128) -> None:
    """Write a film that runs through the images, back again, and on for ever; it rests at both ends.

    Args:
        images: of one size and mode, L or RGB; at least two.
        file: to write; its folder is made if need be.
        min_side: smaller images are enlarged to at least this many pixels, as in `image_grid`.
    """
    large = [image_grid([image], min_side=min_side) for image in images]
    frames = [*large, *large[-2:0:-1]]
    milliseconds = [100] * len(frames)
    milliseconds[0] = milliseconds[len(large) - 1] = 600
    with atomic_write(file) as aside:
        frames[0].save(aside, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def loss_curve(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot the loss and the learning rate of a run over its steps.

    Args:
        records: lines of metrics.jsonl, with step, loss and learning_rate.
        file: the PNG to write.
    """
    steps = np.array([record["step"] for record in records])
    losses = np.array([record["loss"] for record in records])
    window = max(1, len(losses) // 20)
    mean = np.full(window, 1 / window)  # over a sliding window of a twentieth of the run
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(np.convolve(steps, mean, "valid"), np.convolve(losses, mean, "valid"), color="tab:blue", label="loss")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    rate = axes.twinx()
    rate.plot(steps, [record["learning_rate"] for record in records], color="tab:orange", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:orange")
    rate.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    _save(figure, file)


def schedule_curves(alpha_bar: ArrayLike, file: Path) -> None:
    """Plot a noise schedule over its timesteps: signal and noise, signal-to-noise ratio, and variances of a step.

    Args:
        alpha_bar: alpha_bar_t for t = 0 … T - 1, in [0, 1); an array or a tensor on the CPU.
        file: the PNG to write; its folder is made if need be.

    Raises:
        ValueError: alpha_bar is no falling row of such numbers.
    """
    values = np.asarray(alpha_bar, dtype=np.float64)
    row = values.ndim == 1 and len(values) > 0
    if not row or not (values[-1] >= 0 and values[0] < 1 and (np.diff(values) < 0).all()):
        raise ValueError(f"alpha_bar is {alpha_bar!r}; possible is a row of falling numbers in [0, 1), one for each t")
    before = np.concatenate([[1.0], values[:-1]])
    _, _, beta_tilde = posterior_coefficients(torch.from_numpy(values), torch.from_numpy(before))
    figure = _figure(12, 3.8)
    signal, ratio, variance = figure.subplots(1, 3)
    signal.plot(values, label=r"$\bar\alpha_t$")
    signal.plot(np.sqrt(values), label=r"$\sqrt{\bar\alpha_t}$, signal")
    signal.plot(np.sqrt(1 - values), label=r"$\sqrt{1-\bar\alpha_t}$, noise")
    signal.set(title=rf"at the end, $\sqrt{{\bar\alpha_T}}$ = {np.sqrt(values[-1]):.2g}", xlabel="timestep t")
    ratio.plot(snr(torch.from_numpy(values)))
    ratio.set(title="signal-to-noise ratio", yscale="log", xlabel="timestep t")
    steps = np.arange(1, len(values) + 1)  # logarithmic from the first: there alone the two variances differ
    variance.plot(steps, 1 - values / before, label=r"$\beta_t$, fixed_large")
    variance.plot(steps[1:], beta_tilde[1:], label=r"$\tilde\beta_t$, fixed_small")
    variance.set(title="variance of a step", xscale="log", yscale="log", xlabel="timestep t + 1")
    for axes in (signal, ratio, variance):
        axes.grid(alpha=0.3)
    signal.legend()
    variance.legend()
    _save(figure, file)


def learning_rate_curve(rates: Sequence[float], file: Path) -> None:
    """Plot the learning rate of each update of a run.

    Args:
        rates: of update 0, 1, …; at least one.
        file: the PNG to write; its folder is made if need be.
    """
    figure = _figure(8, 3)
    axes = figure.subplots()
    axes.plot(rates, color="tab:orange", marker="o" if len(rates) == 1 else None)
    axes.set(xlabel="update", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _save(figure, file)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # takes most of a second to import

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", file: Path) -> None:
    with atomic_write(file) as aside:
        figure.savefig(aside, dpi=120, format="png")
