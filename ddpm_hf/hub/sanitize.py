"""Remove what belongs to one machine or person from files that are pushed: paths, user names, tokens."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from ddpm_hf.checkpoints.format import Content
from ddpm_hf.runtime.errors import UserError

PATH = re.compile(r"(?<![\w.:/\\-])(?:file://)?(?:~[\w-]*|[A-Za-z]:)?[/\\][\w.~+-][^\s\"'<>|;,()]*")
"""An absolute path, or one from a home folder, in a text; a URL does not match."""

TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
TEXT_SUFFIXES = (".json", ".yaml", ".md", ".py")


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


def refuse_tokens(files: Mapping[str, Content]) -> None:
    """Raise if a text that is to be pushed holds a token.

    Raises:
        UserError: naming the file, but not the token.
    """
    own = get_token()
    for path, content in files.items():
        if path.endswith(TEXT_SUFFIXES):
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
            if TOKEN.search(text) or (own and own in text):
                raise UserError(
                    f"{path} holds a token of the Hub; take it out of the file it comes from, then push again"
                )


def _without_paths(text: str) -> str:
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\\]|$)", "~", text)
    return PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)
