"""What the programs do: one evaluation, a sweep over settings, and several evaluations side by side."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import ValidationError

from ddpm_hf.checkpoints.find import load_pipeline, weights_hash
from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.config.reader import explain, parse_value
from ddpm_hf.evaluation.evaluate import run, samples_only
from ddpm_hf.evaluation.extractors import load_extractor
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.plan import evaluations_of, make_plan
from ddpm_hf.evaluation.rendering import markdown_table, metric_table, pair_values
from ddpm_hf.evaluation.report import MetricValue, Report
from ddpm_hf.runtime.distributed import init_distributed
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import atomic_write, write_text_atomic
from ddpm_hf.runtime.sanitize import for_terminal

Reports = dict[str, Report]

PROTOCOL = {
    "number of samples": "sampling.n_samples",
    "features": "features.fingerprint",
    "resize": "features.resize",
    "reference": "reference.fingerprint",
    "reference split": "reference.split",
}
"""What two evaluations must share for their metrics to be comparable: its name, and the attribute of `Report`."""

HELD_OUT_PROTOCOL = {
    "held-out images": "held_out.fingerprint",
    "number of held-out images": "held_out.num_images",
    "number of timesteps of the bound": "held_out.likelihood_timesteps",
}
"""And for the metrics of held-out images."""


def evaluate_once(model: str | Path, config: Config, output: Path | None = None) -> None:
    """Evaluate a model, and print the metrics and where the report is; all processes call this together.

    Args:
        model: a run folder, a saved pipeline, or an id on the Hub.
        config: says what is measured.
        output: folder of the evaluation; None makes one below the model's.

    Raises:
        UserError: naming everything that does not fit, before a sample is drawn.
    """
    init_distributed(timedelta(minutes=config.training.timeout_minutes))
    plan = make_plan(model, config, output)
    report = run(plan)
    if report is None:
        return
    for warning in report.warnings:
        print(f"note: {for_terminal(warning)}")
    header, rows = metric_table(report)
    kind, blank = report.held_out_kind, [""] * (len(header) - 2)
    rows += [[f"{name}, of {kind}", str(value), *blank] for name, value in pair_values(report).items()]
    print(f"\n{markdown_table(header, rows)}\n\nIn {plan.folder}/: report.html, report.md, pictures/", end="")
    print(", metrics.json" if config.benchmark.save_metrics else "")
    if output is None and config.benchmark.save_metrics and (Path(model) / "config.yaml").exists():
        # the newest evaluation of a run is at its top as well, where the model card looks for it
        report.write(Path(model) / "metrics.json")


def sweep(model: str | Path, config: Config, options: Sequence[str], output: Path | None = None) -> None:
    """Evaluate every combination of options, and plot the metrics over network evaluations for each sampler.

    Reconstructions, likelihood and pictures do not depend on the sampler and are skipped.

    Args:
        model: a run folder, a saved pipeline, or an id on the Hub.
        config: says what is measured.
        options: `name=value,value` each, of fields of the benchmark section.
        output: folder of table, plot and evaluations; None makes one below the model's.

    Raises:
        UserError: naming every combination that does not fit, before a sample is drawn.
    """
    init_distributed(timedelta(minutes=config.training.timeout_minutes))
    axes, base = [_axis(option) for option in options], samples_only(config.benchmark).model_dump()
    pipeline = load_pipeline(model)
    folder = output or evaluations_of(model) / f"sweep-{weights_hash(pipeline.unet)[:8]}"
    extractors: dict[tuple[str, str], FeatureExtractor] = {}
    plans, problems = [], []
    for chosen in itertools.product(*axes):
        name = "-".join(f"{key}={value}" for key, value in chosen).replace(os.sep, "_")
        try:
            benchmark = BenchmarkConfig.model_validate({**base, "save_metrics": True, **dict(chosen)})
            kind = (benchmark.features, benchmark.inception_resize)
            if kind not in extractors:
                extractors[kind] = load_extractor(benchmark, pipeline.device)
            combined = config.model_copy(update={"benchmark": benchmark})
            plans.append(make_plan(model, combined, folder / name, pipeline, extractors[kind]))
        except ValidationError as error:
            problems += [f"{'.'.join(map(str, path[1:]))}: {text}" for path, text, _ in explain(error, "benchmark")]
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError("--sweep: " + "\n".join(dict.fromkeys(problems)))
    for plan in plans:
        run(plan, pictures=False)
    if PartialState().is_main_process:
        print(compare([plan.folder for plan in plans], folder))


def _axis(option: str) -> list[tuple[str, Any]]:
    """The field of the benchmark section that an option names, with each of its values."""
    name, equals, values = (part.strip() for part in option.partition("="))
    name = name.removeprefix("benchmark.")
    if not equals or not values or name not in BenchmarkConfig.model_fields or name in ("metrics", "save_metrics"):
        raise UserError(
            f"--sweep: given {option!r}; allowed: NAME=VALUE,VALUE with a name of the benchmark section, such as "
            "sampler=ddim,dpmsolver++ or num_inference_steps=10,20,50"
        )
    return [(name, parse_value(value)) for value in values.split(",")]


def compare(folders: Sequence[Path], output: Path) -> str:
    """Write comparison.md, comparison.json and comparison.png of several evaluations.

    Args:
        folders: of evaluations; or of models or runs, whose newest evaluation is taken, or their newest in-training
            evaluation if there is no other.
        output: folder of the three files.

    Returns:
        The table, and where the files are.

    Raises:
        UserError: naming every folder without a readable evaluation.
    """
    reports, problems = {}, []
    for folder in folders:
        try:
            reports[_short_name(folder, folders)] = _read(folder)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    notes = list(_notes(reports))
    text = markdown_table(*_metric_rows(reports))
    if any(pair_values(report) for report in reports.values()):
        text += f"\n\nReconstructions:\n\n{markdown_table(*_pair_rows(reports))}"
    output.mkdir(parents=True, exist_ok=True)
    warning = "".join(f"> **{note}**\n\n" for note in notes)
    write_text_atomic(output / "comparison.md", f"# Comparison\n\n{warning}{text}\n\n![metrics](comparison.png)\n")
    content = {"notes": notes, "reports": {name: asdict(report) for name, report in reports.items()}}
    write_text_atomic(output / "comparison.json", json.dumps(content, indent=2) + "\n")
    _plot(reports, output / "comparison.png")
    return "\n".join([*(f"note: {note}" for note in notes), text, f"\nIn {output}/: comparison.md, .json, .png"])


def _short_name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name if no other has the same; else its path."""
    same = [other for other in folders if other.name == folder.name]
    return folder.name if len(same) == 1 and folder.name else str(folder)


