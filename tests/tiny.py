"""A pipeline so small that a test may train, sample and save it."""

import diffusers
import torch

from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import DDPMScheduler, DiffusionProcess


def pipeline(time_steps: int = 10, **config) -> DDPMPipeline:
    """Two levels for gray images of 8x8, cosine betas; always the same random weights.

    Args:
        time_steps: T of the scheduler.
        config: options of the network that differ.
    """
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": None,
        }
        | config
    )
    made = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=time_steps, beta_schedule="cosine"))
    made.set_progress_bar_config(disable=True)
    return made


def process_of(alpha_bar):
    """A diffusion process by its alpha_bar_t for t = 0 … T - 1, in float64."""
    return DiffusionProcess(1 - alpha_bar / torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]]))
