"""Sampling runs: how image i is drawn, and the manifest that keeps two runs out of one folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_hf.pipelines.ddpm import Callback, DDPMPipeline, DDPMPipelineOutput
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import visible_files, write_text_atomic
from ddpm_hf.runtime.randomness import image_seeds

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SamplingSettings:
    """How the images of a sampling run are drawn: image i is a function of the network, these settings and i.

    Attributes:
        seed: of the run; image i has a seed of its own, derived from this one and i.
        num_inference_steps: denoising steps, in [1, T].
        sampler: a key of `samplers.SAMPLERS`; None is the pipeline's own scheduler.
        class_labels: taken in turn by the images of a class-conditional model; None for an unconditional one.
        guidance_scale: of classifier-free guidance; 1 is none.
    """

    seed: int
    num_inference_steps: int
    sampler: str | None = None
    class_labels: list[int] | None = None
    guidance_scale: float = 1.0

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """The class of each of these images; None for an unconditional model."""
        return self.class_labels and [self.class_labels[index % len(self.class_labels)] for index in indices]

    def draw(
        self,
        pipeline: DDPMPipeline,
        indices: Sequence[int],
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        return_intermediates: int = 0,
    ) -> DDPMPipelineOutput:
        """Draw images of the run, as one batch.

        Args:
            pipeline: whose network draws.
            indices: which images; at least one.
            output_type: see `DDPMPipeline.__call__`.
            callback_on_step_end: see `DDPMPipeline.__call__`.
            return_intermediates: see `DDPMPipeline.__call__`.

        Returns:
            The images, and the intermediates if any were asked for.

        Raises:
            ValueError: the settings are not possible for this model.
        """
        output = pipeline(
            seeds=image_seeds(self.seed, indices),
            num_inference_steps=self.num_inference_steps,
            sampler=self.sampler,
            class_labels=self.labels(indices),
            guidance_scale=self.guidance_scale,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            return_intermediates=return_intermediates,
        )
        assert isinstance(output, DDPMPipelineOutput)
        return output


def every_class(pipeline: DDPMPipeline) -> list[int] | None:
    """The classes of a class-conditional model, without its last, which stands for no class; None for another model."""
    num_classes = pipeline.unet.config.num_class_embeds
    return None if num_classes is None else list(range(max(num_classes - 1, 1)))


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make sure that a folder is new, empty, or holds images of these settings.

    Args:
        folder: where images are to be written.
        settings: everything that the images depend on, as plain values.

    Raises:
        UserError: the folder holds something else.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        if folder.exists() and (not folder.is_dir() or visible_files(folder)):
            raise UserError(f"--output: {folder} exists and holds no images of this program; choose another folder")
        return
    try:
        before = dict(json.loads(manifest.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"--output: {manifest} is not of this program; choose another folder") from None
    names = [*settings, *(name for name in before if name not in settings)]
    changed = [f"{name} was {before.get(name)!r}" for name in names if before.get(name) != settings.get(name)]
    if changed:
        raise UserError(
            f"--output: {folder} holds images of other settings ({', '.join(changed)}); choose another folder"
        )


def write_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings beside the images, once; several processes may do so at the same time."""
    if not (folder / MANIFEST).exists():
        write_text_atomic(folder / MANIFEST, json.dumps(dict(settings), indent=2) + "\n")
