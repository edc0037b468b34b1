"""Runs that begin with the network of another pipeline."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import tiny as small
import torch
import yaml
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from ddpm_hf.checkpoints.find import load_pipeline
from ddpm_hf.checkpoints.format import Progress
from ddpm_hf.config import BenchmarkConfig, ModelConfig, load_config
from ddpm_hf.evaluation.plan import make_plan
from ddpm_hf.hub.card import make_card, split_card
from ddpm_hf.hub.model_info import gather_model_info
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.fine_tuning import Pretrained, find_source, follow, load_pretrained
from ddpm_hf.training.trainer import Trainer

STOCK = {"norm_eps": 1e-5, "downsample_padding": 1, "freq_shift": 0, "flip_sin_to_cos": True}


@pytest.fixture
def source(tmp_path) -> Path:
    """A stock pipeline for colour images of 8x8."""
    small.pipeline(10, in_channels=3, out_channels=3).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def tune(tiny, tmp_path):
    """A tiny run that begins with a pipeline, and follows it in all that `model_config` does not give."""

    def make(source, *overrides: str):
        file = tmp_path / "tune.yaml"
        file.write_text(json.dumps(tiny().to_dict() | {"model_config": {"pretrained": str(source)}}))
        return load_config(file, overrides)

    return make


def load(source, **given) -> Pretrained:
    return load_pretrained(ModelConfig(pretrained=str(source), **given), find_source(str(source)))


def test_a_run_begins_with_the_weights_and_the_architecture(tune, source):
    config = tune(source, "training.num_steps=2")
    trainer = Trainer(config)
    trainer._set_up()
    own = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    model = trainer.config.model
    assert (model.image_channels, model.hidden_channels, model.channel_multipliers) == (3, 8, (1, 2))
    assert model.beta_schedule == "cosine"
    assert model.pretrained_hash
    for network in (trainer.state.network, trainer.state.averages[0].network):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, own[name]), name
        saved = json.loads((source / "unet/config.json").read_text())
        assert {name: saved[name] for name in STOCK} == {name: network.config[name] for name in STOCK}


def test_a_run_trains_and_is_resumed_without_the_source(tune, source, tmp_path):
    config = tune(source, "training.num_steps=4")
    Trainer(config).train()
    straight = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    shutil.rmtree(tmp_path / "run")
    Trainer(tune(source, "training.num_steps=2")).train()
    shutil.rmtree(source)
    Trainer(tune(source, "training.num_steps=4"), "latest").train()
    resumed = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    stock = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run")
    assert stock.unet.config.norm_eps == 1e-5
    checkpoint = tmp_path / "run/checkpoints/step-4"
    assert Progress.read(checkpoint).config["model_config"]["pretrained_hash"]


def test_options_that_contradict_the_source_are_refused_at_once(source):
    with pytest.raises(UserError) as refused:
        load(source, hidden_channels=16, beta_schedule="linear", prediction_type="sample", image_size=16)
    text = str(refused.value)
    for words in ("hidden_channels is 8 there, given 16", 'beta_schedule is "cosine" there', "prediction_type"):
        assert words in text
    assert "image_size" not in text


@pytest.mark.parametrize(("channels", "gray"), [(3, False), (1, True)])
def test_gray_and_colour_change_into_each_other(tmp_path, channels, gray):
    """A gray image is a colour image of three equal channels, and the network's answer stays what it was."""
    pipeline = small.pipeline(10, in_channels=channels, out_channels=channels)
    pipeline.save_pretrained(tmp_path / "source")
    loaded = load(tmp_path / "source", image_channels=1 if channels == 3 else 3)
    other = small.pipeline(10, in_channels=4 - channels, out_channels=4 - channels).unet
    other.load_state_dict(loaded.weights)
    image, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    before = pipeline.unet(image.expand(-1, channels, -1, -1), t).sample
    after = other(image.expand(-1, 4 - channels, -1, -1), t).sample
    torch.testing.assert_close(after.mean(1), before.mean(1), rtol=1e-4, atol=1e-5)
    assert any("conv_in and conv_out" in change for change in loaded.changes)


def test_a_learned_variance_changes_with_the_channels(tmp_path):
    pipeline = small.pipeline(10, in_channels=3, out_channels=6)
    pipeline.scheduler.register_to_config(variance_type="learned_range")
    pipeline.save_pretrained(tmp_path / "source")
    own = pipeline.unet.conv_out.bias
    weights = load(tmp_path / "source", image_channels=1).weights
    torch.testing.assert_close(weights["conv_out.bias"], torch.stack([own[:3].mean(), own[3:].mean()]))


