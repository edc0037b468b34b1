"""The house stays as docs and CONTRIBUTING say it is."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ddpm_hf"
PROGRAM_FOLDERS = ("training", "pipelines")
PROGRAMS = sorted(file for folder in PROGRAM_FOLDERS for file in (REPOSITORY / folder).glob("*.py"))
MODULES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
SOURCES = {name: file.read_text(encoding="utf-8") for name, file in MODULES.items()}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}

MAX_LINES = 400
MAX_FILES = 120

# Who may import whom: a part imports its own floor and those below.
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

IMPORTS_BY_NAME = {
    "ddpm_hf": "the public names are imported when they are first used",
    "ddpm_hf.evaluation.extractors": "benchmark.features may name a class in a file of the user's own",
}
"""Modules that import others in a way that no reader of import statements sees, and why."""

SAME_NAME = {
    "ddpm": "the scheduler and the pipeline, as in diffusers, each in the package of its kind",
}
"""Names that modules of several parts share without misleading a search, and why."""


def part_of(module: str) -> str:
    """The package of ddpm_hf that a module lies in; empty for ddpm_hf itself."""
    return module.partition(".")[2].partition(".")[0]


def imported(module: str, tree: ast.Module) -> set[str]:
    """Modules of ddpm_hf that a file imports, wherever in it, for type checks as well."""
    names = set()
    package = module if MODULES.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from ddpm_hf.losses import weights` names a module, `from ddpm_hf.losses import DiffusionLoss` none
            names |= {full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "ddpm_hf"} - {module}


IMPORTS = {name: imported(name, tree) for name, tree in TREES.items()}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which can be reached from each other one."""

    def reached(start: str) -> set[str]:
        seen, ahead = set(), [start]
        while ahead:
            new = graph.get(ahead.pop(), set()) - seen
            seen |= new
            ahead += new
        return seen

    reach = {name: reached(name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reach[name] if name in reach.get(other, set())}
        if circle and circle not in found:
            found.append(circle)
    return found


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of what is called: `load` for `torch.load(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node


def imports_by_name(tree: ast.Module) -> list[str]:
    """Calls that import a module without an import statement, or look one of ddpm_hf up."""
    names = {"import_module", "__import__", "spec_from_file_location", "exec_module", "run_path", "run_module"}
    found = [ast.unparse(call) for name, call in calls(tree) if name in names]
    looked_up = [ast.unparse(call) for name, call in calls(tree) if name == "find_spec"]
    return found + [call for call in looked_up if "ddpm_hf" in call]


def unexplained_imports(module: str) -> list[str]:
    """Imports inside functions without a comment beside or above them, or above the first of several."""
    lines = SOURCES[module].splitlines()
    found = []
    for function in ast.walk(TREES[module]):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                first = node.lineno - 1
                while lines[first - 1].lstrip().startswith(("import ", "from ")):
                    first -= 1
                text = [lines[first - 1].lstrip(), *lines[first : node.end_lineno]]
                if not text[0].startswith("#") and not any("#" in line for line in text[1:]):
                    found.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    return found


def unpickling(tree: ast.Module) -> list[str]:
    """Calls that can run code which a file carries."""
    found = []
    for name, call in calls(tree):
        text = ast.unparse(call)
        owner = ast.unparse(call.func).rpartition(".")[0]
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            (owner in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal") and name in ("load", "loads"))
            or name in ("Unpickler", "read_pickle", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader")
            or (owner == "shelve" and name == "open")
            or (owner == "torch" and name == "load" and options.get("weights_only") != "True")
            or options.get("allow_pickle", "False") != "False"
            or (owner == "yaml" and name in ("load", "load_all") and "Unsafe" in text)
        ):
            found.append(text)
    return found


def test_imports_run_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in sorted(others)
        if module != "ddpm_hf" and FLOOR.get(part_of(other), 0) > FLOOR[part_of(module)]
    ]
    assert not wrong


def test_every_part_has_its_floor():
    assert {part_of(module) for module in MODULES} - {""} == FLOOR.keys()


def test_no_files_import_each_other_in_a_circle():
    graph = {module: others - {"ddpm_hf"} for module, others in IMPORTS.items() if module != "ddpm_hf"}
    found = circles(graph)
    assert [sorted(circle) for circle in found] == []


def test_nothing_is_imported_out_of_sight():
    found = {module for module, tree in TREES.items() if imports_by_name(tree)}
    assert found == IMPORTS_BY_NAME.keys()


def test_imports_name_their_module_in_full():
    relative = {
        module
        for module, tree in TREES.items()
        if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    }
    assert relative == set()


def test_an_import_inside_a_function_says_why():
    assert [line for module in MODULES for line in unexplained_imports(module)] == []


def test_a_name_of_a_module_occurs_once():
    places = defaultdict(list)
    for module, file in MODULES.items():
        if file.stem not in ("__init__", "__main__"):
            places[file.stem].append(module)
    several = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in SAME_NAME} == {}
    assert SAME_NAME.keys() - several.keys() == set(), "no longer: remove the entry"


def test_mixins_are_typed():
    selves = [(module, node) for module, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.arg)]
    untyped = {module for module, node in selves if ast.unparse(node) == "self: Any"}
    assert untyped == set()


def test_files_are_few_and_short():
    assert len(MODULES) <= MAX_FILES
    lengths = {module: len(source.splitlines()) for module, source in SOURCES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MAX_LINES} == {}


def test_programs_are_files_in_plain_folders_and_import_only_the_package():
    folders = [path.parent for path in REPOSITORY.glob("*/__init__.py")]
    assert folders == [PACKAGE]
    assert {"train", "eval", "generate", "interpolate", "app", "push_to_hub"} == {file.stem for file in PROGRAMS}
    for file in PROGRAMS:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        local = {file.stem for file in PROGRAMS} | {*PROGRAM_FOLDERS, "benchmarks", "tests", "docs"}
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {name.partition(".")[0] for name in names} & local
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
        # the folder of a program is the first that Python imports from
        assert file.stem not in sys.stdlib_module_names
        assert importlib.util.find_spec(file.stem) is None


def names_of(module: str) -> set[str]:
    """What a module defines or imports at its top, and the modules in it if it is a package."""
    names = {other.rpartition(".")[2] for other in MODULES if other.rpartition(".")[0] == module}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def dangling(code: str) -> list[str]:
    """Imports of modules or names that ddpm_hf does not have."""
    wanted = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            wanted |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            wanted |= {(node.module, alias.name) for alias in node.names}
    ours = [(module, name) for module, name in wanted if module.partition(".")[0] == "ddpm_hf"]
    return [
        f"{module}: {name}" for module, name in ours if module not in MODULES or (name and name not in names_of(module))
    ]


def test_scripts_guides_and_the_notebook_import_what_is_there():
    code = {
        str(file): file.read_text(encoding="utf-8")
        for folder in ("benchmarks", "docs", "tests", *PROGRAM_FOLDERS)
        for file in (REPOSITORY / folder).rglob("*.py")
    }
    for page in {*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"} - {REPOSITORY / "docs" / "api.md"}:
        code[str(page)] = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    notebook = json.loads((REPOSITORY / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code["quickstart.ipynb"] = "\n".join("".join(cell["source"]) for cell in cells)
    assert {name: found for name, text in code.items() if (found := dangling(text))} == {}


def test_nothing_is_unpickled():
    programs = {str(file): ast.parse(file.read_text(encoding="utf-8")) for file in PROGRAMS}
    assert {name: found for name, tree in {**TREES, **programs}.items() if (found := unpickling(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(file)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "yaml.unsafe_load(text)",
        "joblib.load(file)",
        "dill.loads(data)",
    ],
)
def test_unpickling_would_be_noticed(code):
    assert unpickling(ast.parse(code))


def test_dangling_imports_would_be_noticed():
    assert dangling("from ddpm_hf.losses import NoLoss")
    assert dangling("import ddpm_hf.nowhere")
    assert not dangling("from ddpm_hf.config import load_config\nimport torch")


def test_circles_would_be_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_hidden_imports_would_be_noticed():
    assert imports_by_name(ast.parse("importlib.import_module('ddpm_hf.models')"))
    assert imports_by_name(ast.parse("find_spec('ddpm_hf')"))
    assert not imports_by_name(ast.parse("find_spec('torchmetrics')"))
    assert imported("ddpm_hf.losses.terms", ast.parse("from .weights import w\nfrom ..data import cut")) == {
        "ddpm_hf.losses.weights",
        "ddpm_hf.data",
    }


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ddpm_hf; dir(ddpm_hf); assert not {'torch', 'diffusers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_had():
    import ddpm_hf

    assert all(getattr(ddpm_hf, name) is not None for name in ddpm_hf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ddpm_hf.nothing
