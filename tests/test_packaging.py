"""What is installed, and with which versions; and that the built package works by itself."""

import ast
import configparser
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from processes import run

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.xdist_group("packaging")  # which is built once


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements(setup: configparser.ConfigParser) -> list[Requirement]:
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in text.splitlines() if line]


def test_every_requirement_is_pinned_within_its_range(setup, pins):
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    for requirement in requirements(setup):
        versions = [
            Version(str(pin.specifier).removeprefix("==")) for pin in pins if plain(pin.name) == plain(requirement.name)
        ]
        assert versions, f"constraints.txt has no {requirement.name}"
        assert all(version in requirement.specifier for version in versions), requirement


def test_torch_is_the_version_that_needs_no_cuda(pins):
    assert [str(pin.specifier) for pin in pins if pin.name == "torch"] == ["==2.13.0"]


def test_only_the_package_is_installed(setup):
    assert setup["options.packages.find"]["include"] == "ddpm_hf, ddpm_hf.*"
    assert not list((REPOSITORY / "training").glob("__init__.py"))
    assert not list((REPOSITORY / "pipelines").glob("__init__.py"))


def test_no_program_shadows_a_module_that_its_imports_need():
    taken = {"datasets", "evaluate", "logging", "accelerate", "diffusers", "torch", "transformers", "types", "random"}
    programs = {path.stem for folder in ("training", "pipelines") for path in (REPOSITORY / folder).glob("*.py")}
    assert not programs & taken


def test_every_import_is_a_requirement(setup):
    """What the package imports outside of functions is installed with it."""
    known = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
    # what pydantic, and numpy with all others, bring along
    brought = {"annotated_types", "pydantic_core", "typing_extensions"}
    names = {Requirement(line).name for line in setup["options"]["install_requires"].splitlines() if line}
    extras = {"ddpm_hf/demo"}  # the extra of that name
    missing = set()
    for file in (REPOSITORY / "ddpm_hf").rglob("*.py"):
        if any(str(file.relative_to(REPOSITORY)).startswith(extra) for extra in extras):
            continue
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - brought - {"ddpm_hf"}
            missing |= {(file.name, top) for top in tops if known.get(top, top) not in names}
    assert not missing


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy so that the checkout stays clean."""
    copy, folder = tmp_path_factory.mktemp("copy") / "ddpm-hf", tmp_path_factory.mktemp("dist")
    passed_over = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, copy, ignore=passed_over)
    for kind in ("build_sdist", "build_wheel"):
        code = f"import sys; from setuptools.build_meta import {kind}; {kind}(sys.argv[1])"
        run(sys.executable, "-c", code, folder, cwd=copy, check=True)
    return folder


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        described = archive.read(metadata).decode()
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "ddpm_hf").rglob("*.py")}
    assert files == modules | {"ddpm_hf/py.typed", "ddpm_hf/hub/model_card.md"}
    assert re.search(r"^License(-Expression)?: Apache-2.0$", described, re.MULTILINE)
    assert "Requires-Dist: torch" in described


@pytest.mark.slow
def test_source_archive_holds_what_the_wheel_is_built_from(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    tops = {name.split("/")[0] for name in names if name}
    assert {"ddpm_hf", "pyproject.toml", "setup.cfg", "README.md", "LICENSE"} <= tops
    assert "ddpm_hf/py.typed" in names
    assert not tops & {"runs", "benchmarks", "docs", "tests", "training", "pipelines"}


TRAIN = """
import sys
from pathlib import Path
import ddpm_hf
from ddpm_hf import DDPMPipeline, Trainer, load_config

assert Path(ddpm_hf.__file__).is_relative_to(sys.argv[1]), ddpm_hf.__file__
Trainer(load_config("tiny.yaml")).train()
print(len(DDPMPipeline.from_pretrained("runs/tiny")(seeds=[0, 1], num_inference_steps=2).images), "images")
"""


@pytest.mark.slow
def test_the_wheel_trains_digits_where_there_is_no_checkout(built, tiny_yaml, tmp_path):
    (wheel,) = built.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    run(*install, wheel, check=True)
    empty.mkdir()
    shutil.copy(tiny_yaml, empty)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = run(sys.executable, "-c", TRAIN, site, cwd=empty, env=environment, check=True)
    assert "2 images" in done.stdout
    assert sorted(path.name for path in empty.iterdir()) == ["runs", "tiny.yaml"]


def test_importing_takes_a_moment():
    """The fastest of five imports in processes of their own, without what Python itself takes to start."""
    code = "import time; before = time.perf_counter(); import ddpm_hf; print(time.perf_counter() - before)"
    times = [float(run(sys.executable, "-c", code, check=True).stdout) for _ in range(5)]
    assert min(times) < 0.3
