"""What the guides name is there: messages, options, files, links, pictures."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.config import Config

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("*.md")])
SCHEMA = Config.model_json_schema(by_alias=True)
OPTION = re.compile(rf"(?<![\w/.-])((?:{'|'.join(SCHEMA['properties'])})(?:\.[a-z_]\w*)+)(?!\w|/)")
FILE = re.compile(r"(?<![\w/.{<-])((?:configs|training|pipelines|benchmarks|tests|ddpm_hf|docs)/[\w/.-]+\.\w+)")
MISTAKES = {"training.learning_rat", "configs/mine.yaml"}
"""What README shows how mistakes are told with."""


def prose(page: Path) -> str:
    """A page without its Python, in which `training.images` may be an attribute."""
    return re.sub(r"(?s)```python\n.*?```", "", page.read_text(encoding="utf-8"))


def section(properties: dict[str, Any]) -> dict[str, Any]:
    """What a field of the schema holds, if it is a section."""
    reference = properties.get("$ref", "")
    return SCHEMA["$defs"][reference.rsplit("/", 1)[-1]].get("properties", {}) if reference else {}


def is_option(name: str) -> bool:
    fields = SCHEMA["properties"]
    for key in name.split("."):
        if key not in fields:
            return False
        fields = section(fields[key])
    return True


def templates() -> set[str]:
    """Every text in the package, with … for what is put into it."""
    found = set()
    for file in (REPOSITORY / "ddpm_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"%(?:s|d|g|\.\d+f)", "…", node.value))
    return found


def test_quoted_messages_are_the_programs_own():
    known = templates()
    # a line of a guide that begins with > is a message
    quotes = [line[2:] for page in PAGES for line in prose(page).splitlines() if line.startswith("> ")]
    assert len(quotes) > 20
    assert not [quote for quote in quotes if not any(quote in template for template in known)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    names = {name.rstrip(".") for name in OPTION.findall(prose(page)) if not name.endswith((".py", ".md", ".txt"))}
    assert not [name for name in sorted(names) if name not in MISTAKES and not is_option(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", prose(page))
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page):
    files = {file.rstrip(".") for file in FILE.findall(prose(page))}
    assert not [file for file in sorted(files - MISTAKES) if not (REPOSITORY / file).exists()]


def test_the_tests_would_notice():
    assert is_option("training.scheduler.warmup_steps")
    assert is_option("loss_config.time_weight_params.gamma")
    assert not is_option("training.warmup_steps")
    assert not is_option("training.batch_size.more")
    assert "… image… of … cannot be read" in templates()


def test_every_guide_is_in_the_list():
    listed = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    guides = {page.name for page in [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "docs").glob("*.ipynb")]}
    assert not [guide for guide in sorted(guides - {"index.md"}) if f"]({guide})" not in listed]
