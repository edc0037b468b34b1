"""What a folder of drawn images followed from: it is kept beside them, and two settings never share a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import visible_files, write_text_atomic

MANIFEST = "manifest.json"


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make sure that a folder is new, empty, or holds images of these settings.

    Args:
        folder: where images are to be written.
        settings: what they follow from, as plain values.

    Raises:
        UserError: naming what the folder holds instead.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        if folder.exists() and (not folder.is_dir() or visible_files(folder)):
            raise UserError(f"--output: {folder} exists and holds no images of this program; choose another folder")
        return
    try:
        before = dict(json.loads(manifest.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"--output: {manifest} is not of this program; choose another folder") from None
    names = [*settings, *(name for name in before if name not in settings)]
    changed = [f"{name} was {before.get(name)!r}" for name in names if before.get(name) != settings.get(name)]
    if changed:
        raise UserError(
            f"--output: {folder} holds images of other settings ({', '.join(changed)}); choose another folder"
        )


def write_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings in the folder, which is made if need be; any number of processes may do so at a time."""
    if (folder / MANIFEST).exists():
        return
    write_text_atomic(folder / MANIFEST, json.dumps(dict(settings), indent=2) + "\n")
