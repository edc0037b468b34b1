"""Read a YAML file and command-line overrides into a Config, or report every mistake at its place."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ddpm_hf.config.root import Config
from ddpm_hf.runtime.errors import UserError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where PyYAML reads YAML 1.1: `2e-4` is a number and no text, `no` is text and no switch."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as PyYAML has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a run.

    Args:
        path: the YAML file.
        overrides: `section.key=value` each, with the value in YAML; they win over the file.

    Returns:
        The configuration; `output_dir` is set to `runs/` and the file's name where the file leaves it out.

    Raises:
        UserError: naming all mistakes at once, each with file, line, dotted path, what was given, what is allowed and
            the nearest valid key.
    """
    path = Path(path)
    values, places, found = _read_file(path)
    found += _apply_overrides(values, overrides, places)
    config = _validate(values, places, found)
    if config is None:
        count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise UserError(f"{path} cannot be used: {count}\n" + "\n".join(f"  {line}" for line in _in_order(found)))
    if config.output_dir is None:
        config = config.model_copy(update={"output_dir": str(Path("runs") / path.stem)})
    return config


def _validate(values: dict[str, Any], places: "_Places", found: list[str]) -> Config | None:
    """Make the configuration; or add to `found` what is wrong with it, and return None.

    Pydantic checks fields against each other only where each is right by itself. So what is wrong by itself is taken
    out and the rest is checked once more, to find every mistake at once. Of those that come to light then, the ones
    whose text names a field that was taken out are no mistakes of the user's.
    """
    taken_out: set[str] = set()
    while True:
        try:
            config = Config.model_validate(values)
            return None if found else config
        except ValidationError as error:
            for details in error.errors():
                section = details["loc"]
                if details["type"] != "together":
                    found.append(f"{places.of(section)}: {_dotted(section)}: {_describe(details)}")
                    taken_out.add(_take_out(values, section))
                    continue
                for field, given, allowed in details["ctx"]["mistakes"]:
                    path = (*section, *field.split("."))
                    if taken_out.isdisjoint(re.findall(r"\w+", allowed)):
                        found.append(f"{places.of(path)}: {_dotted(path)}: given {_shown(given)}; allowed: {allowed}")
                _take_out(values, section)


def _take_out(values: dict[str, Any], path: KeyPath) -> str:
    """Remove a key, so that its default stands in; returns its name.

    What is no key that was given (an item of a list, a default that does not fit, sections that do not fit each other)
    is taken out with the nearest section above that was.
    """
    for depth in range(len(path), 0, -1):
        *sections, key = path[:depth]
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            del section[key]
            return str(key)
    values.clear()
    return ""


class _Places(dict[KeyPath, str]):
    """Where each key was given: `file:line`, or the command line."""

    def of(self, path: KeyPath) -> str:
        """The place of a key, or of the nearest section above that was given."""
        while path and path not in self:
            path = path[:-1]
        return self[path]


def _read_file(path: Path) -> tuple[dict[str, Any], _Places, list[str]]:
    places = _Places({(): str(path)})
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {_other_files(path)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: given {_shown(values)}; allowed: sections such as `training:` with keys below them")
    found = list(_walk(node, (), path, places)) if node is not None else []
    # `training:` with nothing below it is the section's defaults
    values = {key: {} if value is None and _is_section((key,)) else value for key, value in values.items()}
    return values, places, found


def _other_files(path: Path) -> str:
    """What a person may have meant by a file that is none: those in its folder, or in the usual one."""
    for folder in (path, path.parent, Path("configs")):
        names = sorted(str(each) for each in folder.glob("*.yaml") if not each.name.startswith("."))
        if names:
            near = difflib.get_close_matches(str(path), names, n=1)
            return f"did you mean {near[0]}?" if near else f"YAML files there: {', '.join(names)}"
    return "there are no YAML files in that folder"


def _walk(node: yaml.Node, at: KeyPath, path: Path, places: _Places) -> Iterator[str]:
    """Note the line of every key below a node; yield the keys given twice, of which YAML would keep only the last."""
    if len(at) > 8:  # deeper than any section; a recursive alias would never end
        return
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                continue
            here = (*at, key)
            if key in seen and key != "<<":
                yield f"{path}:{line}: {_dotted(here)}: given twice, first in line {seen[key]}; allowed: once"
            seen[key] = line
            places[here] = f"{path}:{line}"
            yield from _walk(value_node, here, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*at, index)
            places[place] = f"{path}:{item.start_mark.line + 1}"


def _apply_overrides(values: dict[str, Any], overrides: Iterable[str], places: _Places) -> list[str]:
    found = []
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            found.append(f"command line: given {override!r}; allowed: section.key=value, e.g. training.batch_size=64")
            continue
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            value = text
        section = values
        for key in keys[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[keys[-1]] = value
        places[keys] = "command line"
    return found


def _describe(details: ErrorDetails) -> str:
    """Say in our words what pydantic found wrong with one value."""
    given = _shown(details["input"])
    if details["type"] == "extra_forbidden":
        return f"unknown key (given {given}); {_nearest_key(details['loc'])}"
    if details["type"] == "model_type":
        return f"given {given}; allowed: a section, with keys below it"
    if details["type"] == "missing":
        return f"given {given}; allowed: a value more"
    allowed = details["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    for theirs, ours in (
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
        ("greater than", "above"),
        ("less than", "below"),
    ):
        allowed = allowed.replace(theirs, ours)
    return f"given {given}; allowed: {allowed}"


def _in_order(found: list[str]) -> list[str]:
    """The mistakes of the file by line, then those of the command line."""

    def line(text: str) -> float:
        match = re.match(r".*?:(\d+): ", text)
        return float(match[1]) if match else float("inf")

    return sorted(found, key=line)


def _sections(model: type[BaseModel] = Config, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every section of the schema with its keys."""
    yield at, [field.alias or name for name, field in model.model_fields.items()]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _sections(field.annotation, (*at, field.alias or name))


def _is_section(path: KeyPath) -> bool:
    return path in dict(_sections())


def _nearest_key(path: KeyPath) -> str:
    keys = dict(_sections())
    here = keys.get(tuple(map(str, path[:-1])), [])
    name = str(path[-1])
    if near := difflib.get_close_matches(name, here, n=1):
        return f"did you mean {near[0]}?"
    if elsewhere := [".".join((*section, name)) for section, names in keys.items() if name in names]:
        return f"did you mean {elsewhere[0]}?"
    return "allowed: " + ", ".join(here)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the file"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
