"""The tabs that draw images: generate, interpolate, inpaint."""

import shlex
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from ddpm_hf.demo import components as ui
from ddpm_hf.demo.components import QUICK, WORK, canvas, grid
from ddpm_hf.demo.demo_model import DemoModel
from ddpm_hf.demo.visitor_input import read_mask, read_upload
from ddpm_hf.demo.watching import OnProgress
from ddpm_hf.demo.work import OWN_SAMPLER, Result, draw, inpaint, interpolate
from ddpm_hf.pipelines.samplers import SAMPLERS, make_sampler

HOUR = 3600

FAST_SAMPLER = "dpmsolver++"
EXAMPLE_SEEDS = (0, 7, 42, 2020)
PREDICTED, NOISY = "the network's prediction of the image", "the noisy image that it is given"

SEEDS, IMAGES = "two seeds", "two images"
METHODS = (("encode, mix, decode (DDIM)", "ddim"), ("add noise, mix, denoise (DDPM)", "ddpm"))

BRUSH = "#f97316"


def generate_tab(model: DemoModel) -> None:
    """Draw images, watch them emerge from the noise, and step back through it."""
    limits = model.limits
    try:
        make_sampler(FAST_SAMPLER, model.pipeline.scheduler)
        default_sampler, default_steps = FAST_SAMPLER, 25
    except ValueError:  # it does not fit the model's process
        default_sampler, default_steps = ui.DEFAULT, 100
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            count = gr.Slider(1, limits.images, min(16, limits.images), step=1, label="Images", elem_id="count")
            sampler = gr.Dropdown([(OWN_SAMPLER, ui.DEFAULT), *SAMPLERS], value=default_sampler, label="Sampler")
            steps = ui.steps_field(limits.steps, default_steps, "more take longer", "steps")
            label, guidance = ui.label_field(model, in_turn=True), ui.guidance_field(model)
            seed = ui.seed_field(elem_id="seed")
            gr.Examples([[each] for each in EXAMPLE_SEEDS], seed, label="Seeds to try")
            buttons = ui.run_buttons("Generate", "generate")
        with gr.Column(scale=3, min_width=360):
            status, picture = ui.status_line(), ui.result_image("Images", "images")
            with gr.Group():
                stage = gr.Slider(
                    0, 1, 1, step=1, label="Look back, from noise to image", interactive=False, elem_id="step"
                )
                view = gr.Radio([PREDICTED, NOISY], value=PREDICTED, label="At each step, show")
            with gr.Accordion("The same on the command line", open=False):
                command = gr.Code(language="shell", show_label=False, wrap_lines=True, lines=2, max_lines=4)
            file = ui.download_button()
    shown = gr.State(None, time_to_live=HOUR)

    ui.run_on_click(
        buttons,
        (status, picture, file),
        {"count": count, "sampler": sampler, "steps": steps, "label": label, "guidance": guidance, "seed": seed},
        partial(draw, model),
        details={
            stage: lambda result: gr.Slider(maximum=len(result.stages), value=len(result.stages), interactive=True),
            command: _command,
            shown: lambda result: result,
        },
    )
    for moved in (stage.input, view.input):
        moved(_look_back, [shown, stage, view], [picture, status], trigger_mode="always_last", **QUICK)


def _look_back(result: Result | None, position: float, view: str) -> tuple[Image.Image | None, str]:
    """The picture of one stage; the last position is the finished images."""
    if result is None:
        return None, ui.status_text(ui.NO_RESULT)
    index, count = int(position), len(result.stages)
    if not 0 <= index < count:
        return grid(result.images), ui.status_text("The finished images", notes=result.notes)
    stage = result.stages[index]
    images = stage.x_0 if view == PREDICTED else stage.x_t
    return grid(images), ui.status_text(f"stage {index + 1} of {count}, at t = {stage.timestep:g}: {view}")


def _command(result: Result) -> str:
    """The command that draws the same images."""
    settings = result.settings
    words = ["python", "pipelines/generate.py", "--model", settings["model"], "--seed", settings["seed"]]
    words += ["--num_samples", settings["num_samples"], "--num_inference_steps", settings["num_inference_steps"]]
    words += ["--sampler", settings["sampler"]] if settings["sampler"] else []
    if settings["class_labels"] is not None:
        words += ["--class_labels", *settings["class_labels"], "--guidance_scale", settings["guidance_scale"]]
    return shlex.join(map(str, words))


