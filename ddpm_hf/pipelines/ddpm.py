"""DDPMPipeline: from noise to images with any UNet2DModel-like network and any diffusers scheduler."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from ddpm_hf.checkpoints.format import MANIFEST
from ddpm_hf.pipelines.denoising import Callback, Generators, Intermediate, Labels
from ddpm_hf.pipelines.editing import Editing
from ddpm_hf.pipelines.images import OutputImages, to_output
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps

DEFAULT_NUM_STEPS = 1000


@dataclass
class DDPMPipelineOutput(ImagePipelineOutput):
    """What sampling returns.

    Attributes:
        images: in the output type asked for.
        intermediates: the steps that `return_intermediates` asked for, from noise to image.
    """

    images: OutputImages  # type: ignore[assignment]  # the parent's type leaves "pt" out
    intermediates: list[Intermediate] | None = None


class DDPMPipeline(Editing):
    """Unconditional and class-conditional sampling (DDPM, algorithm 2, or the pipeline's own scheduler).

    Saved folders name only diffusers' classes. Images and noise are float32 whatever the network's dtype.

    Args:
        unet: the network; a plain UNet2DModel becomes a DDPMUNet around the same parameters.
        scheduler: any of diffusers'; a plain DDPMScheduler becomes ddpm_hf's.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        seeds: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        sampler: str | None = None,
        callback_on_step_end: Callback | None = None,
        return_intermediates: int = 0,
    ) -> DDPMPipelineOutput | tuple[Any, ...]:
        """Draw images.

        Args:
            batch_size: number of images; None is one for each seed, generator or label given, else 1.
            generator: one for all images, or a list of one for each; then an image does not depend on its batch.
            num_inference_steps: in [1, T]; None is 1000, or T if that is less.
            output_type: "pil", or in [0, 1] "np" with channels last or "pt" with channels first.
            return_dict: False for a plain tuple.
            seeds: one for each image, instead of generators; the noise is then the same on every device.
            class_labels: one for all images or one for each; for a class-conditional network, whose images are of no
                class without.
            guidance_scale: w of classifier-free guidance, eps_none + w (eps_label - eps_none); 1 is no guidance. The
                network's last label is the one that stands for no class.
            sampler: one of `samplers.SAMPLERS` instead of the pipeline's own scheduler.
            callback_on_step_end: called with the pipeline, the step's index, its timestep, and `sample` (what the step
                made) and `pred_original_sample` in a dictionary; a `sample` in what it returns takes its place.
            return_intermediates: number of evenly spaced steps to return besides, the first and the last among them.

        Returns:
            The images, and the intermediates if any were asked for.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        request = self._check(batch_size, output_type, generator, seeds, class_labels, guidance_scale)
        if return_intermediates < 0:
            raise ValueError(f"return_intermediates is {return_intermediates}; possible is 0 or more")
        scheduler = self.scheduler if sampler is None else make_sampler(sampler, self.scheduler)
        T = scheduler.config.num_train_timesteps
        set_num_steps(scheduler, min(DEFAULT_NUM_STEPS, T) if num_inference_steps is None else num_inference_steps)
        x_T = self._noise(request)
        x_0, intermediates = self._denoise(x_T, scheduler, request, callback_on_step_end, return_intermediates)
        images = to_output(x_0, output_type)
        if return_dict:
            return DDPMPipelineOutput(images=images, intermediates=intermediates)
        return (images,) if intermediates is None else (images, intermediates)

    def to_json_string(self) -> str:
        """Write model_index.json in names that diffusers knows, without a path of the saver's own disk."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        config["_class_name"] = "DDPMPipeline"
        for name in ("unet", "scheduler"):
            stock_class = getattr(getattr(self, name), "stock_class", None)
            if stock_class is not None:
                config[name] = ["diffusers", stock_class]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save a folder that `DiffusionPipeline.from_pretrained` loads with or without ddpm_hf.

        Args:
            save_directory: made if it does not exist.
            args: diffusers' own.
            kwargs: diffusers' own.
        """
        network = getattr(self.unet, "_orig_mod", self.unet)
        if "_name_or_path" in network.config:
            network._internal_dict = FrozenDict({k: v for k, v in network.config.items() if k != "_name_or_path"})
        super().save_pretrained(save_directory, *args, **kwargs)
        for weights in Path(save_directory).glob("unet/*.safetensors"):
            weights.chmod(0o644)  # safetensors leaves them to their owner alone
        (Path(save_directory) / MANIFEST).unlink(missing_ok=True)  # of the pipeline that this one replaces
