"""Choices compared at equal time: benchmarks/equal_time.py on tiny subjects."""

import importlib
from pathlib import Path

import pytest
import torch

from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors.digits_classifier import accuracy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def equal_time(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("equal_time")


def test_real_images_are_as_near_as_real_images(equal_time):
    judge = equal_time.Judge()
    training = equal_time.DIGITS.images(equal_time.DIGITS.train).images
    assert judge.num_samples == len(training) == 1438
    assert judge.ratio(training) == pytest.approx(1)
    assert judge.ratio(torch.randint_like(training, 256)) > 5


@pytest.mark.slow
def test_a_choice_is_trained_and_judged(equal_time, tiny_yaml):
    subject = equal_time.Subject("tiny", tiny_yaml, ("model_config.time_steps=60",), "train[:80%]", "train[80%:]", 70)
    result = equal_time.run_one(subject, equal_time.Judge(subject), ["model_config.dropout=0"], 0, 0.05)
    assert result["steps"] >= 1
    assert result["ratio"] > 1


def test_the_configurations_of_cifar10_are_one_but_for_the_choice(equal_time, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    choices = importlib.import_module("defaults").CHOICES
    subject = equal_time.Cifar10("folder")
    plain = subject.configured().to_dict()
    for question, answers in choices.items():
        for answer, options in answers.items():
            changed = subject.configured(*options).to_dict()
            assert (changed == plain) == (not options or (question, answer) in _AS_IT_STANDS), (question, answer)


_AS_IT_STANDS = {
    *(("schedule", "linear"), ("flips", "on"), ("batch", "32"), ("learning rate", "1e-3")),
    *(("timesteps", "uniform"), ("optimiser", "adam")),
}


def test_the_classifier_learns_colours(equal_time):
    features = importlib.import_module("cifar10_features")
    labels = torch.arange(256) % 2
    pixels = (labels * 150 + 50).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    classifier = features.train_cifar10_classifier(ImageSet(pixels, labels, None))
    assert accuracy(classifier, pixels, labels) == 1
