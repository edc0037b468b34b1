"""What the tabs of the page share: how work is shown while it goes on, results and mistakes, and common fields."""

import html
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from ddpm_hf.demo.download import write_zip
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.watching import Progress, Tell, watch
from ddpm_hf.demo.work import Made

logger = logging.getLogger(__name__)

EXAMPLE_SEEDS = (0, 7, 42, 2020)
NOTHING, REFUSED = "Nothing yet: press the button.", "Nothing was made; the message says why."
IN_TURN, RANDOM_SEEDS = -1, 10**6

WORK: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "network",
    "show_progress": "minimal",
    "api_visibility": "private",
}
"""Of events that need the network: one is worked on at a time, the others wait in the queue."""

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that take no time."""


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn what is raised into a message on the page: the visitor's mistakes in our words, all else without details."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        raise gr.Error(html.escape(text), print_exception=False) from None
    except Exception as error:
        logger.exception("a request failed")
        text = f"This failed inside the program ({type(error).__name__}); its terminal shows where."
        raise gr.Error(text, print_exception=False) from None


def working(job: Callable[[Tell], Made]) -> Iterator[Progress | Made]:
    """Do the work of a button; yields how far it is, and at last what was made."""
    yield Progress(0, 0)
    with mistakes():
        for news in watch(job):
            yield news if isinstance(news, Progress) else news.value


@contextmanager
def zipped(made: Made, picture: Image.Image, name: str) -> Iterator[str]:
    """A ZIP of a result, there for as long as it takes gradio to make a copy of its own."""
    with TemporaryDirectory(prefix="ddpm-hf-") as folder:
        yield str(write_zip(made, picture, Path(folder) / f"{name}.zip"))


def bar(progress: Progress) -> str:
    """The bar above a result, while it is being made."""
    if not progress.total:
        return '<div class="ddpm-status"><span>starting</span><progress></progress></div>'
    return (
        f'<div class="ddpm-status"><span>step {progress.done:,} of {progress.total:,}</span>'
        f'<progress value="{progress.done}" max="{progress.total}"></progress></div>'
    )


def said(*parts: str, notes: Sequence[str] = ()) -> str:
    """The line above a result that is finished: how it was made; and below it, what the sampler warned of."""
    line = f"<span>{' · '.join(html.escape(part) for part in parts)}</span>"
    warned = "".join(f'<span class="ddpm-note">Note: {html.escape(note)}</span>' for note in notes)
    return f'<div class="ddpm-status">{line}{warned}</div>'


def status() -> gr.HTML:
    """Where `bar` and `said` go."""
    return gr.HTML(said(NOTHING))


def picture(label: str, elem_id: str, height: int | None = None, has_buttons: bool = True) -> gr.Image:
    """Where a result goes; buttons would cover a low one."""
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


def download() -> gr.DownloadButton:
    """The button below a result."""
    return gr.DownloadButton("Download images and settings (ZIP)", interactive=False, size="md")


def seed_field(label: str = "Seed", value: int = 0, elem_id: str | None = None) -> gr.Number:
    """A seed, with a button beside it that rolls another one."""
    with gr.Row(equal_height=True, elem_classes="ddpm-seed"):
        field = gr.Number(value, label=label, step=1, elem_id=elem_id, min_width=80, scale=4)
        roll = gr.Button("Random", size="sm", min_width=80, scale=1, elem_classes="ddpm-roll")
    roll.click(lambda: random.randrange(RANDOM_SEEDS), None, field, **QUICK)
    return field


def label_field(model: DemoModel, in_turn: bool = False) -> gr.Dropdown:
    """The class, of a class-conditional model."""
    if model.num_labels is None:
        return gr.Dropdown([("none", IN_TURN)], value=IN_TURN, visible=False)
    classes = [(str(label), label) for label in range(model.num_labels - 1)]
    choices = [("all in turn", IN_TURN)] * in_turn + classes + [("no class", model.num_labels - 1)]
    return gr.Dropdown(choices, value=choices[0][1], label="Class")


def guidance_field(model: DemoModel) -> gr.Slider:
    """The weight of classifier-free guidance, of a class-conditional model."""
    visible = model.num_labels is not None
    return gr.Slider(0, 10, 1, step=0.1, label="Guidance", info="1 is none", visible=visible)


def label_of(value: int) -> int | None:
    """The class that the field says, for the work."""
    return None if value == IN_TURN else int(value)


def made_in(made: Made) -> str:
    """How long it took."""
    return f"{made.seconds:.1f} s"
