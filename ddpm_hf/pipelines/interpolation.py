"""The way from one image to another, to disk: its images, a strip and a film of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.pictures import image_grid, save_gif, save_png
from ddpm_hf.pipelines.sampling import check_folder, write_manifest


@dataclass(frozen=True)
class InterpolationSettings:
    """What an interpolation follows from.

    Attributes:
        model: folder or Hub id of the pipeline.
        weights: a hash of the network's weights.
        seeds: of the two ends; None where they are images.
        images: a hash of each image's pixels; None where the ends are seeds.
        num_steps: number of images, both ends among them.
        timestep: t; None is the pipeline's choice.
        method: "ddpm" or "ddim".
        num_inference_steps: denoising steps; None is all of them.
        class_labels: of the first half of the way and of the second, for a class-conditional model.
        seed: of the noise of "ddpm".
    """

    model: str
    weights: str
    seeds: list[int] | None
    images: list[str] | None
    num_steps: int
    timestep: int | None
    method: str
    num_inference_steps: int | None
    class_labels: list[int] | None
    seed: int


def write_interpolation(
    pipeline: DDPMPipeline, settings: InterpolationSettings, images: Sequence[Image.Image], folder: Path
) -> None:
    """Write the images of an interpolation as PNG files, a strip and a GIF of them, and a manifest.

    Args:
        pipeline: draws them.
        settings: of the interpolation; they are kept in the manifest.
        images: the two ends, unless the settings have seeds.
        folder: made if it does not exist.

    Raises:
        UserError: if the folder holds anything but this interpolation.
        ValueError: a setting is not possible for this model.
    """
    check_folder(folder, asdict(settings))
    first, second = settings.seeds or images
    labels = settings.class_labels
    if labels is not None:
        half = settings.num_steps // 2
        labels = [labels[0]] * (settings.num_steps - half) + [labels[-1]] * half
    way = pipeline.interpolate(
        first,
        second,
        settings.num_steps,
        settings.timestep,
        settings.method,
        seed=settings.seed,
        num_inference_steps=settings.num_inference_steps,
        class_labels=labels,
    )
    write_manifest(folder, asdict(settings))
    for index, image in enumerate(way):
        save_png(image, folder / f"{index:03}.png")
    save_png(image_grid(way, columns=len(way)), folder / "strip.png")
    save_gif(way, folder / "interpolation.gif")


def pixels_hash(image: Image.Image) -> str:
    """A hash of an image's mode, size and pixels, whatever file they came from."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]