def test_classes_are_made_anew_and_begin_at_zero(tmp_path, source):
    loaded = load(source, num_classes=5)
    assert not loaded.weights["class_embedding.weight"].any()
    assert loaded.weights["class_embedding.weight"].shape[0] == 6
    small.pipeline(10, num_class_embeds=4).save_pretrained(tmp_path / "classes")
    kept = load(tmp_path / "classes")
    assert kept.model.num_classes == 3
    assert kept.weights["class_embedding.weight"].any()
    assert kept.changes == ()
    assert "class_embedding.weight" not in load(tmp_path / "classes", num_classes=None).weights


def test_another_size_works_where_the_levels_allow_it(source):
    loaded = load(source, image_size=24)
    assert loaded.model.image_size == 24
    assert any("24x24 pixels instead of 8x8" in change for change in loaded.changes)
    with pytest.raises(UserError, match="a multiple of 2"):
        load(source, image_size=25)


def test_averaged_weights_of_the_training_script_are_preferred(tmp_path):
    """Its checkpoint holds unet/, unet_ema/ with fields of its own, and no schedule; that lies above, once it ends."""
    checkpoint = tmp_path / "out/checkpoint-10"
    first, averaged = small.pipeline(10), small.pipeline(10)
    averaged.unet.conv_in.weight.data += 1
    first.unet.save_pretrained(checkpoint / "unet")
    averaged.unet.save_pretrained(checkpoint / "unet_ema")
    file = checkpoint / "unet_ema/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decay": 0.9999, "optimization_step": 10}))
    loaded = load(checkpoint, time_steps=77)
    assert torch.equal(loaded.weights["conv_in.weight"], averaged.unet.conv_in.weight)
    assert loaded.model.time_steps == 77  # as given, without a schedule
    assert any("unet_ema" in change for change in loaded.changes)
    assert any("no schedule" in change for change in loaded.changes)
    averaged.scheduler.save_pretrained(tmp_path / "out/scheduler")
    assert load(checkpoint).model.time_steps == 10


def test_a_ddim_pipeline_with_old_attention_names_and_shards_is_read(tmp_path):
    pipeline = small.pipeline(10)
    own = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    stock = diffusers.DDIMPipeline(
        pipeline.unet.to_stock(), DDIMScheduler(num_train_timesteps=10, beta_schedule="linear")
    )
    stock.unet.load_state_dict(own)
    folder = tmp_path / "ddim"
    stock.save_pretrained(folder, max_shard_size="20KB")
    assert list((folder / "unet").glob("*-00002-of-*"))
    assert all(torch.equal(tensor, own[name]) for name, tensor in load(folder).weights.items())
    stock.save_pretrained(tmp_path / "old")
    file = tmp_path / "old/unet/diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in load_file(file).items():
        renamed = name
        for new, before in names.items():
            renamed = renamed.replace(f".{new}.", f".{before}.")
        old[renamed] = tensor
    save_file(old, file, {"format": "pt"})
    assert all(torch.equal(tensor, own[name]) for name, tensor in load(tmp_path / "old").weights.items())


def test_a_pipeline_without_folders_is_read(hub, client, tmp_path, monkeypatch):
    """As google/ddpm-* are: the files of the network and the schedule lie beside model_index.json."""
    monkeypatch.setattr("ddpm_hf.checkpoints.fetch.HubClient", lambda: client)
    pipeline, folder = small.pipeline(10), tmp_path / "flat"
    pipeline.save_pretrained(folder)
    for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    hub.put("google/ddpm-tiny", {file.name: file.read_bytes() for file in folder.iterdir()})
    for source in (folder, "google/ddpm-tiny"):
        loaded = load(source)
        assert loaded.model.beta_schedule == "cosine"
        assert torch.equal(loaded.weights["conv_in.weight"], pipeline.unet.conv_in.weight)
        assert torch.equal(load_pipeline(source).unet.conv_in.weight, pipeline.unet.conv_in.weight)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path, source):
    UNet2DModel.from_pretrained(source / "unet").save_pretrained(source / "unet", safe_serialization=False)
    (source / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="use_safetensors=False") as refused:
        load(source)
    command = str(refused.value).partition('-c "')[2].rpartition('"')[0]
    exec(command)
    assert load(source).weights


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nothing"])
def test_a_source_that_is_missing_is_named_by_its_option(name):
    with pytest.raises(UserError, match=r"model_config\.pretrained: there is no folder"):
        find_source(name)


