"""Draw the samples of an evaluation: exactly so many, by any number of processes, and none of them twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ddpm_hf.evaluation.features import Extraction, FeatureExtractor, Features
from ddpm_hf.evaluation.progress import bar
from ddpm_hf.evaluation.store import FeatureStore
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import to_uint8
from ddpm_hf.pipelines.pictures import save_png
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.signals import StopRequest

NUM_SHOWN = 64
"""First samples that are kept as images in any case, for the pictures of the report."""


def draw_samples(
    pipeline: DDPMPipeline,
    settings: SamplingSettings,
    extractor: FeatureExtractor,
    store: FeatureStore,
    folder: Path,
    num_samples: int,
    keep_images: bool,
    stop: StopRequest | None = None,
) -> int:
    """Draw samples 0 to num_samples - 1 and take their features, of which one batch is in memory at a time.

    All processes call this together. A batch is drawn as a whole by one of them, so that a sample is the same to the
    bit on any number of processes. A batch is done once its features are there, which know of each sample whether it
    holds numbers only; its images alone do not tell.

    Args:
        pipeline: draws the images.
        settings: how they are drawn.
        extractor: takes their features.
        store: where the features go.
        folder: where the images go.
        num_samples: at least 1.
        keep_images: keep all of them, not only the first.
        stop: polled at every denoising step; None for a run that is never asked to stop.

    Returns:
        The number of samples drawn by this process.

    Raises:
        Stopped: in all processes, if one is asked to stop; the batches that are finished stay.
        UserError: if processes do not see the same folder.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    kept = num_samples if keep_images else min(NUM_SHOWN, num_samples)
    work = _work(store, folder, num_samples, kept)
    state.wait_for_everyone()  # before anyone writes, so that all divide the same work
    own = work[state.process_index :: state.num_processes]
    pipeline.set_progress_bar_config(disable=True)
    num_drawn, total = 0, sum(map(len, own))
    chunks, extraction = Chunks("drawing"), Extraction(extractor, pipeline.device)
    with (stop or StopRequest()).together(), bar(total, "samples", quiet=not own, delay=0) as progress:
        for batch in own:
            drawn = chunks(batch, lambda chunk: _draw(pipeline, settings, chunk, stop))
            images, is_finite = (torch.cat(each) for each in zip(*drawn, strict=True))
            num_drawn += len(batch)
            for index, image in zip(batch, images, strict=True):
                if index < kept:
                    save_png(to_pil(image), sample_file(folder, index))
            store.write(batch, _without_lost(extraction(images), is_finite))
            progress.update(len(batch))
    store.check_complete(num_samples)
    return num_drawn


def sample_file(folder: Path, index: int) -> Path:
    """Where sample i lies."""
    return folder / f"{index:06}.png"


def read_images(files: Sequence[Path]) -> UInt8[Tensor, "batch channels height width"]:
    """Read samples back."""
    images = []
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image)
        images.append(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()))
    return torch.stack(images)


def to_pil(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """One image as PIL has it: gray as mode L."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _work(store: FeatureStore, folder: Path, num_samples: int, kept: int) -> list[range]:
    """The batches without features, or without images that are to be kept."""
    there = {file.name for file in folder.glob("*.png")}
    size = store.layout.batch_size
    without_features = {batch.start for batch in store.missing(num_samples)}
    batches = [range(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]
    return [
        batch
        for batch in batches
        if batch.start in without_features
        or any(sample_file(folder, index).name not in there for index in batch if index < kept)
    ]


def _draw(
    pipeline: DDPMPipeline, settings: SamplingSettings, batch: range, stop: StopRequest | None
) -> tuple[UInt8[Tensor, "batch channels height width"], Bool[Tensor, " batch"]]:
    """The images of a batch, and which of them hold numbers only."""
    callback = None if stop is None else lambda *_: stop.check()
    pixels: Any = settings.draw(pipeline, batch, "pt", callback).images
    is_finite = pixels.isfinite().flatten(1).all(1)
    return to_uint8(pixels.nan_to_num(0.0), (0, 1)).cpu(), is_finite.cpu()


def _without_lost(features: Features, is_finite: Bool[Tensor, " batch"]) -> Features:
    """The features of a batch; NaN for a sample that is not finite, so that no figure hides it."""
    lost = ~is_finite.to(features.values.device)
    values = features.values.masked_fill(lost[:, None], torch.nan)
    logits = None if features.logits is None else features.logits.masked_fill(lost[:, None], torch.nan)
    return Features(values, logits)
