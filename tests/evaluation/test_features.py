import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors import UserExtractor
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.extractors.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.feature_store import FeatureTable
from ddpm_hf.evaluation.features import extract_reference, reference_key
from ddpm_hf.evaluation.metrics.distances import feature_statistics, radii
from ddpm_hf.runtime.signals import Stopped, StopRequest


class Counting(torch.nn.Module):
    """Four features of an image, and how many images were looked at."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.float().flatten(1)[:, :4] * self.scale


def images(seed: int = 0, count: int = 300) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator), None, None)


def extractor(scale: float = 1.0, resize: str = "none", code: str = "") -> UserExtractor:
    made = UserExtractor("counting", Counting(scale), code)
    made.num_features, made.resize = 4, resize
    return made


def extract(dataset: DatasetConfig, found: ImageSet, by: FeatureExtractor, stop: StopRequest | None = None):
    return extract_reference(reference_key(dataset, found, by), found, by, "cpu", stop)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path / "cache"))


def test_features_are_taken_once():
    first = extractor()
    reference = extract(DatasetConfig(), images(), first)
    assert first.module.seen == 300
    assert_close(reference.read(range(300)).float(), images().images.float().flatten(1)[:, :4])
    again = extractor()
    same = extract(DatasetConfig(), images(), again)
    assert again.module.seen == 0
    assert same.cache == reference.cache


@pytest.mark.parametrize(
    "changed",
    [
        lambda: (DatasetConfig(), images(seed=1), extractor()),
        lambda: (DatasetConfig(), images(count=299), extractor()),
        lambda: (DatasetConfig(revision="v2"), images(), extractor()),
        lambda: (DatasetConfig(split="test"), images(), extractor()),
        lambda: (DatasetConfig(), images(), extractor(scale=2.0)),
        lambda: (DatasetConfig(), images(), extractor(resize="bilinear")),
        lambda: (DatasetConfig(), images(), extractor(code="return images")),
        lambda: (DatasetConfig(), images(), load_digits_classifier()),
    ],
)
def test_whatever_the_features_depend_on_is_in_the_key(changed):
    before = extract(DatasetConfig(), images(), extractor())
    assert extract(*changed()).cache != before.cache


def test_an_interrupted_reference_goes_on():
    class Failing(Counting):
        def forward(self, batch):
            if self.seen:
                raise KeyboardInterrupt
            return super().forward(batch)

    broken = UserExtractor("counting", Failing(), code="")
    broken.num_features, broken.resize = 4, "none"
    with pytest.raises(KeyboardInterrupt):
        extract(DatasetConfig(), images(), broken)
    second = extractor()
    extract(DatasetConfig(), images(), second)
    assert second.module.seen == 300 - 128


def test_a_reference_stops_between_two_batches_and_goes_on(monkeypatch):
    first, checks = extractor(), []
    stop = StopRequest()

    def check():
        checks.append(1)
        if len(checks) == 2:
            raise Stopped

    monkeypatch.setattr(stop, "check", check)
    with pytest.raises(Stopped):
        extract(DatasetConfig(), images(), first, stop)
    assert first.module.seen == 256
    second = extractor()
    extract(DatasetConfig(), images(), second)
    assert second.module.seen == 300 - 256


def test_statistics_and_radii_are_computed_once(monkeypatch):
    def real() -> FeatureTable:
        return extract(DatasetConfig(), images(), extractor())

    outer, distances = feature_statistics(real()).outer, radii(real())
    monkeypatch.setattr(FeatureTable, "blocks", None)
    assert torch.equal(feature_statistics(real()).outer, outer)
    assert torch.equal(radii(real()), distances)


def test_the_way_to_the_size_of_the_model_is_in_the_key():
    cropped, padded = (reference_key(DatasetConfig(resize=way), images(), extractor()) for way in ("crop", "pad"))
    assert cropped.transform != padded.transform


def test_damaged_statistics_are_computed_again():
    reference = extract(DatasetConfig(), images(), extractor())
    statistics = feature_statistics(reference)
    files = list((reference.cache / "statistics").iterdir())
    assert len(files) == 1
    files[0].write_bytes(b"broken")
    assert_close(feature_statistics(reference).outer, statistics.outer)
