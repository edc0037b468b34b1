"""The program that pushes, a process that ends while an upload hangs, and a run that goes on from the Hub."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ddpm_hf.checkpoints.fetch import fetch_checkpoint
from ddpm_hf.config import load_config
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub import push_run

PROGRAM = Path(__file__).parents[2] / "pipelines" / "push_to_hub.py"

TINY = """
model_config: {time_steps: 20, image_size: 8, image_channels: 1, hidden_channels: 8, channel_multipliers: [1, 2],
  attention_levels: [1], num_res_blocks: 1, norm_groups: 4, dropout: 0.1}
training: {num_steps: 6, batch_size: 8, mixed_precision: "no", checkpoint_every: 2, preview_every: null,
  num_preview_images: 1}
"""


@pytest.fixture
def push(environment, tmp_path):
    """Run the program."""

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**environment, **variables},
            cwd=tmp_path,
        )

    return run


@pytest.mark.slow
def test_the_program_pushes_once_and_then_finds_nothing_to_do(hub, push, run):
    first = push(run, "--repo_id", "ada/other", "--checkpoints", "--license", "mit")
    assert first.returncode == 0, first.stderr
    assert "pipeline: 9 files changed: " in first.stdout
    assert "checkpoint: 9 files changed: " in first.stdout
    second = push(run, "--repo_id", "ada/other", "--checkpoints", "--license", "mit")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("nothing to do, it is up to date") == 2
    repo = hub.repo("ada/other")
    assert len(repo.history("main")) == len(repo.history("checkpoints")) == 2
    assert repo.private


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["{run}", "--repo_id", "ada/x"], {"HF_TOKEN": ""}, "there is no token"),
        (["nowhere", "--repo_id", "ada/x"], {}, "there is no folder nowhere"),
        (["{run}/unet"], {}, "--repo_id: not given"),
        (["{run}", "--repo_id", "bob/x"], {}, "may not write"),
        (["{run}", "--repo_id", "a/b/c"], {}, "--repo_id: given 'a/b/c'; allowed: user/name"),
        (["{run}", "--repo_id", "https://huggingface.co/bob/x"], {}, "may not write to the repository bob/x"),
        (["{run}", "--repo_id", "ada/x", "--space", "a/b/c"], {}, "--space: given 'a/b/c'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(hub, push, run, arguments, variables, words):
    result = push(*(argument.format(run=run) for argument in arguments), **variables)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("route", ["commit", pytest.param("lfs-put", marks=pytest.mark.slow)])
def test_a_process_ends_although_its_upload_hangs(hub, run, run_python, route):
    hub.fault(route, hang=60)
    program = """
        import sys, time
        from pathlib import Path
        from ddpm_hf.config.hub import HubConfig
        from ddpm_hf.hub import HubUploader
        up = HubUploader(HubConfig(repo_id="ada/digits", license="mit"), Path(sys.argv[1]))
        up.start()
        up.submit_finished()
        print(time.time(), up.drain(limit=1))
    """
    result = run_python(program, str(run))
    ended = time.time()
    assert result.returncode == 0, result.stderr
    drained, done = result.stdout.splitlines()[-1].split()
    assert done == "False"
    assert ended - float(drained) < 10
    assert "push it later with" in result.stdout


@pytest.mark.slow
def test_a_run_resumes_exactly_from_the_hub(hub, client, tmp_path):
    """Half a run here, its checkpoint over the Hub, the other half elsewhere: bit by bit the uninterrupted run."""
    from ddpm_hf import Trainer

    (tmp_path / "tiny.yaml").write_text(TINY)

    def train(folder, steps, resume=None):
        overrides = [
            f"output_dir={tmp_path / folder}",
            f"training.num_steps={steps}",
            "training.scheduler.type=constant",
        ]
        Trainer(load_config(tmp_path / "tiny.yaml", overrides), resume=resume).train()
        AcceleratorState._reset_state(reset_partial_state=True)
        return tmp_path / folder

    whole = train("whole", 6)
    half = train("half", 4)
    push_run(half, HubConfig(repo_id="ada/digits", checkpoint_branch="state"), client, kind="checkpoint")
    resumed = train("resumed", 6, str(fetch_checkpoint("hub:ada/digits@state", client)))
    for name in ("network", "optimizer"):
        path = f"checkpoints/step-6/training_state/{name}.safetensors"
        torch.testing.assert_close(load_file(resumed / path), load_file(whole / path), rtol=0, atol=0)
    weights = "unet/diffusion_pytorch_model.safetensors"
    torch.testing.assert_close(load_file(resumed / weights), load_file(whole / weights), rtol=0, atol=0)
