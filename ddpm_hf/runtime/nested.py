"""Nested dicts, such as configurations, by the paths of their values."""

from collections.abc import Mapping
from typing import Any


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
