"""A network that is exactly right: the best possible one for images whose pixels are independent Gaussians."""

import functools

import pytest
import tiny
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import DDPMScheduler

MEAN, STD = 0.25, 0.2


class GaussianNetwork(ModelMixin, ConfigMixin):
    """Predicts E[eps | x_t] (or x_0, or v) for x_0 ~ N(mean, std^2), in closed form; class c has the mean c / 4."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 4,
        in_channels: int = 1,
        out_channels: int = 1,
        num_class_embeds: int | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        scheduler = DDPMScheduler(beta_schedule="cosine", num_train_timesteps=num_train_timesteps)
        self.register_buffer("alpha_bar", scheduler.alphas_cumprod.double(), persistent=False)
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.num_evaluations = 0

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        self.num_evaluations += 1
        t = torch.as_tensor(timestep, device=sample.device)
        alpha_bar = self.alpha_bar[t.long()]
        mean = MEAN if class_labels is None else (class_labels / 4).reshape(-1, 1, 1, 1)
        x_t = sample.double()
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        x_0 = mean + alpha_bar.sqrt() * STD**2 / variance * (x_t - alpha_bar.sqrt() * mean)
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
        output = {"epsilon": eps, "sample": x_0, "v_prediction": v}[self.config.prediction_type]
        return UNet2DOutput(sample=self.dropout(output.to(sample.dtype) * self.weight))


def _gaussian_pipeline(prediction_type="epsilon", num_train_timesteps=1000, num_class_embeds=None, **config):
    network = GaussianNetwork(
        prediction_type=prediction_type, num_train_timesteps=num_train_timesteps, num_class_embeds=num_class_embeds
    )
    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="cosine",
        prediction_type=prediction_type,
        timestep_spacing="linspace",
        **config,
    )
    pipeline = DDPMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def one_thread():
    """Networks so small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gaussian_pipeline():
    """A function that makes a pipeline around `GaussianNetwork`, whose samples are known: N(MEAN, STD^2)."""
    return _gaussian_pipeline


@pytest.fixture
def tiny_pipeline():
    """A function that makes a pipeline around a tiny real U-Net with random weights, and dropout."""
    return functools.partial(tiny.pipeline, dropout=0.1)
