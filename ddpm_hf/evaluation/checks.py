"""What can be wrong with an evaluation, found before a sample is drawn."""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.features import FeatureExtractor, UserExtractor
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError

Thing = TypeVar("Thing")


class Problems(list[str]):
    """Everything that does not fit, gathered so that it is said at once."""

    def attempt(self, load: Callable[[], Thing]) -> Thing | None:
        """What is loaded; None, if the user has to mend something first."""
        try:
            return load()
        except UserError as error:
            self.append(str(error))
            return None

    def error(self) -> UserError:
        """All of them in one error, a line each."""
        listed = f" {self[0]}" if len(self) == 1 else "".join(f"\n  {each}" for each in self)
        return UserError(f"cannot be evaluated:{listed}")


def check_packages(benchmark: BenchmarkConfig) -> list[str]:
    """What is missing for the figures that are wanted, and whether any is."""
    metrics = benchmark.metrics
    if not any(metrics.model_dump().values()):
        return ["benchmark.metrics: all are false; set at least one of them to true"]
    needed = metrics.fid or metrics.kid or metrics.ssim or metrics.psnr
    if needed and importlib.util.find_spec("torchmetrics") is None:
        return ["benchmark.metrics: fid, kid, ssim and psnr need torchmetrics: pip install 'torchmetrics>=1.7,<2'"]
    return []


def check_shapes(pipeline: DDPMPipeline, config: Config) -> list[str]:
    """What the model draws and the configuration does not say."""
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


def find_drawing(own: Any, config: Config) -> tuple[SamplingSettings, str, int]:
    """How samples are drawn, the sampler's name and the network evaluations of a sample.

    Args:
        own: the scheduler of the model.
        config: whose benchmark section may name another sampler and its steps.

    Raises:
        UserError: if there is no such sampler, or it cannot take so many steps.
    """
    benchmark, T = config.benchmark, own.config.num_train_timesteps
    steps = benchmark.num_inference_steps or T
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = benchmark.sampler
            scheduler = copy.deepcopy(own) if name is None else make_sampler(name, own)
        set_num_steps(scheduler, steps)
    except ValueError as error:
        raise UserError(f"benchmark.sampler, benchmark.num_inference_steps: {error}") from error
    shown = name or type(scheduler).__name__.removesuffix("Scheduler").lower()
    classes = config.model.num_classes
    settings = SamplingSettings(config.seed, steps, name, None if classes is None else list(range(classes)))
    return settings, shown, len(scheduler.timesteps)


def check_features(
    extractor: FeatureExtractor,
    config: Config,
    splits: dict[str, ImageSet] | None,
    count_field: str = "benchmark.n_samples",
) -> list[str]:
    """Whether the extractor takes the model's images, and whether there are enough of them for its features.

    Args:
        extractor: what looks at the images; one of the user's learns the number of its features here.
        config: what is asked for.
        splits: the images, by split; None where they are not to be had.
        count_field: of the configuration, where benchmark.n_samples comes from.
    """
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
        problems.append(f"{count_field}: given {benchmark.n_samples:,}; allowed: {why}")
    if splits is not None:
        split = benchmark.reference_split or config.dataset.split
        if len(splits[split]) < least:
            problems.append(f"split {split!r} has {len(splits[split]):,} images to compare with; allowed: {why}")
    return problems
