"""What is installed, and with which versions."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]


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
