"""What all programs share: one-line errors, exit codes, quiet libraries, a word while they load."""

import argparse
import atexit
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from ddpm_hf.runtime.errors import UserError

SECONDS_BEFORE_THE_OTHERS_LEAVE = 1.0
"""For which a process that is not the main one keeps a mistake to itself: it may be that of all, or follow from that of
the main one."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes get one line, as all others do.

    Args:
        description: shown as it stands.
        epilog: shown as it stands, below the options.
        explain: asked what else to say of options that are not known.
        prog: name of the program; None is that of its file.
    """

    def __init__(
        self,
        description: str | None,
        epilog: str | None = None,
        explain: Callable[[str], str] | None = None,
        prog: str | None = None,
    ) -> None:
        super().__init__(prog, None, description, epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.explain = explain

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        hint = self.explain(message) if self.explain and message.startswith("unrecognized") else ""
        print(f"{self.prog}: {message}{hint} (--help lists what there is)", file=sys.stderr)
        sys.exit(2)


def run(
    parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None
) -> None:
    """Parse the command line and run a program; any error becomes one line on stderr.

    Exit codes: 0 done; 1 failed; 2 something that was given cannot be used; 128 + n stopped by signal n.

    Args:
        parser: the program's options; `--verbose` is added.
        main: the program.
        argv: the command line; None takes the process's own.
    """
    parser.add_argument("--verbose", action="store_true", help="show where an error comes from, and what libraries say")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand between options
    _set_up_messages(arguments.verbose)
    code = 0
    try:
        main(arguments)
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        code = _tell(error, parser.prog)
    except KeyboardInterrupt:
        if is_main_process():
            print(f"\n{parser.prog}: stopped by Ctrl-C", file=sys.stderr)
        code = 130
    leave(code)


def leave(code: int) -> None:
    """End the program; one of several processes, or one that was stopped, without the interpreter's own end.

    A thread that comes back from a library to an interpreter that ends has the whole process aborted. PyTorch's threads
    by which processes speak do so for the tensors they let go of (pytorch/pytorch, issue 190489); an upload that was
    left under way does. And a process that failed within an update would wait there for the others, who wait for it.

    Args:
        code: for the shell.
    """
    if code > 128 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # Ctrl-C ends the other end of a pipe, too
                stream.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _tell(error: Exception, program: str) -> int:
    """Say what went wrong, unless another process does; gives the exit code."""
    code = getattr(error, "exit_code", 2 if _is_the_users(error) else 1)
    text = str(error) or type(error).__name__
    if code == 1 and not isinstance(error, FloatingPointError | MemoryError):
        text = f"{type(error).__name__}: {text} (--verbose shows where)"
    if not is_main_process():
        # the launcher ends the others as soon as one has left: that is to be the one that tells why
        time.sleep(SECONDS_BEFORE_THE_OTHERS_LEAVE)
        if code > 2:
            return code  # all were stopped together
        program = f"{program} (process {os.environ['RANK']})"
    print(f"{program}: {text}", file=sys.stderr)
    return code


def _is_the_users(error: Exception) -> bool:
    """Whether an error tells of what was given: a ValueError that our own code raises, no library's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return isinstance(error, UserError) or (isinstance(error, ValueError) and raised_in.startswith("ddpm_hf."))


def is_main_process() -> bool:
    """Whether this is the one process that speaks to the person."""
    return os.environ.get("RANK", "0") == "0"


def launcher() -> str:
    """How this program was started, for commands that it tells: `python`, or `accelerate launch`."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    return "accelerate launch" if by_accelerate else "python"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what takes seconds, until it is done.

    Args:
        what: goes on within the block, such as "loading PyTorch".
    """
    shown = sys.stderr.isatty() and is_main_process()
    if shown:
        print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _set_up_messages(verbose: bool) -> None:
    level = logging.WARNING if is_main_process() else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO if verbose else level)
    warnings.showwarning = _show_warning
    if not verbose:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="ddpm_hf")
        for library in ("accelerate", "datasets", "diffusers", "huggingface_hub", "transformers"):
            logging.getLogger(library).setLevel(logging.ERROR)
        for library in ("DATASETS", "DIFFUSERS", "HF_HUB", "TRANSFORMERS"):  # those that set their level when imported
            os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stand for `warnings.showwarning`: what is wrong concerns the person, where in the code does not."""
    logging.getLogger("ddpm_hf").warning("%s", message)
