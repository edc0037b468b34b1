"""The learning rate as a function of the update and nothing else.

There is no scheduler object to step, so neither the number of processes, nor accumulation, nor a resumed run can make
the schedule run ahead or fall behind. `TrainStep` sets the rate before every update.
"""

import math

from ddpm_hf.config import LearningRateConfig


def learning_rate(step: int, num_steps: int, peak: float, schedule: LearningRateConfig) -> float:
    """The learning rate of one update, in the units of `peak`.

    Args:
        step: updates done before this one, 0 to num_steps - 1.
        num_steps: updates of the whole run.
        peak: the rate at the end of the warm-up.
        schedule: the shape. The warm-up reaches the peak with update warmup_steps - 1; `cosine` (SGDR, eq. 5), `linear`
            and `exponential` reach min_lr with the last update. A run of no more updates than warmup_steps ends on the
            way up, at peak * num_steps / warmup_steps; with a single update after the warm-up, that one is at the peak.
    """
    warmup, floor = schedule.warmup_steps, schedule.min_lr
    if step < warmup:
        return peak * (step + 1) / warmup
    since = step - warmup
    progress = min(since / max(num_steps - 1 - warmup, 1), 1.0)
    if schedule.type == "cosine":
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.type == "linear":
        return peak + (floor - peak) * progress
    if schedule.type == "exponential":
        return peak * (floor / peak) ** progress
    if schedule.type == "step":
        return max(floor, peak * schedule.step_factor ** (since // schedule.step_size))
    return peak
