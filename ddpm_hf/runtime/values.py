"""Nested plain values, such as configurations: read from JSON and YAML within limits, and gone through by path.

Files that come from outside may be made to hang or to fill the memory: they are read only if they are regular, and up
to a number of bytes, of levels and of values.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import read_bounded

T = TypeVar("T")

MAX_BYTES = 16 * 2**20
"""Longest JSON file that is read; those of a model have a few kB."""

MAX_LEVELS = 64
"""Of lists and mappings within one another."""

MAX_NODES = 100_000
"""Values in a YAML document, those of an alias counted wherever it is used: nine lines can stand for 10^9 of them."""

BOUNDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""Our words for pydantic's."""


def read_json(file: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file that may come from outside.

    Args:
        file: in UTF-8.
        max_bytes: longest file that is read.

    Raises:
        OSError: if it cannot be opened.
        UserError: naming the file, if it is not regular, too long, not JSON, or too deep.
    """
    return parse_json(read_bounded(file, max_bytes), str(file))


def parse_json(content: bytes | str, name: str) -> Any:
    """Read JSON that may come from outside.

    Args:
        content: in UTF-8.
        name: of the file, for the message.

    Raises:
        UserError: naming the file, if it is not JSON, or has more than MAX_LEVELS levels.
    """
    try:
        values = json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as JSON ({error})") from None
    level = [values]
    for _ in range(MAX_LEVELS):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return values
    raise UserError(f"{name} has more than {MAX_LEVELS} levels of lists and mappings within one another")


def read_json_mapping(file: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file whose outermost value has to be a mapping; arguments and errors are those of `read_json`."""
    return as_type(dict[str, Any], read_json(file, max_bytes), str(file))


def as_type(kind: type[T], values: Any, name: str) -> T:
    """Make an object of a type from plain values that were read from JSON; nothing is converted.

    Args:
        kind: a dataclass or a TypedDict, whose fields may be annotated with ranges, or any other type.
        values: as they were read.
        name: of the file, for the message.

    Raises:
        UserError: naming the file, the field, its value and what is allowed.
    """
    try:
        # of its JSON, where a list stands for a tuple
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first, given, path = error.errors()[0], values, []
        for key in first["loc"]:  # up to pydantic's names of the kinds of a union, which are no keys
            inner = dict(enumerate(given)) if isinstance(given, (list, tuple)) else given
            if not isinstance(inner, Mapping) or key not in inner:
                break
            given = inner[key]
            path.append(str(key))
        field = f"{'.'.join(path)}: " if path else ""
        if first["type"] == "missing":
            raise UserError(f"{name}: {field}{first['loc'][-1]} is missing") from None
        kinds = [allowed(each) for each in error.errors() if each["loc"][: len(path)] == first["loc"][: len(path)]]
        raise UserError(f"{name}: {field}given {shown(given)}; allowed: {', or '.join(dict.fromkeys(kinds))}") from None


def allowed(details: ErrorDetails) -> str:
    """What is allowed in place of a value that pydantic refuses, in our words instead of its own."""
    text = details["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    for theirs, ours in BOUNDS.items():
        text = text.replace(theirs, ours)
    return text


def shown(value: Any) -> str:
    """A value in at most 60 characters, as JSON and YAML have it, for messages."""
    try:
        text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


class YamlLoader(yaml.SafeLoader):
    """The core schema of YAML 1.2 where PyYAML reads YAML 1.1: `no` and `1:30` are strings, `2e-4` and `010` numbers.

    Raises:
        yaml.YAMLError: also for a document of more than MAX_NODES values or MAX_LEVELS levels, and for a value that its
            explicit tag does not allow.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (as PyYAML declares it)

    def get_single_node(self) -> Any:
        """Compose the document; nothing is constructed of one that is too large."""
        try:
            node = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError(f"more than {MAX_LEVELS} levels within one another") from None
        if node is not None:
            self._measure(node, {})
        return node

    def _measure(self, node: yaml.Node, measured: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
        """The number of values and levels of a node, with those of every alias in it."""
        if id(node) not in measured:
            measured[id(node)] = None
            values, levels = 1, 0
            children = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [each for pair in node.value for each in pair]
            for child in children:
                more, height = self._measure(child, measured)
                values, levels = values + more, max(levels, height)
            measured[id(node)] = (values, levels + 1)
        size = measured[id(node)]
        if size is None:
            raise yaml.constructor.ConstructorError(problem="it contains itself", problem_mark=node.start_mark)
        if size[0] > MAX_NODES or size[1] > MAX_LEVELS:
            problem = f"more than {MAX_NODES:,} values or {MAX_LEVELS} levels, counting aliases"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return size

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a value; PyYAML raises errors of Python's for some that an explicit tag does not allow."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"{shown(node.value) if isinstance(node, yaml.ScalarNode) else 'this'} is no {tag}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from None

    def construct_yaml_int(self, node: Any) -> int:
        """`0o10` is 8 and `010` is 10, as in YAML 1.2."""
        text = self.construct_scalar(node).lower()
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)


class YamlDumper(yaml.SafeDumper):
    """Quotes the strings that either version of YAML reads as something else."""


CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),  # of YAML 1.1, which files of users have
)
"""The types of plain scalars: tag, pattern, and the characters that they begin with."""

for _tag, _pattern, _first in CORE_SCHEMA:
    for _class in (YamlLoader, YamlDumper):
        _firsts = [*_first, *([""] if _tag == "null" else [])]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _firsts)
YamlLoader.add_constructor("tag:yaml.org,2002:int", YamlLoader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """Read a YAML document that may come from outside; see `YamlLoader`.

    Raises:
        yaml.YAMLError: if it is not YAML, or too large.
    """
    return yaml.load(text, YamlLoader)


def find_mapping(file: Path, parse: Callable[[str], Any] = load_yaml) -> dict[str, Any]:
    """The mapping in a YAML file, or one of another format; empty if there is none that can be read."""
    try:
        found = parse(read_bounded(file, MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=YamlDumper, sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], separator: str = ".", lists: bool = False) -> dict[str, Any]:
    """Flatten a nested mapping to one of values by their path.

    Args:
        values: the mapping; mappings in it are flattened too.
        separator: between the names of a path.
        lists: whether the elements of lists are values of their own, named by their index.

    Returns:
        The values by path, in the order of the mapping.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = dict(enumerate(value)) if lists and isinstance(value, (list, tuple)) else value
        if isinstance(inner, Mapping):
            items = {str(key): each for key, each in inner.items()}
            flat |= {f"{name}{separator}{path}": each for path, each in flatten(items, separator, lists).items()}
        else:
            flat[name] = value
    return flat


def merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the values that a nested mapping lacks.

    Args:
        defaults: used where `values` has nothing.
        values: takes precedence.
    """
    merged = {**defaults, **values}
    for name in defaults.keys() & values.keys():
        if isinstance(defaults[name], Mapping) and isinstance(values[name], Mapping):
            merged[name] = merge(defaults[name], values[name])
    return merged


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two nested mappings.

    Returns:
        The old and the new value of each path where they differ; None where one of them has no value.
    """
    old, new = flatten(before), flatten(after)
    return {path: (old.get(path), new.get(path)) for path in {**old, **new} if old.get(path) != new.get(path)}
