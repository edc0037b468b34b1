"""What trains a learned variance: the variational bound of the hybrid loss (improved DDPM, section 3.1)."""

import torch
from torch import Tensor

from ddpm_hf.losses.diffusion import VarianceTerm
from ddpm_hf.schedulers import DDPMScheduler, bound_terms


def learned_variance_term(scheduler: DDPMScheduler) -> VarianceTerm:
    """Make L_vlb of improved DDPM, eq. 16: T L_t, whose mean over the timesteps is the bound in bits per dimension.

    No gradient goes to the prediction, which L_simple alone trains.

    Args:
        scheduler: of the model, with variance_type learned_range.
    """
    T = scheduler.config["num_train_timesteps"]

    def term(model_output: Tensor, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        prediction, values = model_output.chunk(2, dim=1)
        return T * bound_terms(scheduler, torch.cat([prediction.detach(), values], dim=1), x_0, x_t, timesteps)

    return term
