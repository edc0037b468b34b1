"""Paint over a part of an image with a brush, and let the model make it anew."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ddpm_hf.demo import parts
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.pictures import canvas, grid, read_mask, read_upload
from ddpm_hf.demo.watching import Progress
from ddpm_hf.demo.work import Made, draw, inpaint

VARIANTS, STEPS = 9, 30
BRUSH = "#f97316"


def inpaint_tab(model: DemoModel) -> None:
    """Lay the tab out."""
    limits = model.limits
    height, width = model.size
    side = canvas(Image.new(model.mode, (width, height))).size
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                upload = gr.UploadButton("Upload an image", file_types=["image"], size="sm")
                another = gr.Button("Let the model draw one", size="sm", elem_id="another")
            gr.Markdown("Paint over what shall be made anew:")
            editor = gr.ImageEditor(
                show_label=False,
                height=max(side) + 60,
                type="pil",
                image_mode="RGBA",
                format="png",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=max(side) // 6, colors=[BRUSH], color_mode="fixed"),
                eraser=gr.Eraser(default_size=max(side) // 6),
                canvas_size=side,
                fixed_canvas=True,
                buttons=[],
                elem_id="editor",
            )
            variants = gr.Slider(1, limits.variants, min(VARIANTS, limits.variants), step=1, label="Variants")
            steps = gr.Slider(
                1,
                limits.inpainting_steps,
                min(STEPS, limits.inpainting_steps),
                step=1,
                label="Steps",
                info="each is done ten times, so that what is new fits what is kept",
                elem_id="repaint-steps",
            )
            label, guidance = parts.label_field(model), parts.guidance_field(model)
            seed = parts.seed_field()
            with gr.Row():
                button = gr.Button("Inpaint", variant="primary", scale=3, elem_id="inpaint")
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
        with gr.Column(scale=3, min_width=360):
            line = parts.status()
            result = parts.picture("Variants", "variants")
            file = parts.download()
    image = gr.State(None, time_to_live=3600)

    def show(chosen: Image.Image) -> tuple[Image.Image, dict]:
        return chosen, {"background": canvas(chosen), "layers": [], "composite": None}

    def open_upload(path: str) -> tuple[Image.Image, dict]:
        with parts.mistakes():
            opened = read_upload(model, path)
            assert opened is not None
            return show(opened)

    def draw_another(seed: Any, label: int) -> tuple[Image.Image, dict]:
        with parts.mistakes():
            request = {"count": 1, "steps": min(25, model.limits.steps), "seed": seed}
            drawn = draw(model, lambda _: None, **request, label=parts.label_of(label))
            return show(drawn.images[0])

    def work(
        image: Image.Image | None, painted: Any, variants: Any, steps: Any, label: int, guidance: Any, seed: Any
    ) -> Iterator[dict]:
        request = {"variants": variants, "steps": steps, "seed": seed, "guidance": guidance}

        def job(tell: Any) -> Made:
            mask = read_mask(model, (painted or {}).get("layers") or [])
            return inpaint(model, tell, image=image, mask=mask, label=parts.label_of(label), **request)

        for news in parts.working(job):
            if isinstance(news, Progress):
                yield {line: parts.bar(news)}
                continue
            shown = grid(news.images)
            with parts.zipped(news, shown, "inpainting") as path:
                yield {
                    line: parts.said(*_summary(news)),
                    result: shown,
                    file: gr.DownloadButton(value=path, interactive=True),
                }

    upload.upload(open_upload, upload, [image, editor], **parts.QUICK)
    another.click(draw_another, [seed, label], [image, editor], **parts.WORK)
    inputs = [image, editor, variants, steps, label, guidance, seed]
    running = button.click(work, inputs, [line, result, file], show_progress_on=line, **parts.WORK)
    running.failure(lambda: parts.said(parts.REFUSED), None, line, **parts.QUICK)
    stop.click(lambda: parts.said("Stopped."), None, line, cancels=running, **parts.QUICK)


def _summary(made: Made) -> list[str]:
    settings = made.settings
    words = [f"{settings['num_samples']} variants", f"seed {settings['seed']}"]
    words += [f"{settings['num_inference_steps']} steps, {settings['network_evaluations']:,} evaluations"]
    words += [] if settings["class_labels"] is None else [f"class {settings['class_labels'][0]}"]
    return [*words, parts.made_in(made)]
