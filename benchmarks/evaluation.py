"""What an evaluation costs: its overhead over pure sampling, and one pass over many reference images.

    python benchmarks/evaluation.py [--model FOLDER] [--num_samples 512] [--num_images 50000] [--output FILE]

Overhead: the time to draw samples, save them as PNG files and take their features in float64 statistics, against the
time to draw them alone, batch by batch in turn, so that a busy machine slows both alike. Reference: CIFAR-10's 50,000
images of 32x32 in number and size, of random pixels, through a small network for colours of 64 features.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.distances import moments
from ddpm_hf.evaluation.features import UserExtractor
from ddpm_hf.evaluation.reference import load_reference
from ddpm_hf.evaluation.sampling import Drawing, draw_samples
from ddpm_hf.evaluation.store import FeatureStore, Layout
from ddpm_hf.hub.loading import load_pipeline
from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.randomness import image_seeds
from ddpm_hf.schedulers import DDPMScheduler

BATCH_SIZE = 64


def measure_overhead(model: str | None, num_samples: int, num_steps: int) -> dict[str, float]:
    """Seconds of sampling alone, and of sampling with all that an evaluation adds to it."""
    pipeline = load_pipeline(model) if model else _untrained()
    pipeline.set_progress_bar_config(disable=True)
    classifier = load_digits_classifier().eval().requires_grad_(False).to(pipeline.device)
    alone = together = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "features", Layout(BATCH_SIZE, classifier.num_features, 10))
        for start in range(0, num_samples, BATCH_SIZE):
            began = time.perf_counter()
            seeds = image_seeds(0, range(start, start + BATCH_SIZE))
            pipeline(seeds=seeds, num_inference_steps=num_steps, output_type="pt")
            alone += time.perf_counter() - began
            began = time.perf_counter()
            drawing = Drawing(0, None, num_steps, None)
            draw_samples(pipeline, drawing, classifier, store, Path(folder) / "images", start + BATCH_SIZE, True)
            together += time.perf_counter() - began
        began = time.perf_counter()
        moments(store.table(num_samples))
        together += time.perf_counter() - began
    return {
        "num_samples": num_samples,
        "num_inference_steps": num_steps,
        "sampling_seconds": round(alone, 2),
        "evaluation_seconds": round(together, 2),
        "overhead_percent": round(100 * (together / alone - 1), 2),
    }


def measure_reference(num_images: int) -> dict[str, float]:
    """Seconds of one pass over many images, and of finding the same statistics again."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, None, None)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.SiLU(), nn.Conv2d(32, 64, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1)
    )

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.network(batch.float() / 255).flatten(1)

    extractor = UserExtractor("small", Small())
    extractor.probe((3, 32, 32))
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DDPM_HF_CACHE"] = cache
        for _ in range(2):
            began = time.perf_counter()
            load_reference(DatasetConfig(name="random"), images, extractor, "cpu").moments()
            seconds.append(round(time.perf_counter() - began, 2))
    return {
        "num_images": num_images,
        "first_seconds": seconds[0],
        "again_seconds": seconds[1],
        "images_per_second": round(num_images / seconds[0]),
    }


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
    parser.add_argument("--model", help="a saved model of digits (default: an untrained one of the same size)")
    parser.add_argument("--num_samples", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--num_inference_steps", type=int, default=100)
    parser.add_argument("--num_images", type=int, default=50_000)
    parser.add_argument("--output", help="JSON file to write besides")
    arguments = parser.parse_args()
    results = {
        "overhead": measure_overhead(arguments.model, arguments.num_samples, arguments.num_inference_steps),
        "reference": measure_reference(arguments.num_images),
        "machine": {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.machine()},
    }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
