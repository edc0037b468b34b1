"""A report for people: pictures, report.md beside them, and report.html with the pictures inside."""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image

from ddpm_hf.evaluation.features import NUM_SHOWN, sample_file, to_pil
from ddpm_hf.evaluation.metrics.distances import Neighbors, memorized
from ddpm_hf.evaluation.metrics.held_out import HeldOut, Images, ddim_range
from ddpm_hf.evaluation.plan import EvaluationPlan
from ddpm_hf.evaluation.report import MetricValue, Reconstruction, Report
from ddpm_hf.pipelines.ddpm import DDPMPipelineOutput
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.sanitize import for_html, for_markdown

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


class Table(NamedTuple):
    """A table of the report, with a heading above it and a paragraph, if it is not empty, in between."""

    heading: str
    about: str
    header: list[str]
    rows: list[list[str]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table, with the columns aligned so that the source is readable, too.

    Args:
        header: names of the columns.
        rows: cells of each row, as many as there are columns; what is not `Markdown` is escaped.
    """
    cells = [[for_markdown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


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
    lines = [f"# {for_markdown(report.title)}", ""]
    lines += [f"> **{for_markdown(warning)}**\n" for warning in report.warnings]
    for heading, about, header, rows in _tables(report):
        paragraph = [for_markdown(about), ""] if about else []
        lines += [f"## {for_markdown(heading)}", "", *paragraph, markdown_table(header, rows), ""]
    for file, caption in report.pictures.items():
        text = for_markdown(caption)
        lines += [f"![{text}]({file})", "", text, ""]
    return "\n".join(lines)


def to_html(report: Report, folder: Path) -> str:
    """The report as one HTML file that contains its pictures.

    Args:
        report: to be shown.
        folder: where the pictures are.
    """
    body = [f"<h1>{for_html(report.title)}</h1>"]
    body += [f'<p class="warning">{for_html(warning)}</p>' for warning in report.warnings]
    for heading, about, header, rows in _tables(report):
        paragraph = f"<p>{for_html(about)}</p>" if about else ""
        cells = "".join([_html_row(header, "th"), *(_html_row(row, "td") for row in rows)])
        body.append(f"<h2>{for_html(heading)}</h2>{paragraph}<table>{cells}</table>")
    for file, caption in report.pictures.items():
        data, text = base64.b64encode((folder / file).read_bytes()).decode(), for_html(caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
        body.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{for_html(report.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{for_html(cell)}</{tag}>" for cell in cells) + "</tr>"


def metric_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: the metrics of samples beside those of real images at the same count."""
    samples = f"samples (n = {report.sampling.n_samples:,})"
    header = [f"metric (against {report.reference_kind})", samples, "real images"]
    rows = [[report.row_name(key), str(each), str(each.real_vs_real)] for key, each in report.metrics.items()]
    if report.num_matched is not None:
        header.insert(2, f"samples (n = {report.num_matched:,}), matched")
        for row, each in zip(rows, report.metrics.values(), strict=True):
            row.insert(2, _cell(each.matched))
    return header, rows


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
    """Each with its heading, the paragraph below it (may be empty), the names of the columns, and the rows."""
    header, rows = metric_table(report)
    rows = [[*row, each.better, each.std_over or ""] for row, each in zip(rows, report.metrics.values(), strict=True)]
    about = f"Real images: {report.real_vs_real}."
    if report.num_matched is not None:
        about += (
            " A Fréchet distance depends on the number of images. So the column beside the real images holds the first "
            f"{report.num_matched:,} samples of each seed against the same images: compare these two."
        )
    yield Table(f"Metrics of samples against {report.reference_kind}", about, [*header, "better", "± over"], rows)
    if report.reconstructions:
        held_out, kind = report.held_out, report.held_out_kind
        about = (
            f"SSIM and PSNR compare pairs, so they are measured on reconstructions of {held_out.num_images} {kind} "
            f"(split {held_out.split}), not on samples, which have no originals. Their data range is 1.0: 8-bit images "
            "scaled to [0, 1]. Without the network: the noised image, scaled back."
        )
        done = report.reconstructions
        header, rows = ["method", "steps"], [[each.method, str(each.num_inference_steps)] for each in done]
        for name, heading in (("ssim", "SSIM"), ("psnr", "PSNR (dB)")):
            if getattr(done[0], name) is not None:
                header += [heading, "without the network"]
                for row, each in zip(rows, done, strict=True):
                    row += [_cell(getattr(each, name)), _cell(getattr(each, f"{name}_without_network"))]
        yield Table(f"Reconstructions of {kind}", about, header, rows)
    if report.baselines:
        yield Table(
            f"Baselines on {report.held_out_kind}",
            "Model-free values that a model should beat. Of an image and itself, SSIM is 1 and PSNR infinite; the "
            "lowest possible bits/dim of images is not known.",
            ["metric", "value", "better", "measured on"],
            [[each.name, str(each), each.better, each.what] for each in report.baselines],
        )
    yield Table("Protocol", "", ["", ""], [[name, text] for name, text in _protocol(report).items()])


def _protocol(report: Report) -> dict[str, str]:
    """Everything that the values depend on, by name."""
    model, sampling, features, kind = report.model, report.sampling, report.features, report.held_out_kind
    reference, held_out, has_bits = report.reference, report.held_out, "bits_per_dim" in report.metrics
    seeds = ("seed " if len(sampling.seeds) == 1 else "each of the seeds ") + ", ".join(map(str, sampling.seeds))
    rows = {
        "model": f"{model.name}, weights {model.weights}",
        "averaged weights": model.ema,
        "samples": f"{sampling.n_samples:,} for {seeds}",
        "sampler": f"{sampling.sampler}, {sampling.num_inference_steps:,} steps, {sampling.network_evaluations:,} "
        f"network evaluations per sample, batches of {sampling.batch_size}",
        "classes": sampling.classes,
        "images": sampling.images,
        "features": features.description,
        "resize": features.resize,
        "extractor": features.fingerprint,
        "reference": f"{reference.num_images:,} {report.reference_kind} of {reference.dataset}, split "
        f"{reference.split}, fingerprint {reference.fingerprint[:16]}",
        "transform": reference.transform,
        "real images": f"real-vs-real: {report.real_vs_real}",
    }
    if report.reconstructions or has_bits:
        rows["reconstructions and bits/dim"] = f"of {held_out.num_images} {kind}, split {held_out.split}"
    if has_bits:
        timesteps = held_out.likelihood_timesteps
        at = "all timesteps" if timesteps is None else f"{timesteps:,} timesteps"
        rows["bits/dim"] = f"the variational bound, at {at} of each image"
    return rows | {"versions": ", ".join(f"{name} {version}" for name, version in report.versions.items())}


def draw_pictures(
    plan: EvaluationPlan,
    held_out: HeldOut,
    methods: list[Reconstruction],
    reconstructed: list[Images],
    neighbors: Neighbors | None,
) -> dict[str, str]:
    """Draw the pictures that do not exist yet, in the main process.

    Args:
        plan: of the evaluation, whose samples exist.
        held_out: the originals of the reconstructions.
        methods: of reconstruction; none if they were not asked for.
        reconstructed: the images by each method.
        neighbors: the nearest training images of the first samples; None if they were not asked for.

    Returns:
        The caption of each picture, by its file relative to the folder of the evaluation.
    """
    num_shown = min(NUM_SHOWN, plan.benchmark.n_samples)
    folder = plan.folder / "samples" / f"seed-{plan.sampling.seed}"
    samples, captions, kind = [], dict[str, str](), plan.report.held_out_kind
    for index in range(num_shown):
        with Image.open(sample_file(folder, index)) as image:
            samples.append(image.copy())

    def picture(name: str, caption: str, draw: Callable[[], Image.Image], is_renewed: bool = False) -> None:
        file = plan.folder / FOLDER / f"{name}.png"
        if is_renewed or not file.exists():
            try:
                save_png(draw(), file)
            except FloatingPointError:  # of a broken network, which the metrics tell
                return
        captions[file.relative_to(plan.folder).as_posix()] = caption

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
    if methods:
        caption = f"Left to right: {kind.removesuffix('s')}; {'; '.join(each.method for each in methods)}."
        picture("reconstructions", caption, lambda: _pairs([held_out.images, *reconstructed]))
    if len(held_out.images) > 1:
        caption = f"Between two {kind}: both encoded by DDIM, mixed spherically, decoded."
        picture("interpolation", caption, lambda: _interpolation(plan, held_out))
    if neighbors is not None:
        copies = memorized(neighbors)[:NUM_PAIRS].nonzero().flatten().tolist()
        marked = f"Memorised: {', '.join(map(str, copies))}." if copies else "None of them is memorised."
        caption = f"Samples (left) and their {NUM_NEIGHBORS_SHOWN} nearest training images in feature space. {marked}"
        picture("nearest", caption, lambda: _nearest(plan, samples, neighbors), is_renewed=True)
    return captions


def _pairs(columns: list[Images]) -> Image.Image:
    rows = range(min(NUM_PAIRS, len(columns[0])))
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
