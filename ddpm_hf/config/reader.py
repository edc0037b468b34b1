"""Read a YAML file and command-line overrides into a Config, or report every mistake at its line."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ddpm_hf.config.root import Config, allowed_values
from ddpm_hf.config.section import CONFLICT
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import read_bounded
from ddpm_hf.runtime.sanitize import for_terminal
from ddpm_hf.runtime.values import YamlLoader, load_yaml, shown

KeyPath = tuple[str | int, ...]

COMMAND_LINE = math.inf
"""Stands for the line number of an override, and sorts behind those of the file."""

MAX_YAML_BYTES = 2**20
"""Longest YAML file that is read; a configuration has a few kB."""

MAX_DEPTH = 8
"""Of nested keys, above that of any section."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a run.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, with the value in YAML; they take precedence over the file.

    Returns:
        The configuration; `output_dir` is set to `runs/` and the file's name where the file leaves it out.

    Raises:
        UserError: naming all mistakes at once, each with file, line, dotted path, what was given, what is allowed and
            the nearest valid key.
    """
    document = _Document(Path(path))
    document.override(overrides)
    config = document.validate()
    if config.output_dir is None:
        config = config.model_copy(update={"output_dir": str(Path("runs") / document.path.stem)})
    return config


def parse_value(text: str) -> Any:
    """Read a value of the command line, as it would be read in the YAML file; what is not YAML is text."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


