"""Nested plain values: read within limits, and by path flattened, merged and compared."""

import math

import pytest
import yaml

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.values import diff, dump_yaml, find_mapping, flatten, load_yaml, merge, parse_json, shown


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


# JSON from outside


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 65 + "]" * 65,
        "1" * 5000,
        b"\xff",
        b"\xff\xfe[\0]\0",
        "nothing",
        "{'a': 1}",
    ],
    ids=lambda text: str(text[:10]),
)
def test_json_that_cannot_be_read_names_its_file(text):
    with pytest.raises(UserError, match="outside"):
        parse_json(text, "outside")


def test_json_of_64_levels_is_read():
    assert parse_json(b"[" * 64 + b"]" * 64, "")
    assert parse_json('\ufeff{"a": 1}'.encode(), "") == {"a": 1}


def test_a_file_without_a_mapping_counts_as_empty(tmp_path):
    for content in (b"[1]", b"\xff", b"a: b: c", b"a: &a [*a]", b"{" * 10_000):
        (tmp_path / "file.yaml").write_bytes(content)
        assert find_mapping(tmp_path / "file.yaml") == {}
    assert find_mapping(tmp_path / "none.yaml") == find_mapping(tmp_path) == {}


# YAML from outside


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("010", 10), ("0o10", 8), ("0x1F", 31), ("+5", 5), ("-3", -3), ("2e-4", 2e-4), (".5", 0.5), ("1.", 1.0)),
        *(("-.inf", -math.inf), ("~", None), ("", None), ("null", None), ("True", True), ("false", False)),
        *(
            (text, text)
            for text in ("1:30", "no", "on", "yes", "1_000", "2020-01-01", "0b11", "=", "nUll", "1e", "0o9")
        ),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    assert load_yaml(f"key: {text}") == {"key": value}
    assert type(load_yaml(text)) is type(value)


def test_strings_survive_readers_of_either_version():
    strings = [
        "1:30",
        "no",
        "0o10",
        "010",
        "1e5",
        "~",
        "",
        "2020-01-01",
        "0x1F",
        "1_000",
        "<<",
        "=",
        "off",
        ".5",
        "\x1b[2J",
    ]
    values = {"strings": strings, **dict.fromkeys(strings, 1), "numbers": [1e-5, 10, 1.5, True, None]}
    assert load_yaml(dump_yaml(values)) == yaml.safe_load(dump_yaml(values)) == values


NINE = [", ".join([f"*a{i}"] * 9) for i in range(8)]

BOMBS = {
    "lists": "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{nine}]\n" for i, nine in enumerate(NINE)),
    "mappings": "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} {{k: [{nine}]}}\n" for i, nine in enumerate(NINE)),
    "merged": "a0: &a0 {k: x}\n" + "".join(f"a{i + 1}: &a{i + 1}\n  <<: [{nine}]\n" for i, nine in enumerate(NINE)),
    "a chain": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
    "itself": "a: &a [*a]",
    "itself, merged": "a: &a\n  <<: *a",
    "brackets": "[" * 10_000,
    "nested": "\n".join(" " * i + "k:" for i in range(1000)),
    "long": "[" + "x," * 100_000 + "]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name):
    with pytest.raises(yaml.YAMLError):
        load_yaml(BOMBS[name])


@pytest.mark.parametrize(
    "text",
    [
        *("!!bool abc", "!!timestamp abc", "!!int ''", "!!int abc", "!!float x", "!!int 0x", "!!int", "!!binary é"),
        *("!!python/object:os.system 1", "!unknown 1", "? [1]\n: 2", "? {a: b}\n: 2", "<<: 3", "1" * 5000, "!!int [1]"),
        *("!!set [1]", "!!omap 3", "!!pairs {a: 1}", "!!str {b: c}", "!!map 3", "!!seq 3", "!!null [1]", "!!merge [1]"),
    ],
)
def test_what_a_tag_does_not_allow_is_an_error_of_yaml(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(f"key:\n  {text}" if "\n" not in text else text)


def test_numbers_of_any_length_are_shown_in_short():
    assert len(shown(16**5000)) <= 60
