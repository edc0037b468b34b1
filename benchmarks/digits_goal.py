"""Our digits against real ones and against diffusers' parts, at equal time: python benchmarks/digits_goal.py --save

Contestants train on 80% of scikit-learn's digits for the same CPU seconds of one thread, the learning rate running over
the time, in float32, the default of each. Then each draws as many digits as it was trained on, with the same number of
denoising steps.

*ours* is configs/digits.yaml, *ours, min_snr* the same with the weight min_snr over the timesteps. *script* is the
training step of diffusers' examples/unconditional_image_generation/train_unconditional.py with its defaults: batch 16,
AdamW 1e-4, 500 updates of warm-up, linear betas, no average, and its network. That one halves 64 pixels five times, to
2. Scaled to 8 pixels it is three levels of 128, 128 and 256 channels, the first of the script's, two blocks each,
attention at 4x4 as there, and one channel of colour. *script, narrow* has a quarter of the channels and about the size
of ours. *parts, tuned* is what diffusers' parts can do: UNet2DModel in the sizes of digits.yaml, cosine betas, batch
64, AdamW 2e-3 with 100 updates of warm-up, EMAModel with its own, images in memory, fused optimiser and average,
sampling that begins at timestep 999.

The ratio is the Fréchet distance from the other 20% in the features of the evaluation's digits classifier, divided by
the distance of the training images from them. Memorised is a sample whose nearest training image in these features is
less than a third as far as the second nearest; the held-out digits say how many real images look so.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from contenders import Script, read_images, stock_network, write_images
from defaults import CHOICES
from diffusers import DDPMPipeline, UNet2DModel
from equal_time import BASE, DIGITS, FEW_STEPS, RESULTS, Judge, sample, spend, spread, train_for
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from ddpm_hf.config import load_config
from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.evaluation.feature_store import FeatureStore, FeatureTable
from ddpm_hf.evaluation.features import to_pil
from ddpm_hf.evaluation.metrics.distances import memorized, nearest
from ddpm_hf.pipelines import DDPMPipeline as OurPipeline
from ddpm_hf.pipelines.pictures import image_grid
from ddpm_hf.runtime import cli

KEPT = Path(__file__).parents[1] / "runs" / "digits_goal"
"""Trained pipelines, to draw from with other numbers of steps, and their samples."""

NUM_SHOWN = 48


Trained = tuple[Any, int]
"""A DDPMPipeline, ours or diffusers', and the updates that it took."""


def digits(split: str) -> Tensor:
    """The digits of a split, uint8."""
    return DIGITS.images(split).images


def ours(seed: int, seconds: float, options: Sequence[str] = ()) -> Trained:
    """Train configs/digits.yaml as it stands, or with some options."""
    with tempfile.TemporaryDirectory() as folder:
        state, steps = train_for(DIGITS.configured(f"output_dir={folder}/run", f"seed={seed}", *options), seconds)
    return state.pipeline, steps


def script(seed: int, seconds: float, width: int = 128) -> Trained:
    """Train with the defaults of diffusers' script."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(width, width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_images([to_pil(image) for image in digits(DIGITS.train)], Path(folder))
        return run_script(Script(network, read_images(Path(folder), "L")), seconds)


def narrow(seed: int, seconds: float) -> Trained:
    """The script's defaults with a network of about the size of ours."""
    return script(seed, seconds, width=32)


