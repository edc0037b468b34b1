"""Every command of the README works: those that it shows are those that are run here, on a tiny network."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("readme")]

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
INDENTED = re.compile(r"^ {4}((?:make|pip|python|accelerate) .*)$", re.MULTILINE)
COMMANDS = [shown.split("#")[0].strip() for shown in INDENTED.findall(README)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

TINY = (
    "model_config.time_steps=20 model_config.hidden_channels=8 model_config.norm_groups=4 "
    "model_config.channel_multipliers=[1,2] model_config.attention_levels=[] model_config.num_res_blocks=1 "
    "training.num_steps=2 training.batch_size=4 training.num_preview_images=2 training.preview_inference_steps=2"
)
FEW = "benchmark.n_samples=70 benchmark.num_inference_steps=2 benchmark.num_held_out=4 benchmark.allow_few_samples=true"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command as it stands, in the repository, with this Python first on the path."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DDPM_HF_CACHE": str(folder / "cache"),
        "MPLBACKEND": "agg",
    }
    return subprocess.run(
        command, shell=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a folder of photographs, and the runs that the commands make, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for index in range(12):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.jpg")
    return folder


def found(start: str) -> str:
    """The command of the README that begins so."""
    matching = [command for command in COMMANDS if command.startswith(start)]
    assert len(matching) == 1, matching
    return matching[0]


def succeeds(command: str, folder: Path) -> subprocess.CompletedProcess:
    done = shell(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done


def test_training_stopping_sampling_and_evaluating_in_the_order_of_the_text(folder):
    train = "python training/train.py --config configs/"
    own = found(f"{train}folder.yaml").replace("FOLDER", str(folder / "photos"))
    succeeds(f"{own} {TINY} model_config.image_size=8 output_dir={folder}/photos-run", folder)
    assert (folder / "photos-run" / "samples.png").exists()

    run = folder / "run"
    resume = found(f"{train}digits.yaml --resume")
    succeeds(f"{resume.removesuffix(' --resume latest')} {TINY} output_dir={run}", folder)
    succeeds(f"{resume} {TINY} training.num_steps=4 output_dir={run}", folder)
    assert (run / "checkpoints" / "step-4").exists()

    for start in ("python pipelines/generate.py", "python pipelines/interpolate.py"):
        succeeds(found(start).replace("FOLDER_OR_REPO", str(run)), folder)
    assert len(list((run / "generated").rglob("0*.png"))) == 16
    assert list((run / "interpolated").rglob("*.gif"))

    succeeds(f"{found(f'{train}digits.yaml --eval_only')} {TINY} {FEW} output_dir={run}", folder)
    succeeds(f"{found('python training/eval.py').replace('FOLDER_OR_REPO', str(run))} {FEW} seed=1", folder)
    assert len(list((run / "evaluation").rglob("report.html"))) == 2


def test_the_example_in_python_runs(folder):
    [code] = PYTHON
    small = {"training.num_steps=500": 'training.num_steps=2", "training.num_preview_images=2', "=100)": "=2)"}
    for text, tiny in {**small, "runs/short": str(folder / "short")}.items():
        assert text in code
        code = code.replace(text, tiny)
    ending = "\nassert len(images) == 4 and images[0].size == (8, 8)"
    succeeds(f"python -c {shlex.quote(textwrap.dedent(code) + ending)}", folder)


def test_what_makes_the_environment_is_what_the_tests_run_in():
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    makes = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert makes
    assert set(makes) <= set(targets)
    extras = (REPOSITORY / "setup.cfg").read_text()
    for extra in re.findall(r"pip install -e \"\.\[(\w+)\]\"", README):
        assert f"\n{extra} =" in extras


@pytest.mark.parametrize("start", ["python pipelines/push_to_hub.py", "python pipelines/app.py"])
def test_programs_that_need_a_hub_or_a_browser_take_these_options(start, folder):
    """They are run for real in tests/hub and tests/demo."""
    program = shlex.split(found(start))
    load = "import runpy, sys; parser = runpy.run_path(sys.argv[1])['make_parser'](); parser.parse_args(sys.argv[2:])"
    succeeds(shlex.join(["python", "-c", load, *program[1:]]), folder)


def test_many_gpus_are_launched_by_a_file_that_accelerate_reads(folder):
    command = shlex.split(found("accelerate launch --config_file"))
    [file] = [word for word in command if word.endswith(".yaml")]
    settings = yaml.safe_load((REPOSITORY / file).read_text())
    assert settings["distributed_type"] == "MULTI_GPU"
    load = "import sys; from accelerate.commands.config.config_args import *; load_config_from_file(sys.argv[1])"
    for each in sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml")):
        succeeds(shlex.join(["python", "-c", load, str(each)]), folder)


def test_no_command_is_left_out():
    tried = ("make ", "pip install -e ", "accelerate launch", "python training/", "python pipelines/")
    assert all(command.startswith(tried) for command in COMMANDS)
    assert len(COMMANDS) == 13, COMMANDS