def test_a_schedule_that_cannot_be_trained_is_refused(source):
    file = source / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_schedule": "scaled_linear"}))
    with pytest.raises(UserError, match='beta_schedule "scaled_linear"'):
        load(source)


def test_frozen_weights_stay_and_carry_no_optimizer_state(tune, source, tmp_path):
    frozen = 'training.freeze=["down_blocks", "conv_*"]'
    Trainer(tune(source, "training.num_steps=2", frozen)).train()
    before = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith(("down_blocks", "conv_"))]
    state = load_file(tmp_path / "run/checkpoints/step-2/training_state/optimizer.safetensors")
    trained = [name for name in before if not name.startswith(("down_blocks", "conv_"))]
    assert len({key.partition(".")[0] for key in state}) == len(trained)
    Trainer(tune(source, "training.num_steps=4", frozen), "latest").train()
    with pytest.raises(UserError, match=r"training\.freeze"):
        Trainer(tune(source, "training.num_steps=6"), "latest")


def test_attention_and_normalisation_can_be_all_that_is_trained(tune, source, tmp_path):
    Trainer(tune(source, "training.num_steps=2", "training.freeze=all_but_attention_and_norms")).train()
    before = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attentions" in name or "norm" in name for name in changed)


@pytest.mark.parametrize(("pattern", "words"), [("[encoder]", "encoder matches no weight"), ('["*"]', "leave some")])
def test_freezing_nothing_or_everything_is_refused(tune, source, pattern, words):
    with pytest.raises(UserError, match=words):
        Trainer(tune(source, f"training.freeze={pattern}"))


def test_the_plan_says_what_is_taken_over_and_what_is_made_anew(tune, source):
    said = Trainer(tune(source, "model_config.num_classes=10", "model_config.image_size=16")).describe()
    assert str(source) in said
    assert "class_embedding is made anew for 10 classes" in said
    assert "16x16 pixels instead of 8x8" in said


def test_a_resumed_run_may_name_its_source_without_the_commit():
    before = ModelConfig(pretrained="ada/digits@" + "a" * 40, pretrained_hash="0", hidden_channels=64)
    assert follow(ModelConfig(pretrained="ada/digits"), before, set()).hidden_channels == 64
    with pytest.raises(UserError, match="hidden_channels is 64 there, given 32"):
        follow(ModelConfig(pretrained="ada/digits", hidden_channels=32), before, set())


def test_the_finished_pipeline_draws(tune, source, tmp_path):
    Trainer(tune(source, "training.num_steps=2")).train()
    assert load_pipeline(tmp_path / "run")(2, output_type="pt").images.shape == (2, 3, 8, 8)


def test_a_model_of_the_hub_is_recorded_with_its_commit_and_named_in_the_card(
    hub, client, tune, source, tmp_path, monkeypatch
):
    monkeypatch.setattr("ddpm_hf.checkpoints.fetch.HubClient", lambda: client)
    files = {file.relative_to(source).as_posix(): file.read_bytes() for file in source.rglob("*") if file.is_file()}
    hub.put("ada/colours", files)
    commit = hub.repo("ada/colours").branches["main"]
    Trainer(tune("ada/colours", "training.num_steps=2")).train()
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model_config"]
    assert recorded["pretrained"] == f"ada/colours@{commit}"
    hub.log.clear()
    Trainer(tune("ada/colours", "training.num_steps=4"), "latest").train()
    assert not hub.log  # a resumed run does not fetch it again
    run = tmp_path / "run"
    metadata, text = split_card(make_card(gather_model_info(run, run, "ada/mine", [])))
    assert metadata["base_model"] == "ada/colours"
    assert recorded["pretrained_hash"] in text


def test_an_evaluation_follows_the_run(tune, source, tmp_path):
    config = tune(source, "training.num_steps=2")
    Trainer(config).train()
    benchmark = {
        "n_samples": 8,
        "batch_size": 8,
        "num_inference_steps": 2,
        "features": "digits",
        "allow_few_samples": True,
    }
    evaluated = config.model_copy(update={"benchmark": BenchmarkConfig(**benchmark)})
    with pytest.raises(UserError) as refused:  # the features are of gray digits; the shapes fit
        make_plan(tmp_path / "run", evaluated)
    assert "takes images of 1 channel" in str(refused.value)
    assert "image_channels" not in str(refused.value)
