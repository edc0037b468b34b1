"""What an evaluation is going to do: everything is loaded and checked before the first sample is drawn."""

import copy
import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from ddpm_hf.checkpoints.fetch import CONFIG
from ddpm_hf.checkpoints.find import load_pipeline, weights_hash
from ddpm_hf.config import BenchmarkConfig, Config, DatasetConfig, ModelConfig
from ddpm_hf.config.dataset import overlap
from ddpm_hf.data import ImageSet, load_image_set, load_image_sets
from ddpm_hf.evaluation.extractors import UserExtractor, load_extractor
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.features import reference_key
from ddpm_hf.evaluation.report import (
    FeaturesSection,
    HeldOutSection,
    ModelSection,
    ReferenceSection,
    Report,
    SamplingSection,
)
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import visible_files
from ddpm_hf.runtime.values import find_mapping, read_json_mapping

SETTINGS = "settings.json"

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that has passed every check.

    Attributes:
        config: of the evaluation.
        pipeline: of the model.
        extractor: of features.
        splits: the images of each split that is used.
        sampling: how samples are drawn, with the first seed.
        references: what the features of each split depend on.
        report: what is going to be measured and how; its metrics are still empty.
        settings: everything that samples and features depend on; evaluations of the same settings share a folder.
        folder: of the evaluation.
        is_in_training: the weights change, and what the folder holds of other weights is deleted.
    """

    config: Config
    pipeline: DDPMPipeline
    extractor: FeatureExtractor
    splits: dict[str, ImageSet]
    sampling: SamplingSettings
    references: dict[str, ReferenceSection]
    report: Report
    settings: dict[str, Any]
    folder: Path
    is_in_training: bool

    @property
    def benchmark(self) -> BenchmarkConfig:
        """The section `benchmark` of the configuration."""
        return self.config.benchmark

    @property
    def training_split(self) -> str:
        """The split that the model was trained on."""
        return self.config.dataset.split

    @property
    def reference_split(self) -> str:
        """The split that samples are compared with."""
        return self.benchmark.reference_split or self.training_split

    @property
    def held_out_split(self) -> str:
        """The split of the images for reconstructions and likelihood."""
        return held_out_split(self.config)

    @property
    def metric_device(self) -> torch.device:
        """The device of distances between features: a GPU, or else the CPU, which supports float64."""
        device = self.pipeline.device
        return device if device.type == "cuda" else torch.device("cpu")


class Problems(list[str]):
    """Everything that does not fit, collected so that the user sees all of it at once."""

    def attempt(self, load: Callable[[], Loaded]) -> Loaded | None:
        """Load something; None if the user has to correct something first."""
        try:
            return load()
        except UserError as error:
            self.append(str(error))
            return None

    def error(self) -> UserError:
        """All problems in one error, with a line for each."""
        listed = f" {self[0]}" if len(self) == 1 else "".join(f"\n  {each}" for each in self)
        return UserError(f"cannot be evaluated:{listed}")


def make_plan(
    model: str | Path,
    config: Config,
    output: Path | None = None,
    pipeline: DDPMPipeline | None = None,
    extractor: FeatureExtractor | None = None,
    is_in_training: bool = False,
) -> EvaluationPlan:
    """Load and check everything; nothing is written. Arguments and errors are those of `evaluate`."""
    if not config.model.is_complete and (own := (run_config(model) or {}).get("model_config")):  # follows its source
        config = config.model_copy(update={"model": ModelConfig.model_validate(own)})
    problems, benchmark = Problems(), config.benchmark
    if pipeline is None:
        pipeline = problems.attempt(lambda: load_pipeline(model))
    if extractor is None:
        device = pipeline.device if pipeline is not None else "cpu"
        extractor = problems.attempt(lambda: load_extractor(benchmark, device))
    splits = problems.attempt(lambda: load_splits(config, model))
    problems += check_packages(benchmark)
    found = None
    if pipeline is not None:
        problems += check_shapes(pipeline, config)
        found = problems.attempt(lambda: sampling_of(pipeline.scheduler, config))
    if extractor is not None:
        problems += check_features(extractor, config, splits)
    if problems or pipeline is None or extractor is None or splits is None or found is None:
        raise problems.error()
    sampling, drawn = found
    references = {
        split: reference_key(config.dataset.model_copy(update={"split": split}), images, extractor)
        for split, images in splits.items()
    }
    training_split, held_out = config.dataset.split, held_out_split(config)
    reference = references[benchmark.reference_split or training_split]
    # Entries that begin with _ are diffusers' own, and in another order in every process.
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    settings = {
        "weights": weights_hash(pipeline.unet),
        "scheduler": json.loads(json.dumps(scheduler, default=str)),
        **asdict(sampling),
        "batch_size": benchmark.batch_size,
        "training": asdict(references[training_split]),
        "reference": asdict(reference),
        "held_out": asdict(references[held_out]),
        "num_held_out": benchmark.num_held_out,
        "reconstruction_levels": list(benchmark.reconstruction_levels),
        "likelihood_timesteps": benchmark.likelihood_timesteps,
    }
    if output is None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        features = re.sub(r"\W+", "-", extractor.label).strip("-").lower()
        steps = f"{drawn.sampler}-{sampling.num_inference_steps}-steps"
        output = evaluations_of(model) / f"{steps}-{features}-seed-{sampling.seed}-{digest}"
    if not is_in_training and (problem := other_contents(output, settings)):
        raise UserError(f"--output: {problem}")
    report = Report(
        model=ModelSection(name=str(model), weights=settings["weights"], ema=_ema(model)),
        sampling=drawn,
        features=FeaturesSection(**{each.name: getattr(extractor, each.name) for each in fields(FeaturesSection)}),
        reference=reference,
        held_out=HeldOutSection(
            split=held_out,
            num_images=min(benchmark.num_held_out, len(splits[held_out])),
            are_training_images=overlap(held_out, training_split),
            fingerprint=references[held_out].fingerprint,
            likelihood_timesteps=benchmark.likelihood_timesteps,
        ),
        real_vs_real="",
        reference_is_trained_on=overlap(reference.split, training_split),
        metrics={},
        reconstructions=[],
        baselines=[],
    )
    return EvaluationPlan(
        config, pipeline, extractor, splits, sampling, references, report, settings, output, is_in_training
    )


def other_contents(folder: Path, settings: dict[str, Any]) -> str | None:
    """Describe what a folder holds, if not an evaluation of these settings."""
    file = folder / SETTINGS
    if not folder.exists():
        return None
    if not folder.is_dir() or (not file.exists() and visible_files(folder)):
        return f"{folder} exists and holds no evaluation; choose another folder"
    if not file.exists():
        return None
    try:
        before = read_json_mapping(file)
    except ValueError:
        return f"{file} is damaged; choose another folder, or delete this one"
    if changed := [name for name, value in settings.items() if before.get(name) != value]:
        return f"{folder} holds an evaluation of other settings ({', '.join(changed)}); choose another folder"
    return None


def evaluations_of(model: str | Path) -> Path:
    """The folder of a model's evaluations: below its own, or in runs/ for a model on the Hub."""
    path = Path(model).expanduser()
    return (path if path.is_dir() else Path("runs") / str(model).replace("/", "--")) / "evaluation"


