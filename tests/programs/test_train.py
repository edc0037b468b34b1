"""training/train.py: what it does, and the one line that a mistake gets."""

import sys
from pathlib import Path

import pytest
from processes import run

REPOSITORY = Path(__file__).parents[2]
TRAIN = "training/train.py"


def test_a_run_from_the_command_line(program, tiny_yaml, tmp_path):
    run = tmp_path / "run"
    code, said, _ = program(TRAIN, "--config", tiny_yaml, f"output_dir={run}", "training.num_steps=3")
    assert code == 0
    assert (run / "model_index.json").exists()
    assert f"sample: python pipelines/generate.py --model {run}" in said
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
        (["training.batch_size=0"], "command line: training.batch_size: given 0; allowed: at least 1"),
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
        ":3: seed: given -1; allowed: at least 0",
    ]


def test_verbose_shows_where_an_error_comes_from(program, tmp_path):
    code, _, complaint = program(TRAIN, "--config", tmp_path / "no.yaml", "--verbose")
    assert code == 2
    assert "Traceback" in complaint
