"""Draw images from a trained model.

    python pipelines/generate.py --model FOLDER_OR_REPO --num_samples 16

Under `accelerate launch` the processes share the batches; the images are the
same. A command that was stopped goes on when it is given again.
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf.checkpoints.find import check_options, load_pipeline, pipeline_folder, run_of, weights_hash
from ddpm_hf.config import load_config
from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import check_writable

if TYPE_CHECKING:
    from ddpm_hf.pipelines.sampling import SamplingSettings

MAX_CLASSES_SHOWN = 10
"""Classes, at most, in the name of a folder; a hash stands for more."""

FORMATS = ("png", "npz", "parquet")

SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc", "heun", "euler", "pndm")
"""Those of `ddpm_hf.pipelines.samplers`, which takes seconds to import."""


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__)
    model = parser.add_argument_group("the model, one of").add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="FOLDER_OR_REPO", help="a saved pipeline, a run folder, or an id on the Hub")
    model.add_argument("--config", metavar="FILE", help="the run that this YAML file wrote")
    images = parser.add_argument_group("the images")
    images.add_argument("--num_samples", type=int, default=16, metavar="N", help="how many (default: 16)")
    images.add_argument("--seed", type=int, default=0, metavar="N", help="image i follows from it and i (default: 0)")
    images.add_argument(
        "--class_labels",
        type=int,
        nargs="+",
        metavar="N",
        help="classes that they take in turn, from 0; of a class-conditional model only (default: images of no class)",
    )
    images.add_argument(
        "--guidance_scale", type=float, default=1.0, metavar="W", help="towards the class; 1 is none (default: 1)"
    )
    drawing = parser.add_argument_group("how they are drawn")
    drawing.add_argument("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: the model's own)")
    drawing.add_argument(
        "--num_inference_steps", type=int, metavar="N", help="denoising steps (default: all time steps of the model)"
    )
    drawing.add_argument("--batch_size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    files = parser.add_argument_group("what is written")
    files.add_argument(
        "--output",
        metavar="DIR",
        help="folder (default: one in generated/ of the run folder, named by all that the images depend on)",
    )
    files.add_argument(
        "--format",
        default="png",
        metavar="FORMAT",
        help="png; npz or parquet also collects the PNGs in samples.npz or samples.parquet (default: png)",
    )
    files.add_argument(
        "--grid", metavar="ROWSxCOLUMNS", help="shape of grid.png, such as 2x8 (default: square, of up to 64 images)"
    )
    files.add_argument(
        "--intermediates",
        type=int,
        default=0,
        metavar="K",
        help="the first images at K steps, too: x_t in denoising.png, the x_0 predicted from it in predicted.png "
        "(default: 0)",
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Draw the images."""
    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: given {getattr(arguments, name)}; allowed: at least 1")
    if arguments.format not in FORMATS:
        raise UserError(f"--format: given {arguments.format!r}; allowed: {', '.join(FORMATS)}")
    if arguments.sampler not in (None, *SAMPLERS):
        raise UserError(f"--sampler: given {arguments.sampler!r}; allowed: {', '.join(SAMPLERS)}")
    grid = _grid(arguments.grid, arguments.num_samples)
    model = repo_id_of(arguments.model) or run_of(load_config(arguments.config).output_dir, arguments.config)
    model_folder = pipeline_folder(model)
    T = check_options(model_folder, arguments.class_labels, arguments.guidance_scale)
    steps = T if arguments.num_inference_steps is None else arguments.num_inference_steps
    if not 1 <= steps <= T:
        raise UserError(f"--num_inference_steps: given {steps}; allowed: 1 to {T}, the model's time steps")
    if not 0 <= arguments.intermediates <= steps:
        raise UserError(f"--intermediates: given {arguments.intermediates}; allowed: 0 to {steps}, the denoising steps")
    if arguments.output and cli.is_main_process():
        check_writable(Path(arguments.output), "--output")

    with cli.waiting("loading PyTorch and diffusers"):
        from ddpm_hf.pipelines.generation import Extras, generate
        from ddpm_hf.pipelines.sampling import SamplingSettings
        from ddpm_hf.runtime.distributed import init_distributed

    init_distributed(timedelta(days=1))  # for the others, which may have other batches to draw
    pipeline = load_pipeline(model_folder)
    settings = SamplingSettings(
        seed=arguments.seed,
        num_inference_steps=steps,
        sampler=arguments.sampler,
        class_labels=arguments.class_labels,
        guidance_scale=arguments.guidance_scale,
    )
    archive = None if arguments.format == "png" else arguments.format
    extras = Extras(grid=grid, num_intermediates=arguments.intermediates, archive=archive)
    folder = Path(arguments.output or _default_folder(str(model), settings, weights_hash(pipeline.unet)))
    drawn = generate(pipeline, str(model), settings, arguments.num_samples, folder, arguments.batch_size, extras)
    if cli.is_main_process():
        there = "" if drawn else " (they were there already)"
        images = "1 image" if arguments.num_samples == 1 else f"{arguments.num_samples:,} images"
        classes = " of no class" if pipeline.unet.config.num_class_embeds and not arguments.class_labels else ""
        print(f"{images}{classes} in {folder}/, the first of them in grid.png{there}")
        if arguments.intermediates:
            print("from noise to image: denoising.png and predicted.png")
        if archive:
            print(f"all of them in samples.{archive}")


def _grid(given: str | None, num_samples: int) -> tuple[int, int] | None:
    if given is None:
        return None
    shape = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", given)
    if shape is None:
        raise UserError(f"--grid: given {given!r}; allowed: rows x columns, such as 2x8")
    rows, columns = int(shape[1]), int(shape[2])
    if rows * columns > num_samples:
        raise UserError(f"--grid: {given} has {rows * columns} places; allowed: at most --num_samples, {num_samples}")
    return rows, columns


def _default_folder(model: str, settings: "SamplingSettings", weights: str) -> Path:
    """A folder whose name has all that its images depend on; the one of an earlier version, if it holds the same."""
    base = Path(model) if Path(model).is_dir() else Path("runs") / model.replace("/", "--")
    sampler = f"-{settings.sampler}" if settings.sampler else ""
    name = f"seed-{settings.seed}-steps-{settings.num_inference_steps}{sampler}"
    earlier = base / "generated" / name
    manifest = {"model": model, "weights": weights, **asdict(settings)}
    with suppress(OSError, ValueError):
        if json.loads((earlier / "manifest.json").read_text()) == manifest:
            return earlier
    classes = ""
    if settings.class_labels:
        classes = "-classes-" + "-".join(map(str, settings.class_labels))
        if len(settings.class_labels) > MAX_CLASSES_SHOWN:
            classes = f"-classes-{hashlib.sha256(classes.encode()).hexdigest()[:8]}"
    guidance = f"-guidance-{settings.guidance_scale:g}" if settings.guidance_scale != 1 else ""
    return base / "generated" / f"{name}{classes}{guidance}-weights-{weights[:8]}"


if __name__ == "__main__":
    cli.run(make_parser(), main)
