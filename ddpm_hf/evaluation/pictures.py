"""The pictures of a report, beside its numbers: each drawn once, by the main process."""

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image

from ddpm_hf.evaluation.held_out import HeldOut
from ddpm_hf.evaluation.neighbors import Neighbors, memorized
from ddpm_hf.evaluation.plan import Plan
from ddpm_hf.evaluation.reconstruction import Reconstructions, ddim_range
from ddpm_hf.evaluation.sampling import NUM_SHOWN, read_images, sample_file, to_pil
from ddpm_hf.pipelines import DDPMPipelineOutput
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png

FOLDER = "pictures"
NUM_STRIPS, NUM_STAGES = 6, 10
NUM_PAIRS = 8
NUM_NEIGHBORS_SHOWN = 3
NUM_INTERPOLATION_STEPS = 9


def draw_pictures(
    plan: Plan, held_out: HeldOut, reconstructions: list[Reconstructions], neighbors: Neighbors | None
) -> dict[str, str]:
    """Draw what is not there yet.

    Args:
        plan: of the evaluation, whose samples are there.
        held_out: what was reconstructed.
        reconstructions: by each method; none, if they were not asked for.
        neighbors: the nearest training images of the first samples, or None if they were not asked for.

    Returns:
        For each picture its file, relative to the folder of the evaluation, and what it shows.
    """
    shown = min(NUM_SHOWN, plan.benchmark.n_samples)
    samples = plan.folder / "samples" / f"seed-{plan.drawing.seed}"
    images = [to_pil(image) for image in read_images([sample_file(samples, index) for index in range(shown)])]
    captions: dict[str, str] = {}

    def picture(name: str, caption: str, draw: Callable[[], Image.Image], again: bool = False) -> None:
        file = plan.folder / FOLDER / f"{name}.png"
        captions[file.relative_to(plan.folder).as_posix()] = caption
        if again or not file.exists():
            save_png(draw(), file)

    picture("samples", f"Samples 0 to {shown - 1}, not chosen.", lambda: image_grid(images), again=True)
    count = min(NUM_STRIPS, plan.benchmark.n_samples)
    outputs: list[DDPMPipelineOutput] = []

    def strips(form: Literal["x_t", "x_0"]) -> Image.Image:
        if not outputs:  # drawn at the first use, for both pictures
            outputs.append(plan.drawing.draw(plan.pipeline, range(count), return_intermediates=NUM_STAGES))
        return denoising_strips(outputs, form)

    how = f"{NUM_STAGES} of the steps from noise to image"
    picture("denoising", f"x_t of samples 0 to {count - 1} at {how}, then the image.", lambda: strips("x_t"))
    picture("predicted_x0", f"The image that the network predicted at the same {how}.", lambda: strips("x_0"))
    if reconstructions:
        methods = "; ".join(each.method for each in reconstructions)
        picture("reconstructions", f"Left to right: original; {methods}.", lambda: _pairs(held_out, reconstructions))
    if len(held_out.images) > 1:
        picture(
            "interpolation",
            "Between two held-out images: both encoded by DDIM, mixed spherically, decoded.",
            lambda: _interpolation(plan, held_out),
        )
    if neighbors is not None:
        copies = memorized(neighbors)[:NUM_PAIRS].nonzero().flatten().tolist()
        marked = f"Memorised: {', '.join(map(str, copies))}." if copies else "None of them is memorised."
        caption = f"Samples (left) and their {NUM_NEIGHBORS_SHOWN} nearest training images in feature space. {marked}"
        picture("nearest", caption, lambda: _nearest(plan, images, neighbors), again=True)
    return captions


def _pairs(held_out: HeldOut, reconstructions: list[Reconstructions]) -> Image.Image:
    columns = [held_out.images, *(each.images for each in reconstructions)]
    rows = range(min(NUM_PAIRS, len(held_out.images)))
    return image_grid([to_pil(column[row]) for row in rows for column in columns], columns=len(columns))


def _interpolation(plan: Plan, held_out: HeldOut) -> Image.Image:
    a, b = (to_pil(image) for image in held_out.images[:2])
    labels = None
    if held_out.labels is not None:  # a class at each end, and the change half-way
        first, second = held_out.labels[:2]
        half = NUM_INTERPOLATION_STEPS // 2
        labels = [first] * (NUM_INTERPOLATION_STEPS - half) + [second] * half
    top, steps = ddim_range(plan.pipeline, plan.drawing.num_inference_steps)
    images = plan.pipeline.interpolate(
        a, b, NUM_INTERPOLATION_STEPS, top, num_inference_steps=steps, class_labels=labels
    )
    return image_grid([a, *images, b], columns=NUM_INTERPOLATION_STEPS + 2)


def _nearest(plan: Plan, samples: list[Image.Image], neighbors: Neighbors) -> Image.Image:
    training = plan.splits[plan.training_split].images
    cells = []
    for row in range(min(NUM_PAIRS, len(samples), len(neighbors.indices))):
        found = neighbors.indices[row, :NUM_NEIGHBORS_SHOWN]
        found = torch.cat([found, found[-1:].expand(NUM_NEIGHBORS_SHOWN - len(found))])
        cells += [samples[row], *(to_pil(training[index]) for index in found.tolist())]
    return image_grid(cells, columns=NUM_NEIGHBORS_SHOWN + 1)
