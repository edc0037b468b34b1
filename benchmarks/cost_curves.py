"""What things cost as they grow: python benchmarks/cost_curves.py --save

Training (images/s and memory of an update) against batch, image size and parameters; sampling against batch and steps;
scoring against the number of samples; a whole run on one and two processes. Each curve is the median of several
repetitions after a warm-up, in CPU seconds of one thread, so that other work on the machine does not decide, fitted by
seconds = a x^b on all its points (least squares of the logarithms). The first bend is the first point from which on the
local exponent differs from that of the fit by more than 0.25. One and two processes are timed by the clock. The data
cache against the size of the data is measured by data.py.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from network import cpu_name, peak_memory_of

from ddpm_hf.config import Config, ModelConfig, TrainingConfig, load_config
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.evaluation.feature_store import FeatureStore, FeatureTable
from ddpm_hf.evaluation.metrics.distances import feature_statistics, frechet_distance, precision_recall
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.update import TrainStep

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
BASE = {
    "channel_multipliers": (1, 2, 2),
    "attention_levels": (),
    "num_res_blocks": 1,
    "norm_groups": 16,
    "dropout": 0.1,
}
REPETITIONS = 5

Point = tuple[float, Callable[[], object], int]
"""The abscissa, what is timed, and how many images one call is about."""


def train_step(batch: int, **model: Any) -> TrainStep:
    """A training step on random images, in the precision that `auto` chooses."""
    config = Config(
        model_config=ModelConfig(**{**BASE, "hidden_channels": 64, "image_size": 32, **model}),
        training=TrainingConfig(batch_size=batch),
    )
    size = config.model.image_size
    images = ImageSet(torch.randint(256, (256, 3, size, size), dtype=torch.uint8), None, None)
    precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    return TrainStep(TrainState(config, Accelerator(cpu=True, mixed_precision=precision)), images, 1000)


def training(batch: int, **model: Any) -> Callable[[], object]:
    subject = train_step(batch, **model)
    return lambda: subject.update(0)


def by_batch() -> Iterator[Point]:
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        yield batch, training(batch), batch


def by_image_size() -> Iterator[Point]:
    for size in (8, 16, 32, 64, 128):
        yield size, training(4, image_size=size), 4


def by_parameters() -> Iterator[Point]:
    for channels in (32, 64, 128, 192, 320):
        subject = train_step(4, hidden_channels=channels)
        count = sum(parameter.numel() for parameter in subject.parameters)
        yield count, (lambda subject=subject: subject.update(0)), 4


def sampling_by_batch() -> Iterator[Point]:
    pipeline = train_step(1).state.pipeline
    pipeline.set_progress_bar_config(disable=True)
    for batch in (1, 4, 16, 64):
        seeds = list(range(batch))
        yield batch, (lambda seeds=seeds: pipeline(seeds=seeds, num_inference_steps=10)), batch


def sampling_by_steps() -> Iterator[Point]:
    pipeline = train_step(1).state.pipeline
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 2, 4, 8, 16, 32):
        yield steps, (lambda steps=steps: pipeline(seeds=[0, 1, 2, 3], num_inference_steps=steps)), 4


def scoring_by_samples() -> Iterator[Point]:
    with tempfile.TemporaryDirectory() as folder:

        def table_of(count: int) -> FeatureTable:
            store = FeatureStore(Path(folder) / str(count), 128, 64)
            for batch in store.missing(count):
                store.write(batch, Features(torch.randn(len(batch), 64), None))
            return store.table(count)

        real = table_of(2001)
        for count in (500, 1000, 2000, 4000, 8000, 16000):

            def score(fake: FeatureTable) -> None:
                frechet_distance(feature_statistics(real), feature_statistics(fake))
                precision_recall(real, fake)

            yield count, partial(score, table_of(count)), count


CURVES: dict[str, tuple[str, Callable[[], Iterator[Point]], str]] = {
    "training by batch": (
        "images per update",
        by_batch,
        "Few images cost little beside what every update costs: the optimiser, the average and the rounding of all "
        "weights, and starting a thousand operators. Once an image's own work outweighs that, the time is linear.",
    ),
    "training by image size": (
        "side in pixels, 4 images per update",
        by_image_size,
        "Small images leave the same cost of every update; large ones come near the square of the side, which "
        "convolutions cost. This network has no attention, whose cost would grow with the fourth power.",
    ),
    "training by parameters": (
        "parameters, 4 images of 32x32 per update",
        by_parameters,
        "Thin layers cost as much to start as wide ones, and normalisation and activations grow with the "
        "channels only, not with their square as convolutions and parameters do.",
    ),
    "sampling by batch": (
        "images, 10 steps",
        sampling_by_batch,
        "One image leaves the processor waiting for weights, which every further image of the batch uses again.",
    ),
    "sampling by steps": (
        "denoising steps, 4 images",
        sampling_by_steps,
        "Every step costs the same; what is done once, laying out the weights and drawing the noise, shows in the "
        "first steps only.",
    ),
    "scoring by samples": (
        "samples against 2,001 real ones, 64 features",
        scoring_by_samples,
        "With few samples the time is that of the real images' own neighbours and of the distance's eigenvalues, which "
        "do not depend on their number; with many, the neighbours among the samples grow with its square.",
    ),
}
"""By name: what grows, its points, and why the curve bends."""


def measure(name: str) -> dict[str, Any]:
    """Measure one curve."""
    label, make, _ = CURVES[name]
    points = []
    for x, call, images in make():
        call()
        seconds = []
        for _ in range(REPETITIONS):
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
        points.append(
            {
                "x": x,
                "seconds": statistics.median(seconds),
                "images_per_second": images / statistics.median(seconds),
                "memory": peak_memory_of(call),
            }
        )
        print(name, points[-1], file=sys.stderr)
    return {"name": name, "label": label, "points": points, **fit(points)}


def fit(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The exponent of the time, and where the curve first leaves it."""
    logs = [(math.log(point["x"]), math.log(point["seconds"])) for point in points]
    exponent = float(np.polyfit(*zip(*logs, strict=True), 1)[0])
    bend = None
    for before, after, point in zip(logs, logs[1:], points[1:], strict=False):
        local = (after[1] - before[1]) / (after[0] - before[0])
        if abs(local - exponent) > 0.25:
            bend = {"x": point["x"], "local_exponent": local}
            break
    return {"exponent": exponent, "bend": bend}


