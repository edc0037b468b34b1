"""The diffusion process: its schedule, its mathematics, and ancestral sampling."""

from ddpm_hf.schedulers.ddpm import DDPMScheduler, build_scheduler, terminal_signal_warning
from ddpm_hf.schedulers.likelihood import Bound, bound_terms, variational_bound
from ddpm_hf.schedulers.process import DiffusionProcess, Gaussian

__all__ = [
    "Bound",
    "DDPMScheduler",
    "DiffusionProcess",
    "Gaussian",
    "bound_terms",
    "build_scheduler",
    "terminal_signal_warning",
    "variational_bound",
]
