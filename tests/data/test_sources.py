"""Every kind of source gives the same images; what a source lacks is told with what it has."""

import gc
import io
import json
import logging
import os
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import load_image_set
from ddpm_hf.data.decoding import Source, decode
from ddpm_hf.data.local_files import find_local
from ddpm_hf.data.pixels import Example, Transform
from ddpm_hf.runtime.errors import UserError

MODEL = ModelConfig(image_size=8, image_channels=1, channel_multipliers=(1,), attention_levels=())
FEATURES = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"])})


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "hf")
    monkeypatch.setenv("DDPM_HF_CACHE", str(cache / "ddpm-hf"))


def load(name, **options):
    return load_image_set(DatasetConfig(name=str(name), **options), MODEL)


def levels(images) -> list[int]:
    """The gray level of each image, all of whose pixels are equal."""
    flat = images.images.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def gray(level: int) -> Image.Image:
    return Image.new("L", (9, 8), level)


def png(level: int) -> bytes:
    stream = io.BytesIO()
    gray(level).save(stream, "PNG")
    return stream.getvalue()


def rows(first: int, last: int) -> datasets.Dataset:
    numbers = range(first, last)
    return datasets.Dataset.from_dict(
        {"img": [gray(i) for i in numbers], "kind": [i % 2 for i in numbers]}, features=FEATURES
    )


def shard(path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def parquet(path):
    rows(0, 3).to_parquet(path / "train-00000-of-00002.parquet")
    rows(3, 6).to_parquet(path / "train-00001-of-00002.parquet")
    rows(6, 8).to_parquet(path / "test-00000-of-00001.parquet")
    (path / "README.md").write_text("not data")


def saved(path):
    datasets.DatasetDict(train=rows(0, 6), test=rows(6, 8)).save_to_disk(path)


def arrow(path):
    for name, part in {"train": rows(0, 6), "test": rows(6, 8)}.items():
        part.save_to_disk(path / "aside" / name)
        (path / "aside" / name / "data-00000-of-00001.arrow").rename(path / f"{name}.arrow")


def tars(path):
    for name, numbers in {"train-0": range(3), "train-1": range(3, 6), "test-0": range(6, 8)}.items():
        members = {
            f"{i:03}.{kind}": data for i in numbers for kind, data in {"png": png(i), "cls": b"%d" % (i % 2)}.items()
        }
        shard(path / f"{name}.tar", dict(sorted(members.items())))


def image_folder(path):
    for i in range(8):
        file = path / ("train" if i < 6 else "test") / "xy"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(png(i))


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("write", [parquet, saved, arrow, tars, image_folder])
def test_every_source_gives_the_same_images(write, streaming, tmp_path):
    write(tmp_path)
    train, test = (load(tmp_path, split=split, streaming=streaming) for split in ("train", "test"))
    assert sorted(levels(train)) == [0, 1, 2, 3, 4, 5]
    assert sorted(levels(test)) == [6, 7]
    assert [level % 2 for level in levels(train)] == train.labels.tolist()
    if write is not tars:
        assert train.class_names == ["x", "y"]
    with pytest.raises(UserError, match=r"dataset.split: given 'dev'.*(train.*test|test.*train)"):
        load(tmp_path, split="dev", streaming=streaming)


def cut(archive, member, kept):
    """Cut a tar archive within the content of a file."""
    with tarfile.open(archive) as opened:
        end = opened.getmember(member).offset_data + kept
    archive.write_bytes(archive.read_bytes()[:end])


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("archive", "member", "kept", "expected"),
    [
        ("train-0.tar", "001.png", 20, [0, 3, 4, 5]),
        ("train-0.tar", "002.cls", 0, [0, 1, 3, 4, 5]),
        ("train-0.tar", "001.cls", -100, [0, 3, 4, 5]),  # within its header
        ("train-0.tar", "000.cls", -300, [3, 4, 5]),
        ("train-1.tar", "004.png", 20, [0, 1, 2, 3]),
        ("train-1.tar", "003.cls", -512, [0, 1, 2]),
    ],
)
def test_a_truncated_archive_costs_what_it_lacks(tmp_path, caplog, streaming, archive, member, kept, expected):
    tars(tmp_path)
    cut(tmp_path / archive, member, kept)
    found = load(tmp_path, streaming=streaming)
    assert sorted(levels(found)) == expected
    assert archive in caplog.text
    if kept == 20:  # of an image
        assert len(found.skipped) == 1
        with pytest.raises(UserError, match=r"dataset\.strict"):
            load(tmp_path, streaming=streaming, strict=True)


