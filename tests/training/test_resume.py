"""What a run goes on from, and what it does not."""

import hashlib
import json
import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator, PartialState
from PIL import Image
from safetensors.torch import save

from ddpm_hf.checkpoints.format import MANIFEST, Progress, find_damage, find_latest
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.runtime import distributed
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.preflight import make_plan
from ddpm_hf.training.resume import Start, find_start, resume_config
from ddpm_hf.training.trainer import Trainer

PROGRESS = "training_state/progress.json"


@pytest.fixture
def run(trained) -> Path:
    """A finished run, with checkpoints of steps 4 and 6."""
    return trained


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Put a file into a checkpoint, and its hash into the manifest, as one who means harm would."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(checkpoint) is None


def change_progress(checkpoint: Path, **values: object) -> None:
    progress = json.loads((checkpoint / PROGRESS).read_text())
    forge(checkpoint, PROGRESS, json.dumps(progress | values).encode())


def test_every_flipped_byte_and_every_cut_of_a_real_checkpoint_is_found(run):
    checkpoint, chance = run / "checkpoints" / "step-6", random.Random(0)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    assert len(files) > 8
    places = [(file, chance.randrange(file.stat().st_size)) for file in files for _ in range(-(-100 // len(files)))]
    assert len(places) >= 100
    for file, place in places:
        whole = file.read_bytes()
        flipped = bytes([whole[place] ^ (1 << chance.randrange(8))])
        for damaged in (whole[:place] + flipped + whole[place + 1 :], whole[:place]):
            file.write_bytes(damaged)
            # of the manifest, what a reader of JSON does not see may change: a blank that becomes another kind of blank
            seen = file.name != MANIFEST or not _means_the_same(damaged, whole)
            assert (find_damage(checkpoint) is not None) == seen, (file, place)
        file.write_bytes(whole)
    assert find_damage(checkpoint) is None


def _means_the_same(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_no_code_in_a_hostile_checkpoint_runs(tiny, run, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    checkpoint = run / "checkpoints" / "step-6"
    trap = pickle.dumps(Trap())
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n".encode()
    for name in ("pipeline.py", "unet/modeling.py", "training_state/progress.py", "conftest.py"):
        forge(checkpoint, name, code)
    for name in ("training_state/optimizer.bin", "unet/diffusion_pytorch_model.bin", "training_state/random.pkl"):
        forge(checkpoint, name, trap)
    index = {"_class_name": ["pipeline", "Evil"], "_diffusers_version": "0", "unet": ["modeling", "Evil"]}
    forge(checkpoint, "model_index.json", json.dumps(index).encode())
    Trainer(tiny("training.num_steps=7"), "latest").train()
    checkpoint = run / "checkpoints" / "step-7"
    for file in sorted(checkpoint.rglob("*.safetensors")):
        name, whole = file.relative_to(checkpoint).as_posix(), file.read_bytes()
        forge(checkpoint, name, trap)
        with pytest.raises(UserError, match=Path(name).name):
            Trainer(tiny("training.num_steps=8"), "latest").train()
        forge(checkpoint, name, whole)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [".", "checkpoints", "checkpoints/step-6"])
def test_a_run_stands_for_its_newest_checkpoint(tiny, run, tmp_path, name):
    for options in ((), (f"output_dir={tmp_path / 'elsewhere'}",)):
        start = find_start(RunFolder(tiny(*options).output_dir), str(run / name))
        assert start.checkpoint.resolve() == (run / "checkpoints" / "step-6").resolve()


def test_what_cannot_be_resumed_says_the_way_out(tiny, run):
    with pytest.raises(UserError, match=r"batch_size: 8 → 4; .*output_dir=ANOTHER_FOLDER.*gradient_accumulation_steps"):
        Trainer(tiny("training.batch_size=4"), "latest")


def test_a_folder_that_is_no_checkpoint_is_refused(tiny, run, tmp_path):
    foreign, elsewhere = tmp_path / "foreign", f"output_dir={tmp_path / 'elsewhere'}"
    foreign.mkdir()
    with pytest.raises(UserError, match=r"manifest.json is missing; allowed: latest, auto, the folder of a run"):
        Trainer(tiny(elsewhere), str(foreign))
    (foreign / MANIFEST).write_text('{"files": {}}')
    with pytest.raises(UserError, match=r"foreign: manifest.json names no model_index.json.*progress.json"):
        Trainer(tiny(elsewhere), str(foreign))
    change_progress(run / "checkpoints" / "step-6", warp=9)
    with pytest.raises(UserError, match=r"step-6 is not a checkpoint that this version can resume from: .*warp"):
        Trainer(tiny(), "latest")


WRONG_PROGRESS = {
    "step": ["6", -1, 6.5, None, True],
    "seconds": ["1", -1.0, None, []],
    "sums": [[], {"loss": "1"}, None],
    "scaler": [[], 3],
    "num_images": ["8", 0, -3],
    "num_accumulation_steps": [0, "2"],
    "num_processes": [0, None],
    "num_skipped": [-1, {}],
    "pending": ["preview", [1], None],
    "score": ["0.5", []],
    "config": [[], None, 3, {"dataset": 3}, {"training": []}, {"dataset": {"value_range": 7}}, {"seed": "x"}],
}


@pytest.mark.parametrize("field", WRONG_PROGRESS)
def test_a_wrong_type_in_the_progress_names_file_field_and_value(tiny, run, field):
    for value in WRONG_PROGRESS[field]:
        change_progress(run / "checkpoints" / "step-6", **{field: value})
        with pytest.raises(UserError, match=rf"progress\.json: {field}.*given .*; allowed: "):
            make_plan(tiny("training.num_steps=7"), "latest", Accelerator(cpu=True))


def test_tensors_of_another_network_are_a_users_error(tiny, run):
    """Valid files with the wrong tensors, as a stranger's checkpoint may hold."""
    checkpoint = run / "checkpoints" / "step-6"
    for name in ("network", "optimizer"):
        file = f"training_state/{name}.safetensors"
        whole = (checkpoint / file).read_bytes()
        forge(checkpoint, file, save({"99999.unheard_of": torch.zeros(1)}))
        with pytest.raises(UserError, match="step-6 cannot be resumed from"):
            Trainer(tiny("training.num_steps=7"), "latest").train()
        forge(checkpoint, file, whole)


def test_a_run_that_is_taken_back_leaves_what_came_later(tiny, run, caplog):
    options = ("training.num_steps=5", "training.checkpoints_to_keep=1", "training.learning_rate=1e-4")
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*options), str(run / "checkpoints" / "step-4")).train()
    assert "is resumed from step 4: its later checkpoints, step-6, will be removed with the next one" in caplog.text
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-5"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5]


def test_a_run_says_what_another_number_of_processes_changes(tiny, run, caplog):
    change_progress(run / "checkpoints" / "step-6", num_processes=4, num_parts=8)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(tiny("training.num_steps=7"), "latest")
    assert "The number of processes is 1, and was 4 in" in caplog.text
    assert "differ by rounding and by the dropout masks" in caplog.text
    trainer.train()
    assert trainer.state.num_accumulation_steps == 1  # those 8 were parts of another share of the batch


@pytest.mark.parametrize(("given", "expected"), [(1, 4), (2, 2)], ids=["as before", "changed"])
def test_parts_that_fitted_stay_unless_other_ones_are_asked_for(tiny, run, given, expected):
    change_progress(run / "checkpoints" / "step-6", num_parts=4)
    trainer = Trainer(tiny("training.num_steps=7", f"training.gradient_accumulation_steps={given}"), "latest")
    trainer.train()
    assert trainer.state.num_accumulation_steps == expected


def test_processes_that_find_different_checkpoints_are_refused(tiny, run, monkeypatch):
    def gather(settings: list) -> list:
        return [*settings, dict.fromkeys(settings[0], 0)]  # another machine, whose folder is empty

    monkeypatch.setattr(PartialState(), "num_processes", 2)
    monkeypatch.setattr(distributed, "gather_object", gather)
    with pytest.raises(UserError, match=r"checkpoint in output_dir is 6 or 0; allowed: .*files that all machines see"):
        find_start(RunFolder(run), "latest")


def test_a_run_keeps_the_commit_of_its_dataset(tiny, tmp_path):
    began = tiny("dataset.name=ada/digits", f"dataset.revision={'a' * 40}")
    start = Start(tmp_path / "step-2", Progress(step=2, config=began.to_dict()))
    for given in ("null", "main"):  # which may have moved on since
        config = tiny("dataset.name=ada/digits", f"dataset.revision={given}")
        assert resume_config(config, start, 1).dataset.revision == "a" * 40
    with pytest.raises(UserError, match=r"dataset\.revision"):
        resume_config(tiny("dataset.name=ada/digits", f"dataset.revision={'b' * 40}"), start, 1)


def test_a_run_keeps_the_brightness_that_was_chosen(tiny, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), 1000 * i, np.uint16)).save(tmp_path / "images" / f"{i}.png")
    data = [f"dataset.name={tmp_path}/images", "training.batch_size=4"]
    run = RunFolder(tiny(*data).output_dir)
    Trainer(tiny(*data)).train()
    assert yaml.safe_load(run.config.read_text())["dataset"]["value_range"] == [0, 4095]
    checkpoint = find_latest(run.checkpoints)
    again = make_plan(tiny(*data, "training.num_steps=20"), "latest", Accelerator(cpu=True))
    assert again.config.dataset.value_range == (0, 4095)
    with pytest.raises(UserError, match=r"dataset\.value_range"):
        make_plan(tiny(*data, "dataset.value_range=[0,255]"), "latest", Accelerator(cpu=True))
    config = Progress.read(checkpoint).config
    del config["dataset"]["value_range"]  # as the first version wrote it
    change_progress(checkpoint, config=config)
    caplog.clear()
    assert make_plan(tiny(*data), "latest", Accelerator(cpu=True)).config.dataset.value_range == (0, 4095)
    assert "0.1.0" in caplog.text
