"""A pushed run as other people load it: local or Hub, code trusted or not, ddpm_hf installed or not."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import lfs

from ddpm_hf.checkpoints import format
from ddpm_hf.checkpoints.fetch import fetch_pipeline
from ddpm_hf.checkpoints.format import find_latest
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.demo.demo_model import load_model
from ddpm_hf.evaluation.plan import dataset_of
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub.card import split_card
from ddpm_hf.hub.export import pipeline_package
from ddpm_hf.hub.share import push_run

SETTINGS = HubConfig(repo_id="ada/digits", license="apache-2.0")

CODE = b"""
import importlib, os, pathlib
from diffusers import DDPMPipeline as Stock
pathlib.Path(os.environ["CANARY"]).write_text("the repository's code ran")
class DDPMPipeline(Stock):
    def __init__(self, unet, scheduler):
        try:
            unet = importlib.import_module("ddpm_hf.models").DDPMUNet.from_stock(unet)
            scheduler = importlib.import_module("ddpm_hf.schedulers").DDPMScheduler.from_config(scheduler.config)
        except ModuleNotFoundError:
            pass
        super().__init__(unet, scheduler)
"""
"""A pipeline.py as the first version pushed it: on its own, or around the classes of ddpm_hf where they are found."""

MATRIX = """
    import os, pathlib, sys
    import diffusers
    diffusers.utils.logging.disable_progress_bar()
    canary, (repo, folder, installed) = pathlib.Path(os.environ["CANARY"]), sys.argv[1:]
    def images(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(num_inference_steps=2).images
    for where in (repo, folder):
        stock = diffusers.DiffusionPipeline.from_pretrained(where)
        assert type(stock) is diffusers.DDPMPipeline, type(stock)
        assert type(stock.unet) is diffusers.UNet2DModel
        assert len(images(stock)) == 1
        custom = {"custom_pipeline": "pipeline" if where == repo else where}
        try:
            diffusers.DiffusionPipeline.from_pretrained(where, **custom)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError("untrusted code was loaded")
        if installed == "yes":
            from ddpm_hf import DDPMPipeline
            from ddpm_hf.models import DDPMUNet
            ours = DDPMPipeline.from_pretrained(where)
            assert type(ours) is DDPMPipeline and type(ours.unet) is DDPMUNet
            assert len(images(ours)) == 1
        else:
            assert "ddpm_hf" not in sys.modules
        assert not canary.exists(), "code ran that nobody trusted"
        trusted = diffusers.DiffusionPipeline.from_pretrained(where, **custom, trust_remote_code=True)
        assert canary.exists()
        canary.unlink()
        assert type(trusted).__module__.startswith("diffusers_modules") and len(images(trusted)) == 1
        assert (type(trusted.unet).__name__ == "DDPMUNet") == (installed == "yes")
        for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
            del sys.modules[name]
    print("all of the matrix")
"""


@pytest.mark.parametrize(
    "installed", [pytest.param(True, marks=pytest.mark.slow, id="installed"), pytest.param(False, id="not installed")]
)
def test_every_way_to_load_it(hub, client, run, run_python, tmp_path, installed):
    push_run(run, SETTINGS, client)
    code = {"pipeline.py": CODE}
    hub.put("ada/digits", code)
    folder = tmp_path / "local"
    for path, content in {**pipeline_package(run, SETTINGS, "ada/digits", run).files, **code}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    arguments = ("ada/digits", str(folder), "yes" if installed else "no")
    result = run_python(MATRIX, *arguments, installed=installed, CANARY=str(tmp_path / "canary"))
    assert result.returncode == 0, result.stderr
    assert "all of the matrix" in result.stdout


@pytest.mark.slow
def test_the_cards_snippet_runs(hub, client, run, run_python, tmp_path):
    push_run(run, SETTINGS, client)
    readme = hub.repo("ada/digits").find("main").files["README.md"].data.decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    result = run_python(snippet, installed=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "sample.png").exists()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, with recent numpy
def test_brightness_travels_with_a_pipeline(hub, client, run):
    config = RunFolder(run).config
    config.write_text(config.read_text().replace("value_range: auto", "value_range: [0, 4095]"))
    for folder in (run, find_latest(RunFolder(run).checkpoints)):
        assert dataset_of(folder).value_range == (0, 4095)
    push_run(run, SETTINGS, client)
    folder = fetch_pipeline("ada/digits", client)
    assert dataset_of(folder).value_range == (0, 4095)
    assert load_model(str(folder)).dataset.value_range == (0, 4095)


def test_a_second_push_of_a_run_changes_nothing(hub, client, run, transfer):
    first = push_run(run, SETTINGS, client)
    second = push_run(run, SETTINGS, client)
    assert first.num_changed == 9
    assert (second.num_changed, second.commit) == (0, first.commit)
    assert not hub.requests("unknown")


def test_weights_are_hashed_once(hub, client, run, monkeypatch):
    """Those of a checkpoint when it is verified, those of a finished run when they are compared with the Hub's."""
    hashed = []
    verify, compare = format.sha256, lfs.sha_fileobj

    def verified(content):
        hashed.append(str(content))
        return verify(content)

    def compared(file, *rest):
        hashed.append(str(file.name))
        return compare(file, *rest)

    monkeypatch.setattr(format, "sha256", verified)
    monkeypatch.setattr(lfs, "sha_fileobj", compared)
    push_run(run, SETTINGS, client)
    push_run(run, SETTINGS, client, kind="checkpoint")
    weights = sorted(name for name in hashed if name.endswith(".safetensors"))
    names = [path.relative_to(run).as_posix() for path in (run / "checkpoints" / "step-6").rglob("*.safetensors")]
    assert weights == sorted(str(run / name) for name in ["unet/diffusion_pytorch_model.safetensors", *names])


def test_what_people_wrote_on_the_hub_outlives_the_next_push(hub, client, run):
    push_run(run, SETTINGS, client)
    card = hub.repo("ada/digits").find("main").files["README.md"].data
    hub.put("ada/digits", {"README.md": card + b"\n## Thanks\n\nTo Bob.\n", "notes.txt": b"theirs"})
    report = Report.read(run / "metrics.json")
    distance = replace(report.metrics["frechet_distance"], value=12.25, std=None)
    replace(report, metrics={"frechet_distance": distance}).write(run / "metrics.json")
    push_run(run, SETTINGS, client)
    files = hub.repo("ada/digits").find("main").files
    assert "To Bob." in files["README.md"].data.decode()
    assert "12.25" in files["README.md"].data.decode()
    assert files["notes.txt"].data == b"theirs"


def test_the_hub_finds_the_card_valid(hub, client, run):
    push_run(run, SETTINGS, client)
    assert {request.status for request in hub.requests("validate")} == {200}
    metadata, _ = split_card(hub.repo("ada/digits").find("main").files["README.md"].data.decode())
    assert metadata["license"] == "apache-2.0"
