"""Speed and quality of every sampler by number of network evaluations: python benchmarks/sampling.py runs/digits

Quality is the Fréchet distance between 898 samples and the 898 real digits of one half of scikit-learn's digits, in the
features of a small classifier that was fitted on the other half. The floor is that distance between the two halves of
the real digits. One run of 898 samples tells distances to about 15%, so each is the mean of three; all samplers start
from the same noise. The goal: 20 evaluations within 10% of ancestral sampling with all timesteps. With --save:
sampling.json, .md and .png in benchmarks/results, or elsewhere with --output. A quick trial: --num_samples 100
--num_runs 1 --evaluations 5 20 --output /tmp/trial --save.
"""

import argparse
import json
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import nn

from ddpm_hf._version import __version__
from ddpm_hf.checkpoints.find import load_pipeline
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import SAMPLERS
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.randomness import image_seeds

HALF = 898
"""Digits in each half of the real ones, and samples of a run."""
NUM_RUNS = 3
NUM_EVALUATIONS = (5, 10, 20, 50)
"""Of every sampler."""
GOAL_EVALUATIONS, GOAL = 20, 1.1
"""The best sampler with so many evaluations shall be within this factor of ancestral sampling with all timesteps."""
RESULTS = Path(__file__).parent / "results"


class Judge:
    """Real digits, and how far others are from them.

    Attributes:
        floor: distance between the two halves of the real digits.
    """

    def __init__(self) -> None:
        digits = load_digits()
        halves = digits.data[0 : 2 * HALF : 2] / 16, digits.data[1 : 2 * HALF : 2] / 16
        classifier = MLPClassifier((64,), random_state=0, max_iter=600)
        self.classifier = classifier.fit(halves[0], digits.target[0 : 2 * HALF : 2])
        self.real = self._features(halves[1])
        self.floor = self.distance(halves[0])

    def distance(self, images: np.ndarray) -> float:
        """Fréchet distance from the real digits.

        Args:
            images: (count, 64) in [0, 1].
        """
        return frechet_distance(self._features(images), self.real)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return np.maximum(images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0], 0)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of the Gaussians with the moments of two sets of features (Heusel et al., section 2).

    Args:
        a: (count, features).
        b: likewise.
    """
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_b @ root), 0, None)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared)


def measure(
    pipeline: DDPMPipeline, judge: Judge, sampler: str, num_steps: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Sample so many times as is asked for, and count, time and judge it."""
    evaluations = []
    network: nn.Module = pipeline.unet
    hook = network.register_forward_pre_hook(lambda *_: evaluations.append(1))
    seconds, distances = 0.0, []
    for run in range(arguments.num_runs):
        seeds = image_seeds(arguments.seed + run, range(arguments.num_samples))
        started = time.perf_counter()
        output: Any = pipeline(seeds=seeds, sampler=sampler, num_inference_steps=num_steps, output_type="np")
        seconds += time.perf_counter() - started
        distances.append(judge.distance(output.images.reshape(len(seeds), 64)))
    hook.remove()
    return {
        "sampler": sampler,
        "num_inference_steps": num_steps,
        "evaluations": len(evaluations) // arguments.num_runs,
        "images_per_second": round(arguments.num_runs * arguments.num_samples / seconds, 1),
        "distance": round(float(np.mean(distances)), 4),
        "distance_std": round(float(np.std(distances, ddof=1)), 4) if len(distances) > 1 else None,
    }


