"""How sure a classifier of real digits is of sampled ones: python benchmarks/digits_quality.py runs/digits

A support vector machine is fitted on scikit-learn's 1,797 real digits. It looks at 898 samples and, for comparison, at
the real digits, which it knows. Written to benchmarks/results/digits_quality.json with --save.
"""

import argparse
import json
import platform
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ddpm_hf._version import __version__
from ddpm_hf.checkpoints.find import load_pipeline
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.randomness import image_seeds

NUM_SAMPLES = 898
RESULT = Path(__file__).parent / "results" / "digits_quality.json"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("model", help="a run folder, a saved pipeline, or an id on the Hub")
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling run (default: 0)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the other results")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Sample, classify, and say how it went."""
    digits = load_digits()
    judge = SVC(probability=True, random_state=0).fit(digits.data, digits.target)
    pipeline = load_pipeline(arguments.model)
    samples = pipeline(
        seeds=image_seeds(arguments.seed, range(NUM_SAMPLES)),
        num_inference_steps=arguments.num_inference_steps,
        output_type="np",
    ).images
    result = {
        "samples": judged(judge, samples.reshape(NUM_SAMPLES, 64) * 16),
        "real": judged(judge, digits.data),
        "seed": arguments.seed,
        "num_inference_steps": arguments.num_inference_steps or pipeline.scheduler.config.num_train_timesteps,
        "parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
        "versions": {"ddpm_hf": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if arguments.save:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


def judged(judge: SVC, digits: np.ndarray) -> dict[str, float | list[float]]:
    """How sure the judge is on average, and the share of each class that it finds."""
    probabilities = judge.predict_proba(digits)
    shares = np.bincount(probabilities.argmax(1), minlength=10) / len(digits)
    return {
        "confidence": round(float(probabilities.max(1).mean()), 4),
        "class_shares": [round(float(share), 4) for share in shares],
    }


if __name__ == "__main__":
    cli.run(make_parser(), main)
