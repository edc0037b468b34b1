"""The work behind the buttons: draw, interpolate, inpaint. Each checks the visitor's settings and reports progress."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image

from ddpm_hf.demo.demo_model import DemoModel
from ddpm_hf.demo.visitor_input import MAX_SEED, number
from ddpm_hf.demo.watching import SECONDS_BETWEEN_UPDATES, OnProgress, Progress, WatchedPipeline
from ddpm_hf.pipelines.editing import repaint_moves
from ddpm_hf.pipelines.images import to_output
from ddpm_hf.pipelines.samplers import make_sampler
from ddpm_hf.pipelines.sampling import SamplingSettings, every_class
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.randomness import image_seeds

OWN_SAMPLER = "the model's own"

MAX_STAGES, MAX_STAGES_BYTES = 25, 2**27
"""Stages of a sampling run that are kept to look back at, fewer where they would take more memory than this."""


@dataclass(frozen=True)
class Stage:
    """One step of a sampling run.

    Attributes:
        timestep: t.
        x_t: the noisy images that the network was given.
        x_0: the images that it predicted from them.
    """

    timestep: float
    x_t: list[Image.Image]
    x_0: list[Image.Image]


@dataclass(frozen=True)
class Result:
    """Images and how they were made.

    Attributes:
        images: in the model's own size.
        settings: from which they can be made again.
        name: of the file to download, without its suffix.
        summary: how they were made, for a person, the most important first.
        stages: of the sampling run, from noise to image.
        notes: warnings of the sampler.
    """

    images: list[Image.Image]
    settings: dict[str, Any]
    name: str = "images"
    summary: Sequence[str] = ()
    stages: Sequence[Stage] = ()
    notes: Sequence[str] = ()


def draw(
    model: DemoModel,
    on_progress: OnProgress,
    *,
    count: Any,
    steps: Any,
    seed: Any,
    sampler: str | None = None,
    label: int | None = None,
    guidance: Any = 1.0,
) -> Result:
    """Draw the images that pipelines/generate.py draws with the same settings.

    Args:
        model: draws them.
        on_progress: called after every step, from time to time with the predicted images.
        count: number of images.
        steps: of denoising.
        seed: of the sampling run.
        sampler: a key of `samplers.SAMPLERS`; None is the model's own scheduler.
        label: of all images of a class-conditional model; None takes all classes in turn.
        guidance: scale of classifier-free guidance; 1 is none.

    Raises:
        ValueError: if the settings are not possible, for this model or at all.
    """
    count = number("Images", count, 1, model.limits.images)
    steps = number("Steps", steps, 1, model.limits.steps)
    settings = SamplingSettings(
        seed=number("Seed", seed, 0, MAX_SEED),
        num_inference_steps=steps,
        sampler=sampler,
        class_labels=every_class(model.pipeline) if label is None else _class_labels(model, label),
        guidance_scale=_guidance(model, label, guidance),
    )
    model.limits.check_cost(count, steps if settings.guidance_scale == 1 else 2 * steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if sampler is not None:
            make_sampler(sampler, model.pipeline.scheduler)
    preview, shown_at = None, 0.0

    def keep_preview(_: Any, index: int, timestep: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        nonlocal preview, shown_at
        if time.monotonic() - shown_at > SECONDS_BETWEEN_UPDATES:
            preview, shown_at = _to_pil(state["pred_original_sample"]), time.monotonic()

    def report(progress: Progress) -> None:
        on_progress(replace(progress, images=preview))

    watched = WatchedPipeline.around(model.pipeline, report, model.limits.seconds)
    bytes_per_stage = 2 * 4 * count * model.channels * model.size[0] * model.size[1]  # x_t and x_0 in float32
    num_stages = max(min(MAX_STAGES, steps, MAX_STAGES_BYTES // bytes_per_stage), 2)
    output = settings.draw(watched, range(count), "pil", keep_preview, num_stages)
    classes = _class_summary(settings.class_labels, settings.guidance_scale)
    return Result(
        list(output.images),
        {**model.identity, **asdict(settings), "num_samples": count},
        f"seed-{settings.seed}",
        [f"{count} images", f"seed {settings.seed}", f"{steps} steps", *classes, f"sampler {sampler or OWN_SAMPLER}"],
        [Stage(each.timestep, _to_pil(each.x_t), _to_pil(each.x_0)) for each in output.intermediates or ()],
        [str(each.message) for each in caught if issubclass(each.category, UserWarning)],
    )


def interpolate(
    model: DemoModel,
    on_progress: OnProgress,
    *,
    a: Any,
    b: Any,
    frames: Any,
    steps: Any,
    between_images: bool = False,
    method: str = "ddim",
    label: int | None = None,
) -> Result:
    """Interpolate between two seeds or two images; see `DDPMPipeline.interpolate`.

    Args:
        model: draws the frames.
        on_progress: called after every step.
        a: the first end: a seed, or an image of the model's mode and size.
        b: the other end, of the same kind.
        frames: number of images, both ends among them.
        steps: of denoising.
        between_images: whether the ends are images.
        method: "ddim", or "ddpm" for images.
        label: of a class-conditional model; None is its class 0.

    Raises:
        ValueError: if the settings are not possible.
    """
    if between_images:
        for name, end in (("First", a), ("Second", b)):
            if end is None:
                raise UserError(f"{name} image: nothing was uploaded; choose a file")
        summary = "two uploaded images"
        ends: dict[str, Any] = {"between": summary, **({"seed": 0} if method == "ddpm" else {})}
    else:
        a, b = number("First seed", a, 0, MAX_SEED), number("Second seed", b, 0, MAX_SEED)
        summary, ends = f"seeds {a} to {b}", {"seeds": [a, b]}
    frames = number("Frames", frames, 2, model.limits.frames)
    first = model.time_steps // 2 if method == "ddpm" else model.pipeline.last_with_signal()
    steps = min(number("Steps", steps, 1, model.limits.steps), first + 1)  # it starts below T - 1
    labels = _class_labels(model, label)
    num_passes = 2 if between_images and method == "ddim" else 1  # one more to encode
    model.limits.check_cost(frames, num_passes * steps)
    images = WatchedPipeline.around(model.pipeline, on_progress, model.limits.seconds, num_passes).interpolate(
        a, b, frames, method=method, num_inference_steps=steps, class_labels=labels and labels[0]
    )
    settings = {"interpolation": method, **ends, "frames": frames, "num_inference_steps": steps, "class_labels": labels}
    words = [summary, f"{frames} frames", method, f"{steps} steps", *_class_summary(labels)]
    return Result(list(images), {**model.identity, **settings}, "interpolation", words)


def inpaint(
    model: DemoModel,
    on_progress: OnProgress,
    *,
    image: Image.Image | None,
    mask: Image.Image,
    variants: Any,
    steps: Any,
    seed: Any,
    label: int | None = None,
    guidance: Any = 1.0,
) -> Result:
    """Fill in a part of an image, several times (RePaint, Lugmayr et al., algorithm 1).

    Args:
        model: draws the variants.
        on_progress: called after every step.
        image: of the model's mode and size.
        mask: white where to paint, of that size.
        variants: number of images.
        steps: of denoising, each of which is done ten times.
        seed: of the variants.
        label: of a class-conditional model; None is its class 0.
        guidance: scale of classifier-free guidance; 1 is none.

    Raises:
        ValueError: if nothing is painted, or the settings are not possible.
    """
    if image is None:
        raise UserError("Image: there is none yet; upload one, or let the model draw one")
    if mask.getextrema() == (0, 0):
        raise UserError("Mask: nothing is painted; draw with the brush over the part to replace")
    variants = number("Variants", variants, 1, model.limits.variants)
    steps = number("Steps", steps, 1, model.limits.inpainting_steps)
    seed = number("Seed", seed, 0, MAX_SEED)
    guidance = _guidance(model, label, guidance)
    labels = _class_labels(model, label)
    num_evaluations = sum(is_denoising for _, is_denoising in repaint_moves(steps))
    model.limits.check_cost(variants, num_evaluations if guidance == 1 else 2 * num_evaluations)
    images = WatchedPipeline.around(model.pipeline, on_progress, model.limits.seconds).inpaint(
        [image] * variants,
        mask,
        num_inference_steps=steps,
        seeds=image_seeds(seed, range(variants)),
        class_labels=labels and labels[0],
        guidance_scale=guidance,
    )
    settings = {
        "inpainting": "repaint",
        "seed": seed,
        "num_samples": variants,
        "num_inference_steps": steps,
        "class_labels": labels,
        "guidance_scale": guidance,
        "network_evaluations": num_evaluations,
    }
    words = [f"{variants} variants", f"seed {seed}", f"{steps} steps", *_class_summary(labels, guidance)]
    words += [f"{num_evaluations:,} network evaluations"]
    return Result(list(images), {**model.identity, **settings}, "inpainting", words)


def _class_labels(model: DemoModel, label: int | None) -> list[int] | None:
    """One class for all images of a class-conditional model, by default 0; None for no class."""
    return None if model.num_labels is None or label == model.num_labels - 1 else [label or 0]


def _guidance(model: DemoModel, label: int | None, guidance: Any) -> float:
    """The scale that a visitor gives; without a class there is nothing to guide to."""
    scale = number("Guidance", guidance, 0, 20, whole=False)
    return 1.0 if model.num_labels is not None and label == model.num_labels - 1 else scale


def _class_summary(labels: Sequence[int] | None, guidance: float | None = None) -> list[str]:
    """The classes of some images and the scale of their guidance, for a person."""
    if labels is None:
        return []
    classes = f"class {labels[0]}" if len(labels) == 1 else f"classes 0 to {labels[-1]} in turn"
    return [classes] if guidance is None else [classes, f"guidance {guidance:g}"]


def _to_pil(images: torch.Tensor) -> list[Image.Image]:
    return to_output(images, "pil")  # type: ignore[return-value]  # "pil" gives a list
