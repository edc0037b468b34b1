"""Train a diffusion model.

    python training/train.py --config configs/digits.yaml [section.key=value …]

Several GPUs or machines: `accelerate launch training/train.py …`. Every
option of the configuration is listed below, after the program's own.
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
from pathlib import Path

from ddpm_hf.checkpoints.find import find_unet, run_of
from ddpm_hf.checkpoints.run_folder import RESUMABLE, RunFolder
from ddpm_hf.config import load_config
from ddpm_hf.config.root import option_hint, options_help
from ddpm_hf.data.local_files import find_path
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import check_writable


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__, options_help(), option_hint)
    run = parser.add_argument_group("the run")
    run.add_argument("--config", required=True, metavar="FILE", help="its YAML file")
    run.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that win over the file's")
    run.add_argument("--model_type", choices=["ddpm"], help="kind of model; the same as model_type=… (default: ddpm)")
    run.add_argument(
        "--resume",
        metavar="latest|auto|FOLDER|hub:…",
        help="go on from the newest complete checkpoint of this run or of the one in FOLDER, or from the checkpoint in "
        "FOLDER; auto: or start, if there is no run yet (default: start, and refuse a folder that holds a run)",
    )
    run.add_argument(
        "--push_to_hub", action="store_true", help="upload the pipeline to hub.repo_id, or else to the run's own name"
    )
    instead = parser.add_argument_group("instead of training")
    instead.add_argument(
        "--dry_run", action="store_true", help="check everything, print what would be done, do not train"
    )
    instead.add_argument(
        "--eval_only", action="store_true", help="with --benchmark: measure the run's model, train nothing"
    )
    instead.add_argument(
        "--benchmark", action="store_true", help="with --eval_only: compute the metrics of the benchmark section"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Train as the configuration says."""
    overrides = [*([f"model_type={arguments.model_type}"] if arguments.model_type else []), *arguments.overrides]
    config = load_config(arguments.config, overrides)
    find_path(config.dataset.name)
    if arguments.push_to_hub and config.hub.repo_id is None:
        name = Path(config.output_dir or "run").name  # of the run folder, in the user's own account
        config = load_config(arguments.config, [*overrides, f"hub.repo_id={name}"])
    if arguments.eval_only != arguments.benchmark:
        raise UserError(
            "--eval_only, --benchmark: given one of them; allowed: both, to evaluate a trained run, or none"
        )
    if arguments.eval_only:
        model = run_of(config.output_dir, arguments.config)

        with cli.waiting("loading PyTorch and diffusers"):
            from ddpm_hf.evaluation.programs import evaluate_once

        evaluate_once(model, config)
        return
    if config.model.pretrained is not None and arguments.resume is None:
        find_unet(config.model.pretrained, "model_config.pretrained")
    if cli.is_main_process():
        _check_folder(RunFolder(config.output_dir or "runs/run"), arguments)

    with cli.waiting("loading PyTorch and diffusers"):
        from ddpm_hf.training.preflight import draw_plan
        from ddpm_hf.training.trainer import Trainer

    run, resume = RunFolder(config.output_dir or "runs/run"), arguments.resume
    if arguments.dry_run and resume is None and run.holds_a_run:
        resume = "latest"
        if cli.is_main_process():
            print(f"note: {run.path} holds a run; this is the plan of going on with it by --resume latest")
    trainer = Trainer(config, resume)
    if not arguments.dry_run:
        if trainer.accelerator.is_main_process and not trainer.plan.is_finished:
            print(trainer.describe(), flush=True)
        trainer.train()
    elif trainer.accelerator.is_main_process:
        print(trainer.config.to_yaml())
        print(trainer.describe())
        print("pictures:   " + ", ".join(str(picture) for picture in draw_plan(trainer.plan)))


def _check_folder(run: RunFolder, arguments: argparse.Namespace) -> None:
    """Check the run folder before PyTorch is loaded."""
    if not arguments.dry_run:
        run.check_unlocked()
    if arguments.resume is None and not (arguments.dry_run and run.holds_a_run):
        run.check_free()
    elif arguments.resume == "latest":
        run.check_begun()
    elif arguments.resume and not arguments.resume.startswith(("auto", "hub:")) and not Path(arguments.resume).is_dir():
        raise UserError(f"--resume {arguments.resume}: there is no such folder; allowed: {RESUMABLE}")
    check_writable(run.path, "output_dir")


if __name__ == "__main__":
    cli.run(make_parser(), main)
