"""Write the page of the public names from their signatures and docstrings: python docs/api_page.py > docs/api.md

It reads the source and imports nothing, so the page is the same in every environment.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

import ddpm_hf  # noqa: E402  (loads nothing of what it names)

HEAD = """\
# The public names

Each is `from ddpm_hf import NAME`; nothing heavy is loaded before a name is used. Everything else in the package may
change between minor versions. This page is written by `make docs` from the docstrings.
"""
HOOKS = ("to_json_string", "extract_init_dict")  # that diffusers calls, and nobody else
TITLES = ("Args", "Returns", "Raises", "Warns", "Attributes")
WIDTH = 100

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Found:
    """A class or function, and the module that it is defined in."""

    node: Definition
    tree: ast.Module
    module: str

    @property
    def path(self) -> str:
        return _file(self.module).relative_to(REPOSITORY).as_posix()


def page() -> str:
    """The whole page."""
    homes = dict(sorted(ddpm_hf._HOMES.items(), key=lambda item: item[0].lower()))
    found = {name: find(name, module) for name, module in homes.items()}
    index = "\n".join(
        f"| [`{name}`](#{name.lower()}) | {_first_sentence(ast.get_docstring(each.node))} |"
        for name, each in found.items()
    )
    return "\n".join([HEAD, f"| name | |\n|---|---|\n{index}\n", *(_entry(name, each) for name, each in found.items())])


def find(name: str, module: str) -> Found:
    """Follow imports to where a name is defined.

    Raises:
        LookupError: if it is not defined in this package.
    """
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return Found(node, tree, module)
        if isinstance(node, ast.ImportFrom) and (home := _imported_from(node, module)).startswith("ddpm_hf"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(alias.name, home)
    raise LookupError(f"{module} has no {name}")


def _imported_from(node: ast.ImportFrom, module: str) -> str:
    """The full name of the module that something is imported from."""
    if not node.level:
        return node.module or ""
    return ".".join([*module.split(".")[: -node.level], node.module or ""])


def methods(found: Found) -> Iterator[tuple[Found, ast.FunctionDef]]:
    """The public methods of a class, its own and those of its bases in this package."""
    seen: set[str] = set()
    for each in _with_bases(found):
        for node in each.node.body:
            if isinstance(node, ast.FunctionDef) and node.name not in (*HOOKS, *seen):
                seen.add(node.name)
                if node.name in ("__call__", "forward") or not node.name.startswith("_"):
                    yield each, node


def _with_bases(found: Found) -> Iterator[Found]:
    yield found
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        if isinstance(base, ast.Name):
            try:
                yield from _with_bases(find(base.id, found.module))
            except LookupError:
                continue  # a library's


def _entry(name: str, found: Found) -> str:
    lines = [f"## {name}\n", f"[`{found.path}`](../{found.path})\n"]
    if isinstance(found.node, ast.FunctionDef):
        return "\n".join([*lines, _signature(name, found.node, found), _prose(found.node)])
    initializers = [
        node
        for each in _with_bases(found)
        for node in each.node.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    if initializers:
        lines.append(_signature(name, initializers[0], found))
    lines.append(_prose(found.node))
    lines += _fields(found.node)
    for home, node in methods(found):
        title = f"{name}(…)" if node.name == "__call__" else f"{name}.{node.name}"
        lines.append(f"### {title}\n")
        is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)
        lines.append("A property.\n" if is_property else _signature(node.name, node, home))
        lines.append(_prose(node))
    return "\n".join(lines)


def _fields(node: Definition) -> list[str]:
    """The documented fields of a configuration."""
    rows = []
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            value = field.value
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
                names = {word.arg: word.value for word in value.keywords}
                assert isinstance(names["alias"], ast.Constant)
                field_name = f"{ast.unparse(field.target)}` (in YAML `{names['alias'].value}`)"
                default = ast.unparse(names["default"])
            else:
                field_name, default = f"{ast.unparse(field.target)}`", ast.unparse(value) if value else "required"
            rows.append(f"| `{field_name} | `{default}` | {' '.join(str(text.value.value).split())} |")
    return ["| field | default | |\n|---|---|---|", *rows, ""] if rows else []


def _signature(name: str, node: ast.FunctionDef, found: Found) -> str:
    arguments = [each for each in _arguments(node.args) if each.split(":")[0] not in ("self", "cls")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ""
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"
    names = sorted(set(re.findall(r"\b[A-Z]\w+", line)))
    aliases = [f"# {each} = {value}" for each in names if (value := _alias(each, found.tree))]
    return "\n".join(["```python", line, *aliases, "```\n"])


def _alias(name: str, tree: ast.Module) -> str | None:
    """What a name stands for that a module assigns, or imports from a module of this package that does."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            if (home := _imported_from(node, "")).startswith("ddpm_hf."):
                return _alias(name, ast.parse(_file(home).read_text(encoding="utf-8")))
            return None
    return None


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument with its type and default, and the marks between kinds."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [_argument(each, default) for each, default in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        shown.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_argument(each, d) for each, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*shown, f"**{_argument(arguments.kwarg, None)}"] if arguments.kwarg else shown


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    equals = " = " if kind else "="
    return f"{argument.arg}{kind}{equals}{ast.unparse(default)}" if default else f"{argument.arg}{kind}"


def _prose(node: Definition) -> str:
    """A docstring as markdown."""
    lines: list[str] = []
    is_section = False
    for line in (ast.get_docstring(node) or "").splitlines():
        if line.rstrip(":") in TITLES and line.endswith(":"):
            is_section = True
            lines.append(f"{line}\n")
        elif is_section and (item := re.fullmatch(r" {4}(\w[\w, ]*): (.+)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif is_section and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line.strip())
    return "\n".join(lines).rstrip() + "\n"


def _first_sentence(text: str | None) -> str:
    return re.split(r"(?<=\.)(?<!eq\.)\s", (text or "").split("\n\n")[0].replace("\n", " "))[0]


def _file(module: str) -> Path:
    path = REPOSITORY / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    print(page(), end="")
