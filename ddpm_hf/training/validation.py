"""The loss on held-out images, always at the same timesteps and with the same noise."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.losses import DiffusionLoss
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.runtime.randomness import generator_at
from ddpm_hf.runtime.signals import Stopped, StopRequest
from ddpm_hf.schedulers.likelihood import bound_terms, prior_term
from ddpm_hf.training.run_logger import NUM_BINS, bin_names
from ddpm_hf.training.state import TrainState


class Validation:
    """Measures the averaged weights on held-out images.

    Image i always gets the same noise and the same timestep, and together the timesteps cover the schedule evenly. So
    losses of different steps, and of different runs on the same data, can be compared.

    Args:
        images: the held-out ones.
        state: with the averaged weights.
        loss: that of training, without the adversarial term.
    """

    def __init__(self, images: ImageSet, state: TrainState, loss: DiffusionLoss) -> None:
        self.images, self.loss, self.config, self.accelerator = images, loss, state.config, state.accelerator
        self.network, self.scheduler = state.pipeline.unet, state.scheduler
        training, T = self.config.training, self.config.model.time_steps
        count = min(training.num_validation_images, len(images))
        places = torch.arange(count) * T // count
        self.timesteps = places[torch.randperm(count, generator=generator_at(0, "validation timesteps"))]
        first, stride = self.accelerator.process_index, self.accelerator.num_processes
        # Every process has the same number of batches, some of which may be empty.
        share = training.batch_size // stride // training.gradient_accumulation_steps
        shares = torch.arange(-(-count // stride)).split(share)
        self.batches = [rows[rows < count] for rows in (each * stride + first for each in shares)]

    @torch.no_grad()
    def measure(self, stop: StopRequest) -> dict[str, float]:
        """Measure the loss; every process calls this together.

        Args:
            stop: polled before every batch.

        Returns:
            The `loss`, the loss in each tenth of the timesteps and, if the configuration requests it, `bits_per_dim`:
            the variational bound, estimated from one timestep of each image.

        Raises:
            Stopped: in all processes, if a stop was requested in any.
        """
        losses = torch.zeros(len(self.timesteps), device=self.accelerator.device)
        bits = torch.zeros_like(losses)
        for rows in self.batches:
            if stop.agreed():
                raise Stopped
            if len(rows):
                losses[rows], bits[rows] = self._measure(rows)
        losses, bits = (self.accelerator.reduce(each).double().cpu() for each in (losses, bits))
        metrics = {"loss": float(losses.mean())}
        tenths = self.timesteps * NUM_BINS // self.config.model.time_steps
        for tenth, name in enumerate(bin_names(self.config.model.time_steps)):
            if (within := losses[tenths == tenth]).numel():
                metrics[name] = float(within.mean())
        if self.config.training.validation_bits_per_dim:
            metrics["bits_per_dim"] = float(bits.mean())
        return metrics

    def _measure(
        self, rows: Int64[Tensor, " batch"]
    ) -> tuple[Float32[Tensor, " batch"], Float32[Tensor, " batch"] | float]:
        """The losses and the bits per dimension of some images."""
        device, T = self.accelerator.device, self.config.model.time_steps
        x_0 = from_uint8(self.images.images[rows].to(device))
        noise = torch.stack(
            [torch.randn(x_0.shape[1:], generator=generator_at(0, "validation noise", row)) for row in rows.tolist()]
        ).to(device)
        timesteps = self.timesteps[rows].to(device)
        labels = None
        if self.config.model.num_classes is not None and self.images.labels is not None:
            labels = self.images.labels[rows].to(device)
        x_t = self.scheduler.add_noise(x_0, noise, timesteps)
        with self.accelerator.autocast():
            prediction = self.network(x_t, timesteps, labels).sample
        losses = self.loss(prediction, x_0, noise, x_t, timesteps).per_sample
        if not self.config.training.validation_bits_per_dim:
            return losses, 0.0
        terms = bound_terms(self.scheduler, prediction.float(), x_0, x_t, timesteps)
        return losses, T * terms + prior_term(self.scheduler, x_0)
