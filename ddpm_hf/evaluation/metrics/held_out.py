"""Metrics of held-out images: SSIM and PSNR of reconstructions, bits per dimension, and baselines of all three."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from ddpm_hf.config.benchmark import BenchmarkMetrics
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.feature_store import progress_bar
from ddpm_hf.evaluation.report import Baseline, MetricValue, Reconstruction
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import from_uint8, to_uint8
from ddpm_hf.pipelines.sampling import show_steps
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.randomness import derive_seed, generator_at
from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.schedulers.likelihood import variational_bound

Images = UInt8[Tensor, "batch channels height width"]
PerImage = Float64[Tensor, " batch"]

DATA_RANGE = 1.0
"""Of SSIM and PSNR: 8-bit images, scaled to [0, 1]."""

MIN_SSIM_SIDE = 6
"""Of images in pixels: SSIM's 11x11 Gaussian window mirrors the borders, and smaller images are too small for that."""

MAX_DDIM_STEPS = 100
NUM_LEVELS = 256
MAX_TRAINING_IMAGES = 10_000
MAX_BINS = 4_000_000
"""Counts of levels in memory at a time."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out images of an evaluation, the same ones for every model.

    Attributes:
        images: some of the split, in a fixed random order.
        labels: their classes, for a class-conditional model.
        others: indices of the rest of the split, likewise in random order.
    """

    images: Images
    labels: list[int] | None
    others: Int64[Tensor, " others"]

    @classmethod
    def choose(cls, images: ImageSet, count: int, conditional: bool) -> "HeldOut":
        """Choose images of a split.

        Args:
            images: the split.
            count: at most so many.
            conditional: whether the model needs their classes.
        """
        shuffled = torch.randperm(len(images), generator=generator_at(0, "held-out images"))
        order = shuffled[:count]
        labels = images.labels[order].tolist() if conditional and images.labels is not None else None
        return cls(images.images[order], labels, shuffled[count:])


def ssim(images: Images, originals: Images) -> PerImage:
    """Structural similarity of each pair (Wang et al. 2004), by torchmetrics; at least 6 pixels a side."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    one, other = images.double() / 255, originals.double() / 255
    return structural_similarity_index_measure(one, other, data_range=DATA_RANGE, reduction=None)  # type: ignore[return-value]


def psnr(images: Images, originals: Images) -> PerImage:
    """Peak signal-to-noise ratio of each pair in dB, by torchmetrics; infinite for equal images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # takes seconds to import

    one, other = images.double() / 255, originals.double() / 255
    return peak_signal_noise_ratio(one, other, data_range=DATA_RANGE, reduction=None, dim=(1, 2, 3))


def reconstruction_methods(
    pipeline: DDPMPipeline, num_images: int, levels: Sequence[float], num_inference_steps: int
) -> list[Reconstruction]:
    """How held-out images are reconstructed: by ancestral sampling from noise at each level, and last by DDIM.

    Args:
        pipeline: of the model.
        num_images: held-out images.
        levels: fractions of the T timesteps, in (0, 1).
        num_inference_steps: of sampling from pure noise; a level takes its share of them.

    Returns:
        The rows of the report, in which SSIM and PSNR are still missing.
    """
    T, rows = pipeline.scheduler.config.num_train_timesteps, []
    for level in levels:
        t = min(max(round(level * T), 1), T) - 1
        steps = min(max(round(num_inference_steps * (t + 1) / T), 1), t + 1)
        rows.append((f"noised to t = {t} and denoised", t, steps))
    top, steps = ddim_range(pipeline, num_inference_steps)
    rows.append((f"encoded by DDIM to t = {top} and decoded", top, steps))
    return [
        Reconstruction(method=method, timestep=t, num_inference_steps=steps, num_images=num_images)
        for method, t, steps in rows
    ]


def reconstruct(
    pipeline: DDPMPipeline, held_out: HeldOut, methods: list[Reconstruction], seed: int, batch_size: int
) -> dict[str, Images]:
    """Encode and decode held-out images.

    Args:
        pipeline: of the model.
        held_out: the originals.
        methods: of `reconstruction_methods`.
        seed: of the noise.
        batch_size: images at a time.

    Returns:
        The images by the number of the method, as text.
    """
    originals, chunks = held_out.images, Chunks("reconstructing")
    show_steps(pipeline, quiet=not cli.is_main_process())
    batches = [range(at, min(at + batch_size, len(originals))) for at in range(0, len(originals), batch_size)]
    seeds = _noise_seeds(seed, len(originals))

    def decode(method: Reconstruction, chunk: range) -> Images:
        part, t, steps = slice(chunk.start, chunk.stop), method.timestep, method.num_inference_steps
        labels = None if held_out.labels is None else held_out.labels[part]
        pixels: Any = originals[part].float() / 255
        if method is methods[-1]:
            decoded: Any = pipeline.decode(pipeline.encode(pixels, steps, t, labels), steps, t, labels, "pt")
        else:
            decoded = pipeline.reconstruct(pixels, t, None, steps, "pt", seeds=seeds[part], class_labels=labels)
        return to_uint8(decoded.nan_to_num(0.0), (0, 1)).cpu()

    found = {}
    with progress_bar(len(batches) * len(methods), "reconstructions", "batch", delay=0) as progress:
        for number, method in enumerate(methods):
            images: list[Images] = []
            for batch in batches:
                images += chunks(batch, partial(decode, method))
                progress.update()
            found[str(number)] = torch.cat(images)
    return found


