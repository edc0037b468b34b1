"""`logging`: what is written while a run goes on."""

from typing import Literal

from ddpm_hf.config.section import PositiveInt, Section


class LoggingConfig(Section):
    """What is written while a run goes on; metrics.jsonl is always written."""

    log_every: PositiveInt = 10
    """Updates between two lines of metrics.jsonl; each line is the mean since the one before."""
    tracker: Literal[
        "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
    ] = "none"
    """Where accelerate sends the same figures besides; each needs its own package."""
