"""Features of samples and of real images: drawn or read by all processes together, and never computed twice."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import PartialState
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ddpm_hf.config import BenchmarkConfig, DatasetConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors.base import FeatureExtractor, Features, Images, extract_features
from ddpm_hf.evaluation.feature_store import FeatureStore, FeatureTable, own_share, progress_bar
from ddpm_hf.evaluation.report import ReferenceSection
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.images import to_uint8
from ddpm_hf.pipelines.pictures import save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, show_steps
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.files import cache_folder, write_text_atomic
from ddpm_hf.runtime.memory import Chunks
from ddpm_hf.runtime.signals import StopRequest

NUM_SHOWN = 64
"""First samples that are always kept as images, for the pictures of the report."""

REFERENCE_BATCH_SIZE = 128


def draw_samples(
    pipeline: DDPMPipeline,
    settings: SamplingSettings,
    extractor: FeatureExtractor,
    folder: Path,
    benchmark: BenchmarkConfig,
    stop: StopRequest | None = None,
) -> tuple[FeatureTable, int]:
    """Draw samples 0 to n_samples - 1 and extract their features, with one batch in memory at a time.

    All processes call this together. A batch is drawn by one of them, so a sample is the same to the bit with any
    number of processes. It is finished once its features are stored: they hold NaN for a sample that is not finite,
    which its image cannot.

    Args:
        pipeline: draws the images.
        settings: how they are drawn.
        extractor: of their features.
        folder: of the evaluation, with `samples` and `features` of each seed.
        benchmark: `n_samples`, `batch_size` and whether to keep all images, not only the first.
        stop: polled at every denoising step.

    Returns:
        The features of all samples, and the number of samples that this process drew.

    Raises:
        Stopped: in all processes, if a stop was requested; finished batches are kept.
        UserError: if processes do not see the same folder.
    """
    is_polled, stop, num_samples = stop is not None, stop or StopRequest(), benchmark.n_samples
    images_folder, features_folder = (folder / name / f"seed-{settings.seed}" for name in ("samples", "features"))
    images_folder.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(
        features_folder, benchmark.batch_size, extractor.num_features, extractor.num_classes, stop.check
    )
    num_kept = num_samples if benchmark.save_samples else min(NUM_SHOWN, num_samples)
    files = {index: sample_file(images_folder, index) for index in range(num_kept)}
    # an earlier evaluation may have kept fewer images
    without_image = {index for index, file in files.items() if not file.exists()}
    missing = set(store.missing(num_samples))
    own = own_share(
        [batch for batch in store.batches(num_samples) if batch in missing or not without_image.isdisjoint(batch)]
    )
    show_steps(pipeline, quiet=not own or not cli.is_main_process())
    chunks, extraction_chunks = Chunks("sampling"), Chunks("extracting the features of")

    def poll(*_: object) -> None:
        stop.check()

    def draw(chunk: range) -> tuple[Images, Bool[Tensor, " chunk"]]:
        output = settings.draw(pipeline, chunk, "pt", callback_on_step_end=poll if is_polled else None)
        pixels = torch.as_tensor(output.images)
        is_finite = pixels.isfinite().flatten(1).all(1)
        return to_uint8(pixels.nan_to_num(0.0), (0, 1)).cpu(), is_finite.cpu()

    num_drawn = sum(map(len, own))
    prepared = pipeline.sampling() if own else nullcontext()  # once for all batches
    with stop.together(), prepared, progress_bar(num_drawn, "samples", quiet=not own, delay=0) as progress:
        for batch in own:
            images, is_finite = (torch.cat(each) for each in zip(*chunks(batch, draw), strict=True))
            for index, image in zip(batch, images, strict=True):
                if index < num_kept:
                    save_png(to_pil(image), files[index])
            features = extract_features(extractor, images, pipeline.device, extraction_chunks)
            # NaN, so that no metric hides a lost sample
            lost = ~is_finite.to(features.values.device)[:, None]
            logits = None if features.logits is None else features.logits.masked_fill(lost, torch.nan)
            store.write(batch, Features(features.values.masked_fill(lost, torch.nan), logits))
            progress.update(len(batch))
    store.check_complete(num_samples)
    return store.table(num_samples), num_drawn


def reference_key(dataset: DatasetConfig, images: ImageSet, extractor: FeatureExtractor) -> ReferenceSection:
    """Everything that the features of real images depend on.

    The fingerprint covers the decoded pixels. So it changes with the file, revision, column, size or decoder.

    Args:
        dataset: where the images come from, for a person to read.
        images: the images themselves.
        extractor: with its weights and resizing.
    """
    pixels = images.images.contiguous()
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    for part in pixels.split(4096):
        digest.update(part.numpy().tobytes())
    crops = {"crop": "shorter side resized by Lanczos, middle square", "pad": "longer side resized by Lanczos, bars"}
    background = ", ".join(map(str, dataset.background))
    return ReferenceSection(
        dataset=dataset.name,
        **dataset.model_dump(include={"config", "revision", "split", "image_column"}),
        num_images=len(images),
        image_shape=list(pixels.shape[1:]),
        transform=f"gray or RGB on a background of ({background}), {crops[dataset.resize]}, 8 bits",
        fingerprint=digest.hexdigest(),
        extractor=extractor.fingerprint,
        resize=extractor.resize,
        batch_size=REFERENCE_BATCH_SIZE,
    )


def extract_reference(
    reference: ReferenceSection,
    images: ImageSet,
    extractor: FeatureExtractor,
    device: torch.device | str,
    stop: StopRequest | None = None,
) -> FeatureTable:
    """Extract the features of real images, or find those of an earlier evaluation in the cache.

    All processes call this together, and share the missing batches.

    Args:
        reference: of `reference_key`.
        images: all of them.
        extractor: of the features.
        device: of the extractor.
        stop: polled at every batch.

    Returns:
        The features, in a folder of the cache whose name is a hash of `reference`.

    Raises:
        Stopped: in all processes, if a stop was requested; finished batches are kept.
        UserError: if processes do not see the same cache.
    """
    stop = stop or StopRequest()
    key = asdict(reference)
    folder = cache_folder() / "references" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    store = FeatureStore(folder, REFERENCE_BATCH_SIZE, extractor.num_features, extractor.num_classes, stop.check)
    if PartialState().is_local_main_process:
        write_text_atomic(folder / "key.json", json.dumps(key, indent=2) + "\n")
    own, chunks = own_share(store.missing(len(images))), Chunks("extracting the features of")
    with stop.together(), progress_bar(sum(map(len, own)), "features of the reference", quiet=not own) as progress:
        for batch in own:
            store.write(batch, extract_features(extractor, images.images[batch.start : batch.stop], device, chunks))
            progress.update(len(batch))
    store.check_complete(len(images))
    return replace(store.table(len(images)), cache=folder)


def sample_file(folder: Path, index: int) -> Path:
    """The file of sample i."""
    return folder / f"{index:06}.png"


def to_pil(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """An image as PIL represents it: a gray one has mode L."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
