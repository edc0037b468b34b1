"""Several modules that import each other, as one file that travels alone."""

import ast
from pathlib import Path


def one_file(main: Path) -> str:
    """Join a module and those beside it that it imports, in the order in which they need each other.

    Imports of other packages come first, once each; what the modules define must not clash.

    Args:
        main: imports its siblings as `from .sibling import name`, at the top.

    Raises:
        ValueError: if two of the modules define the same name.
    """
    modules = _in_order(main)
    trees = {module: ast.parse(module.read_text(encoding="utf-8")) for module in modules}
    defined: dict[str, Path] = {}
    imports: dict[str, set[str]] = {}
    bodies = []
    for module, tree in trees.items():
        for name in _definitions(tree):
            if defined.setdefault(name, module) != module:
                raise ValueError(f"{name} is defined in {defined[name].name} and in {module.name}")
        lines = module.read_text(encoding="utf-8").splitlines()
        taken: set[int] = set()
        for node in tree.body:
            is_docstring = node is tree.body[0] and isinstance(node, ast.Expr)
            is_import = isinstance(node, (ast.Import, ast.ImportFrom))
            if is_docstring or is_import:
                taken.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if isinstance(node, ast.Import):
                imports.update({f"import {ast.unparse(alias)}": set() for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and not _is_sibling(node):
                imports.setdefault(f"from {node.module} import", set()).update(map(ast.unparse, node.names))
        bodies.append("\n".join(line for number, line in enumerate(lines, 1) if number not in taken).strip("\n"))
    head = [f"{source} {', '.join(sorted(names))}".strip() for source, names in sorted(imports.items())]
    docstring = ast.get_docstring(trees[main], clean=False)
    return "\n\n\n".join([f'"""{docstring}"""\n\n' + "\n".join(head), *bodies]) + "\n"


def _in_order(main: Path) -> list[Path]:
    """The module and its siblings, each after those that it imports."""
    order: list[Path] = []

    def visit(module: Path) -> None:
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if _is_sibling(node):
                assert isinstance(node, ast.ImportFrom)
                sibling = module.with_name(f"{node.module}.py")
                if sibling not in order:
                    visit(sibling)
        if module not in order:
            order.append(module)

    visit(main)
    return order


def _is_sibling(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level == 1


def _definitions(tree: ast.Module) -> list[str]:
    """Names that a module defines at its top."""
    names = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names
