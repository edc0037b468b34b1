"""The files that tools read: valid, and of the versions that everything else has."""

import re
from pathlib import Path

import pytest
import yaml

import ddpm_hf

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(
    file
    for pattern in (".github/**/*.y*ml", ".pre-commit-config.yaml", "CITATION.cff", "configs/**/*.yaml")
    for file in REPOSITORY.glob(pattern)
)


def load(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_yaml_is_valid(file):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_workflow_does_what_ci_does():
    workflow = load(".github/workflows/ci.yaml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
    assert workflow["permissions"] == {"contents": "read"}


def test_hooks_have_the_pinned_versions():
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    hooks = [hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert {hook["entry"].split()[0].split("/")[-1] for hook in hooks} == {"ruff", "mypy"}
    asked = {pin for hook in hooks for pin in hook.get("additional_dependencies", [])}
    assert asked <= set(pins)


def test_citation_has_the_current_version():
    citation = load("CITATION.cff")
    assert citation["version"] == ddpm_hf.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_forms_have_what_github_asks_for(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}.yaml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_commands_of_the_templates_are_targets_of_make():
    text = (REPOSITORY / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text() + (
        REPOSITORY / "CONTRIBUTING.md"
    ).read_text()
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for call in re.findall(r"(?:`|^    )make ([a-z -]+?)(?:`|  |$)", text, re.MULTILINE)
        for target in call.split()
    }
    assert {"quality", "test", "docs"} <= named <= targets
