"""Pictures of samples, during training and at its end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.metrics.distances import Colours
from ddpm_hf.pipelines import DDPMPipeline, DDPMPipelineOutput
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, every_class
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.signals import StopRequest

NUM_STAGES = 10
"""Pictures in a row of the denoising strips."""

NUM_STRIPS = 6
"""Rows of the denoising strips."""

NUM_COMPARED = 10_000
"""Training images, at most, whose colours are compared with those of previews."""


class Previews:
    """Draws the same samples again and again as the network improves.

    Args:
        pipeline: with the averaged weights.
        images: the training images.
        config: of the run; sample i is that of `generate.py` with the same seed.
        stop: polled at every denoising step.
    """

    def __init__(self, pipeline: DDPMPipeline, images: ImageSet, config: Config, stop: StopRequest) -> None:
        training, self._model = config.training, config.model
        self.pipeline, self.stop, self.chunks = pipeline, stop, Chunks("sampling")
        pipeline.set_progress_bar_config(desc="sampling", leave=False, dynamic_ncols=True)
        self.num_images = training.num_preview_images
        num_steps = training.preview_inference_steps or config.model.time_steps
        self.settings = SamplingSettings(config.seed, num_steps, training.preview_sampler, every_class(pipeline))
        self._real = Colours.of(images.images[:: math.ceil(len(images) / NUM_COMPARED)])

    def draw(self, samples: Path, denoising: Path | None = None) -> Colours:
        """Write a grid of samples, and strips that show some of them emerge from noise.

        Returns:
            The colours of the samples.

        Raises:
            Stopped: if a stop was requested; nothing is written then.
        """
        drawn: list[Any] = [image for output in self._outputs(self.num_images) for image in output.images]
        save_png(image_grid(drawn), samples)
        if denoising:
            save_png(denoising_strips(self._outputs(min(NUM_STRIPS, self.num_images), NUM_STAGES)), denoising)
        arrays = np.stack([np.atleast_3d(np.asarray(image)) for image in drawn])
        return Colours.of(torch.from_numpy(arrays).permute(0, 3, 1, 2))

    def drift_warning(self, colours: Colours) -> str | None:
        """Describe how the colours of samples differ from those of the training images; None if they do not."""
        drift = colours.drift_from(self._real)
        if drift is None:
            return None
        causes_casts = (self._model.beta_schedule, self._model.prediction_type) == ("cosine", "epsilon")
        hint = ", or v_prediction with these betas (model_config.prediction_type)" if causes_casts else ""
        return f"{drift}; a longer average (training.ema_decay), a lower learning rate or more steps help{hint}"

    def _outputs(self, count: int, num_stages: int = 0) -> list[DDPMPipelineOutput]:
        def draw(chunk: range) -> DDPMPipelineOutput:
            return self.settings.draw(self.pipeline, chunk, "pil", lambda *_: self.stop.check(), num_stages)

        return self.chunks(range(count), draw)
