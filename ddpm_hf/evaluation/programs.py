"""What the programs do: one evaluation, or one for every combination of settings."""

import itertools
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from ddpm_hf.checkpoints.find import load_pipeline, weights_hash
from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.evaluation.comparison import compare
from ddpm_hf.evaluation.evaluate import carry_out
from ddpm_hf.evaluation.features import load_extractor
from ddpm_hf.evaluation.plan import evaluations_of, make_plan
from ddpm_hf.evaluation.rendering import metric_table, pair_values
from ddpm_hf.evaluation.report import Report
from ddpm_hf.runtime.distributed import init_distributed
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_text_atomic


def evaluate_once(model: str | Path, config: Config, output: Path | None = None) -> None:
    """Evaluate a model and say where the report lies; every process of a launch calls this.

    Args:
        model: a saved pipeline, a run folder, or an id on the Hub.
        config: says what is measured.
        output: the folder of the evaluation; None makes one below the model's.

    Raises:
        UserError: naming everything that does not fit, before a sample is drawn.
    """
    init_distributed(timedelta(minutes=config.training.timeout_minutes))
    plan = make_plan(model, config, output)
    report = carry_out(plan)
    if report is None:
        return
    for warning in report.warnings:
        print(f"note: {warning}")
    print(f"\n{summary(report)}\n\nIn {plan.folder}/: report.html, report.md, pictures/", end="")
    print(", metrics.json" if config.benchmark.save_metrics else "")
    if output is None and config.benchmark.save_metrics and (Path(model) / "config.yaml").exists():
        # a run's newest evaluation lies at its top as well, where the model card looks for it
        write_text_atomic(Path(model) / "metrics.json", (plan.folder / "metrics.json").read_text(encoding="utf-8"))


def summary(report: Report) -> str:
    """The metrics of a report, a line each, beside those of real images."""
    header, rows = metric_table(report)
    rows = [header, *rows, *([name, str(value)] for name, value in pair_values(report).items())]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(header))]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def sweep(model: str | Path, config: Config, options: Sequence[str], output: Path | None = None) -> None:
    """Evaluate every combination of options, and set quality against network evaluations per sampler.

    Reconstructions, likelihood and pictures do not change with the sampler and are left out.

    Args:
        model: a saved pipeline, a run folder, or an id on the Hub.
        config: says what is measured.
        options: `name=value,value` each, of fields of the benchmark section.
        output: the folder of table, plot and evaluations; None makes one below the model's.

    Raises:
        UserError: naming every combination that does not fit, before a sample is drawn.
    """
    init_distributed(timedelta(minutes=config.training.timeout_minutes))
    combinations = _combinations(options, config)
    pipeline = load_pipeline(model)
    folder = output or evaluations_of(model) / f"sweep-{weights_hash(pipeline.unet)[:8]}"
    extractors: dict[tuple[str, ...], Any] = {}
    plans, problems = [], []
    for name, benchmark in combinations:
        sized = config.model_copy(update={"benchmark": benchmark})
        try:
            kind = (benchmark.features, benchmark.inception_resize)
            if kind not in extractors:
                extractors[kind] = load_extractor(benchmark, pipeline.device)
            plans.append(make_plan(model, sized, folder / name, pipeline, extractors[kind]))
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError("--sweep: " + "\n".join(problems))
    for plan in plans:
        carry_out(plan, pictures=False)
    if PartialState().is_main_process:
        print(compare([plan.folder for plan in plans], folder))


def _combinations(options: Sequence[str], config: Config) -> list[tuple[str, BenchmarkConfig]]:
    """A name for each combination of options, and the benchmark section that it makes."""
    axes = []
    for option in options:
        name, equals, values = option.partition("=")
        name = name.removeprefix("benchmark.")
        if not equals or not values or name not in BenchmarkConfig.model_fields or name in ("metrics", "save_metrics"):
            raise UserError(
                f"--sweep: given {option!r}; allowed: NAME=VALUE,VALUE with a name of the benchmark section, such as "
                "sampler=ddim,dpmsolver++ or num_inference_steps=10,20,50"
            )
        axes.append([(name, yaml.safe_load(value)) for value in values.split(",")])
    without = {"ssim": False, "psnr": False, "bits_per_dim": False}
    metrics = config.benchmark.metrics.model_copy(update=without)
    found, problems = [], []
    for chosen in itertools.product(*axes):
        fields = config.benchmark.model_dump() | dict(chosen)
        name = "-".join(f"{key}={value}" for key, value in chosen).replace(os.sep, "_")
        try:
            benchmark = BenchmarkConfig.model_validate(fields | {"metrics": metrics.model_dump(), "save_metrics": True})
        except ValueError as error:
            problems.append(f"{name}: {'; '.join(str(each['msg']) for each in getattr(error, 'errors', list)())}")
            continue
        found.append((name, benchmark))
    if problems:
        raise UserError("--sweep: " + "\n".join(problems))
    return found
