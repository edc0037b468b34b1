"""A whole run beside the loopback Hub: train with uploads, load what was pushed, go on from it elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / "training" / "train.py"


@pytest.fixture
def train(environment, tiny_yaml, tmp_path):
    """Run the training program on a tiny configuration."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(TRAIN), "--config", str(tiny_yaml), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=200, env=environment, cwd=tmp_path
        )

    return run


def test_a_run_is_pushed_during_training_and_resumed_from_the_hub(hub, train, tmp_path):
    options = ["hub.checkpoint_branch=checkpoints", "hub.push_every=2", "hub.license=mit"]
    first = train("output_dir=digits", "--push_to_hub", "training.num_steps=4", *options)
    assert first.returncode == 0, first.stderr
    repo = hub.repo("ada/digits")
    assert repo.private
    names = set(repo.history("main")[0].files)
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= names
    assert {"training_config.yaml", "samples.png", "denoising.png"} <= names
    assert not [name for name in names if name.endswith(".py")]
    assert not [name for name in names if "optimizer" in name or "metrics.jsonl" in name]
    second = train("output_dir=elsewhere", "--resume", "hub:ada/digits@checkpoints", "training.num_steps=6")
    assert second.returncode == 0, second.stderr
    whole = train("output_dir=whole", "training.num_steps=6")
    assert whole.returncode == 0, whole.stderr
    assert {path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir()} == {"step-6"}


def test_a_repository_without_write_access_is_reported_before_the_first_step(hub, train, tmp_path):
    refused = train("output_dir=run", "hub.repo_id=someone-else/digits")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "someone-else" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_down_does_not_end_a_run(hub, train, tmp_path, environment):
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there
    run = train("output_dir=run", "hub.repo_id=ada/digits", "hub.wait_at_end=1", "hub.license=mit")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "model_index.json").exists()
    assert "pipelines/push_to_hub.py" in run.stdout + run.stderr
