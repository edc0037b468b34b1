"""The diffusion process: its schedule, its mathematics, and ancestral sampling."""

from ddpm_hf.schedulers.build import build_scheduler, terminal_signal_warning
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.schedulers.process import Gaussian, GaussianProcess

__all__ = ["DDPMScheduler", "Gaussian", "GaussianProcess", "build_scheduler", "terminal_signal_warning"]
