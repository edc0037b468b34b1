"""Pictures of samples, during training and at its end."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.pipelines import DDPMPipelineOutput
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, every_class
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.signals import StopRequest
from ddpm_hf.training.state import TrainState

NUM_STAGES = 10
"""Pictures in a row of the denoising strips."""

NUM_STRIPS = 6
"""Rows of the denoising strips."""

NUM_COMPARED = 10_000
"""Training images, at most, whose colours are compared with those of previews."""

SMALLEST_DRIFT = 0.05
"""Smaller differences of colours in [-1, 1] are no drift, however significant."""

STANDARD_ERRORS = 5.0
"""Smaller differences of colours may be chance."""


@dataclass(frozen=True)
class Colours:
    """Statistics of each colour channel of some images, in [-1, 1].

    Attributes:
        count: images.
        mean: over all images and pixels.
        std: over all images and pixels.
        std_of_means: over the images, of the mean of each.
    """

    count: int
    mean: list[float]
    std: list[float]
    std_of_means: list[float]

    @classmethod
    def of(cls, images: UInt8[Tensor, "num_images channels height width"]) -> "Colours":
        """Compute the statistics of images."""
        values = from_uint8(images, torch.float64)
        return cls(
            count=len(images),
            mean=values.mean((0, 2, 3)).tolist(),
            std=values.std((0, 2, 3), correction=0).tolist(),
            std_of_means=values.mean((2, 3)).std(0, correction=0).tolist(),
        )

    def drift_from(self, real: "Colours") -> str | None:
        """Describe the channels in which images differ from real ones by more than chance.

        All of them may be too bright or too dark; or some too bright and others too dark, which cancels in the mean.

        Args:
            real: the colours of many real images, whose own variation decides what may be chance.

        Returns:
            A description; None without drift.
        """
        names = ("gray",) if len(self.mean) == 1 else ("red", "green", "blue")
        drifted = [
            f"{name} {ours:+.2f} instead of {theirs:+.2f}"
            for name, ours, theirs, std in zip(names, self.mean, real.mean, real.std_of_means, strict=True)
            if abs(ours - theirs) > SMALLEST_DRIFT + STANDARD_ERRORS * std / self.count**0.5
        ]
        largest = 1 + STANDARD_ERRORS / (2 * self.count) ** 0.5  # the standard error of a standard deviation
        drifted += [
            f"{name} ±{ours:.2f} from image to image instead of ±{theirs:.2f}"
            for name, ours, theirs in zip(names, self.std_of_means, real.std_of_means, strict=True)
            if ours > max(theirs + SMALLEST_DRIFT, theirs * largest)
        ]
        return ", ".join(drifted) or None

    def logged(self) -> dict[str, list[float]]:
        """The statistics, rounded, under the names that the run's log has."""
        values = {"channel_mean": self.mean, "channel_std": self.std, "channel_spread": self.std_of_means}
        return {name: [round(value, 4) for value in each] for name, each in values.items()}


class Previews:
    """Draws the same samples again and again as the network improves.

    Args:
        state: of the run; sample i is that of `generate.py` with the averaged weights and the run's seed.
        images: the training images.
        stop: polled at every denoising step.
    """

    def __init__(self, state: TrainState, images: ImageSet, stop: StopRequest) -> None:
        config, pipeline = state.config, state.pipeline
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
