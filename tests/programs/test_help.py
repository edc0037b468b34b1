"""`--help` of every program: grouped, with defaults, and readable in a terminal of 80 columns."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from processes import run

from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import SAMPLERS
from ddpm_hf.schedulers import build_scheduler

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = sorted(
    program.relative_to(REPOSITORY).as_posix()
    for folder in ("pipelines", "training")
    for program in (REPOSITORY / folder).glob("*.py")
)
NO_DEFAULT = {
    *("help", "overrides", "run_folder"),  # that are given, or not
    *("repo_id", "private", "revision", "license", "space"),  # that the run's configuration says
}


@pytest.fixture(params=PROGRAMS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    monkeypatch.setenv("COLUMNS", "80")
    return runpy.run_path(str(REPOSITORY / request.param))["make_parser"]()


def test_it_fits_80_columns(parser):
    text = parser.format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_options_are_in_groups(parser):
    groups = [group.title for group in parser._action_groups if group._group_actions]
    assert len(groups) >= 3
    alone = [action.dest for action in parser._optionals._group_actions]
    assert alone == ["help"]


def test_every_option_says_what_it_is_when_it_is_not_given(parser):
    exclusive = {action.dest for group in parser._mutually_exclusive_groups for action in group._group_actions}
    for action in parser._actions:
        assert action.help
        if action.nargs == 0 or action.required or action.dest in exclusive | NO_DEFAULT:
            continue
        default = f"{action.default:g}" if isinstance(action.default, int | float) else action.default or ""
        assert f"(default: {default}" in action.help % {"default": action.default}, action.dest


def test_generate_names_every_sampler():
    program = runpy.run_path(str(REPOSITORY / "pipelines" / "generate.py"))
    assert program["SAMPLERS"] == tuple(SAMPLERS)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("pipelines/generate.py", ["runs/x"], "--model runs/x"),
        ("pipelines/generate.py", ["--model", "runs/x", "--seeds", 1, 2, 3], "it is written --seed N"),
        ("pipelines/generate.py", ["--model", "runs/x", "--seed", 1, 2, 3], "--seed: given 1 2 3; allowed: one value"),
        ("pipelines/generate.py", ["--model", "runs/x", "output_dir=y"], "it is written --output DIR"),
        ("pipelines/interpolate.py", ["--model", "runs/x", "--seeds", 1, 2, 3], "given 1 2 3; allowed: 2 values"),
        ("pipelines/interpolate.py", ["--config", "c.yaml", "--output_dir", "y"], "it is written --output DIR"),
        ("pipelines/app.py", ["runs/x"], "--model runs/x"),
        ("pipelines/push_to_hub.py", ["--model", "runs/x", "--repo_id", "me/x"], "without a name, as RUN_FOLDER"),
        ("pipelines/push_to_hub.py", ["runs/x", "--public"], "it is written --private or --no-private"),
        ("training/eval.py", ["runs/x", "--config", "c.yaml"], "--model runs/x"),
        ("training/eval.py", ["--config", "c.yaml", "--output_dir", "y"], "it is written --output DIR"),
        ("training/train.py", ["c.yaml"], "--config c.yaml"),
        ("training/train.py", ["--config", "c.yaml", "--output", "y"], "it is written output_dir=VALUE"),
    ],
)
def test_an_option_of_another_program_is_answered_by_its_spelling_here(program, name, given, told):
    code, _, complaint = program(name, *given)
    assert (code, complaint.count("\n")) == (2, 1)
    assert told in complaint


WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("training/train.py", ["--config", "{yaml}", "dataset.name=photos/cat"], "'photos/cat' does not exist"),
        ("training/train.py", ["--config", "{yaml}", "model_config.image_size=9"], "allowed: a multiple of 2"),
        ("training/train.py", ["--config", "{yaml}", "training.preview_inference_steps=21"], "at most time_steps"),
        ("training/train.py", ["--config", "{yaml}", "training.validate_every=2"], "dataset.validation_split"),
        ("training/eval.py", ["--config", "{yaml}", "--model", "runs/x"], "there is no folder runs/x"),
        ("training/eval.py", ["--config", "{yaml}", "--model", "{model}", "dataset.name=/no"], "'/no' does not exist"),
        ("pipelines/generate.py", ["--model", "runs/x"], "there is no folder runs/x"),
        ("pipelines/generate.py", ["--model", "{model}", "--class_labels", "3"], "the model is unconditional"),
        ("pipelines/generate.py", ["--model", "{model}", "--guidance_scale", "3"], "or with --class_labels"),
        ("pipelines/generate.py", ["--model", "{model}", "--num_inference_steps", "21"], "allowed: 1 to 20"),
        ("pipelines/interpolate.py", ["--model", "runs/x", "--seeds", "1", "2"], "there is no folder runs/x"),
        (
            "pipelines/interpolate.py",
            ["--model", "{model}", "--seeds", "1", "2", "--class_labels", "0"],
            "unconditional",
        ),
        ("pipelines/app.py", ["--model", "runs/x"], "there is no folder runs/x"),
        ("pipelines/push_to_hub.py", ["runs/x", "--repo_id", "me/x"], "there is no folder runs/x"),
    ],
)
def test_what_can_be_told_at_once_is_told_before_torch_is_imported(name, given, told, tmp_path, tiny, tiny_yaml):
    """Without a network, too: a name such as runs/x is no id on the Hub, even where no folder runs is."""
    config, model = tiny().model, tmp_path / "model"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(model)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    words = [word.format(yaml=tiny_yaml, model=model) for word in given]
    done = run(sys.executable, "-c", WITHOUT_TORCH, REPOSITORY / name, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("Traceback")) == (2, "False\n", 0), done.stderr
    assert told in done.stderr
