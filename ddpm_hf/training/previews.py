"""Pictures of what a network draws, while it is trained and at the end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.metrics.distances import Colours
from ddpm_hf.pipelines import DDPMPipeline, DDPMPipelineOutput
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, every_class
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.signals import StopRequest

NUM_STAGES = 10
"""Pictures in a row of the denoising strip."""

NUM_STRIPS = 6
"""Rows of the denoising strip."""

NUM_COMPARED = 10_000
"""Training images, at most, whose colours are compared with those of previews."""


class Previews:
    """Draws the same images again and again as a network gets better.

    Args:
        pipeline: around the averaged network.
        images: those it is trained on.
        seed: of the run; image i is that of `generate.py` with the same seed.
        num_images: images in a grid.
        num_inference_steps: denoising steps; None takes all.
        sampler: one of `samplers.SAMPLERS`; None takes the pipeline's own scheduler.
        stop: polled at every denoising step.
    """

    def __init__(
        self,
        pipeline: DDPMPipeline,
        images: ImageSet,
        seed: int,
        num_images: int,
        num_inference_steps: int | None,
        sampler: str | None,
        stop: StopRequest,
    ) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(desc="drawing", leave=False, dynamic_ncols=True)
        self.num_images = num_images
        num_steps = num_inference_steps or pipeline.scheduler.config.num_train_timesteps
        self.settings = SamplingSettings(seed, num_steps, sampler, every_class(pipeline))
        self.stop = stop
        self.chunks = Chunks("sampling")
        every = math.ceil(len(images) / NUM_COMPARED)
        self.real = Colours.of(images.images[::every])

    def draw(self, samples: Path, denoising: Path | None = None) -> Colours:
        """Write a grid of samples, and a strip that shows some of them emerge from noise.

        Where memory does not suffice for all at once, they are drawn in parts: an image does not depend on the others.

        Returns:
            The colours of the samples.

        Raises:
            Stopped: if a stop was requested; nothing is written then.
        """
        drawn: list[Any] = [image for output in self._outputs(range(self.num_images)) for image in output.images]
        save_png(image_grid(drawn), samples)
        if denoising:
            outputs = self._outputs(range(min(NUM_STRIPS, self.num_images)), NUM_STAGES)
            save_png(denoising_strips(outputs), denoising)
        arrays = np.stack([np.atleast_3d(np.asarray(image)) for image in drawn])
        return Colours.of(torch.from_numpy(arrays).permute(0, 3, 1, 2))

    def _outputs(self, indices: range, num_stages: int = 0) -> list[DDPMPipelineOutput]:
        def work(some: range) -> DDPMPipelineOutput:
            return self.settings.draw(self.pipeline, some, "pil", self._keep_on, num_stages)

        return self.chunks(indices, work)

    def _keep_on(self, pipeline: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> None:
        self.stop.check()
