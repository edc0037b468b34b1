"""The model card: rendered from a template, and merged with what people have written into the card on the Hub.

Each generated section stands between two marks, the first of which holds a hash of its text. A section whose text no
longer has that hash was edited by a person. It stays as it is, like everything outside of the marks and every key of
the metadata that is not ours.
"""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ddpm_hf.checkpoints.fetch import CONFIG
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.evaluation.rendering import markdown_table
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub.model_info import ModelInfo
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import Markdown, for_markdown, sanitize
from ddpm_hf.runtime.values import load_yaml

TEMPLATE = Path(__file__).with_name("model_card.md")
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
SECTION = re.compile(r"<!-- ddpm-hf:([a-z]+)(?: ([0-9a-f]{8}))? -->\r?\n(.*?)\r?\n<!-- /ddpm-hf:\1 -->", re.DOTALL)

TASK = "unconditional-image-generation"
TAGS = ["ddpm", "diffusers", "ddpm-hf"]
UNKNOWN_LICENSE = "unknown"

CAPTIONS = {
    RunFolder("").samples.name: "Samples, not selected.",
    RunFolder("").denoising.name: "From noise (left) to images (right).",
}


def make_card(info: ModelInfo, old: str | None = None) -> str:
    """Write a model card.

    Args:
        info: what the card says.
        old: the card in the repository; what people wrote into it is kept.

    Raises:
        UserError: if the metadata of the old card cannot be read.
    """
    old_metadata, old_body = split_card(old or "")
    report = info.report
    card = ModelCard.from_template(
        _card_data(info, old_metadata),
        template_path=str(TEMPLATE),
        info=info,
        dataset=_dataset(info),
        pictures={name: caption for name, caption in CAPTIONS.items() if name in info.files},
        revision="" if info.revision == "main" else f', revision="{info.revision}"',
        results=_results(report) if report else None,
        warnings=[for_markdown(sanitize(warning)) for warning in report.warnings] if report else [],
        training=_training(info),
        config_file=CONFIG,
    )
    metadata, body = split_card(str(card))
    others = [
        each
        for each in _as_list(old_metadata.get("model-index"))
        if not (isinstance(each, dict) and each.get("name") == info.name)
    ]
    if index := [*metadata.pop("model-index", []), *others]:
        metadata["model-index"] = index
    kept = {key: value for key, value in old_metadata.items() if key not in (*metadata, "model-index")}
    front = yaml.safe_dump({**metadata, **kept}, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{front}---\n\n{_merge(body, old_body)}\n"


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text.

    Raises:
        UserError: if the metadata is not a YAML mapping.
    """
    match = FRONT_MATTER.match(card)
    if match is None:
        return {}, card
    try:
        metadata = load_yaml(match[1]) or {}
    except yaml.YAMLError as error:
        raise UserError(
            f"README.md in the repository has metadata that is not YAML: {error}; correct it on the Hub"
        ) from None
    if not isinstance(metadata, dict):
        raise UserError("README.md in the repository has metadata that is not a mapping; correct it on the Hub")
    return metadata, card[match.end() :].lstrip("\r\n")


def _merge(new: str, old: str) -> str:
    """Renew the sections of the old text that nobody has edited; a text without sections comes before all new ones."""
    sections = {match[1]: match[3].strip() for match in SECTION.finditer(new)}
    if not SECTION.search(old):
        fresh = [_marked(name, text) for name, text in sections.items()]
        return "\n\n".join([*([old.rstrip()] if old.strip() else []), *fresh])

    def renew(match: re.Match[str]) -> str:
        name, written, text = match[1], match[2], match[3]
        return _marked(name, sections[name]) if name in sections and _hash(text) == written else match[0]

    return SECTION.sub(renew, old).rstrip("\n")


def _marked(name: str, text: str) -> str:
    return f"<!-- ddpm-hf:{name} {_hash(text)} -->\n{text}\n<!-- /ddpm-hf:{name} -->"


def _hash(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()[:8]


def _card_data(info: ModelInfo, old: dict[str, Any]) -> ModelCardData:
    """The metadata: ours, joined with the tags, datasets and license of the old card."""
    ours = [*TAGS, "class-conditional" if info.num_classes else TASK]
    theirs = [tag for tag in _as_list(old.get("tags")) if not (info.num_classes and tag == TASK)]  # an earlier card's
    datasets = _union([info.dataset] if info.dataset_revision else [], old.get("datasets"))
    return ModelCardData(
        license=info.license or old.get("license") or UNKNOWN_LICENSE,
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=_union(ours, theirs),
        datasets=datasets or None,
        base_model=info.base_model,
        model_name=info.name,
        eval_results=_eval_results(info, info.report) if info.report else None,
    )


def _eval_results(info: ModelInfo, report: Report) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Image generation",
            dataset_type=info.dataset if info.dataset_revision else re.sub(r"[^\w./-]", "-", info.dataset),
            dataset_name=info.dataset,
            metric_type=key,
            metric_value=metric.value,
            metric_name=metric.name,
            metric_args={**_protocol(report, key), **({} if metric.std is None else {"std": metric.std})},
        )
        for key, metric in report.metrics.items()
        if metric.value is not None
    ]
    return results or None


def _results(report: Report) -> str:
    """The metrics as a table, each with how it was measured."""
    protocols = {key: _protocol(report, key) for key in report.metrics}
    columns = list(dict.fromkeys(name for protocol in protocols.values() for name in protocol))
    rows = [
        [report.row_name(key), str(report.metrics[key]), *(_shown(protocol.get(name, "")) for name in columns)]
        for key, protocol in protocols.items()
    ]
    return markdown_table(["Metric", "Value", *(name.capitalize() for name in columns)], rows)


def _protocol(report: Report, key: str) -> dict[str, Any]:
    """How a metric was measured: values compare only if all of this is the same."""
    reference, held_out, seeds = report.reference, report.held_out, ", ".join(map(str, report.sampling.seeds))
    if key == "bits_per_dim":  # of no sample, and in no features
        timesteps, images = held_out.likelihood_timesteps, f"{held_out.num_images:,} {report.held_out_kind}"
        return {
            "steps": "all timesteps" if timesteps is None else f"{timesteps:,} timesteps",
            "seed": str(report.sampling.seeds[0]),
            "reference": sanitize(f"{images} of {reference.dataset}, split {held_out.split}"),
        }
    return {
        "samples": report.sampling.n_samples,
        "sampler": report.sampling.sampler,
        "steps": report.sampling.num_inference_steps,
        "seed": seeds,
        "extractor": report.features.label,
        "reference": sanitize(
            f"{reference.num_images:,} {report.reference_kind} of {reference.dataset}, split {reference.split}"
        ),
    }


def _training(info: ModelInfo) -> str:
    """How the model was trained, as a table of what is known."""
    training, loss = info.config.get("training") or {}, info.config.get("loss_config") or {}
    weight = loss.get("time_weight_type") if loss.get("use_time_weighting") else "no"
    rows = {
        "Data": _dataset(info),
        "Fine-tuned from": _base_model(info),
        "Updates": info.step,
        "Batch size": training.get("batch_size"),
        "Optimizer": _joined(
            training.get("optimizer"), training.get("learning_rate"), (training.get("scheduler") or {}).get("type")
        ),
        "EMA decay": training.get("ema_decay"),
        "Prediction": info.scheduler.get("prediction_type"),
        "Noise schedule": _joined(info.scheduler.get("beta_schedule"), f"T = {info.num_train_timesteps:,}"),
        "Loss": _joined(loss.get("loss_type"), f"{weight} time weighting") if loss else None,
        "Dropout": (info.config.get("model_config") or {}).get("dropout"),
        "Seed": info.config.get("seed"),
        "Hardware": _hardware(info.environment),
        "Time": None if info.seconds is None else _duration(info.seconds),
        "Software": _joined(
            *(f"{name} {number}" for name, number in (info.environment.get("versions") or {}).items() if number)
        ),
    }
    return markdown_table(["", ""], [[name, _shown(value)] for name, value in rows.items() if value not in (None, "")])


def _base_model(info: ModelInfo) -> Markdown | None:
    model = info.config.get("model_config") or {}
    if model.get("pretrained") is None:
        return None
    base, name = info.base_model, for_markdown(info.base_model or model["pretrained"])
    link = f"[{name}](https://huggingface.co/{quote(base)})" if base else name
    return Markdown(f"{link}, weights {for_markdown(model.get('pretrained_hash'))}")


def _dataset(info: ModelInfo) -> Markdown:
    name = for_markdown(info.dataset)
    if info.dataset_revision is None:
        return name
    address = f"https://huggingface.co/datasets/{quote(str(info.dataset))}"
    return Markdown(f"[{name}]({address}) at {for_markdown(str(info.dataset_revision)[:8])}")


def _hardware(environment: dict[str, Any]) -> str | None:
    gpus, num_processes = environment.get("gpus") or [], environment.get("num_processes", 1)
    machine = f"{len(gpus)} x {gpus[0]}" if gpus else environment.get("processor")
    precision = environment.get("mixed_precision")
    processes = f"{num_processes} processes" if num_processes != 1 else None
    return machine and _joined(machine, processes, "fp32" if precision in (None, "no") else precision)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _joined(*values: Any) -> str:
    return ", ".join(_shown(value) for value in values if value not in (None, "", {}))


def _shown(value: Any) -> str:
    if isinstance(value, Markdown):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _union(ours: list[str], theirs: Any) -> list[str]:
    return list(dict.fromkeys([*ours, *map(str, _as_list(theirs))]))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
