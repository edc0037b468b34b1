import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TORCHRUN, free_port, run, run_python

from ddpm_hf.evaluation import evaluate, evaluate_in_training
from ddpm_hf.evaluation.programs import compare, evaluate_once, sweep
from ddpm_hf.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PROGRAM = str(REPOSITORY / "training" / "eval.py")
QUICK = [f"benchmark.metrics.{name}=false" for name in ("ssim", "psnr", "bits_per_dim")]


def launch(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, free_port()]
    return run(*launcher, PROGRAM, *arguments)


def test_the_program_prints_figures_and_where_the_report_lies(model_folder, make_config, capsys):
    evaluate_once(model_folder, make_config())
    printed = capsys.readouterr().out
    assert "FD (digits classifier)" in printed
    assert "real images" in printed
    folder = next((model_folder / "evaluation").iterdir())
    assert f"In {folder}/: report.html" in printed
    assert "samples (n = 70)" in printed
    assert folder.name.startswith("ddpm-10-steps-digits-classifier-seed-0-")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_a_sweep_sets_quality_against_network_evaluations(model_folder, make_config, tmp_path, capsys):
    options = ["sampler=ddim,dpmsolver++", "num_inference_steps=5,10"]
    sweep(model_folder, make_config(), options, tmp_path / "sweep")
    reports = json.loads((tmp_path / "sweep/comparison.json").read_text())["reports"]
    assert {(each["sampling"]["sampler"], each["sampling"]["network_evaluations"]) for each in reports.values()} == {
        ("ddim", 5),
        ("ddim", 10),
        ("dpmsolver++", 5),
        ("dpmsolver++", 10),
    }
    assert (tmp_path / "sweep/comparison.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "sampler=ddim-num_inference_steps=5" in printed
    assert "not comparable" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sampler"], "--sweep: given 'sampler'"),
        (["samplr=ddim"], "--sweep: given 'samplr=ddim'"),
        (
            ["num_inference_steps=5,abc"],
            "num_inference_steps: given 'abc'; allowed: a whole number, at least 1, or null",
        ),
        (["sampler=ddim,dimm", "num_inference_steps=5,11"], "num_inference_steps=11(.|\n)*sampler=dimm"),
    ],
)
def test_every_combination_is_checked_before_the_first_is_drawn(options, message, model_folder, make_config, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep(model_folder, make_config(), options, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_models_are_compared_side_by_side(make_pipeline, make_config, tmp_path):
    for name, count in (("a", 70), ("b", 70), ("c", 80)):
        evaluate(
            name,
            make_config(*QUICK, f"benchmark.n_samples={count}", f"seed={count}"),
            output=tmp_path / name / "evaluation" / "only",
            pipeline=make_pipeline(),
            pictures=False,
        )
    same = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "same")
    assert "not comparable" not in same
    assert "real images" in same
    other = compare([tmp_path / "a", tmp_path / "c/evaluation/only"], tmp_path / "other")
    assert "not comparable, since the number of samples differs (a: 70; only: 80)" in other
    assert (tmp_path / "other/comparison.png").exists()
    assert "not comparable" in (tmp_path / "other/comparison.md").read_text()
    assert other.count("| real images") == 2, "one for each count"


def test_reconstructions_are_compared_way_by_way(make_pipeline, make_config, tmp_path):
    for name, count in (("a", 5), ("b", 6)):
        evaluate(
            name,
            make_config(f"benchmark.num_held_out={count}", "benchmark.metrics.bits_per_dim=false"),
            output=tmp_path / name,
            pipeline=make_pipeline(),
            pictures=False,
        )
    text = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "SSIM, noised to t = 4 and denoised" in text
    assert "held-out images are not comparable, since the number of held-out images differs (a: 5; b: 6)" in text


def test_a_full_evaluation_comes_before_those_in_training_and_these_are_named(make_pipeline, make_config, tmp_path):
    config, run = make_config(), tmp_path / "run"
    evaluate_in_training(make_pipeline(), config, step=40, num_samples=65)
    assert "run is not a full evaluation: in-training evaluation at step 40" in compare([run], tmp_path / "out")
    evaluate(run, make_config(*QUICK), pipeline=make_pipeline(), pictures=False)
    evaluate_in_training(make_pipeline(), config, step=80, num_samples=65)
    assert "in-training" not in compare([run], tmp_path / "out")


def test_an_evaluation_elsewhere_leaves_the_runs_own_figures(model_folder, make_config, tmp_path):
    (model_folder / "config.yaml").write_text("{}")
    evaluate_once(model_folder, make_config(*QUICK), tmp_path / "elsewhere")
    assert not (model_folder / "metrics.json").exists()
    evaluate_once(model_folder, make_config(*QUICK))
    assert (model_folder / "metrics.json").exists()


def test_folders_without_an_evaluation_are_all_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/one .*--model {tmp_path}/two"):
        compare([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_a_comparison_lies_beside_what_it_compares(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("program", REPOSITORY / "training" / "eval.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.chdir(tmp_path)
    for folders, beside in (
        (["runs/a", "runs/b"], "runs/comparison"),
        (["runs/a", "other/b"], "comparison"),
        (["runs/a"], "runs/comparison"),
        ([tmp_path / "x" / "a", "x/b/evaluation/c"], tmp_path / "x" / "comparison"),
    ):
        assert program.beside([Path(folder) for folder in folders]) == Path(beside)


@pytest.mark.parametrize("text", ["{", '{"format": 1}'])
def test_a_report_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/metrics.json"):
        compare([tmp_path], tmp_path / "out")


@pytest.mark.slow
def test_the_programs_own_command_line(model_folder, make_config, tmp_path):
    make_config()
    config = str(tmp_path / "tiny.yaml")
    done = launch("--model", str(model_folder), "--config", config, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "samples:" in done.stderr, "a bar with the time left"
    compared = launch("compare", str(model_folder), "--output", str(tmp_path / "comparison"))
    assert compared.returncode == 0, compared.stderr
    assert "FD (digits classifier)" in compared.stdout
    wrong = launch("--model", str(tmp_path / "none"), "--config", config)  # told before PyTorch is loaded
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "there is no folder" in wrong.stderr
    mistakes = ("benchmark.features=inceptoin", "benchmark.sampler=dmp")
    wrong = launch("--model", str(model_folder), "--config", config, *mistakes)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "inceptoin" in wrong.stderr
    assert "dmp" in wrong.stderr


@pytest.mark.slow
def test_two_processes_score_the_same_samples_as_one(model_folder, make_config, tmp_path):
    make_config()
    arguments = ["--model", str(model_folder), "--config", str(tmp_path / "tiny.yaml"), "benchmark.n_samples=101"]
    for processes in (1, 2):
        done = launch(*arguments, *QUICK, "--output", str(tmp_path / f"by-{processes}"), processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"by-{count}/metrics.json").read_text()) for count in (1, 2))
    assert one["seconds"]["drawn_by_main_process"] == 101
    assert two["seconds"]["drawn_by_main_process"] == 101 - 48, "batches 1, 3 and 5 are the other process's"
    assert one["metrics"] == two["metrics"], "to the bit"
    pictures = [sorted((tmp_path / f"by-{count}/samples/seed-0").glob("*.png")) for count in (1, 2)]
    assert [file.read_bytes() for file in pictures[0]] == [file.read_bytes() for file in pictures[1]]
    assert len({file.read_bytes() for file in pictures[1]}) == len(pictures[1]) == 101


MEMORY = """
import resource, sys, torch
from contextlib import nullcontext
from pathlib import Path
from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.config.benchmark import BenchmarkMetrics
from ddpm_hf.evaluation.extractors.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.features import draw_samples
from ddpm_hf.evaluation.metrics import score_set
from ddpm_hf.pipelines.ddpm import DDPMPipelineOutput
from ddpm_hf.pipelines.sampling import SamplingSettings

class Noise:
    device = torch.device("cpu")
    def set_progress_bar_config(self, **options):
        pass
    def sampling(self):
        return nullcontext()
    def __call__(self, seeds, **options):
        return DDPMPipelineOutput(torch.rand(len(seeds), 1, 8, 8))

count, folder = int(sys.argv[1]), Path(sys.argv[2])
classifier = load_digits_classifier()
sets = []
for seed, number in enumerate((count, 500)):
    config = BenchmarkConfig(n_samples=number, batch_size=128, save_samples=False)
    sets.append(draw_samples(Noise(), SamplingSettings(seed, 1), classifier, folder, config)[0])
samples, real = sets
wanted = BenchmarkConfig(metrics=BenchmarkMetrics(precision_recall=False))
figures = score_set(samples, real, real, wanted, classifier, "cpu")
assert all(figure.value is not None for figure in figures.values()), figures
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_fifty_thousand_samples_need_no_more_memory_than_two_thousand(tmp_path):
    peaks = []
    for count in (2_000, 50_000):
        done = run_python(MEMORY, count, tmp_path / str(count), check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 30, f"megabytes: {peaks}"