def measure_reconstructions(
    pipeline: DDPMPipeline,
    held_out: HeldOut,
    methods: list[Reconstruction],
    images: list[Images],
    seed: int,
    wanted: BenchmarkMetrics,
) -> list[Reconstruction]:
    """SSIM and PSNR of each method, and of the noised images that it started from.

    Args:
        pipeline: that made the reconstructions.
        held_out: the originals.
        methods: of `reconstruction_methods`.
        images: the reconstructions by each method.
        seed: of their noise.
        wanted: whether SSIM and PSNR are.
    """
    rows, originals = [], held_out.images
    for method, reconstructed in zip(methods, images, strict=True):
        start = None if method is methods[-1] else noised(pipeline, originals, method.timestep, seed)
        values: dict[str, Any] = {}
        for name in (name for name in ("ssim", "psnr") if getattr(wanted, name)):
            values[name] = _mean_of_pairs(name, reconstructed, originals)
            if start is not None:
                values[f"{name}_without_network"] = _mean_of_pairs(name, start, originals).value
        rows.append(replace(method, **values))
    return rows


def ddim_range(pipeline: DDPMPipeline, num_inference_steps: int) -> tuple[int, int]:
    """The highest timestep that DDIM encodes to by default, and the number of DDIM steps from there.

    Args:
        pipeline: of the model.
        num_inference_steps: of sampling from pure noise.
    """
    top = pipeline.last_with_signal()
    return top, min(num_inference_steps, MAX_DDIM_STEPS, top + 1)


def noised(pipeline: DDPMPipeline, originals: Images, timestep: int, seed: int) -> Images:
    """x_t / sqrt(alpha_bar_t): the best that is known of the images at t without a network.

    Args:
        pipeline: of the model.
        originals: held-out images.
        timestep: t, in [0, T).
        seed: of the noise.
    """
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(each) for each in _noise_seeds(seed, len(originals))]
    eps = torch.stack([torch.randn(originals.shape[1:], generator=generator) for generator in generators])
    x_0 = from_uint8(originals, torch.float64)
    x_t = scheduler.add_noise(x_0, eps.double(), torch.full((len(originals),), timestep))
    alpha_bar = max(float(scheduler.alphas_cumprod[timestep]), 1e-12)
    return to_uint8((x_t / alpha_bar**0.5).clamp(-1, 1), (-1, 1))


def bits_per_dim(
    pipeline: DDPMPipeline, held_out: HeldOut, num_timesteps: int | None, seed: int, batch_size: int
) -> MetricValue:
    """The variational bound on the negative log-likelihood of images, in bits per dimension (DDPM, eq. 5).

    Args:
        pipeline: of the model; whatever its scheduler, the bound is that of DDPM with the same betas.
        held_out: the images.
        num_timesteps: network evaluations of each image, from 3, and T at most; None is T.
        seed: of timesteps and noise.
        batch_size: images at a time.

    Returns:
        Mean and standard deviation over the images.
    """
    scheduler, images = DDPMScheduler.from_config(pipeline.scheduler.config), held_out.images
    T = scheduler.config.num_train_timesteps
    if T < 3:
        return MetricValue(None, None, f"not computed: the bound needs 3 timesteps, the model has {T}")
    num_timesteps = T if num_timesteps is None else min(num_timesteps, T)
    device, network = pipeline.device, pipeline.unet
    labels = None if held_out.labels is None else torch.tensor(held_out.labels, device=device)

    def bound(chunk: range) -> Float32[Tensor, " chunk"]:
        x_0 = from_uint8(images[chunk.start : chunk.stop]).to(device)
        arguments = {} if labels is None else {"class_labels": labels[chunk.start : chunk.stop]}

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            output = network(x_t.to(network.dtype), t, **arguments).sample.float()
            progress.update(len(x_t))
            return output

        seeds = [derive_seed(seed, "bits per dim", index) for index in chunk]
        return variational_bound(predict, scheduler, x_0, seeds, num_timesteps).total.float().cpu()

    chunks, bits = Chunks("measuring the likelihood of"), list[Tensor]()
    num_passes = len(images) * num_timesteps
    with pipeline.sampling(), progress_bar(num_passes, "likelihood", "pass", delay=0) as progress:
        for start in range(0, len(images), batch_size):
            batch = range(start, min(start + batch_size, len(images)))
            bits += chunks(batch, bound)
    return _mean(torch.cat(bits), "bits", "the network's output is not finite")


