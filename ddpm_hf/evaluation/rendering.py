"""The forms of a report: metrics.json for programs, report.md and report.html for people."""

import base64
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_hf.runtime.files import write_whole
from ddpm_hf.runtime.markdown import markdown_table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left }
.warning { background: #fff3cd; color: #000; padding: .5rem 1rem; border-left: .3rem solid #b58900 }
img { max-width: 100%; image-rendering: pixelated }
figure { margin: 2rem 0 }
"""


def write_report(folder: Path, report: dict[str, Any], save_metrics: bool) -> None:
    """Write the report in its three forms.

    Args:
        folder: of the evaluation; pictures lie there.
        report: as `build_report` makes it.
        save_metrics: whether metrics.json is written.
    """
    if save_metrics:
        write_whole(folder / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(folder / "report.md", to_markdown(report))
    write_whole(folder / "report.html", to_html(report, folder))


def to_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown, with its pictures beside it."""
    lines = [f"# {title(report)}", ""]
    lines += [f"> **{warning}**\n" for warning in report["warnings"]]
    for heading, about, header, rows in _tables(report):
        lines += [f"## {heading}", "", *([about, ""] if about else []), markdown_table(header, rows), ""]
    for file, caption in report["pictures"].items():
        lines += [f"![{caption}]({file})", "", caption, ""]
    return "\n".join(lines)


def to_html(report: dict[str, Any], folder: Path) -> str:
    """The report as one file of HTML that holds its pictures.

    Args:
        report: as `build_report` makes it.
        folder: where the pictures lie.
    """
    parts = [f"<h1>{html.escape(title(report))}</h1>"]
    parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in report["warnings"]]
    for heading, about, header, rows in _tables(report):
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header) if any(header) else ""
        text = f"<p>{html.escape(about)}</p>" if about else ""
        parts.append(f"<h2>{html.escape(heading)}</h2>{text}<table><tr>{head}</tr>{body}</table>")
    for file, caption in report["pictures"].items():
        data = base64.b64encode((folder / file).read_bytes()).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title(report))}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def title(report: dict[str, Any]) -> str:
    """What the report is about, in a line."""
    label = f"{report['label']}: " if report["label"] else ""
    return f"{label}{report['model']['name']}, {report['sampling']['n_samples']:,} samples"


def number(figure: dict[str, Any] | None) -> str:
    """A figure as people read it: its value and spread, or what is wrong with it."""
    if figure is None:
        return ""
    if figure["value"] is None:
        return figure["problem"] or ""
    spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.2g}"
    return f"{figure['value']:.4g}{spread}"


def figure_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the figures, beside those of real images at the same count."""
    fewer = report["as_many_samples"]
    header = ["", "samples", "real images"] if fewer is None else ["", "all samples", "as many samples", "real images"]
    rows = []
    for each in report["metrics"].values():
        cells = [each["name"], number(each)]
        cells += [] if fewer is None else [number(each["as_many_samples"])]
        rows.append([*cells, number(each["real_vs_real"])])
    return header, rows


def pair_rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """SSIM and PSNR of reconstructions, by what each is of."""
    return {
        f"{name.upper()}, {row['way']}": row[name]
        for row in report["reconstructions"]
        for name in ("ssim", "psnr")
        if name in row
    }


def _tables(report: dict[str, Any]) -> Iterable[tuple[str, str, list[str], list[list[str]]]]:
    """Headings, texts, column names and rows of the report's tables."""
    header, rows = figure_table(report)
    more = [[each["better"], each["deviation_over"] or ""] for each in report["metrics"].values()]
    rows = [row + others for row, others in zip(rows, more, strict=True)]
    yield "Figures", _about_real(report), [*header, "better", "± over"], rows
    if report["reconstructions"]:
        measures = [name for name in ("ssim", "psnr") if name in report["reconstructions"][0]]
        header = ["way", "steps"]
        for name in measures:
            header += [name.upper() + (" (dB)" if name == "psnr" else ""), "without the network"]
        rows = []
        for row in report["reconstructions"]:
            cells = [row["way"], str(row["num_inference_steps"])]
            for name in measures:
                without = row[f"{name}_without_network"]
                cells += [number(row[name]), "" if without is None else f"{without:.4g}"]
            rows.append(cells)
        yield "Reconstructions of held-out images", _about_pairs(report), header, rows
    if report["baselines"]:
        yield (
            "Without any model",
            "What is to be beaten. Of an image and itself, SSIM is 1 and PSNR infinite; how many bits images need at "
            "least is not known.",
            ["", "of the held-out images", "better", "what it is of"],
            [[each["name"], number(each), each["better"], each["what"]] for each in report["baselines"]],
        )
    sampling, features = report["sampling"], report["features"]
    reference, held_out = report["reference"], report["held_out"]
    facts = {
        "model": f"{report['model']['name']}, weights {report['model']['weights']}",
        "averaged weights": report["model"]["ema"],
        "samples": f"{sampling['n_samples']:,} for {_listed('seed', sampling['seeds'])}",
        "sampler": f"{sampling['sampler']}, {sampling['num_inference_steps']:,} steps, "
        f"{sampling['network_evaluations']:,} network evaluations a sample, {sampling['batch_size']} at a time",
        "classes": sampling["classes"],
        "images": sampling["images"],
        "features": features["description"],
        "resize": features["resize"],
        "extractor": features["fingerprint"],
        "reference": f"{reference['num_images']:,} images of {reference['dataset']}, split {reference['split']}, "
        f"fingerprint {reference['fingerprint'][:16]}",
        "transform": reference["transform"],
        "real images": f"real-vs-real: {report['real_vs_real']}",
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }
    if report["reconstructions"] or "bits_per_dim" in report["metrics"]:
        trained_on = ", which the model was trained on" if held_out["are_training_images"] else ""
        facts["held-out images"] = f"{held_out['num_images']} of split {held_out['split']}{trained_on}"
    if "bits_per_dim" in report["metrics"]:
        facts["bits/dim"] = f"the variational bound, at {_timesteps(report)} of each image"
    yield "What they rest on", "", ["", ""], [[name, text] for name, text in facts.items()]


def _listed(name: str, values: list[Any]) -> str:
    return f"{name} {values[0]}" if len(values) == 1 else f"each of the {name}s {', '.join(map(str, values))}"


def _timesteps(report: dict[str, Any]) -> str:
    chosen = report["held_out"]["likelihood_timesteps"]
    return "all time steps" if chosen is None else f"{chosen:,} time steps"


def _about_real(report: dict[str, Any]) -> str:
    """Which real images stand beside the samples, and which columns are to be compared."""
    text = f"Real images: {report['real_vs_real']}."
    if (fewer := report["as_many_samples"]) is None:
        return text
    return (
        f"{text} There are no more of them, and counts alone move a Fréchet distance: so the column beside theirs is "
        f"of the first {fewer:,} samples of each seed, against the same images. Compare these two."
    )


def _about_pairs(report: dict[str, Any]) -> str:
    held_out = report["held_out"]
    which = "training images" if held_out["are_training_images"] else f"images of {held_out['split']!r}"
    return (
        f"SSIM and PSNR compare pairs, so they are measured on reconstructions of {held_out['num_images']} {which}, "
        "not on samples, which have no originals. Their data range is 1.0: 8-bit images scaled to [0, 1]. Without the "
        "network: the noised image, scaled back."
    )