def sampling_of(own: Any, config: Config) -> tuple[SamplingSettings, SamplingSection]:
    """How samples are drawn, with the first seed, and what the report says about it.

    Args:
        own: the scheduler of the model.
        config: whose benchmark section may name another sampler and its steps.

    Raises:
        UserError: if there is no such sampler, or it cannot take so many steps.
    """
    benchmark, name = config.benchmark, config.benchmark.sampler
    steps = benchmark.num_inference_steps or own.config.num_train_timesteps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = copy.deepcopy(own) if name is None else make_sampler(name, own)
        set_num_steps(scheduler, steps)
    except ValueError as error:
        raise UserError(f"benchmark.sampler, benchmark.num_inference_steps: {error}") from error
    num_classes = config.model.num_classes
    section = SamplingSection(
        n_samples=benchmark.n_samples,
        seeds=[config.seed + repeat for repeat in range(benchmark.num_seeds)],
        sampler=name or type(scheduler).__name__.removesuffix("Scheduler").lower(),
        num_inference_steps=steps,
        network_evaluations=len(scheduler.timesteps),
        batch_size=benchmark.batch_size,
        classes=f"each of {num_classes} in turn" if num_classes else "none",
    )
    labels = None if num_classes is None else list(range(num_classes))
    return SamplingSettings(config.seed, steps, name, labels), section


def held_out_split(config: Config) -> str:
    """The split of the held-out images: the benchmark's, else the dataset's, else the training images."""
    dataset = config.dataset
    return config.benchmark.held_out_split or dataset.validation_split or _held_out_fraction(dataset) or dataset.split


def load_splits(config: Config, model: str | Path) -> dict[str, ImageSet]:
    """Load every set of images that is used, once each, by the name of its split.

    What `dataset.validation_fraction` held out of a run's training is held out here too.

    Args:
        config: whose dataset and benchmark sections name them.
        model: whose run, if it has one, has the seed that the held-out images were drawn by.

    Raises:
        UserError: naming every split that cannot be loaded.
    """
    benchmark, dataset = config.benchmark, config.dataset
    progress, problems = PartialState().is_main_process, Problems()
    if benchmark.held_out_split:
        dataset = dataset.model_copy(update={"validation_split": None})
    seed = int((run_config(model) or {}).get("seed", config.seed))
    trained_on = dataset_of(model)
    if dataset.value_range == "auto" and dataset.name == trained_on.name:  # as bright as what it was trained on
        dataset = dataset.model_copy(update={"value_range": trained_on.value_range})
    splits: dict[str, ImageSet] = {}
    loaded = problems.attempt(lambda: load_image_sets(dataset, config.model, seed, progress))
    if loaded is not None:
        splits[dataset.split] = loaded[0]
        if loaded[1] is not None:
            splits[dataset.validation_split or _held_out_fraction(dataset)] = loaded[1]
    for field in ("reference_split", "held_out_split"):
        split = getattr(benchmark, field)
        if split is None or split in splits or split == dataset.split:
            continue
        update = {"validation_split": None, "validation_fraction": 0.0, "split": split}
        try:
            splits[split] = load_image_set(dataset.model_copy(update=update), config.model, progress)
        except UserError as error:
            problems.append(str(error).replace("dataset.split", f"benchmark.{field}", 1))
    if problems:
        raise UserError("; ".join(problems))
    return splits


