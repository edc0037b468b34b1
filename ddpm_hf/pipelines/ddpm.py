"""DDPMPipeline: from noise to images with any UNet2DModel-like network and any diffusers scheduler."""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline as StockDDPMPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler as StockDDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ddpm_hf.models import DDPMUNet
from ddpm_hf.pipelines.editing import Editing
from ddpm_hf.pipelines.images import check_output_type, to_output
from ddpm_hf.pipelines.inpainting import Inpainting
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps
from ddpm_hf.schedulers import DDPMScheduler

Generators = torch.Generator | list[torch.Generator] | None
Labels = int | Sequence[int] | torch.Tensor | None
Callback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

DEFAULT_NUM_STEPS = 1000


@dataclass
class Intermediate:
    """Where a sampling run was at one of its steps.

    Attributes:
        timestep: t.
        x_t: what the network saw, (batch, channels, height, width), on the CPU.
        x_0: the image that it predicted then, in the same form.
    """

    timestep: int | float  # between two of them in some samplers
    x_t: torch.Tensor
    x_0: torch.Tensor


@dataclass
class DDPMPipelineOutput(ImagePipelineOutput):
    """What sampling returns.

    Attributes:
        images: in the output type asked for.
        intermediates: the steps that `return_intermediates` asked for, from noise to image.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor  # type: ignore[assignment]  # the parent's type leaves "pt" out
    intermediates: list[Intermediate] | None = None


class DDPMPipeline(Editing, Inpainting, StockDDPMPipeline):
    """Unconditional and class-conditional sampling (DDPM, algorithm 2, or the pipeline's own scheduler).

    Saved folders name only diffusers' classes. Images and noise are float32 whatever the network's dtype.

    Args:
        unet: the network; a plain UNet2DModel becomes a DDPMUNet around the same parameters.
        scheduler: any of diffusers'; a plain DDPMScheduler becomes ddpm_hf's.
    """

    unet: Any
    scheduler: Any

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin) -> None:
        super().__init__(_our_network(unet), _our_scheduler(scheduler))

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
            class_labels: one for all images or one for each; for a class-conditional network.
            guidance_scale: w of classifier-free guidance, eps_none + w (eps_label - eps_none); 1 is no guidance. The
                network's last class is the one that stands for no label.
            sampler: one of `samplers.SAMPLERS` instead of the pipeline's own scheduler.
            callback_on_step_end: called with the pipeline, the step's index, its timestep, and `sample` (what the step
                made) and `pred_original_sample` in a dictionary; a `sample` in what it returns takes its place.
            return_intermediates: number of evenly spaced steps to return besides, the first and the last among them.

        Returns:
            The images, and the intermediates if any were asked for.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        batch_size, generator = self._check_batch(batch_size, generator, seeds, class_labels)
        channels, *size = self._image_shape
        check_output_type(output_type, channels)
        if return_intermediates < 0:
            raise ValueError(f"return_intermediates is {return_intermediates}; possible is 0 or more")
        labels = self._check_labels(class_labels, batch_size, guidance_scale)
        scheduler = self.scheduler if sampler is None else self._sampler(sampler)
        T = scheduler.config.num_train_timesteps
        set_num_steps(scheduler, min(DEFAULT_NUM_STEPS, T) if num_inference_steps is None else num_inference_steps)
        noise = randn_tensor((batch_size, channels, *size), generator, self._execution_device, torch.float32)
        x_0, intermediates = self._denoise(
            noise,
            scheduler,
            generator=generator,
            labels=labels,
            guidance_scale=guidance_scale,
            callback=callback_on_step_end,
            num_intermediates=return_intermediates,
        )
        images = to_output(x_0, output_type)
        if return_dict:
            return DDPMPipelineOutput(images=images, intermediates=intermediates)
        return (images,) if intermediates is None else (images, intermediates)

    def _denoise(
        self,
        x_t: torch.Tensor,
        scheduler: Any,
        *,
        generator: Generators,
        labels: torch.Tensor | None,
        guidance_scale: float,
        callback: Callback | None = None,
        num_intermediates: int = 0,
    ) -> tuple[torch.Tensor, list[Intermediate] | None]:
        """Step x_t, as eq. 4 has it at the first of the scheduler's timesteps, down all of them."""
        timesteps = scheduler.timesteps
        x_t = x_t / scheduler.scale_model_input(torch.ones(1, device=x_t.device), timesteps[0])  # as it scales its x_t
        arguments = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        shown = set(np.linspace(0, len(timesteps) - 1, num_intermediates).round().astype(int).tolist())
        intermediates = []
        with self.sampling():
            for index, t in enumerate(self.progress_bar(timesteps)):
                x_in = scheduler.scale_model_input(x_t, t)
                output = self._predict(x_in, t, labels, guidance_scale, scheduler)
                x_t = scheduler.step(output, t, x_t, **arguments).prev_sample
                if index in shown:
                    x_0 = _predicted_x_0(scheduler, x_in, output, t)
                    intermediates.append(Intermediate(t.item(), x_in.cpu(), x_0.cpu()))
                if callback is not None:
                    state = {"sample": x_t, "pred_original_sample": _predicted_x_0(scheduler, x_in, output, t)}
                    x_t = (callback(self, index, t, state) or state).get("sample", x_t)
        return x_t, intermediates if num_intermediates else None

    def _predict(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float, scheduler: Any
    ) -> torch.Tensor:
        """Ask the network, with classifier-free guidance (Ho and Salimans, eq. 6) where it is wanted."""
        inputs = x_t.to(self.unet.dtype)
        if labels is None:
            output = self.unet(inputs, t).sample.float()
        elif guidance_scale == 1:
            output = self.unet(inputs, t, class_labels=labels).sample.float()
        else:
            none = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
            both = self.unet(torch.cat([inputs, inputs]), t, class_labels=torch.cat([labels, none])).sample.float()
            with_label, without = both.chunk(2)
            output = without + guidance_scale * (with_label - without)
            output[:, x_t.shape[1] :] = with_label[:, x_t.shape[1] :]  # a learned variance is not guided
        # Only ancestral sampling has a use for a learned variance.
        takes_variance = isinstance(scheduler, StockDDPMScheduler) and scheduler.variance_type.startswith("learned")
        return output if takes_variance else output[:, : x_t.shape[1]]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Have the network ready for many passes without gradients, and each of its modules back as it was after them.

        It is in evaluation mode, and if it is ddpm_hf's, on a CPU, with weights laid out once for all (see
        `DDPMUNet.prepacked`), which must not change meanwhile.
        """
        modes = [(module, module.training) for module in self.unet.modules()]
        self.unet.eval()
        try:
            with getattr(type(self.unet), "prepacked", nullcontext)(self.unet):
                yield
        finally:
            for module, training in modes:
                module.training = training
            self.maybe_free_model_hooks()

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError(
                "the network's config has no sample_size; set one: unet.register_to_config(sample_size=32)"
            )
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def _sampler(self, name: str) -> Any:
        return _our_scheduler(make_sampler(name, self.scheduler))

    @staticmethod
    def _check_batch(
        batch_size: int | None, generator: Generators, seeds: Sequence[int] | None, class_labels: Labels
    ) -> tuple[int, Generators]:
        """The number of images that all arguments agree on, and their generators."""
        if seeds is not None:
            if generator is not None:
                raise ValueError("both seeds and generator were given; give one of them")
            generator = _generators(seeds)
        given = generator if isinstance(generator, list) else [generator]
        if not all(each is None or isinstance(each, torch.Generator) for each in given):
            raise ValueError(f"generator is {generator}; possible are a torch.Generator, a list of them, or seeds=[…]")
        counts = {"generator" if seeds is None else "seeds": len(generator)} if isinstance(generator, list) else {}
        if class_labels is not None and np.ndim(class_labels):
            counts["class_labels"] = len(class_labels)  # type: ignore[arg-type]  # a row of them
        if batch_size is None:
            batch_size = next(iter(counts.values()), 1)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; possible is 1 or more")
        for name, count in counts.items():
            if count != batch_size:
                raise ValueError(
                    f"{count} {name} for {batch_size} images; give one for each image, or change batch_size"
                )
        return batch_size, generator

    def _check_labels(self, class_labels: Labels, batch_size: int, guidance_scale: float) -> torch.Tensor | None:
        """Labels as a tensor of one for each image."""
        num_classes = self.unet.config.num_class_embeds
        if class_labels is None:
            if num_classes is not None:
                raise ValueError(f"the model is class-conditional: give class_labels, each from 0 to {num_classes - 1}")
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale is {guidance_scale}, but there are no class_labels; leave it at 1")
            return None
        if num_classes is None:
            raise ValueError("class_labels were given, but the model is unconditional; leave them out")
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        whole = not (labels.is_floating_point() or labels.dtype == torch.bool)
        if not whole or labels.ndim > 1 or not bool(((labels >= 0) & (labels < num_classes)).all()):
            raise ValueError(f"class_labels are {labels.tolist()}; possible are 0 to {num_classes - 1}")
        if labels.ndim == 1 and len(labels) != batch_size:
            raise ValueError(f"{len(labels)} class_labels for {batch_size} images; give one for all or one for each")
        if not np.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale}; possible is any finite number")
        return labels.expand(batch_size)

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


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    try:
        return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
    except (TypeError, ValueError, RuntimeError):  # not a row, not a number, beyond 64 bits
        raise ValueError(
            f"seeds is {seeds}; possible is a list of whole numbers of 64 bits, one for each image"
        ) from None


def _our_network(unet: Any) -> Any:
    """ddpm_hf's network around the parameters of a stock one, where it can express that."""
    try:
        return DDPMUNet.from_stock(unet) if type(unet) is UNet2DModel else unet
    except ValueError:  # a stock network with blocks that DDPM's has not
        return unet


def _our_scheduler(scheduler: Any) -> Any:
    """ddpm_hf's scheduler of the same config."""
    return DDPMScheduler.from_config(scheduler.config) if type(scheduler) is StockDDPMScheduler else scheduler


def _predicted_x_0(scheduler: Any, x_t: torch.Tensor, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The image that the network's output at x_t implies (DDPM, eq. 15), clipped as the scheduler clips it."""
    variances = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt().cpu().numpy()
    sigma = float(np.interp(float(t), np.arange(len(variances)), variances))  # some schedulers stop between timesteps
    signal, noise = (1 + sigma**2) ** -0.5, (1 + sigma**-2) ** -0.5
    output = output[:, : x_t.shape[1]]
    x_0 = {
        "epsilon": lambda: (x_t - noise * output) / signal,
        "sample": lambda: output,
        "v_prediction": lambda: signal * x_t - noise * output,
    }[scheduler.config.prediction_type]()
    clips = scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False)
    limit = scheduler.config.get("clip_sample_range", 1.0)
    return x_0.clamp(-limit, limit) if clips else x_0
