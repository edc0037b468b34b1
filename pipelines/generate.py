"""Draw images from a trained model: python pipelines/generate.py --model FOLDER_OR_REPO --num_samples 16"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf import cli
from ddpm_hf.config import load_config
from ddpm_hf.errors import UserError

if TYPE_CHECKING:
    from ddpm_hf.pipelines.generation import Settings


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="FOLDER_OR_REPO", help="a saved pipeline, a run folder, or an id on the Hub")
    model.add_argument("--config", metavar="FILE", help="sample the run that this YAML file wrote")
    parser.add_argument("--num_samples", type=int, default=16, metavar="N", help="images to draw (default: 16)")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="denoising steps (default: as trained)")
    parser.add_argument("--sampler", metavar="NAME", help="ddim, dpmsolver++, … (default: the model's own scheduler)")
    parser.add_argument("--class_labels", type=int, nargs="+", metavar="N", help="classes that the images take in turn")
    parser.add_argument("--guidance_scale", type=float, default=1.0, metavar="W", help="guidance (default: 1, none)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="image i follows from it and i (default: 0)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument(
        "--output", metavar="DIR", help="where to put them (default: generated/seed-N in the run folder)"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Draw the images."""
    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: given {getattr(arguments, name)}; allowed: at least 1")
    model = arguments.model or load_config(arguments.config).output_dir or ""
    if arguments.config and not Path(model).is_dir():
        raise UserError(f"--config: the run of {arguments.config} has not begun, there is no folder {model}")

    from ddpm_hf.hub.loading import load_pipeline
    from ddpm_hf.pipelines.generation import Settings, generate, weights_hash

    pipeline = load_pipeline(model)
    T = pipeline.scheduler.config.num_train_timesteps
    steps = T if arguments.num_inference_steps is None else arguments.num_inference_steps
    if not 1 <= steps <= T:
        raise UserError(f"--num_inference_steps: given {steps}; allowed: 1 to {T}, the model's time steps")
    settings = Settings(
        model=str(model),
        weights=weights_hash(pipeline.unet),
        seed=arguments.seed,
        num_inference_steps=steps,
        sampler=arguments.sampler,
        class_labels=arguments.class_labels,
        guidance_scale=arguments.guidance_scale,
    )
    folder = Path(arguments.output) if arguments.output else _default_folder(model, settings)
    drawn = generate(pipeline, settings, arguments.num_samples, folder, arguments.batch_size)
    if cli.is_main_process():
        there = "" if drawn else " (they were there already)"
        print(f"{arguments.num_samples} images in {folder}/, the first of them in {folder / 'grid.png'}{there}")


def _default_folder(model: str, settings: "Settings") -> Path:
    base = Path(model) if Path(model).is_dir() else Path("runs") / model.replace("/", "--")
    sampler = f"-{settings.sampler}" if settings.sampler else ""
    return base / "generated" / f"seed-{settings.seed}-steps-{settings.num_inference_steps}{sampler}"


if __name__ == "__main__":
    cli.run(make_parser(), main)
