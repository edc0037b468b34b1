"""Decoded images are found again, shared, complete or not there; their order is a function of seed and position."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import SampleOrder, load_image_set
from ddpm_hf.data.image_loading import _Loader
from ddpm_hf.data.image_set import Content, ImageSet, ImageStore, read_stored
from ddpm_hf.data.pixels import Transform
from ddpm_hf.runtime.errors import UserError

SET = ImageSet(torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2), torch.arange(5), ["a", "ä"], ("x (broken)",))


class Opened:
    """Counts how often the images are opened."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Content:
        self.times += 1
        return SET.select(torch.arange(5), SET.skipped)


@pytest.fixture
def opened():
    return Opened()


def same(one: ImageSet, other: ImageSet) -> bool:
    torch.testing.assert_close(one.images, other.images)
    torch.testing.assert_close(one.labels, other.labels)
    return (one.class_names, one.skipped) == (other.class_names, other.skipped)


def entry(root):
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def test_what_is_kept_is_found_again(tmp_path, opened):
    for _ in range(3):
        assert same(ImageStore(tmp_path).get({"a": 1}, opened), SET)
    assert opened.times == 1
    assert {path.name for path in entry(tmp_path).iterdir()} == {"images.u8", "labels.i64", "manifest.json"}
    ImageStore(tmp_path).get({"a": 2}, opened)
    assert opened.times == 2


def test_writing_to_the_images_changes_no_file(tmp_path, opened):
    ImageStore(tmp_path).get({}, opened).images.zero_()
    assert same(ImageStore(tmp_path).get({}, opened), SET)


@pytest.mark.parametrize("name", ["images.u8", "labels.i64", "manifest.json"])
def test_a_file_that_is_cut_short_is_written_anew(name, tmp_path, opened, caplog):
    ImageStore(tmp_path).get({}, opened)
    file = entry(tmp_path) / name
    for size in (0, 1, file.stat().st_size - 1):
        os.truncate(file, size)
        assert same(ImageStore(tmp_path).get({}, opened), SET)
    file.unlink()
    assert same(ImageStore(tmp_path).get({}, opened), SET)
    assert opened.times == 5
    assert "damaged" in caplog.text


def test_a_flipped_byte_of_the_manifest_is_noticed(tmp_path, opened):
    ImageStore(tmp_path).get({}, opened)
    file = entry(tmp_path) / "manifest.json"
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = read_stored(entry(tmp_path))
        assert found is None or same(found, SET)


def failing(error: Exception) -> Content:
    """Two images and then an error."""

    def images():
        yield from SET.images[:2].numpy()
        raise error

    return Content(images(), (3, 2, 2), None)


def test_a_broken_source_leaves_nothing(tmp_path, opened):
    with pytest.raises(ConnectionError, match="gone"):
        ImageStore(tmp_path).get({}, lambda: failing(ConnectionError("gone")))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert same(ImageStore(tmp_path).get({}, opened), SET)


def endless(num_images: int | None = None) -> Content:
    """More than any disk holds."""
    return Content(itertools.repeat(np.zeros((3, 64, 64), np.uint8)), (3, 64, 64), num_images)


def test_a_full_disk_is_told_with_the_folder(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"dataset.cache_dir: '{tmp_path}' cannot hold decoded images.*are free"):
            ImageStore(tmp_path).get({}, endless)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_set_that_will_not_fit_is_told_before_it_is_decoded(tmp_path):
    num_bytes = 3 * 64 * 64 * 10**15
    with pytest.raises(UserError, match=f"dataset.cache_dir.* {num_bytes:,} bytes"):
        ImageStore(tmp_path).get({}, lambda: endless(10**15))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"dataset.cache_dir: .*(Not a directory|File exists)"):
        ImageStore(tmp_path / "file" / "below").get({}, endless)


