"""How image i of a sampling run is drawn, and which folder it may go to."""

import json

import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.checkpoints.find import weights_hash
from ddpm_hf.pipelines.generation import check_folder, generate, write_manifest
from ddpm_hf.pipelines.sampling import SamplingSettings, every_class, show_steps
from ddpm_hf.runtime.errors import UserError


def test_an_image_depends_on_the_settings_and_its_index_alone(tiny_pipeline):
    pipeline, settings = tiny_pipeline(), SamplingSettings(seed=3, num_inference_steps=5, sampler="ddim")
    together = settings.draw(pipeline, range(4), "pt").images
    assert_close(settings.draw(pipeline, [2], "pt").images, together[2:3], rtol=0, atol=1e-5)
    other = SamplingSettings(seed=4, num_inference_steps=5, sampler="ddim").draw(pipeline, [2], "pt").images
    assert not torch.allclose(other, together[2:3])


def test_images_take_the_classes_in_turn(tiny_pipeline):
    pipeline = tiny_pipeline(num_class_embeds=4)
    assert every_class(pipeline) == [0, 1, 2]
    assert every_class(tiny_pipeline()) is None
    settings = SamplingSettings(0, 4, class_labels=[2, 0])
    assert settings.labels(range(1, 4)) == [0, 2, 0]
    assert SamplingSettings(0, 4).labels(range(3)) is None
    drawn = settings.draw(pipeline, [1], "pt").images
    labelled = SamplingSettings(0, 4, class_labels=[0]).draw(pipeline, [1], "pt").images
    assert torch.equal(drawn, labelled)


def test_a_folder_of_the_first_version_is_completed(tiny_pipeline, tmp_path):
    pipeline = tiny_pipeline()
    settings = SamplingSettings(seed=0, num_inference_steps=4)
    generate(pipeline, "runs/digits", settings, 2, tmp_path / "new", batch_size=2)
    old = {
        "model": "runs/digits",
        "weights": weights_hash(pipeline.unet),
        "seed": 0,
        "num_inference_steps": 4,
        "sampler": None,
        "class_labels": None,
        "guidance_scale": 1.0,
    }
    assert (tmp_path / "new" / "manifest.json").read_text() == json.dumps(old, indent=2) + "\n"
    assert generate(pipeline, "runs/digits", settings, 3, tmp_path / "new", batch_size=3) == 1


def test_other_settings_are_refused_by_name(tmp_path):
    write_manifest(tmp_path, {"seed": 1, "sampler": None})
    check_folder(tmp_path, {"seed": 1, "sampler": None})
    for settings in ({"seed": 2, "sampler": None}, {"seed": 2}, {"seed": 2, "sampler": None, "more": 1}):
        with pytest.raises(UserError, match="seed was 1"):
            check_folder(tmp_path, settings)


@pytest.mark.parametrize("in_terminal", [True, False])
def test_a_batch_shows_its_steps(tiny_pipeline, tmp_path, monkeypatch, capsys, in_terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: in_terminal)
    pipeline, settings = tiny_pipeline(), SamplingSettings(seed=0, num_inference_steps=4)
    show_steps(pipeline)
    shown = pipeline._progress_bar_config
    show_steps(pipeline, quiet=True)
    assert pipeline._progress_bar_config["disable"]
    generate(pipeline, "model", settings, 2, tmp_path, batch_size=2)
    assert pipeline._progress_bar_config == shown
    # what is shown at once where it would be after a second, or ten
    pipeline.set_progress_bar_config(**{**shown, "delay": 0, "mininterval": 0, "miniters": 1})
    settings.draw(pipeline, range(2))
    said = capsys.readouterr().err
    assert all(f"denoising: {percent:3}%" in said for percent in (25, 50, 75, 100))
    assert in_terminal or "\n" not in said  # of a bar below another
