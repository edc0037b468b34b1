"""A folder of images: what was found is what was read and what was skipped, and names mean nothing."""

import csv
import errno
import json
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import ImageSet, load_image_set
from ddpm_hf.data.local_files import METADATA, SPLIT_NAMES
from ddpm_hf.data.pixels import UNREADABLE
from ddpm_hf.runtime.errors import UserError

MODEL = ModelConfig(image_size=8, image_channels=1, channel_multipliers=(1,), attention_levels=())
TWO_CLASSES = MODEL.model_copy(update={"num_classes": 2})


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    """Cats 0 to 2 and dogs 3 to 5; the level of each image is its number."""
    path = tmp_path / "photos"
    for i in range(6):
        paint(path / ("cats" if i < 3 else "dogs") / f"{i}.png", i)
    return path


def paint(file: Path, level: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(file)
    return file


def load(name, model: ModelConfig = MODEL, **options) -> ImageSet:
    return load_image_set(DatasetConfig(name=str(name), **options), model)


def levels(images: ImageSet) -> list[int]:
    return sorted(images.images[:, 0, 0, 0].tolist())


def classes_of(images: ImageSet) -> dict[int, str | int | None]:
    """The class of each level; None for none."""
    names = images.class_names or range(100)
    pairs = zip(images.images[:, 0, 0, 0].tolist(), images.labels.tolist(), strict=True)
    return {level: None if label < 0 else names[label] for level, label in pairs}


def write_metadata(folder: Path, columns: dict[str, list], name: str = "metadata.csv") -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if name.lower().endswith("parquet"):
        datasets.Dataset.from_list(rows).to_parquet(folder / name)
    elif name.lower().endswith("json"):
        (folder / name).write_text(json.dumps(rows))
    elif name.lower().endswith("jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        with (folder / name).open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, list(columns), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)


def test_the_order_and_the_classes_are_those_of_datasets(folder):
    """Runs of the first version, which read folders by `datasets`, are resumed on the same images in the same order."""
    for i, name in enumerate(["a b/1.png", "a/2.png", "a/10.png", "a.d/é.png", "B/0.png"]):
        paint(folder / name, 10 + i)
    theirs = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"), split="train")
    ours = load(folder)
    assert ours.images[:, 0, 0, 0].tolist() == [np.asarray(row["image"])[0, 0] for row in theirs]
    assert ours.labels.tolist() == theirs["label"]
    assert ours.class_names == theirs.features["label"].names


def test_keywords_of_splits_are_those_of_datasets():
    from datasets.data_files import SPLIT_KEYWORDS

    assert {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words} == SPLIT_NAMES


def test_links_are_followed(folder, tmp_path):
    paint(tmp_path / "elsewhere" / "6.png", 6)
    paint(tmp_path / "one" / "7.png", 7)
    (folder / "birds").symlink_to(tmp_path / "elsewhere")
    (folder / "cats" / "7.png").symlink_to(tmp_path / "one" / "7.png")
    (folder / "dogs" / "again").symlink_to(folder)  # leads back
    images = load(folder)
    assert levels(images) == list(range(8))
    assert images.class_names == ["birds", "cats", "dogs"]
    (folder / "dogs" / "again").unlink()
    links = tmp_path / "links"
    links.mkdir()
    for name in ("cats", "dogs"):
        (links / name).symlink_to(folder / name)
    assert levels(load(links)) == [0, 1, 2, 3, 4, 5, 7]


def test_what_cannot_be_opened_is_skipped_with_its_reason(folder, monkeypatch):
    (folder / "cats" / "gone.png").symlink_to(folder / "nothing")
    (folder / "birds").symlink_to(folder / "nowhere")
    (folder / "dogs" / "empty.png").touch()
    (folder / "dogs" / "text.PNG").write_text("no image")
    os.mkfifo(folder / "dogs" / "pipe.png")
    images = load(folder)
    assert levels(images) == list(range(6))
    assert images.class_names == ["cats", "dogs"]
    reasons = {Path(name).name: reason.rstrip(")") for name, reason in (each.split(" (") for each in images.skipped)}
    assert reasons == {
        "gone.png": "a link to nothing",
        "birds": "a link to nothing",
        "empty.png": "empty",
        "text.PNG": "no image that Pillow can read",
        "pipe.png": "neither a file nor a folder",
    }


def test_files_and_folders_without_permission_are_skipped(folder, monkeypatch):
    """Root may read everything, so the system's answer is given in its place."""
    scandir, opened = os.scandir, Image.open

    def refuse(path):
        if Path(path).name in ("dogs", "0.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(Image, "open", lambda path: refuse(path) or opened(path))
    images = load(folder)
    assert levels(images) == [1, 2]
    assert images.skipped == (
        f"{folder}/cats/0.png (Permission denied)",
        f"{folder}/dogs (the folder cannot be opened: Permission denied)",
    )


def test_a_name_that_is_not_utf_8_is_read_and_control_characters_are_escaped(folder, caplog):
    paint(folder / "cats" / "6.png", 6).rename(folder / "cats" / os.fsdecode(b"caf\xe9.png"))
    (folder / "cats" / "\x1b[31mred\n.png").write_bytes(b"broken")
    (folder / "dogs" / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    (folder / "dogs").rename(folder / "d\x1bogs")
    with caplog.at_level(logging.WARNING):
        images = load(folder)
    assert levels(images) == list(range(7))
    assert images.class_names == ["cats", r"d\x1bogs"]
    assert all(text.isprintable() for text in [*images.skipped, caplog.text.replace("\n", "")])
    assert any(r"\x1b[31mred\n.png" in each for each in images.skipped)
    assert any(r"\xff.png" in each for each in images.skipped)


def test_clutter_of_systems_is_no_image(folder):
    for name in ("Thumbs.db", ".DS_Store", "cats/._0.png", "__MACOSX/cats/._0.png", "desktop.ini", "paper.pdf"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"clutter")
    images = load(folder)
    assert (levels(images), images.skipped, images.class_names) == (list(range(6)), (), ["cats", "dogs"])


def test_a_suffix_may_be_wrong(folder):
    Image.new("L", (8, 8), 6).save(folder / "cats" / "6.webp", "PNG")
    assert levels(load(folder)) == list(range(7))


@pytest.mark.parametrize("suffix", UNREADABLE)
def test_images_that_pillow_cannot_read_are_counted_by_type(folder, suffix, caplog):
    for number in range(3):  # a raw file is a TIFF, in which Pillow finds the thumbnail
        Image.new("L", (8, 8)).save(folder / "cats" / f"{number}{suffix.upper()}", "TIFF")
    if UNREADABLE[suffix].startswith("camera"):
        images = load(folder)
    else:
        for file in folder.rglob(f"*{suffix.upper()}"):
            file.write_bytes(b"some other format")
        images = load(folder)
    assert (levels(images), len(images.skipped)) == (list(range(6)), 3)
    assert f"3 of {UNREADABLE[suffix]}" in caplog.text
    with pytest.raises(UserError, match=r"dataset.strict: 3 images"):
        load(folder, strict=True)


def test_archives_and_other_tables_are_named(folder, caplog):
    (folder / "old.zip").touch()
    (folder / "labels.csv").write_text("file,animal\n")
    load(folder)
    assert "old.zip is not opened" in caplog.text
    assert "labels.csv is not read: a metadata.csv" in caplog.text


def test_images_and_archives_together_are_asked_about(folder):
    (folder / "backup.tar").touch()
    with pytest.raises(UserError, match=r"6 images.*1 files ending in .tar.*dataset.name=.*backup.tar"):
        load(folder)


def test_tables_and_archives_together_are_asked_about(tmp_path):
    for name in ("a.parquet", "sub/b.parquet", "c.tar", "d.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"2 files ending in .parquet.*1 files ending in .tar") as error:
        load(tmp_path)
    assert "1 files ending in .arrow" in str(error.value)
    assert f"dataset.name={tmp_path}/" in str(error.value)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ("a.zip", "b.zip", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds no image.*2 of .zip, 1 of .txt.*unpacked"):
        load(tmp_path)


def splits(path: Path) -> Path:
    for i, top in enumerate(["train", "train", "val", "valid", "test"]):
        for name in ("x", "y"):
            paint(path / top / name / f"{i}.png", 2 * i + (name == "y"))
    return path


def test_folders_of_one_split_belong_together(tmp_path):
    splits(tmp_path)
    expected = {"train": 4, "validation": 4, "test": 2, "train+test": 6, "train[:50%]": 2, "test[-1:]": 1}
    assert {split: len(load(tmp_path, split=split)) for split in expected} == expected
    assert all(load(tmp_path, split=split).class_names == ["x", "y"] for split in expected)


def test_a_class_that_a_split_lacks_keeps_the_others_numbers(tmp_path):
    for i, name in enumerate(["train/a/0", "train/b/1", "train/c/2", "test/c/3"]):
        paint(tmp_path / f"{name}.png", i)
    test = load(tmp_path, split="test")
    assert (test.labels.tolist(), test.class_names) == ([2], ["a", "b", "c"])


@pytest.mark.parametrize("stray", ["preview.png", "extra/0.png"])
def test_a_layout_that_is_nearly_splits_is_asked_about(tmp_path, stray):
    paint(splits(tmp_path) / stray, 99)
    top = stray.partition("/")[0]
    with pytest.raises(UserError, match=rf"look like splits, beside {top}.*dataset.name=.*/test"):
        load(tmp_path)
    assert len(load(tmp_path / "train")) == 4


def test_metadata_and_notes_beside_splits_are_no_stray(tmp_path):
    write_metadata(splits(tmp_path), {"file_name": ["train/x/0.png"], "text": ["a cat"]})
    (tmp_path / "README.md").touch()
    assert len(load(tmp_path)) == 4


def test_a_class_may_be_called_train(tmp_path):
    for i, name in enumerate(["bus", "car", "train"]):
        paint(tmp_path / name / "0.png", i)
    images = load(tmp_path)
    assert (levels(images), images.class_names) == ([0, 1, 2], ["bus", "car", "train"])


@pytest.mark.parametrize("name", [*METADATA, "Metadata.CSV"])
def test_metadata_names_classes_and_drops_no_image(folder, name, caplog):
    files = ["cats/0.png", r"cats\1.png", "./dogs/3.png", "dogs/../dogs/4.png"]
    write_metadata(folder, {"file_name": files, "kind": ["old", "new", "old", " "]}, name)
    images = load(folder, label_column="kind")
    assert classes_of(images) == {0: "old", 1: "new", 2: None, 3: "old", 4: None, 5: None}
    assert "2 of 6 images have no row" in caplog.text
    with pytest.raises(UserError, match=r"3 of the 6 images of .* have no class in column 'kind'"):
        load(folder, TWO_CLASSES, label_column="kind")
    assert classes_of(load(folder)) == {i: "cats" if i < 3 else "dogs" for i in range(6)}
    assert classes_of(load(folder, label_column="label")) == classes_of(load(folder))


def test_metadata_lie_in_any_folder_and_accents_in_either_form(folder):
    paint(folder / "cats" / "cafe\u0301.png", 6)
    write_metadata(folder / "cats", {"file_name": ["caf\u00e9.png", "0.png"], "kind": ["a", "b"]})
    write_metadata(folder / "dogs", {"file_name": ["3.png"], "kind": ["c"]})
    expected = {0: "b", 1: None, 2: None, 3: "c", 4: None, 5: None, 6: "a"}
    assert classes_of(load(folder, label_column="kind")) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0", "", "2", "1", "1", "0"], [0, None, 2, 1, 1, 0]),
        (["0.0", "", "2.0", "1.0", "1.0", "0.0"], [0, None, 2, 1, 1, 0]),
        (["True", "False", "True", "True", "", "False"], ["True", "False", "True", "True", None, "False"]),
        (["0", "1", "cat", "0", "1", "1"], ["0", "1", "cat", "0", "1", "1"]),
    ],
)
def test_cells_are_numbers_or_names(folder, cells, expected):
    files = [f"{'cats' if i < 3 else 'dogs'}/{i}.png" for i in range(6)]
    write_metadata(folder, {"file_name": files, "kind": cells})
    assert classes_of(load(folder, label_column="kind")) == dict(enumerate(expected))


def test_cells_that_are_no_classes_are_refused(folder):
    names = ["cats/0.png", "cats/1.png"]
    write_metadata(folder, {"file_name": names, "size": [0.5, 1], "box": [[1, 2], [3, 4]]}, "metadata.jsonl")
    for column in ("size", "box"):
        with pytest.raises(UserError, match=f"dataset.label_column: '{column}' holds neither whole numbers nor names"):
            load(folder, label_column=column)
    with pytest.raises(UserError, match=r"dataset.label_column: given 'kind'.*size \(float\), box \(list\)"):
        load(folder, label_column="kind")


def test_files_that_metadata_name_in_vain_are_skipped(folder):
    write_metadata(folder, {"file_name": ["cats/0.png", "cats/9.png", "/etc/passwd"], "kind": ["a", "b", "a"]})
    images = load(folder)
    assert levels(images) == list(range(6))
    assert [each.split(" (")[1] for each in images.skipped] == [
        "not there, but in row 3 of metadata.csv)",
        "not there, but in row 2 of metadata.csv)",
    ]


def test_an_image_named_twice_has_one_class(folder):
    names = ["cats/0.png", "cats/0.png"]
    write_metadata(folder, {"file_name": names, "text": ["a cat", "asleep"], "kind": ["a", "a"]})
    assert classes_of(load(folder, label_column="kind"))[0] == "a"
    with pytest.raises(UserError, match=r"'a cat' \(row 1 of metadata.csv\), 'asleep' \(row 2"):
        load(folder, label_column="text")


@pytest.mark.parametrize("text", ["file,kind\n0.png,a\n", "file_name,kind\n,a\n", "\xff"])
def test_metadata_that_cannot_be_used_are_refused(folder, text):
    (folder / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset.name: .*metadata.csv"):
        load(folder)


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        (["stray.png"], "different depths .*stray.png, cats/0.png"),
        (["cats/a/b.png"], "different depths .*cats/0.png, cats/a/b.png"),
    ],
)
def test_a_folder_without_classes_says_why(folder, more, seen):
    for name in more:
        paint(folder / name, 9)
    write_metadata(folder, {"file_name": ["cats/0.png"], "kind": ["a"]})
    with pytest.raises(
        UserError, match=f"has no column of class labels: its images lie at {seen}.*its metadata have kind"
    ):
        load(folder, TWO_CLASSES)


def test_too_many_classes_are_told(folder, caplog):
    load(folder, TWO_CLASSES)
    assert "num_classes" not in caplog.text
    load(folder, MODEL.model_copy(update={"num_classes": 10}))
    assert "model_config.num_classes: given 10, but" in caplog.text


def test_a_folder_is_opened_without_datasets(folder, run_python):
    program = """
        import sys
        from ddpm_hf.config import DatasetConfig, ModelConfig
        from ddpm_hf.data import load_image_set
        model = ModelConfig(image_size=8, channel_multipliers=[1], attention_levels=[])
        print(len(load_image_set(DatasetConfig(name=sys.argv[1]), model)), "datasets" in sys.modules)
    """
    done = run_python(program, str(folder))
    assert done.stdout == "6 False\n", done.stderr
