"""What the tabs of the page share: fields, status line, a button that runs a job, its result as picture and file."""

import json
import logging
import math
import random
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components.image_editor import EditorData, EditorValue
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_hf._version import __version__
from ddpm_hf.demo.demo_model import DemoModel
from ddpm_hf.demo.watching import Progress, watch
from ddpm_hf.demo.work import Result
from ddpm_hf.pipelines.pictures import image_grid
from ddpm_hf.runtime.sanitize import for_html

logger = logging.getLogger(__name__)

EDITOR_SIDE = 320
"""Pixels of the longer side of the canvas to paint on."""

PICTURE_SIDE = 900
"""Approximate width of a grid, in pixels."""

SETTINGS_KEY = "ddpm-hf"
"""Text entry of the PNGs that holds the settings."""

MAX_LAYERS, MAX_LAYER_PIXELS = 4, 2**22
"""Layers of a painting, and pixels in all of them; the editor sends one layer of the size of its canvas."""

NO_RESULT, REFUSED = "Nothing yet: press the button.", "Nothing was made; the message says why."
NUM_RANDOM_SEEDS = 10**6

DEFAULT = "default"
"""Value of a choice that stands for None, which a dropdown cannot hold."""

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
        raise gr.Error(for_html(" ".join(str(error).split())), print_exception=False) from None
    except Exception:
        logger.exception("a request failed")
        text = "This failed inside the program; its terminal shows where."
        raise gr.Error(text, print_exception=False) from None


def status_text(*parts: str, notes: Sequence[str] = ()) -> str:
    """The line above a result, and below it the sampler's warnings."""
    line = f"<span>{' · '.join(for_html(part) for part in parts)}</span>"
    lines = "".join(f'<span class="ddpm-note">Note: {for_html(note)}</span>' for note in notes)
    return f'<div class="ddpm-status">{line}{lines}</div>'


def progress_bar(progress: Progress) -> str:
    """The bar above a result while it is being made."""
    if not progress.total:
        return '<div class="ddpm-status"><span>starting</span><progress></progress></div>'
    return (
        f'<div class="ddpm-status"><span>step {progress.done:,} of {progress.total:,}</span>'
        f'<progress value="{progress.done}" max="{progress.total}"></progress></div>'
    )


def limit_layers(editor: gr.ImageEditor) -> None:
    """Read only what was painted in an editor, and only if the layers are no more and no larger than it makes."""
    read = editor.preprocess

    def read_layers(payload: EditorData | None) -> EditorValue | None:
        if payload is None:
            return None
        pixels = 0
        if len(payload.layers) <= MAX_LAYERS:
            for layer in payload.layers:
                with Image.open(layer.path) as unread:
                    pixels += unread.width * unread.height
        if len(payload.layers) > MAX_LAYERS or pixels > MAX_LAYER_PIXELS:
            raise gr.Error("Mask: the layers are more or larger than the editor makes", print_exception=False)
        return read(payload.model_copy(update={"background": None, "composite": None}))

    editor.preprocess = read_layers  # type: ignore[method-assign]  # gradio writes stub files beside a subclass


def run_on_click(
    buttons: tuple[gr.Button, gr.Button],
    shown: tuple[gr.HTML, gr.Image, gr.DownloadButton],
    inputs: Mapping[str, Block],
    job: Callable[..., Result],
    details: Mapping[Block, Callable[[Result], Any]] | None = None,
    in_a_row: bool = False,
) -> None:
    """Run a job when a button is clicked.

    Args:
        buttons: start the job, and stop it after its current step; see `run_buttons`.
        shown: the status line, the picture and the file that show the result.
        inputs: fields by the arguments of the job that they give.
        job: does the work; takes the function to report progress to first.
        details: further components, and the value of each for a result.
        in_a_row: whether the picture has a single row; otherwise it is about square.
    """
    start, stop = buttons
    status, picture, file = shown
    details = details or {}

    def work(*values: Any) -> Iterator[dict[Block, Any]]:
        yield {status: progress_bar(Progress(0, 0))}
        given = {name: None if value == DEFAULT else value for name, value in zip(inputs, values, strict=True)}
        started = time.monotonic()
        with errors_as_messages():
            running = watch(lambda on_progress: job(on_progress, **given))
            try:
                while True:
                    progress = next(running)
                    preview: dict[Block, Any] = {picture: grid(progress.images)} if progress.images else {}
                    yield {status: progress_bar(progress), **preview}
            except StopIteration as end:
                result: Result = end.value
            finally:
                running.close()
        seconds = f"{time.monotonic() - started:.1f} s"
        images = grid(result.images, len(result.images) if in_a_row else None)
        with TemporaryDirectory(prefix="ddpm-hf-") as folder:  # gradio copies the file before it goes on
            archive = write_zip(result, images, Path(folder) / f"{result.name}.zip")
            yield {
                status: status_text(*result.summary, seconds, notes=result.notes),
                picture: images,
                file: gr.DownloadButton(value=str(archive), interactive=True),
                **{component: value(result) for component, value in details.items()},
            }

    running = start.click(work, [*inputs.values()], [*shown, *details], show_progress_on=status, **WORK)
    running.failure(lambda: status_text(REFUSED), None, status, **QUICK)
    stop.click(lambda: status_text("Stopped."), None, status, cancels=running, **QUICK)


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
        return gr.Dropdown([("none", DEFAULT)], value=DEFAULT, visible=False)
    no_class = model.num_labels - 1
    choices: list[tuple[str, int | str]] = [("all in turn", DEFAULT)] if in_turn else []
    choices += [(str(label), label) for label in range(no_class)]
    choices += [("no class", no_class)]
    return gr.Dropdown(choices, value=choices[0][1], label="Class")


def guidance_field(model: DemoModel) -> gr.Slider:
    """The scale of classifier-free guidance, for a class-conditional model."""
    return gr.Slider(0, 10, 1, step=0.1, label="Guidance", info="1 is none", visible=model.num_labels is not None)


def steps_field(most: int, value: int, info: str | None = None, elem_id: str | None = None) -> gr.Slider:
    """The number of denoising steps."""
    return gr.Slider(1, most, min(value, most), step=1, label="Steps", info=info, elem_id=elem_id)


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay images out, small ones enlarged smoothly so that the grid is about PICTURE_SIDE wide.

    Args:
        images: of one size; at least one.
        columns: in a row; None makes the grid as square as possible.
    """
    across = columns or math.ceil(math.sqrt(len(images)))
    return image_grid(images, columns, min_side=min(PICTURE_SIDE // max(across, 2), 256))


def canvas(image: Image.Image) -> Image.Image:
    """Enlarge an image smoothly to be painted on."""
    factor = max(1, EDITOR_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).convert("RGB")


def write_zip(result: Result, picture: Image.Image, file: Path) -> Path:
    """Write settings.json, every image as a PNG with the settings in it, and the picture of all of them.

    Args:
        result: the images and their settings.
        picture: as the page shows it.
        file: to write.
    """
    settings = {**result.settings, "ddpm_hf": __version__}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n")
        archive.writestr("grid.png", _encode(picture, settings))
        for index, image in enumerate(result.images):
            archive.writestr(f"images/{index:06}.png", _encode(image, {**settings, "image": index}))
    return file


def _encode(image: Image.Image, settings: dict) -> bytes:
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(settings))
    stream = BytesIO()
    image.save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()
