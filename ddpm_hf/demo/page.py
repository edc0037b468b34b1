"""The page as a whole, and how it is served."""

import logging
import os
import threading
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would tell its makers

import gradio as gr
from PIL import Image
from starlette.requests import ClientDisconnect

from ddpm_hf.demo.model import DemoModel
from ddpm_hf.demo.tabs.about import model_tab, schedule_tab
from ddpm_hf.demo.tabs.generate import generate_tab
from ddpm_hf.demo.tabs.inpaint import inpaint_tab
from ddpm_hf.demo.tabs.interpolate import interpolate_tab

LOOPBACK = "127.0.0.1"
SESSIONS = 50
"""Visitors whose last results are kept in memory."""

HOUR = 3600

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


def build_page(model: DemoModel) -> gr.Blocks:
    """Put the page together.

    Args:
        model: that it shows.
    """
    height, width = model.size
    with gr.Blocks(
        title=f"{model.title} · ddpm-hf", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, HOUR)
    ) as page:
        gr.Markdown(
            f"# {model.title}\n\nA denoising diffusion model of {width}x{height} images: it makes them out of noise, "
            f"step by step."
        )
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate_tab(model)
            with gr.Tab("Interpolate"):
                interpolate_tab(model)
            with gr.Tab("Inpaint"):
                inpaint_tab(model)
            with gr.Tab("Schedule"):
                schedule_tab(model)
            with gr.Tab("Model"):
                model_tab(model)
    return page.queue(max_size=model.limits.waiting, api_open=False)


def serve(model: DemoModel, host: str | None = LOOPBACK, port: int | None = None, **options: Any) -> gr.Blocks:
    """Serve the page, from threads of its own; `wait` lets it go on until the process is interrupted.

    Args:
        model: that it shows.
        host: address to listen at; None is that of the environment (GRADIO_SERVER_NAME, which a Space sets), or else
            loopback.
        port: None is the first free one from 7860.
        options: gradio's own, of `launch`.
    """
    Image.MAX_IMAGE_PIXELS = model.limits.upload_pixels  # gradio opens uploads, too
    page = build_page(model)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=model.limits.upload_bytes,
        state_session_capacity=SESSIONS,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["settings"],
        theme=gr.themes.Soft(
            primary_hue="indigo",
            font=("ui-sans-serif", "system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css=CSS,
        **options,
    )
    logging.getLogger("uvicorn.error").addFilter(is_worth_telling)
    return page


def is_worth_telling(record: logging.LogRecord) -> bool:
    """Whether the person at the terminal should hear of it: not that somebody has closed the page in the middle.

    Args:
        record: of the server's log.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], ClientDisconnect)


def wait(page: gr.Blocks) -> None:
    """Let a page be served until the process is interrupted; nothing of it is left then.

    Args:
        page: as `serve` returns it.
    """
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
