"""docs/method.md: what its tables name is there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROW = re.compile(r"^\|.*\| \[([^\]]+)\]\(\.\./([^)]+)\) \| (?:`([\w.]+)`)? ?\|$", re.MULTILINE)
TEXT = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
ROWS = ROW.findall(TEXT)


def definition(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The class or function of a dotted name."""
    first, _, rest = name.partition(".")
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            return definition(node.body, rest) if rest else node
    return None


def test_no_row_is_left_out():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| where")]
    assert len(rows) == len(ROWS) > 50


@pytest.mark.parametrize(("shown", "file", "name"), ROWS, ids=lambda value: value)
def test_anchor_is_there(shown, file, name):
    assert shown.replace("\\", "") == file
    path = REPOSITORY / file
    assert path.is_file()
    if name:
        assert definition(ast.parse(path.read_text(encoding="utf-8")).body, name)


@pytest.mark.parametrize(
    "where", ["eq. 1 ", "eq. 4", "eq. 6, 7", "eq. 11", "eq. 8, 12", "eq. 14", "eq. 15", "algorithm 1", "algorithm 2"]
)
def test_the_papers_equations_are_all_named(where):
    ddpm = TEXT.split("## Improved")[0]
    assert f"| {where}" in ddpm
