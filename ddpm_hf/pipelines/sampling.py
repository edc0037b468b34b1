"""Sampling runs: how image i is drawn."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ddpm_hf.pipelines.ddpm import Callback, DDPMPipeline, DDPMPipelineOutput
from ddpm_hf.runtime.randomness import image_seeds


@dataclass(frozen=True)
class SamplingSettings:
    """How the images of a sampling run are drawn: image i is a function of the network, these settings and i.

    Attributes:
        seed: of the run; image i has a seed of its own, derived from this one and i.
        num_inference_steps: denoising steps, in [1, T].
        sampler: a key of `samplers.SAMPLERS`; None is the pipeline's own scheduler.
        class_labels: taken in turn by the images of a class-conditional model; None for images of no class.
        guidance_scale: of classifier-free guidance; 1 is none.
    """

    seed: int
    num_inference_steps: int
    sampler: str | None = None
    class_labels: list[int] | None = None
    guidance_scale: float = 1.0

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """The class of each of these images; None for an unconditional model."""
        return self.class_labels and [self.class_labels[index % len(self.class_labels)] for index in indices]

    def draw(
        self,
        pipeline: DDPMPipeline,
        indices: Sequence[int],
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        return_intermediates: int = 0,
    ) -> DDPMPipelineOutput:
        """Draw images of the run, as one batch.

        Args:
            pipeline: whose network draws.
            indices: which images; at least one.
            output_type: see `DDPMPipeline.__call__`.
            callback_on_step_end: see `DDPMPipeline.__call__`.
            return_intermediates: see `DDPMPipeline.__call__`.

        Returns:
            The images, and the intermediates if any were asked for.

        Raises:
            ValueError: the settings are not possible for this model.
        """
        output = pipeline(
            seeds=image_seeds(self.seed, indices),
            num_inference_steps=self.num_inference_steps,
            sampler=self.sampler,
            class_labels=self.labels(indices),
            guidance_scale=self.guidance_scale,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            return_intermediates=return_intermediates,
        )
        assert isinstance(output, DDPMPipelineOutput)
        return output


def every_class(pipeline: DDPMPipeline) -> list[int] | None:
    """The classes of a class-conditional model; None for another model."""
    num_labels = pipeline.unet.config.num_class_embeds
    return None if num_labels is None else list(range(num_labels - 1)) or None


def show_steps(pipeline: DDPMPipeline, quiet: bool = False) -> None:
    """Show the steps of a batch, which may take minutes, below the bar of the whole.

    In a file, where nothing can be drawn over, it is a line every ten seconds.

    Args:
        pipeline: draws the images.
        quiet: show nothing.
    """
    where = {} if sys.stderr.isatty() else {"position": 0, "mininterval": 10}
    pipeline.set_progress_bar_config(
        desc="denoising", unit="step", leave=False, dynamic_ncols=True, delay=1, disable=quiet, **where
    )
