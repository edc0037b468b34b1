"""What the tabs of the page share: fields, status line, and a button that runs a job and shows its result."""

import html
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.blocks import Block

from ddpm_hf.demo.demo_model import DemoModel
from ddpm_hf.demo.display import grid, write_zip
from ddpm_hf.demo.watching import Progress, watch
from ddpm_hf.demo.work import Result

logger = logging.getLogger(__name__)

NO_RESULT, REFUSED = "Nothing yet: press the button.", "Nothing was made; the message says why."
ALL_CLASSES, NUM_RANDOM_SEEDS = -1, 10**6

WORK: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "network",
    "show_progress": "minimal",
    "api_visibility": "private",
}
"""Options of events that use the network: one runs at a time, the others wait in the queue."""

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Options of events that take no time."""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Show errors on the page: a visitor's mistake as it is, anything else without details."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(" ".join(str(error).split())), print_exception=False) from None
    except Exception as error:
        logger.exception("a request failed")
        text = f"This failed inside the program ({type(error).__name__}); its terminal shows where."
        raise gr.Error(text, print_exception=False) from None


def status_text(*parts: str, notes: Sequence[str] = ()) -> str:
    """The line above a result, and below it the sampler's warnings."""
    line = f"<span>{' · '.join(html.escape(part) for part in parts)}</span>"
    lines = "".join(f'<span class="ddpm-note">Note: {html.escape(note)}</span>' for note in notes)
    return f'<div class="ddpm-status">{line}{lines}</div>'


def progress_bar(progress: Progress) -> str:
    """The bar above a result while it is being made."""
    if not progress.total:
        return '<div class="ddpm-status"><span>starting</span><progress></progress></div>'
    return (
        f'<div class="ddpm-status"><span>step {progress.done:,} of {progress.total:,}</span>'
        f'<progress value="{progress.done}" max="{progress.total}"></progress></div>'
    )


@dataclass(frozen=True)
class Panel:
    """The part of a tab that runs a job and shows its result.

    Attributes:
        button: starts the job.
        stop: ends it after its current step.
        status: progress, and then how the result was made.
        picture: the result.
        file: downloads it.
    """

    button: gr.Button
    stop: gr.Button
    status: gr.HTML
    picture: gr.Image
    file: gr.DownloadButton

    def connect(
        self,
        inputs: Sequence[Block],
        job: Callable[..., Result],
        name: Callable[[Result], str],
        summary: Callable[[Result], Sequence[str]],
        details: Mapping[Block, Callable[[Result], Any]],
        columns: Callable[[Result], int | None] = lambda result: None,
    ) -> None:
        """Run a job when the button is clicked.

        Args:
            inputs: fields whose values the job is called with, after the function to report progress to.
            job: does the work.
            name: of the downloaded file, without suffix.
            summary: how the result was made.
            details: further components, and the value of each for a result.
            columns: of the picture; None makes it square.
        """

        def work(*values: Any) -> Iterator[dict[Block, Any]]:
            yield {self.status: progress_bar(Progress(0, 0))}
            with errors_as_messages():
                running = watch(lambda on_progress: job(on_progress, *values))
                try:
                    while True:
                        progress = next(running)
                        preview: dict[Block, Any] = {self.picture: grid(progress.images)} if progress.images else {}
                        yield {self.status: progress_bar(progress), **preview}
                except StopIteration as end:
                    result: Result = end.value
                finally:
                    running.close()
            picture = grid(result.images, columns(result))
            with TemporaryDirectory(prefix="ddpm-hf-") as folder:  # gradio copies the file before it goes on
                file = write_zip(result, picture, Path(folder) / f"{name(result)}.zip")
                yield {
                    self.status: status_text(*summary(result), f"{result.seconds:.1f} s", notes=result.notes),
                    self.picture: picture,
                    self.file: gr.DownloadButton(value=str(file), interactive=True),
                    **{component: value(result) for component, value in details.items()},
                }

        outputs = [self.status, self.picture, self.file, *details]
        running = self.button.click(work, list(inputs), outputs, show_progress_on=self.status, **WORK)
        running.failure(lambda: status_text(REFUSED), None, self.status, **QUICK)
        self.stop.click(lambda: status_text("Stopped."), None, self.status, cancels=running, **QUICK)


def run_buttons(label: str, elem_id: str) -> tuple[gr.Button, gr.Button]:
    """The button that starts a job, and the one that stops it."""
    with gr.Row():
        button = gr.Button(label, variant="primary", scale=3, elem_id=elem_id)
        return button, gr.Button("Stop", variant="stop", scale=1, min_width=80)


def status_line() -> gr.HTML:
    """Where `progress_bar` and `status_text` are shown."""
    return gr.HTML(status_text(NO_RESULT))


def result_image(label: str, elem_id: str, height: int | None = None, has_buttons: bool = True) -> gr.Image:
    """Where a result is shown; buttons would cover a low one."""
    return gr.Image(
        label=label,
        show_label=False,
        type="pil",
        format="png",
        interactive=False,
        height=height,
        elem_id=elem_id,
        buttons=["download", "fullscreen"] if has_buttons else [],
    )


def download_button() -> gr.DownloadButton:
    """The button below a result."""
    return gr.DownloadButton("Download images and settings (ZIP)", interactive=False, size="md")


def seed_field(label: str = "Seed", value: int = 0, elem_id: str | None = None) -> gr.Number:
    """A seed, with a button beside it that chooses another one."""
    with gr.Row(equal_height=True, elem_classes="ddpm-seed"):
        field = gr.Number(value, label=label, step=1, elem_id=elem_id, min_width=80, scale=4)
        roll = gr.Button("Random", size="sm", min_width=80, scale=1, elem_classes="ddpm-roll")
    roll.click(lambda: random.randrange(NUM_RANDOM_SEEDS), None, field, **QUICK)
    return field


def label_field(model: DemoModel, in_turn: bool = False) -> gr.Dropdown:
    """The class, for a class-conditional model."""
    if model.num_labels is None:
        return gr.Dropdown([("none", ALL_CLASSES)], value=ALL_CLASSES, visible=False)
    classes = [(str(label), label) for label in range(model.num_labels - 1)]
    choices = [("all in turn", ALL_CLASSES)] * in_turn + classes + [("no class", model.num_labels - 1)]
    return gr.Dropdown(choices, value=choices[0][1], label="Class")


def read_label(value: int) -> int | None:
    """The class that `label_field` gives; None for all in turn, or without classes."""
    return None if value == ALL_CLASSES else int(value)


def guidance_field(model: DemoModel) -> gr.Slider:
    """The scale of classifier-free guidance, for a class-conditional model."""
    return gr.Slider(0, 10, 1, step=0.1, label="Guidance", info="1 is none", visible=model.num_labels is not None)


def steps_field(most: int, value: int, info: str | None = None, elem_id: str | None = None) -> gr.Slider:
    """The number of denoising steps."""
    return gr.Slider(1, most, min(value, most), step=1, label="Steps", info=info, elem_id=elem_id)
