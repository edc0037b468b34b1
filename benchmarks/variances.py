"""The variance of a sampling step by the number of steps: python benchmarks/variances.py MODEL [MODEL ...] --save

Ancestral sampling adds noise of variance beta_t (fixed_large) or beta_tilde_t (fixed_small) of the steps that are taken
(DDPM, section 3.2). Neither is trained, so the same networks are sampled with both. Quality is measured as in
equal_time.py: the Fréchet distance of 718 samples from the held-out fifth of scikit-learn's digits, in the features of
the evaluation's classifier, divided by the distance of as many training images. The models are those of several seeds
that were trained on the other four fifths, such as digits_goal.py leaves in runs/digits_goal.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch
from equal_time import DIGITS, RESULTS, Judge, sample, spread
from tqdm import tqdm

from ddpm_hf.checkpoints.find import load_pipeline
from ddpm_hf.runtime import cli
from ddpm_hf.schedulers import DDPMScheduler

VARIANCES = ("fixed_small", "fixed_large")
NUM_SAMPLES = 718


def measure(models: Sequence[str], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Sample every model with every number of steps and variance."""
    judge = Judge(replace(DIGITS, num_samples=NUM_SAMPLES))
    pipelines = [load_pipeline(model) for model in models]
    rows = []
    for num_steps in tqdm(counts, unit="number of steps"):
        for variance in VARIANCES:
            ratios = []
            for pipeline in pipelines:
                pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type=variance)
                ratios.append(round(judge.ratio(sample(pipeline, NUM_SAMPLES, num_steps)), 4))
            rows.append({"num_inference_steps": num_steps, "variance": variance, "ratios": ratios})
            tqdm.write(json.dumps(rows[-1]))
    return rows


def table(result: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    num_models = len(result["rows"][0]["ratios"])
    lines = [
        "# Which variance of a sampling step, by the number of steps",
        "",
        " ".join((__doc__ or "").split("\n\n")[1].split()),
        "",
        f"{num_models} models; mean ± standard deviation of the ratio over them; torch {result['torch']}, "
        f"{result['cores']} cores, {result['date']}.",
        "",
        "| steps | " + " | ".join(VARIANCES) + " |",
        "|--:|" + "--:|" * len(VARIANCES),
    ]
    found = {(row["num_inference_steps"], row["variance"]): row["ratios"] for row in result["rows"]}
    for num_steps in sorted({row["num_inference_steps"] for row in result["rows"]}):
        lines.append(f"| {num_steps} | " + " | ".join(spread(found[num_steps, each]) for each in VARIANCES) + " |")
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run folder, a saved pipeline, or a Hub id")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100], metavar="N", help="(10 20 50 100)")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/variances.*")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print and save the table."""
    torch.set_num_threads(1)
    result = {
        "rows": measure(arguments.models, arguments.steps),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    text = table(result)
    print(text)
    if arguments.save:
        (RESULTS / "variances.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "variances.md").write_text(text)


if __name__ == "__main__":
    cli.run(make_parser(), main)
