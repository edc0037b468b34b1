"""What the buttons of the page do: draw, interpolate, inpaint. Each checks what it is given and tells how far it is."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image

from ddpm_hf.demo.limits import MAX_SEED, number, whole
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.watching import EVERY, Tell, WatchedPipeline
from ddpm_hf.pipelines.images import to_output
from ddpm_hf.pipelines.inpainting import repaint_moves
from ddpm_hf.pipelines.samplers import make_sampler
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.randomness import image_seeds

MAX_STAGES, STAGES_BYTES = 25, 2**27
"""Of a sampling run, to look back at: so many steps, or fewer where they would take more than this."""

Label = int | None


@dataclass(frozen=True)
class Stage:
    """One step of a sampling run.

    Attributes:
        timestep: t.
        x_t: what the network saw.
        x_0: the images that it predicted then.
    """

    timestep: float
    x_t: list[Image.Image]
    x_0: list[Image.Image]


@dataclass(frozen=True)
class Made:
    """Images and how they were made.

    Attributes:
        images: of the model's own size.
        settings: from which they can be made again.
        seconds: that it took.
        stages: from noise to image.
        notes: what its sampler warned of.
    """

    images: list[Image.Image]
    settings: dict[str, Any]
    seconds: float
    stages: Sequence[Stage] = ()
    notes: Sequence[str] = ()


def draw(
    model: DemoModel,
    tell: Tell,
    *,
    count: Any,
    steps: Any,
    seed: Any,
    sampler: str | None = None,
    label: Label = None,
    guidance: Any = 1.0,
) -> Made:
    """Draw images: those that pipelines/generate.py draws with the same settings.

    Args:
        model: draws them.
        tell: is told of every step, from time to time with the images that the network predicts then.
        count: number of images.
        steps: of denoising.
        seed: of the sampling run.
        sampler: one of `samplers.SAMPLERS`; None is the model's own scheduler.
        label: of all images of a class-conditional model; None lets them take all classes in turn.
        guidance: of classifier-free guidance; 1 is none.

    Raises:
        ValueError: the settings are not possible, for this model or at all.
    """
    count = whole("Images", count, 1, model.limits.images)
    num_steps = whole("Steps", steps, 1, model.limits.steps)
    settings = SamplingSettings(
        seed=whole("Seed", seed, 0, MAX_SEED),
        num_inference_steps=num_steps,
        sampler=sampler,
        class_labels=_labels(model, label),
        guidance_scale=number("Guidance", guidance, 0, 20),
    )
    notes = _notes(model, sampler)
    start, preview, looked = time.monotonic(), None, 0.0

    def look(_: Any, index: int, timestep: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        nonlocal preview, looked
        if time.monotonic() - looked > EVERY:
            preview, looked = _pil(state["pred_original_sample"]), time.monotonic()

    watched = WatchedPipeline.around(model.pipeline, lambda progress: tell(replace(progress, images=preview)))
    output: Any = settings.draw(watched, range(count), "pil", look, _num_stages(model, count, num_steps))
    stages = [Stage(each.timestep, _pil(each.x_t), _pil(each.x_0)) for each in output.intermediates]
    made_from = {"model": model.name, "weights": model.weights, **asdict(settings), "num_samples": count}
    return Made(output.images, made_from, time.monotonic() - start, stages, notes)


def interpolate_seeds(
    model: DemoModel, tell: Tell, *, a: Any, b: Any, frames: Any, steps: Any, label: Label = None
) -> Made:
    """Lead from the first image of one seed to that of another, by DDIM (Song et al., section 5.3).

    Args:
        model: draws them.
        tell: is told of every step.
        a: seed of the sampling run whose first image is the beginning.
        b: the same for the end.
        frames: number of images, both ends among them.
        steps: of denoising.
        label: of a class-conditional model; None is its class 0.

    Raises:
        ValueError: the settings are not possible.
    """
    seeds = whole("First seed", a, 0, MAX_SEED), whole("Second seed", b, 0, MAX_SEED)
    noises = [image_seeds(seed, [0])[0] for seed in seeds]
    own = {"seeds": list(seeds), "noise_seeds": noises}
    return _interpolate(model, tell, noises[0], noises[1], frames, steps, "ddim", label, own, num_runs=1)


def interpolate_images(
    model: DemoModel,
    tell: Tell,
    *,
    a: Image.Image | None,
    b: Image.Image | None,
    frames: Any,
    steps: Any,
    method: str = "ddim",
    seed: Any = 0,
    label: Label = None,
) -> Made:
    """Lead from one given image to another; see `Editing.interpolate`.

    Args:
        model: draws them.
        tell: is told of every step.
        a: the beginning, as `pictures.read_upload` gives it.
        b: the end.
        frames: number of images, both ends among them.
        steps: of denoising.
        method: "ddim" or "ddpm".
        seed: of the noise of "ddpm".
        label: of a class-conditional model; None is its class 0.

    Raises:
        ValueError: the settings are not possible.
    """
    if a is None or b is None:
        raise UserError(f"{'First' if a is None else 'Second'} image: nothing was uploaded; choose a file")
    ends = "two uploaded images"
    own = {"between": ends} | ({"seed": whole("Seed", seed, 0, MAX_SEED)} if method == "ddpm" else {})
    return _interpolate(model, tell, a, b, frames, steps, method, label, own, num_runs=2 if method == "ddim" else 1)


def _interpolate(
    model: DemoModel,
    tell: Tell,
    a: Any,
    b: Any,
    frames: Any,
    steps: Any,
    method: str,
    label: Label,
    own: dict[str, Any],
    num_runs: int,
) -> Made:
    frames = whole("Frames", frames, 2, model.limits.frames)
    steps = whole("Steps", steps, 1, model.limits.steps)
    steps = min(steps, _start(model, method) + 1)  # it does not begin at the top
    labels = _labels(model, 0 if label is None else label)
    start = time.monotonic()
    images = WatchedPipeline.around(model.pipeline, tell, num_runs).interpolate(
        a,
        b,
        num_steps=frames,
        method=method,
        seed=own.get("seed", 0),
        num_inference_steps=steps,
        class_labels=None if labels is None else labels[0],
    )
    settings = {"model": model.name, "weights": model.weights, "interpolation": method, **own}
    settings |= {"frames": frames, "num_inference_steps": steps, "class_labels": labels}
    return Made(images, settings, time.monotonic() - start)


def inpaint(
    model: DemoModel,
    tell: Tell,
    *,
    image: Image.Image | None,
    mask: Image.Image | None,
    variants: Any,
    steps: Any,
    seed: Any,
    label: Label = None,
    guidance: Any = 1.0,
) -> Made:
    """Paint a part of an image anew, several times (RePaint, Lugmayr et al., algorithm 1).

    Args:
        model: draws them.
        tell: is told of every step.
        image: of the model's mode and size.
        mask: white where to paint, of that size; see `pictures.read_mask`.
        variants: number of images.
        steps: each of which is done ten times.
        seed: of the variants.
        label: of a class-conditional model; None is its class 0.
        guidance: of classifier-free guidance; 1 is none.

    Raises:
        ValueError: there is nothing to paint, or the settings are not possible.
    """
    if image is None:
        raise UserError("Image: there is none yet; upload one, or let the model draw one")
    if mask is None or mask.getextrema() == (0, 0):
        raise UserError("Mask: nothing is painted; draw with the brush over the part that shall be made anew")
    variants = whole("Variants", variants, 1, model.limits.variants)
    steps = whole("Steps", steps, 1, model.limits.inpainting_steps)
    seed = whole("Seed", seed, 0, MAX_SEED)
    guidance = number("Guidance", guidance, 0, 20)
    labels = _labels(model, 0 if label is None else label)
    start = time.monotonic()
    images = WatchedPipeline.around(model.pipeline, tell).inpaint(
        [image] * variants,
        mask,
        num_inference_steps=steps,
        seeds=image_seeds(seed, range(variants)),
        class_labels=None if labels is None else labels[0],
        guidance_scale=guidance,
    )
    settings = {"model": model.name, "weights": model.weights, "inpainting": "repaint", "seed": seed}
    settings |= {"num_samples": variants, "num_inference_steps": steps, "class_labels": labels}
    settings |= {"guidance_scale": guidance, "network_evaluations": sum(down for _, down in repaint_moves(steps))}
    return Made(images, settings, time.monotonic() - start)


def _notes(model: DemoModel, sampler: str | None) -> list[str]:
    """What a sampler warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if sampler is not None:
            make_sampler(sampler, model.pipeline.scheduler)
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


def _start(model: DemoModel, method: str) -> int:
    """The timestep that `Editing.interpolate` begins at."""
    if method == "ddpm":
        return model.time_steps // 2
    return model.pipeline.last_with_signal()


def _labels(model: DemoModel, label: Label) -> list[int] | None:
    """One class, or all of them but the one that stands for none."""
    if model.num_labels is None:
        return None
    return list(range(max(model.num_labels - 1, 1))) if label is None else [label]


def _num_stages(model: DemoModel, count: int, steps: int) -> int:
    height, width = model.size
    each = 2 * 4 * count * model.channels * height * width  # x_t and x_0 in float32
    return max(min(MAX_STAGES, steps, STAGES_BYTES // each), 2)


def _pil(images: torch.Tensor) -> list[Image.Image]:
    return to_output(images, "pil")  # type: ignore[return-value]  # "pil" gives a list
