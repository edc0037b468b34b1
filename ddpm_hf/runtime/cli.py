"""What all programs share: one-line errors, exit codes, quiet libraries, a notice while they load."""

import argparse
import atexit
import difflib
import errno
import itertools
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from ddpm_hf.runtime.errors import RunError, UserError
from ddpm_hf.runtime.sanitize import for_terminal
from ddpm_hf.runtime.signals import end_as_usual, ending_at_once

SECONDS_TO_MAIN_PROCESS = 1.0
"""Time that another process gives the main one to report an error first: all may have the same one."""


SYNONYMS = (
    ("output", "output_dir", "out_dir"),
    ("model", "run_folder", "model_dir"),
    ("num_samples", "n_samples", "num_images"),
    ("num_inference_steps", "num_steps", "steps"),
    ("seed", "seeds"),
    ("no_private", "public"),
)
"""Names of options that one program has and a person may expect of another."""


class Parser(argparse.ArgumentParser):
    """A command-line parser that reports each mistake in one line, with the right spelling.

    Args:
        description: printed verbatim.
        epilog: printed verbatim, below the options.
        explain: called with the name of an unknown option; returns how it is written, such as "seed=VALUE".
        prog: name of the program; None is that of its file.
    """

    def __init__(
        self,
        description: str | None,
        epilog: str | None = None,
        explain: Callable[[str], str | None] | None = None,
        prog: str | None = None,
    ) -> None:
        super().__init__(prog, None, description, epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.explain = explain
        self.words: list[str] = []

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the command line; overrides may stand between options, and blanks around the = of one."""
        self.words = []
        for word in sys.argv[1:] if argv is None else argv:
            is_value = self.words and self.words[-1].endswith("=") and "=" not in word and not word.startswith("--")
            if self.words and (word.startswith("=") or is_value):
                self.words[-1] += word
            else:
                self.words.append(word)
        arguments, strays = self.parse_known_intermixed_args(self.words)
        strays += [word for word in getattr(arguments, "overrides", ()) if "=" not in word]
        if strays:
            self._fail([self._stray(word) for word in strays])
        return arguments

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        leading = list(itertools.takewhile(lambda word: not word.startswith("-") and "=" not in word, self.words))
        takes_words = any(not action.option_strings and action.dest != "overrides" for action in self._actions)
        if match := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message):
            allowed = "a whole number" if match[2] == "int" else "a number"
            message = f"{match[1]}: given {match[3]}; allowed: {allowed}"
        elif "required" in message and leading and not takes_words:
            message = self._stray(leading[0])
        self._fail([message.removeprefix("argument ")])

    def _fail(self, problems: list[str]) -> NoReturn:
        """Report problems, or else only the options that do not exist, from which the problems may follow."""
        options = [word.partition("=")[0] for word in self.words if re.match("--?[A-Za-z]", word)]
        # argparse takes the beginning of a name for the whole
        unknown = [each for each in options if not any(key.startswith(each) for key in self._option_string_actions)]
        lines = [f"{option}: there is no such option{self._spelling(option)}" for option in unknown] or problems
        text = "\n".join(f"{self.prog}: {line}" for line in dict.fromkeys(lines))
        print(f"{text} (--help lists what there is)", file=sys.stderr)
        sys.exit(2)

    def _stray(self, word: str) -> str:
        """Say how a word is written that belongs to no option."""
        name, equals, _ = word.partition("=")
        if equals:
            return f"{word}: there is no such option{self._spelling(name.rpartition('.')[2])}"
        if name.endswith((".yaml", ".yml")) and self._is_free("--config"):
            return f"{word}: a configuration is written --config {word}"
        if self._is_free("--model"):
            return f"{word}: a model is written --model {word}"
        if self.explain:
            return f"given {word!r}; allowed: section.key=value, or quotes around a name with blanks"
        before = self.words[: self.words.index(word)]
        start = max((index for index, each in enumerate(before) if each.startswith("--")), default=None)
        if start is None or (action := self._option_string_actions.get(before[start])) is None:
            return f"given {word!r} without an option"
        values = itertools.takewhile(lambda each: not each.startswith("--"), self.words[start + 1 :])
        counts: dict[int | str | None, str] = {None: "one value", 0: "no value"}
        allowed = counts.get(action.nargs, f"{action.nargs} values")
        return f"{before[start]}: given {' '.join(values)}; allowed: {allowed}"

    def _is_free(self, option: str) -> bool:
        """Whether there is an option that was not given."""
        return option in self._option_string_actions and option not in self.words

    def _spelling(self, name: str) -> str:
        """How an option is written that is called otherwise here."""
        name = name.lstrip("-").replace("-", "_")
        names = next((names for names in SYNONYMS if name in names), (name,))
        for action in self._actions:
            for each in (name, *names):
                if each in [option.lstrip("-").replace("-", "_") for option in action.option_strings]:
                    options = " or ".join(action.option_strings)
                    return f"; it is written {options} {'' if action.nargs == 0 else action.metavar or ''}".rstrip()
                if not action.option_strings and action.dest == each:
                    return f"; it is written without a name, as {action.metavar}"
        if near := difflib.get_close_matches(f"--{name}", self._option_string_actions, n=1, cutoff=0.75):
            return f"; did you mean {near[0]}?"
        hints = [hint for each in (name, *names) if self.explain and (hint := self.explain(each))]
        return f"; it is written {hints[0]}" if hints else ""


class Output:
    """A standard stream whose reader may leave: what cannot be written is dropped, and the program goes on.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if that is possible."""
        with self._tolerating():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if that is possible."""
        with self._tolerating():
            self._stream.flush()

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (
                errno.EPIPE,
                errno.EIO,
            ):  # a pipe without a reader, a terminal that was closed: for good
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _protect_output() -> None:
    """Let output fail without consequence: to readers that have left, full disks, closed streams, narrow encodings."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the next file to be opened would take its place
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115, PTH123  (until the process ends)
        if not isinstance(stream, Output):
            if getattr(stream, "errors", None) == "strict":
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Output(stream))


def run(parser: Parser, main: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run a program; any error becomes one line on stderr.

    Exit codes: 0 success; 1 failure; 2 unusable input; 128 + n stopped by signal n.

    Args:
        parser: the program's options; `--verbose` is added.
        main: the program.
        argv: the command line; None is that of the process.
    """
    _protect_output()
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and the messages of libraries")
    arguments = parser.parse(argv)
    _configure_messages(arguments.verbose)
    code = 0
    try:
        end_as_usual()
        main(arguments)
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        code = _report(error, parser)
    except KeyboardInterrupt:
        if is_main_process():
            print(f"\n{parser.prog}: stopped by Ctrl-C", file=sys.stderr)
        code = 130
    leave(code)


def leave(code: int) -> None:
    """End the program; skip the interpreter's shutdown in a distributed or stopped one.

    During shutdown, a thread that returns from a library aborts the process: PyTorch's communication threads do when
    they free tensors (pytorch/pytorch issue 190489), and so does an unfinished upload. And a process that failed within
    an update would wait for the others, which wait for it.

    Args:
        code: for the shell.
    """
    if code > 128 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # Ctrl-C also ends the reader of a pipe
                stream.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _report(error: Exception, parser: Parser) -> int:
    """Print an error, unless another process does; returns the exit code."""
    code, program = getattr(error, "exit_code", 2 if _is_user_error(error) else 1), parser.prog
    text = str(error) or "it failed without a message"
    if code == 2 and not isinstance(error, UserError):  # in words of Python, whose arguments the options are
        names = {action.dest for action in parser._actions}
        text = re.sub(r"^\w+|\b\w+_\w+", lambda word: f"--{word[0]}" if word[0] in names else word[0], text)
    if code == 1 and not isinstance(error, FloatingPointError | MemoryError | RunError):
        is_told = isinstance(error, OSError) or _is_ours(error)
        text = f"{'' if is_told else 'unexpected error: '}{text} (--verbose shows where)"
    if not is_main_process():
        # The launcher kills all processes as soon as one exits, which should be the one that reports the error.
        time.sleep(SECONDS_TO_MAIN_PROCESS)
        if code > 2:
            return code  # a signal stopped all of them
        program = f"{program} (process {os.environ['RANK']})"
    print(f"{program}: {for_terminal(text, lines=True)}", file=sys.stderr)
    return code


def _is_user_error(error: Exception) -> bool:
    """Whether an error is about the input: a ValueError raised by ddpm_hf itself, not by a library."""
    return isinstance(error, UserError) or (isinstance(error, ValueError) and _is_ours(error))


def _is_ours(error: Exception) -> bool:
    """Whether ddpm_hf itself raised an error, rather than a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return raised_in.startswith("ddpm_hf.")


def is_main_process() -> bool:
    """Whether this is the process that prints messages."""
    return os.environ.get("RANK", "0") == "0"


def launcher() -> str:
    """How this program was started, for commands that it prints: `python` or `accelerate launch`."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    return "accelerate launch" if by_accelerate else "python"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a notice on a terminal during a block that imports libraries; a signal ends the program at once in it.

    Args:
        what: happens in the block, such as "loading PyTorch".
    """
    shown = sys.stderr.isatty() and is_main_process()
    if shown:
        print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        with ending_at_once():
            yield
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    """Shows what names from outside would have a terminal do."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (as logging names it)
        wipe = "\r\033[K" if sys.stderr.isatty() else ""  # a notice or a bar in the line of the message
        return wipe + for_terminal(super().formatMessage(record), lines=True)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(map(for_terminal, super().formatException(ei).split("\n")))


def _configure_messages(verbose: bool) -> None:
    level = logging.WARNING if is_main_process() else logging.ERROR
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else level)
    warnings.showwarning = _show_warning
    if not verbose:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="ddpm_hf")
        for library in ("accelerate", "datasets", "diffusers", "huggingface_hub", "transformers"):
            logging.getLogger(library).setLevel(logging.ERROR)
        for library in ("DATASETS", "DIFFUSERS", "HF_HUB", "TRANSFORMERS"):  # these set their level when imported
            os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Replace `warnings.showwarning`: print the message without its place in the code."""
    logging.getLogger("ddpm_hf").warning("%s", message)
