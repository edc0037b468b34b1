"""What an evaluation measures on held-out images: reconstructions pair by pair, and bits per dimension."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_hf.config.benchmark import BenchmarkMetrics
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.baselines import MAX_TRAINING_IMAGES, histogram_bits, unrelated_pairs
from ddpm_hf.evaluation.likelihood import bits_per_dim
from ddpm_hf.evaluation.plan import Plan
from ddpm_hf.evaluation.reconstruction import MIN_SSIM_SIDE, Reconstructions, noised, psnr, reconstruct_all, ssim
from ddpm_hf.evaluation.report import Baseline, MetricValue, Reconstruction
from ddpm_hf.evaluation.scoring import kept
from ddpm_hf.runtime.files import atomic_write
from ddpm_hf.runtime.randomness import generator_at

Images = UInt8[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class HeldOut:
    """The held-out images of an evaluation, the same ones for every model.

    Attributes:
        images: some of the split, in a fixed random order.
        labels: their classes, for a class-conditional model.
        others: the numbers of the rest of the split, likewise in a random order.
    """

    images: Images
    labels: list[int] | None
    others: Int64[Tensor, " others"]

    @classmethod
    def choose(cls, images: ImageSet, count: int, conditional: bool) -> "HeldOut":
        """Take some images of a split.

        Args:
            images: the split.
            count: at most so many.
            conditional: whether the model wants to know their classes.
        """
        shuffled = torch.randperm(len(images), generator=generator_at(0, "held-out images"))
        order = shuffled[:count]
        labels = images.labels[order].tolist() if conditional and images.labels is not None else None
        return cls(images.images[order], labels, shuffled[count:])


def reconstructions_of(plan: Plan, held_out: HeldOut) -> list[Reconstructions]:
    """Reconstruct the held-out images, or read what an earlier call left in the folder of the evaluation."""
    file = plan.folder / "reconstructions.safetensors"
    try:
        with safe_open(file, framework="pt") as stored:
            ways = json.loads(stored.metadata()["methods"])
            return [Reconstructions(**way, images=stored.get_tensor(str(at))) for at, way in enumerate(ways)]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass
    benchmark = plan.benchmark
    found = reconstruct_all(
        plan.pipeline,
        held_out.images,
        held_out.labels,
        benchmark.reconstruction_levels,
        plan.drawing.num_inference_steps,
        plan.drawing.seed,
        benchmark.batch_size,
    )
    ways = [{name: value for name, value in vars(each).items() if name != "images"} for each in found]
    with atomic_write(file) as aside:
        save_file({str(at): each.images for at, each in enumerate(found)}, aside, {"methods": json.dumps(ways)})
    return found


def measure_reconstructions(
    found: list[Reconstructions], held_out: HeldOut, plan: Plan, wanted: BenchmarkMetrics
) -> list[Reconstruction]:
    """SSIM and PSNR of each method, and of the noised images that it started from."""
    rows = []
    for each in found:
        start = None
        if not each.is_encoded:
            start = noised(plan.pipeline, held_out.images, each.timestep, plan.drawing.seed)
        values: dict[str, Any] = {}
        for name, is_wanted in (("ssim", wanted.ssim), ("psnr", wanted.psnr)):
            if is_wanted:
                values[name] = _paired(name, each.images, held_out.images)
                without = None if start is None else _paired(name, start, held_out.images).value
                values[f"{name}_without_network"] = without
        rows.append(
            Reconstruction(
                method=each.method,
                timestep=each.timestep,
                num_inference_steps=each.num_inference_steps,
                num_images=len(held_out.images),
                **values,
            )
        )
    return rows


def measure_likelihood(plan: Plan, held_out: HeldOut) -> MetricValue:
    """Mean bits per dimension of the held-out images, and the standard deviation over them."""
    T = plan.pipeline.scheduler.config.num_train_timesteps
    if T < 3:
        return MetricValue(None, None, f"not computed: the bound needs 3 time steps, the model has {T}")
    asked = plan.benchmark.likelihood_timesteps
    count = T if asked is None else min(asked, T)

    def compute() -> dict[str, Any]:
        labels, batch_size = held_out.labels, plan.benchmark.batch_size
        bits = bits_per_dim(plan.pipeline, held_out.images, labels, count, plan.drawing.seed, batch_size)
        return asdict(_mean(bits, "the network's output is not finite", "bits"))

    key = {"num_timesteps": count, "num_images": len(held_out.images)}
    return MetricValue(**kept(plan.folder / "scores" / "likelihood.json", key, compute))


def measure_baselines(plan: Plan, held_out: HeldOut) -> list[Baseline]:
    """Metrics of the same held-out images without a model."""
    wanted, count = plan.benchmark.metrics, len(held_out.images)
    paired = {name for name in ("ssim", "psnr") if getattr(wanted, name)}
    values = unrelated_pairs(held_out.images) if paired else {}
    what = f"each of {count} held-out images and another one of them"
    rows = [
        Baseline(name=name.upper(), what=what, better="higher", value=value)
        for name, value in values.items()
        if name in paired
    ]
    if not wanted.bits_per_dim:
        return rows
    rows.append(Baseline(name="bits/dim", what="all levels alike", better="lower", value=8.0))
    training = plan.splits[plan.training_split].images
    is_held_out = plan.held_out_split != plan.training_split
    order = torch.randperm(len(training), generator=generator_at(0, "histograms")) if is_held_out else held_out.others
    chosen = order[:MAX_TRAINING_IMAGES]
    if len(chosen):
        bits = histogram_bits(training[chosen.sort().values], held_out.images)
        what = f"a coder that knows how often each pixel has each level in {len(chosen):,} other training images"
        std = float(bits.std()) if count > 1 else None
        rows.append(Baseline(name="bits/dim", what=what, better="lower", value=float(bits.mean()), std=std))
    return rows


def _paired(name: str, images: Images, originals: Images) -> MetricValue:
    side = min(images.shape[2:])
    if name == "ssim" and side < MIN_SSIM_SIDE:
        return MetricValue(
            None, None, f"not computed: SSIM's window needs {MIN_SSIM_SIDE} pixels a side, there are {side}"
        )
    values = (ssim if name == "ssim" else psnr)(images, originals)
    exact, others = int(values.isinf().sum()), values[values.isfinite()]
    rest = f", the mean of the others is {float(others.mean()):.4g} dB" if len(others) else ""
    return _mean(values, f"{exact} of {len(values)} images are reproduced to the bit{rest}", name.upper())


def _mean(values: Float[Tensor, " images"], cause: str, unit: str) -> MetricValue:
    values = values.double()
    lost = int(values.isnan().sum())
    if lost:
        return MetricValue(None, None, f"NaN: {lost} of {len(values)} images have no {unit}; {cause}")
    if not bool(values.isfinite().all()):
        return MetricValue(None, None, f"infinite: {cause}")
    return MetricValue(float(values.mean()), float(values.std()) if len(values) > 1 else None)
