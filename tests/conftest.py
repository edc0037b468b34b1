"""What every test relies on: no network, shapes checked at run time, a run small enough for a test."""

import importlib.util
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="agg")
os.environ["OMP_NUM_THREADS"] = "1"  # the threads of networks this small only wait for each other

import pytest
from accelerate.state import AcceleratorState
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# the hook wants the name of a module; int passes for float, as everywhere in Python
checker = types.ModuleType("shape_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules["shape_checker"] = checker

# where tensors are; the configuration is checked by pydantic
PACKAGES = ("checkpoints", "data", "evaluation", "losses", "models", "pipelines", "schedulers", "training")
install_import_hook([f"ddpm_hf.{package}" for package in PACKAGES], "shape_checker.check")

from ddpm_hf.config import Config, load_config  # noqa: E402  (the environment above comes first)
from ddpm_hf.runtime import cli  # noqa: E402

pytest_plugins = ["hub_fixtures"]

REPOSITORY = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Take signals as usual, whoever started the tests: programs inherit that nohup, or a shell's &, ignores some."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked cuda where there is no GPU."""
    if item.get_closest_marker("cuda") is not None:
        import torch  # the tests of the configuration need none of it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


# a network of 8 and 16 channels on the digits, 20 time steps
TINY = """
model_config:
  time_steps: 20
  beta_schedule: cosine
  image_size: 8
  image_channels: 1
  hidden_channels: 8
  channel_multipliers: [1, 2]
  attention_levels: [1]
  num_res_blocks: 1
  norm_groups: 4
  dropout: 0.1
training:
  num_steps: 6
  batch_size: 8
  learning_rate: 1e-3
  mixed_precision: "no"
  scheduler: {warmup_steps: 2}
  checkpoint_every: 2
  preview_every: 4
  num_preview_images: 4
  preview_inference_steps: 5
logging:
  log_every: 3
"""


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """The file of a tiny run."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def tiny(tmp_path: Path, tiny_yaml: Path) -> Callable[..., Config]:
    """Make the configuration of a tiny run, with overrides."""

    def make(*overrides: str) -> Config:
        return load_config(tiny_yaml, [f"output_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run without previews, trained once."""
    from ddpm_hf.training.trainer import Trainer  # the tests of the configuration need none of it

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    quick = ("training.preview_every=null", "training.num_preview_images=1")
    Trainer(load_config(folder / "tiny.yaml", [f"output_dir={folder / 'run'}", *quick])).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / "run"


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A finished tiny run with checkpoints of steps 4 and 6, at `tiny`'s output_dir."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny image backbone with random weights."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests cache out of the person's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _plain_layout() -> Iterator[None]:
    """Leave the axes of curves where they are: arranging them takes a third of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda engine, figure: None)
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Let every test make an accelerator of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `folder/name.py` with arguments; gives exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location("program", REPOSITORY / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            cli.run(module.make_parser(), module.main, [str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
