"""Choices compared at equal time on small images: what losses.py and defaults.py share.

Every choice trains on the same images for the same CPU seconds of one thread, so that other work on the machine does
not decide, and for several seeds. The learning rate runs over the time, not over a number of steps. The quality is the
Fréchet distance of samples from held-out images, in the features of a small classifier, divided by the distance of as
many training images from them: 1.0 is as near as the training images are. Every (choice, seed) is a line of
results/NAME.jsonl; what is there is not done again.

The images are scikit-learn's digits, 80% of them to train on, in the features of the evaluation's digits classifier;
or, with --data FOLDER, CIFAR-10 at 16x16 (cifar10_small.yaml; columns img and label): 8,000 images to train on, 1,000
samples against 2,000 held-out images, and a classifier that was trained on the other 40,000. Both have the paper's
loss, in which every timestep counts the same, unless a choice says otherwise.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from cifar10_features import load_cifar10_classifier
from torch import Tensor
from tqdm import tqdm

from ddpm_hf.config import Config, load_config
from ddpm_hf.data import ImageSet, load_image_set
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.extractors.digits_classifier import accuracy, load_digits_classifier
from ddpm_hf.evaluation.metrics.distances import FeatureStatistics, frechet_distance
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.randomness import image_seeds
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.update import TrainStep

RESULTS = Path(__file__).parent / "results"
BASE = Path(__file__).parents[1] / "configs" / "digits.yaml"
FEW_STEPS = 50
"""Denoising steps of the samples, for every choice."""

Row = Mapping[str, Any]
"""Of results/NAME.jsonl."""

Choices = Mapping[str, Mapping[str, Sequence[str]]]
"""By question and answer: the options that differ from the subject's configuration."""


def weighted(formula: str) -> tuple[str, ...]:
    """The options of a weight of the timesteps, of mean 1."""
    return (
        "loss_config.use_time_weighting=true",
        f"loss_config.time_weight_type={formula}",
        "loss_config.time_weight_params.normalize=true",
    )


@dataclass(frozen=True)
class Subject:
    """Images that choices are compared on.

    Attributes:
        title: what they are.
        config: a YAML file, which the choices differ from.
        options: what else differs from it.
        train: split to train on.
        held_out: split that samples are compared with.
        num_samples: to draw; None for as many as are trained on.
    """

    title: str
    config: Path
    options: tuple[str, ...]
    train: str
    held_out: str
    num_samples: int | None = None

    def configured(self, *options: str) -> Config:
        """The configuration of a choice."""
        return load_config(self.config, [*self.options, f"dataset.split={self.train}", *options])

    def images(self, split: str) -> ImageSet:
        """The images of a split."""
        config = self.configured(f"dataset.split={split}")
        return load_image_set(config.dataset, config.model)

    def extractor(self) -> FeatureExtractor:
        """What the features are of."""
        return load_digits_classifier()


class Cifar10(Subject):
    """CIFAR-10 at 16x16.

    Args:
        folder: of its parquet files.
    """

    def __init__(self, folder: str) -> None:
        file = Path(__file__).with_name("cifar10_small.yaml")
        super().__init__(
            "CIFAR-10 at 16x16", file, (f"dataset.name={folder}",), "train[:8000]", "train[8000:10000]", 1000
        )

    def extractor(self) -> FeatureExtractor:
        classifier = load_cifar10_classifier(self.images("train[10000:]"))
        held_out = self.images(self.held_out)
        assert held_out.labels is not None
        right = accuracy(classifier, held_out.images, held_out.labels)
        print(f"the classifier is right on {right:.1%} of the held-out images")
        return classifier


DIGITS = Subject("scikit-learn's digits", BASE, (), "train[:80%]", "train[80%:]")


class Judge:
    """Held-out images, and how far others are from them.

    Args:
        subject: whose images.

    Attributes:
        floor: the distance of training images.
    """

    def __init__(self, subject: Subject = DIGITS) -> None:
        self.extractor = subject.extractor().eval()
        self.held_out = self._statistics(subject.images(subject.held_out).images)
        training = subject.images(subject.train).images
        self.num_samples = subject.num_samples or len(training)
        self.floor = frechet_distance(self.held_out, self._statistics(training[: self.num_samples])).value

    def ratio(self, images: Tensor) -> float:
        """The distance of images, uint8, in floors."""
        return frechet_distance(self.held_out, self._statistics(images)).value / self.floor

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """One row for each of the images, uint8."""
        return torch.cat([self.extractor(part).values for part in images.split(1000)])

    def _statistics(self, images: Tensor) -> FeatureStatistics:
        features = self.features(images).double()
        return FeatureStatistics(len(features), features.sum(0), features.T @ features)


def train_for(config: Config, seconds: float) -> tuple[TrainState, int]:
    """Train for some CPU seconds; the learning rate and its warm-up run over the time.

    Returns:
        What has learnt, and in how many updates.
    """
    images = load_image_set(config.dataset, config.model)
    state = TrainState(config, Accelerator(cpu=True))
    train_step = TrainStep(state, images, 10**9, load_perceptual(config))

    def update(step: int, num_steps: int) -> None:
        train_step.num_steps = num_steps
        train_step.update(step)

    return state, spend(seconds, update)


def spend(seconds: float, update: Callable[[int, int], object]) -> int:
    """Update for some CPU seconds.

    Args:
        seconds: to spend.
        update: takes the updates done before and how many there will be, a guess that gets better.

    Returns:
        The number of updates.
    """
    update(0, 10_000)  # whatever is done once at the beginning is not the choice's
    step, started = 1, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        update(step, max(step + 1, round(step * seconds / spent)) if step > 20 else 10_000)
        step += 1
    return step


