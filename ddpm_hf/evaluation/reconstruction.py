"""SSIM and PSNR where they mean something: on reconstructions of held-out images, pair by pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ddpm_hf.evaluation.progress import bar
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import from_uint8, to_uint8
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.randomness import derive_seed

Images = UInt8[Tensor, "batch channels height width"]
PerImage = Float64[Tensor, " batch"]

DATA_RANGE = 1.0
"""Of the images that are compared: 8 bits, scaled to [0, 1]."""

SSIM_WINDOW = "Gaussian, 11x11, sigma 1.5, mirrored borders"
MIN_SSIM_SIDE = 6
"""Smaller images cannot be mirrored far enough for the window."""

MAX_DDIM_STEPS = 100


@dataclass(frozen=True)
class Reconstructions:
    """Held-out images after one way there and back.

    Attributes:
        method: what was done to them, in words.
        timestep: how far they were noised.
        num_inference_steps: of the way back.
        images: in the order of the originals.
        is_encoded: whether the way there was DDIM's, without noise.
    """

    method: str
    timestep: int
    num_inference_steps: int
    images: Images
    is_encoded: bool = False


def ssim(images: Images, originals: Images) -> PerImage:
    """Structural similarity of each pair (Wang et al. 2004), by torchmetrics; at least 6 pixels a side."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = images.double() / 255, originals.double() / 255
    return structural_similarity_index_measure(one, other, data_range=DATA_RANGE, reduction=None)  # type: ignore[return-value]


def psnr(images: Images, originals: Images) -> PerImage:
    """Peak signal-to-noise ratio of each pair in dB, by torchmetrics; infinite where they are equal."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    one, other = images.double() / 255, originals.double() / 255
    return peak_signal_noise_ratio(one, other, data_range=DATA_RANGE, reduction=None, dim=(1, 2, 3))


def reconstruct_all(
    pipeline: DDPMPipeline,
    originals: Images,
    class_labels: Sequence[int] | None,
    levels: Sequence[float],
    num_inference_steps: int,
    seed: int,
    batch_size: int,
) -> list[Reconstructions]:
    """Noise images to each level and denoise them by ancestral sampling; and encode and decode them by DDIM.

    The noise itself, without a network, is the measure of what there was to win: the noised image scaled back.

    Args:
        pipeline: of the model.
        originals: held-out images.
        class_labels: theirs, for a class-conditional model.
        levels: shares of the T time steps, in (0, 1).
        num_inference_steps: of a whole sampling run; a level takes its share of them.
        seed: of the noise.
        batch_size: images at a time.
    """
    T = pipeline.scheduler.config.num_train_timesteps
    pipeline.set_progress_bar_config(disable=True)
    batches = [range(at, min(at + batch_size, len(originals))) for at in range(0, len(originals), batch_size)]
    chunks = Chunks("reconstructing")
    seeds = [derive_seed(seed, "reconstruction", index) for index in range(len(originals))]
    found = []
    top, ddim_steps = ddim_range(pipeline, num_inference_steps)
    with bar(len(batches) * (len(levels) + 1), "reconstructions", "batch", delay=0) as progress:

        def over_chunks(one: Callable[[range, Tensor, list[int] | None], Tensor]) -> Images:
            def work(part: range) -> Images:
                labels = None if class_labels is None else list(class_labels[part.start : part.stop])
                pixels = originals[part.start : part.stop].float() / 255
                return to_uint8(one(part, pixels, labels).nan_to_num(0.0), (0, 1)).cpu()

            made: list[Images] = []
            for batch in batches:
                made += chunks(batch, work)
                progress.update()
            return torch.cat(made)

        for level in levels:
            t = min(max(round(level * T), 1), T) - 1
            steps = min(max(round(num_inference_steps * (t + 1) / T), 1), t + 1)

            def denoise(part: range, pixels: Tensor, labels: Any, t: int = t, steps: int = steps) -> Tensor:
                return pipeline.reconstruct(
                    pixels, t, None, steps, "pt", seeds=seeds[part.start : part.stop], class_labels=labels
                )

            found.append(Reconstructions(f"noised to t = {t} and denoised", t, steps, over_chunks(denoise)))

        def there_and_back(part: range, pixels: Tensor, labels: Any) -> Tensor:
            latents = pipeline.encode(pixels, ddim_steps, top, labels)
            return pipeline.decode(latents, ddim_steps, top, labels, "pt")

        method = f"encoded by DDIM to t = {top} and decoded"
        found.append(Reconstructions(method, top, ddim_steps, over_chunks(there_and_back), True))
    return found


def ddim_range(pipeline: DDPMPipeline, num_inference_steps: int) -> tuple[int, int]:
    """The highest timestep that DDIM encodes to by default, and the steps that DDIM takes down from there.

    Args:
        pipeline: of the model.
        num_inference_steps: of a whole sampling run.
    """
    top = pipeline.last_with_signal()
    return top, min(num_inference_steps, MAX_DDIM_STEPS, top + 1)


def noised(pipeline: DDPMPipeline, originals: Images, timestep: int, seed: int) -> Images:
    """x_t / sqrt(alpha_bar_t): what one has of the images at t without any network.

    Args:
        pipeline: of the model.
        originals: held-out images.
        timestep: t, in [0, T).
        seed: of the noise.
    """
    alpha_bar = max(float(pipeline.scheduler.alphas_cumprod.double()[timestep]), 1e-12)
    seeds = [derive_seed(seed, "reconstruction", index) for index in range(len(originals))]
    shape = originals.shape[1:]
    eps = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in seeds])
    x_0 = from_uint8(originals, torch.float64)
    x_t = x_0 + ((1 - alpha_bar) / alpha_bar) ** 0.5 * eps
    return to_uint8(((x_t + 1) / 2).clamp(0, 1), (0, 1))
