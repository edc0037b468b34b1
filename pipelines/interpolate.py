"""Lead from one image to another.

    python pipelines/interpolate.py --model FOLDER_OR_REPO --seeds 1 2

Writes the images of the way, a strip of them and a GIF that runs forth and
back.
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf.checkpoints.find import check_options, load_pipeline, pipeline_folder, run_of, weights_hash
from ddpm_hf.config import load_config
from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import check_writable

if TYPE_CHECKING:
    from PIL import Image

METHODS = ("ddim", "ddpm")


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__)
    model = parser.add_argument_group("the model, one of").add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="FOLDER_OR_REPO", help="a saved pipeline, a run folder, or an id on the Hub")
    model.add_argument("--config", metavar="FILE", help="the run that this YAML file wrote")
    ends = parser.add_argument_group("from where to where, one of").add_mutually_exclusive_group(required=True)
    ends.add_argument("--seeds", type=int, nargs=2, metavar="N", help="between the images of two seeds")
    ends.add_argument("--images", nargs=2, metavar="FILE", help="between two images, converted as training does")
    way = parser.add_argument_group("the way")
    way.add_argument("--num_steps", type=int, default=8, metavar="N", help="images, both ends included (default: 8)")
    way.add_argument(
        "--method",
        default="ddim",
        metavar="NAME",
        help="ddim: encode both, and go along the arc between the codes; ddpm: mix both under noise (default: ddim)",
    )
    way.add_argument(
        "--timestep",
        type=int,
        metavar="T",
        help="noise of the images that are mixed (default: nearly all with ddim, half the steps with ddpm)",
    )
    way.add_argument(
        "--num_inference_steps", type=int, metavar="N", help="denoising steps (default: all up to the timestep)"
    )
    way.add_argument(
        "--class_labels",
        type=int,
        nargs="+",
        metavar="N",
        help="class of both ends, or of each; of a class-conditional model only (default: images of no class)",
    )
    way.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise of ddpm (default: 0)")
    files = parser.add_argument_group("what is written")
    files.add_argument("--output", metavar="DIR", help="folder (default: interpolated/A-to-B-METHOD in the run folder)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Draw the way."""
    if arguments.num_steps < 2:
        raise UserError(f"--num_steps: given {arguments.num_steps}; allowed: at least 2, for the two ends")
    if arguments.method not in METHODS:
        raise UserError(f"--method: given {arguments.method!r}; allowed: {', '.join(METHODS)}")
    if arguments.seeds and (arguments.method == "ddpm" or arguments.timestep is not None):
        raise UserError("--seeds: goes with --method ddim and without --timestep; give --images for the others")
    if arguments.class_labels and len(arguments.class_labels) > 2:
        raise UserError(f"--class_labels: given {len(arguments.class_labels)}; allowed: one for both ends or one each")
    for file in arguments.images or ():
        if not Path(file).is_file():
            raise UserError(f"--images: there is no file {file}")
    model = repo_id_of(arguments.model) or run_of(load_config(arguments.config).output_dir, arguments.config)
    model_folder = pipeline_folder(model)
    check_options(model_folder, arguments.class_labels)
    if not cli.is_main_process():
        return
    if arguments.output:
        check_writable(Path(arguments.output), "--output")

    with cli.waiting("loading PyTorch and diffusers"):
        from ddpm_hf.evaluation.plan import dataset_of
        from ddpm_hf.pipelines.generation import check_folder, pixels_hash, write_interpolation
        from ddpm_hf.pipelines.images import as_trained

    opened = [_open(file) for file in arguments.images or ()]
    pipeline = load_pipeline(model_folder)
    channels, height, width = pipeline.image_shape
    images = [as_trained(image, (height, width), channels, dataset_of(model_folder)) for image in opened]
    pipeline.set_progress_bar_config(desc="interpolating", leave=False, dynamic_ncols=True, delay=0.5)
    settings = {
        "model": str(model),
        "weights": weights_hash(pipeline.unet),
        "seeds": arguments.seeds,
        "images": [pixels_hash(image) for image in images] or None,
        "num_steps": arguments.num_steps,
        "timestep": arguments.timestep,
        "method": arguments.method,
        "num_inference_steps": arguments.num_inference_steps,
        "class_labels": arguments.class_labels,
        "seed": arguments.seed,
    }
    folder = Path(arguments.output) if arguments.output else _default_folder(model, arguments)
    check_folder(folder, settings)
    first, second = arguments.seeds or images
    labels = arguments.class_labels
    if labels is not None:  # of the first half of the images and of the second
        half = arguments.num_steps // 2
        labels = [labels[0]] * (arguments.num_steps - half) + [labels[-1]] * half
    way = pipeline.interpolate(
        first,
        second,
        arguments.num_steps,
        arguments.timestep,
        arguments.method,
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        class_labels=labels,
    )
    write_interpolation(list(way), settings, folder)
    print(f"{arguments.num_steps} images, strip.png and interpolation.gif in {folder}/")


def _open(file: str) -> "Image.Image":
    from ddpm_hf.data.pixels import open_image

    try:
        return open_image(file)
    except ValueError as error:
        raise UserError(f"--images: {file} cannot be read: {error}") from error


def _default_folder(model: str, arguments: argparse.Namespace) -> Path:
    base = Path(model) if Path(model).is_dir() else Path("runs") / model.replace("/", "--")
    ends = [f"seed-{seed}" for seed in arguments.seeds or ()] or [Path(file).stem for file in arguments.images]
    return base / "interpolated" / f"{'-to-'.join(ends)}-{arguments.method}"


if __name__ == "__main__":
    cli.run(make_parser(), main)