def sample(pipeline: Any, count: int, num_inference_steps: int = FEW_STEPS) -> Tensor:
    """Draw images, uint8, each from a seed of its own; the pipeline is a DDPMPipeline, ours or diffusers'."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(0, range(count))]
    parts = []
    for at in range(0, count, 256):
        some = generators[at : at + 256]
        drawn = pipeline(len(some), some, num_inference_steps=num_inference_steps, output_type="np")
        parts.append(torch.from_numpy(drawn.images))
    return (torch.cat(parts).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


def run_one(subject: Subject, judge: Judge, options: Sequence[str], seed: int, seconds: float) -> dict[str, Any]:
    """Train and judge one choice."""
    with tempfile.TemporaryDirectory() as folder:
        state, steps = train_for(subject.configured(f"output_dir={folder}/run", f"seed={seed}", *options), seconds)
        ratio = judge.ratio(sample(state.pipeline, judge.num_samples))
    return {"ratio": round(ratio, 4), "steps": steps}


def main(name: str, title: str, choices: Choices) -> None:
    """The program: measure what is missing, then write the table and the plot."""
    parser = cli.Parser(f"{title}: python benchmarks/{name}.py --save")
    parser.add_argument("--seconds", type=float, default=40.0, metavar="S", help="CPU seconds of training (default 40)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="choices whose name has one of these texts in it")
    parser.add_argument("--data", metavar="FOLDER", help="of CIFAR-10's parquet files, to compare on it at 16x16")
    parser.add_argument("--save", action="store_true", help=f"keep results in benchmarks/results/{name}[_cifar10].*")
    cli.run(parser, lambda arguments: _measure(arguments, name, title, choices))


def _measure(arguments: argparse.Namespace, name: str, title: str, choices: Choices) -> None:
    torch.set_num_threads(1)
    subject = Cifar10(arguments.data) if arguments.data else DIGITS
    file = RESULTS / f"{name}{'_cifar10' if arguments.data else ''}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["question"], row["answer"], row["seed"], row["seconds"]) for row in rows}
    asked = [
        (question, answer, seed)
        for seed in arguments.seeds
        for question, answers in choices.items()
        for answer in answers
        if arguments.only is None or any(text in f"{question}: {answer}" for text in arguments.only)
    ]
    asked = [each for each in asked if (*each, arguments.seconds) not in done]
    judge = Judge(subject)
    for question, answer, seed in tqdm(asked, unit="run"):
        result = run_one(subject, judge, choices[question][answer], seed, arguments.seconds)
        row = {"question": question, "answer": answer, "seed": seed, "seconds": arguments.seconds, **result}
        row |= {"torch": torch.__version__, "date": datetime.now(timezone.utc).date().isoformat()}
        tqdm.write(json.dumps(row))
        rows.append(row)
        if arguments.save:
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    text = table(rows, f"{title}: {subject.title}", choices, judge.floor)
    print(text)
    if arguments.save:
        file.with_suffix(".md").write_text(text)
        plot(rows, choices, file.with_suffix(".png"))


def by_seconds(rows: Sequence[Row], choices: Choices) -> dict[float, dict[tuple[str, str], list[Row]]]:
    """The rows of each question and answer, in the order of the choices."""
    found: dict[float, dict[tuple[str, str], list[Row]]] = {}
    for seconds in sorted({row["seconds"] for row in rows}):
        for question, answers in choices.items():
            for answer in answers:
                key = (question, answer, seconds)
                if same := [row for row in rows if (row["question"], row["answer"], row["seconds"]) == key]:
                    found.setdefault(seconds, {})[question, answer] = same
    return found


def spread(values: Sequence[float], places: int = 2) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{places}f}{deviation}"


def table(rows: Sequence[Row], title: str, choices: Choices, floor: float) -> str:
    """Write the results as Markdown."""
    date = max((row["date"] for row in rows), default="")
    lines = [
        f"# {title}",
        "",
        *(" ".join(part.split()) + "\n" for part in (__doc__ or "").split("\n\n")[1:]),
        f"{FEW_STEPS} denoising steps, floor {floor:.4f}; torch {torch.__version__}, {os.cpu_count()} cores, {date}. "
        "*ratio* is mean ± standard deviation over the seeds.",
    ]
    for seconds, found in by_seconds(rows, choices).items():
        lines += ["", f"## {seconds:g} CPU seconds", ""]
        lines += ["| question | answer | ratio | updates | seeds |", "|---|---|--:|--:|--:|"]
        for (question, answer), same in found.items():
            ratio, steps = spread([row["ratio"] for row in same]), statistics.mean(row["steps"] for row in same)
            lines.append(f"| {question} | {answer} | {ratio} | {steps:,.0f} | {len(same)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], choices: Choices, file: Path) -> None:
    """Draw every choice side by side."""
    from matplotlib.figure import Figure

    found = by_seconds(rows, choices)
    heights = [1 + len(each) for each in found.values()]
    figure = Figure(figsize=(8, 1 + 0.26 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(found), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (seconds, some) in zip(panels, found.items(), strict=True):
        names = [f"{question}: {answer}" if answer else question for question, answer in some]
        ratios = [[row["ratio"] for row in same] for same in some.values()]
        spreads = [statistics.stdev(each) if len(each) > 1 else 0 for each in ratios]
        axes.barh(names, [statistics.mean(each) for each in ratios], xerr=spreads, color="tab:blue", alpha=0.7)
        axes.invert_yaxis()
        axes.axvline(1, color="0.3", linewidth=1, label="training images")
        axes.set_title(f"{seconds:g} CPU seconds", loc="left", fontsize=10)
    axes.set(xlabel="distance from held-out images / that of the training images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right")
    figure.savefig(file, dpi=120)
