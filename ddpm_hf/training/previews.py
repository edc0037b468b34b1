"""Pictures of what a network draws, while it is trained and at the end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.colours import Colours
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import to_output
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.randomness import image_seeds
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
        self.seeds = image_seeds(seed, range(num_images))
        num_classes = pipeline.unet.config.num_class_embeds
        # every class in turn; the last one stands for no class
        self.class_labels = None if num_classes is None else [index % (num_classes - 1) for index in range(num_images)]
        self.num_inference_steps, self.sampler = num_inference_steps, sampler
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
        indices = range(len(self.seeds))
        parts = self.chunks(indices, lambda some: self._sample(some).images)
        drawn: list[Image.Image] = [image for part in parts for image in part]
        save_png(image_grid(drawn), samples)
        if denoising:
            save_png(self._strips(indices[:NUM_STRIPS]), denoising)
        arrays = np.stack([np.atleast_3d(np.asarray(image)) for image in drawn])
        return Colours.of(torch.from_numpy(arrays).permute(0, 3, 1, 2))

    def _sample(self, indices: range, num_stages: int = 0) -> Any:
        return self.pipeline(
            batch_size=len(indices),
            seeds=[self.seeds[index] for index in indices],
            class_labels=None if self.class_labels is None else [self.class_labels[index] for index in indices],
            num_inference_steps=self.num_inference_steps,
            sampler=self.sampler,
            return_intermediates=num_stages,
            callback_on_step_end=self._keep_on,
        )

    def _strips(self, indices: range) -> Image.Image:
        stages: list[list[Image.Image]] = [[] for _ in range(NUM_STAGES + 1)]
        for output in self.chunks(indices, lambda some: self._sample(some, NUM_STAGES)):
            pictures = [to_output(each.x_t, "pil") for each in output.intermediates]
            for stage, images in zip(stages, [*pictures, output.images], strict=False):
                stage.extend(images)
        return denoising_strips([stage for stage in stages if stage])

    def _keep_on(self, pipeline: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> None:
        self.stop.check()
