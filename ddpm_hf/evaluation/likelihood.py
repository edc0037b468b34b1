"""Bits per dimension of held-out images, by the variational bound."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ddpm_hf.evaluation.progress import bar
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.schedulers.likelihood import variational_bound


def bits_per_dim(
    pipeline: DDPMPipeline,
    images: UInt8[Tensor, "num_images channels height width"],
    class_labels: Sequence[int] | None,
    num_timesteps: int | None,
    seed: int,
    batch_size: int,
) -> Float32[Tensor, " num_images"]:
    """The bound on the negative log-likelihood of each image, in bits per dimension (DDPM, eq. 5).

    Args:
        pipeline: of the model; whatever its scheduler, the bound is that of DDPM with the same betas.
        images: held-out images.
        class_labels: theirs, for a class-conditional model.
        num_timesteps: evaluations of the network per image, 3 to T; None is T.
        seed: of timesteps and noise.
        batch_size: images at a time.
    """
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    device, network = pipeline.device, pipeline.unet
    labels = None if class_labels is None else torch.tensor(class_labels, device=device)
    bits: list[Tensor] = []

    def bound(part: range) -> Float32[Tensor, " part"]:
        x_0 = from_uint8(images[part.start : part.stop]).to(device)
        arguments = {} if labels is None else {"class_labels": labels[part.start : part.stop]}

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return network(x_t.to(network.dtype), t, **arguments).sample.float()

        seeds = [derive_seed(seed, "bits per dim", index) for index in part]
        return variational_bound(predict, scheduler, x_0, seeds, num_timesteps).total.float().cpu()

    chunks = Chunks("measuring the likelihood of")
    with pipeline.sampling(), bar(len(images), "likelihood", delay=0) as progress:
        for start in range(0, len(images), batch_size):
            batch = range(start, min(start + batch_size, len(images)))
            bits += chunks(batch, bound)
            progress.update(len(batch))
    return torch.cat(bits)
