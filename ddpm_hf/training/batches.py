"""The batch of each step: images, noise and timesteps as functions of (seed, step)."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet, SampleOrder
from ddpm_hf.losses import TimestepSampler
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.runtime.randomness import generator_at

DEVICE_SHARE = 0.1
"""Share of a GPU's free memory that the images may take up; larger sets stay in the machine's memory."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        x_0: images in [-1, 1].
        noise: the eps of each image.
        timesteps: of each image, in 0 … T - 1.
        sample_weights: importance weights of the timesteps.
        labels: class of each image, num_classes where it is dropped; None for an unconditional model.
    """

    x_0: Float32[Tensor, "batch channels height width"]
    noise: Float32[Tensor, "batch channels height width"]
    timesteps: Int64[Tensor, " batch"]
    sample_weights: Float32[Tensor, " batch"]
    labels: Int64[Tensor, " batch"] | None

    def split(self, count: int) -> list["Batch"]:
        """Split into micro-batches of equal size, for gradient accumulation."""
        size = len(self.x_0) // count
        columns = (self.x_0, self.noise, self.timesteps, self.sample_weights)
        labels = [None] * count if self.labels is None else self.labels.split(size)
        rows = zip(*(column.split(size) for column in columns), labels, strict=True)
        return [Batch(*micro_batch) for micro_batch in rows]

    def clone(self) -> "Batch":
        """A batch of its own tensors."""
        columns: dict[str, Any] = {
            name: None if column is None else column.clone() for name, column in self._columns().items()
        }
        return Batch(**columns)

    def copy_(self, other: "Batch") -> None:
        """Copy another batch of the same shape into the tensors of this one."""
        for name, column in self._columns().items():
            if column is not None:
                column.copy_(getattr(other, name))

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Batches:
    """Draws the batch of any step.

    Every process draws the random numbers of the global batch and keeps its own rows. So the images, timesteps and
    noise of a step are the same for any number of processes.

    Args:
        images: the training images.
        config: of the run: seed, batch size, flips and classes.
        timestep_sampler: draws the timesteps.
        device: of the batches, and of the noise generator.
        process_index: of this process, from 0.
        num_processes: a divisor of the batch size.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        timestep_sampler: TimestepSampler,
        device: torch.device,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.images = images.images
        self.labels = images.labels
        self.config = config
        self.timestep_sampler = timestep_sampler
        self.device = device
        self.order = SampleOrder(len(images), config.seed)
        self.batch_size = config.training.batch_size
        share = self.batch_size // num_processes
        self.rows = slice(process_index * share, (process_index + 1) * share)
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)
            if self.images.nbytes <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
                self.images = self.images.to(device)

    def at(self, step: int) -> Batch:
        """This process's share of step `step`, counted from 0."""
        seed, rows, device = self.config.seed, self.rows, self.device
        indices = self.order.indices(step * self.batch_size, self.batch_size)[rows]
        timesteps, weights = self.timestep_sampler.sample(self.batch_size, generator_at(seed, "timesteps", step))
        shape = (self.batch_size, *self.images.shape[1:])
        noise = torch.randn(shape, generator=generator_at(seed, "noise", step, device=device), device=device)
        x_0 = from_uint8(self._gather(indices))
        if self.config.dataset.horizontal_flip:
            flip = self._place(self._coins("flip", step, 0.5)[rows])
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        return Batch(
            x_0=x_0,
            noise=noise[rows],
            timesteps=self._place(timesteps[rows]),
            sample_weights=self._place(weights[rows]),
            labels=self._labels(indices, step),
        )

    def _labels(self, indices: Int64[Tensor, " batch"], step: int) -> Int64[Tensor, " batch"] | None:
        num_classes = self.config.model.num_classes
        if num_classes is None or self.labels is None:
            return None
        dropped = self._coins("label", step, self.config.training.label_dropout)[self.rows]
        return self._place(torch.where(dropped, num_classes, self.labels[indices]))

    def _gather(self, indices: Int64[Tensor, " batch"]) -> UInt8[Tensor, "batch channels height width"]:
        """Images on the device; those that do not live there are copied while it works on the step before."""
        if self.images.device.type == self.device.type:  # the type, since "cuda" and "cuda:0" differ
            return self.images[self._place(indices)]
        if self._side is None:
            return self.images[indices].to(self.device)
        with torch.cuda.stream(self._side):
            images = self.images[indices].pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._side)
        images.record_stream(current)
        return images

    def _place(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device, without waiting for that."""
        if self._side is not None:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _coins(self, name: str, step: int, probability: float) -> Tensor:
        return torch.rand(self.batch_size, generator=generator_at(self.config.seed, name, step)) < probability
