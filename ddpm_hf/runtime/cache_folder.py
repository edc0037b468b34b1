"""Where ddpm-hf keeps what later runs need again."""

import os
from pathlib import Path

VARIABLE = "DDPM_HF_CACHE"


def cache_folder() -> Path:
    """The user's cache of ddpm-hf: $DDPM_HF_CACHE, or ddpm-hf in $XDG_CACHE_HOME, or in ~/.cache."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddpm-hf"
