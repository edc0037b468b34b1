"""DDPMScheduler: diffusers' scheduler with exact coefficients, and how a configuration makes one."""

from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler as StockDDPMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput, rescale_zero_terminal_snr
from jaxtyping import Float, Int
from torch import Tensor

from ddpm_hf.config.model import ModelConfig, PredictionType
from ddpm_hf.runtime.randomness import draw_normal
from ddpm_hf.runtime.stock import StockOnDisk
from ddpm_hf.schedulers.process import (
    COSINE,
    DiffusionProcess,
    Gaussian,
    Images,
    Timesteps,
    check_betas,
    make_betas,
    posterior_coefficients,
)

MAX_TERMINAL_SIGNAL = 0.05
"""Largest sqrt(alpha_bar_T) of a process that ends in noise."""

VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]


class DDPMScheduler(StockOnDisk, StockDDPMScheduler):  # type: ignore[misc]  # diffusers' two disagree on config_name
    """Ancestral sampling and the forward process of DDPM, computed in float64 and applied in float32.

    It is diffusers' scheduler with the same arguments and files, and three differences in what it computes: the
    schedule keeps its digits (`1 - alpha_bar_t` in float32 has lost four of them at t = 0), images in half precision
    are stepped in float32, and the step that ends at the clean image adds no noise whatever its timestep is.

    Args:
        num_train_timesteps: T, at least 1.
        beta_start: beta_1 of the schedules from one beta to another, in [0, 1).
        beta_end: beta_T likewise.
        beta_schedule: "linear", "cosine" (saved as diffusers' "squaredcos_cap_v2"), or another of diffusers'.
        trained_betas: beta_1 to beta_T themselves, instead of a schedule.
        variance_type: variance of a sampling step: beta_tilde_t ("fixed_small"), beta_t ("fixed_large"), or what a
            network of twice the channels says ("learned_range": Nichol and Dhariwal, eq. 15). The log forms are equal
            to the plain ones.
        clip_sample: whether a predicted x_0 is clipped.
        prediction_type: what the network predicts: eps, x_0 or v.
        thresholding: whether a predicted x_0 is thresholded dynamically instead (Imagen, section 2.3).
        dynamic_thresholding_ratio: quantile of the dynamic thresholding, in (0, 1].
        clip_sample_range: largest magnitude of a clipped x_0.
        sample_max_value: largest threshold of the dynamic thresholding.
        timestep_spacing: how fewer than T steps are spread over the T; "linspace" visits both ends.
        steps_offset: added to the timesteps of the "leading" spacing.
        rescale_betas_zero_snr: whether the betas are rescaled to leave no signal at T (Lin et al., algorithm 1).

    Raises:
        ValueError: the schedule, the type of the variance or of the prediction is unknown, or a beta is not in [0, 1].
    """

    stock_class: ClassVar[str] = "DDPMScheduler"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        variance_type: VarianceType = "fixed_small",
        clip_sample: bool = True,
        prediction_type: PredictionType = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        if beta_schedule == "cosine":
            self.register_to_config(beta_schedule=COSINE)
        betas = (
            make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
            if trained_betas is None
            else torch.tensor(np.asarray(trained_betas), dtype=torch.float64)
        )
        check_betas(betas)
        for name, value, possible in (
            ("variance_type", variance_type, get_args(VarianceType)),
            ("prediction_type", prediction_type, get_args(PredictionType)),
        ):
            if value not in possible:
                raise ValueError(f"{name} is {value!r}; possible are {', '.join(possible)}")
        self.process = DiffusionProcess(rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas)

        # The parent's attributes, which its other methods and diffusers' pipelines read.
        self.betas = self.process.tables["beta"].float()
        self.alphas = (1 - self.process.tables["beta"]).float()
        self.alphas_cumprod = self.process.tables["alpha_bar"].float()
        self.one = torch.tensor(1.0)
        self.init_noise_sigma = 1.0
        self.custom_timesteps = False
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.variance_type = variance_type

    @property
    def terminal_signal(self) -> float:
        """sqrt(alpha_bar_T): how much of the image is left where sampling begins with pure noise; should be near 0."""
        return float(self.process.tables["sqrt_alpha_bar"][-1])

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) of each timestep."""
        return self.process.tables["snr"].float().to(timesteps.device)[timesteps]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the timesteps to visit: a number of them, spread by `timestep_spacing`, or a list.

        Args:
            num_inference_steps: in [1, T].
            device: of the timesteps.
            timesteps: falling, in [0, T).

        Raises:
            ValueError: the number or the list is not possible.
        """
        T = self.config["num_train_timesteps"]
        if timesteps is None and (num_inference_steps is None or not 1 <= num_inference_steps <= T):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; possible are 1 to {T}, the steps it was trained for"
            )
        super().set_timesteps(num_inference_steps, device, timesteps)  # type: ignore[arg-type]  # None is its default
        if num_inference_steps is None:
            return
        # Where T / steps is not whole, the parent's float arithmetic may add a step at the end of "trailing".
        self.timesteps = self.timesteps[:num_inference_steps]
        if num_inference_steps == 1 and self.config["timestep_spacing"] == "linspace":
            self.timesteps = self.timesteps + T - 1  # a line of one point: where the noise is, not where it ends

    def add_noise(self, original_samples: Images, noise: Images, timesteps: Timesteps) -> Images:
        """Draw x_t from q(x_t | x_0), eq. 4, with the given noise.

        Args:
            original_samples: x_0, in [-1, 1].
            noise: eps, standard normal.
            timesteps: one per image, in [0, T).

        Returns:
            x_t, in the dtype of x_0.
        """
        return self.process.q_sample(original_samples, noise, timesteps).to(original_samples.dtype)

    def get_velocity(self, sample: Images, noise: Images, timesteps: Timesteps) -> Images:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0: the target of v-prediction.

        Args:
            sample: x_0, in [-1, 1].
            noise: eps, standard normal.
            timesteps: one per image, in [0, T).

        Returns:
            v, in the dtype of x_0.
        """
        return self.process.velocity(sample, noise, timesteps).to(sample.dtype)

    def step(
        self,
        model_output: Float[Tensor, "batch outputs height width"],
        timestep: int | Int[Tensor, ""],
        sample: Images,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw x_s from p(x_s | x_t), algorithm 2, where s is the next timestep to visit.

        Args:
            model_output: the network's prediction at x_t, and its variance where that is learned.
            timestep: t, in [0, T).
            sample: x_t.
            generator: one for the batch or one per image.
            return_dict: False for a plain tuple.

        Returns:
            x_s in the dtype of x_t, and the predicted x_0.

        Raises:
            ValueError: the variance is learned, and model_output has not twice the channels of the images.
        """
        t, s = int(timestep), int(self.previous_timestep(int(timestep)))
        alpha_bar = self.process.tables["alpha_bar"]
        alpha_bar_t, alpha_bar_s = alpha_bar[t], alpha_bar[s] if s >= 0 else torch.ones_like(alpha_bar[t])
        weight_x_0, weight_x_t, beta_tilde = posterior_coefficients(alpha_bar_t, alpha_bar_s)

        x_t = sample.to(torch.promote_types(sample.dtype, torch.float32))
        x_0, values = self._predict_x_0(model_output, x_t, torch.tensor([t]))
        x_s = float(weight_x_0) * x_0 + float(weight_x_t) * x_t
        if s >= 0:
            noise = draw_normal(x_t.shape, generator, x_t.device, x_t.dtype)
            beta = 1 - alpha_bar_t / alpha_bar_s
            x_s = x_s + (0.5 * self._log_variance(beta_tilde.log(), beta.log(), values)).exp() * noise

        x_s, x_0 = x_s.to(sample.dtype), x_0.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)

    def reverse(
        self,
        model_output: Float[Tensor, "batch outputs height width"],
        x_t: Images,
        timesteps: Timesteps,
    ) -> tuple[Gaussian, Images]:
        """p(x_{t-1} | x_t), eq. 1, of a batch of images that are each at their own timestep.

        Args:
            model_output: the network's prediction at x_t, and its variance where that is learned.
            x_t: noisy images.
            timesteps: one per image, in [0, T).

        Returns:
            The distribution, and the predicted x_0 that its mean is computed from.

        Raises:
            ValueError: the variance is learned, and model_output has not twice the channels of the images.
        """
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        x_0, values = self._predict_x_0(model_output, x_t, timesteps)
        log_beta_tilde = self.process.at("log_beta_tilde", timesteps, x_t)
        log_beta = self.process.at("log_beta", timesteps, x_t)
        log_variance = self._log_variance(log_beta_tilde, log_beta, values)
        return Gaussian(self.process.q_posterior(x_0, x_t, timesteps).mean, log_variance.exp(), log_variance), x_0

    def _predict_x_0(self, model_output: Tensor, x_t: Images, timesteps: Timesteps) -> tuple[Images, Images | None]:
        """The x_0 that the output implies, clipped as the config asks, and the output's half for a learned variance."""
        prediction, values = model_output.to(x_t.dtype), None
        if self.variance_type in ("learned", "learned_range"):
            channels = x_t.shape[1]
            if model_output.shape[1] != 2 * channels:
                raise ValueError(
                    f"variance_type {self.variance_type!r} needs a network with {2 * channels} output channels, twice"
                    f" those of the images; this one has {model_output.shape[1]}. Use 'fixed_small' or 'fixed_large'."
                )
            prediction, values = prediction.split(channels, dim=1)
        x_0 = self.process.predict_x_0(prediction, x_t, timesteps, self.config["prediction_type"])
        limit = self.config["clip_sample_range"]
        if self.config["thresholding"]:
            x_0 = self._threshold_sample(x_0)
        elif self.config["clip_sample"]:
            x_0 = x_0.clamp(-limit, limit)
        return x_0, values

    def _log_variance(
        self, log_beta_tilde: Float[Tensor, "..."], log_beta: Float[Tensor, "..."], values: Tensor | None
    ) -> Float[Tensor, "..."]:
        """Log of the variance of p(x_s | x_t), between beta_tilde and beta (section 3.2)."""
        if values is None:
            return log_beta if self.variance_type in ("fixed_large", "fixed_large_log") else log_beta_tilde
        if self.variance_type == "learned":
            return values.log()
        fraction = (values + 1) / 2  # Nichol and Dhariwal, eq. 15, from outputs in [-1, 1]
        return fraction * log_beta + (1 - fraction) * log_beta_tilde


def build_scheduler(config: ModelConfig) -> DDPMScheduler:
    """Make the scheduler that a model is trained and sampled with.

    Args:
        config: the `model_config` section. Its `rescale_betas` multiplies linear betas by 1000 / T, as the code of
            improved DDPM does, so that T steps destroy as much of the image as DDPM's 1000.
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
    """Warn of a process that does not end in noise: sampling begins with pure noise, and would be biased.

    Args:
        scheduler: of the training run that is about to begin.

    Returns:
        The warning, or None if sqrt(alpha_bar_T) is at most 0.05.
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
