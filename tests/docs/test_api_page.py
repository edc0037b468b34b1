"""docs/api.md: current and complete."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from processes import run

import ddpm_hf

REPOSITORY = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("api_page", REPOSITORY / "docs" / "api_page.py")
api_page = importlib.util.module_from_spec(SPEC)
sys.modules["api_page"] = api_page
SPEC.loader.exec_module(api_page)


def test_page_is_current():
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == api_page.page(), "write it anew with: make docs"


def test_page_has_every_public_name():
    assert set(ddpm_hf._HOMES) | {"__version__"} == set(ddpm_hf.__all__)


@pytest.mark.parametrize("name", ddpm_hf._HOMES)
def test_every_public_thing_is_documented_and_typed(name):
    found = api_page.find(name, ddpm_hf._HOMES[name])
    assert ast.get_docstring(found.node)
    functions = [node for _, node in api_page.methods(found)] if isinstance(found.node, ast.ClassDef) else [found.node]
    for node in functions:
        assert ast.get_docstring(node), node.name
        assert node.returns is not None, node.name
        arguments = [each for each in (*node.args.args, *node.args.kwonlyargs) if each.arg not in ("self", "cls")]
        assert all(each.annotation for each in arguments), node.name
        # an entry may describe several: "low, high: in [0, 1]"
        entries = re.findall(r"^ {4}(\w[\w, ]*): ", ast.get_docstring(node), re.MULTILINE)
        missing = {each.arg for each in arguments} - set(re.split(", ", ", ".join(entries)))
        # a method with a single argument may tell of it in its one sentence
        assert not missing or len(arguments) == 1, (node.name, missing)


def test_the_page_needs_nothing_installed():
    page = run(sys.executable, "-I", "-S", REPOSITORY / "docs" / "api_page.py", check=True).stdout
    assert page.startswith("# The public names")