def tuned(seed: int, seconds: float) -> Trained:
    """Train with diffusers' parts as someone would who knows them well."""
    torch.manual_seed(seed)
    network = stock_network(load_config(BASE).model)
    contestant = Script(
        network,
        [{"input": image} for image in digits(DIGITS.train).float() / 127.5 - 1],
        batch_size=64,
        scheduler={"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
        optimizer={"lr": 2e-3, "betas": (0.9, 0.999), "fused": True},
        warm_up=100,
        ema={"decay": 0.999, "use_ema_warmup": True, "power": 3 / 4, "foreach": True},
    )
    return run_script(contestant, seconds)


def run_script(contestant: Script, seconds: float) -> Trained:
    """Train a script over the time."""

    def update(step: int, num_steps: int) -> None:
        contestant.num_steps = num_steps
        contestant.update()

    steps = spend(seconds, update)
    return contestant.pipeline(), steps


CONTESTANTS: Mapping[str, Callable[[int, float], Trained]] = {
    "ours": ours,
    "ours, min_snr": partial(ours, options=CHOICES["weight"]["min_snr"]),
    "parts, tuned": tuned,
    "script": script,
    "script, narrow": narrow,
}
GOALS = {"script": 0.5, "parts, tuned": 0.8}
"""Our distance divided by theirs, at most."""
FLOORS = 1.2
"""Our distance in floors, at most."""


class Memory:
    """How many images look like copies of training images.

    Args:
        judge: whose features are compared.
        folder: for the features.

    Attributes:
        real: the share of the held-out digits.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        self.judge, self.folder = judge, folder
        self.training = self._table("training", digits(DIGITS.train))
        self.real = self.rate("held out", digits(DIGITS.held_out))

    def rate(self, name: str, images: Tensor) -> float:
        """The share of images, uint8."""
        return float(memorized(nearest(self._table(name, images), self.training, 2)).double().mean())

    def _table(self, name: str, images: Tensor) -> FeatureTable:
        features = self.judge.features(images)
        store = FeatureStore(self.folder / name, len(features), features.shape[1])
        for batch in store.missing(len(features)):
            store.write(batch, Features(features, None))
        return store.table(len(features))


def trained(contestant: str, seed: int, seconds: float) -> tuple[Any, int, Path]:
    """The pipeline of a contestant, its updates and its folder; what was trained before is loaded."""
    folder = KEPT / f"{contestant.replace(', ', '_')}-{seed}-{seconds:g}"
    done = folder / "steps.json"
    if not done.exists():
        pipeline, steps = CONTESTANTS[contestant](seed, seconds)
        pipeline.save_pretrained(folder)
        done.write_text(f"{steps}\n")
        return pipeline, steps, folder
    kind = OurPipeline if contestant.startswith("ours") else DDPMPipeline
    return kind.from_pretrained(folder), json.loads(done.read_text()), folder


def measure(
    judge: Judge, memory: Memory, contestant: str, seed: int, seconds: float, num_inference_steps: int
) -> dict[str, Any]:
    """Train, draw and judge."""
    pipeline, steps, folder = trained(contestant, seed, seconds)
    images = sample(pipeline, judge.num_samples, num_inference_steps)
    np.save(folder / f"samples-{num_inference_steps}.npy", images.numpy())
    return {
        "ratio": round(judge.ratio(images), 4),
        "memorized": round(memory.rate(f"{folder.name}-{num_inference_steps}", images), 4),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
    }


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--seconds", type=float, default=480.0, metavar="S", help="CPU seconds of training (480)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="of the contestants")
    parser.add_argument(
        "--num_inference_steps", type=int, default=FEW_STEPS, metavar="N", help=f"denoising steps ({FEW_STEPS})"
    )
    parser.add_argument("--save", action="store_true", help="keep results in benchmarks/results/digits_goal.*")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measure what is missing, then write the table and the picture."""
    torch.set_num_threads(1)
    file = RESULTS / "digits_goal.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    keys = ("contestant", "seed", "seconds", "num_inference_steps")
    done = {tuple(row[key] for key in keys) for row in rows}
    asked = [
        (contestant, seed, arguments.seconds, arguments.num_inference_steps)
        for seed in arguments.seeds
        for contestant in arguments.only or CONTESTANTS
    ]
    judge = Judge()
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(judge, Path(folder))
        for each in tqdm([each for each in asked if each not in done], unit="run"):
            row = dict(zip(keys, each, strict=True)) | measure(judge, memory, *each)
            row |= {"torch": torch.__version__, "diffusers": diffusers.__version__}
            row |= {"date": datetime.now(timezone.utc).date().isoformat()}
            tqdm.write(json.dumps(row))
            rows.append(row)
            if arguments.save:
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    text = table(rows, arguments.seconds, judge.floor, memory.real, len(digits(DIGITS.held_out)))
    print(text)
    if arguments.save:
        file.with_suffix(".md").write_text(text)
        draw(_within(rows, arguments.seconds), arguments.seconds, file.with_suffix(".png"))


def _within(rows: Sequence[Mapping[str, Any]], seconds: float) -> list[Mapping[str, Any]]:
    """What was trained for so long."""
    return [row for row in rows if row["seconds"] == seconds]


def figures(rows: Sequence[Mapping[str, Any]], contestant: str, num_inference_steps: int, key: str) -> list[float]:
    """A figure of a contestant, seed by seed."""
    chosen = [
        row for row in rows if (row["contestant"], row["num_inference_steps"]) == (contestant, num_inference_steps)
    ]
    return [row[key] for row in sorted(chosen, key=lambda row: row["seed"])]


def marks(rows: Sequence[Mapping[str, Any]], real: float) -> list[tuple[str, float, float]]:
    """What was to be reached, what was, and the limit."""
    mine = figures(rows, "ours", FEW_STEPS, "ratio")
    if not mine:
        return []
    copies = statistics.mean(figures(rows, "ours", FEW_STEPS, "memorized"))
    found = [
        ("distance from held-out digits / that of the training images", statistics.mean(mine), FLOORS),
        ("memorisation rate, at most that of held-out digits", copies, real),
    ]
    for other, limit in GOALS.items():
        theirs = figures(rows, other, FEW_STEPS, "ratio")
        if theirs:
            reached = statistics.mean(mine) / statistics.mean(theirs)
            found.append((f"our distance / that of *{other}*", reached, limit))
    return found


def table(rows: Sequence[Mapping[str, Any]], seconds: float, floor: float, real: float, num_real: int) -> str:
    """Write the results as Markdown; the goals are those of some CPU seconds of training."""
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, accelerate {accelerate.__version__}"
    date = max((row["date"] for row in rows), default="")
    copies = round(real * num_real)
    low, high = binomtest(copies, num_real).proportion_ci()
    lines = [
        "# The digits: ours, diffusers' script and its parts at equal time",
        "",
        *(" ".join(part.split()) + "\n" for part in (__doc__ or "").split("\n\n")[1:]),
        f"One thread ({platform.machine()}, {os.cpu_count()} cores), floor {floor:.4f} (the ratio 1), "
        f"{copies} of {num_real} held-out digits look memorised ({real:.1%}, and with so few it may as well be "
        f"{low:.2%} or {high:.1%}: Clopper and Pearson, 95%); {versions}, {date}. "
        "Mean ± standard deviation over the seeds.",
        "",
        "| CPU seconds | contestant | denoising steps | ratio | memorised | parameters | updates | seeds |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for spent, num_inference_steps in sorted({(row["seconds"], row["num_inference_steps"]) for row in rows}):
        for contestant in CONTESTANTS:
            of = {key: figures(_within(rows, spent), contestant, num_inference_steps, key) for key in rows[0]}
            if of["ratio"]:
                copies = spread([100 * share for share in of["memorized"]], 1)
                lines.append(
                    f"| {spent:g} | {contestant} | {num_inference_steps} | {spread(of['ratio'])} | {copies}% | "
                    f"{of['parameters'][0]:,} | {statistics.mean(of['steps']):,.0f} | {len(of['seed'])} |"
                )
    goals = f"goal, with {seconds:g} CPU seconds and {FEW_STEPS} denoising steps"
    lines += ["", f"| {goals} | reached | limit | |", "|---|--:|--:|---|"]
    for what, reached, limit in marks(_within(rows, seconds), real):
        lines.append(f"| {what} | {reached:.3f} | {limit:.3f} | {'met' if reached <= limit else '**missed**'} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], seconds: float, file: Path) -> None:
    """Draw samples of every contestant side by side, those of the first seed whose samples are there."""
    from matplotlib.figure import Figure

    shown = {"real, held out": digits(DIGITS.held_out)[:NUM_SHOWN]}
    for contestant in CONTESTANTS:
        ratios = figures(rows, contestant, FEW_STEPS, "ratio")
        found = sorted(KEPT.glob(f"{contestant.replace(', ', '_')}-*-{seconds:g}/samples-{FEW_STEPS}.npy"))
        if ratios and found:
            shown[f"{contestant}: {spread(ratios)}"] = torch.from_numpy(np.load(found[0])[:NUM_SHOWN])
    figure = Figure(figsize=(2.6 * len(shown), 3.8), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.imshow(image_grid([to_pil(image) for image in images], columns=6, min_side=32), cmap="gray")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    cli.run(make_parser(), main)