def steps_for(sampler: str, num_evaluations: int) -> int:
    """The number of steps with about so many evaluations: heun takes two for each step but the last."""
    return (num_evaluations + 1) // 2 if sampler == "heun" else num_evaluations


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the goal is met: a sentence."""
    mark = max(rows, key=lambda row: row["evaluations"])
    short = [row for row in rows if row["evaluations"] <= GOAL_EVALUATIONS]
    if not short:
        return f"The goal was not measured: no sampler took {GOAL_EVALUATIONS} evaluations or fewer."
    best = min(short, key=lambda row: row["distance"])
    ratio = best["distance"] / mark["distance"]
    return (
        f"Goal, {GOAL_EVALUATIONS} evaluations within {GOAL - 1:.0%} of {mark['evaluations']}:"
        f" {'met' if ratio <= GOAL else 'not met'}. {best['sampler']} with {best['evaluations']} has {ratio:.2f} times"
        f" the distance of {mark['sampler']} with {mark['evaluations']}, in"
        f" {mark['evaluations'] / best['evaluations']:.0f} times fewer evaluations."
    )


def table(result: dict[str, Any]) -> str:
    """Markdown: what was measured where, one line for each run with the best of each number of evaluations first."""
    machine, versions, floor = result["machine"], result["versions"], result["floor"]
    lines = [
        "# Samplers: speed and quality by network evaluations",
        "",
        f"Fréchet distance to real digits of {result['num_runs']} runs of {result['num_samples']} samples each, in the"
        f" features that `benchmarks/sampling.py` describes; the model: {result['model']},"
        f" {result['parameters']:,} parameters.",
        "",
        f"{result['date']}, {machine['processor']}, {machine['device']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        result["verdict"],
        "",
        "![Distance by evaluations](sampling.png)",
        "",
        "| sampler | steps | evaluations | images/s | distance | ± of a run | times the floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["evaluations"], row["distance"])):
        spread = "" if row["distance_std"] is None else f"{row['distance_std']:.3f}"
        lines.append(
            f"| {row['sampler']} | {row['num_inference_steps']} | {row['evaluations']} | {row['images_per_second']:.1f}"
            f" | {row['distance']:.3f} | {spread} | {row['distance'] / floor:.2f} |"
        )
    return "\n".join([*lines, f"| real digits, the other half | | | | {floor:.3f} | | 1.00 |"]) + "\n"


def plot(rows: list[dict[str, Any]], floor: float, file: Path) -> None:
    """Distance against evaluations, both logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for sampler in SAMPLERS:
        points = sorted((row["evaluations"], row["distance"]) for row in rows if row["sampler"] == sampler)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=sampler)
    axes.axhline(floor, color="black", linestyle=":", label="real digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Fréchet distance to real digits")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("model", help="a run folder, a saved pipeline, or an id on the Hub")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (default: 0)")
    parser.add_argument("--num_samples", type=int, default=HALF, help=f"samples of a run (default: {HALF})")
    parser.add_argument("--num_runs", type=int, default=NUM_RUNS, help=f"runs of each sampler (default: {NUM_RUNS})")
    parser.add_argument(
        "--evaluations", type=int, nargs="+", default=NUM_EVALUATIONS, help="of every sampler (default: 5 10 20 50)"
    )
    parser.add_argument("--save", action="store_true", help="write sampling.json, .md and .png")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for them (default: benchmarks/results)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Run every sampler, and print and save the table."""
    judge, pipeline = Judge(), load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    T = pipeline.scheduler.config["num_train_timesteps"]
    pipeline(batch_size=2, num_inference_steps=2)  # what is done once is not timed
    runs = [(name, steps_for(name, count)) for name in SAMPLERS for count in arguments.evaluations if count <= T]
    rows = []
    for sampler, num_steps in [*runs, ("ddpm", T)]:
        try:
            rows.append(measure(pipeline, judge, sampler, num_steps, arguments))
        except ValueError as error:  # such as pndm, which takes only even steps
            print(f"{sampler} with {num_steps} steps is left out: {error}", flush=True)
        else:
            print(rows[-1], flush=True)
    result = {
        "model": Path(arguments.model).name,
        "parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
        "floor": round(judge.floor, 4),
        "verdict": verdict(rows),
        "rows": rows,
        "seed": arguments.seed,
        "num_samples": arguments.num_samples,
        "num_runs": arguments.num_runs,
        "machine": machine(pipeline.device),
        "versions": {
            "ddpm_hf": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    text = table(result)
    print(text)
    if arguments.save:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "sampling.json").write_text(json.dumps(result, indent=2) + "\n")
        (arguments.output / "sampling.md").write_text(text)
        plot(rows, judge.floor, arguments.output / "sampling.png")


if __name__ == "__main__":
    cli.run(make_parser(), main)
