import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.config import load_config
from ddpm_hf.evaluation import evaluate, evaluate_in_training, prepare_in_training_evaluation
from ddpm_hf.evaluation.evaluate import run as run_plan
from ddpm_hf.evaluation.extractors import UserExtractor
from ddpm_hf.evaluation.extractors.digits_classifier import DigitsClassifier, load_digits_classifier
from ddpm_hf.evaluation.features import sample_file
from ddpm_hf.evaluation.plan import make_plan
from ddpm_hf.evaluation.report import Report
from ddpm_hf.runtime.errors import UserError


@pytest.fixture
def run(model_folder, make_config, tmp_path):
    """Evaluate the tiny model, with overrides."""

    def evaluate_it(*overrides: str, output=None, **options):
        output = tmp_path / "evaluation" if output is None else output
        return evaluate(model_folder, make_config(*overrides), output=output, **options)

    return evaluate_it


def read_images(files: Sequence[Path]) -> torch.Tensor:
    """Read gray samples back."""
    return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])


class Watched(DigitsClassifier):
    """The digits classifier, counting the images that it has seen, and giving up when it has seen enough."""

    def __init__(self, enough: float = math.inf) -> None:
        classifier = load_digits_classifier()
        super().__init__(classifier.accuracy)
        self.load_state_dict(classifier.state_dict())
        self.seen, self.enough = 0, enough

    def forward(self, images):
        if self.seen >= self.enough:
            raise KeyboardInterrupt
        self.seen += len(images)
        return super().forward(images)


def test_an_evaluation_leaves_figures_pictures_and_all_that_they_depend_on(run, tmp_path):
    report = run()
    folder = tmp_path / "evaluation"
    assert Report.read(folder / "metrics.json") == report
    assert asdict(report.sampling) == {
        "n_samples": 70,
        "seeds": [0],
        "sampler": "ddpm",
        "num_inference_steps": 10,
        "network_evaluations": 10,
        "batch_size": 16,
        "classes": "none",
        "images": "8 bits, rounded",
    }
    assert set(report.metrics) == {
        "frechet_distance",
        "classifier_score",
        "kernel_distance",
        "precision",
        "recall",
        "memorization_rate",
        "bits_per_dim",
    }
    for name, figure in report.metrics.items():
        assert math.isfinite(figure.value), name
        assert name == "bits_per_dim" or math.isfinite(figure.real_vs_real.value)
        assert name == "bits_per_dim" or math.isfinite(figure.matched.value)
        assert "FID" not in figure.name
    figures = report.metrics
    assert figures["frechet_distance"].value > figures["frechet_distance"].real_vs_real.value
    assert len(report.reconstructions) == 4
    assert report.held_out.are_training_images
    warnings = " ".join(report.warnings)
    assert "fewer than 10,000" in warnings
    assert "training images" in warnings
    pictures = {"samples", "denoising", "predicted_x0", "reconstructions", "interpolation", "nearest"}
    assert {file.stem for file in (folder / "pictures").glob("*.png")} == pictures
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for text in ("70 samples", "FD (digits classifier)", "torchmetrics 1", "real-vs-real", "without anti", "decay"):
        assert (text in markdown) == (text in page)
    assert page.count("data:image/png;base64,") == 6
    assert report.versions["torch"] == torch.__version__


def test_exactly_so_many_samples_are_scored_and_each_is_kept(run, tmp_path):
    run("benchmark.n_samples=65")
    files = sorted((tmp_path / "evaluation/samples/seed-0").glob("*.png"))
    assert [file.name for file in files] == [f"{index:06}.png" for index in range(65)]
    images = read_images(files)
    assert images.shape == (65, 1, 8, 8)
    assert len({image.numpy().tobytes() for image in images}) == 65


def test_samples_are_those_of_the_pipeline_with_the_same_seeds(run, make_pipeline, tmp_path):
    from ddpm_hf.runtime.randomness import image_seeds

    run("seed=3", "benchmark.n_samples=65")
    images = make_pipeline()(seeds=image_seeds(3, range(16)), output_type="pt").images
    folder = tmp_path / "evaluation/samples/seed-3"
    assert torch.equal(
        read_images([sample_file(folder, index) for index in range(16)]), (images * 255).round().to(torch.uint8)
    )


def test_samples_that_are_not_kept_are_shown_all_the_same(run, tmp_path):
    run("benchmark.save_samples=false", "benchmark.n_samples=80")
    assert len(list((tmp_path / "evaluation/samples/seed-0").glob("*.png"))) == 64


