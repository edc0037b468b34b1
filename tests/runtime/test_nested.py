"""Nested dicts by path: flattened, merged and compared."""

from ddpm_hf.runtime.nested import diff, flatten, merge


def test_values_are_named_by_their_path():
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [1, 2], "e": None}
    assert flatten(nested, "/", lists=True) == {"a/b": 1, "a/c/d/0": 1, "a/c/d/1": 2, "e": None}


def test_missing_values_are_filled_in():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}


def test_values_that_differ_are_named_with_both():
    before, after = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert diff(before, after) == {"a.c": (2, 4), "d": (3, None), "e": (None, 5)}
