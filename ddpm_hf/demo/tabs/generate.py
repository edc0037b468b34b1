"""Draw images, watch them come out of the noise, and step back through it."""

import shlex
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ddpm_hf.demo import parts
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.pictures import grid
from ddpm_hf.demo.watching import Progress
from ddpm_hf.demo.work import Made, draw
from ddpm_hf.pipelines.samplers import SAMPLERS, make_sampler

OWN = "the model's own"
FAST, FAST_STEPS, SLOW_STEPS = "dpmsolver++", 25, 100
PREDICTED, SEEN = "the image that the network predicts", "the noisy image that it is given"


def generate_tab(model: DemoModel) -> None:
    """Lay the tab out."""
    sampler, steps = _defaults(model)
    limits = model.limits
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            count = gr.Slider(1, limits.images, min(16, limits.images), step=1, label="Images", elem_id="count")
            sampler_field = gr.Dropdown([OWN, *SAMPLERS], value=sampler, label="Sampler")
            steps_field = gr.Slider(
                1, limits.steps, steps, step=1, label="Steps", info="more take longer", elem_id="steps"
            )
            label, guidance = parts.label_field(model, in_turn=True), parts.guidance_field(model)
            seed = parts.seed_field(elem_id="seed")
            gr.Examples([[each] for each in parts.EXAMPLE_SEEDS], seed, label="Seeds to try")
            with gr.Row():
                button = gr.Button("Generate", variant="primary", scale=3, elem_id="generate")
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
        with gr.Column(scale=3, min_width=360):
            line = parts.status()
            result = parts.picture("Images", "images")
            with gr.Group():
                step = gr.Slider(
                    0, 1, 1, step=1, label="Look back, from noise to image", interactive=False, elem_id="step"
                )
                view = gr.Radio([PREDICTED, SEEN], value=PREDICTED, label="Of each step, show")
            with gr.Accordion("The same on the command line", open=False):
                command = gr.Code(language="shell", show_label=False, wrap_lines=True, lines=2, max_lines=4)
            file = parts.download()
    made = gr.State(None, time_to_live=3600)

    def work(count: Any, sampler: str, steps: Any, label: int, guidance: Any, seed: Any) -> Iterator[dict]:
        chosen = None if sampler == OWN else sampler
        request = {"count": count, "steps": steps, "seed": seed, "sampler": chosen}
        request |= {"label": parts.label_of(label), "guidance": guidance}
        for news in parts.working(lambda tell: draw(model, tell, **request)):
            if isinstance(news, Progress):
                yield {line: parts.bar(news)} | ({result: grid(news.images)} if news.images else {})
                continue
            shown = grid(news.images)
            with parts.zipped(news, shown, f"seed-{news.settings['seed']}") as path:
                last = len(news.stages)
                yield {
                    line: parts.said(*_summary(news, sampler), notes=news.notes),
                    result: shown,
                    step: gr.Slider(maximum=last, value=last, interactive=True),
                    command: _command(news),
                    file: gr.DownloadButton(value=path, interactive=True),
                    made: news,
                }

    inputs = [count, sampler_field, steps_field, label, guidance, seed]
    running = button.click(work, inputs, [line, result, step, command, file, made], show_progress_on=line, **parts.WORK)
    running.failure(lambda: parts.said(parts.REFUSED), None, line, **parts.QUICK)
    stop.click(lambda: parts.said("Stopped."), None, line, cancels=running, **parts.QUICK)
    for look in (step.input, view.input):
        look(_look_back, [made, step, view], [result, line], trigger_mode="always_last", **parts.QUICK)


def _defaults(model: DemoModel) -> tuple[str, int]:
    """A fast sampler, where there is one for the model's process."""
    try:
        make_sampler(FAST, model.pipeline.scheduler)
    except ValueError:
        return OWN, min(SLOW_STEPS, model.limits.steps)
    return FAST, min(FAST_STEPS, model.limits.steps)


def _look_back(made: Made | None, step: float, view: str) -> tuple[Image.Image | None, str]:
    """The picture of one stage; the last position is the finished images."""
    if made is None:
        return None, parts.said(parts.NOTHING)
    index = int(step)
    if not 0 <= index < len(made.stages):
        return grid(made.images), parts.said("The finished images", parts.made_in(made), notes=made.notes)
    stage = made.stages[index]
    shown = stage.x_0 if view == PREDICTED else stage.x_t
    where = f"look {index + 1} of {len(made.stages)}, at t = {stage.timestep:g}"
    return grid(shown), parts.said(f"{where}: {view}")


def _summary(made: Made, sampler: str) -> list[str]:
    settings = made.settings
    parts_of = [f"{settings['num_samples']} images", f"seed {settings['seed']}", f"sampler {sampler}"]
    parts_of += [f"{settings['num_inference_steps']} steps"]
    if settings["class_labels"] is not None:
        classes = settings["class_labels"]
        parts_of += [f"class {classes[0]}" if len(classes) == 1 else f"classes 0 to {classes[-1]} in turn"]
        parts_of += [f"guidance {settings['guidance_scale']:g}"]
    return [*parts_of, parts.made_in(made)]


def _command(made: Made) -> str:
    settings = made.settings
    words = ["python", "pipelines/generate.py", "--model", settings["model"], "--seed", settings["seed"]]
    words += ["--num_samples", settings["num_samples"], "--num_inference_steps", settings["num_inference_steps"]]
    words += ["--sampler", settings["sampler"]] if settings["sampler"] else []
    if settings["class_labels"] is not None:
        words += ["--class_labels", *settings["class_labels"], "--guidance_scale", settings["guidance_scale"]]
    return shlex.join(map(str, words))
