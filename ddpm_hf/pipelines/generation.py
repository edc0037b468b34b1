"""Many images to disk: one batch in memory at a time, resumable, spread over processes."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import nn
from tqdm import tqdm

from ddpm_hf.errors import UserError
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.plotting import image_grid, save_png
from ddpm_hf.randomness import image_seeds

MANIFEST = "manifest.json"
GRID = "grid.png"
MAX_GRID_IMAGES = 64


@dataclass(frozen=True)
class Settings:
    """What image i follows from, beside i itself.

    Attributes:
        model: folder or Hub id of the pipeline.
        weights: a hash of the network's weights.
        seed: of the sampling run.
        num_inference_steps: denoising steps.
        sampler: a name of `pipelines.samplers`; None is the model's own scheduler.
        class_labels: taken in turn by the images of a class-conditional model.
        guidance_scale: of classifier-free guidance; 1 is none.
    """

    model: str
    weights: str
    seed: int
    num_inference_steps: int
    sampler: str | None = None
    class_labels: list[int] | None = None
    guidance_scale: float = 1.0


def generate(pipeline: DDPMPipeline, settings: Settings, num_samples: int, folder: Path, batch_size: int) -> int:
    """Write images 0 to num_samples - 1 of a sampling run as PNG files, a grid of the first ones and a manifest.

    Image i is a function of the settings and i. So a folder with fewer images, or with some of them, is completed; any
    number of processes may share the work.

    Args:
        pipeline: draws the images.
        settings: of the run; they are kept in the manifest.
        num_samples: at least 1.
        folder: made if it does not exist.
        batch_size: images drawn at a time.

    Returns:
        The number of images drawn by this process; the others were there.

    Raises:
        UserError: if the folder holds anything but images of the same settings.
    """
    state = PartialState()
    _check(folder, settings)
    state.wait_for_everyone()
    missing = [index for index in range(num_samples) if not _file(folder, index).exists()]
    own = missing[state.process_index :: state.num_processes]
    pipeline.set_progress_bar_config(disable=True)
    quiet = not state.is_main_process or not own
    with tqdm(total=len(own), desc="sampling", unit="img", disable=quiet, dynamic_ncols=True, delay=0.5) as bar:
        for start in range(0, len(own), batch_size):
            indices = own[start : start + batch_size]
            labels = settings.class_labels
            output: Any = pipeline(
                seeds=image_seeds(settings.seed, indices),
                num_inference_steps=settings.num_inference_steps,
                sampler=settings.sampler,
                class_labels=None if labels is None else [labels[index % len(labels)] for index in indices],
                guidance_scale=settings.guidance_scale,
            )
            # only now: settings that the pipeline refuses leave nothing behind
            folder.mkdir(parents=True, exist_ok=True)
            if state.is_main_process:
                (folder / MANIFEST).write_text(json.dumps(asdict(settings), indent=2) + "\n")
            for index, image in zip(indices, output.images, strict=True):
                save_png(image, _file(folder, index))
            bar.update(len(indices))
    state.wait_for_everyone()
    if state.is_main_process:
        shown = min(num_samples, MAX_GRID_IMAGES)
        save_png(image_grid([_read(_file(folder, index)) for index in range(shown)]), folder / GRID)
    return len(own)


def weights_hash(network: nn.Module) -> str:
    """A hash of a network's weights, to tell two models of one name apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check(folder: Path, settings: Settings) -> None:
    """Make sure that a folder is new or holds images of the same settings."""
    manifest = folder / MANIFEST
    if manifest.exists():
        before = json.loads(manifest.read_text())
        changed = [
            f"{name} was {before.get(name)!r}" for name, now in asdict(settings).items() if before.get(name) != now
        ]
        if changed:
            raise UserError(
                f"--output: {folder} holds images of other settings ({', '.join(changed)}); choose another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output: {folder} exists and holds no images of this program; choose another folder")


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image
