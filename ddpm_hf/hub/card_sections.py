"""The text of a model card, section by section."""

from typing import Any

from ddpm_hf.hub.facts import CONFIG, Facts
from ddpm_hf.hub.results import PROTOCOL
from ddpm_hf.runtime.markdown import markdown_table

FEW_SAMPLES = 10_000
"""Below this, an FID says more about the number of samples than about the model."""


def sections(facts: Facts) -> dict[str, str]:
    """The generated sections, in their order."""
    return {
        "about": _about(facts),
        "samples": _samples(facts),
        "use": _use(facts),
        "results": _results(facts),
        "training": _training(facts),
        "limits": _limits(facts),
    }


def _about(facts: Facts) -> str:
    kind = "A class-conditional" if facts.num_classes else "An unconditional"
    state = "" if facts.is_finished else " It is still being trained: this is its state so far."
    return (
        f"# {facts.name}\n\n{kind} denoising diffusion model ([DDPM](https://arxiv.org/abs/2006.11239)) of "
        f"{_size(facts)} images, trained on {_dataset(facts)}: {facts.num_parameters:,} parameters, the moving average "
        f"of the trained weights.{state}"
    )


def _samples(facts: Facts) -> str:
    captions = {
        "samples.png": "Samples, not selected.",
        "denoising.png": "From noise (left) to images (right).",
    }
    shown = [f"![{captions[name]}]({name})\n\n{captions[name]}" for name in captions if name in facts.files]
    return "\n\n".join(["## Samples", *(shown or ["No pictures go along with this version."])])


def _use(facts: Facts) -> str:
    revision = "" if facts.revision == "main" else f', revision="{facts.revision}"'
    steps = f"num_inference_steps={facts.num_train_timesteps}"
    if facts.num_classes:
        stock = (
            f"from ddpm_hf import DDPMPipeline\n\n"
            f'pipeline = DDPMPipeline.from_pretrained("{facts.repo_id}"{revision})\n'
            f"images = pipeline(class_labels=[0, 1], {steps}).images\n"
            'images[0].save("sample.png")'
        )
        heading = f"Classes go from 0 to {facts.num_classes - 1}; they need the pipeline of ddpm-hf:"
    else:
        stock = (
            "from diffusers import DiffusionPipeline\n\n"
            f'pipeline = DiffusionPipeline.from_pretrained("{facts.repo_id}"{revision})\n'
            f"images = pipeline(batch_size=2, {steps}).images\n"
            'images[0].save("sample.png")'
        )
        heading = "With diffusers alone, no remote code:"
    return (
        f"## Use\n\n{heading}\n\n```python\n{stock}\n```\n\n"
        "After `pip install ddpm-hf`, `from ddpm_hf import DDPMPipeline` loads the same repository with seeds per "
        "image, other samplers, interpolation, inpainting and more."
    )


def _results(facts: Facts) -> str:
    if not facts.results:
        return "## Results\n\nNot measured yet."
    head = ["Metric", "Value", *(name.capitalize() for name in PROTOCOL)]
    rows = []
    for result in facts.results:
        spread = "" if result.spread is None else f" ± {result.spread:.4g}"
        rows.append(
            [result.title, f"{result.value:.5g}{spread}", *(_shown(result.protocol[name]) for name in PROTOCOL)]
        )
    return f"## Results\n\n{markdown_table(head, rows)}\n\nFigures compare only with figures of the same protocol."


def _training(facts: Facts) -> str:
    training, model = facts.config.get("training") or {}, facts.config.get("model_config") or {}
    loss, schedule = facts.config.get("loss_config") or {}, training.get("scheduler") or {}
    rows = {
        "Data": _dataset(facts),
        "Updates": None if facts.step is None else f"{facts.step:,}",
        "Batch size": training.get("batch_size"),
        "Optimiser": _joined(training.get("optimizer"), training.get("learning_rate"), schedule.get("type")),
        "Averaging (EMA)": training.get("ema_decay"),
        "Prediction": facts.scheduler.get("prediction_type"),
        "Noise schedule": _joined(facts.scheduler.get("beta_schedule"), f"T = {facts.num_train_timesteps:,}"),
        "Loss": _joined(loss.get("type"), loss.get("weighting")),
        "Dropout": model.get("dropout"),
        "Seed": facts.config.get("seed"),
        "Hardware": _hardware(facts.environment),
        "Time": None if facts.seconds is None else _duration(facts.seconds),
        "Software": _software(facts.environment),
    }
    known = [[name, _shown(value)] for name, value in rows.items() if value not in (None, "")]
    whole = f"\n\nAll settings: [{CONFIG}]({CONFIG})." if CONFIG in facts.files else ""
    return f"## Training\n\n{markdown_table(['', ''], known)}{whole}"


def _limits(facts: Facts) -> str:
    points = [
        f"It draws what its training data show, at {_size(facts)} pixels, with their gaps and biases, nothing else.",
        "Samples can come close to training images. Whether that matters depends on the data and their license.",
        "It was made for research and teaching and has not been checked for any other use.",
    ]
    counts = [result.protocol["samples"] for result in facts.results if result.name in ("fid", "kid")]
    if any(isinstance(count, int) and count < FEW_SAMPLES for count in counts):
        points.append(f"Distances above were measured on fewer than {FEW_SAMPLES:,} samples and are biased upwards.")
    if not facts.license:
        points.append("Its maker has not stated a license here; ask before you use it for anything of consequence.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _dataset(facts: Facts) -> str:
    if facts.dataset_on_hub is None:
        return facts.dataset
    at = f" at {str(facts.config['dataset']['revision'])[:8]}"
    return f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset}){at}"


def _size(facts: Facts) -> str:
    size = facts.network.get("sample_size")
    height, width = (size, size) if isinstance(size, int) else size or ("?", "?")
    return f"{height}x{width}"


def _hardware(environment: dict[str, Any]) -> str | None:
    gpus, processor = environment.get("gpus") or [], environment.get("processor")
    machine = f"{len(gpus)} x {gpus[0]}" if gpus else processor
    if machine is None:
        return None
    processes, precision = environment.get("num_processes", 1), environment.get("mixed_precision")
    details = [f"{processes} processes" if processes != 1 else "", "fp32" if precision in (None, "no") else precision]
    return ", ".join([machine, *filter(None, details)])


def _software(environment: dict[str, Any]) -> str | None:
    versions = environment.get("versions") or {}
    return ", ".join(f"{name} {number}" for name, number in versions.items() if number) or None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _joined(*values: Any) -> str:
    return ", ".join(_shown(value) for value in values if value not in (None, "", {}))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
