"""The program's command line: mistakes are one line, and exit code 2."""

import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from ddpm_hf.runtime import cli

PROGRAM = Path(__file__).parents[2] / "pipelines" / "app.py"


@pytest.fixture
def app(capsys):
    """Run the program in this process; gives exit code and stderr."""

    def run(*arguments):
        spec = importlib.util.spec_from_file_location("app", PROGRAM)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(SystemExit) as leaving:
            cli.run(module.make_parser(), module.main, [str(argument) for argument in arguments])
        return leaving.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "folder nowhere"),
        (["--model", "{folder}", "--port", "99999"], "--port: given 99999"),
        (["--model", "{folder}", "--host", "203.0.113.1"], "--host, --port: 203.0.113.1"),
        (["--model", "{folder}", "--max_images", "0"], "--max_images: given 0"),
    ],
)
def test_mistakes_are_one_line(app, folder, arguments, words):
    code, said = app(*(each.format(folder=folder) for each in arguments))
    assert code == 2
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_a_port_in_use_is_reported_before_anything_is_loaded(app):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = app("--model", "nowhere", "--port", taken.getsockname()[1])
    assert code == 2
    assert "cannot be listened at: Address already in use" in said


def test_without_gradio_the_error_says_how_to_install_it(app, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, said = app("--model", folder)
    assert code == 2
    assert said.strip().endswith('install it: pip install -e ".[demo]"')
