"""What all programs share: mistakes in one line, a word while they load, the launcher that they name."""

import io
import os
import sys

import pytest
from processes import run, run_python

from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def refusal(capsys):
    """What a program with a few options says of a command line that it refuses."""

    def refusal(*words: str) -> str:
        parser = cli.Parser("Does things.", explain={"rate": "training.rate=VALUE"}.get, prog="do.py")
        parser.add_argument("--model", metavar="FOLDER")
        parser.add_argument("--output", metavar="DIR")
        parser.add_argument("--num_samples", type=int, metavar="N")
        parser.add_argument("overrides", nargs="*")
        with pytest.raises(SystemExit) as leaving:
            cli.run(parser, lambda arguments: None, list(words))
        assert leaving.value.code == 2
        return capsys.readouterr().err

    return refusal


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--num_samples", "x"], "--num_samples: given 'x'; allowed: a whole number"),
        (["--num-samples", "3"], "--num-samples: there is no such option; it is written --num_samples N"),
        (["--num_sample_", "3"], "--num_sample_: there is no such option; did you mean --num_samples?"),
        (["--n_samples=3"], "--n_samples: there is no such option; it is written --num_samples N"),
        (["--output_dir", "x", "a.b=3"], "--output_dir: there is no such option; it is written --output DIR"),
        (["--rate", "3"], "--rate: there is no such option; it is written training.rate=VALUE"),
        (["--training.rate", "3"], "--training.rate: there is no such option"),
        (["runs/x"], "runs/x: a model is written --model runs/x"),
        (["--model", "a", "b"], "given 'b'; allowed: section.key=value"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_with_the_right_spelling(refusal, given, told):
    text = refusal(*given)
    assert text.startswith(f"do.py: {told}")
    assert text.endswith(" (--help lists what there is)\n")
    assert text.count("\n") == 1


def test_each_unknown_option_is_told_and_no_known_one(refusal):
    lines = refusal("--foo", "1", "--num_samples", "3", "--rate", "2", "c.d=1").splitlines()
    assert [line.split(":")[1] for line in lines] == [" --foo", " --rate"]


@pytest.mark.parametrize("error", [ConnectionError("the Hub is away"), KeyError("x"), RuntimeError("no"), OSError()])
def test_no_message_names_a_class_of_python(capsys, error):
    def work(arguments):
        raise error

    with pytest.raises(SystemExit, match="1"):
        cli.run(cli.Parser("Does things.", prog="do.py"), work, [])
    said = capsys.readouterr().err
    assert said.startswith("do.py: ")
    assert "Error" not in said


@pytest.mark.parametrize("words", [["a.b", "=", "x"], ["a.b=", "x"], ["a.b", "=x"], ["a.b=x"]])
def test_blanks_around_an_equals_sign_mean_nothing(words):
    parser, seen = cli.Parser("Does things."), []
    parser.add_argument("overrides", nargs="*")
    cli.run(parser, seen.append, ["empty=", "c=1", *words, "d.e=1"])
    assert seen[0].overrides == ["empty=", "c=1", "a.b=x", "d.e=1"]


@pytest.fixture
def left_at_once(monkeypatch):
    """Have what ends the process without the interpreter's own end be an exit as any other."""
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    monkeypatch.setattr(cli.atexit, "_run_exitfuncs", lambda: print("put in order"))


def test_ctrl_c_is_no_traceback(capsys, left_at_once):
    def work(arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        cli.run(cli.Parser("Does things.", prog="do.py"), work, [])
    assert capsys.readouterr() == ("put in order\n", "\ndo.py: stopped by Ctrl-C\n")


def test_what_takes_seconds_is_said_on_a_terminal_and_wiped_away(monkeypatch):
    for stream, said in ((Terminal(), "loading …\r\033[K"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        with cli.waiting("loading"):
            assert stream.getvalue() == said.partition("\r")[0]
        assert stream.getvalue() == said


def test_another_process_of_a_launch_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("RANK", "1")
    with cli.waiting("loading"):
        assert sys.stderr.getvalue() == ""


def test_a_mistake_of_another_process_alone_is_not_lost(monkeypatch, capsys):
    def work(arguments):
        raise UserError("--output: holds another evaluation")

    slept = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as leaving:
        cli.run(cli.Parser("Does things.", prog="do.py"), work, [])
    said = "do.py (process 3): --output: holds another evaluation\n"
    assert (leaving.value.code, capsys.readouterr().err) == (2, said)
    assert slept == [cli.SECONDS_TO_MAIN_PROCESS]


def test_that_all_were_stopped_is_said_once(monkeypatch, capsys, left_at_once):
    def work(arguments):
        raise Stopped("stopped at step 4", 15)

    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    for rank, said in (("1", ""), ("0", "do.py: stopped at step 4\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="143"):
            cli.run(cli.Parser("Does things.", prog="do.py"), work, [])
        assert capsys.readouterr().err == said


STOPPED = """
import threading, time
import torch
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.signals import Stopped

def upload():
    while True:
        (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()

def main(arguments):
    threading.Thread(target=upload, daemon=True).start()
    time.sleep(0.2)
    raise Stopped("stopped at step 4", 15)

cli.run(cli.Parser("Train."), main)
"""


def test_threads_that_are_still_at_work_do_not_abort_a_program_that_was_stopped(tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    done = run(sys.executable, script)
    assert (done.returncode, done.stderr) == (143, "stopped.py: stopped at step 4\n")


@pytest.mark.parametrize("name", ["ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"])
def test_commands_are_told_as_the_program_was_started(monkeypatch, name):
    for each in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(each, raising=False)
    assert cli.launcher() == "python"
    monkeypatch.setenv(name, "1")
    assert cli.launcher() == "accelerate launch"


LIBRARIES = ("accelerate", "datasets", "diffusers", "huggingface_hub", "transformers")


def test_libraries_keep_quiet(tmp_path):
    """They are imported afterwards, as in every program, and some set their level by then."""
    script = tmp_path / "program.py"
    script.write_text(
        "import logging\n"
        "from ddpm_hf.runtime import cli\n"
        "def main(arguments):\n"
        f"    if not arguments.verbose:\n        import {', '.join(LIBRARIES)}\n"
        f"    for library in {LIBRARIES}:\n        logging.getLogger(library + '.some.part').warning('Retrying')\n"
        "cli.run(cli.Parser('Does things.'), main)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    assert run(sys.executable, script, env=environment, check=True).stderr == ""
    verbose = run(sys.executable, script, "--verbose", env=environment, check=True).stderr
    assert verbose.count("Retrying") == len(LIBRARIES)


def test_output_whose_reader_has_left_is_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:  # noqa: PTH123  (an open descriptor)
        output = cli.Output(stream)
        for _ in range(3):
            assert output.write("said to nobody\n") == 15
            output.flush()


def test_messages_do_nothing_to_a_terminal():
    """Neither an error nor a warning nor a log; several lines of our own stay lines."""
    name = "\\x1b[2Jname\\nWARNING: forged"
    code = f"""
        import logging, warnings
        from ddpm_hf.runtime.cli import Parser, run
        from ddpm_hf.runtime.errors import UserError
        def main(arguments):
            logging.getLogger("ddpm_hf").warning("skipping %s", "{name}")
            raise UserError("2 mistakes in {name}\\n  one\\n  two")
        run(Parser("a program", prog="program"), main, [])
    """
    done = run_python(code)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        r"WARNING: skipping \x1b[2Jname\nWARNING: forged",
        r"program: 2 mistakes in \x1b[2Jname\nWARNING: forged",
        "  one",
        "  two",
    ]
