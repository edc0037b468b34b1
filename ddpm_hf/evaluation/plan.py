"""Everything that can be wrong with an evaluation is found before the first sample is drawn, and said at once."""

import copy
import dataclasses
import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.data import ImageSet
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.features import FeatureExtractor, UserExtractor, load_extractor
from ddpm_hf.evaluation.reference import reference_key
from ddpm_hf.evaluation.sampling import Drawing
from ddpm_hf.evaluation.splits import held_out_split, load_splits
from ddpm_hf.hub.loading import load_pipeline
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.generation import weights_hash
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps

SETTINGS = "settings.json"

Thing = TypeVar("Thing")


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
    """

    config: Config
    model: str
    pipeline: DDPMPipeline
    extractor: FeatureExtractor
    splits: dict[str, ImageSet]
    drawing: Drawing
    sampler_name: str
    network_evaluations: int
    settings: dict[str, Any]
    folder: Path

    @property
    def benchmark(self) -> BenchmarkConfig:
        """The section of the configuration that this is about."""
        return self.config.benchmark

    def drawing_of(self, seed: int) -> Drawing:
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
) -> Plan:
    """Load everything and check it; nothing is written.

    Args:
        model: a saved pipeline, a run folder, or an id on the Hub.
        config: whose dataset and benchmark sections say what is measured.
        output: the folder of the evaluation; None makes one of its own below the model's.
        pipeline: the model itself, where it is loaded already.
        extractor: likewise, instead of `benchmark.features`.

    Raises:
        UserError: naming everything that does not fit.
    """
    problems: list[str] = []

    def attempt(load: Callable[[], Thing]) -> Thing | None:
        try:
            return load()
        except UserError as error:
            problems.append(str(error))
            return None

    benchmark = config.benchmark
    if pipeline is None:
        pipeline = attempt(lambda: load_pipeline(model))
    if extractor is None:
        device = pipeline.device if pipeline is not None else "cpu"
        with PartialState().local_main_process_first():
            extractor = attempt(lambda: load_extractor(benchmark, device))
    splits = attempt(lambda: load_splits(config, model))
    problems += _check_packages(benchmark)
    how = None
    if pipeline is not None:
        problems += _check_shapes(pipeline, config)
        how = attempt(lambda: _drawing(pipeline, config))
    if extractor is not None:
        problems += _check_features(extractor, config, splits)
    if problems or pipeline is None or extractor is None or splits is None or how is None:
        listed = problems[0] if len(problems) == 1 else "\n" + "\n".join(f"  {each}" for each in problems)
        raise UserError(f"cannot be evaluated: {listed}")
    drawing, sampler_name, evaluations = how
    settings = _settings(config, pipeline, extractor, splits, drawing)
    folder = output or _default_folder(model, sampler_name, settings, extractor, drawing)
    _check_folder(folder, settings)
    return Plan(config, str(model), pipeline, extractor, splits, drawing, sampler_name, evaluations, settings, folder)


def evaluations_of(model: str | Path) -> Path:
    """Where the evaluations of a model go: below its folder, or in runs/ for one of the Hub."""
    path = Path(model).expanduser()
    return (path if path.is_dir() else Path("runs") / str(model).replace("/", "--")) / "evaluation"


def _check_packages(benchmark: BenchmarkConfig) -> list[str]:
    metrics = benchmark.metrics
    if not any(metrics.model_dump().values()):
        return ["benchmark.metrics: all are false; set at least one of them to true"]
    needed = metrics.fid or metrics.kid or metrics.ssim or metrics.psnr
    if needed and importlib.util.find_spec("torchmetrics") is None:
        return ["benchmark.metrics: fid, kid, ssim and psnr need torchmetrics: pip install 'torchmetrics>=1.7,<2'"]
    return []


def _check_shapes(pipeline: DDPMPipeline, config: Config) -> list[str]:
    network, model = pipeline.unet.config, config.model
    size = network.sample_size
    side = size if isinstance(size, int) or size is None else size[0]
    problems = []
    if network.in_channels != model.image_channels:
        problems.append(
            f"model_config.image_channels: given {model.image_channels}, but the model draws {network.in_channels}"
        )
    if side != model.image_size:
        problems.append(f"model_config.image_size: given {model.image_size}, but the model draws {side}")
    classes = network.num_class_embeds
    if classes is not None and model.num_classes is None:
        problems.append("model_config.num_classes: the model is class-conditional; give the number of its classes")
    if model.num_classes is not None and (classes or 0) < model.num_classes:
        problems.append(
            f"model_config.num_classes: given {model.num_classes}, but the model knows {classes or 'no classes'}"
        )
    return problems


def _drawing(pipeline: DDPMPipeline, config: Config) -> tuple[Drawing, str, int]:
    """How samples are drawn, the sampler's name and the network evaluations of a sample."""
    benchmark, T = config.benchmark, pipeline.scheduler.config.num_train_timesteps
    steps = benchmark.num_inference_steps or T
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = (
                copy.deepcopy(pipeline.scheduler)
                if benchmark.sampler is None
                else make_sampler(benchmark.sampler, pipeline.scheduler)
            )
        set_num_steps(scheduler, steps)
    except ValueError as error:
        raise UserError(f"benchmark.sampler, benchmark.num_inference_steps: {error}") from error
    name = benchmark.sampler or type(scheduler).__name__.removesuffix("Scheduler").lower()
    return Drawing(config.seed, benchmark.sampler, steps, config.model.num_classes), name, len(scheduler.timesteps)


def _check_features(extractor: FeatureExtractor, config: Config, splits: dict[str, ImageSet] | None) -> list[str]:
    benchmark, model = config.benchmark, config.model
    problems = []
    if model.image_channels not in extractor.channels:
        problems.append(
            f"benchmark.features: {extractor.name} looks at images of {extractor.channels[0]} channel, those of the "
            f"model have {model.image_channels}"
        )
    elif isinstance(extractor, UserExtractor):
        try:
            extractor.probe((model.image_channels, model.image_size, model.image_size))
        except UserError as error:
            return [str(error)]
    if not benchmark.metrics.fid or benchmark.allow_few_samples:
        return problems
    least = extractor.num_features + 1
    why = (
        f"at least {least:,} for a Fréchet distance in the {extractor.num_features:,} features of {extractor.name}; or "
        "benchmark.allow_few_samples=true, or benchmark.metrics.fid=false"
    )
    if benchmark.n_samples < least:
        problems.append(f"benchmark.n_samples: given {benchmark.n_samples:,}; allowed: {why}")
    if splits is not None:
        split = benchmark.reference_split or config.dataset.split
        if len(splits[split]) < least:
            problems.append(f"split {split!r} has {len(splits[split]):,} images to compare with; allowed: {why}")
    return problems


def _settings(
    config: Config,
    pipeline: DDPMPipeline,
    extractor: FeatureExtractor,
    splits: dict[str, ImageSet],
    drawing: Drawing,
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
        "num_classes": drawing.num_classes,
        "batch_size": benchmark.batch_size,
        "training": keys[config.dataset.split],
        "reference": keys[benchmark.reference_split or config.dataset.split],
        "held_out": keys[held_out_split(config)],
        "num_held_out": benchmark.num_held_out,
        "reconstruction_levels": list(benchmark.reconstruction_levels),
        "likelihood_timesteps": benchmark.likelihood_timesteps,
    }


def _default_folder(
    model: str | Path, sampler: str, settings: dict[str, Any], extractor: FeatureExtractor, drawing: Drawing
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
    if not folder.is_dir() or (not file.exists() and any(folder.iterdir())):
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