def test_a_stopped_evaluation_goes_on_where_it_was(run, tmp_path):
    reference_images = 1797
    run("benchmark.n_samples=65", output=tmp_path / "whole", pictures=False)
    stopped = Watched(enough=40)  # the reference is in the cache by now
    with pytest.raises(KeyboardInterrupt):
        run("benchmark.n_samples=65", extractor=stopped, pictures=False)
    assert stopped.seen == 48 < reference_images
    resumed = Watched()
    report = run("benchmark.n_samples=65", extractor=resumed, pictures=False)
    assert resumed.seen == 65 - 48
    whole = Report.read(tmp_path / "whole/metrics.json")
    assert report.metrics == whole.metrics
    again = Watched()
    assert run("benchmark.n_samples=65", extractor=again, pictures=False).metrics == whole.metrics
    assert again.seen == 0
    more = Watched()
    run("benchmark.n_samples=100", extractor=more, pictures=False)
    assert more.seen == 100 - 64, "the batch that was not full, and what is new"


def test_several_seeds_have_a_deviation(run, tmp_path):
    report = run("benchmark.num_seeds=2", "benchmark.n_samples=65", pictures=False)
    assert report.sampling.seeds == [0, 1]
    figure = report.metrics["frechet_distance"]
    assert figure.std > 0
    assert figure.std_over == "2 seeds"
    one = [
        json.loads((tmp_path / f"evaluation/scores/seed-{seed}.json").read_text())["values"]["frechet_distance"][
            "value"
        ]
        for seed in (0, 1)
    ]
    assert figure.value == pytest.approx(sum(one) / 2)


def test_only_what_was_asked_for_is_computed(run):
    off = [f"benchmark.metrics.{name}=false" for name in ("fid", "kid", "precision_recall", "memorization", "ssim")]
    report = run(*off, "benchmark.metrics.bits_per_dim=false", pictures=False)
    assert list(report.metrics) == ["classifier_score"]
    assert all(row.psnr is not None and row.ssim is None for row in report.reconstructions)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, in its Heun
def test_the_sampler_and_its_steps_are_stated(run):
    report = run("benchmark.sampler=heun", "benchmark.num_inference_steps=5", pictures=False)
    assert report.sampling.sampler == "heun"
    assert report.sampling.network_evaluations == 9, "two for each step but the last"


def test_a_network_that_makes_no_numbers_is_reported_as_that(make_config, make_pipeline, tmp_path):
    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    report = evaluate("broken", make_config(), output=tmp_path / "out", pipeline=pipeline)
    for name, figure in report.metrics.items():
        assert figure.value is None
        assert "NaN" in figure.problem, name
    assert "70 of 70 images" in report.metrics["frechet_distance"].problem
    assert "NaN: 70 of 70" in (tmp_path / "out/report.md").read_text()


def test_a_lost_sample_stays_lost_when_only_its_image_is_left(make_config, make_pipeline, tmp_path):
    def measure():
        return evaluate("broken", make_config(), output=tmp_path / "out", pipeline=pipeline, pictures=False).metrics

    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    before = measure()
    shutil.rmtree(tmp_path / "out/features/seed-0")  # as if stopped between the images and the features
    (tmp_path / "out/scores/seed-0.json").unlink()
    assert measure() == before
    assert "70 of 70 images" in before["frechet_distance"].problem


def test_real_images_stand_beside_as_many_samples_against_the_same_others(run):
    report = run("benchmark.reference_split=train[:100]", "benchmark.num_seeds=2", "benchmark.metrics.fid=false")
    assert report.real_vs_real == "50 images of 'train[:100]' against its 50 others"
    assert report.num_matched == 50
    figure = report.metrics["kernel_distance"]
    assert figure.matched.value not in (figure.value, None)
    assert figure.matched.std > 0, "over the seeds"
    assert report.metrics["bits_per_dim"].real_vs_real.problem.startswith("not known")


def test_a_module_of_ones_own_has_no_classes_and_says_so(run):
    class Pixels(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, ::4].float()

    report = run(extractor=UserExtractor("pixels", Pixels()), pictures=False)
    assert report.features.num_features == 16
    assert report.metrics["frechet_distance"].name == "FD (pixels)"
    assert report.metrics["classifier_score"].problem == "not computed: pixels is no classifier"


