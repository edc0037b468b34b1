"""Whole runs in processes of their own: launched, killed, shared by two processes, loaded without ddpm_hf."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import LAUNCH, ONE_PROCESS, REPOSITORY, TORCHRUN, TRAIN, free_port, losses, rates, run, state, wait_for

from ddpm_hf.checkpoints.format import find_damage, list_checkpoints, step_of

pytestmark = pytest.mark.slow

LOAD_WITHOUT_US = """
import sys, warnings

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ddpm_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
warnings.simplefilter("error")
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline).__module__.startswith("diffusers."), type(pipeline)
assert type(pipeline.unet).__module__.startswith("diffusers."), type(pipeline.unet)
print(pipeline(batch_size=2, num_inference_steps=2).images[0].size)
"""


def test_a_launched_run_loads_in_diffusers_where_we_are_not_installed(tiny_yaml, tmp_path):
    folder = tmp_path / "run"
    done = run(*LAUNCH, *ONE_PROCESS, TRAIN, "--config", tiny_yaml, f"output_dir={folder}", check=True)
    assert "resume: accelerate launch" in done.stdout
    for pipeline in (folder, folder / "checkpoints" / "step-4"):
        loaded = run(sys.executable, "-c", LOAD_WITHOUT_US, pipeline, cwd=tmp_path)
        assert loaded.stdout == "(8, 8)\n", loaded.stderr


def test_the_commands_that_a_run_prints_work(tiny_yaml, tmp_path):
    folder = tmp_path / "run"
    done = run(sys.executable, TRAIN, "--config", tiny_yaml, f"output_dir={folder}", check=True)
    assert "resume: python training/train.py" in done.stdout
    commands = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if line.startswith("  "))
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    commands["score"] = commands["score"].rpartition(" && ")[2]  # a test installs nothing
    commands["score"] += " benchmark.features=digits benchmark.n_samples=70 benchmark.num_held_out=4"
    for name in ("sample", "resume", "score"):
        subprocess.run(commands[name], shell=True, cwd=REPOSITORY, env=path, check=True)
    assert (folder / "metrics.json").exists()
    # a person's picture viewer is not the test's
    shown = commands["open"].strip().replace(".show()", ".size")
    subprocess.run(shown, shell=True, cwd=tmp_path, env=path, check=True)
    assert len(list((folder / "generated").rglob("0*.png"))) == 16
    assert (folder / "checkpoints" / "step-12").exists()


ADVERSARIAL = ("loss_config.adversarial.weight=0.01", "loss_config.adversarial.hidden_channels=4")


RECORDED = """
import runpy, sys
from ddpm_hf.models.fast import graphs
graphs.RECORDERS["cpu"] = graphs.rerun
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program as on a device that records its updates."""


@pytest.mark.parametrize("kind", ["plain", "adversarial", "recorded"])
def test_two_processes_train_as_one(tiny_yaml, tmp_path, kind):
    more = ADVERSARIAL if kind == "adversarial" else ()
    program = [TRAIN]
    if kind == "recorded":
        (tmp_path / "recorded.py").write_text(RECORDED)
        program = [tmp_path / "recorded.py", TRAIN]
    options = [
        *more,
        "model_config.dropout=0",
        "training.num_steps=50",
        "logging.log_every=1",
        "training.preview_every=7",
    ]
    run(sys.executable, TRAIN, "--config", tiny_yaml, f"output_dir={tmp_path / 'one'}", *options, check=True)
    run(*TORCHRUN, free_port(), *program, "--config", tiny_yaml, f"output_dir={tmp_path / 'two'}", *options, check=True)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4 if more else 1e-5)
    torch.testing.assert_close(state(tmp_path / "two"), state(tmp_path / "one"), rtol=1e-3, atol=1e-5)
    assert rates(tmp_path / "two") == rates(tmp_path / "one")
    # and one of them goes on with what the other left
    words = [TRAIN, "--config", tiny_yaml, *options, "--resume", tmp_path / "two" / "checkpoints" / "step-48"]
    changed = run(sys.executable, *words, f"output_dir={tmp_path / 'changed'}", check=True)
    assert "The number of processes is 1, and was 2 in" in changed.stderr
    assert losses(tmp_path / "changed") == pytest.approx(losses(tmp_path / "one")[-2:], rel=1e-4 if more else 1e-5)
    assert rates(tmp_path / "changed") == rates(tmp_path / "one")[-2:]
    torch.testing.assert_close(state(tmp_path / "changed"), state(tmp_path / "one"), rtol=1e-3, atol=1e-5)


def test_two_processes_stop_together_at_a_signal(tiny_yaml, tmp_path):
    folder = tmp_path / "run"
    command = [
        *TORCHRUN,
        free_port(),
        TRAIN,
        "--config",
        tiny_yaml,
        f"output_dir={folder}",
        "training.num_steps=100000",
    ]
    process = subprocess.Popen([*command, "logging.log_every=1"], stderr=subprocess.DEVNULL)
    wait_for(folder / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    assert state(folder)


def test_compiled_and_plain_runs_go_on_from_each_other(tiny_yaml, tmp_path):
    options = ["training.preview_every=null", "model_config.attention_levels=[]", "model_config.dropout=0"]
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"

    def train(folder: Path, *more: object) -> list[float]:
        run(sys.executable, TRAIN, "--config", tiny_yaml, f"output_dir={folder}", *options, *more, check=True)
        return losses(folder)

    expected = train(plain)
    assert train(compiled, "training.compile=true") == pytest.approx(expected, rel=1e-4)
    assert state(compiled).keys() == state(plain).keys()
    for start, option in ((plain, "training.compile=true"), (compiled, "training.compile=false")):
        at_four = start / "checkpoints" / "step-4"
        gone_on = train(tmp_path / f"from-{start.name}", option, "--resume", at_four)
        assert gone_on[-1] == pytest.approx(expected[-1], rel=1e-4)


def test_a_dead_process_is_started_again_and_the_run_goes_on(tiny_yaml, tmp_path):
    options = ["training.num_steps=60", "training.checkpoint_every=5", "logging.log_every=1"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    launcher = [*TORCHRUN[:-1], "--standalone", "--max_restarts", "1", TRAIN, "--config", tiny_yaml, *options]
    run(*launcher, f"output_dir={whole}", check=True)
    process = subprocess.Popen(
        [*map(str, launcher), f"output_dir={folder}", "--resume", "auto"], stderr=subprocess.DEVNULL
    )
    while not any(step_of(checkpoint) >= 10 for checkpoint in list_checkpoints(folder / "checkpoints")):
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    assert process.wait() == 0
    torch.testing.assert_close(state(folder), state(whole), rtol=0, atol=0)
    assert losses(folder) == losses(whole)


def test_a_second_run_is_kept_out_though_the_first_one_s_launcher_is_dead(tiny_yaml, tmp_path):
    folder = tmp_path / "run"
    words = [TRAIN, "--config", str(tiny_yaml), f"output_dir={folder}"]
    long = ["training.num_steps=1000000", "training.checkpoint_every=null", "training.preview_every=null"]
    launcher = subprocess.Popen([*LAUNCH, *ONE_PROCESS, *words, *long], stderr=subprocess.DEVNULL)
    wait_for(folder / "metrics.jsonl")
    launcher.kill()
    launcher.wait()
    worker = int((folder / ".lock").read_text())
    before = {path.name for path in folder.iterdir()}
    for more in ([], ["--resume", "latest"]):
        second = run(sys.executable, *words, *more)
        assert second.returncode == 2
        assert f"is in use by another run (process {worker})" in second.stderr
    assert {path.name for path in folder.iterdir()} == before
    os.kill(worker, signal.SIGTERM)
    while "model_index.json" not in {path.name for path in folder.glob("checkpoints/step-*/*")}:
        time.sleep(0.1)


def test_a_run_outlives_a_disk_without_room(tiny_yaml, tmp_path):
    folder = tmp_path / "run"
    options = ["training.num_steps=600", "training.checkpoint_every=10", "training.preview_every=null"]
    command = [sys.executable, TRAIN, "--config", str(tiny_yaml), f"output_dir={folder}", *options]
    little_room = ["bash", "-c", 'ulimit -S -f 15 && exec "$@"', "bash"]
    told = []  # the first two checkpoints find no room; then there is some
    with subprocess.Popen([*little_room, *command], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "Cannot write the checkpoint at step" in line:
                told.append(line)
            if len(told) == 2:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.returncode == 0
    assert len(told) < 10
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-590", "step-600"]
    assert find_damage(folder / "checkpoints" / "step-600") is None
