"""What a step is given is a function of (seed, step), whatever the number of processes."""

import pytest
import torch

from ddpm_hf.data import load_image_set
from ddpm_hf.losses import make_timestep_sampler
from ddpm_hf.training.batches import Batches


@pytest.fixture
def batches(tiny):
    """Make the batches of one process."""

    def make(*overrides: str, process: int = 0, of: int = 1) -> Batches:
        config = tiny(*overrides)
        images = load_image_set(config.dataset, config.model)
        sampler = make_timestep_sampler(config.loss.timestep_sampling, config.model.time_steps)
        return Batches(images, config, sampler, torch.device("cpu"), process, of)

    return make


def test_steps_need_no_history(batches):
    one, other = batches(), batches()
    for step in (3, 0, 200, 3):
        torch.testing.assert_close(vars(one.at(step)), vars(other.at(step)), rtol=0, atol=0)


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "importance"])
def test_two_processes_share_what_one_would_have(batches, sampling):
    options = (
        f"loss_config.timestep_sampling={sampling}",
        "dataset.horizontal_flip=true",
        "model_config.num_classes=10",
    )
    whole = batches(*options).at(5)
    halves = [batches(*options, process=index, of=2).at(5) for index in range(2)]
    for name, value in vars(whole).items():
        torch.testing.assert_close(torch.cat([getattr(half, name) for half in halves]), value, rtol=0, atol=0)


def test_micro_batches_are_the_batch_in_order(batches):
    batch = batches().at(0)
    torch.testing.assert_close(torch.cat([each.x_0 for each in batch.split(4)]), batch.x_0, rtol=0, atol=0)
    assert [len(each.noise) for each in batch.split(4)] == [2, 2, 2, 2]


def test_an_epoch_shows_every_image_once(batches):
    source = batches("training.batch_size=599")
    sums = torch.cat([source.at(step).x_0 for step in range(3)]).sum((1, 2, 3)).sort().values
    images = source.images.float() / 127.5 - 1
    torch.testing.assert_close(sums, images.sum((1, 2, 3)).sort().values)


def test_flips_mirror_about_half_of_the_images(batches):
    plain = batches("training.batch_size=256").at(0).x_0
    flipped = batches("training.batch_size=256", "dataset.horizontal_flip=true").at(0).x_0
    is_mirrored = (flipped == plain.flip(-1)).all((1, 2, 3))
    assert ((flipped == plain).all((1, 2, 3)) | is_mirrored).all()
    assert 90 < is_mirrored.sum() < 166  # 128 ± 4.75 standard deviations


def test_dropped_labels_become_the_class_after_the_last(batches):
    options = ("model_config.num_classes=10", "training.batch_size=1024")
    assert batches().at(0).labels is None
    assert batches(*options, "training.label_dropout=0").at(0).labels.max() == 9
    dropped = (batches(*options, "training.label_dropout=0.25").at(0).labels == 10).float().mean()
    assert 0.19 < dropped < 0.31  # 0.25 ± 4.4 standard deviations
