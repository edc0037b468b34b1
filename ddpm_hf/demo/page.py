"""The page: its tabs, among them those that describe the model, and how it is served."""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which would report its use

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ddpm_hf.data.pixels import open_image
from ddpm_hf.demo.demo_model import DemoModel
from ddpm_hf.demo.gate import Gate, known_hosts
from ddpm_hf.demo.tabs import HOUR, generate_tab, inpaint_tab, interpolate_tab
from ddpm_hf.demo.visitor_input import Limits
from ddpm_hf.evaluation.rendering import markdown_table
from ddpm_hf.evaluation.report import Report
from ddpm_hf.pipelines.pictures import schedule_curves
from ddpm_hf.runtime.signals import SECONDS_BETWEEN_CHECKS, StopRequest

LOOPBACK = "127.0.0.1"
MAX_SESSIONS = 50
"""Visitors whose last results are kept in memory."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1160px !important; margin: 0 auto !important; }
.ddpm-status { display: flex; flex-direction: column; gap: 6px; min-height: 34px; justify-content: center; }
.ddpm-status span { font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.ddpm-status .ddpm-note { color: var(--body-text-color); font-weight: 600; }
.ddpm-status progress { width: 100%; height: 8px; accent-color: var(--color-accent); }
.ddpm-roll { align-self: center; }
.ddpm-card { padding: 4px 12px; }
.prose table { width: 100%; }
.prose table th, .prose table td { border-color: var(--border-color-primary) !important; padding: 6px 10px !important;
  word-break: normal; overflow-wrap: break-word; }
.prose table thead:not(:has(th:not(:empty))) { display: none; }
#images img, #variants img { max-height: 560px; object-fit: contain; }
footer { opacity: 0.6; }
"""


logger = logging.getLogger(__name__)


class Page(gr.Blocks):
    """A page whose log holds one line, not a traceback, for a request that its components cannot read.

    Attributes:
        files: the folder of uploads and results.
        limits: of a visitor's requests.
    """

    files: TemporaryDirectory
    limits: Limits

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run the function of an event; see gr.Blocks."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            name, details = type(error).__name__, logger.isEnabledFor(logging.DEBUG)
            logger.warning("a request could not be read: %s", name, exc_info=details)
            raise gr.Error("The request is not valid.", print_exception=False) from None


def build_page(model: DemoModel) -> Page:
    """Build the page of a model."""
    height, width = model.size
    with Page(
        title=f"{model.title} · ddpm-hf", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, HOUR)
    ) as page:
        gr.Markdown(
            f"# {model.title}\n\nA denoising diffusion model of {width}x{height} images: it makes them out of noise, "
            f"step by step."
        )
        tabs = {
            "Generate": generate_tab,
            "Interpolate": interpolate_tab,
            "Inpaint": inpaint_tab,
            "Schedule": _schedule_tab,
            "Model": _model_tab,
        }
        with gr.Tabs():
            for name, tab in tabs.items():
                with gr.Tab(name):
                    tab(model)
    page.queue(max_size=model.limits.waiting, api_open=False)
    return page


def _schedule_tab(model: DemoModel) -> None:
    """The curves of the model's process."""
    gr.Markdown(
        "How the model's process turns an image into noise over its time steps. **Left**: how much of the image and of "
        "the noise is in x_t. **Middle**: the ratio of both; the network learns at each of these. **Right**: the noise "
        "that a sampling step adds, between its two bounds (DDPM, section 3.2)."
    )
    with TemporaryDirectory() as folder:
        schedule_curves(model.pipeline.scheduler.alphas_cumprod.cpu(), Path(folder) / "schedule.png")
        curves = open_image(Path(folder) / "schedule.png")
    gr.Image(
        curves, show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"], elem_id="curves"
    )


def _model_tab(model: DemoModel) -> None:
    """The network, its samples, its card, and the metrics of its evaluations, the newest in full."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("### The network\n\n" + markdown_table(("", ""), list(model.description.items())))
            if model.picture is not None:
                gr.Markdown("### Samples of its run")
                gr.Image(model.picture, show_label=False, format="png", interactive=False, buttons=[])
            if not model.evaluations:
                config = Path(model.name).expanduser() / "config.yaml"
                options = f"--config {config}" if config.exists() else f"--model {model.name} --config …"
                command = f"python training/eval.py {options}"
                gr.Markdown(f"### Evaluation\n\nNo metrics yet. This command computes them:\n\n    {command}")
            for index, (name, report) in enumerate(model.evaluations.items()):
                if index == 0:
                    gr.Markdown(f"### Evaluation\n\n{_metrics_table(report)}\n\nFrom `{name}`.")
                    continue
                with gr.Accordion(f"Earlier: {name}", open=False):
                    gr.Markdown(_metrics_table(report))
        with gr.Column(scale=3, min_width=360):
            gr.Markdown(model.card or "*The model has no card.*", elem_classes="ddpm-card")


def _metrics_table(report: Report) -> str:
    sampling, held_out = report.sampling, report.held_out
    cost = (f"{sampling.n_samples:,}", f"{sampling.num_inference_steps:,}")
    cost_of_bits = (f"{held_out.num_images:,}", str(held_out.likelihood_timesteps or "all timesteps"))
    rows = [
        (report.row_name(key), str(each), *(cost_of_bits if key == "bits_per_dim" else cost))
        for key, each in report.metrics.items()
        if each.value is not None
    ]
    return markdown_table((f"Metric (against {report.reference_kind})", "Value", "Images", "Steps"), rows)


def serve(
    model: DemoModel,
    host: str | None = LOOPBACK,
    port: int | None = None,
    inbrowser: bool = False,
    allowed_hosts: Iterable[str] = (),
) -> Page:
    """Serve the page from threads; `wait` keeps it open until the process is interrupted.

    Args:
        model: that the page shows.
        host: address to listen at; None is that of the environment (GRADIO_SERVER_NAME, which a Space sets), or else
            loopback.
        port: None is the first free one from 7860.
        inbrowser: open the page in a browser.
        allowed_hosts: names that it answers to, beside localhost, this machine's and addresses.
    """
    files = TemporaryDirectory(prefix="ddpm-hf-demo-")  # removed at the end, unless the process is killed
    os.environ["GRADIO_TEMP_DIR"] = files.name
    Image.MAX_IMAGE_PIXELS = model.limits.upload_pixels  # gradio opens uploads, too
    page = build_page(model)
    page.files, page.limits = files, model.limits
    gate = Middleware(
        Gate,
        page=page,
        limits=model.limits,
        hosts=known_hosts(host or os.environ.get("GRADIO_SERVER_NAME"), allowed_hosts),
        folder=Path(files.name),
    )
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [gate]},
        max_file_size=model.limits.upload_bytes,
        state_session_capacity=MAX_SESSIONS,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["settings"],
        theme=gr.themes.Soft(
            primary_hue="indigo",
            font=("ui-sans-serif", "system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css=CSS,
        inbrowser=inbrowser,
    )
    return page


def wait(page: Page) -> None:
    """Keep a page open until the process gets SIGINT or SIGTERM, and then close it.

    Args:
        page: as `serve` returns it.

    Raises:
        SystemExit: always, at the signal, with 128 + its number.
    """
    stop = StopRequest()
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        with stop.on_signals():
            while not stop.requested():
                time.sleep(SECONDS_BETWEEN_CHECKS)
        raise SystemExit(128 + stop.signal_number)
    finally:
        page.close(verbose=False)
        page.files.cleanup()
