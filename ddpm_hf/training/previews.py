"""Pictures of what a network draws, while it is trained and at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import to_output
from ddpm_hf.plotting import image_grid, save_png
from ddpm_hf.randomness import image_seeds

NUM_STAGES = 10
"""Pictures in a row of the denoising strip."""

NUM_STRIPS = 6
"""Rows of the denoising strip."""


class Abandoned(Exception):  # noqa: N818  (a wish, not an error)
    """Drawing was given up because the run is to stop."""


class Previews:
    """Draws the same images again and again as a network gets better.

    Args:
        pipeline: around the averaged network.
        seed: of the run; image i is that of `generate.py` with the same seed.
        num_images: images in a grid.
        num_inference_steps: denoising steps; None takes all.
        should_stop: asked at every denoising step whether to give up.
    """

    def __init__(
        self,
        pipeline: DDPMPipeline,
        seed: int,
        num_images: int,
        num_inference_steps: int | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(desc="drawing", leave=False, dynamic_ncols=True)
        self.seeds = image_seeds(seed, range(num_images))
        num_classes = pipeline.unet.config.num_class_embeds
        # every class in turn; the last one stands for no class
        self.class_labels = None if num_classes is None else [index % (num_classes - 1) for index in range(num_images)]
        self.num_inference_steps = num_inference_steps
        self.should_stop = should_stop

    def draw(self, samples: Path, denoising: Path | None = None) -> None:
        """Write a grid of samples, and a strip that shows some of them emerge from noise.

        Raises:
            Abandoned: if should_stop said so; nothing is written then.
        """
        output: Any = self.pipeline(
            batch_size=len(self.seeds),
            seeds=self.seeds,
            class_labels=self.class_labels,
            num_inference_steps=self.num_inference_steps,
            return_intermediates=NUM_STAGES if denoising else 0,
            callback_on_step_end=self._keep_on,
        )
        save_png(image_grid(output.images), samples)
        if denoising:
            strips = min(NUM_STRIPS, len(self.seeds))
            stages = [to_output(stage.x_t[:strips], "pil") for stage in output.intermediates]
            rows = zip(*stages, output.images[:strips], strict=True)
            save_png(image_grid([image for row in rows for image in row], columns=len(stages) + 1), denoising)

    def _keep_on(self, pipeline: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> None:
        if self.should_stop():
            raise Abandoned
