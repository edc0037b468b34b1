"""What the buttons do: right images, progress on the way, and refusals in words."""

import pytest
from PIL import Image

from ddpm_hf.demo.work import draw, inpaint, interpolate
from ddpm_hf.pipelines.generation import generate
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError


def silent(_):
    pass


def test_images_equal_those_of_the_command_line(model, tmp_path):
    made = draw(model, silent, count=3, steps=5, seed=7, sampler="ddim")
    names = SamplingSettings.__dataclass_fields__
    settings = SamplingSettings(**{name: value for name, value in made.settings.items() if name in names})
    generate(model.pipeline, "model", settings, 3, tmp_path / "out", batch_size=2)
    files = sorted((tmp_path / "out").glob("0*.png"))
    assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in made.images]


def test_progress_is_reported_each_step_and_stages_go_from_noise_to_image(model):
    reported = []
    made = draw(model, reported.append, count=2, steps=6, seed=0, sampler="ddim")
    assert [(each.done, each.total) for each in reported] == [(step, 6) for step in range(1, 7)]
    assert reported[0].images is not None
    assert [stage.timestep for stage in made.stages] == sorted((s.timestep for s in made.stages), reverse=True)
    assert len(made.stages) == 6
    assert made.stages[0].timestep == 19
    assert all(len(stage.x_t) == len(stage.x_0) == 2 for stage in made.stages)
    assert made.stages[-1].x_0[0].size == (8, 8)


def test_the_shared_pipeline_is_not_modified(model):
    before = model.pipeline.scheduler.timesteps.clone()
    draw(model, silent, count=1, steps=3, seed=0)
    assert (model.pipeline.scheduler.timesteps == before).all()


@pytest.mark.filterwarnings("ignore:sampler 'pndm' does not clip")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 65}, "Images: given 65"),
        ({"count": 0}, "Images: given 0"),
        ({"steps": 21}, "Steps: given 21"),
        ({"seed": None}, "Seed: given nothing"),
        ({"seed": -1}, "Seed: given -1"),
        ({"seed": 1.5}, "Seed: given 1.5"),
        ({"seed": float("nan")}, "Seed: given nan"),
        ({"seed": "1"}, "Seed: given '1'"),
        ({"guidance": None}, "Guidance: given nothing"),
        ({"guidance": 2.0}, "guidance_scale is 2"),
        ({"sampler": "magic"}, "sampler is 'magic'"),
        ({"sampler": "pndm", "steps": 7}, "7 even steps"),
    ],
)
def test_impossible_settings_are_refused(model, change, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        draw(model, silent, **({"count": 2, "steps": 5, "seed": 0} | change))


@pytest.mark.filterwarnings("ignore:sampler 'pndm' does not clip")
def test_warnings_of_a_sampler_are_reported_each_time(model):
    for _ in range(2):
        made = draw(model, silent, count=1, steps=4, seed=0, sampler="pndm")
        assert made.notes == ["sampler 'pndm' does not clip the predicted x_0 to [-1.0, 1.0]"]
    assert draw(model, silent, count=1, steps=4, seed=0, sampler="ddim").notes == []


def test_classes_are_taken_in_turn_or_chosen(conditional):
    turns = draw(conditional, silent, count=4, steps=2, seed=0)
    assert turns.settings["class_labels"] == [0, 1, 2]
    chosen = draw(conditional, silent, count=1, steps=2, seed=0, label=0, guidance=3)
    assert chosen.settings["guidance_scale"] == 3
    assert turns.images[0].tobytes() != chosen.images[0].tobytes()
    with pytest.raises(ValueError, match="class_labels"):
        draw(conditional, silent, count=1, steps=2, seed=0, label=9)
    none = draw(conditional, silent, count=1, steps=2, seed=0, label=3, guidance=3)  # the demo's choice of no class
    assert (none.settings["class_labels"], none.settings["guidance_scale"]) == (None, 1)


def test_interpolation_between_seeds_and_images(model):
    reported = []
    between = interpolate(model, reported.append, a=0, b=1, frames=4, steps=5)
    assert len(between.images) == 4
    assert between.settings["seeds"] == [0, 1]
    assert (reported[-1].done, reported[-1].total) == (5, 5)
    ends = {"a": between.images[0], "b": between.images[-1]}
    reported.clear()
    assert len(interpolate(model, reported.append, between_images=True, **ends, frames=3, steps=5).images) == 3
    assert (reported[-1].done, reported[-1].total) == (10, 10)  # encoding and decoding
    assert [each.done for each in reported] == list(range(1, 11))
    noisy = interpolate(model, silent, between_images=True, **ends, frames=3, steps=20, method="ddpm")
    assert noisy.settings["num_inference_steps"] == 11  # it begins half way up
    assert interpolate(model, silent, a=0, b=1, frames=2, steps=20).settings["num_inference_steps"] < 20
    with pytest.raises(UserError, match="Second image"):
        interpolate(model, silent, between_images=True, a=ends["a"], b=None, frames=3, steps=5)
    with pytest.raises(UserError, match="Frames: given 17"):
        interpolate(model, silent, a=0, b=1, frames=17, steps=5)


def test_inpainting_keeps_unpainted_pixels(model):
    image, mask = Image.new("L", (8, 8), 200), Image.new("L", (8, 8))
    mask.paste(255, (0, 4, 8, 8))
    made = inpaint(model, silent, image=image, mask=mask, variants=2, steps=3, seed=0)
    kept = [each.crop((0, 0, 8, 4)).tobytes() for each in made.images]
    assert kept == [image.crop((0, 0, 8, 4)).tobytes()] * 2
    assert made.images[0].tobytes() != made.images[1].tobytes()
    with pytest.raises(UserError, match="Mask"):
        inpaint(model, silent, image=image, mask=Image.new("L", (8, 8)), variants=2, steps=3, seed=0)
    with pytest.raises(UserError, match="Image"):
        inpaint(model, silent, image=None, mask=mask, variants=2, steps=3, seed=0)
