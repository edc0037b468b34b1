"""What a model of nine classes is worth for the tenth: python benchmarks/fine_tuning.py [--data FOLDER] --save

A model learns nine classes of scikit-learn's digits or, with --data FOLDER, of CIFAR-10 at 16x16 (see equal_time.py).
Half the images of the tenth are then trained on from its weights or from new ones, for the same CPU seconds of one
thread and with the same learning rate, which runs over the time. *ratio* is the Fréchet distance of samples
from the other half of the tenth class, in the features of a small classifier, divided by that of the half that was
trained on: 1.0 is as near as the training images are.
"""

import argparse
import json
import os
import statistics
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import equal_time
import torch
from accelerate import Accelerator
from equal_time import DIGITS, RESULTS, Cifar10, Subject, sample, spend, spread
from torch import Tensor

from ddpm_hf.config import Config, ModelConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.metrics.distances import FeatureStatistics, frechet_distance
from ddpm_hf.runtime import cli
from ddpm_hf.training.fine_tuning import find_source, load_pretrained
from ddpm_hf.training.resume import Start
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.update import TrainStep

TENTH = {"digits": 9, "cifar10": 8}
SECONDS = {"digits": (3.0, 10.0, 30.0, 60.0, 120.0), "cifar10": (30.0, 60.0, 120.0)}
SOURCE_SECONDS = {"digits": 60.0, "cifar10": 400.0}


@dataclass(frozen=True)
class Task:
    """Images of nine classes, and the tenth in two halves."""

    nine: ImageSet
    tenth: ImageSet
    held_out: Tensor
    extractor: FeatureExtractor

    @classmethod
    def of(cls, subject: Subject, split: str, label: int) -> "Task":
        """Split the images of a subject."""
        images = subject.images(split)
        assert images.labels is not None
        of_it = (images.labels == label).nonzero().flatten()
        others = (images.labels != label).nonzero().flatten()
        return cls(
            _chosen(images, others), _chosen(images, of_it[::2]), images.images[of_it[1::2]], subject.extractor().eval()
        )

    def statistics(self, images: Tensor) -> FeatureStatistics:
        """Mean and covariance of the features of images, uint8."""
        with torch.no_grad():
            features = torch.cat([self.extractor(part).values for part in images.split(1000)]).double()
        return FeatureStatistics(len(features), features.sum(0), features.T @ features)


def _chosen(images: ImageSet, indices: Tensor) -> ImageSet:
    return replace(images, images=images.images[indices], labels=None, class_names=None)


def train(config: Config, images: ImageSet, seconds: float, pretrained: str | None = None) -> tuple[TrainState, int]:
    """Train on images for some CPU seconds; gives what has learnt, and in how many updates."""
    start = Start()
    if pretrained is not None:
        loaded = load_pretrained(ModelConfig(pretrained=pretrained), find_source(pretrained))
        start, config = Start(pretrained=loaded), config.model_copy(update={"model": loaded.model})
    state = TrainState(config, Accelerator(cpu=True), start)
    step = TrainStep(state, images, 10**9)

    def update(done: int, num_steps: int) -> None:
        step.num_steps = num_steps
        step.update(done)

    return state, spend(seconds, update)


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    name = "cifar10" if arguments.data else "digits"
    subject: Subject = Cifar10(arguments.data) if arguments.data else DIGITS
    file = RESULTS / f"fine_tuning{'_cifar10' if arguments.data else ''}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    task = Task.of(subject, "train[:10000]" if arguments.data else "train", TENTH[name])
    held_out = task.statistics(task.held_out)
    floor = frechet_distance(held_out, task.statistics(task.tenth.images)).value
    done = {(row["start"], row["seconds"], row["seed"]) for row in rows}
    asked = [
        (start, seconds, seed)
        for seed in arguments.seeds
        for seconds in SECONDS[name]
        for start in ("new", "nine classes")
        if (start, seconds, seed) not in done
    ]
    with TemporaryDirectory() as folder:
        source = f"{folder}/source"
        if asked:
            config = subject.configured(f"output_dir={folder}/run")
            train(config, task.nine, SOURCE_SECONDS[name])[0].save_pipeline(Path(source))
        for start, seconds, seed in asked:
            config = subject.configured(f"output_dir={folder}/run", f"seed={seed}")
            state, updates = train(config, task.tenth, seconds, None if start == "new" else source)
            drawn = task.statistics(sample(state.pipeline, len(task.held_out)))
            ratio = round(frechet_distance(held_out, drawn).value / floor, 4)
            row: dict[str, Any] = {"start": start, "seconds": seconds, "seed": seed}
            row |= {"ratio": ratio, "updates": updates, "torch": torch.__version__}
            row |= {"date": datetime.now(timezone.utc).date().isoformat()}
            print(json.dumps(row), flush=True)
            rows.append(row)
            if arguments.save:
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    text = table(rows, name, subject.title, len(task.tenth), floor)
    print(text)
    if arguments.save:
        file.with_suffix(".md").write_text(text)


def table(rows: list[dict[str, Any]], name: str, title: str, count: int, floor: float) -> str:
    """Write the results as Markdown."""
    lines = [
        f"# Fine-tuning to a tenth class: {title}",
        "",
        *(" ".join(part.split()) + "\n" for part in (__doc__ or "").split("\n\n")[1:]),
        f"The nine classes were learnt for {SOURCE_SECONDS[name]:g} CPU seconds; the tenth has {count} images to train "
        f"on. {equal_time.FEW_STEPS} denoising steps, floor {floor:.4f}; torch {torch.__version__}, {os.cpu_count()} "
        f"cores, {max(row['date'] for row in rows)}. Mean ± deviation over the seeds.",
        "",
        "| CPU seconds | from new weights | from nine classes | updates | seeds |",
        "|--:|--:|--:|--:|--:|",
    ]
    for seconds in SECONDS[name]:
        found = {
            start: [row for row in rows if (row["start"], row["seconds"]) == (start, seconds)]
            for start in ("new", "nine classes")
        }
        ratios = [spread([row["ratio"] for row in same]) for same in found.values()]
        updates = statistics.mean(row["updates"] for same in found.values() for row in same)
        lines.append(f"| {seconds:g} | {' | '.join(ratios)} | {updates:,.0f} | {len(found['new'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--data", metavar="FOLDER", help="of CIFAR-10's parquet files, to compare on it at 16x16")
    parser.add_argument("--save", action="store_true", help="keep them in benchmarks/results/fine_tuning[_cifar10].*")
    cli.run(parser, measure)
