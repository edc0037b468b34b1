"""The house stays as docs and CONTRIBUTING say it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ddpm_hf"
FILES = sorted(PACKAGE.rglob("*.py"))

# who may import whom: a part imports its own floor and those below
FLOORS = (
    ("_version", "runtime"),
    ("config",),
    ("models", "schedulers", "losses", "data"),
    ("pipelines", "checkpoints"),
    ("evaluation",),
    ("hub",),
    ("demo",),
    ("training",),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The parts of ddpm_hf that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ddpm_hf.")} & FLOOR.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    part = part_of(file)
    if part == "__init__":
        return
    above = {other for other in imported(file) if FLOOR[other] > FLOOR[part]}
    assert not above, f"{part} is below {above}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= 400


def test_every_part_has_its_floor():
    parts = {part_of(file) for file in FILES} - {"__init__"}
    assert parts <= FLOOR.keys()


def test_nothing_is_unpickled():
    for file in FILES:
        calls = [ast.unparse(node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if call.startswith(("pickle.load", "joblib.load"))], file
        assert not [call for call in calls if call.startswith("torch.load(") and "weights_only=True" not in call], file


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ddpm_hf; dir(ddpm_hf); assert not {'torch', 'diffusers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_had():
    import ddpm_hf

    assert all(getattr(ddpm_hf, name) is not None for name in ddpm_hf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ddpm_hf.nothing
