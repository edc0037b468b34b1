"""The paper's CIFAR-10 run in pieces, beside the published curve: python benchmarks/cifar10.py --minutes 60 --save

Each call trains for some minutes, with configs/cifar10.yaml unless --config says otherwise, from the newest checkpoint
on: train.py is stopped by SIGTERM, as a scheduler would. Then it draws samples from the averaged weights, measures them
by eval.py, and sets their distance beside that of a faithful port of the authors' code with the same settings. The
port's is an FID of 50,000 samples; --features and --samples say what ours are, and only the FID of as many compares.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ddpm_hf.checkpoints.format import find_latest, step_of
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

PUBLISHED = {46_800: 9.16, 93_600: 5.78, 187_000: 4.08, 421_000: 3.31, 796_000: 3.19}
"""FID by updates of the port."""

STOPPED = 128 + signal.SIGTERM
"""Exit code of a run that was stopped and left a checkpoint."""

SECONDS_TO_STOP = 120


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="of training in this call (60)")
    parser.add_argument("--config", default=ROOT / "configs" / "cifar10.yaml", type=Path, metavar="FILE")
    parser.add_argument("--output", default=Path("runs/cifar10"), type=Path, metavar="DIR", help="the run folder")
    parser.add_argument("--features", default="inception", metavar="NAME", help="benchmark.features (inception)")
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="benchmark.n_samples (50000)")
    parser.add_argument("--sampler", metavar="NAME", help="benchmark.sampler (the model's own)")
    parser.add_argument("--num_inference_steps", type=int, metavar="N", help="denoising steps (all)")
    parser.add_argument(
        "--launcher", default=sys.executable, metavar="COMMAND", help="of both programs, such as 'accelerate launch'"
    )
    parser.add_argument("--save", action="store_true", help="keep figures and samples in benchmarks/results/cifar10.*")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options of both programs")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Train a piece, measure what it came to, and draw the curve."""
    train(arguments)
    row, samples = measure(arguments)
    print(json.dumps(row))
    file = (RESULTS if arguments.save else arguments.output) / "cifar10.jsonl"
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.with_suffix(".md").write_text(table(rows))
    draw(rows, file.with_suffix(".png"))
    if samples is not None:
        shutil.copyfile(samples, file.with_name("cifar10_samples.png"))
    print(table(rows))


def train(arguments: argparse.Namespace) -> None:
    """Let the run go on for the time.

    Raises:
        UserError: if it fails.
    """
    own = ["--config", str(arguments.config), "--resume", "auto", f"output_dir={arguments.output}"]
    command = [*shlex.split(arguments.launcher), str(ROOT / "training" / "train.py"), *own, *arguments.overrides]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(arguments.minutes * 60)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait(SECONDS_TO_STOP)
    # `accelerate launch` is ended by the signal that it hands on
    if code not in (0, STOPPED, -signal.SIGTERM):
        raise UserError(f"training ended with exit code {code}; what it said stands above")


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path | None]:
    """Measure the newest checkpoint.

    Returns:
        A row of the table, and the picture of the samples.

    Raises:
        UserError: if there is no checkpoint, or the evaluation fails.
    """
    checkpoint = find_latest(arguments.output / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{arguments.output} has no checkpoint: --minutes {arguments.minutes:g} are too few")
    step = step_of(checkpoint)
    folder = arguments.output / "evaluation" / f"{checkpoint.name}-{arguments.samples}"
    options = [f"benchmark.features={arguments.features}", f"benchmark.n_samples={arguments.samples}"]
    for name in ("sampler", "num_inference_steps"):
        if (value := getattr(arguments, name)) is not None:
            options.append(f"benchmark.{name}={value}")
    own = ["--model", str(checkpoint), "--config", str(arguments.output / "config.yaml"), "--output", str(folder)]
    program = [*shlex.split(arguments.launcher), str(ROOT / "training" / "eval.py")]
    done = subprocess.run([*program, *own, *arguments.overrides, *options], check=False)
    if done.returncode:
        raise UserError(f"the evaluation ended with exit code {done.returncode}; what it said stands above")
    report = json.loads((folder / "metrics.json").read_text())
    sampling, distance = report["sampling"], report["metrics"]["frechet_distance"]
    logged = [json.loads(line) for line in (arguments.output / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in logged if "images_per_second" in line]
    row = {
        "step": step,
        "name": distance["name"],
        "distance": distance["value"],
        "real_vs_real": distance["real_vs_real"] and distance["real_vs_real"]["value"],
        "features": report["features"]["label"],
        "n_samples": sampling["n_samples"],
        "sampler": sampling["sampler"],
        "num_inference_steps": sampling["num_inference_steps"],
        "images_per_second": round(sorted(speeds)[len(speeds) // 2], 1) if speeds else None,
        "versions": report["versions"],
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    pictures = sorted((folder / "pictures").glob("samples*.png"))
    return row, pictures[0] if pictures else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# CIFAR-10, from checkpoint to checkpoint",
        "",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
        "| updates | distance | real images | features | samples | sampler, steps | images/s | machine, date |",
        "|--:|--:|--:|---|--:|---|--:|---|",
    ]
    for row in sorted(rows, key=lambda row: row["step"]):
        floor = "" if row["real_vs_real"] is None else f"{row['real_vs_real']:.2f}"
        lines.append(
            f"| {row['step']:,} | {row['distance']:.2f} | {floor} | {row['features']} | {row['n_samples']:,} "
            f"| {row['sampler']}, {row['num_inference_steps']} | {row['images_per_second'] or ''} "
            f"| {row['versions']['device']}, {row['date']} |"
        )
    lines += ["", "| updates of the port | FID, 50,000 samples |", "|--:|--:|"]
    lines += [f"| {step:,} | {fid:.2f} |" for step, fid in PUBLISHED.items()]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw our distances, by what they are of, and the published ones against updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*PUBLISHED.items(), strict=True), "o-", color="0.5", label="a faithful port, FID, 50,000 samples")
    for name, count in sorted({(row["name"], row["n_samples"]) for row in rows}):
        chosen = sorted(
            (row["step"], row["distance"]) for row in rows if (row["name"], row["n_samples"]) == (name, count)
        )
        axes.plot(*zip(*chosen, strict=True), "o-", label=f"ours, {name}, {count:,} samples")
    axes.set(xscale="log", yscale="log", xlabel="updates", ylabel="Fréchet distance to the training images")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    cli.run(make_parser(), main)
