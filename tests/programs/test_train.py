"""training/train.py: what it does, and the one line that a mistake gets."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from processes import run

REPOSITORY = Path(__file__).parents[2]
TRAIN = "training/train.py"


def test_a_run_from_the_command_line(program, tiny_yaml, tmp_path):
    run = tmp_path / "run"
    code, said, _ = program(TRAIN, "--config", tiny_yaml, f"output_dir={run}", "training.num_steps=3")
    assert code == 0
    assert (run / "model_index.json").exists()
    assert said.index("1,797 images") < said.index(f"sample: python pipelines/generate.py --model {run}")
    code, said, _ = program(TRAIN, "--config", tiny_yaml, f"output_dir={run}", "training.num_steps=4", "--dry_run")
    assert (code, f"from {run}/checkpoints/step-3" in said) == (0, True)
    code, _, complaint = program(TRAIN, "--config", tiny_yaml, f"output_dir={run}")
    assert (code, "holds a run already" in complaint) == (2, True)
    code, _, _ = program(TRAIN, "--config", run / "config.yaml", "--resume", "latest", "training.num_steps=4")
    assert code == 0


def test_a_dry_run_shows_everything_and_leaves_pictures_only(program, tiny_yaml, tmp_path):
    code, said, _ = program(
        TRAIN, "--config", tiny_yaml, "--dry_run", "--model_type", "ddpm", f"output_dir={tmp_path}/x"
    )
    assert code == 0
    for part in ("hidden_channels: 8", " parameters, 2 levels", "1,797 images", "steps:", "memory:", f"{tmp_path}/x"):
        assert part in said
    left = {file.relative_to(tmp_path / "x").as_posix() for file in (tmp_path / "x").rglob("*.*")}
    assert left == {"dry_run/learning_rate.png", "dry_run/schedule.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.batch_size=0"], "command line: training.batch_size: given 0; allowed: a whole number, at least 1"),
        (["model_config.image_size=9"], "model_config.image_size: given 9; allowed: a multiple of 2"),
        (
            ["model_config.hidden_channels=9"],
            "hidden_channels: given 9; allowed: a multiple of norm_groups",
        ),
        (["dataset.name=digit"], "did you mean digits"),
        (["dataset.name=/nowhere"], "the folder '/nowhere' does not exist"),
        (["dataset.image_column=img"], "dataset.image_column"),
        (["training.batch_size=2000"], "training.batch_size: given 2000; allowed: at most 1797"),
        (["--resume", "latest"], "--resume latest: there is no run in"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(program, tiny_yaml, tmp_path, arguments, message):
    code, said, complaint = program(TRAIN, "--config", tiny_yaml, f"output_dir={tmp_path}/run", *arguments)
    assert code == 2
    assert message in complaint
    assert "Traceback" not in complaint + said
    assert not (tmp_path / "run").exists()


def test_a_wrong_file_is_told_in_a_moment_by_the_program_itself(tmp_path):
    (tmp_path / "wrong.yaml").write_text("training:\n  learning_rat: 1\nseed: -1\n")
    done = run(sys.executable, REPOSITORY / TRAIN, "--config", tmp_path / "wrong.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.split("wrong.yaml")[-1] for line in done.stderr.splitlines()] == [
        " cannot be used: 2 mistakes",
        ":2: training.learning_rat: unknown key (given 1); did you mean learning_rate?",
        ":3: seed: given -1; allowed: a whole number, at least 0",
    ]


def test_verbose_shows_where_an_error_comes_from(program, tmp_path):
    code, _, complaint = program(TRAIN, "--config", tmp_path / "no.yaml", "--verbose")
    assert code == 2
    assert "Traceback" in complaint


COMMAND = re.compile(r"^  (sample|resume|score|open): +(.*)$", re.MULTILINE)

SCORABLE = ("benchmark.features=digits", "benchmark.n_samples=70", "benchmark.num_held_out=2", "training.num_steps=2")


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (("model_config.num_classes=10",), {}),
        (("model_config.variance_type=learned_range", "loss_config.vlb_weight=0.001"), {}),
        (("model_config.time_steps=4", "training.preview_inference_steps=4"), {}),
        (("benchmark.n_samples=60",), {}),  # fewer than a Fréchet distance needs
        ((), {"ACCELERATE_MIXED_PRECISION": "no"}),
    ],
    ids=["classes", "learned variance", "few time steps", "few samples", "launched by accelerate"],
)
def test_every_printed_command_works(program, tiny_yaml, tmp_path, monkeypatch, options, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    shown: list = []
    _, said, _ = program(TRAIN, "--config", tiny_yaml, f"output_dir={tmp_path}/it's one", *SCORABLE, *options)
    commands = {name: shlex.split(command) for name, command in COMMAND.findall(said)}
    assert list(commands) == ["sample", "resume", "score", "open"]
    assert commands["score"][:2] == (["accelerate", "launch"] if environment else ["python", TRAIN])
    for name in ("sample", "score", "resume"):  # the last one changes the run
        words = commands[name][2 if commands[name][0] == "accelerate" else 1 :]
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, complaint = program(*words)
        assert code == 0, f"{name}: {complaint}"
    exec(commands["open"][2], {})
    assert shown == [(8, 8)]


def test_a_command_that_needs_a_package_installs_it_first(program, tiny_yaml, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "torchmetrics" else find(name))
    _, said, _ = program(TRAIN, "--config", tiny_yaml, f"output_dir={tmp_path}/run", *SCORABLE)
    assert dict(COMMAND.findall(said))["score"].startswith(f"pip install torchmetrics && python {TRAIN} ")


def test_a_finished_run_says_so_and_how_it_is_extended(program, trained):
    words = (TRAIN, "--config", trained / "config.yaml", "--resume", "latest")
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.name != ".lock"}
    code, said, _ = program(*words)
    assert (code, "is finished: all of its 6 steps are done" in said) == (0, True)
    assert "training.num_steps=12" in said
    assert {file: file.stat().st_mtime_ns for file in before} == before
    code, _, complaint = program(*words, "training.num_steps=5")
    assert (code, "training.num_steps: given 5" in complaint) == (2, True)
