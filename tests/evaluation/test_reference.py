import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.features import UserExtractor
from ddpm_hf.evaluation.reference import load_reference, reference_key
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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path / "cache"))


def test_features_are_taken_once():
    first = extractor()
    reference = load_reference(DatasetConfig(), images(), first, "cpu")
    assert first.module.seen == 300
    assert_close(reference.table.read(range(300)).float(), images().images.float().flatten(1)[:, :4])
    again = extractor()
    same = load_reference(DatasetConfig(), images(), again, "cpu")
    assert again.module.seen == 0
    assert same.folder == reference.folder
    assert_close(same.moments().outer, reference.moments().outer)


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
    before = load_reference(DatasetConfig(), images(), extractor(), "cpu")
    assert load_reference(*changed(), "cpu").folder != before.folder


def test_an_interrupted_reference_goes_on():
    class Failing(Counting):
        def forward(self, batch):
            if self.seen:
                raise KeyboardInterrupt
            return super().forward(batch)

    broken = UserExtractor("counting", Failing(), code="")
    broken.num_features, broken.resize = 4, "none"
    with pytest.raises(KeyboardInterrupt):
        load_reference(DatasetConfig(), images(), broken, "cpu")
    second = extractor()
    load_reference(DatasetConfig(), images(), second, "cpu")
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
        load_reference(DatasetConfig(), images(), first, "cpu", stop)
    assert first.module.seen == 256
    second = extractor()
    load_reference(DatasetConfig(), images(), second, "cpu")
    assert second.module.seen == 300 - 256


def test_radii_are_measured_once(monkeypatch):
    reference = load_reference(DatasetConfig(), images(), extractor(), "cpu")
    found = reference.radii("cpu")
    monkeypatch.setattr("ddpm_hf.evaluation.reference.radii", None)
    assert torch.equal(reference.radii("cpu"), found)


def test_the_way_to_the_size_of_the_model_is_in_the_key():
    cropped, padded = (reference_key(DatasetConfig(resize=way), images(), extractor()) for way in ("crop", "pad"))
    assert cropped["transform"] != padded["transform"]


def test_damaged_sums_are_summed_up_again():
    reference = load_reference(DatasetConfig(), images(), extractor(), "cpu")
    sums = reference.moments()
    (reference.folder / "moments.safetensors").write_bytes(b"broken")
    assert_close(reference.moments().outer, sums.outer)