def test_damaged_files_in_an_archive_cost_their_images(tmp_path):
    members = {f"{i:03}.{kind}": data for i in range(8) for kind, data in {"cls": b"1", "png": png(i)}.items()}
    members |= {"005.cls": b"one", "006.png": b"no image", "007.png": b""}
    shard(tmp_path / "train.tar", members)
    assert set(levels(load(tmp_path))) >= {0, 1, 2, 3, 4}
    (tmp_path / "train-1.tar").write_bytes(b"no archive")
    assert set(levels(load(tmp_path))) >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("write", [parquet, saved, tars, image_folder])
def test_a_part_of_a_split(write, tmp_path):
    write(tmp_path)
    if write not in (saved, image_folder):  # whose images are files of their own
        with pytest.raises(UserError, match="a stream has whole splits only"):
            load(tmp_path, split="train[:50%]", streaming=True)
    first, second = (levels(load(tmp_path, split=split)) for split in ("train[:50%]", "train[50%:]"))
    assert first + second == levels(load(tmp_path))


def test_a_file_that_is_named_is_the_split_train(tmp_path):
    parquet(tmp_path)
    assert levels(load(tmp_path / "test-00000-of-00001.parquet")) == [6, 7]
    with pytest.raises(UserError, match=r"dataset.split: given 'test'.*train"):
        load(tmp_path / "test-00000-of-00001.parquet", split="test")


def test_names_of_photographs_and_folders_mean_nothing(tmp_path):
    """`datasets` would take the one file for the split train and leave out the others, and read [1] as a pattern."""
    folder = tmp_path / "test [1] *"
    folder.mkdir()
    for i, name in enumerate(["beach", "train-station", "test 2", "Café ☕"]):
        (folder / f"{name}.png").write_bytes(png(i))
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "caption.txt").write_text("a beach")
    assert sorted(levels(load(folder))) == [0, 1, 2, 3]


def test_folders_of_any_depth(tmp_path):
    for i, name in enumerate(["0.png", "a/1.png", "a/b/2.PNG", "c/d/e/3.png"]):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(png(i))
    images = load(tmp_path)
    assert sorted(levels(images)) == [0, 1, 2, 3]
    assert images.labels is None


@pytest.mark.filterwarnings("ignore:unclosed file")  # `datasets` leaves the CSV file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_list_beside_the_images_names_their_classes(kind, tmp_path):
    names = ["cat", "dog", "cat", "bird"]
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    if kind == "jsonl":
        lines = [json.dumps({"file_name": f"{i}.png", "animal": name, "size": 0.5}) for i, name in enumerate(names)]
    else:
        lines = ["file_name,animal,size", *(f"{i}.png,{name},0.5" for i, name in enumerate(names))]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    images = load(tmp_path, label_column="animal")
    assert images.class_names == ["bird", "cat", "dog"]
    assert {level: names[level] for level in range(4)} == {
        level: images.class_names[label] for level, label in zip(levels(images), images.labels.tolist(), strict=True)
    }
    assert load(tmp_path).labels is None
    with pytest.raises(UserError, match=r"'size' holds neither whole numbers nor names.*animal \((large_)?string\)"):
        load(tmp_path, label_column="size")
    gc.collect()  # the open file is warned of here, not in whatever test the collector runs next


def test_one_percent_of_damaged_images_is_left_out_and_listed(tmp_path, caplog):
    for i in range(200):
        (tmp_path / f"{i:03}.png").write_bytes(png(i) if i not in (7, 77) else png(i)[:40])
    with caplog.at_level(logging.WARNING):
        images = load(tmp_path)
    assert sorted(levels(images)) == sorted(set(range(200)) - {7, 77})
    assert [skipped.split(" (")[0] for skipped in images.skipped] == [str(tmp_path / f"{i:03}.png") for i in (7, 77)]
    assert "2 images of" in caplog.text
    with pytest.raises(UserError, match=r"dataset.strict: 2 images.*007.png.*077.png"):
        load(tmp_path, strict=True)


def test_a_row_without_an_image_is_left_out(tmp_path):
    table = datasets.Dataset.from_dict({"img": [gray(1), None, gray(3)], "kind": [0, None, 1]}, features=FEATURES)
    table.to_parquet(tmp_path / "some.parquet")
    images = load(tmp_path)
    assert (levels(images), images.labels.tolist()) == ([1, 3], [0, 1])
    assert images.skipped[0].startswith("row 1 (")


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_names_that_point_outside_write_nothing_there(streaming, tmp_path):
    data = tmp_path / "in" / "data"
    outside = ["../../evil.png", "/tmp/ddpm-hf-evil.png"]
    shard(data / "some.tar", {name: png(i) for i, name in enumerate(outside)})
    before = set(tmp_path.rglob("*"))
    assert levels(load(data, streaming=streaming)) == [0, 1]
    assert set(tmp_path.rglob("*")) == before
    assert not os.path.exists(outside[1])  # noqa: PTH110


