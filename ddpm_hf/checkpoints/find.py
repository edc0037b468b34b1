"""What a person may name as a model, checked before anything heavy is loaded."""

from pathlib import Path

from ddpm_hf.checkpoints.folder import find_latest
from ddpm_hf.runtime.errors import UserError

INDEX = "model_index.json"

ALLOWED = "a run folder, a saved pipeline, or an id on the Hub (user/name[@REV])"


def find_folder(model: str | Path) -> Path | None:
    """The folder with the pipeline of a model; None for an id on the Hub.

    Args:
        model: the folder of a saved pipeline or of a run, whose newest checkpoint is taken while it is not finished; or
            an id on the Hub.

    Raises:
        UserError: if it is neither.
    """
    path = Path(model).expanduser()
    if (path / INDEX).exists():
        return path
    if path.is_dir():
        checkpoint = find_latest(path / "checkpoints")
        if checkpoint is None:
            hint = f"; folders of runs in it: {', '.join(_runs(path))}" if _runs(path) else ""
            raise UserError(
                f"--model: {path} holds neither a pipeline ({INDEX}) nor a complete checkpoint of a run{hint}"
            )
        return checkpoint
    if path.exists():
        raise UserError(f"--model: {path} is a file; allowed: {ALLOWED}")
    if path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise UserError(f"--model: there is no folder {model}; allowed: {ALLOWED}")
    if runs := _runs(path.parent):  # then its first part is a folder of runs, and no user of the Hub
        raise UserError(f"--model: there is no folder {model}; folders of runs there: {', '.join(runs)}")
    return None


def run_of(folder: str | None, config: str) -> str:
    """The run folder of a YAML file.

    Args:
        folder: its output_dir.
        config: its name, for the message.

    Raises:
        UserError: if the run has not begun.
    """
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"--config: the run of {config} has not begun, there is no folder {folder}; train it first")
    return folder


def _runs(folder: Path) -> list[str]:
    """The folders in a folder that hold a model."""
    if not folder.is_dir():
        return []
    return sorted(str(path) for path in folder.iterdir() if (path / INDEX).exists() or (path / "checkpoints").is_dir())
