"""Lead from one image to another, between two seeds or two uploaded images."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ddpm_hf.demo import parts
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.pictures import grid, read_upload
from ddpm_hf.demo.watching import Progress
from ddpm_hf.demo.work import Made, interpolate_images, interpolate_seeds

SEEDS, IMAGES = "two seeds", "two images"
METHODS = (("encode, mix, decode (DDIM)", "ddim"), ("add noise, mix, denoise (DDPM)", "ddpm"))
FRAMES, STEPS = 8, 50


def interpolate_tab(model: DemoModel) -> None:
    """Lay the tab out."""
    limits = model.limits
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            between = gr.Radio([SEEDS, IMAGES], value=SEEDS, label="Between")
            with gr.Column() as of_seeds:
                a, b = parts.seed_field("First seed", 0, "seed-a"), parts.seed_field("Second seed", 1, "seed-b")
            with gr.Column(visible=False) as of_images:
                image_a, image_b = (_upload(f"{name} image") for name in ("First", "Second"))
                method = gr.Radio(METHODS, value="ddim", label="How")
            frames = gr.Slider(2, limits.frames, min(FRAMES, limits.frames), step=1, label="Frames")
            steps = gr.Slider(1, limits.steps, min(STEPS, limits.steps), step=1, label="Steps")
            label = parts.label_field(model)
            with gr.Row():
                button = gr.Button("Interpolate", variant="primary", scale=3, elem_id="interpolate")
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
        with gr.Column(scale=3, min_width=360):
            line = parts.status()
            result = parts.picture("From one to the other", "frames", has_buttons=False)
            one = parts.picture("On the way", "frame", height=300)
            way = gr.Slider(0, 1, 0, step=1, label="Go along, from first to second", interactive=False, elem_id="way")
            file = parts.download()
    made = gr.State(None, time_to_live=3600)

    def work(
        between: str, a: Any, b: Any, image_a: str | None, image_b: str | None, method: str, frames: Any, steps: Any,
        label: int,
    ) -> Iterator[dict]:  # fmt: skip
        common: dict[str, Any] = {"frames": frames, "steps": steps, "label": parts.label_of(label)}

        def job(tell: Any) -> Made:
            if between == SEEDS:
                return interpolate_seeds(model, tell, a=a, b=b, **common)
            ends = read_upload(model, image_a), read_upload(model, image_b)
            return interpolate_images(model, tell, a=ends[0], b=ends[1], method=method, **common)

        for news in parts.working(job):
            if isinstance(news, Progress):
                yield {line: parts.bar(news)}
                continue
            shown = grid(news.images, columns=len(news.images))
            with parts.zipped(news, shown, "interpolation") as path:
                yield {
                    line: parts.said(*_summary(news)),
                    result: shown,
                    one: grid(news.images[:1]),
                    way: gr.Slider(maximum=len(news.images) - 1, value=0, interactive=True),
                    file: gr.DownloadButton(value=path, interactive=True),
                    made: news,
                }

    between.input(
        lambda chosen: (gr.Column(visible=chosen == SEEDS), gr.Column(visible=chosen == IMAGES)),
        between,
        [of_seeds, of_images],
        **parts.QUICK,
    )
    inputs = [between, a, b, image_a, image_b, method, frames, steps, label]
    running = button.click(work, inputs, [line, result, one, way, file, made], show_progress_on=line, **parts.WORK)
    running.failure(lambda: parts.said(parts.REFUSED), None, line, **parts.QUICK)
    stop.click(lambda: parts.said("Stopped."), None, line, cancels=running, **parts.QUICK)
    way.input(_frame, [made, way], one, trigger_mode="always_last", **parts.QUICK)


def _upload(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload"],
        height=160,
        min_width=120,
        format="png",
        elem_id=label.lower().replace(" ", "-"),
    )


def _frame(made: Made | None, index: float) -> Image.Image | None:
    return None if made is None else grid([made.images[min(max(int(index), 0), len(made.images) - 1)]])


def _summary(made: Made) -> list[str]:
    settings = made.settings
    between = settings["between"] if "between" in settings else "seeds {} to {}".format(*settings["seeds"])
    words = [between, f"{settings['frames']} frames", settings["interpolation"]]
    words += [f"{settings['num_inference_steps']} steps"]
    words += [] if settings["class_labels"] is None else [f"class {settings['class_labels'][0]}"]
    return [*words, parts.made_in(made)]
