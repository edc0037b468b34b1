"""Features of real images: taken once, by all processes, and kept under a key of everything that they depend on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.distances import Moments, moments
from ddpm_hf.evaluation.features import Extraction, FeatureExtractor
from ddpm_hf.evaluation.neighbors import radii
from ddpm_hf.evaluation.progress import bar
from ddpm_hf.evaluation.store import FeatureStore, FeatureTable, Layout
from ddpm_hf.runtime.cache_folder import cache_folder
from ddpm_hf.runtime.files import atomic_write, write_text_atomic
from ddpm_hf.runtime.signals import StopRequest

BATCH_SIZE = 128


@dataclass(frozen=True)
class Reference:
    """Real images as an extractor sees them.

    Attributes:
        key: what the features depend on, and so what they are kept under.
        images: the images.
        table: their features, row i for image i.
        logits: the extractor's, if it is a classifier.
        folder: where they are kept.
    """

    key: dict[str, Any]
    images: ImageSet
    table: FeatureTable
    logits: FeatureTable | None
    folder: Path

    def radii(self, device: torch.device | str) -> Float64[Tensor, " images"]:
        """How far each image's third neighbour is, which precision needs; computed once.

        Args:
            device: where distances are computed; it must know float64.
        """
        file = self.folder / "radii.safetensors"
        try:
            return load_file(file)["radii"]
        except (OSError, SafetensorError, KeyError):
            pass
        found = radii(self.table, device)
        _save({"radii": found}, file)
        return found

    def moments(self) -> Moments:
        """The sums that a Fréchet distance needs; computed once."""
        file = self.folder / "moments.safetensors"
        try:
            kept = load_file(file)
            return Moments(int(kept["count"]), kept["total"], kept["outer"])
        except (OSError, SafetensorError, KeyError):
            pass
        with bar(len(self.table), "reference statistics") as progress:
            summed = moments(self.table, progress.update)
        _save({"count": torch.tensor(summed.count), "total": summed.total, "outer": summed.outer}, file)
        return summed


def reference_key(dataset: DatasetConfig, images: ImageSet, extractor: FeatureExtractor) -> dict[str, Any]:
    """Everything that the features of a set of images depend on.

    The hash is of the decoded pixels, so that a changed file, revision, column, size or decoder changes the key too.

    Args:
        dataset: where the images come from, for a person to read.
        images: the images themselves.
        extractor: with its weights and resizing.
    """
    pixels = images.images.contiguous()
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    for part in pixels.split(4096):
        digest.update(part.numpy().tobytes())
    return {
        "dataset": dataset.name,
        "config": dataset.config,
        "revision": dataset.revision,
        "split": dataset.split,
        "image_column": dataset.image_column,
        "num_images": len(images),
        "image_shape": list(pixels.shape[1:]),
        "transform": _transform(dataset),
        "fingerprint": digest.hexdigest(),
        "extractor": extractor.fingerprint,
        "resize": extractor.resize,
        "batch_size": BATCH_SIZE,
    }


def load_reference(
    dataset: DatasetConfig,
    images: ImageSet,
    extractor: FeatureExtractor,
    device: torch.device | str,
    stop: StopRequest | None = None,
) -> Reference:
    """Take the features of real images, or find them where an earlier evaluation left them.

    All processes call this together; each takes a share of what is missing.

    Args:
        dataset: where the images come from.
        images: all of them.
        extractor: what looks at them.
        device: where it is.
        stop: polled at every batch; None for a run that is never asked to stop.

    Raises:
        Stopped: in all processes, if one is asked to stop; the batches that are finished stay.
        UserError: if processes do not see the same cache.
    """
    state, stop = PartialState(), stop or StopRequest()
    key = reference_key(dataset, images, extractor)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "references" / name
    layout = Layout(BATCH_SIZE, extractor.num_features, extractor.num_classes)
    with state.local_main_process_first():
        store = FeatureStore(folder, layout, stop.check)
        if state.is_local_main_process:
            write_text_atomic(folder / "key.json", json.dumps(key, indent=2) + "\n")
    missing = store.missing(len(images))
    state.wait_for_everyone()  # before anyone writes, so that all divide the same work
    own = missing[state.process_index :: state.num_processes]
    extraction = Extraction(extractor, device)
    with stop.together(), bar(sum(map(len, own)), "features of the reference", quiet=not own) as progress:
        for batch in own:
            store.write(batch, extraction(images.images[batch.start : batch.stop]))
            progress.update(len(batch))
    store.check_complete(len(images))
    return Reference(key, images, store.table(len(images)), store.logits(len(images)), folder)


def _transform(dataset: DatasetConfig) -> str:
    """How the images came to the model's size; the key holds it beside the images that came of it."""
    ways = {"crop": "shorter side resized by Lanczos, middle square", "pad": "longer side resized by Lanczos, bars"}
    colour = ", ".join(map(str, dataset.background))
    return f"gray or RGB on a background of ({colour}), {ways[dataset.resize]}, 8 bits"


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    with atomic_write(file) as aside:
        save_file(tensors, aside)
