"""What an evaluation costs: its overhead over pure sampling, one pass over CIFAR-10, and the memory of many samples.

    python benchmarks/evaluation.py [overhead] [reference] [memory] [--cifar10 FOLDER] [--model FOLDER] [--save]

Overhead: the CPU time to draw samples of the digits, save them as PNG files, take their features and compute all
figures of samples against the real digits, over the part of it that is spent within the pipeline. (Reconstructions,
likelihood and pictures evaluate the network on their own, as often for 50,000 samples as for 100.)
Reference: the 50,000 training images of CIFAR-10 (--cifar10, a folder of its parquet files; else random pixels in the
same number and size) through a small ResNet of transformers with random weights. It stands for no extractor of worth:
it is there so that the pass itself is measured and nothing need be downloaded.
Memory: the peak of a process of its own that computes every figure from random features of 2,000 and of 50,000
samples against 2,500 others.

With --save, what is measured takes its place in benchmarks/results/evaluation.json, and evaluation.md is written of
all that is there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rates import processor
from transformers import ResNetConfig, ResNetModel

from ddpm_hf.checkpoints.find import load_pipeline
from ddpm_hf.config import BenchmarkConfig, DatasetConfig, ModelConfig, load_config
from ddpm_hf.data import ImageSet, load_image_set
from ddpm_hf.evaluation.extractors import load_extractor
from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.evaluation.extractors.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.feature_store import FeatureStore
from ddpm_hf.evaluation.features import draw_samples, extract_reference, reference_key
from ddpm_hf.evaluation.metrics import score_set
from ddpm_hf.evaluation.metrics.distances import feature_statistics
from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.schedulers import DDPMScheduler

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
GOAL_OVERHEAD_PERCENT = 5

BATCH_SIZE = 64
NUM_CLASSES, NUM_REAL = 10, 2500


def measure_overhead(model: str | None, num_samples: int, num_steps: int) -> dict[str, float]:
    """CPU seconds of an evaluation's samples within the pipeline, and of all that is done besides."""
    config = load_config(CONFIG)
    digits = load_image_set(config.dataset, config.model)
    pipeline = load_pipeline(model) if model else _untrained()
    pipeline.set_progress_bar_config(disable=True)
    classifier = load_digits_classifier().eval().requires_grad_(False).to(pipeline.device)
    draw, alone = DDPMPipeline.__call__, 0.0

    def timed(*args: object, **kwargs: object) -> object:
        nonlocal alone
        began = time.process_time()
        output = draw(*args, **kwargs)
        alone += time.process_time() - began
        return output

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(DDPMPipeline, "__call__", timed):
        reference = extract_reference(reference_key(config.dataset, digits, classifier), digits, classifier, "cpu")
        began = time.process_time()
        benchmark = BenchmarkConfig(n_samples=num_samples, batch_size=BATCH_SIZE, save_samples=True)
        samples, _ = draw_samples(pipeline, SamplingSettings(0, num_steps), classifier, Path(folder), benchmark)
        drawn = time.process_time() - began
        figures = score_set(samples, reference, reference, config.benchmark, classifier, "cpu")
        assert all(figure.value is not None for figure in figures.values()), figures
        together = time.process_time() - began
    return {
        "num_samples": num_samples,
        "num_inference_steps": num_steps,
        "sampling_seconds": round(alone, 2),
        "images_and_features_seconds": round(drawn - alone, 2),
        "figures_seconds": round(together - drawn, 2),
        "evaluation_seconds": round(together, 2),
        "overhead_percent": round(100 * (together / alone - 1), 2),
    }


def measure_reference(cifar10: str | None) -> dict[str, object]:
    """Seconds and memory of one pass over CIFAR-10's images, and seconds of finding the same statistics again."""
    model = ModelConfig(image_size=32, image_channels=3)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DDPM_HF_CACHE"] = cache
        dataset = DatasetConfig(name=cifar10 or "random", image_column="img" if cifar10 else None)
        began = time.perf_counter()
        images = load_image_set(dataset, model) if cifar10 else _random_images()
        decoded = time.perf_counter() - began
        extractor = load_extractor(BenchmarkConfig(features=_save_resnet(Path(cache) / "random-resnet")))
        before, seconds = _peak_mb(), []
        for _ in range(2):
            began = time.perf_counter()
            table = extract_reference(reference_key(dataset, images, extractor), images, extractor, "cpu")
            feature_statistics(table)
            seconds.append(round(time.perf_counter() - began, 2))
    return {
        "images": "CIFAR-10, train" if cifar10 else "random pixels",
        "num_images": len(images),
        "extractor": "ResNet of transformers with random weights",
        "num_features": extractor.num_features,
        "resize": extractor.resize,
        "decoding_seconds": round(decoded, 2),
        "first_seconds": seconds[0],
        "again_seconds": seconds[1],
        "images_per_second": round(len(images) / seconds[0]),
        "peak_mb_before": before,
        "peak_mb": _peak_mb(),
    }


