"""What the model is: the curves of its process, its card, and how it fared."""

from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import torch
from PIL import Image

from ddpm_hf.data.decoding import open_image
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.hub.results import Result
from ddpm_hf.pipelines.pictures import schedule_curves
from ddpm_hf.runtime.markdown import markdown_table


def schedule_tab(model: DemoModel) -> None:
    """Lay the tab of the curves out."""
    gr.Markdown(
        "How the model's process turns an image to noise over its time steps. **Left**: what is left of the image, and "
        "how much noise there is. **Middle**: the ratio of both; the network learns at each of these. **Right**: the "
        "noise that a step of sampling adds back, between its two limits (DDPM, section 3.2)."
    )
    gr.Image(
        _curves(model), show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"],
        elem_id="curves",
    )  # fmt: skip


def model_tab(model: DemoModel) -> None:
    """Lay the tab of the card out."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("### The network\n\n" + markdown_table(("", ""), list(model.facts.items())))
            if model.picture is not None:
                gr.Markdown("### Samples of its run")
                gr.Image(model.picture, show_label=False, format="png", interactive=False, buttons=[])
            _how_it_fared(model)
        with gr.Column(scale=3, min_width=360):
            gr.Markdown(model.card or "*The model has no card.*", elem_classes="ddpm-card")


def _curves(model: DemoModel) -> Image.Image:
    alpha_bar = torch.cumprod(1 - model.pipeline.scheduler.betas.double(), dim=0)
    with TemporaryDirectory() as folder:
        schedule_curves(alpha_bar, Path(folder) / "schedule.png")
        return open_image(Path(folder) / "schedule.png")


def _how_it_fared(model: DemoModel) -> None:
    """The newest evaluation in full, the earlier ones folded up below it."""
    if not model.evaluations:
        gr.Markdown(f"### How it fared\n\nNothing was measured yet. This does it:\n\n    {_evaluation(model.name)}")
        return
    (newest, results), *earlier = model.evaluations.items()
    gr.Markdown(f"### How it fared\n\n{_figures(results)}\n\nFrom `{newest}`.")
    for name, figures in earlier:
        with gr.Accordion(f"Earlier: {name}", open=False):
            gr.Markdown(_figures(figures))


def _evaluation(name: str) -> str:
    """The command that measures a model."""
    config = Path(name).expanduser() / "config.yaml"
    options = f"--config {config}" if config.exists() else f"--model {name} --config …"
    return f"python training/eval.py {options}"


def _figures(results: list[Result]) -> str:
    rows: list[tuple[str, ...]] = []
    for each in results:
        spread = "" if each.spread is None else f" ± {each.spread:.3g}"
        protocol = each.protocol
        rows.append((each.title, f"{each.value:.4g}{spread}", str(protocol["samples"]), str(protocol["steps"])))
    return markdown_table(("Metric", "Value", "Images", "Steps"), rows)
