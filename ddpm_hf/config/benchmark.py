"""`benchmark`: what an evaluation measures (package `evaluation`, program training/eval.py), and how."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Len, Lt
from pydantic import BeforeValidator, model_validator
from typing_extensions import Self

from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.config.section import NUMBER, PositiveInt, Section

Level = Annotated[float, Gt(0), Lt(1), NUMBER]


class BenchmarkMetrics(Section):
    """Which metrics an evaluation computes."""

    fid: bool = True
    """Fréchet distance between samples and reference: FID with Inception's features, FD with any others."""
    inception_score: bool = True
    """Inception score, or the same score of another classifier; features without classes have none."""
    kid: bool = True
    """Kernel distance; unbiased at any number of samples."""
    precision_recall: bool = True
    """Share of samples within the reference, and of the reference within the samples."""
    memorization: bool = True
    """Share of samples that are far closer to one training image than to all others."""
    ssim: bool = True
    """Structural similarity of reconstructions of held-out images."""
    psnr: bool = True
    """Peak signal-to-noise ratio of reconstructions of held-out images."""
    bits_per_dim: bool = True
    """Variational bound on the negative log-likelihood of held-out images."""


class BenchmarkConfig(Section):
    """What `training/eval.py` and `--eval_only --benchmark` measure."""

    n_samples: Annotated[int, Ge(2), NUMBER] = 50_000
    """Samples drawn for the evaluation."""
    batch_size: PositiveInt = 128
    """Samples drawn at a time: samples 0 to batch_size - 1 form one batch, whatever the number of processes."""
    metrics: BenchmarkMetrics = BenchmarkMetrics()
    """Which metrics to compute."""
    save_samples: bool = True
    """Keep the samples as images."""
    save_metrics: bool = True
    """Write the metrics to metrics.json."""
    features: Annotated[str, BeforeValidator(repo_id_of)] = "inception"
    """Feature extractor: `inception`, `digits` (a small classifier of handwritten digits, nothing to download), the Hub
    id or folder of a transformers vision model, or FILE.py:NAME for your own module."""
    inception_weights: str | None = None
    """A file with Inception's weights; null: torch-fidelity's, downloaded once."""
    inception_resize: Literal["tensorflow", "antialias"] = "tensorflow"
    """How images are resized for Inception: as in the literature, without anti-aliasing, or with it."""
    sampler: str | None = None
    """A sampler of `pipelines.samplers`; null: the scheduler that the model was saved with."""
    num_inference_steps: PositiveInt | None = None
    """Denoising steps per sample; null: all of the model's time steps."""
    num_seeds: PositiveInt = 1
    """Number of sets of n_samples, each drawn from its own seed; with 2 or more, metrics have a standard deviation."""
    reference_split: str | None = None
    """Split that samples are compared with; null: dataset.split, the training images."""
    held_out_split: str | None = None
    """Split for reconstruction and likelihood; null: the images that the dataset section holds out, or, without any,
    the training images, which the report then says."""
    num_held_out: PositiveInt = 64
    """Held-out images used for reconstruction and likelihood."""
    reconstruction_levels: Annotated[tuple[Level, ...], Len(min_length=1)] = (0.1, 0.25, 0.5)
    """Fractions of the time steps up to which held-out images are noised before they are denoised again."""
    likelihood_timesteps: Annotated[int, Ge(3), NUMBER] | None = 100
    """Time steps at which the bound is evaluated for each image, spread evenly; null: all of them."""
    allow_few_samples: bool = False
    """Compute a Fréchet distance from no more images than the features have dimensions, though it means little."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = list(self.reconstruction_levels)
        has_unused_weights = self.inception_weights is not None and self.features != "inception"
        return self.refuse(
            (levels != sorted(set(levels)), "reconstruction_levels", "increasing fractions, each once"),
            (has_unused_weights, "inception_weights", "only with features: inception"),
        )