class _Document:
    """The values of a YAML file and of overrides, the line at which each was given, and the mistakes found in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[KeyPath, float] = {(): 0}
        self.mistakes: list[tuple[float, str]] = []
        try:
            loader = YamlLoader(read_bounded(path, MAX_YAML_BYTES, regular=False).decode("utf-8"))
            node = loader.get_single_node()
            self.values: Any = None if node is None else loader.construct_document(node)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; {_other_files(path)}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        if self.values is None:
            raise UserError(
                f"{path} is empty, so every option would have its default; write {{}} into it if that is meant, "
                "or begin with a file of configs/, such as configs/folder.yaml"
            )
        if not isinstance(self.values, dict):
            given = shown(self.values)
            raise UserError(f"{path}:1: given {given}; allowed: sections such as `training:` with keys below them")
        if node is not None:
            self._note_lines(node, ())

    def _note_lines(self, node: yaml.Node, above: KeyPath) -> None:
        """Note the line of every key, and as mistakes the keys given twice, of which YAML keeps only the last."""
        if isinstance(node, yaml.SequenceNode):
            self.lines |= {(*above, index): item.start_mark.line + 1 for index, item in enumerate(node.value)}
        if not isinstance(node, yaml.MappingNode) or len(above) > MAX_DEPTH:
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key.value, str):
                continue
            path = (*above, key.value)
            self.lines[path] = line = key.start_mark.line + 1
            if key.value in seen and key.value != "<<":
                self._add_mistake(path, f"given twice, first in line {seen[key.value]}; allowed: once")
            seen[key.value] = line
            self._note_lines(value, path)

    def override(self, overrides: Iterable[str]) -> None:
        """Apply `section.key=value` to the values."""
        for override in overrides:
            name, equals, text = (part.strip() for part in override.partition("="))
            *sections, key = name.split(".")
            if not equals or not all([*sections, key]):
                allowed = "section.key=value, e.g. training.batch_size=64"
                self.mistakes.append((COMMAND_LINE, f"command line: given {override!r}; allowed: {allowed}"))
                continue
            values = self.values
            for section in sections:
                if not isinstance(values.get(section), dict):
                    values[section] = {}
                values = values[section]
            values[key] = parse_value(text)
            self.lines[tuple(name.split("."))] = COMMAND_LINE

    def validate(self) -> Config:
        """Make the configuration, or raise with all mistakes.

        Pydantic checks fields against each other only where each is valid by itself. So invalid values are removed,
        and the rest is validated again with defaults in their place, until nothing more is found. Conflicts with
        such a default are no mistakes of the user's and are dropped.
        """
        removed: set[str] = set()
        while True:
            try:
                config = Config.model_validate(self.values)
                break
            except ValidationError as error:
                for path, text, is_conflict in explain(error):
                    rule = text.rpartition("; allowed: ")[2]
                    if not is_conflict or removed.isdisjoint([path[-1], *re.findall(r"\w+", rule)]):
                        self._add_mistake(path, text)
                    removed |= {str(path[-1]), self._remove(path)}
        if self.mistakes:
            count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
            lines = [f"  {text}" for _, text in sorted(self.mistakes, key=lambda mistake: mistake[0])]
            raise UserError("\n".join([f"{self.path} cannot be used: {count}", *lines]))
        return config

    def _remove(self, path: KeyPath) -> str:
        """Remove a key, or the nearest section above that was given; returns the name of what was removed."""
        for depth in range(len(path), 0, -1):
            *sections, key = path[:depth]
            values = self.values
            for name in sections:
                values = values.get(name) if isinstance(values, dict) else None
            if isinstance(values, dict) and key in values:
                del values[key]
                return str(key)
        self.values.clear()
        return ""

    def _add_mistake(self, path: KeyPath, text: str) -> None:
        line = next(self.lines[path[:depth]] for depth in range(len(path), -1, -1) if path[:depth] in self.lines)
        place = "command line" if line == COMMAND_LINE else f"{self.path}:{line}" if line else str(self.path)
        name = ".".join(for_terminal(str(key)) for key in path) or "the file"
        self.mistakes.append((line, f"{place}: {name}: {text}"))


def explain(error: ValidationError, *above: str) -> list[tuple[KeyPath, str, bool]]:
    """Say what was given and what is allowed, in words of the schema instead of pydantic's.

    Args:
        error: of a configuration, or of one of its sections.
        above: keys of that section.

    Returns:
        For each mistake, the path of its option, the text, and whether options contradict each other.
    """
    sections = _keys(Config)
    found: dict[KeyPath, tuple[str, bool]] = {}
    for details in error.errors():
        path: KeyPath = (*above, *details["loc"])
        depth = next(depth for depth in range(len(path), -1, -1) if path[:depth] in sections)
        # below an option there are numbers of the values of a list, and pydantic's names of the kinds of a union
        kinds = path[depth + 1 :]
        path = (*path[: depth + 1], *(part for part in kinds if isinstance(part, int)))
        given, kind = details["input"], details["type"]
        if kind == "missing" or any(isinstance(part, str) for part in kinds):  # which say only a part of the truth
            path = path[: depth + 1]
        if any(path == other[: len(path)] for other in found):  # follows from that one
            continue
        if kind in ("extra_forbidden", "invalid_key"):
            text = f"unknown key (given {shown(given)}); {_nearest_key(path)}"
        else:
            allowed = details["msg"] if kind == CONFLICT else allowed_values(path)
            text = f"given {shown(given)}; allowed: {allowed}"
        found[path] = (text, kind == CONFLICT)
    return [(path, *rest) for path, rest in found.items()]


def _nearest_key(path: KeyPath) -> str:
    """Suggest a key for an unknown one: a similar one of its section, the same one elsewhere, or all of its section."""
    keys = _keys(Config)
    name, here = str(path[-1]), keys.get(path[:-1], [])
    if near := difflib.get_close_matches(name, here, n=1):
        return f"did you mean {near[0]}?"
    if elsewhere := [".".join(map(str, (*section, name))) for section, names in keys.items() if name in names]:
        return f"did you mean {elsewhere[0]}?"
    return "allowed: " + ", ".join(here)


def _keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> dict[KeyPath, list[str]]:
    """The keys of a section and of those below it, by the path of the section."""
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    keys: dict[KeyPath, list[str]] = {above: list(fields)}
    for key, kind in fields.items():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= _keys(kind, (*above, key))
    return keys


def _other_files(path: Path) -> str:
    """Suggest a file instead of one that does not exist: from its folder, or from configs/."""
    for folder in (path, path.parent, Path("configs")):
        names = sorted(str(each) for each in folder.glob("*.yaml") if not each.name.startswith("."))
        if names:
            near = difflib.get_close_matches(str(path), names, n=1)
            return f"did you mean {near[0]}?" if near else f"YAML files there: {', '.join(names)}"
    return "there are no YAML files in that folder"
