"""What is known of a model is what its run folder says."""

import shutil
from pathlib import Path

import pytest

from ddpm_hf import load_pipeline
from ddpm_hf.checkpoints.format import Progress
from ddpm_hf.hub.model_info import gather_model_info, read_config

FIRST_VERSION = Path(__file__).parents[1] / "first_version"


def gather(run, pipeline=None, files=()):
    return gather_model_info(run, pipeline or run, "ada/digits", files)


def test_a_finished_run(run):
    info = gather(run, files=["metrics.json"])
    assert (info.name, info.step, info.is_finished) == ("digits", 6, True)
    assert info.seconds > 0
    assert (info.dataset, info.dataset_revision, info.image_size) == ("faces", None, "8x8")
    assert (info.num_classes, info.num_train_timesteps) == (None, 20)
    assert info.report.sampling.n_samples == 70
    assert info.environment["versions"]["torch"]


def test_a_checkpoint_of_an_unfinished_run(run):
    checkpoint = run / "checkpoints" / "step-4"
    info = gather(run, checkpoint)
    assert (info.step, info.seconds) == (4, Progress.read(checkpoint).seconds)
    assert not info.is_finished
    assert info.report is None


@pytest.mark.parametrize("name", ["plain", "full"])  # the second has two EMA decays, and so two files of weights
def test_every_parameter_is_counted_once(name):
    folder = FIRST_VERSION / name
    assert gather(folder).num_parameters == load_pipeline(folder).unet.num_parameters()


def test_a_pipeline_without_its_run(run, tmp_path):
    for name in ("unet", "scheduler"):
        shutil.copytree(run / name, tmp_path / "model" / name)
    info = gather(tmp_path / "model")
    assert (info.config, info.step, info.seconds, info.environment) == ({}, None, None, {})
    assert info.dataset == "unknown data"


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "\x00"])
def test_a_configuration_that_cannot_be_read_is_left_out(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path) == {}
