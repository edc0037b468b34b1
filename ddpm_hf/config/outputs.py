"""`benchmark`, `logging` and `hub`: how a model is measured, watched and shared."""

from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import Field

from ddpm_hf.config.section import PositiveInt, Section


class BenchmarkMetrics(Section):
    """Which figures an evaluation computes."""

    fid: bool = True
    """Fréchet Inception distance."""
    inception_score: bool = True
    """Inception score."""
    ssim: bool = True
    """Structural similarity of reconstructions of held-out images."""
    psnr: bool = True
    """Peak signal-to-noise ratio of reconstructions of held-out images."""


class BenchmarkConfig(Section):
    """What `--eval_only --benchmark` measures."""

    n_samples: Annotated[PositiveInt, Ge(2)] = 50_000
    """Samples drawn for the evaluation."""
    batch_size: PositiveInt = 128
    """Samples drawn at a time."""
    metrics: BenchmarkMetrics = BenchmarkMetrics()
    """Which figures to compute."""
    save_samples: bool = True
    """Keep the samples as images."""
    save_metrics: bool = True
    """Write the figures to metrics.json."""


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
