"""Many images to disk: one batch in memory at a time, resumable, spread over processes."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from ddpm_hf.checkpoints.find import weights_hash
from ddpm_hf.pipelines.archives import Archive, write_archive
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, check_folder, write_manifest
from ddpm_hf.runtime.distributed import assert_same_across_ranks

MAX_GRID_IMAGES = 64
NUM_STRIPS = 6
"""Images whose way from the noise is shown."""


@dataclass(frozen=True)
class Extras:
    """What is written beside the images.

    Attributes:
        grid: rows and columns of the grid; None makes it square, of up to 64 images.
        num_intermediates: steps in the strips from noise to image; 0 draws none.
        archive: one file with all images; None makes none.
    """

    grid: tuple[int, int] | None = None
    num_intermediates: int = 0
    archive: Archive | None = None


def generate(
    pipeline: DDPMPipeline,
    model: str,
    settings: SamplingSettings,
    num_samples: int,
    folder: Path,
    batch_size: int,
    extras: Extras | None = None,
) -> int:
    """Write images 0 to num_samples - 1 of a sampling run as PNG files, a grid of the first ones and a manifest.

    Image i is a function of the network, the settings and i. So a folder with fewer images, or with some of them, is
    completed; any number of processes may share the work. They share it by whole batches, which are the same batches in
    any number of processes: what is computed together may differ in the last bits from what is computed alone.

    Args:
        pipeline: draws the images.
        model: folder or Hub id of the pipeline, for the manifest.
        settings: of the run.
        num_samples: at least 1.
        folder: made if it does not exist.
        batch_size: images drawn at a time.
        extras: made of the images, when all are there.

    Returns:
        The number of images drawn by this process; the others were there.

    Raises:
        UserError: if the folder holds anything but images of the same settings, or processes differ in them.
    """
    state, extras = PartialState(), extras or Extras()
    manifest = {"model": model, "weights": weights_hash(pipeline.unet), **asdict(settings)}
    check_folder(folder, manifest)
    assert_same_across_ranks({"the folder": str(folder), **manifest})
    files = [folder / f"{index:06}.png" for index in range(num_samples)]
    batches = [range(start, min(start + batch_size, num_samples)) for start in range(0, num_samples, batch_size)]
    missing = {index for index in range(num_samples) if not files[index].exists()}
    own = [batch for batch in batches if not missing.isdisjoint(batch)][state.process_index :: state.num_processes]
    num_own = sum(index in missing for batch in own for index in batch)
    state.wait_for_everyone()  # until then, nobody adds to the files that others count
    quiet = not state.is_main_process or not own
    # of the steps of a batch, below that of the images; a file would get a line for each move of both
    hidden = quiet or not sys.stderr.isatty()
    pipeline.set_progress_bar_config(
        desc="denoising", unit="step", leave=False, dynamic_ncols=True, delay=1, disable=hidden
    )
    with tqdm(total=num_own, desc="sampling", unit="img", disable=quiet, dynamic_ncols=True, delay=0.5) as bar:
        for batch in own:
            output = settings.draw(pipeline, batch)
            # only now: settings that the pipeline refuses leave nothing behind
            write_manifest(folder, manifest)
            for index, image in zip(batch, output.images, strict=True):
                if index in missing:
                    save_png(image, files[index])
                    bar.update()
    state.wait_for_everyone()
    if state.is_main_process:
        _write_extras(pipeline, settings, files, batch_size, extras)
    return num_own


def _write_extras(
    pipeline: DDPMPipeline, settings: SamplingSettings, files: list[Path], batch_size: int, extras: Extras
) -> None:
    folder = files[0].parent
    rows, columns = extras.grid or (0, None)
    shown = files[: rows * columns if columns else MAX_GRID_IMAGES]
    save_png(image_grid([_read(file) for file in shown], columns), folder / "grid.png")
    if extras.num_intermediates:
        first = range(min(NUM_STRIPS, batch_size, len(files)))
        output = settings.draw(pipeline, first, return_intermediates=extras.num_intermediates)
        save_png(denoising_strips([output], "x_t"), folder / "denoising.png")
        save_png(denoising_strips([output], "x_0"), folder / "predicted.png")
    if extras.archive:
        labels = settings.labels(range(len(files)))
        write_archive(extras.archive, files, labels, folder / f"samples.{extras.archive}", batch_size)


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image