def measure_baselines(
    held_out: HeldOut, training: Images, wanted: BenchmarkMetrics, kind: str = "held-out images"
) -> list[Baseline]:
    """The metrics of held-out images without any model.

    Args:
        held_out: the images.
        training: other images of the same kind.
        wanted: which metrics are.
        kind: of the images, for a person; "training images" if the model has seen them.
    """
    values = unrelated_pairs(held_out.images) if wanted.ssim or wanted.psnr else {}
    what = f"each of {len(held_out.images)} {kind} and another one of them"
    rows = [
        Baseline(name=name.upper(), what=what, better="higher", value=value)
        for name, value in values.items()
        if getattr(wanted, name)
    ]
    if not wanted.bits_per_dim:
        return rows
    rows.append(Baseline(name="bits/dim", what="all levels equally likely", better="lower", value=8.0))
    if len(training):
        order = torch.randperm(len(training), generator=generator_at(0, "histograms"))
        chosen = training[order[:MAX_TRAINING_IMAGES].sort().values]
        bits = _mean(histogram_bits(chosen, held_out.images), "bits", "")
        what = f"a coder that knows how often each pixel has each level in {len(chosen):,} other training images"
        rows.append(Baseline(name="bits/dim", what=what, better="lower", value=bits.value, std=bits.std))
    return rows


def unrelated_pairs(originals: Images) -> dict[str, float]:
    """Mean SSIM and PSNR of each real image and another one: realistic images that share nothing with the original.

    Args:
        originals: in random order; each is compared with the next one, the last with the first.

    Returns:
        "ssim" and "psnr" in dB, unless the value is infinite, or the images are too few or too small.
    """
    if len(originals) < 2:
        return {}
    others = originals.roll(1, 0)
    found = {name: _mean_of_pairs(name, others, originals).value for name in ("ssim", "psnr")}
    return {name: value for name, value in found.items() if value is not None}


def histogram_bits(
    training: UInt8[Tensor, "others channels height width"], images: Images
) -> Float64[Tensor, " batch"]:
    """Bits per dimension of a coder that knows how often each pixel has each level, but no dependence between pixels.

    Each pixel is coded with probability (count + 1/256) / (images + 1), as if one more training image had all levels
    equally. Without any training images that is 8 bits.

    Args:
        training: at least 1 image.
        images: to be coded; none of them should be a training image.
    """
    known, coded = training.flatten(1), images.flatten(1).long()
    num_pixels, bits = known.shape[1], torch.zeros(len(images), dtype=torch.float64)
    for start in range(0, num_pixels, MAX_BINS // NUM_LEVELS):
        part = slice(start, start + MAX_BINS // NUM_LEVELS)
        bins = torch.arange(known[:1, part].shape[1]) * NUM_LEVELS
        counts = torch.zeros(len(bins) * NUM_LEVELS, dtype=torch.float64)
        for block in known.split(512):
            counts += torch.bincount((block[:, part].long() + bins).flatten(), minlength=len(counts))
        probabilities = (counts + 1 / NUM_LEVELS) / (len(known) + 1)
        bits -= probabilities.log2()[coded[:, part] + bins].sum(1)
    return bits / num_pixels


def _noise_seeds(seed: int, count: int) -> list[int]:
    return [derive_seed(seed, "reconstruction", index) for index in range(count)]


def _mean_of_pairs(name: str, images: Images, originals: Images) -> MetricValue:
    side = min(images.shape[2:])
    if name == "ssim" and side < MIN_SSIM_SIDE:
        problem = f"not computed: SSIM's window needs {MIN_SSIM_SIDE} pixels a side, there are {side}"
        return MetricValue(None, None, problem)
    values = (ssim if name == "ssim" else psnr)(images, originals)
    num_exact, others = int(values.isinf().sum()), values[values.isfinite()]
    rest = f", the mean of the others is {float(others.mean()):.4g} dB" if len(others) else ""
    return _mean(values, name.upper(), f"{num_exact} of {len(values)} images are reproduced exactly{rest}")


def _mean(values: Float[Tensor, " images"], name: str, cause: str) -> MetricValue:
    values = values.double()
    if num_lost := int(values.isnan().sum()):
        return MetricValue(None, None, f"NaN: {num_lost} of {len(values)} images have no {name}; {cause}")
    std = float(values.std()) if len(values) > 1 else None
    return MetricValue(float(values.mean()), std).or_problem(cause)