def test_one_decodes_while_the_others_wait(tmp_path):
    class Slow(Opened):
        def __call__(self) -> Content:
            time.sleep(0.2)
            return super().__call__()

    opened, found = Slow(), []
    threads = [threading.Thread(target=lambda: found.append(ImageStore(tmp_path).get({}, opened))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.times == 1
    assert all(same(each, SET) for each in found)


PROCESS = """
    import sys, time, torch
    from pathlib import Path
    from ddpm_hf.data.image_set import ImageSet, ImageStore
    seconds = float(sys.argv[2])
    images = ImageSet(torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2), None, None)
    def slow(images):
        for image in images:
            time.sleep(seconds)
            yield image
            print("decoded", flush=True)
    content = images.select(torch.arange(4))
    content.images = slow(content.images)
    print(int(ImageStore(Path(sys.argv[1])).get({}, lambda: content).images.sum()), flush=True)
"""


@pytest.mark.slow
def test_when_the_decoding_process_is_killed_another_takes_over(tmp_path):
    def start(seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(100) as first:
        while not list(tmp_path.glob(".tmp-*/images.u8")):
            time.sleep(0.05)
        with start(0) as second:
            time.sleep(5)
            assert second.poll() is None  # it waits
            first.send_signal(signal.SIGKILL)
            assert second.communicate()[0].splitlines()[-1] == str(sum(range(48)))
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_killed_processes_were_decoding_is_removed_and_what_living_ones_decode_stays(tmp_path, opened):
    for name in ("killed", "living"):
        (tmp_path / f".tmp-{name}").mkdir()
        (tmp_path / f".tmp-{name}" / "images.u8").write_bytes(bytes(1000))
    with FileLock(tmp_path / ".living.lock"):
        ImageStore(tmp_path).get({"key": 1}, opened)
    assert [path.name for path in tmp_path.glob(".tmp-*")] == [".tmp-living"]


def test_the_key_holds_all_that_the_pixels_depend_on(tmp_path, monkeypatch):
    (tmp_path / "some.png").touch()
    base = {"name": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    model = ModelConfig(image_size=8, image_channels=3, channel_multipliers=(1,), attention_levels=())

    def key(model=model, **options) -> str:
        return json.dumps(_Loader(DatasetConfig(**base, **options), model, False).key, sort_keys=True)

    different = [
        key(),
        key(split="train[:50%]"),
        key(image_column="a"),
        key(label_column="a"),
        key(resize="pad"),
        key(background=(0, 0, 0)),
        key(model.model_copy(update={"image_size": 16})),
        key(model.model_copy(update={"image_channels": 1})),
    ]
    monkeypatch.setattr("ddpm_hf.data.image_loading.DECODER", "2")
    different.append(key())
    assert len(set(different)) == len(different)
    assert key(horizontal_flip=True, strict=True, streaming=True, validation_split="test") == key()


def test_a_second_start_needs_only_the_cache(tmp_path, monkeypatch):
    """Of a dataset of the Hub, too, once it is pinned to its commit: nothing is opened."""
    dataset = DatasetConfig(name="ada/images", revision="0" * 40, cache_dir=str(tmp_path))
    model = ModelConfig(image_size=2, image_channels=3, channel_multipliers=(1,), attention_levels=())
    loader = _Loader(dataset, model, False)
    assert loader.transform == Transform(2, 3)
    kept = ImageStore(tmp_path).get(loader.key, lambda: SET.select(torch.arange(5)))
    monkeypatch.setattr("ddpm_hf.data.image_loading.open_source", lambda _: pytest.fail("opened"))
    torch.testing.assert_close(load_image_set(dataset, model).images, kept.images)
    shutil.rmtree(tmp_path)
    torch.testing.assert_close(kept.images, SET.images)  # what is mapped stays


def test_every_epoch_holds_every_image_once():
    order = SampleOrder(10, seed=0)
    for epoch in range(5):
        assert sorted(order.indices(epoch * 10, 10).tolist()) == list(range(10))


def test_epochs_differ_and_seeds_differ():
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 0).indices(100, 100).tolist()
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 1).indices(0, 100).tolist()


@pytest.mark.parametrize("size", [1, 3, 7, 25])
def test_batches_of_any_size_read_the_same_row(size):
    whole = SampleOrder(10, 0).indices(0, 50)
    order = SampleOrder(10, 0)
    parts = [order.indices(start, min(size, 50 - start)) for start in range(0, 50, size)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_reading_on_from_the_middle_needs_no_history():
    torch.testing.assert_close(SampleOrder(7, 3).indices(1000, 5), SampleOrder(7, 3).indices(0, 1005)[-5:])


def test_no_images_have_no_order():
    with pytest.raises(ValueError, match="num_images: given 0"):
        SampleOrder(0, 0)
