"""The whole configuration of a run."""

import json
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator
from typing_extensions import Self

from ddpm_hf.config.benchmark import BenchmarkConfig
from ddpm_hf.config.dataset import DatasetConfig
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.config.logging import LoggingConfig
from ddpm_hf.config.loss import LossConfig
from ddpm_hf.config.model import ModelConfig
from ddpm_hf.config.section import NonNegativeInt, Section, mistakes
from ddpm_hf.config.training import TrainingConfig


class Config(Section):
    """A run: its data, its model, its training and what becomes of it. Every section may be left out."""

    model_type: Literal["ddpm"] = "ddpm"
    """Kind of diffusion model."""
    seed: NonNegativeInt = 0
    """Everything random in the run follows from it."""
    output_dir: str | None = None
    """The run folder; null: runs/ and the name of the YAML file."""
    dataset: DatasetConfig = DatasetConfig()
    """Which images the network learns from."""
    model: ModelConfig = Field(default=ModelConfig(), alias="model_config")
    """The network and its diffusion process."""
    training: TrainingConfig = TrainingConfig()
    """How the network is trained."""
    loss: LossConfig = Field(default=LossConfig(), alias="loss_config")
    """What the network is trained to make small."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """What an evaluation measures."""
    logging: LoggingConfig = LoggingConfig()
    """What is written while the run goes on."""
    hub: HubConfig = HubConfig()
    """Where the finished pipeline is uploaded."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        adversarial, size = self.loss.adversarial, self.model.image_size
        most = size.bit_length() - 1
        mistakes(
            (
                "loss_config.adversarial.num_levels",
                adversarial.num_levels,
                f"1 to {most}, since images of {size} pixels can be halved {most} times",
            )
            if adversarial.weight and adversarial.num_levels > most
            else None,
            ("loss_config.vlb_weight", 0.0, "above 0, since nothing else trains a variance of learned_range")
            if self.model.variance_type == "learned_range" and self.loss.vlb_weight == 0
            else None,
        )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, under the keys of the YAML file, defaults included."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The configuration as a YAML file that loads to the same configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""What pydantic calls the bounds of a number that has a validator of its own, and what JSON Schema calls them."""


def json_schema() -> dict[str, Any]:
    """The schema of the YAML files, as JSON Schema."""
    return _in_standard_terms(Config.model_json_schema(by_alias=True))


def _in_standard_terms(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_in_standard_terms(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_number = schema.get("type") in ("integer", "number")
    return {BOUNDS.get(key, key) if is_number else key: _in_standard_terms(value) for key, value in schema.items()}


def schema_text() -> str:
    """The schema as the file that editors read."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
