"""What the network is trained to make small, and at which timesteps."""

from ddpm_hf.losses.diffusion import DiffusionLoss, LossOutput
from ddpm_hf.losses.timesteps import TimestepSampler, make_timestep_sampler
from ddpm_hf.losses.weights import weight_table

__all__ = ["DiffusionLoss", "LossOutput", "TimestepSampler", "make_timestep_sampler", "weight_table"]
