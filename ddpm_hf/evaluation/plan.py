"""An evaluation that is to be: loaded and checked as a whole before the first sample is drawn."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ddpm_hf.checkpoints.find import load_pipeline, weights_hash
from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.checks import Problems, check_features, check_packages, check_shapes, find_drawing
from ddpm_hf.evaluation.features import FeatureExtractor, load_extractor
from ddpm_hf.evaluation.reference import reference_key
from ddpm_hf.evaluation.splits import held_out_split, load_splits
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import visible_files

SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """An evaluation that has passed every check.

    Attributes:
        config: its configuration.
        model: what the person called the model.
        pipeline: the model.
        extractor: what looks at the images.
        splits: the images of each split that is used.
        drawing: how samples are drawn, with the first seed.
        sampler_name: of the scheduler that draws them.
        network_evaluations: of one sample.
        settings: everything that samples and features depend on; two evaluations of equal settings share a folder.
        folder: where the evaluation goes.
        renew: the model is one in training, whose folder may hold what it was before.
        is_stale: it does.
    """

    config: Config
    model: str
    pipeline: DDPMPipeline
    extractor: FeatureExtractor
    splits: dict[str, ImageSet]
    drawing: SamplingSettings
    sampler_name: str
    network_evaluations: int
    settings: dict[str, Any]
    folder: Path
    renew: bool
    is_stale: bool

    @property
    def benchmark(self) -> BenchmarkConfig:
        """The section of the configuration that this is about."""
        return self.config.benchmark

    def drawing_of(self, seed: int) -> SamplingSettings:
        """How the samples of a seed are drawn."""
        return dataclasses.replace(self.drawing, seed=seed)

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
        """The split of the images that are reconstructed."""
        return held_out_split(self.config)


def make_plan(
    model: str | Path,
    config: Config,
    output: Path | None = None,
    pipeline: DDPMPipeline | None = None,
    extractor: FeatureExtractor | None = None,
    renew: bool = False,
) -> Plan:
    """Load everything and check it; nothing is written.

    Args:
        model: a saved pipeline, a run folder, or an id on the Hub.
        config: whose dataset and benchmark sections say what is measured.
        output: the folder of the evaluation; None makes one of its own below the model's.
        pipeline: the model itself, where it is loaded already.
        extractor: likewise, instead of `benchmark.features`.
        renew: for a model in training, whose folder is replaced where it is not of this evaluation.

    Raises:
        UserError: naming everything that does not fit.
    """
    problems = Problems()
    benchmark = config.benchmark
    if pipeline is None:
        pipeline = problems.attempt(lambda: load_pipeline(model))
    if extractor is None:
        device = pipeline.device if pipeline is not None else "cpu"
        extractor = problems.attempt(lambda: load_extractor(benchmark, device))
    splits = problems.attempt(lambda: load_splits(config, model))
    problems += check_packages(benchmark)
    how = None
    if pipeline is not None:
        problems += check_shapes(pipeline, config)
        how = problems.attempt(lambda: find_drawing(pipeline.scheduler, config))
    if extractor is not None:
        problems += check_features(extractor, config, splits)
    if problems or pipeline is None or extractor is None or splits is None or how is None:
        raise problems.error()
    drawing, sampler_name, evaluations = how
    settings = _settings(config, pipeline, extractor, splits, drawing)
    folder = output or _default_folder(model, sampler_name, settings, extractor, drawing)
    is_stale = False
    try:
        _check_folder(folder, settings)
    except UserError:
        if not renew:
            raise
        is_stale = True
    return Plan(
        config,
        str(model),
        pipeline,
        extractor,
        splits,
        drawing,
        sampler_name,
        evaluations,
        settings,
        folder,
        renew,
        is_stale,
    )


def evaluations_of(model: str | Path) -> Path:
    """Where the evaluations of a model go: below its folder, or in runs/ for one of the Hub."""
    path = Path(model).expanduser()
    return (path if path.is_dir() else Path("runs") / str(model).replace("/", "--")) / "evaluation"


def _settings(
    config: Config,
    pipeline: DDPMPipeline,
    extractor: FeatureExtractor,
    splits: dict[str, ImageSet],
    drawing: SamplingSettings,
) -> dict[str, Any]:
    benchmark = config.benchmark
    keys = {
        split: reference_key(config.dataset.model_copy(update={"split": split}), images, extractor)
        for split, images in splits.items()
    }
    # diffusers' own notes begin with _; which values are defaults, it lists in another order in every process
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return {
        "weights": weights_hash(pipeline.unet),
        "scheduler": json.loads(json.dumps(scheduler, default=str)),
        "seed": drawing.seed,
        "sampler": drawing.sampler,
        "num_inference_steps": drawing.num_inference_steps,
        "num_classes": config.model.num_classes,
        "batch_size": benchmark.batch_size,
        "training": keys[config.dataset.split],
        "reference": keys[benchmark.reference_split or config.dataset.split],
        "held_out": keys[held_out_split(config)],
        "num_held_out": benchmark.num_held_out,
        "reconstruction_levels": list(benchmark.reconstruction_levels),
        "likelihood_timesteps": benchmark.likelihood_timesteps,
    }


def _default_folder(
    model: str | Path, sampler: str, settings: dict[str, Any], extractor: FeatureExtractor, drawing: SamplingSettings
) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    features = re.sub(r"\W+", "-", extractor.label).strip("-").lower()
    name = f"{sampler}-{drawing.num_inference_steps}-steps-{features}-seed-{drawing.seed}-{digest}"
    return evaluations_of(model) / name


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with anything but an evaluation of the same settings."""
    if not folder.exists():
        return
    file = folder / SETTINGS
    if not folder.is_dir() or (not file.exists() and visible_files(folder)):
        raise UserError(f"--output: {folder} exists and holds no evaluation; choose another folder")
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"--output: {file} is damaged; choose another folder, or delete this one") from None
    if changed := [name for name, value in settings.items() if before.get(name) != value]:
        raise UserError(
            f"--output: {folder} holds an evaluation of other settings ({', '.join(changed)}); choose another folder"
        )
