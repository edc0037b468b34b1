"""The configuration of a run, and its description for editors (JSON Schema) and for `--help`."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ddpm_hf.config.benchmark import BenchmarkConfig
from ddpm_hf.config.dataset import DatasetConfig
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.config.loss import LossConfig
from ddpm_hf.config.model import ModelConfig
from ddpm_hf.config.section import NonNegativeInt, Section
from ddpm_hf.config.training import LoggingConfig, TrainingConfig
from ddpm_hf.runtime.values import dump_yaml, flatten

WRAP = textwrap.TextWrapper(80, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


class Config(Section):
    """A run: its data, its model, its training and its results. Every section may be left out."""

    model_type: Literal["ddpm"] = "ddpm"
    """Kind of diffusion model."""
    seed: NonNegativeInt = 0
    """Seed of everything random in the run."""
    output_dir: str | None = None
    """The run folder; null: runs/ and the name of the YAML file."""
    dataset: DatasetConfig = DatasetConfig()
    """The images to train on."""
    model: ModelConfig = Field(default=ModelConfig(), alias="model_config")
    """The network and its diffusion process."""
    training: TrainingConfig = TrainingConfig()
    """How the network is trained."""
    loss: LossConfig = Field(default=LossConfig(), alias="loss_config")
    """What the network is trained to minimise."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """What an evaluation measures."""
    logging: LoggingConfig = LoggingConfig()
    """What is logged during the run."""
    hub: HubConfig = HubConfig()
    """Where the finished pipeline is uploaded."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        adversarial, size, training = self.loss.adversarial, min(self.model.sides), self.training
        most = size.bit_length() - 1
        learns_variance = self.model.variance_type == "learned_range"
        return self.refuse(
            (
                self.model.is_complete and (training.preview_inference_steps or 0) > self.model.time_steps,
                "training.preview_inference_steps",
                f"at most time_steps ({self.model.time_steps})",
            ),
            (
                training.validate_every and not (self.dataset.validation_split or self.dataset.validation_fraction),
                "training.validate_every",
                "null, or with held-out images: set dataset.validation_split or dataset.validation_fraction",
            ),
            (
                self.model.is_complete and adversarial.weight and adversarial.num_levels > most,
                "loss_config.adversarial.num_levels",
                f"1 to {most}, the times that an image_size of {size} can be halved",
            ),
            (
                learns_variance and self.loss.vlb_weight == 0,
                "loss_config.vlb_weight",
                "above 0, since nothing else trains the variance of variance_type learned_range",
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, under the keys of the YAML file, defaults included."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The configuration as a YAML file that loads to the same configuration."""
        return dump_yaml(self.to_dict())


def schema_text() -> str:
    """The schema of the YAML files, as the file of JSON Schema that editors read."""
    return json.dumps(Config.model_json_schema(by_alias=True), indent=2, ensure_ascii=False) + "\n"


def options_help(*sections: str) -> str:
    """Describe options for `--help`: default, range and meaning of each, as it is written on the command line.

    Args:
        sections: keys of the file, such as "training"; none means all of them.
    """
    schema = Config.model_json_schema(by_alias=True)
    lines = ["options of the configuration (section.key=value, with their defaults):"]
    section = None
    for path, default in flatten(Config().to_dict()).items():
        top, *names = path.split(".")
        if sections and top not in sections:
            continue
        if top != section:
            section = top
            lines.append("")
        field = schema["properties"][top]
        for name in names:
            field = schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"][name]
        shown = default if isinstance(default, str) else json.dumps(default)
        meaning = " ".join([*field.get("description", "").split(), *_allowed(field)])
        lines += [f"  {path}={shown}", *WRAP.wrap(meaning)]
    return "\n".join(lines)


def _allowed(field: dict[str, Any]) -> list[str]:
    """The choices or the range of a value, in brackets; nothing if the schema has neither."""
    kinds = [field, *field.get("anyOf", [])]
    choices = [json.dumps(choice) for kind in kinds for choice in kind.get("enum", [])]
    found = [f"one of {', '.join(choices)}"] if choices else [bound for kind in kinds for bound in _bounds(kind)]
    return [f"({', '.join(found)})"] if found else []


def _bounds(kind: dict[str, Any]) -> list[str]:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return [f"{word} {kind[key]:g}" for key, word in words.items() if key in kind]


def allowed_values(path: Sequence[str | int]) -> str:
    """What may be given for an option, in words that follow from the schema.

    Args:
        path: keys of the file, and numbers of the values of lists.
    """
    schema = Config.model_json_schema(by_alias=True)
    kind = schema
    for name in path:
        kind = schema["$defs"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
        if isinstance(name, str):
            kind = kind["properties"][name]
        else:
            kind = next(each for each in (kind, *kind.get("anyOf", [])) if each.get("type") == "array")
            kind = kind["prefixItems"][name] if "prefixItems" in kind else kind["items"]
    return _in_words(kind)


def _in_words(kind: dict[str, Any]) -> str:
    if "anyOf" in kind:
        return ", or ".join(map(_in_words, kind["anyOf"]))
    if "enum" in kind or "const" in kind:
        *choices, last = map(repr, kind.get("enum", [kind.get("const")]))
        return f"{', '.join(choices)} or {last}" if choices else last
    if kind.get("type") == "array":
        names = ", ".join("abcdefgh"[: kind.get("maxItems", 2)])
        some = " of one or more" if kind.get("minItems", 0) and "maxItems" not in kind else ""
        return f"a list{some}, such as [{names}], each {_in_words(kind.get('items') or kind['prefixItems'][0])}"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    if kind.get("type") == "string":
        return kind.get("patternErrorMessage", "text, in quotes if it looks like a number")
    return ", ".join([words.get(kind.get("type", ""), "a section, with keys below it"), *_bounds(kind)])


def option_hint(name: str) -> str | None:
    """Say how an option that was given as `--num_steps` is written in the configuration; None if it has none.

    Args:
        name: without dashes, with underscores.
    """
    return next(
        (f"{path}=VALUE" for path in flatten(Config().to_dict()) if name in (path, path.rpartition(".")[2])), None
    )
