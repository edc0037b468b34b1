"""A report for people: pictures, report.md beside them, and report.html with the pictures inside."""

import base64
import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ddpm_hf.evaluation.features import NUM_SHOWN, read_images, sample_file, to_pil
from ddpm_hf.evaluation.metrics.held_out import HeldOut, Reconstructions, ddim_range
from ddpm_hf.evaluation.metrics.neighbors import Neighbors, memorized
from ddpm_hf.evaluation.plan import EvaluationPlan
from ddpm_hf.evaluation.report import MetricValue, Report
from ddpm_hf.pipelines.ddpm import DDPMPipelineOutput
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
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

FOLDER = "pictures"
NUM_STRIPS, NUM_STAGES = 6, 10
NUM_PAIRS = 8
NUM_NEIGHBORS_SHOWN = 3
NUM_INTERPOLATION_STEPS = 9


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
    header += [] if matched is None else [f"samples (n = {matched:,}), matched"]
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


def draw_pictures(
    plan: EvaluationPlan, held_out: HeldOut, reconstructions: list[Reconstructions], neighbors: Neighbors | None
) -> dict[str, str]:
    """Draw the pictures that do not exist yet, in the main process.

    Args:
        plan: of the evaluation, whose samples exist.
        held_out: the originals of the reconstructions.
        reconstructions: one for each method; none if they were not asked for.
        neighbors: the nearest training images of the first samples; None if they were not asked for.

    Returns:
        The caption of each picture, by its file relative to the folder of the evaluation.
    """
    num_shown = min(NUM_SHOWN, plan.benchmark.n_samples)
    folder = plan.folder / "samples" / f"seed-{plan.sampling.seed}"
    samples = [to_pil(image) for image in read_images([sample_file(folder, index) for index in range(num_shown)])]
    captions: dict[str, str] = {}

    def picture(name: str, caption: str, draw: Callable[[], Image.Image], is_renewed: bool = False) -> None:
        file = plan.folder / FOLDER / f"{name}.png"
        captions[file.relative_to(plan.folder).as_posix()] = caption
        if is_renewed or not file.exists():
            save_png(draw(), file)

    num_strips = min(NUM_STRIPS, num_shown)

    @cache
    def sampled() -> DDPMPipelineOutput:
        num_stages = min(NUM_STAGES, plan.sampling.num_inference_steps)
        return plan.sampling.draw(plan.pipeline, range(num_strips), return_intermediates=num_stages)

    def strips(form: Literal["x_t", "x_0"]) -> Image.Image:
        return denoising_strips([sampled()], form)

    picture("samples", f"Samples 0 to {num_shown - 1}, not selected.", lambda: image_grid(samples), is_renewed=True)
    steps = f"{NUM_STAGES} of the steps from noise to image"
    picture("denoising", f"x_t of samples 0 to {num_strips - 1} at {steps}, then the image.", lambda: strips("x_t"))
    picture("predicted_x0", f"The image that the network predicted at the same {steps}.", lambda: strips("x_0"))
    if reconstructions:
        methods = "; ".join(each.method for each in reconstructions)
        picture("reconstructions", f"Left to right: original; {methods}.", lambda: _pairs(held_out, reconstructions))
    if len(held_out.images) > 1:
        caption = "Between two held-out images: both encoded by DDIM, mixed spherically, decoded."
        picture("interpolation", caption, lambda: _interpolation(plan, held_out))
    if neighbors is not None:
        copies = memorized(neighbors)[:NUM_PAIRS].nonzero().flatten().tolist()
        marked = f"Memorised: {', '.join(map(str, copies))}." if copies else "None of them is memorised."
        caption = f"Samples (left) and their {NUM_NEIGHBORS_SHOWN} nearest training images in feature space. {marked}"
        picture("nearest", caption, lambda: _nearest(plan, samples, neighbors), is_renewed=True)
    return captions


def _pairs(held_out: HeldOut, reconstructions: list[Reconstructions]) -> Image.Image:
    columns = [held_out.images, *(each.images for each in reconstructions)]
    rows = range(min(NUM_PAIRS, len(held_out.images)))
    return image_grid([to_pil(column[row]) for row in rows for column in columns], columns=len(columns))


def _interpolation(plan: EvaluationPlan, held_out: HeldOut) -> Image.Image:
    first, last = (to_pil(image) for image in held_out.images[:2])
    labels = None
    if held_out.labels is not None:  # one class at each end, which change half-way
        half = NUM_INTERPOLATION_STEPS // 2
        labels = [held_out.labels[0]] * (NUM_INTERPOLATION_STEPS - half) + [held_out.labels[1]] * half
    top, steps = ddim_range(plan.pipeline, plan.sampling.num_inference_steps)
    images = plan.pipeline.interpolate(
        first, last, NUM_INTERPOLATION_STEPS, top, num_inference_steps=steps, class_labels=labels
    )
    return image_grid([first, *images, last], columns=NUM_INTERPOLATION_STEPS + 2)


def _nearest(plan: EvaluationPlan, samples: list[Image.Image], neighbors: Neighbors) -> Image.Image:
    training = plan.splits[plan.training_split].images
    cells = []
    for row in range(min(NUM_PAIRS, len(samples), len(neighbors.indices))):
        found = neighbors.indices[row, :NUM_NEIGHBORS_SHOWN]
        found = torch.cat([found, found[-1:].expand(NUM_NEIGHBORS_SHOWN - len(found))])
        cells += [samples[row], *(to_pil(training[index]) for index in found.tolist())]
    return image_grid(cells, columns=NUM_NEIGHBORS_SHOWN + 1)
