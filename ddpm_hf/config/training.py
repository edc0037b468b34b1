"""`training`: how the network is trained, and what the run leaves behind."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import model_validator
from typing_extensions import Self

from ddpm_hf.config.section import (
    Decay,
    Float,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    mistakes,
)


class LearningRateConfig(Section):
    """The learning rate over the run: a linear warm-up, then one of five shapes down to min_lr."""

    type: Literal["cosine", "linear", "step", "exponential", "constant"] = "cosine"
    """`cosine`, `linear` and `exponential` reach min_lr at the last update; `step` multiplies by step_factor every
    step_size updates; `constant` stays."""
    warmup_steps: NonNegativeInt = 1000
    """Updates over which the rate grows linearly to learning_rate."""
    min_lr: NonNegativeFloat = 1e-6
    """The rate never falls below this after the warm-up."""
    step_size: PositiveInt = 10_000
    """Updates between two drops of `step`."""
    step_factor: Annotated[Float, Gt(0), Le(1)] = 0.5
    """Factor of one drop of `step`."""


class TrainingConfig(Section):
    """Length, optimiser, precision, checkpoints and previews of a run."""

    num_epochs: PositiveInt = 2000
    """Passes over the data; not looked at when num_steps is given."""
    num_steps: PositiveInt | None = None
    """Optimiser updates, instead of num_epochs."""
    batch_size: PositiveInt = 128
    """Images per update, over all processes and accumulated parts: the run is the same on any number of devices."""
    gradient_accumulation_steps: PositiveInt = 1
    """Parts into which each process cuts its share of the batch, to save memory."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    beta1: Decay = 0.9
    """Decay of Adam's first moment."""
    beta2: Decay = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to Adam's denominator."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam` as in the paper, or `adamw` with decoupled weight decay."""
    weight_decay: NonNegativeFloat = 0.0
    """Strength of the weight decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this norm; null: never."""
    scheduler: LearningRateConfig = LearningRateConfig()
    """The learning rate over the run."""
    ema_decay: Decay = 0.9999
    """Decay per update of the averaged weights, which are the ones that are saved for use."""
    ema_schedule: Literal["constant", "warmup", "power"] = "warmup"
    """How the decay gets there, so that the average forgets the first weights: at update n it is ema_decay, or at most
    (1 + n) / (10 + n), or at most 1 - (1 + n) ** -ema_power."""
    ema_power: Annotated[Float, Gt(0), Le(1)] = 0.75
    """Exponent of the `power` schedule: 2/3 suits runs of a million updates, 3/4 shorter ones."""
    ema_extra_decays: tuple[Decay, ...] = ()
    """Further averages, saved beside the one of ema_decay as variants, such as `ema-0_999`, that from_pretrained loads
    with variant=…"""
    label_dropout: Probability = 0.1
    """Share of images trained without their class, for classifier-free guidance; only for a model with num_classes."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network's arithmetic; `auto`: bf16 where the processor multiplies it natively, otherwise no."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    channels_last: bool = False
    """Keep images with their channels innermost: faster on GPUs, slower on processors."""
    compile: bool = False
    """Compile the network's blocks with torch.compile: minutes of warm-up, then faster on GPUs."""
    fit_memory: bool = False
    """Before the first update, cut each process's share of the batch into more parts until one fits into memory."""
    max_skipped_updates: NonNegativeInt = 0
    """Updates that may be left out because the loss or the gradient is not finite; one more stops the run."""
    checkpoint_every: PositiveInt | None = 5000
    """Updates between two checkpoints; null: only at the end."""
    checkpoints_to_keep: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_best_by: Literal["validation_loss", "frechet_distance", "kernel_distance"] | None = None
    """Also keep the checkpoint with the smallest of these figures; it is known where validate_every or evaluate_every
    falls together with checkpoint_every."""
    preview_every: PositiveInt | None = 5000
    """Updates between two pictures of samples from the averaged weights; null: only at the end."""
    evaluate_every: PositiveInt | None = None
    """Updates between two evaluations on num_evaluation_samples, by the benchmark section; null: none."""
    num_evaluation_samples: Annotated[PositiveInt, Ge(2)] = 2500
    """Samples of such an evaluation, more than the features have dimensions (Inception's: 2,048); its figures compare
    with each other only, not with those of a whole one."""
    validate_every: PositiveInt | None = None
    """Updates between two measurements of the loss on held-out images (dataset.validation_split or
    validation_fraction), by timestep, always with the same timesteps and noise; null: none."""
    num_validation_images: PositiveInt = 1024
    """Held-out images in such a measurement, at most."""
    validation_bits_per_dim: bool = False
    """Also estimate the variational bound on their likelihood, in bits per dimension."""
    num_preview_images: PositiveInt = 64
    """Images in one picture of samples."""
    preview_inference_steps: PositiveInt | None = None
    """Denoising steps of previews; null: as many as the model has time steps."""
    preview_sampler: str | None = None
    """A sampler of `pipelines.samplers` that draws previews, such as dpmsolver++, for which few steps suffice; null:
    the scheduler that the model is saved with."""
    timeout_minutes: PositiveFloat = 60.0
    """How long the processes of a run wait for each other: longer than whatever the first does alone."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        parts, schedule = self.gradient_accumulation_steps, self.scheduler
        figure = self.keep_best_by
        measured = self.validate_every if figure == "validation_loss" else self.evaluate_every
        mistakes(
            ("batch_size", self.batch_size, f"a multiple of gradient_accumulation_steps ({parts})")
            if self.batch_size % parts
            else None,
            ("scheduler.min_lr", schedule.min_lr, f"at most learning_rate ({self.learning_rate})")
            if schedule.min_lr > self.learning_rate
            else None,
            ("scheduler.min_lr", 0.0, "above 0 for an exponential schedule, which never reaches 0")
            if schedule.type == "exponential" and schedule.min_lr == 0
            else None,
            (
                "keep_best_by",
                figure,
                f"null, or {'validate_every' if figure == 'validation_loss' else 'evaluate_every'} a divisor of "
                f"checkpoint_every ({self.checkpoint_every})",
            )
            if figure and (not measured or not self.checkpoint_every or self.checkpoint_every % measured)
            else None,
        )
        return self
