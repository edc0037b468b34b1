"""Where figures go besides metrics.jsonl: accelerate's trackers."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ddpm_hf.config import Config
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.nested import flatten

PROJECT = "ddpm-hf"


def check_tracker(name: str) -> None:
    """Refuse a tracker whose package is not installed, which accelerate would leave out without a word.

    Raises:
        UserError: naming the package.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in ("none", *available):
        raise UserError(
            f"logging.tracker: given {name!r}, which is not installed; allowed here: "
            f"{', '.join(['none', *sorted(available)])}; or: pip install {name}"
        )


def start_tracker(accelerator: Accelerator, config: Config, folder: Path) -> None:
    """Begin to send figures to the tracker of a run, and the run's options first.

    Args:
        accelerator: knows the tracker.
        config: of the run.
        folder: of the run; a tracker that writes files writes them to `logs` in it.
    """
    logs = folder / "logs"
    if config.logging.tracker == "wandb" and accelerator.is_main_process:
        logs.mkdir(parents=True, exist_ok=True)  # wandb takes another folder if this one is missing
    options = {"wandb": {"dir": str(logs), "name": folder.name}}
    settings = flatten(config.to_dict())
    plain = {name: value if isinstance(value, (int, float)) else str(value) for name, value in settings.items()}
    accelerator.init_trackers(PROJECT, plain, options)
