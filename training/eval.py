"""Measure a trained model, or put evaluations side by side.

    python training/eval.py --model FOLDER_OR_REPO --config configs/digits.yaml
    python training/eval.py --model M --config C
        --sweep sampler=ddim,dpmsolver++ num_inference_steps=10,20,50
    python training/eval.py compare A B C
        (folders of models, runs or evaluations; see compare --help)

`accelerate launch training/eval.py …` spreads the work over processes; the
figures are the same. Every option of the configuration that matters is listed
below, after the program's own.
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
import os
import sys
from pathlib import Path

from ddpm_hf.checkpoints.find import find_folder, run_of
from ddpm_hf.config import load_config
from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.config.root import option_hint, options_help
from ddpm_hf.data.local_files import find_path
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.files import check_writable


def make_parser() -> cli.Parser:
    """The command line of an evaluation."""
    parser = cli.Parser(__doc__, options_help("seed", "dataset", "benchmark"), option_hint)
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--model",
        metavar="FOLDER_OR_REPO",
        help="a saved pipeline, a run folder, or an id on the Hub (default: the run that the YAML file wrote)",
    )
    what.add_argument("--config", required=True, metavar="FILE", help="a YAML file: how, and on which images")
    what.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that win over the file's")
    what.add_argument(
        "--sweep",
        nargs="+",
        metavar="OPTION=VALUE,…",
        help="every combination of these options of the benchmark section, with quality set against cost "
        "(default: one evaluation)",
    )
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output", metavar="DIR", help="folder of the report (default: one in evaluation/ below the model's)"
    )
    return parser


def make_compare_parser() -> cli.Parser:
    """The command line of a comparison."""
    parser = cli.Parser("Put evaluations side by side.", prog="eval.py compare")
    parser.add_argument("evaluations", nargs="+", metavar="FOLDER", help="of a model, a run or an evaluation")
    parser.add_argument(
        "--output", metavar="DIR", help="where to (default: comparison in the folder that all of them lie in)"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Evaluate a model, once or at many settings."""
    config = load_config(arguments.config, arguments.overrides)
    model = repo_id_of(arguments.model) or run_of(config.output_dir, arguments.config)
    find_folder(model)
    find_path(config.dataset.name)
    output = Path(arguments.output) if arguments.output else None
    if output and cli.is_main_process():
        check_writable(output, "--output")

    with cli.waiting("loading PyTorch and diffusers"):
        from ddpm_hf.evaluation.programs import evaluate_once, sweep

    if arguments.sweep:
        sweep(model, config, arguments.sweep, output)
    else:
        evaluate_once(model, config, output)


def compare_main(arguments: argparse.Namespace) -> None:
    """Compare evaluations that are done."""
    folders = [Path(each) for each in arguments.evaluations]
    output = Path(arguments.output) if arguments.output else beside(folders)
    check_writable(output, "--output")

    with cli.waiting("loading PyTorch"):
        from ddpm_hf.evaluation.programs import compare

    print(compare(folders, output))


def beside(folders: list[Path]) -> Path:
    """The folder `comparison` in the innermost folder that holds all of these, written as the first one was."""
    common = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    return Path(os.path.relpath(common) if not folders[0].is_absolute() else common) / "comparison"


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        cli.run(make_compare_parser(), compare_main, sys.argv[2:])
    else:
        cli.run(make_parser(), main)
