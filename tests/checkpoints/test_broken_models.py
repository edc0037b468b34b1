"""Models that make no sense are refused by every program, before memory is taken for them; no image is black."""

import json
import os
import random
import sys
import time
import tracemalloc

import processes
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

import ddpm_hf
from ddpm_hf.checkpoints.find import check_pipeline, load_pipeline
from ddpm_hf.checkpoints.format import INDEX, MANIFEST, SCHEDULER_CONFIG, UNET_CONFIG, write_manifest
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import pipeline_package
from ddpm_hf.runtime.errors import UserError

NUM_MUTATIONS = int(os.environ.get("DDPM_HF_MUTATIONS", "20"))
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, file, **values):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | values))


def break_weights(folder, value):
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_out.bias"][0] = value
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def refused(folder, *words):
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_pipeline(folder)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 20


NETWORKS = {
    "sample_size": [0, -8, 10**9, "8", [8], [8, "8"], [8, 8, 8], 8.5, True],
    "in_channels": [0, 10**9, "1", None],
    "out_channels": [0, 10**9],
    "block_out_channels": [[], [0, 8], [8, 10**9], "8", [8, 16] * 1000, 7],
    "down_block_types": [[], ["DownBlock2D"] * 10**6, "DownBlock2D", [1, 2]],
    "up_block_types": [["UpBlock2D"] * 17],
    "layers_per_block": [0, 10**6, "2", 1.5],
    "norm_num_groups": [0, -1, "4", 10**9],
    "norm_eps": [-1.0, "1e-5", float("nan")],
    "dropout": [-0.1, 1.0, "no"],
    "time_embedding_type": ["none", 3],
    "time_embedding_dim": [0, 10**9],
    "freq_shift": ["1", None],
    "attention_head_dim": [0, -8, "8"],
    "num_class_embeds": [0, 10**9, "ten"],
    "num_train_timesteps": [0, 10**9],
}

SCHEDULERS = {
    "num_train_timesteps": [0, -1, 10**9, "1000", 10.5, None],
    "beta_start": [-0.1, 1.0, 2.0, "0.1", float("nan")],
    "beta_end": [-0.1, 1.0, float("inf"), None],
    "trained_betas": [[], [2.0], [-0.5] * 10, [float("nan")] * 10, "betas", {"0": 1}],
    "prediction_type": ["noise", "eps", 3, None],
    "variance_type": ["small", 1],
    "clip_sample_range": [0, -1.0, "1"],
    "timestep_spacing": ["even", 3],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_makes_no_sense_names_file_field_and_value(model, name):
    for value in NETWORKS[name]:
        change(model, UNET_CONFIG, **{name: value})
        refused(model, UNET_CONFIG, name, "given", "allowed")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_makes_no_sense_names_file_field_and_value(model, name):
    for value in SCHEDULERS[name]:
        change(model, SCHEDULER_CONFIG, **{name: value})
        refused(model, SCHEDULER_CONFIG, name, "given", "allowed")


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        (UNET_CONFIG, {"block_out_channels": [8192, 8192]}, "parameters"),
        (UNET_CONFIG, {"layers_per_block": 64}, "parameters"),
        (UNET_CONFIG, {"block_out_channels": [6, 6]}, UNET_CONFIG),
        (UNET_CONFIG, {"down_block_types": ["DownBlock2D"]}, UNET_CONFIG),
        (UNET_CONFIG, {"down_block_types": ["NoBlock", "DownBlock2D"]}, UNET_CONFIG),
        (UNET_CONFIG, {"act_fn": "nothing"}, UNET_CONFIG),
        (SCHEDULER_CONFIG, {"beta_schedule": "nothing"}, "nothing"),
        (SCHEDULER_CONFIG, {"beta_schedule": "linear", "beta_start": 0, "beta_end": 0}, "betas"),
        (INDEX, {"unet": ["diffusers", "UNet1DModel"]}, "unet"),
        (INDEX, {"unet": "UNet2DModel"}, "unet"),
        (INDEX, {"unet": None}, "unet"),
        (INDEX, {"scheduler": ["my_own", "Scheduler"]}, "scheduler"),
        (INDEX, {"scheduler": ["diffusers", "NoScheduler"]}, "NoScheduler"),
    ],
)
def test_parts_that_do_not_fit_are_refused(model, file, values, words):
    change(model, file, **values)
    refused(model, words)


@pytest.mark.parametrize("file", [INDEX, UNET_CONFIG, SCHEDULER_CONFIG])
@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", "[" * 100_000, '{"a":' * 100_000], ids=lambda text: text[:5]
)
def test_a_file_that_is_no_mapping_is_named(model, file, content):
    (model / file).write_text(content)
    refused(model, file)


@pytest.mark.parametrize("file", [UNET_CONFIG, SCHEDULER_CONFIG, WEIGHTS])
def test_a_file_that_has_no_end_or_no_content_is_named(model, file):
    (model / file).unlink()
    refused(model, file.rpartition("/")[2].partition(".")[0])
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(model / file)
        refused(model, file, "regular")
        (model / file).unlink()


def test_shards_lead_nowhere_else(model):
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": "../../../etc/passwd"}}))
    refused(model, "weight_map", "passwd")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(model, value):
    break_weights(model, value)
    refused(model, "conv_out.bias")
    with pytest.raises(UserError, match=r"conv_out\.bias"):
        check_pipeline(model, weights=True)


