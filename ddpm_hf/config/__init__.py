"""The schema of the YAML files: one place for the name, default, unit, range and meaning of every option."""

from ddpm_hf.config.benchmark import BenchmarkConfig
from ddpm_hf.config.dataset import DatasetConfig
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.config.loss import LossConfig
from ddpm_hf.config.model import ModelConfig
from ddpm_hf.config.reader import load_config
from ddpm_hf.config.root import Config
from ddpm_hf.config.training import LearningRateConfig, LoggingConfig, TrainingConfig

__all__ = [
    "BenchmarkConfig",
    "Config",
    "DatasetConfig",
    "HubConfig",
    "LearningRateConfig",
    "LoggingConfig",
    "LossConfig",
    "ModelConfig",
    "TrainingConfig",
    "load_config",
]
