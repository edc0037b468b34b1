"""Samplers by name: schedulers that run the same diffusion process as the model's own."""

import inspect
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler as StockDDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ddpm_hf.runtime.randomness import draw_normal
from ddpm_hf.schedulers import DDPMScheduler, DiffusionProcess


def timesteps_down(start: int, num_steps: int) -> list[int]:
    """Spread timesteps evenly from a start (the first of them) down to the clean image (after the last).

    Args:
        start: in [0, T).
        num_steps: in [1, start + 1].
    """
    return [int(t) for t in np.linspace(start, -1, num_steps + 1).round()[:-1]]


class DDIMScheduler(StockDDIMScheduler):
    """DDIM with eta = 0 (Song et al., "Denoising Diffusion Implicit Models", eq. 12), and its inverse.

    Each step leads to the next timestep that is visited. diffusers' own leads to t - T // steps, which is beside it
    unless the number of steps divides T: 600 steps of 1000 would end far from the image.
    """

    stock_class = "DDIMScheduler"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the timesteps to visit.

        Args:
            num_inference_steps: so many, evenly from T - 1 down; in [1, T].
            device: of the timesteps.
            timesteps: these instead, falling.
        """
        T = self.config["num_train_timesteps"]
        chosen = timesteps_down(T - 1, num_inference_steps or T) if timesteps is None else timesteps
        self.num_inference_steps = len(chosen)  # type: ignore[assignment]  # the parent begins with None
        self.timesteps = torch.tensor(chosen, device=device)

    @cached_property
    def process(self) -> DiffusionProcess:
        """The process whose x_t the steps lead through."""
        return DiffusionProcess(self.betas.double())

    def step(  # type: ignore[override]  # nothing of eta, which is 0
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> DDIMSchedulerOutput:
        """Go from x_t to x_s, s being the next timestep.

        Args:
            model_output: the network's prediction at x_t.
            timestep: t.
            sample: x_t.

        Returns:
            x_s, and the predicted x_0.
        """
        t, s = self._move(int(timestep))
        x_0, eps = self._x_0_and_eps(model_output, sample, t)
        x_s = x_0 if s is None else self.process.q_sample(x_0, eps, s)
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0)

    def inverse_step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, guess: torch.Tensor
    ) -> torch.Tensor:
        """Go from x_s back to the x_t whose step leads to it.

        Args:
            model_output: the network's prediction at the guess.
            timestep: t.
            sample: x_s.
            guess: of x_t; the result equals it where it is right.

        Returns:
            x_t, by the noise that the network predicts at the guess.
        """
        t, s = self._move(int(timestep))
        _, eps = self._x_0_and_eps(model_output, guess, t)
        x_0 = sample if s is None else self.process.predict_x_0(eps, sample, s, "epsilon")
        return self.process.q_sample(x_0, eps, t)

    def _move(self, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """t and the next timestep, each as a batch of one; None for the clean image."""
        index = int((self.timesteps == t).nonzero()[0, 0])
        following = self.timesteps[index + 1 : index + 2]
        return self.timesteps[index : index + 1], following if len(following) else None

    def _x_0_and_eps(
        self, output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The predicted x_0, clipped, and the eps that makes x_t of it, which differs from the predicted one then."""
        x_0 = self.process.predict_x_0(output, x_t, t, self.config["prediction_type"])
        if self.config["thresholding"]:
            x_0 = self._threshold_sample(x_0)
        elif self.config["clip_sample"]:
            x_0 = x_0.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        return x_0, self.process.predict_eps(x_0, x_t, t, "sample")


