import json
import math

import pytest

from ddpm_hf.evaluation import evaluate_in_training
from ddpm_hf.runtime.signals import Stopped, StopRequest


class StopAfter(StopRequest):
    """A stop is requested after the given number of checks."""

    def __init__(self, enough: float):
        super().__init__()
        self.asked, self.enough = 0, enough

    def requested(self) -> bool:
        self.asked += 1
        if self.asked > self.enough:
            self.request()
        return super().requested()


@pytest.fixture
def look(make_pipeline, make_config, tmp_path):
    """An in-training evaluation of a run of its own, that counts what its network does."""

    def make(run: str, stop=None) -> tuple[dict, int]:
        pipeline, drawn = make_pipeline(), []
        pipeline.unet.register_forward_pre_hook(lambda network, arguments: drawn.append(len(arguments[0])))
        config = make_config(f"output_dir={tmp_path / run}")
        try:
            figures = evaluate_in_training(pipeline, config, step=40, num_samples=70, stop=stop)
        except Stopped:
            return {}, sum(drawn)
        return figures, sum(drawn)

    return make


def test_an_evaluation_in_training_stops_within_a_step_and_goes_on_where_it_was(look, tmp_path):
    whole, evaluations = look("whole")
    assert evaluations == 70 * 10
    stopped = StopAfter(enough=27)  # in the third batch, once the reference is in the cache
    figures, evaluations = look("stopped", stopped)
    assert figures == {}
    assert stopped.asked == 28, "nobody asks again"
    assert evaluations < 70 * 10
    folder = tmp_path / "stopped/evaluation/step-40"
    assert not (folder / "metrics.json").exists()
    finished = 16 * len(list((folder / "features/seed-0").glob("*.safetensors")))
    assert finished == 2 * 16
    resumed, evaluations = look("stopped", StopRequest())
    assert evaluations == (70 - finished) * 10
    assert resumed == whole
    assert json.loads((folder / "metrics.json").read_text())["label"].startswith("in-training")


def test_it_stops_while_figures_are_computed_too(look):
    asked = StopAfter(enough=math.inf)
    whole, _ = look("whole", asked)
    while_drawn = 70 // 16 * 11 + 11
    assert asked.asked > while_drawn + 100, "a hundred subsets of the kernel distance alone"
    for enough in (while_drawn + 1, while_drawn + 100):
        assert look("stopped", StopAfter(enough))[0] == {}
    figures, evaluations = look("stopped")
    assert evaluations == 0, "all samples are there"
    assert figures == whole