def test_everything_wrong_is_said_at_once_and_nothing_is_drawn(model_folder, make_config, tmp_path):
    config = make_config(
        "benchmark.n_samples=64",
        "benchmark.sampler=dimm",
        "benchmark.held_out_split=test",
        "model_config.image_size=16",
        "model_config.image_channels=3",
    )
    with pytest.raises(UserError) as caught:
        evaluate(model_folder, config, output=tmp_path / "out")
    text = str(caught.value)
    for part in (
        "held_out_split: given 'test'",
        "image_size: given 16, but the model draws 8",
        "image_channels: given 3, but the model draws 1",
        "sampler is 'dimm'; possible are ddpm, ddim",
        "digits takes images of 1 channel",
    ):
        assert part in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark.n_samples=64"], r"benchmark\.n_samples: given 64.* 65 "),
        (["benchmark.reference_split=train[:64]"], r"train\[:64\].* 65 "),
        (["benchmark.features=inceptoin"], r"benchmark\.features: given 'inceptoin'"),
        (["benchmark.num_inference_steps=11"], r"benchmark\.num_inference_steps"),
        ([f"benchmark.metrics.{m}=false" for m in (
            "fid", "inception_score", "kid", "precision_recall", "memorization", "ssim", "psnr", "bits_per_dim"
        )], r"benchmark\.metrics"),
        (["dataset.name=/no/such/folder"], "/no/such/folder"),
        (["model_config.num_classes=10"], r"model_config\.num_classes: given 10"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_message(run, overrides, message):
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_too_few_samples_are_enough_for_those_who_insist(run):
    report = run("benchmark.n_samples=20", "benchmark.allow_few_samples=true", pictures=False)
    assert math.isfinite(report.metrics["frechet_distance"].value)
    assert "singular covariances" in " ".join(report.warnings)


@pytest.mark.parametrize("given", ["n_samples=1", "metrics.fidd=true", "reconstruction_levels=[0.5, 0.1]"])
def test_a_configuration_without_sense_is_refused(make_config, given):
    with pytest.raises(UserError, match=f"benchmark.{given.split('=', maxsplit=1)[0]}"):
        make_config(f"benchmark.{given}")


def test_the_users_own_section_loads_as_it_is(tmp_path):
    file = tmp_path / "user.yaml"
    file.write_text(
        "benchmark:\n  n_samples: 50000\n  batch_size: 128\n  metrics:\n    fid: true\n    inception_score: true\n"
        "    ssim: true\n    psnr: true\n  save_samples: true\n  save_metrics: true\n"
    )
    benchmark = load_config(file).benchmark
    assert (benchmark.n_samples, benchmark.batch_size, benchmark.features) == (50_000, 128, "inception")
    assert benchmark.metrics.ssim and benchmark.save_metrics


def test_another_evaluation_is_not_overwritten(run, tmp_path):
    run(pictures=False)
    with pytest.raises(UserError, match=r"--output: .*\(seed\)"):
        run("seed=1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(UserError, match="holds no evaluation"):
        run(output=tmp_path / "mine")


def test_what_a_crash_leaves_of_the_settings_keeps_no_evaluation_out(run, tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / ".settings.json.4711").write_text('{"see')
    assert run(pictures=False).metrics


def test_nothing_is_written_until_all_processes_have_looked(model_folder, make_config, tmp_path, monkeypatch):
    """One that is late would find a folder with half of its settings, and refuse it."""
    plan, there = make_plan(model_folder, make_config(), tmp_path / "evaluation"), []
    module = sys.modules[run_plan.__module__]  # in its package, a function has its name
    monkeypatch.setattr(
        module, "assert_same_across_ranks", lambda what: there.append((plan.folder.exists(), what["weights"]))
    )
    run_plan(plan, pictures=False)
    assert there == [(False, plan.settings["weights"])]


def test_an_in_training_evaluation_says_that_it_is_one(make_pipeline, make_config, tmp_path):
    figures = evaluate_in_training(make_pipeline(), make_config(), step=40, num_samples=65)
    assert set(figures) >= {"frechet_distance", "kernel_distance"}
    assert "bits_per_dim" not in figures
    folder = tmp_path / "run/evaluation/step-40"
    assert "in-training evaluation at step 40" in (folder / "report.md").read_text()
    assert json.loads((folder / "metrics.json").read_text())["label"].startswith("in-training")


def test_problems_of_in_training_evaluations_are_reported_before_training(make_config):
    assert prepare_in_training_evaluation(make_config("training.num_evaluation_samples=65")).num_features == 64
    with pytest.raises(UserError) as caught:
        prepare_in_training_evaluation(
            make_config(
                "training.num_evaluation_samples=64", "benchmark.sampler=dimm", "benchmark.reference_split=train[:9]"
            )
        )
    for part in ("training.num_evaluation_samples: given 64; allowed: at least 65", "'dimm'", "has 9 images"):
        assert part in str(caught.value)


def test_a_class_conditional_model_draws_every_class(make_pipeline, make_config, tmp_path):
    pipeline = make_pipeline(num_class_embeds=11)
    report = evaluate(
        "conditional", make_config("model_config.num_classes=10"), output=tmp_path / "out", pipeline=pipeline
    )
    assert report.sampling.classes == "each of 10 in turn"
    assert math.isfinite(report.metrics["bits_per_dim"].value)