def _read(folder: Path) -> Report:
    """The report in a folder, or the newest one of the model in it."""
    if (folder / "metrics.json").exists():
        return Report.read(folder / "metrics.json")
    files = sorted(folder.glob("evaluation/*/metrics.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    if not files:
        raise UserError(f"{folder} holds no evaluation; make one with: python training/eval.py --model {folder} …")
    newest = Report.read(files[0])
    return next((report for report in map(Report.read, files) if report.label is None), newest)


def _notes(reports: Reports) -> Iterator[str]:
    """Why metrics are not comparable, or not what they seem."""
    for name, report in reports.items():
        if report.label:
            yield f"{name} is not a full evaluation: {report.label}"
    yield from _differences(reports, PROTOCOL, "not comparable")
    held_out = {name: each for name, each in reports.items() if each.reconstructions or "bits_per_dim" in each.metrics}
    yield from _differences(held_out, HELD_OUT_PROTOCOL, "metrics of held-out images are not comparable")
    if counts := {report.num_matched for report in reports.values()} - {None}:
        yield (
            "a Fréchet distance depends on the number of images, so the plot shows as many samples as there are real "
            f"images ({', '.join(map(str, sorted(map(int, filter(None, counts)))))}), against the same images"
        )


def _differences(reports: Reports, protocol: dict[str, str], then: str) -> Iterator[str]:
    for what, attribute in protocol.items():
        values = {name: attrgetter(attribute)(report) for name, report in reports.items()}
        if len(set(values.values())) > 1:
            each = "; ".join(f"{name}: {value}" for name, value in values.items())
            yield f"{then}, since the {what} differs ({each})"


def _metric_rows(reports: Reports) -> tuple[list[str], list[list[str]]]:
    names = {key: each.name for report in reports.values() for key, each in report.metrics.items()}
    header = ["", "samples", "against", "sampler", "steps", "network evaluations", *names.values()]
    rows = []
    for name, report in reports.items():
        sampling = report.sampling
        cost = [str(sampling.num_inference_steps), str(sampling.network_evaluations)]
        values = {key: str(report.metrics.get(key, "")) for key in names}
        if values.get("bits_per_dim"):
            values["bits_per_dim"] += f" ({report.held_out_kind})"
        against = report.reference_kind
        rows.append([name, f"{sampling.n_samples:,}", against, sampling.sampler, *cost, *values.values()])
    for text, report in {report.real_vs_real: report for report in reports.values()}.items():
        real = [str(report.metrics[key].real_vs_real) if key in report.metrics else "" for key in names]
        rows.append(["real images", text, "", "", "", "", *real])
    return header, rows


def _pair_rows(reports: Reports) -> tuple[list[str], list[list[str]]]:
    """SSIM and PSNR of each method, with a column for each evaluation."""
    values = {name: pair_values(report) for name, report in reports.items()}
    rows = dict.fromkeys(row for each in values.values() for row in each)
    header = ["", *(f"{name} ({reports[name].held_out_kind})" for name in values)]
    return header, [[row, *(str(each.get(row, "")) for each in values.values())] for row in rows]


def _plot(reports: Reports, file: Path) -> None:
    """One panel for each metric: lines over network evaluations for one model at several costs, bars otherwise."""
    from matplotlib.figure import Figure  # takes most of a second to import

    keys = dict.fromkeys(key for report in reports.values() for key in report.metrics)
    shown = {key: values for key in keys if (values := _values(reports, key))}
    if not shown:
        return
    columns = min(3, len(shown))
    figure = Figure(figsize=(5 * columns, 3.6 * -(-len(shown) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(shown) // columns), columns, squeeze=False).flatten()
    settings = {(each.sampling.sampler, each.sampling.network_evaluations) for each in reports.values()}
    is_one_model = len({report.model.weights for report in reports.values()}) == 1
    by_cost = is_one_model and len(settings) == len(reports) and len({cost for _, cost in settings}) > 1
    for axes, (key, values) in zip(panels, shown.items(), strict=False):
        metric = next(report.metrics[key] for report in reports.values() if key in report.metrics)
        real = {reports[name].metrics[key].real_vs_real.value for name in values}
        if by_cost:
            _draw_lines(axes, values, reports)
        else:
            shown_values = list(values.values())
            axes.barh(list(values), [each.value for each in shown_values], xerr=_stds(shown_values), capsize=3)
            axes.invert_yaxis()
        title = f"{metric.name}\n{metric.better} is better"
        if len(real) == 1 and None not in real:  # real images of several counts have no common line
            (axes.axhline if by_cost else axes.axvline)(real.pop(), color="gray", linestyle="--", linewidth=1)
            title += "; dashed: real images"
        if metric.std_over:
            title += f"; bars: standard deviation over {metric.std_over}"
        axes.set_title(title, fontsize=8)
    for axes in panels[len(shown) :]:
        axes.remove()
    with atomic_write(file) as aside:
        figure.savefig(aside, dpi=110, format="png")


def _draw_lines(axes: Any, values: dict[str, MetricValue], reports: Reports) -> None:
    """A metric over network evaluations, with a line for each sampler."""
    costs = {name: reports[name].sampling.network_evaluations for name in reports}
    for sampler in dict.fromkeys(report.sampling.sampler for report in reports.values()):
        names = [name for name in sorted(values, key=costs.__getitem__) if reports[name].sampling.sampler == sampler]
        if names:
            at, shown = [costs[name] for name in names], [values[name] for name in names]
            axes.errorbar(
                at, [each.value for each in shown], yerr=_stds(shown), marker="o", capsize=3, label=sampler
            )  # fmt: skip
    ticks = sorted(set(costs.values()))
    axes.set(xlabel="network evaluations", xscale="log")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend()


def _stds(values: list[MetricValue]) -> list[float] | None:
    known = [each.std for each in values if each.std is not None]
    return known if len(known) == len(values) else None


def _values(reports: Reports, key: str) -> dict[str, MetricValue]:
    """A metric of each evaluation that has it, at the count at which real images have theirs."""
    found = {}
    for name, report in reports.items():
        metric = report.metrics.get(key)
        if metric is None:
            continue
        matched = metric.matched
        chosen = metric if matched is None or matched.value is None else matched
        if chosen.value is not None:
            found[name] = chosen
    return found
