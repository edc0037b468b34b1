"""Run a program in this process, as its command line would."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_hf.runtime import cli

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `folder/name.py` with arguments; gives exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location("program", REPOSITORY / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            cli.run(module.make_parser(), module.main, [str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