def test_a_pickle_in_a_shard_is_not_opened(tmp_path):
    shard(tmp_path / "some.tar", {"0.png": png(0), "0.pyd": b"cbuiltins\nexit\n(S'hostile'\ntR."})
    assert levels(load(tmp_path)) == [0]


def test_what_cannot_be_fetched_is_not_taken_for_damaged():
    source = Source([Example("memory://nothing.png", "nothing.png", None)], 1, False, None)
    with pytest.raises(OSError, match=r"dataset.name: memory://nothing.png could not be read"):
        list(decode(source, Transform(8, 1), "some").images)


def test_a_stream_that_breaks_off_is_told(tmp_path):
    datasets.concatenate_datasets([rows(0, 200)] * 20).save_to_disk(tmp_path / "aside")
    (tmp_path / "aside" / "data-00000-of-00001.arrow").rename(tmp_path / "some.arrow")
    shutil.rmtree(tmp_path / "aside")
    os.truncate(tmp_path / "some.arrow", (tmp_path / "some.arrow").stat().st_size // 2)
    with pytest.raises(OSError, match=r"could not be read beyond image \d+"):
        load(tmp_path, streaming=True)
    with pytest.raises(UserError, match=r"dataset.name: given .*generating the dataset"):
        load(tmp_path)


def test_no_images_are_no_endless_wait_for_some(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        load(tmp_path)
    rows(0, 3).select([]).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"dataset.split: given 'train'.* no data"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"dataset.name: .* no images"):
        load(tmp_path, streaming=True)


def test_options_of_the_hub_are_refused_for_a_folder(tmp_path):
    image_folder(tmp_path)
    for field in ("config", "revision"):
        with pytest.raises(UserError, match=f"dataset.{field}: given 'x'; allowed: nothing"):
            load(tmp_path, **{field: "x"})


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    image_folder(tmp_path)
    fingerprints = [find_local(str(tmp_path)).fingerprint()]
    file = tmp_path / "train" / "x" / "0.png"

    def note() -> None:
        fingerprints.append(find_local(str(tmp_path)).fingerprint())

    os.utime(file, (1, 1))
    note()
    file.write_bytes(png(9) + b"\0")
    note()
    file.rename(file.with_name("00.png"))
    note()
    file.write_bytes(png(0))
    note()
    assert len(set(fingerprints)) == 5
    (tmp_path / "notes.txt").write_text("not an image")
    note()
    assert fingerprints[-1] == fingerprints[-2]


def test_memory_and_file_hold_the_same(tmp_path):
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (50, 12, 10, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    torch.testing.assert_close(load(tmp_path).images, load(tmp_path, in_memory=True).images)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, None, 2, 1], [0, -1, 2, 1]), ([0.0, None, 1.0, 1.0], [0, -1, 1, 1]), (["b", "", "a", "a"], [1, -1, 0, 0])],
)
def test_a_blank_label_is_no_class(values, expected, tmp_path):
    images = datasets.Features({"image": datasets.Image()}).encode_batch({"image": [gray(i) for i in range(4)]})
    table = pyarrow.table({"image": images["image"], "kind": values})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet")
    images = load(tmp_path, label_column="kind")
    assert images.labels.tolist() == expected
    with pytest.raises(UserError, match=r"1 of the 4 images of .* have no class in column 'kind'"):
        load_image_set(
            DatasetConfig(name=str(tmp_path), label_column="kind"), MODEL.model_copy(update={"num_classes": 3})
        )


def test_fractions_are_no_classes(tmp_path):
    table = pyarrow.table({"image": [png(0), png(1)], "size": [0.5, 1.0]})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet")
    with pytest.raises(UserError, match=r"dataset.label_column: .*neither whole numbers nor names.*0.5"):
        load(tmp_path, label_column="size")


def test_bytes_are_images_and_a_table_without_any_says_what_it_has(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"picture": [png(0), png(1)]}), tmp_path / "some.parquet")
    assert levels(load(tmp_path)) == [0, 1]
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png", "b.png"]}), tmp_path / "some.parquet")
    with pytest.raises(UserError, match=r"no column of images.*image \(string\)") as caught:
        load(tmp_path)
    assert "name one of" not in str(caught.value)
