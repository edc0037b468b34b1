"""Features of real images: taken once, by all processes, and kept under a key of everything that they depend on."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.cache import cache_folder
from ddpm_hf.evaluation.distances import Moments, moments
from ddpm_hf.evaluation.features import FeatureExtractor
from ddpm_hf.evaluation.store import FeatureStore, FeatureTable, Layout

TRANSFORM = "gray or RGB, shorter side resized by Lanczos, middle square, 8 bits"
"""What `ddpm_hf.data.images.to_array` does; the key holds it beside the images that came of it."""

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

    def moments(self) -> Moments:
        """The sums that a Fréchet distance needs; computed once."""
        file = self.folder / "moments.safetensors"
        try:
            kept = load_file(file)
            return Moments(int(kept["count"]), kept["total"], kept["outer"])
        except (OSError, SafetensorError, KeyError):
            pass
        with _bar(len(self.table), "reference statistics") as bar:
            summed = moments(self.table, bar.update)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        save_file({"count": torch.tensor(summed.count), "total": summed.total, "outer": summed.outer}, aside)
        aside.replace(file)
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
        "transform": TRANSFORM,
        "fingerprint": digest.hexdigest(),
        "extractor": extractor.fingerprint,
        "resize": extractor.resize,
        "batch_size": BATCH_SIZE,
    }


def load_reference(
    dataset: DatasetConfig, images: ImageSet, extractor: FeatureExtractor, device: torch.device | str
) -> Reference:
    """Take the features of real images, or find them where an earlier evaluation left them.

    All processes call this together; each takes a share of what is missing.

    Args:
        dataset: where the images come from.
        images: all of them.
        extractor: what looks at them.
        device: where it is.
    """
    state = PartialState()
    key = reference_key(dataset, images, extractor)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "references" / name
    layout = Layout(BATCH_SIZE, extractor.num_features, extractor.num_classes)
    with state.local_main_process_first():
        store = FeatureStore(folder, layout)
        if state.is_local_main_process:
            (folder / "key.json").write_text(json.dumps(key, indent=2) + "\n")
    missing = store.missing(len(images))
    state.wait_for_everyone()  # before anyone writes, so that all divide the same work
    own = missing[state.process_index :: state.num_processes]
    with _bar(sum(map(len, own)), "features of the reference", not own) as bar, torch.inference_mode():
        for batch in own:
            store.write(batch, extractor(images.images[batch.start : batch.stop].to(device)))
            bar.update(len(batch))
    state.wait_for_everyone()
    return Reference(key, images, store.table(len(images)), store.logits(len(images)), folder)


def _bar(total: int, what: str, quiet: bool = False) -> tqdm:
    quiet = quiet or not PartialState().is_main_process
    return tqdm(total=total, desc=what, unit="img", disable=quiet, dynamic_ncols=True, delay=1)
