"""`--help` tells every option that the schema knows."""

import pytest
import yaml

from ddpm_hf.config import Config
from ddpm_hf.config.root import option_hint, options_help


def paths(values: dict, at: str = "") -> dict[str, object]:
    """Every option by its dotted path."""
    found = {}
    for name, value in values.items():
        found |= paths(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}
    return found


def test_every_option_is_there_with_its_default():
    shown = {}
    for line in options_help().splitlines():
        if line.startswith("  ") and not line.startswith("   "):
            path, _, default = line.strip().partition("=")
            shown[path] = default
    expected = paths(Config().to_dict())
    assert shown.keys() == expected.keys()
    for path, default in expected.items():
        assert default in (shown[path], yaml.safe_load(shown[path])) or float(shown[path]) == default, path


def test_it_fits_a_terminal_of_80_columns_and_tells_limits():
    text = options_help("training")
    assert max(map(len, text.splitlines())) <= 80
    assert "training.batch_size=128" in text
    assert "(at least 1)" in text
    assert "model_config" not in text


@pytest.mark.parametrize("program", ["training/train.py", "training/eval.py"])
def test_programs_show_it(program, capsys):
    import runpy
    from pathlib import Path

    parser = runpy.run_path(str(Path(__file__).parents[2] / program))["make_parser"]()
    assert "benchmark.n_samples=" in parser.format_help()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("num_steps", "training.num_steps=VALUE"),
        ("learning_rate", "training.learning_rate=VALUE"),
        ("training.num_steps", "training.num_steps=VALUE"),
        ("seed", "seed=VALUE"),
        ("nothing", None),
    ],
)
def test_an_option_given_as_diffusers_script_has_it_is_told_as_it_is_here(given, told):
    assert option_hint(given) == told


def test_words_are_not_broken_at_hyphens():
    assert not [line for line in options_help().splitlines() if line.endswith(("ddpm-", "cc-", "anti-"))]
