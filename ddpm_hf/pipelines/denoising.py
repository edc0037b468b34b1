"""What all sampling methods share: checks of arguments, the loop over timesteps, and the network's prediction."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from traceback import walk_stack
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline as StockDDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler as StockDDPMScheduler

from ddpm_hf.models import DDPMUNet
from ddpm_hf.models.checks import UnsupportedError
from ddpm_hf.pipelines.images import Images, check_output_type, to_input
from ddpm_hf.pipelines.samplers import process_of
from ddpm_hf.runtime.randomness import draw_normal
from ddpm_hf.runtime.stock import StockOnDisk
from ddpm_hf.schedulers import DDPMScheduler, DiffusionProcess
from ddpm_hf.schedulers.process import check_betas

Generators = torch.Generator | list[torch.Generator] | None
Labels = int | Sequence[int] | torch.Tensor | None
Callback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


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


@dataclass(frozen=True)
class Request:
    """The arguments that all sampling methods share, checked.

    Attributes:
        num_images: size of the batch.
        generator: one for all images, or a list of one for each.
        labels: (num_images,), the last that the network has for no class; None for an unconditional model.
        guidance_scale: w of classifier-free guidance; 1 is none.
    """

    num_images: int
    generator: Generators
    labels: torch.Tensor | None
    guidance_scale: float


class DenoisingPipeline(StockDDPMPipeline):
    """A network and a scheduler that denoise; `Editing` and `DDPMPipeline` add what a user calls."""

    unet: Any
    scheduler: Any

    # `from_pipe` takes only networks of exactly the classes that are named here
    def __init__(self, unet: ModelMixin | UNet2DModel | DDPMUNet, scheduler: Any) -> None:
        network: Any = unet
        if type(unet) is UNet2DModel:
            with suppress(UnsupportedError):  # a stock network with blocks that DDPM's has not stays as it is
                network = DDPMUNet.from_stock(unet)
        if type(scheduler) is StockDDPMScheduler:
            scheduler = DDPMScheduler.from_config(scheduler.config)
        elif hasattr(scheduler, "betas"):
            check_betas(scheduler.betas)
        super().__init__(network, scheduler)

    @property
    def components(self) -> dict[str, Any]:
        """The network and the scheduler, as the arguments of a pipeline.

        `from_pipe` gets stock ones around the same parameters: stock pipelines take no others, and what they save names
        their classes. It has no other way to say so. All else (offloading, say) needs the network that runs here.
        """
        components = super().components
        if not any(frame.f_code.co_name == "from_pipe" for frame, _ in walk_stack(None)):
            return components
        return {
            name: component.to_stock() if isinstance(component, StockOnDisk) else component
            for name, component in components.items()
        }

    def _denoise(
        self,
        x_t: torch.Tensor,
        scheduler: Any,
        request: Request,
        callback: Callback | None = None,
        num_intermediates: int = 0,
    ) -> tuple[torch.Tensor, list[Intermediate] | None]:
        """Step x_t, as eq. 4 has it at the first of the scheduler's timesteps, down all of them.

        Returns:
            x_0, and the intermediates if any were asked for.
        """
        timesteps = scheduler.timesteps
        # from variance 1, as in eq. 4, to the scale of the scheduler's own x_t
        x_t = x_t / scheduler.scale_model_input(torch.ones(1, device=x_t.device), timesteps[0])
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        arguments = {"generator": request.generator} if takes_generator else {}
        shown = set(np.linspace(0, len(timesteps) - 1, num_intermediates).round().astype(int).tolist())
        process = process_of(scheduler) if shown or callback is not None else None  # which not every scheduler has
        intermediates = []
        with self.sampling():
            for index, t in enumerate(self.progress_bar(timesteps)):
                x_in = scheduler.scale_model_input(x_t, t)
                output = self._predict(x_in, t, scheduler, request)
                step = scheduler.step(output, t, x_t, **arguments)
                x_t = step.prev_sample
                if process is None or (callback is None and index not in shown):
                    continue
                x_0 = _predicted_x_0(scheduler, process, step, x_in, output, t)
                if index in shown:
                    intermediates.append(Intermediate(t.item(), x_in.cpu(), x_0.cpu()))
                if callback is not None:
                    state = {"sample": x_t, "pred_original_sample": x_0}
                    x_t = (callback(self, index, t, state) or state).get("sample", x_t)
        return x_t, intermediates if num_intermediates else None

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor, scheduler: Any, request: Request) -> torch.Tensor:
        """Run the network, with classifier-free guidance (Ho and Salimans, eq. 6) where guidance_scale is not 1."""
        inputs, labels, guidance_scale = x_t.to(self.unet.dtype), request.labels, request.guidance_scale
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
        """Prepare the network for many passes without gradients; restore the mode of each of its modules afterwards.

        It is in evaluation mode. If it is ddpm_hf's, its weights are laid out once for all on a CPU, and its passes are
        replayed as CUDA graphs on a GPU (see `DDPMUNet.prepared`); the weights must not change meanwhile. Contexts may
        be nested: batches that are drawn within one share what it has prepared.
        """
        modes = [(module, module.training) for module in self.unet.modules()]
        self.unet.eval()
        try:
            with getattr(type(self.unet), "prepared", nullcontext)(self.unet):
                yield
        finally:
            for module, training in modes:
                module.training = training
            self.maybe_free_model_hooks()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's images."""
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError(
                "the network's config has no sample_size; set one: unet.register_to_config(sample_size=32)"
            )
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def _input(self, images: Images) -> torch.Tensor:
        channels, height, width = self.image_shape
        return to_input(images, channels, (height, width)).to(self._execution_device)

    def _noise(self, request: Request) -> torch.Tensor:
        shape = (request.num_images, *self.image_shape)
        return draw_normal(shape, request.generator, self._execution_device)

    def _check(
        self,
        batch_size: int | None,
        output_type: str | None = "pt",
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
    ) -> Request:
        """Check the arguments that the sampling methods share; see `DDPMPipeline.__call__` for what they are.

        Raises:
            ValueError: one of them is not possible for this model, or they disagree about the number of images.
        """
        check_output_type(output_type, self.image_shape[0])
        if seeds is not None:
            if generator is not None:
                raise ValueError("both seeds and generator were given; give one of them")
            generator = make_generators(seeds)
        each = generator if isinstance(generator, list) else [generator]
        if not all(one is None or isinstance(one, torch.Generator) for one in each):
            raise ValueError(f"generator is {generator}; possible are a torch.Generator, a list of them, or seeds=[…]")
        if batch_size is None:
            one_each = generator if isinstance(generator, list) else class_labels
            batch_size = len(one_each) if np.ndim(one_each) else 1  # type: ignore[arg-type]  # a row of them
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; possible is 1 or more")
        if isinstance(generator, list) and len(generator) != batch_size:
            given = f"{len(generator)} {'generator' if seeds is None else 'seeds'}"
            raise ValueError(f"{given} for {batch_size} images; give one for each image, or change batch_size")
        labels = self._check_labels(class_labels, batch_size, guidance_scale)
        return Request(batch_size, generator, labels, guidance_scale)

    def _check_labels(self, class_labels: Labels, batch_size: int, guidance_scale: float) -> torch.Tensor | None:
        """Labels as a tensor of one for each image."""
        num_labels = self.unet.config.num_class_embeds
        if class_labels is None:
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale is {guidance_scale}, but there are no class_labels; leave it at 1")
            if num_labels is None:
                return None
            return torch.full((batch_size,), num_labels - 1, device=self._execution_device)  # which stands for no class
        if num_labels is None:
            raise ValueError("class_labels were given, but the model is unconditional; leave them out")
        num_classes = num_labels - 1
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        are_integers = not (labels.is_floating_point() or labels.dtype == torch.bool)
        if not are_integers or labels.ndim > 1 or not bool(((labels >= 0) & (labels < num_classes)).all()):
            raise ValueError(
                f"class_labels are {labels.tolist()}; possible are 0 to {num_classes - 1}, or none of them for no class"
            )
        if labels.ndim == 1 and len(labels) != batch_size:
            raise ValueError(f"{len(labels)} class_labels for {batch_size} images; give one for all or one for each")
        if not np.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale}; possible is any finite number")
        return labels.expand(batch_size)


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make a generator of each seed, on the CPU, so that the noise is the same on every device.

    Raises:
        ValueError: the seeds are not whole numbers of 64 bits.
    """
    try:
        return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
    except (TypeError, ValueError, RuntimeError):  # not a row, not a number, beyond 64 bits
        raise ValueError(
            f"seeds is {seeds}; possible is a list of whole numbers of 64 bits, one for each image"
        ) from None


def _predicted_x_0(
    scheduler: Any, process: DiffusionProcess, step: Any, x_t: torch.Tensor, output: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """The x_0 that a step of the scheduler uses, clipped as the scheduler clips it."""
    x_0 = getattr(step, "pred_original_sample", None)
    # In units of sigma, which may be 20,000, the subtraction that gives x_0 has lost its digits.
    in_sigmas = float(scheduler.init_noise_sigma) != 1
    if x_0 is None or (in_sigmas and float(t).is_integer()):
        prediction, timesteps = output[:, : x_t.shape[1]], torch.tensor([round(float(t))])
        x_0 = process.predict_x_0(prediction, x_t, timesteps, scheduler.config.prediction_type)
    clips = scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False)
    limit = scheduler.config.get("clip_sample_range", 1.0)
    return x_0.clamp(-limit, limit) if clips else x_0
