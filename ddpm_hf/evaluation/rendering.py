"""A report for people: report.md with its pictures beside it, and report.html with the pictures inside."""

import base64
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.evaluation.report import MetricValue, Report
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.markdown import markdown_table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left }
.warning { background: #fff3cd; color: #000; padding: .5rem 1rem; border-left: .3rem solid #b58900 }
img { max-width: 100%; image-rendering: pixelated }
figure { margin: 2rem 0 }
"""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        heading: above it.
        about: a paragraph below the heading; may be empty.
        header: names of the columns.
        rows: cells.
    """

    heading: str
    about: str
    header: list[str]
    rows: list[list[str]]


def write_report(folder: Path, report: Report, save_metrics: bool) -> None:
    """Write report.md, report.html and metrics.json.

    Args:
        folder: of the evaluation, where the pictures are.
        report: to be written.
        save_metrics: whether to write metrics.json.
    """
    if save_metrics:
        report.write(folder / "metrics.json")
    write_text_atomic(folder / "report.md", to_markdown(report))
    write_text_atomic(folder / "report.html", to_html(report, folder))


def to_markdown(report: Report) -> str:
    """The report as Markdown, with links to its pictures."""
    lines = [f"# {report.title}", ""]
    lines += [f"> **{warning}**\n" for warning in report.warnings]
    for each in _tables(report):
        about = [each.about, ""] if each.about else []
        lines += [f"## {each.heading}", "", *about, markdown_table(each.header, each.rows), ""]
    for file, caption in report.pictures.items():
        lines += [f"![{caption}]({file})", "", caption, ""]
    return "\n".join(lines)


def to_html(report: Report, folder: Path) -> str:
    """The report as one HTML file that contains its pictures.

    Args:
        report: to be shown.
        folder: where the pictures are.
    """
    body = [f"<h1>{html.escape(report.title)}</h1>"]
    body += [f'<p class="warning">{html.escape(warning)}</p>' for warning in report.warnings]
    for each in _tables(report):
        about = f"<p>{html.escape(each.about)}</p>" if each.about else ""
        rows = "".join(_html_row(row, "td") for row in each.rows)
        body.append(f"<h2>{html.escape(each.heading)}</h2>{about}<table>{_html_row(each.header, 'th')}{rows}</table>")
    for file, caption in report.pictures.items():
        data, text = base64.b64encode((folder / file).read_bytes()).decode(), html.escape(caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
        body.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(report.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def metric_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: the metrics of samples beside those of real images at the same count."""
    all_samples, matched = report.sampling.n_samples, report.num_matched
    header = ["metric", f"samples (n = {all_samples:,})"]
    header += [] if matched is None else [f"samples (n = {matched:,})"]
    rows = []
    for each in report.metrics.values():
        cells = [each.name, str(each)] + ([] if matched is None else [_cell(each.matched)])
        rows.append([*cells, str(each.real_vs_real)])
    return [*header, "real images"], rows


def pair_values(report: Report) -> dict[str, MetricValue]:
    """SSIM and PSNR of reconstructions, by metric and method."""
    return {
        f"{name}, {each.method}": value
        for each in report.reconstructions
        for name, value in (("SSIM", each.ssim), ("PSNR", each.psnr))
        if value is not None
    }


def _cell(value: MetricValue | float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, MetricValue) else f"{value:.4g}"


def _tables(report: Report) -> Iterator[Table]:
    header, rows = metric_table(report)
    rows = [[*row, each.better, each.std_over or ""] for row, each in zip(rows, report.metrics.values(), strict=True)]
    yield Table("Metrics", _about_real(report), [*header, "better", "± over"], rows)
    if report.reconstructions:
        header, rows = _reconstruction_table(report)
        yield Table("Reconstructions of held-out images", _about_pairs(report), header, rows)
    if report.baselines:
        yield Table(
            "Baselines",
            "Model-free values that a model should beat. Of an image and itself, SSIM is 1 and PSNR infinite; the "
            "lowest possible bits/dim of images is not known.",
            ["metric", "value", "better", "measured on"],
            [[each.name, str(each), each.better, each.what] for each in report.baselines],
        )
    yield Table("Protocol", "", ["", ""], [[name, text] for name, text in _protocol(report)])


def _reconstruction_table(report: Report) -> tuple[list[str], list[list[str]]]:
    first = report.reconstructions[0]
    header = ["method", "steps"]
    header += [] if first.ssim is None else ["SSIM", "without the network"]
    header += [] if first.psnr is None else ["PSNR (dB)", "without the network"]
    rows = []
    for each in report.reconstructions:
        cells = [each.method, str(each.num_inference_steps)]
        cells += [] if each.ssim is None else [str(each.ssim), _cell(each.ssim_without_network)]
        cells += [] if each.psnr is None else [str(each.psnr), _cell(each.psnr_without_network)]
        rows.append(cells)
    return header, rows


def _protocol(report: Report) -> Iterator[tuple[str, str]]:
    """Everything that the values depend on, by name."""
    sampling, features, reference, held_out = report.sampling, report.features, report.reference, report.held_out
    seeds = ", ".join(map(str, sampling.seeds))
    yield "model", f"{report.model.name}, weights {report.model.weights}"
    yield "averaged weights", report.model.ema
    yield (
        "samples",
        f"{sampling.n_samples:,} for "
        + (f"seed {seeds}" if len(sampling.seeds) == 1 else f"each of the seeds {seeds}"),
    )
    yield (
        "sampler",
        f"{sampling.sampler}, {sampling.num_inference_steps:,} steps, {sampling.network_evaluations:,} network "
        f"evaluations per sample, batches of {sampling.batch_size}",
    )
    yield "classes", sampling.classes
    yield "images", sampling.images
    yield "features", features.description
    yield "resize", features.resize
    yield "extractor", features.fingerprint
    yield (
        "reference",
        f"{reference.num_images:,} images of {reference.dataset}, split {reference.split}, fingerprint "
        f"{reference.fingerprint[:16]}",
    )
    yield "transform", reference.transform
    yield "real images", f"real-vs-real: {report.real_vs_real}"
    has_bits = "bits_per_dim" in report.metrics
    if report.reconstructions or has_bits:
        trained_on = ", which the model was trained on" if held_out.are_training_images else ""
        yield "held-out images", f"{held_out.num_images} of split {held_out.split}{trained_on}"
    if has_bits:
        timesteps = held_out.likelihood_timesteps
        at = "all timesteps" if timesteps is None else f"{timesteps:,} timesteps"
        yield "bits/dim", f"the variational bound, at {at} of each image"
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())


def _about_real(report: Report) -> str:
    """Which real images stand beside the samples, and which columns to compare."""
    text = f"Real images: {report.real_vs_real}."
    if report.num_matched is None:
        return text
    return (
        f"{text} A Fréchet distance depends on the number of images. So the column beside the real images holds the "
        f"first {report.num_matched:,} samples of each seed against the same images: compare these two."
    )


def _about_pairs(report: Report) -> str:
    held_out = report.held_out
    which = "training images" if held_out.are_training_images else f"images of {held_out.split!r}"
    return (
        f"SSIM and PSNR compare pairs, so they are measured on reconstructions of {held_out.num_images} {which}, "
        "not on samples, which have no originals. Their data range is 1.0: 8-bit images scaled to [0, 1]. Without the "
        "network: the noised image, scaled back."
    )