def test_what_is_refused_takes_no_memory(model):
    change(model, SCHEDULER_CONFIG, num_train_timesteps=10**9)
    tracemalloc.start()
    refused(model, "num_train_timesteps")
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


def test_a_published_pipeline_is_as_the_run_wrote_it(run):
    assert (run / MANIFEST).is_file()
    load_pipeline(run)
    whole = (run / UNET_CONFIG).read_text()
    (run / UNET_CONFIG).write_text(whole + " ")
    refused(run, UNET_CONFIG, MANIFEST)
    (run / UNET_CONFIG).write_text(whole)
    raw = bytearray((run / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (run / WEIGHTS).write_bytes(raw)
    refused(run, WEIGHTS, "changed")
    (run / MANIFEST).unlink()  # as the first version left it
    load_pipeline(run)


def test_honest_models_still_load(tmp_path):
    """Of diffusers, with parts that ours do not have, and with defaults."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    models = [
        ({}, DDPMScheduler()),
        ({"time_embedding_type": "fourier", "freq_shift": 8}, DDPMScheduler(rescale_betas_zero_snr=True)),
        ({"sample_size": (8, 16), "class_embed_type": "timestep"}, DDIMScheduler(beta_schedule="squaredcos_cap_v2")),
    ]
    for number, (options, scheduler) in enumerate(models):
        folder, network = tmp_path / str(number), UNet2DModel(block_out_channels=(32, 32), **blocks, **options)
        ddpm_hf.DDPMPipeline(network, scheduler).save_pretrained(folder)
        load_pipeline(folder)


def test_a_stock_network_that_divides_by_zero_is_an_error():
    """Two channels have one frequency, whose distance from the next one is computed all the same."""
    for channels in (2, 3):
        with pytest.raises(ValueError, match="freq_shift"):
            tiny.pipeline(block_out_channels=(channels, channels), norm_num_groups=1, freq_shift=1)


def test_a_scheduler_that_makes_no_sense_is_an_error():
    network = tiny.pipeline().unet
    for options in ({"variance_type": "small"}, {"prediction_type": "noise"}, {"trained_betas": [0.1, 1.5]}):
        # in tests the shape checker is first, with an error of its own
        with pytest.raises((ValueError, TypeError), match=next(iter(options)).removeprefix("trained_")):
            ddpm_hf.DDPMPipeline(network, DDPMScheduler(**options))
    with pytest.raises(ValueError, match="betas"):
        ddpm_hf.DDPMPipeline(network, DDIMScheduler(beta_start=-0.5, beta_end=0.5))


def test_an_image_that_is_not_finite_is_no_picture():
    pipeline = tiny.pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="2 of 2"):
        pipeline(batch_size=2, num_inference_steps=2)
    assert pipeline(num_inference_steps=2, output_type="pt").images.isnan().all()


def test_a_broken_model_is_not_pushed(run):
    (run / MANIFEST).unlink()
    settings = HubConfig(repo_id="ada/broken")
    break_weights(run, torch.nan)
    with pytest.raises(UserError, match=r"conv_out\.bias"):
        pipeline_package(run, settings, "ada/broken", run)
    change(run, UNET_CONFIG, layers_per_block=10**6)
    with pytest.raises(UserError, match="layers_per_block"):
        pipeline_package(run, settings, "ada/broken", run)


PROGRAMS = {
    "generate": ("pipelines/generate.py", "--model", "{model}", "--num_samples", "1"),
    "interpolate": ("pipelines/interpolate.py", "--model", "{model}", "--seeds", "1", "2"),
    "eval": ("training/eval.py", "--config", "{model}/config.yaml", "--model", "{model}"),
    "app": ("pipelines/app.py", "--model", "{model}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_refuses_a_broken_model(run, tmp_path, program):
    file, *arguments = PROGRAMS[program]
    (run / MANIFEST).unlink()
    for damage in (
        lambda: break_weights(run, torch.nan),
        lambda: change(run, SCHEDULER_CONFIG, num_train_timesteps=10**9),
    ):
        damage()
        given = [each.format(model=run) for each in arguments]
        done = processes.run(sys.executable, processes.REPOSITORY / file, *given, cwd=tmp_path)
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert "conv_out.bias" in done.stderr or "num_train_timesteps" in done.stderr


VALUES = [
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "1",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    "\x1b[2J\n",
    "\ud800",
]


@pytest.mark.parametrize("file", [INDEX, UNET_CONFIG, SCHEDULER_CONFIG, MANIFEST])
def test_whatever_stands_in_a_file_it_is_refused_in_one_line_or_loaded(run, file):
    """Values replaced, keys lost, bytes changed: never an error of another kind."""
    whole, chance = (run / file).read_bytes(), random.Random(file)
    for number in range(NUM_MUTATIONS):
        if number % 2:
            values = json.loads(whole)
            inner = values["files"] if file == MANIFEST and chance.random() < 0.8 else values
            key = chance.choice(sorted(inner))
            inner[chance.choice([key, "/dev/zero", "../up"])] = chance.choice(VALUES)
            if chance.random() < 0.2:
                inner.pop(key, None)
            content = json.dumps(values).encode()
        else:
            place = chance.randrange(len(whole))
            content = whole[:place] + chance.randbytes(chance.randrange(3)) + whole[place + chance.randrange(3) :]
        (run / file).write_bytes(content)
        if file != MANIFEST:
            write_manifest(run)  # as one who means harm would
        try:
            load_pipeline(run)
        except UserError as error:
            assert "\n" not in str(error), content
