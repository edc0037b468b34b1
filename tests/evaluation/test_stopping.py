import json
import math
import sys
import threading

import numpy as np
import pytest
from processes import run

from ddpm_hf.evaluation import evaluate_in_training
from ddpm_hf.evaluation.stopping import MARKER, Stop, patiently
from ddpm_hf.runtime.errors import Abandoned


class Patience:
    """Says to stop from the given question on."""

    def __init__(self, enough: float):
        self.asked, self.enough = 0, enough

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.enough


PROCESSES = """
import sys, time
from pathlib import Path
from accelerate import PartialState
from ddpm_hf.runtime.cli import leave
from ddpm_hf.runtime.errors import Abandoned
from ddpm_hf.evaluation.stopping import Stop

state, folder, step = PartialState(cpu=True), Path(sys.argv[1]), 0
stop = Stop(lambda: state.process_index == 0 and step == 100, folder)
if state.is_main_process:
    (folder / ".stop").touch()  # of an earlier call
stop.begin()
try:
    with stop.together():
        for step in range(200 if state.process_index == 0 else 30_000):
            stop.check()
            time.sleep(0.01)
except Abandoned:
    (folder / f"stopped-{state.process_index}").write_text(str(step))
state.wait_for_everyone()
leave(0)
"""


@pytest.fixture
def look(make_pipeline, make_config, tmp_path):
    """An in-training evaluation of a run of its own, that counts what its network does."""

    def make(run: str, should_stop=None) -> tuple[dict, int]:
        pipeline, drawn = make_pipeline(), []
        pipeline.unet.register_forward_pre_hook(lambda network, arguments: drawn.append(len(arguments[0])))
        config = make_config(f"output_dir={tmp_path / run}")
        try:
            figures = evaluate_in_training(pipeline, config, step=40, num_samples=70, should_stop=should_stop)
        except Abandoned:
            return {}, sum(drawn)
        return figures, sum(drawn)

    return make


def test_an_evaluation_in_training_stops_within_a_step_and_goes_on_where_it_was(look, tmp_path):
    whole, evaluations = look("whole")
    assert evaluations == 70 * 10
    stopped = Patience(enough=27)  # in the third batch, once the reference is in the cache
    figures, evaluations = look("stopped", stopped)
    assert figures == {}
    assert stopped.asked == 28, "nobody asks again"
    assert evaluations < 70 * 10
    folder = tmp_path / "stopped/evaluation/step-40"
    assert not (folder / "metrics.json").exists()
    finished = int(np.fromfile(folder / "features/seed-0/done.u32", "<u4").sum())
    assert finished == 2 * 16
    resumed, evaluations = look("stopped", lambda: False)
    assert evaluations == (70 - finished) * 10
    assert resumed == whole
    assert json.loads((folder / "metrics.json").read_text())["label"].startswith("in-training")


def test_it_stops_while_figures_are_computed_too(look):
    asked = Patience(enough=math.inf)
    whole, _ = look("whole", asked)
    while_drawn = 70 // 16 * 11 + 11
    assert asked.asked > while_drawn + 100, "a hundred subsets of the kernel distance alone"
    for enough in (while_drawn + 1, while_drawn + 100):
        assert look("stopped", Patience(enough))[0] == {}
    figures, evaluations = look("stopped")
    assert evaluations == 0, "all samples are there"
    assert figures == whole


def test_a_long_piece_of_work_is_not_waited_for():
    go_on = threading.Event()
    with pytest.raises(Abandoned):
        patiently(go_on.wait, Stop(lambda: True).check)
    go_on.set()
    assert patiently(lambda: 7, lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0, lambda: None)


@pytest.mark.slow
def test_all_processes_stop_when_one_is_asked_to(tmp_path):
    """Two processes, of which the second has far more to do; only the first is told to stop."""
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(*command, program, tmp_path, check=True)
    told = {path.name: int(path.read_text()) for path in tmp_path.glob("stopped-*")}
    assert told.keys() == {"stopped-0", "stopped-1"}
    assert told["stopped-0"] == 100, "the earlier wish is forgotten"
    assert told["stopped-1"] < 30_000 - 1


def test_without_anyone_who_asks_nothing_stops(tmp_path):
    (tmp_path / MARKER).touch()
    stop = Stop(None, tmp_path)
    stop.check()
    with stop.together():
        pass


def test_other_errors_pass(tmp_path):
    with pytest.raises(ValueError, match="another"), Stop(lambda: True, tmp_path).together():
        raise ValueError("another")
