"""Speed and quality of every sampler by number of network evaluations: python benchmarks/sampling.py runs/digits

Quality is the Fréchet distance between 898 samples and the 898 real digits of one half of scikit-learn's digits, in the
features of a small classifier that was fitted on the other half. The floor is that distance between the two halves of
the real digits. One run of 898 samples tells distances to about 15%, so each is the mean of three; all samplers start
from the same noise. With --save: benchmarks/results/sampling.json, .md and .png.
"""

import argparse
import json
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import nn

from ddpm_hf import cli
from ddpm_hf._version import __version__
from ddpm_hf.hub.loading import load_pipeline
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import SAMPLERS
from ddpm_hf.randomness import image_seeds

NUM_SAMPLES = 898
NUM_RUNS = 3
NUM_EVALUATIONS = (5, 10, 20, 50)
"""Of every sampler; the mark to reach is ancestral sampling with all timesteps."""
RESULTS = Path(__file__).parent / "results"


class Judge:
    """Real digits, and how far others are from them.

    Attributes:
        floor: distance between the two halves of the real digits.
    """

    def __init__(self) -> None:
        digits = load_digits()
        halves = digits.data[0 : 2 * NUM_SAMPLES : 2] / 16, digits.data[1 : 2 * NUM_SAMPLES : 2] / 16
        classifier = MLPClassifier((64,), random_state=0, max_iter=600)
        self.classifier = classifier.fit(halves[0], digits.target[0 : 2 * NUM_SAMPLES : 2])
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


def measure(pipeline: DDPMPipeline, judge: Judge, sampler: str, num_steps: int, seed: int) -> dict[str, Any]:
    """Sample three times, and count, time and judge it."""
    evaluations = []
    network: nn.Module = pipeline.unet
    hook = network.register_forward_pre_hook(lambda *_: evaluations.append(1))
    seconds, distances = 0.0, []
    for run in range(NUM_RUNS):
        seeds = image_seeds(seed + run, range(NUM_SAMPLES))
        started = time.perf_counter()
        output: Any = pipeline(seeds=seeds, sampler=sampler, num_inference_steps=num_steps, output_type="np")
        seconds += time.perf_counter() - started
        distances.append(judge.distance(output.images.reshape(NUM_SAMPLES, 64)))
    hook.remove()
    return {
        "sampler": sampler,
        "num_inference_steps": num_steps,
        "evaluations": len(evaluations) // NUM_RUNS,
        "images_per_second": round(NUM_RUNS * NUM_SAMPLES / seconds, 1),
        "distance": round(float(np.mean(distances)), 4),
        "distance_std": round(float(np.std(distances, ddof=1)), 4),
    }


def steps_for(sampler: str, num_evaluations: int) -> int:
    """The number of steps with about so many evaluations: heun takes two for each step but the last."""
    return (num_evaluations + 1) // 2 if sampler == "heun" else num_evaluations


def table(rows: list[dict[str, Any]], floor: float) -> str:
    """Markdown: one line for each run, the best of each number of evaluations first."""
    lines = [
        "| sampler | steps | evaluations | images/s | distance | ± of a run | times the floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["evaluations"], row["distance"])):
        lines.append(
            f"| {row['sampler']} | {row['num_inference_steps']} | {row['evaluations']} | {row['images_per_second']:.1f}"
            f" | {row['distance']:.3f} | {row['distance_std']:.3f} | {row['distance'] / floor:.2f} |"
        )
    return "\n".join([*lines, f"| real digits, the other half | | | | {floor:.3f} | | 1.00 |"]) + "\n"


def plot(rows: list[dict[str, Any]], floor: float, file: Path) -> None:
    """Distance against evaluations, both logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for sampler in SAMPLERS:
        points = sorted((row["evaluations"], row["distance"]) for row in rows if row["sampler"] == sampler)
        axes.plot(*zip(*points, strict=True), marker="o", label=sampler)
    axes.axhline(floor, color="black", linestyle=":", label="real digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Fréchet distance to real digits")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run folder, a saved pipeline, or an id on the Hub")
    parser.add_argument("--seed", type=int, default=0, help="of the first of the three runs (default: 0)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/sampling.json, .md and .png")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Run every sampler, and print and save the table."""
    judge, pipeline = Judge(), load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    T = pipeline.scheduler.config["num_train_timesteps"]
    runs = [(sampler, steps_for(sampler, count)) for sampler in SAMPLERS for count in NUM_EVALUATIONS if count <= T]
    rows = []
    for sampler, num_steps in [*runs, ("ddpm", T)]:
        rows.append(measure(pipeline, judge, sampler, num_steps, arguments.seed))
        print(rows[-1], flush=True)
    text = table(rows, judge.floor)
    print(text)
    if arguments.save:
        result = {
            "floor": round(judge.floor, 4),
            "rows": rows,
            "seed": arguments.seed,
            "parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
            "threads": torch.get_num_threads(),
            "device": str(pipeline.device),
            "versions": {"ddpm_hf": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
        (RESULTS / "sampling.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "sampling.md").write_text(text)
        plot(rows, judge.floor, RESULTS / "sampling.png")


if __name__ == "__main__":
    cli.run(make_parser(), main)