def measure_memory(num_features: int) -> dict[str, object]:
    """Peak memory and seconds of all figures of few and of many samples, each in a process of its own."""
    found: dict[str, object] = {"num_features": num_features}
    for count in (2_000, 50_000):
        command = [sys.executable, __file__, "--score", str(count), str(num_features)]
        found[f"of_{count}"] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def score(count: int, num_features: int) -> dict[str, object]:
    """Peak memory and seconds of all figures of so many samples."""
    classifier = load_digits_classifier()
    classifier.num_features = num_features
    with tempfile.TemporaryDirectory() as folder:
        sets = []
        for name, rows in (("samples", count), ("real", NUM_REAL)):
            store = FeatureStore(Path(folder) / name, BATCH_SIZE, num_features, NUM_CLASSES)
            for batch in store.missing(rows):
                values = torch.randn(len(batch), num_features)
                store.write(batch, Features(values, values[:, :NUM_CLASSES]))
            sets.append(store.table(rows))
        before, began = _peak_mb(), time.perf_counter()
        benchmark = BenchmarkConfig(allow_few_samples=True)
        figures = score_set(sets[0], sets[1], sets[1], benchmark, classifier, "cpu")
        assert all(figure.value is not None for figure in figures.values()), figures
        seconds = round(time.perf_counter() - began, 1)
    return {"peak_mb": _peak_mb(), "peak_mb_before": before, "seconds": seconds, "figures": sorted(figures)}


def machine() -> dict[str, Any]:
    """What a measurement was made on, and when."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torchmetrics", "diffusers", "transformers")},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def as_markdown(results: dict[str, Any]) -> str:
    """All that was measured, as tables."""
    lines = ["# What an evaluation costs", "", "Written by `benchmarks/evaluation.py`, whose head says how.", ""]
    if "overhead" in results:
        found = results["overhead"]["found"]
        share = [found[name] / found["sampling_seconds"] for name in ("images_and_features_seconds", "figures_seconds")]
        lines += [
            "## Over pure sampling",
            "",
            f"{found['num_samples']:,} samples of the digits in {found['num_inference_steps']} steps; goal: under "
            f"{GOAL_OVERHEAD_PERCENT}%. {_made_on(results['overhead'])}",
            "",
            "| CPU seconds | | of sampling |",
            "|---|--:|--:|",
            f"| sampling | {found['sampling_seconds']} | |",
            f"| saving images, features | {found['images_and_features_seconds']} | {share[0]:.1%} |",
            f"| all figures of samples | {found['figures_seconds']} | {share[1]:.1%} |",
            f"| overhead | | {found['overhead_percent'] / 100:.1%} |",
            "",
        ]
    if "reference" in results:
        found = results["reference"]["found"]
        lines += [
            "## Reference statistics in one pass",
            "",
            f"{found['images']}, {found['num_images']:,} images; {found['extractor']}, {found['num_features']} "
            f"features. {_made_on(results['reference'])}",
            "",
            "| first | images/s | again, from the cache | peak memory |",
            "|--:|--:|--:|--:|",
            f"| {found['first_seconds']} s | {found['images_per_second']:,} | {found['again_seconds']} s | "
            f"{found['peak_mb']} MB, {found['peak_mb'] - found['peak_mb_before']} of them for the pass |",
            "",
        ]
    if "memory" in results:
        lines += [
            "## Memory of all figures",
            "",
            f"Goal: no more for 50,000 samples than for 2,000. {_made_on(results['memory'])}",
            "",
            "| features | 2,000 samples | 50,000 samples | time |",
            "|--:|--:|--:|--:|",
            *(
                f"| {row['num_features']:,} | {row['of_2000']['peak_mb']} MB | {row['of_50000']['peak_mb']} MB | "
                f"{row['of_2000']['seconds']} s, {row['of_50000']['seconds']} s |"
                for row in results["memory"]["found"]
            ),
            "",
        ]
    return "\n".join(lines)


def _made_on(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"Measured on {machine['processor']}, {machine['cores']} cores, {threads}; {versions}; {machine['date']}."


def _peak_mb() -> int:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _random_images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator), None, None)


def _save_resnet(folder: Path) -> str:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return str(folder)


def _untrained() -> DDPMPipeline:
    """The network of configs/digits.yaml with its first weights: as fast as a trained one."""
    config = ModelConfig(
        image_size=8,
        image_channels=1,
        hidden_channels=32,
        channel_multipliers=(1, 2, 2),
        attention_levels=(),
        num_res_blocks=1,
    )
    return DDPMPipeline(build_network(config), DDPMScheduler(beta_schedule="cosine"))


def main() -> None:
    """Measure and print; and write, where a file is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="overhead, reference, memory (default: all)")
    parser.add_argument("--model", help="a saved model of digits (default: an untrained one of the same size)")
    parser.add_argument("--num_samples", type=int, default=1797, help="default: 1797, as configs/digits.yaml says")
    parser.add_argument("--num_inference_steps", type=int, default=100)
    parser.add_argument("--cifar10", help="a folder of CIFAR-10's parquet files")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/evaluation.json and .md")
    parser.add_argument("--score", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score(*arguments.score)))
        return
    measures: dict[str, Callable[[], object]] = {
        "overhead": lambda: measure_overhead(arguments.model, arguments.num_samples, arguments.num_inference_steps),
        "reference": lambda: measure_reference(arguments.cifar10),
        "memory": lambda: [measure_memory(num_features) for num_features in (64, 2048)],
    }
    if unknown := set(arguments.what) - measures.keys():
        parser.error(f"given {', '.join(sorted(unknown))}; possible are {', '.join(measures)}")
    file = RESULTS / "evaluation.json"
    results = json.loads(file.read_text()) if arguments.save and file.exists() else {}
    for name in arguments.what or measures:
        results[name] = {"found": measures[name](), "machine": machine()}
        print(name, json.dumps(results[name], indent=2))
        if arguments.save:
            file.write_text(json.dumps(results, indent=2) + "\n")
            file.with_suffix(".md").write_text(as_markdown(results))


if __name__ == "__main__":
    main()
