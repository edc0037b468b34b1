"""`logging` and `hub`: how a model is watched and shared."""

from typing import Annotated, Literal

from pydantic import Field

from ddpm_hf.config.section import PositiveInt, Section


class LoggingConfig(Section):
    """What is written while a run goes on; metrics.jsonl is always written."""

    log_every: PositiveInt = 10
    """Updates between two lines of metrics.jsonl; each line is the mean since the one before."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where accelerate sends the same figures besides."""


class HubConfig(Section):
    """Where the finished pipeline is uploaded."""

    repo_id: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """Repository on the Hub, as user/name; null: nothing is uploaded."""
    private: bool = True
    """Whether a repository that does not exist yet is made private."""
