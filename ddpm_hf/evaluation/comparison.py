"""Several evaluations side by side, and what keeps them from being compared."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddpm_hf.evaluation.rendering import number, pair_rows
from ddpm_hf.evaluation.report import FORMAT
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_whole, written_whole
from ddpm_hf.runtime.markdown import markdown_table

PROTOCOL = {
    "number of samples": ("sampling", "n_samples"),
    "features": ("features", "fingerprint"),
    "resize": ("features", "resize"),
    "reference": ("reference", "fingerprint"),
    "reference split": ("reference", "split"),
}
"""What two evaluations must share for their figures to be compared."""

PAIRS_PROTOCOL = {
    "held-out images": ("held_out", "fingerprint"),
    "number of held-out images": ("held_out", "num_images"),
    "number of time steps of the bound": ("held_out", "likelihood_timesteps"),
}
"""And for those of held-out images."""


def compare(folders: Sequence[Path], output: Path) -> str:
    """Put evaluations side by side in comparison.md, comparison.json and comparison.png.

    Args:
        folders: of evaluations; or of models or runs, whose newest evaluation is taken, and for want of one, their
            newest quick look.
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
    notes = list(_notes(reports))
    text = markdown_table(*_rows(reports))
    if pairs := _pairs(reports):
        text += f"\n\nReconstructions of held-out images:\n\n{markdown_table(*pairs)}"
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
        found = sorted(folder.glob("evaluation/*/metrics.json"), key=_rank)
    if not found:
        raise UserError(f"{folder} holds no evaluation; make one with: python training/eval.py --model {folder} …")
    try:
        report = json.loads(found[-1].read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise UserError(
                f"{found[-1]} is of format {report['format']}, and this version reads format {FORMAT}: evaluate again, "
                "which draws no sample anew"
            )
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{found[-1]} cannot be read: {error}") from error


def _rank(file: Path) -> tuple[bool, float]:
    """Newest last, and all quick looks before the evaluations."""
    try:
        is_whole = json.loads(file.read_text(encoding="utf-8"))["label"] is None
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = True  # whatever it is, it is not to be passed over in silence
    return is_whole, file.stat().st_mtime


def _notes(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What keeps the figures from being compared, or from being taken for what they are not."""
    for name, report in reports.items():
        if report["label"]:
            yield f"{name} is a {report['label']}, not an evaluation"
    yield from _differences(reports, PROTOCOL, "not comparable")
    with_pairs = {
        name: each for name, each in reports.items() if each["reconstructions"] or "bits_per_dim" in each["metrics"]
    }
    yield from _differences(with_pairs, PAIRS_PROTOCOL, "what is of held-out images is not comparable")
    counts = {report["as_many_samples"] for report in reports.values()} - {None}
    if counts:
        yield (
            "counts alone move a Fréchet distance, so the plot is of as many samples as there are real images "
            f"({', '.join(map(str, sorted(counts)))}), held against the same others"
        )


def _differences(reports: dict[str, dict[str, Any]], protocol: dict[str, tuple[str, str]], then: str) -> Iterator[str]:
    for what, (section, key) in protocol.items():
        values = {name: report[section][key] for name, report in reports.items()}
        if len(set(values.values())) > 1:
            each = "; ".join(f"{name}: {value}" for name, value in values.items())
            yield f"{then}, since the {what} differs ({each})"


def _rows(reports: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = {key: each["name"] for report in reports.values() for key, each in report["metrics"].items()}
    header = ["", "samples", "sampler", "steps", "network evaluations", *names.values()]
    rows = []
    for name, report in reports.items():
        sampling = report["sampling"]
        cells = [name, f"{sampling['n_samples']:,}", sampling["sampler"], str(sampling["num_inference_steps"])]
        cells.append(str(sampling["network_evaluations"]))
        rows.append(cells + [number(report["metrics"].get(key)) for key in names])
    for text, report in {report["real_vs_real"]: report for report in reports.values()}.items():
        real = [number((report["metrics"].get(key) or {}).get("real_vs_real")) for key in names]
        rows.append(["real images", text, "", "", "", *real])
    return header, rows


def _pairs(reports: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """SSIM and PSNR of each way there and back, a model in each column."""
    found = {name: pair_rows(report) for name, report in reports.items()}
    ways = list(dict.fromkeys(way for each in found.values() for way in each))
    if not ways:
        return None
    return ["", *found], [[way, *(number(each.get(way)) for each in found.values())] for way in ways]


def _plot(reports: dict[str, dict[str, Any]], file: Path) -> None:
    """One panel for each figure: of one model against network evaluations where they differ, or else as bars."""
    from matplotlib.figure import Figure  # takes most of a second to import

    keys = {key: each for report in reports.values() for key, each in report["metrics"].items()}
    known = {key: each for key, each in keys.items() if _known(reports, key)}
    if not known:
        return
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    settings = {
        (report["sampling"]["sampler"], report["sampling"]["network_evaluations"]) for report in reports.values()
    }
    is_one_model = len({report["model"]["weights"] for report in reports.values()}) == 1
    by_cost = is_one_model and len(_costs(reports)) > 1 and len(settings) == len(reports)
    for axes, (key, each) in zip(panels, known.items(), strict=False):
        shown = _known(reports, key)
        levels = {each["real_vs_real"]["value"] for each in shown.values()}
        real = levels.pop() if len(levels) == 1 else None  # of different counts, there is no one line for all
        (_lines if by_cost else _bars)(axes, reports, key)
        if real is not None:
            line = axes.axhline if by_cost else axes.axvline
            line(real, color="gray", linestyle="--", linewidth=1)
        over = f"; bars: standard deviation over {each['deviation_over']}" if each["deviation_over"] else ""
        dashed = "" if real is None else "; dashed: real images"
        axes.set_title(f"{each['name']}\n{each['better']} is better{dashed}{over}", fontsize=8)
    for axes in panels[len(known) :]:
        axes.remove()
    with written_whole(file) as aside:
        figure.savefig(aside, dpi=110, format="png")


def _lines(axes: Any, reports: dict[str, dict[str, Any]], key: str) -> None:
    """A figure against network evaluations, a line for each sampler."""
    shown, costs = _known(reports, key), _costs(reports)
    for sampler in dict.fromkeys(report["sampling"]["sampler"] for report in reports.values()):
        names = [name for name in shown if reports[name]["sampling"]["sampler"] == sampler]
        if not names:
            continue
        names.sort(key=lambda name: reports[name]["sampling"]["network_evaluations"])
        at = [reports[name]["sampling"]["network_evaluations"] for name in names]
        values, spreads = ([shown[name][field] for name in names] for field in ("value", "deviation"))
        axes.errorbar(at, values, yerr=_spreads(spreads), marker="o", capsize=3, label=sampler)
    axes.set(xlabel="network evaluations", xscale="log")
    axes.set_xticks(costs, map(str, costs))
    axes.minorticks_off()
    axes.legend()


def _bars(axes: Any, reports: dict[str, dict[str, Any]], key: str) -> None:
    """A figure of each evaluation, one below the other."""
    shown = _known(reports, key)
    values, spreads = ([each[field] for each in shown.values()] for field in ("value", "deviation"))
    axes.barh(list(shown), values, xerr=_spreads(spreads), capsize=3)
    axes.invert_yaxis()


def _spreads(deviations: list[float | None]) -> list[float] | None:
    return None if None in deviations else [float(each or 0) for each in deviations]


def _costs(reports: dict[str, dict[str, Any]]) -> list[int]:
    return sorted({report["sampling"]["network_evaluations"] for report in reports.values()})


def _known(reports: dict[str, dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """A figure of each evaluation that has it, at the count at which real images have theirs."""
    found = {}
    for name, report in reports.items():
        figure = report["metrics"].get(key, {"value": None})
        as_many = figure.get("as_many_samples") or figure
        chosen = figure if as_many["value"] is None else figure | as_many
        if chosen["value"] is not None:
            found[name] = chosen
    return found
