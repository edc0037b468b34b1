"""The bars of an evaluation, with the time left, in the main process only."""

from tqdm import tqdm

from ddpm_hf.runtime import cli


def bar(total: int, what: str, unit: str = "img", quiet: bool = False, delay: float = 1) -> tqdm:
    """A bar that appears once the work has taken a while.

    Args:
        total: pieces of work.
        what: is done.
        unit: of a piece.
        quiet: show nothing.
        delay: seconds after which it appears.
    """
    disable = quiet or not cli.is_main_process()
    return tqdm(total=total, desc=what, unit=unit, disable=disable, dynamic_ncols=True, delay=delay)
