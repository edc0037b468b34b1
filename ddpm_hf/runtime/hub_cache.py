"""Which commit a branch was at when it was last looked up: what offline work goes by."""

from pathlib import Path

from huggingface_hub import constants

from ddpm_hf.runtime.files import write_text_atomic


def remember_commit(kind: str, repo_id: str, revision: str | None, commit: str) -> None:
    """Note a branch's commit in huggingface_hub's cache, where its own client looks, too.

    Args:
        kind: "model" or "dataset".
        repo_id: user/name.
        revision: branch or tag; None is main.
        commit: hash.
    """
    name = revision or "main"
    if name != commit:
        write_text_atomic(_file(kind, repo_id, name), commit)


def remembered_commit(kind: str, repo_id: str, revision: str | None) -> str | None:
    """What was noted; None if nothing was."""
    try:
        return _file(kind, repo_id, revision or "main").read_text().strip()
    except OSError:
        return None


def _file(kind: str, repo_id: str, name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}" / "refs" / name