def run_config(model: str | Path) -> dict[str, Any] | None:
    """The configuration of the run that a model's folder is, is a checkpoint of, or was pushed by; None if unknown."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    files = (folder / "config.yaml", folder.parent.parent / "config.yaml", folder / CONFIG)
    return next(filter(None, map(find_mapping, files)), None)


def dataset_of(model: str | Path) -> DatasetConfig:
    """The options of the images that the model in a folder was trained on; the defaults where nothing tells them."""
    try:
        return DatasetConfig.model_validate((run_config(model) or {}).get("dataset"))
    except ValueError:
        return DatasetConfig()


def _ema(model: str | Path) -> str:
    """Whether the weights are averaged, as far as the folder of the model tells."""
    try:
        decay = float((run_config(model) or {})["training"]["ema_decay"])
    except (KeyError, TypeError, ValueError):
        return "not recorded: the weights as they were saved"
    return f"yes, decay {decay}: a run saves the averaged weights for use"


def check_packages(benchmark: BenchmarkConfig) -> list[str]:
    """Missing packages, and whether any metric is enabled."""
    metrics = benchmark.metrics
    if not any(metrics.model_dump().values()):
        return ["benchmark.metrics: all are false; set at least one of them to true"]
    if (metrics.ssim or metrics.psnr) and importlib.util.find_spec("torchmetrics") is None:
        return ["benchmark.metrics: ssim and psnr need torchmetrics: pip install 'torchmetrics>=1.7,<2'"]
    return []


def check_shapes(pipeline: DDPMPipeline, config: Config) -> list[str]:
    """In what the images of the model differ from those of the configuration."""
    network, model = pipeline.unet.config, config.model
    size = network.sample_size
    own = (size, size) if isinstance(size, int) or size is None else (size[0], size[1])
    problems = []
    if model.image_channels != network.in_channels:
        given = f"given {model.image_channels}, but the model draws {network.in_channels}"
        problems.append(f"model_config.image_channels: {given}")
    if model.sides != own:
        problems.append(f"model_config.image_size: given {model.image_size}, but the model draws {size}")
    classes = network.num_class_embeds and network.num_class_embeds - 1  # the last label stands for no class
    if classes is not None and model.num_classes is None:
        problems.append("model_config.num_classes: the model is class-conditional; give the number of its classes")
    if model.num_classes is not None and (classes or 0) < model.num_classes:
        problems.append(
            f"model_config.num_classes: given {model.num_classes}, but the model knows {classes or 'no classes'}"
        )
    return problems


def check_features(
    extractor: FeatureExtractor,
    config: Config,
    splits: dict[str, ImageSet] | None,
    count_field: str = "benchmark.n_samples",
) -> list[str]:
    """Check that the extractor accepts the model's images, and that there are enough images for its features.

    Args:
        extractor: of features; a user's own finds the number of its features here.
        config: of the evaluation.
        splits: the images, by split; None if they could not be loaded.
        count_field: option of the configuration that benchmark.n_samples comes from.
    """
    benchmark, model = config.benchmark, config.model
    problems = Problems()
    if model.image_channels not in extractor.channels:
        problems.append(
            f"benchmark.features: {extractor.name} takes images of {extractor.channels[0]} channel, those of the "
            f"model have {model.image_channels}"
        )
    elif isinstance(extractor, UserExtractor):
        problems.attempt(lambda: extractor.probe((model.image_channels, *model.sides)))
        if problems:
            return problems
    if not benchmark.metrics.fid or benchmark.allow_few_samples:
        return problems
    least = extractor.num_features + 1
    why = (
        f"at least {least:,} for a Fréchet distance in the {extractor.num_features:,} features of {extractor.name}; or "
        "benchmark.allow_few_samples=true, or benchmark.metrics.fid=false"
    )
    if benchmark.n_samples < least:
        problems.append(f"{count_field}: given {benchmark.n_samples:,}; allowed: {why}")
    if splits is not None:
        split = benchmark.reference_split or config.dataset.split
        if len(splits[split]) < least:
            problems.append(f"split {split!r} has {len(splits[split]):,} images to compare with; allowed: {why}")
    return problems


def _held_out_fraction(dataset: DatasetConfig) -> str:
    """The name of the images that a fraction holds out; empty if there are none."""
    return f"{dataset.split}, {part:.4g} of it held out" if (part := dataset.validation_fraction) else ""