def processes() -> dict[str, Any]:
    """Images per second of a whole run on one process and on two, which share the same cores."""
    rates = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--standalone"]
            options = ["training.num_steps=60", "logging.log_every=20", "training.num_preview_images=1"]
            more = ["training.preview_inference_steps=1", f"output_dir={folder}/run"]
            config = str(ROOT / "configs" / "digits.yaml")
            command = [*launch, str(ROOT / "training" / "train.py"), "--config", config, *options, *more]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            subprocess.run(command, check=True, capture_output=True, env={**environment, "MKL_NUM_THREADS": "1"})
            lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
            rates[count] = statistics.median(line["images_per_second"] for line in lines[1:])
    return {"one": rates[1], "two": rates[2], "ratio": rates[2] / rates[1]}


def table(result: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# What things cost as they grow",
        "",
        " ".join((__doc__ or "").split("\n\n")[1].split()),
        "",
        f"{result['machine']}; torch {result['torch']}; {result['date']}. Network: {BASE}, 64 channels at 32x32 unless "
        "the curve says otherwise.",
        "",
    ]
    for curve in result["curves"]:
        bend = curve["bend"]
        local = None if bend is None else f"first bend at {bend['x']:,} (local exponent {bend['local_exponent']:.2f})"
        told = local or "no bend"
        lines += [
            f"## {curve['name']}: seconds ~ x^{curve['exponent']:.2f}, {told}",
            "",
            CURVES[curve["name"]][2],
            "",
            f"| {curve['label']} | seconds | images/s | memory, MB |",
            "|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {point['x']:,} | {point['seconds']:.4f} | {point['images_per_second']:,.2f} "
            f"| {point['memory'] / 1e6:,.1f} |"
            for point in curve["points"]
        ]
        lines.append("")
    if "processes" in result:
        rates = result["processes"]
        lines += [
            "## one and two processes on the same cores, digits",
            "",
            f"{rates['one']:,.0f} and {rates['two']:,.0f} images/s: {rates['ratio']:.2f}x. One process takes all cores "
            "as threads; two share them, each with half of the batch, and average their gradients over gloo.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CURVES, "processes"], help="curves to measure (default: all)")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/cost_curves.*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_config(ROOT / "configs" / "digits.yaml")  # the import of everything is nobody's cost
    chosen = arguments.only or [*CURVES, "processes"]
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "curves": [measure(name) for name in chosen if name in CURVES],
    }
    if "processes" in chosen:
        result["processes"] = processes()
    print(table(result))
    if arguments.save:
        save(result)


def save(result: dict[str, Any]) -> None:
    """Join what was measured to what is on disk; a curve measured again replaces its elder."""
    file = RESULTS / "cost_curves.json"
    before = json.loads(file.read_text()) if file.exists() else {"curves": []}
    curves = {curve["name"]: curve for curve in (*before["curves"], *result["curves"])}
    result = before | result | {"curves": [curves[name] for name in CURVES if name in curves]}
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