class SDEDPMSolverScheduler(DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ of the SDE, whose noise a GPU need not wait for."""

    stock_class = "DPMSolverMultistepScheduler"

    def step(  # type: ignore[override]  # nothing of the noise, which is drawn here
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Any:
        """Go from x_t to x_s, s being the next timestep.

        Args:
            model_output: the network's prediction at x_t.
            timestep: t.
            sample: x_t.
            generator: one for the batch or one per image.

        Returns:
            x_s.
        """
        noise = draw_normal(model_output.shape, generator, model_output.device)
        return super().step(model_output, timestep, sample, variance_noise=noise)


def process_of(scheduler: Any) -> DiffusionProcess:
    """The process of any of diffusers' schedulers."""
    return scheduler.process if hasattr(scheduler, "process") else DiffusionProcess(scheduler.betas.double())


SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"timestep_spacing": "linspace"}),
    "ddim": (DDIMScheduler, {"set_alpha_to_one": True}),
    "dpmsolver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "linspace"},
    ),
    "sde-dpmsolver++": (
        SDEDPMSolverScheduler,
        {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "linspace"},
    ),
    "unipc": (UniPCMultistepScheduler, {"final_sigmas_type": "zero", "timestep_spacing": "linspace"}),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler": (EulerDiscreteScheduler, {"final_sigmas_type": "zero", "timestep_spacing": "trailing"}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"}),
}
"""Every one begins at T - 1 and ends at the clean image.

heun, euler and pndm step in units of noise over signal, which falls from 20,000 to 13 in the first of 20 steps of a
cosine schedule; they need many more steps there than the others.
"""


def make_sampler(name: str, scheduler: Any) -> Any:
    """Make a sampler of the process that another scheduler has: the same betas, prediction type and clipping of x_0.

    Args:
        name: a key of `SAMPLERS`.
        scheduler: one of diffusers', such as the model was trained with.

    Warns:
        UserWarning: the sampler cannot clip x_0 as the scheduler does.

    Raises:
        ValueError: the sampler is unknown, or has nothing for the scheduler's prediction type or betas.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}; possible are {', '.join(SAMPLERS)}")
    sampler_class, settings = SAMPLERS[name]
    # A value that the scheduler took from its defaults is as much its own: without this mark, the sampler would put its
    # own default in that place (0.00085 for beta_start, in the case of heun).
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    knows = inspect.signature(sampler_class).parameters
    if config["prediction_type"] == "sample" and sampler_class in (
        HeunDiscreteScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
    ):
        raise ValueError(f"sampler {name!r} cannot use a model that predicts x_0; the others can")
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in knows:
        raise ValueError(f"sampler {name!r} cannot begin without any signal; the others can")

    limit = config.get("clip_sample_range", 1.0)
    if config.get("clip_sample") and not config.get("thresholding") and "clip_sample" not in knows:
        if "thresholding" in knows and limit == 1:
            settings = settings | {"thresholding": True, "sample_max_value": 1.0}  # clips, and scales by 1 / 1
        else:
            warnings.warn(f"sampler {name!r} does not clip the predicted x_0 to [-{limit}, {limit}]", stacklevel=2)
    elif config.get("thresholding") and "thresholding" not in knows:
        warnings.warn(f"sampler {name!r} does not threshold the predicted x_0", stacklevel=2)
    if "variance_type" in knows and sampler_class is not DDPMScheduler:
        settings = settings | {"variance_type": None}  # it never sees a learned variance
    return sampler_class.from_config(config, **settings)


def set_num_steps(scheduler: Any, num_inference_steps: int) -> None:
    """Set the number of steps of any scheduler, exactly.

    Args:
        scheduler: one of diffusers'.
        num_inference_steps: in [1, T].

    Raises:
        ValueError: the number is not possible, for any scheduler or for this one.
    """
    T = scheduler.config["num_train_timesteps"]
    if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= T:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; possible are 1 to {T}, the steps it was trained for"
        )
    scheduler.set_timesteps(num_inference_steps)
    if num_inference_steps == T and len(scheduler.timesteps.unique()) < T == len(scheduler.timesteps):
        # diffusers' "linspace" of T steps visits one timestep twice, between which these solvers divide by zero
        scheduler.register_to_config(timestep_spacing="trailing")
        scheduler.set_timesteps(num_inference_steps)
    even_only = isinstance(scheduler, PNDMScheduler) and scheduler.config["timestep_spacing"] != "leading"
    # Where T / steps is not whole, diffusers' "trailing" may round itself a step below 0.
    if (even_only and T % num_inference_steps) or int(scheduler.timesteps.min()) < 0:
        possible = sorted((n for n in range(1, T + 1) if T % n == 0), key=lambda n: abs(n - num_inference_steps))
        raise ValueError(
            f"this sampler cannot take {num_inference_steps} even steps over T = {T};"
            f" possible are {possible[0]} and {possible[1]}, or sampler 'ddim' with any number"
        )