def interpolate_tab(model: DemoModel) -> None:
    """Interpolate between two seeds or two uploaded images."""
    limits = model.limits
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            between = gr.Radio([SEEDS, IMAGES], value=SEEDS, label="Between")
            with gr.Column() as of_seeds:
                seeds = ui.seed_field("First seed", 0, "seed-a"), ui.seed_field("Second seed", 1, "seed-b")
            with gr.Column(visible=False) as of_images:
                uploads = _upload_field("First image"), _upload_field("Second image")
                method = gr.Radio(METHODS, value="ddim", label="How")
            frames = gr.Slider(2, limits.frames, min(8, limits.frames), step=1, label="Frames")
            steps, label = ui.steps_field(limits.steps, 50), ui.label_field(model)
            buttons = ui.run_buttons("Interpolate", "interpolate")
        with gr.Column(scale=3, min_width=360):
            status, strip = ui.status_line(), ui.result_image("From one to the other", "frames", has_buttons=False)
            frame = ui.result_image("One frame", "frame", height=300)
            position = gr.Slider(
                0, 1, 0, step=1, label="Frame, from one end to the other", interactive=False, elem_id="way"
            )
            file = ui.download_button()
    shown = gr.State(None, time_to_live=HOUR)

    def job(
        on_progress: OnProgress, between: str, seed_a: Any, seed_b: Any, file_a: Any, file_b: Any, **request: Any
    ) -> Result:
        method = request.pop("method")
        if between == SEEDS:
            return interpolate(model, on_progress, a=seed_a, b=seed_b, **request)
        a, b = (read_upload(file, model.size, model.mode, limits, model.dataset) for file in (file_a, file_b))
        return interpolate(model, on_progress, a=a, b=b, between_images=True, method=method, **request)

    ends = {"seed_a": seeds[0], "seed_b": seeds[1], "file_a": uploads[0], "file_b": uploads[1]}
    ui.run_on_click(
        buttons,
        (status, strip, file),
        {"between": between, **ends, "method": method, "frames": frames, "steps": steps, "label": label},
        job,
        details={
            frame: lambda result: grid(result.images[:1]),
            position: lambda result: gr.Slider(maximum=len(result.images) - 1, value=0, interactive=True),
            shown: lambda result: result,
        },
        in_a_row=True,
    )
    between.input(
        lambda chosen: (gr.Column(visible=chosen == SEEDS), gr.Column(visible=chosen == IMAGES)),
        between,
        [of_seeds, of_images],
        **QUICK,
    )
    position.input(_show_frame, [shown, position], frame, trigger_mode="always_last", **QUICK)


def _upload_field(label: str) -> gr.Image:
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


def _show_frame(result: Result | None, position: float) -> Image.Image | None:
    return None if result is None else grid([result.images[min(max(int(position), 0), len(result.images) - 1)]])


def inpaint_tab(model: DemoModel) -> None:
    """Paint over a part of an image with a brush, and let the model fill it in."""
    limits = model.limits
    height, width = model.size
    side = canvas(Image.new(model.mode, (width, height))).size
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                upload = gr.UploadButton("Upload an image", file_types=["image"], size="sm")
                another = gr.Button("Let the model draw one", size="sm", elem_id="another")
            gr.Markdown("Paint over the part to replace:")
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
            ui.limit_layers(editor)
            variants = gr.Slider(1, limits.variants, min(9, limits.variants), step=1, label="Variants")
            info = "each is done ten times, so that the new part fits the rest"
            steps = ui.steps_field(limits.inpainting_steps, 30, info, "repaint-steps")
            label, guidance = ui.label_field(model), ui.guidance_field(model)
            seed = ui.seed_field()
            buttons = ui.run_buttons("Inpaint", "inpaint")
        with gr.Column(scale=3, min_width=360):
            status, picture = ui.status_line(), ui.result_image("Variants", "variants")
            file = ui.download_button()
    image = gr.State(None, time_to_live=HOUR)

    def show(chosen: Image.Image | None) -> tuple[Image.Image | None, dict]:
        background = None if chosen is None else canvas(chosen)
        return chosen, {"background": background, "layers": [], "composite": None}

    def open_upload(path: str) -> tuple[Image.Image | None, dict]:
        with ui.errors_as_messages():
            return show(read_upload(path, model.size, model.mode, limits, model.dataset))

    def draw_another(seed: Any, label: Any) -> tuple[Image.Image | None, dict]:
        with ui.errors_as_messages():
            chosen, steps = None if label == ui.DEFAULT else label, min(25, limits.steps)
            result = draw(model, lambda progress: None, count=1, steps=steps, seed=seed, label=chosen)
            return show(result.images[0])

    def job(on_progress: OnProgress, painted: dict | None, **request: Any) -> Result:
        mask = read_mask((painted or {}).get("layers") or [], model.size)
        return inpaint(model, on_progress, mask=mask, **request)

    upload.upload(open_upload, upload, [image, editor], **QUICK)
    another.click(draw_another, [seed, label], [image, editor], **WORK)
    fields = {"variants": variants, "steps": steps, "label": label, "guidance": guidance, "seed": seed}
    ui.run_on_click(buttons, (status, picture, file), {"image": image, "painted": editor, **fields}, job)
