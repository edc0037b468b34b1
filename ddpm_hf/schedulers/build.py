"""From the configuration to a scheduler, and whether its process ends in noise."""

from ddpm_hf.config.model import ModelConfig
from ddpm_hf.schedulers.ddpm import DDPMScheduler

MAX_TERMINAL_SIGNAL = 0.05


def build_scheduler(config: ModelConfig) -> DDPMScheduler:
    """Make the scheduler that a model is trained and sampled with.

    Args:
        config: the `model_config` section; its `rescale_betas` multiplies linear betas by 1000 / T, so that T steps
            destroy as much of the image as the 1000 of DDPM (as the code of improved DDPM does).
    """
    scale = 1000 / config.time_steps if config.rescale_betas and config.beta_schedule == "linear" else 1.0
    return DDPMScheduler(
        num_train_timesteps=config.time_steps,
        beta_start=config.beta_start * scale,
        beta_end=config.beta_end * scale,
        beta_schedule=config.beta_schedule,
        variance_type=config.variance_type,
        clip_sample=True,
        prediction_type=config.prediction_type,
        timestep_spacing="linspace",
    )


def terminal_signal_warning(scheduler: DDPMScheduler) -> str | None:
    """Say what is wrong with a process that does not end in noise; sampling begins with noise and would be biased.

    Args:
        scheduler: of the training run that is about to begin.

    Returns:
        The warning, or None where at most 0.05 of the image is left at the end.
    """
    left = scheduler.terminal_signal
    if left <= MAX_TERMINAL_SIGNAL:
        return None
    T = scheduler.config["num_train_timesteps"]
    return (
        f"After all {T} steps, {left:.2f} of the image is still there (sqrt(alpha_bar_T); at most"
        f" {MAX_TERMINAL_SIGNAL} is sound), but sampling begins with pure noise. Set model_config.rescale_betas to"
        f" true, which multiplies the betas by 1000 / {T}, or beta_schedule to 'cosine', and on photographs"
        " prediction_type to 'v_prediction' with it."
    )
