"""Text from outside, made safe for where it goes: a terminal, Markdown, HTML, or files that are pushed.

File names, names of classes and datasets, and values of files that others wrote may hold anything.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = re.compile(r"(?<![\w.:/\\-])(?:file://)?(?:~[\w-]*|[A-Za-z]:)?[/\\][\w.~+-][^\s\"'<>|;,()]*")
"""An absolute path, or one from a home folder, in a text; a URL does not match."""


class Markdown(str):
    """Text that is Markdown already, such as a link that we made of escaped parts."""

    __slots__ = ()


def for_terminal(text: str, lines: bool = False) -> str:
    """Escape what a terminal would obey rather than show, and bytes that are no UTF-8; also for plain text files.

    Args:
        text: of any origin.
        lines: whether lines that are indented stay, as ours are in messages of several; any other new line is escaped,
            since what follows it may imitate another message.
    """
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    parts = re.split(r"(\n(?=\s|$))", shown) if lines else [shown]
    return "".join(part if part == "\n" and lines else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def for_markdown(text: object) -> Markdown:
    """Escape what Markdown would format, link or hand on as HTML; the result is one line, and fits into a table.

    Args:
        text: of any origin; Markdown stays as it is.
    """
    if isinstance(text, Markdown):
        return text
    line = html.escape(for_terminal(" ".join(str(text).splitlines())), quote=False)
    line = re.sub(r"[\\`*|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    return Markdown(re.sub(r"\](?=[\[(:])", r"\\]", line))


def for_html(text: str) -> str:
    """Escape what HTML would take for tags or attributes, and what is not printable."""
    return html.escape("\n".join(map(for_terminal, text.split("\n"))))


def sanitize(value: Any) -> Any:
    """Copy plain values, with each absolute path reduced to its last part.

    Keys `_name_or_path`, which diffusers writes and which hold such paths, are left out.
    """
    if isinstance(value, dict):
        return {key: sanitize(each) for key, each in value.items() if key != "_name_or_path"}
    if isinstance(value, (list, tuple)):
        return [sanitize(each) for each in value]
    return _without_paths(value) if isinstance(value, str) else value


def sanitize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the plain values of a configuration as `sanitize` does, without its output folder."""
    return {**sanitize(dict(config)), "output_dir": None}


def _without_paths(text: str) -> str:
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\\]|$)", "~", text)
    return PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)
