"""The report of an evaluation as a type: what is written to metrics.json, and read from it."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.values import allowed, read_json, shown

FORMAT = 3
"""Of metrics.json. Format 2, of ddpm_hf 0.1, has other names for a few keys, and is still read."""

READABLE_FORMATS = (2, FORMAT)

Better = Literal["lower", "higher"]
"""The better direction of a metric."""


def _formerly(name: str, old: str) -> object:
    """Let a field also be read by the name that it had in format 2."""
    return Field(validation_alias=AliasChoices(name, old))


@dataclass(frozen=True)
class MetricValue:
    """The value of a metric, or why there is none.

    Attributes:
        value: None where it could not be computed, or is not finite.
        std: standard deviation over seeds, splits, subsets or images; None where there is only one of them.
        problem: why there is no value.
    """

    value: float | None
    std: Annotated[float | None, _formerly("std", "deviation")] = None
    problem: str | None = None

    def or_problem(self, cause: str) -> "MetricValue":
        """Turn NaN and infinity into a problem, since a report never prints them as numbers.

        Args:
            cause: of a value that is not finite.
        """
        if self.value is None or math.isfinite(self.value):
            return self
        return MetricValue(None, None, f"{'NaN' if math.isnan(self.value) else 'infinite'}: {cause}")

    def __str__(self) -> str:
        """The value with its standard deviation, or the problem."""
        if self.value is None:
            return self.problem or ""
        return f"{self.value:.4g}" + ("" if self.std is None else f" ± {self.std:.2g}")


@dataclass(frozen=True, kw_only=True)
class Metric(MetricValue):
    """A metric of the samples, or of held-out images, beside the same metric of real images.

    Attributes:
        name: for a person, such as "FD (digits classifier)".
        better: which direction is better.
        std_over: what the standard deviation is over, such as "3 seeds"; None where there is none.
        real_vs_real: real images in place of the samples; what a perfect model would reach.
        matched: as many samples as there are real images in their place, against the same images; None where `value`
            is that already.
    """

    name: str
    better: Better
    std_over: Annotated[str | None, _formerly("std_over", "deviation_over")] = None
    real_vs_real: MetricValue
    matched: Annotated[MetricValue | None, _formerly("matched", "as_many_samples")] = None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Reconstructions of held-out images by one method, compared with the originals.

    Attributes:
        method: how the images were encoded and decoded.
        timestep: the timestep that they were encoded to.
        num_inference_steps: denoising steps from there.
        num_images: images that were reconstructed.
        ssim: mean structural similarity; None if it was not asked for.
        psnr: mean peak signal-to-noise ratio in dB; None if it was not asked for.
        ssim_without_network: SSIM of the noised image, scaled back; None for DDIM, which adds no noise.
        psnr_without_network: likewise, in dB.
    """

    method: Annotated[str, _formerly("method", "way")]
    timestep: int
    num_inference_steps: int
    num_images: int
    ssim: MetricValue | None = None
    psnr: MetricValue | None = None
    ssim_without_network: float | None = None
    psnr_without_network: float | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline(MetricValue):
    """A metric of held-out images that needs no model.

    Attributes:
        name: of the metric.
        what: the images, or the coder, that it is measured on.
        better: which direction is better.
    """

    name: str
    what: str
    better: Better


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The model that was evaluated.

    Attributes:
        name: folder or Hub id, as the user gave it.
        weights: a hash of them.
        ema: whether they are averaged, as far as the run's configuration tells.
    """

    name: str
    weights: str
    ema: str


@dataclass(frozen=True, kw_only=True)
class SamplingSection:
    """How the samples were drawn.

    Attributes:
        n_samples: of each seed.
        seeds: one for each repetition.
        sampler: name of the scheduler.
        num_inference_steps: denoising steps.
        network_evaluations: of one sample.
        batch_size: samples drawn at a time.
        classes: which classes were drawn, for a person.
        images: how pixels were rounded.
    """

    n_samples: int
    seeds: list[int]
    sampler: str
    num_inference_steps: int
    network_evaluations: int
    batch_size: int
    classes: str
    images: str = "8 bits, rounded"


@dataclass(frozen=True, kw_only=True)
class FeaturesSection:
    """The feature extractor.

    Attributes:
        name: as given in `benchmark.features`.
        label: short, for the names of metrics.
        description: one sentence.
        fingerprint: a hash of name, weights and resizing; values of different fingerprints do not compare.
        resize: how images are brought to the network's size.
        num_features: length of a feature vector.
    """

    name: str
    label: str
    description: str
    fingerprint: str
    resize: str
    num_features: int


@dataclass(frozen=True, kw_only=True)
class ReferenceSection:
    """The real images that samples are compared with: everything that their features depend on.

    Attributes:
        dataset: name or folder.
        config: of the dataset.
        revision: of the dataset.
        split: of the dataset.
        image_column: of the dataset; None finds it.
        num_images: in the split.
        image_shape: channels, height, width.
        transform: how images were brought to the model's size.
        fingerprint: a hash of all pixels.
        extractor: fingerprint of the feature extractor.
        resize: how the extractor resizes images.
        batch_size: images at a time.
    """

    dataset: str
    config: str | None
    revision: str | None
    split: str
    image_column: str | None
    num_images: int
    image_shape: list[int]
    transform: str
    fingerprint: str
    extractor: str
    resize: str
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class HeldOutSection:
    """The held-out images of reconstructions and likelihood.

    Attributes:
        split: that they are from.
        num_images: that were measured.
        are_training_images: no images were held out, so the model has seen these.
        fingerprint: a hash of all pixels of the split.
        likelihood_timesteps: timesteps of the bound that were evaluated; None for all.
    """

    split: str
    num_images: int
    are_training_images: bool
    fingerprint: str
    likelihood_timesteps: int | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation measured, and everything that its values depend on.

    Attributes:
        model: the model.
        sampling: how samples were drawn.
        features: what extracted their features.
        reference: the images that samples were compared with.
        held_out: the images of reconstructions and likelihood.
        real_vs_real: which real images took the place of samples, for a person.
        reference_is_trained_on: the model was trained on the reference; None in reports that do not say.
        num_matched: samples behind `Metric.matched`, as many as those real images; None where all samples are.
        metrics: by key, such as "frechet_distance".
        reconstructions: of held-out images, one for each method.
        baselines: of held-out images, without a model.
        pictures: caption of each picture, by its file within the folder of the evaluation.
        warnings: what must not be read into the values.
        versions: of Python, the libraries and the device.
        seconds: that the evaluation took, and how many samples the main process drew.
        label: what the report is, if not a full evaluation, such as one at a step of training.
        format: of metrics.json.
    """

    format: int = FORMAT
    label: str | None = None
    model: ModelSection
    sampling: SamplingSection
    features: FeaturesSection
    reference: ReferenceSection
    held_out: HeldOutSection
    real_vs_real: str
    reference_is_trained_on: bool | None = None
    num_matched: Annotated[int | None, _formerly("num_matched", "as_many_samples")] = None
    metrics: dict[str, Metric]
    reconstructions: list[Reconstruction]
    baselines: list[Baseline]
    pictures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line that names the model and the number of samples."""
        label = f"{self.label}: " if self.label else ""
        return f"{label}{self.model.name}, {self.sampling.n_samples:,} samples"

    @property
    def reference_kind(self) -> str:
        """What samples are compared with, for a person."""
        if self.reference_is_trained_on is None:
            return "real images"
        return _kind(self.reference_is_trained_on)

    @property
    def held_out_kind(self) -> str:
        """What reconstructions and likelihood are measured on, for a person."""
        return _kind(self.held_out.are_training_images)

    def row_name(self, key: str) -> str:
        """The name of a metric, with what it is measured on if that is no sample."""
        name = self.metrics[key].name
        return f"{name} of {self.held_out_kind}" if key == "bits_per_dim" else name

    def write(self, file: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text_atomic(file, json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Report":
        """Read a report, of this format or of format 2.

        Raises:
            UserError: if there is no such file, or it holds no report of a readable format.
        """
        try:
            content = read_json(file)
            given = content["format"]
        except (OSError, LookupError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it names no format of a report"
            raise UserError(f"{file} cannot be read: {reason}") from error
        if given not in READABLE_FORMATS:
            readable = " and ".join(map(str, READABLE_FORMATS))
            raise UserError(f"{file} is of format {given}; readable are {readable}: evaluate again")
        try:
            return TypeAdapter(cls).validate_python({**content, "format": FORMAT})
        except ValidationError as error:
            first = error.errors()[0]
            name, given = ".".join(map(str, first["loc"])), shown(first["input"])
            raise UserError(f"{file} cannot be read: {name}: given {given}; allowed: {allowed(first)}") from error


def _kind(is_trained_on: bool) -> str:
    return "training images" if is_trained_on else "held-out images"
