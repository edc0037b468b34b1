"""What the data cost: reading the cache, decoding, starting again, and waiting during training.

    python benchmarks/data.py [--seconds 5] [--save]

Cache: batches of 128 images of 32x32 from decoded images in a file (order, gather, float, normalise, flips, noise and
time steps: all that `Batches.at` does), the gather and conversion alone, and the same from memory. Decoding: PNG files
of 32x32 and JPEG files of 64x64, 256x256 and 1600x1200 on one thread, on a thread per core and in a process per core,
the last with the start of the processes; the exponent of time over number of images is the slope of a line through (log
images, log seconds). Start: the first, which decodes, and the second, which maps the
file. Waiting: the share of a training step that goes to `Batches.at`, in the order of a run, on the networks of
configs/digits.yaml and configs/cifar10.yaml. The images are random; nothing is downloaded.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from rates import processor

from ddpm_hf.config import Config, DatasetConfig, ModelConfig, load_config
from ddpm_hf.data import ImageSet, decoding, load_image_set
from ddpm_hf.data.decoding import Source, decode
from ddpm_hf.data.pixels import Example, Transform
from ddpm_hf.losses import make_timestep_sampler
from ddpm_hf.models import build_network
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.training.batches import Batches

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "configs"
GOAL_IMAGES_PER_SECOND, GOAL_WAITING = 20_000, 0.01
WAYS = (("one thread", 1, 10**9), ("a thread per core", 32, 10**9), ("a process per core", 32, 0))


def random_files(count: int, size: tuple[int, int], kind: str, different: int) -> list[bytes]:
    """Encoded images of smooth noise; `different` of them, over and over."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(min(count, different)):
        stream = io.BytesIO()
        coarse = random.integers(0, 256, (max(1, size[1] // 20), max(1, size[0] // 20), 3), np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
        files.append(stream.getvalue())
    return [files[index % len(files)] for index in range(count)]


def write_folder(folder: Path, count: int) -> None:
    """A folder of PNG files of 32x32."""
    folder.mkdir()
    for index, file in enumerate(random_files(count, (32, 32), "PNG", 1000)):
        (folder / f"{index:06}.png").write_bytes(file)


def rate(batch: Callable[[int], Any], batch_size: int, seconds: float) -> float:
    """Images per second of a function of the step; the median of five rounds."""
    rates, step = [], 0
    for _ in range(5):
        began, first = time.perf_counter(), step
        while time.perf_counter() - began < seconds / 5:
            batch(step)
            step += 1
        rates.append((step - first) * batch_size / (time.perf_counter() - began))
    return round(statistics.median(rates))


def batches_of(images: ImageSet, config: Config) -> Batches:
    """The batches of a run of one process."""
    return Batches(images, config, make_timestep_sampler("uniform", config.model.time_steps), torch.device("cpu"))


def measure_reading(mapped: ImageSet, config: Config, seconds: float) -> dict[str, float]:
    """Images per second from the file and from memory."""
    copied = ImageSet(mapped.images.clone(), mapped.labels, mapped.class_names)
    size = config.training.batch_size
    results = {}
    for name, images in (("file", mapped), ("memory", copied)):
        batches = batches_of(images, config)
        results[f"whole batch from {name}"] = rate(batches.at, size, seconds)

        def gather(step: int, images: ImageSet = images, batches: Batches = batches) -> torch.Tensor:
            return from_uint8(images.images[batches.order.indices(step * size, size)])

        results[f"gather and convert from {name}"] = rate(gather, size, seconds)
    return results


def measure_decoding(seconds: float) -> list[dict[str, Any]]:
    """Images per second of decoding, by kind of image and way of working, and the exponent over their number."""
    rows = []
    for kind, size, counts in (
        ("PNG", (32, 32), (2000, 4000, 8000, 16_000)),
        ("JPEG", (64, 64), (2000, 4000, 8000, 16_000)),
        ("JPEG", (256, 256), (500, 1000, 2000, 4000)),
        ("JPEG", (1600, 1200), (25, 50, 100, 200)),
    ):
        scaled = [max(8, int(count * seconds / 5)) for count in counts]
        files = random_files(max(scaled), size, kind, 20)
        for way, num_workers, num_in_threads in WAYS:
            spent = []
            with (
                mock.patch.object(decoding, "MAX_WORKERS", num_workers),
                mock.patch.object(decoding, "NUM_IN_THREADS", num_in_threads),
            ):
                for count in scaled:
                    source = Source([Example(file, "", None) for file in files[:count]], count, False, None)
                    began = time.perf_counter()
                    sum(1 for _ in decode(source, Transform(32 if kind == "PNG" else 64, 3), "random").images)
                    spent.append(time.perf_counter() - began)
            slope = np.polyfit(np.log(scaled), np.log(spent), 1)[0]
            rows.append(
                {
                    "kind": f"{kind} of {size[0]}x{size[1]}",
                    "way": way,
                    "num_images": scaled,
                    "seconds": [round(each, 3) for each in spent],
                    "images_per_second": round(scaled[-1] / spent[-1], 1),
                    "exponent": round(float(slope), 3),
                }
            )
    return rows


def measure_start(folder: Path, dataset: DatasetConfig, model: ModelConfig) -> tuple[ImageSet, dict[str, float]]:
    """Seconds of a first start and of a second one."""
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        images = load_image_set(dataset, model)
        spent.append(time.perf_counter() - began)
    num_images = sum(1 for _ in folder.iterdir())
    return images, {"num_images": num_images, "first_seconds": round(spent[0], 3), "second_seconds": round(spent[1], 4)}


def measure_waiting(images: ImageSet, config: Config, num_steps: int) -> dict[str, float]:
    """The share of a training step that goes to its data."""
    torch.manual_seed(0)
    network = build_network(config.model).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    batches = batches_of(images, config)
    waiting, training = [], []
    for step in range(num_steps + 1):
        began = time.perf_counter()
        batch = batches.at(step)
        ready = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            prediction = network(batch.x_0 + batch.noise, batch.timesteps).sample
        F.mse_loss(prediction.float(), batch.noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:  # the first warms up
            waiting.append(ready - began)
            training.append(time.perf_counter() - began)
    return {
        "batch_size": config.training.batch_size,
        "num_steps": num_steps,
        "data_ms": round(1e3 * statistics.median(waiting), 2),
        "step_ms": round(1e3 * statistics.median(training), 1),
        "share_percent": round(100 * sum(waiting) / sum(training), 3),
    }


def measure(seconds: float, num_images: int) -> dict[str, Any]:
    """Everything."""
    cifar10 = load_config(CONFIGS / "cifar10.yaml")
    quarter = load_config(CONFIGS / "cifar10.yaml", ["training.batch_size=32"])  # a step in seconds on a CPU
    digits = load_config(CONFIGS / "digits.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        write_folder(folder, num_images)
        os.environ["HF_HUB_OFFLINE"] = "1"
        dataset = DatasetConfig(name=str(folder), cache_dir=str(Path(scratch) / "cache"))
        images, start = measure_start(folder, dataset, cifar10.model)
        return {
            "reading": measure_reading(images, cifar10, seconds),
            "start": start,
            "decoding": measure_decoding(seconds),
            "waiting": {
                "digits": measure_waiting(load_image_set(digits.dataset, digits.model), digits, round(20 * seconds)),
                "cifar10": measure_waiting(images, quarter, 2),
            },
            "machine": {
                "processor": processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 2),
                "torch": torch.__version__,
                "pillow": PIL.__version__,
                "date": datetime.now(timezone.utc).date().isoformat(),
            },
        }


def as_markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    machine, start = results["machine"], results["start"]
    lines = [
        "# What the data cost",
        "",
        f"Written by `benchmarks/data.py`, whose head says how, on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads (load before: {machine['load']}), torch {machine['torch']}, Pillow "
        f"{machine['pillow']}, {machine['date']}.",
        "",
        f"Goals: {GOAL_IMAGES_PER_SECOND:,} images/s from the cache, under {GOAL_WAITING:.0%} of a step for data.",
        "",
        "| reading images of 32x32 | images/s |",
        "|---|--:|",
        *(f"| {name} | {value:,} |" for name, value in results["reading"].items()),
        "",
        f"First start with {start['num_images']:,} PNG files: {start['first_seconds']} s; second: "
        f"{start['second_seconds']} s.",
        "",
        "| decoding | way | images/s | exponent of time over number |",
        "|---|---|--:|--:|",
        *(
            f"| {row['kind']} | {row['way']} | {row['images_per_second']:,} | {row['exponent']} |"
            for row in results["decoding"]
        ),
        "",
        "| training step | batch | data, ms | step, ms | share of data |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {name} | {row['batch_size']} | {row['data_ms']} | {row['step_ms']} | {row['share_percent']}% |"
            for name, row in results["waiting"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print; and write, where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement, about")
    parser.add_argument("--num_images", type=int, default=20_000, help="of 32x32 in the folder that is cached")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/data.json and data.md")
    arguments = parser.parse_args()
    results = measure(arguments.seconds, arguments.num_images)
    print(as_markdown(results))
    if arguments.save:
        (RESULTS / "data.json").write_text(json.dumps(results, indent=2) + "\n")
        (RESULTS / "data.md").write_text(as_markdown(results))


if __name__ == "__main__":
    main()
