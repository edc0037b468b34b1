import torch

from ddpm_hf.evaluation.evaluate import evaluate
from ddpm_hf.evaluation.plan import held_out_split, load_splits, make_plan


def rows(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_what_the_run_held_out_is_held_out_of_its_evaluation(make_config, tmp_path):
    config = make_config("dataset.validation_fraction=0.2", "seed=5")
    splits = load_splits(config, "none")
    assert list(splits) == ["train", "train, 0.2 of it held out"]
    held_out = splits[held_out_split(config)]
    assert len(held_out) == round(0.2 * 1797)
    assert len(splits["train"]) + len(held_out) == 1797
    assert not rows(splits["train"]) & rows(held_out)
    # another seed of the evaluation leaves those of the run held out
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 5")
    other = make_config("dataset.validation_fraction=0.2", "seed=6")
    assert torch.equal(load_splits(other, tmp_path / "run")[held_out_split(other)].images, held_out.images)
    assert not torch.equal(load_splits(other, "none")[held_out_split(other)].images, held_out.images)


def test_without_anything_held_out_training_images_stand_in(make_config):
    config = make_config()
    assert held_out_split(config) == "train"
    assert list(load_splits(config, "none")) == ["train"]


def test_the_benchmarks_own_split_comes_first(make_config):
    config = make_config("dataset.split=train[:80%]", "dataset.validation_split=train[80%:90%]")
    assert list(load_splits(config, "none")) == ["train[:80%]", "train[80%:90%]"]
    config = make_config("dataset.split=train[:80%]", "benchmark.held_out_split=train[90%:]")
    splits = load_splits(config, "none")
    assert held_out_split(config) == "train[90%:]"
    assert len(splits["train[90%:]"]) < len(splits["train[:80%]"])


def test_images_are_not_held_out_if_some_of_them_were_trained_on(make_pipeline, make_config, tmp_path):
    options = ["dataset.split=train[:80%]", "benchmark.held_out_split=train[70%:]"]
    report = make_plan("model", make_config(*options), tmp_path / "out", make_pipeline()).report
    assert report.held_out.are_training_images
    other = make_config(*options, "benchmark.reference_split=train[80%:]")
    report = make_plan("model", other, tmp_path / "out", make_pipeline()).report
    assert not report.reference_is_trained_on


def test_an_evaluation_on_images_that_are_held_out_says_so(make_pipeline, make_config, tmp_path):
    report = evaluate(
        "model",
        make_config("dataset.validation_fraction=0.2"),
        output=tmp_path / "out",
        pipeline=make_pipeline(),
        pictures=False,
    )
    assert not report.held_out.are_training_images
    assert report.reference_is_trained_on
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Metrics of samples against training images" in text
    assert "## Reconstructions of held-out images" in text
    assert "## Baselines on held-out images" in text
    assert "which the model has seen" not in " ".join(report.warnings)
    assert report.reference.num_images == 1438
    assert report.num_matched is None, "the samples are as many, and held against the same images"
    assert report.real_vs_real == "70 images of 'train, 0.2 of it held out' against 1,438 of 'train'"
    names = [row.name for row in report.baselines]
    assert names == ["SSIM", "PSNR", "bits/dim", "bits/dim"]
    assert "1,438 other training images" in report.baselines[-1].what
    assert 1 < report.baselines[-1].value < 4
