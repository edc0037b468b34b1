"""Several evaluations side by side, and what makes them incomparable."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.rendering import number, table
from ddpm_hf.files import write_whole, written_whole

PROTOCOL = {
    "number of samples": ("sampling", "n_samples"),
    "features": ("features", "fingerprint"),
    "resize": ("features", "resize"),
    "reference": ("reference", "fingerprint"),
    "reference split": ("reference", "split"),
}
"""What two evaluations must share for their figures to be compared."""


def compare(folders: Sequence[Path], output: Path) -> str:
    """Put evaluations side by side in comparison.md, comparison.json and comparison.png.

    Args:
        folders: of evaluations; or of models or runs, whose newest evaluation is taken.
        output: where the three files go.

    Returns:
        The table, and where the files lie.

    Raises:
        UserError: naming every folder without an evaluation.
    """
    reports, problems = {}, []
    for folder in folders:
        try:
            reports[_short(folder, folders)] = _read(folder)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    notes = list(_differences(reports))
    text = table(*_rows(reports))
    output.mkdir(parents=True, exist_ok=True)
    warning = "".join(f"> **{note}**\n\n" for note in notes)
    write_whole(output / "comparison.md", f"# Comparison\n\n{warning}{text}\n\n![quality](comparison.png)\n")
    write_whole(output / "comparison.json", json.dumps({"notes": notes, "reports": reports}, indent=2) + "\n")
    _plot(reports, output / "comparison.png")
    return "\n".join([*(f"note: {note}" for note in notes), text, f"\nIn {output}/: comparison.md, .json, .png"])


def _short(folder: Path, folders: Sequence[Path]) -> str:
    """The last part of a path that tells it from the others; the whole path where none does."""
    same = [other for other in folders if other.name == folder.name]
    return folder.name if len(same) == 1 and folder.name else str(folder)


def _read(folder: Path) -> dict[str, Any]:
    found = [folder / "metrics.json"]
    if not found[0].exists():
        found = sorted(folder.glob("evaluation/*/metrics.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(f"{folder} holds no evaluation; make one with: python training/eval.py --model {folder} …")
    try:
        report = json.loads(found[-1].read_text(encoding="utf-8"))
        if report["format"] != 1:
            raise UserError(f"{found[-1]} is of format {report['format']}; this version reads format 1")
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{found[-1]} cannot be read: {error}") from error


def _differences(reports: dict[str, dict[str, Any]]) -> list[str]:
    """What keeps the figures from being compared."""
    notes = []
    for what, (section, key) in PROTOCOL.items():
        values = {name: report[section][key] for name, report in reports.items()}
        if len(set(values.values())) > 1:
            each = "; ".join(f"{name}: {value}" for name, value in values.items())
            notes.append(f"not comparable, since the {what} differs ({each})")
    return notes


def _rows(reports: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = {key: each["name"] for report in reports.values() for key, each in report["metrics"].items()}
    header = ["", "samples", "sampler", "steps", "network evaluations", *names.values()]
    rows = []
    for name, report in reports.items():
        sampling = report["sampling"]
        cells = [name, f"{sampling['n_samples']:,}", sampling["sampler"], str(sampling["num_inference_steps"])]
        cells.append(str(sampling["network_evaluations"]))
        rows.append(cells + [number(report["metrics"].get(key)) for key in names])
    first = next(iter(reports.values()))
    real = [number((first["metrics"].get(key) or {}).get("real_vs_real")) for key in names]
    rows.append(["real images", first["real_vs_real"], "", "", "", *real])
    return header, rows


def _plot(reports: dict[str, dict[str, Any]], file: Path) -> None:
    """One panel for each figure: against network evaluations where they differ, as bars where they do not."""
    from matplotlib.figure import Figure  # takes most of a second to import

    keys = {key: each for report in reports.values() for key, each in report["metrics"].items()}
    known = {key: each for key, each in keys.items() if _values(reports, key)}
    if not known:
        return
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    costs = sorted({report["sampling"]["network_evaluations"] for report in reports.values()})
    by_cost = len(costs) > 1
    for axes, (key, each) in zip(panels, known.items(), strict=False):
        if by_cost:
            for sampler in dict.fromkeys(report["sampling"]["sampler"] for report in reports.values()):
                points = sorted(
                    (report["sampling"]["network_evaluations"], report["metrics"][key]["value"])
                    for report in reports.values()
                    if report["sampling"]["sampler"] == sampler and _has(report, key)
                )
                axes.plot(*zip(*points, strict=True), marker="o", label=sampler) if points else None
            axes.set(xlabel="network evaluations", xscale="log")
            axes.set_xticks(costs, map(str, costs))
            axes.minorticks_off()
            axes.legend()
        else:
            values = _values(reports, key)
            axes.barh(list(values), list(values.values()))
            axes.invert_yaxis()
        floor = next((r["metrics"][key]["real_vs_real"] for r in reports.values() if _has(r, key)), None)
        if floor and floor["value"] is not None:
            line = axes.axhline if by_cost else axes.axvline
            line(floor["value"], color="gray", linestyle="--", linewidth=1)
        axes.set_title(f"{each['name']}\n{each['better']} is better; dashed: real images", fontsize=9)
    for axes in panels[len(known) :]:
        axes.remove()
    with written_whole(file) as aside:
        figure.savefig(aside, dpi=110, format="png")


def _has(report: dict[str, Any], key: str) -> bool:
    return report["metrics"].get(key, {"value": None})["value"] is not None


def _values(reports: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    return {name: report["metrics"][key]["value"] for name, report in reports.items() if _has(report, key)}
