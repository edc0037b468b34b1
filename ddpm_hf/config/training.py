"""`training` and `logging`: how the network is trained, and what the run saves and logs."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import model_validator
from typing_extensions import Self

from ddpm_hf.config.section import (
    NUMBER,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)


class LearningRateConfig(Section):
    """The learning rate over the run: a linear warm-up, then one of five shapes down to min_lr."""

    type: Literal["cosine", "linear", "step", "exponential", "constant"] = "cosine"
    """`cosine`, `linear` and `exponential` reach min_lr at the last update; `step` multiplies by step_factor every
    step_size updates; `constant` stays."""
    warmup_steps: NonNegativeInt = 1000
    """Updates over which the rate grows linearly to learning_rate."""
    min_lr: NonNegativeFloat = 1e-6
    """Lower bound of the rate after the warm-up."""
    step_size: PositiveInt = 10_000
    """Updates between two drops of `step`."""
    step_factor: Annotated[float, Gt(0), Le(1), NUMBER] = 0.5
    """Factor of one drop of `step`."""


class TrainingConfig(Section):
    """Length, optimizer, precision, checkpoints and previews of a run."""

    num_epochs: PositiveInt = 2000
    """Passes over the data; ignored if num_steps is given."""
    num_steps: PositiveInt | None = None
    """Optimizer updates, instead of num_epochs."""
    batch_size: PositiveInt = 128
    """Global batch size: images per update, over all processes and accumulation steps. The run is the same on any
    number of devices."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward and backward passes per update, each on a part of a process's images, to save memory."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    beta1: Fraction = 0.9
    """Adam's beta_1, the decay of the mean of gradients."""
    beta2: Fraction = 0.999
    """Adam's beta_2, the decay of the mean of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to Adam's denominator."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` as in the paper, or `adamw` with decoupled weight decay."""
    weight_decay: NonNegativeFloat = 0.0
    """Strength of the weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this norm; null: never."""
    scheduler: LearningRateConfig = LearningRateConfig()
    """The learning rate over the run."""
    ema_decay: Fraction = 0.9999
    """Decay per update of the averaged (EMA) weights, which are the ones saved for use."""
    ema_schedule: Literal["constant", "warmup", "power"] = "warmup"
    """How the decay grows, so that the average forgets the first weights: at update n it is ema_decay, or at most
    (1 + n) / (10 + n), or at most 1 - (1 + n) ** -ema_power."""
    ema_power: Annotated[float, Gt(0), Le(1), NUMBER] = 0.75
    """Exponent of the `power` schedule: 2/3 for runs of a million updates, 3/4 for shorter ones."""
    ema_extra_decays: tuple[Fraction, ...] = ()
    """Decays of further averages, saved as variants, such as `ema-0_999`, that from_pretrained loads with variant=…"""
    label_dropout: Probability = 0.1
    """Fraction of images trained without their class, for classifier-free guidance; only for a model with
    num_classes."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network's arithmetic; `auto`: bf16 where the hardware multiplies it natively, otherwise no."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third more time."""
    channels_last: Literal["auto"] | bool = "auto"
    """Store images with their channels innermost; `auto`: where the network is compiled for a GPU."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the network with torch.compile: minutes of warm-up, then faster; `auto`: on a GPU, where the run is long
    enough to win that back."""
    fit_memory: bool = False
    """Before the first update, raise the number of accumulation steps until a batch fits in memory."""
    freeze: Literal["all_but_attention_and_norms"] | tuple[str, ...] | None = None
    """Weights that are not trained: all but those of attention, normalisation and classes, or those whose names, or the
    name of a module above them, match one of these patterns, such as down_blocks.* or mid_block; null: none."""
    max_skipped_updates: NonNegativeInt = 0
    """Updates that may be skipped because the loss or the gradient is not finite; one more stops the run."""
    checkpoint_every: PositiveInt | None = 5000
    """Updates between two checkpoints; null: only at the end."""
    checkpoints_to_keep: PositiveInt = 2
    """Number of newest checkpoints that are kept."""
    keep_best_by: Literal["validation_loss", "frechet_distance", "kernel_distance"] | None = None
    """Also keep the checkpoint with the smallest value of this metric, which is known where validate_every or
    evaluate_every coincides with checkpoint_every."""
    preview_every: PositiveInt | None = 5000
    """Updates between two pictures of samples from the averaged weights; null: only at the end."""
    evaluate_every: PositiveInt | None = None
    """Updates between two evaluations on num_evaluation_samples, as the benchmark section says; null: none."""
    num_evaluation_samples: Annotated[int, Ge(2), NUMBER] = 2500
    """Samples of such an evaluation, more than the features have dimensions (Inception's: 2,048); its metrics compare
    with each other only, not with those of a full evaluation."""
    validate_every: PositiveInt | None = None
    """Updates between two measurements of the loss on held-out images (dataset.validation_split or
    validation_fraction), by timestep, always with the same timesteps and noise; null: none."""
    num_validation_images: PositiveInt = 1024
    """Most held-out images in such a measurement."""
    validation_bits_per_dim: bool = False
    """Also estimate the variational bound on their likelihood, in bits per dimension."""
    num_preview_images: PositiveInt = 64
    """Images in one picture of samples."""
    preview_inference_steps: PositiveInt | None = None
    """Denoising steps of previews; null: all of the model's time steps."""
    preview_sampler: str | None = None
    """A sampler of `pipelines.samplers` for previews, such as dpmsolver++, which needs few steps; null: the scheduler
    that the model is saved with."""
    timeout_minutes: PositiveFloat = 60.0
    """How long the processes of a run wait for each other: longer than anything that the first does alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        num_passes, rate, metric = self.gradient_accumulation_steps, self.scheduler, self.keep_best_by
        option = "validate_every" if metric == "validation_loss" else "evaluate_every"
        interval: int | None = getattr(self, option)
        is_measured = interval and self.checkpoint_every and self.checkpoint_every % interval == 0
        return self.refuse(
            (self.batch_size % num_passes, "batch_size", f"a multiple of gradient_accumulation_steps ({num_passes})"),
            (rate.min_lr > self.learning_rate, "scheduler.min_lr", f"at most learning_rate ({self.learning_rate})"),
            (
                rate.type == "exponential" and rate.min_lr == 0,
                "scheduler.min_lr",
                "above 0 for type exponential, which never reaches 0",
            ),
            (
                metric and not is_measured,
                "keep_best_by",
                f"null, or {option} a divisor of checkpoint_every ({self.checkpoint_every})",
            ),
        )


class LoggingConfig(Section):
    """What is logged during a run; metrics.jsonl is always written."""

    log_every: PositiveInt = 10
    """Updates between two lines of metrics.jsonl; each line holds means since the one before."""
    tracker: Literal[
        "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
    ] = "none"
    """Where accelerate also sends the same metrics; each needs its own package."""
