"""Training with every loss on: what each term reaches, that it resumes exactly, and that it costs nothing unused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline as StockPipeline
from safetensors.torch import load_file

from ddpm_hf.data import load_image_set
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep

ADVERSARIAL = (
    "loss_config.adversarial.weight=0.01",
    "loss_config.adversarial.hidden_channels=4",
    "loss_config.adversarial.start_step=1",
    "loss_config.adversarial.update_every=2",
)
LEARNED = ("model_config.variance_type=learned_range",)


@pytest.fixture
def all_on(resnet: str) -> tuple[str, ...]:
    """Every term that there is."""
    perceptual = ("loss_config.perceptual.weight=0.1", f"loss_config.perceptual.backbone={resnet}")
    return (*ADVERSARIAL, *LEARNED, *perceptual, "loss_config.loss_type=hybrid")


def train_step(config) -> TrainStep:
    images = load_image_set(config.dataset, config.model)
    return TrainStep(TrainState(config, Accelerator(cpu=True)), images, 6, load_perceptual(config))


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_every_term_is_logged_and_the_pipeline_is_stock(tiny, tmp_path, all_on):
    Trainer(tiny(*all_on, "logging.log_every=2")).train()
    names = {name for line in lines(tmp_path / "run") for name in line}
    assert {f"loss/{term}" for term in ("mse", "l1", "huber", "vlb", "perceptual", "adversarial")} <= names
    assert {f"adversary/{figure}" for figure in ("loss", "real", "fake", "penalty", "grad_norm")} <= names
    stock = StockPipeline.from_pretrained(tmp_path / "run")
    assert (stock.unet.config.in_channels, stock.unet.config.out_channels) == (1, 2)
    assert stock.scheduler.config.variance_type == "learned_range"
    assert stock(batch_size=1, num_inference_steps=20, output_type="np").images.shape == (1, 8, 8, 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning", "ignore:sampler:UserWarning")
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++", "unipc", "heun", "euler", "pndm"])
def test_every_sampler_takes_a_learned_variance(tiny, tmp_path, sampler):
    Trainer(tiny(*LEARNED, "training.num_steps=1", "training.preview_every=null")).train()
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "run")
    images = pipeline(batch_size=2, num_inference_steps=5, sampler=sampler, seeds=[1, 2], output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_resuming_with_every_term_is_exact(tiny, tmp_path, all_on):
    whole, half = tmp_path / "whole", tmp_path / "half"
    Trainer(tiny(*all_on, f"output_dir={whole}")).train()
    Trainer(tiny(*all_on, f"output_dir={half}")).train()
    Trainer(tiny(*all_on), resume=str(half / "checkpoints" / "step-4")).train()
    last = "checkpoints/step-6"
    expected = tensors(whole / last)
    assert any(name.startswith("adversary.safetensors:") for name in expected)
    torch.testing.assert_close(tensors(tmp_path / "run" / last), expected, rtol=0, atol=0)
    ours, theirs = lines(tmp_path / "run")[-1], lines(whole)[-1]
    clock = dict.fromkeys(("seconds", "images_per_second", "data_wait", "memory_gb"))
    assert ours | clock == theirs | clock


def test_parts_of_a_batch_make_the_same_game(tiny, all_on):
    updated = []
    for parts in (1, 4):
        config = tiny(*all_on, "model_config.dropout=0", f"training.gradient_accumulation_steps={parts}")
        subject = train_step(config)
        metrics = [subject.update(step).metrics for step in range(4)]
        updated.append([float(value) for step in metrics for name, value in step.items() if name != "data_seconds"])
    assert updated[1] == pytest.approx(updated[0], rel=1e-3, abs=1e-5)


def test_the_game_begins_and_is_trained_when_the_configuration_says(tiny):
    subject = train_step(tiny(*ADVERSARIAL))
    metrics = [subject.update(step).metrics for step in range(5)]
    assert ["loss/adversarial" in step for step in metrics] == [False, True, True, True, True]
    assert ["adversary/loss" in step for step in metrics] == [False, True, False, True, False]


def test_the_adversary_learns_but_not_from_the_network_s_loss(tiny):
    subject = train_step(tiny(*ADVERSARIAL))
    weights = {name: tensor.clone() for name, tensor in subject.state.discriminator.loss.state_dict().items()}

    def changed() -> bool:
        return any(
            not torch.equal(weights[name], now)
            for name, now in subject.state.discriminator.network.state_dict().items()
        )

    subject.update(0)
    subject.update(2)  # judged, but no step of its own
    assert not changed()
    subject.update(3)
    assert changed()


def test_what_judges_is_no_part_of_the_model(tiny, tmp_path, all_on):
    plain = train_step(tiny("loss_config.loss_type=hybrid", *LEARNED))
    judged = train_step(tiny(*all_on))
    assert len(judged.state.parameters) == len(plain.state.parameters)
    for before, after in zip(plain.state.parameters, judged.state.parameters, strict=True):
        assert torch.equal(before, after)  # nor does it change how the network begins


def test_a_game_may_begin_in_a_resumed_run_but_not_change_its_players(tiny, tmp_path):
    first, second = f"output_dir={tmp_path / 'first'}", f"output_dir={tmp_path / 'second'}"
    Trainer(tiny(first)).train()
    start = str(tmp_path / "first" / "checkpoints" / "step-4")
    Trainer(tiny(second, *ADVERSARIAL), resume=start).train()
    assert "adversary/loss" in lines(tmp_path / "second")[-1]
    with pytest.raises(UserError, match=r"loss_config.adversarial.num_levels: 2 → 1"):
        Trainer(tiny(second, *ADVERSARIAL, "loss_config.adversarial.num_levels=1"), resume="latest")


def test_an_adversary_that_is_not_finite_stops_the_run(tiny):
    subject = train_step(tiny(*ADVERSARIAL))
    subject.state.discriminator.loss.discriminator.conv_in.bias.data.fill_(torch.nan)
    before = {name: tensor.clone() for name, tensor in subject.state.network.state_dict().items()}
    with pytest.raises(FloatingPointError, match="the weights are unchanged"):
        subject.update(1)
    torch.testing.assert_close(subject.state.network.state_dict(), before, rtol=0, atol=0)


def test_a_missing_backbone_is_found_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        Trainer(tiny("loss_config.perceptual.weight=1", f"loss_config.perceptual.backbone={tmp_path}"))
    assert not (tmp_path / "run").exists()


def test_what_is_not_used_is_not_imported(tiny_yaml, tmp_path):
    code = f"""
import sys
from ddpm_hf.config import load_config
from ddpm_hf.training.trainer import Trainer
Trainer(load_config({str(tiny_yaml)!r}, ["output_dir={tmp_path / "run"}", "training.num_steps=1"])).train()
unused = ("losses.adversarial", "losses.perceptual")
assert not [name for name in unused if f"ddpm_hf.{{name}}" in sys.modules]
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_vlb_trains_the_variance_and_leaves_the_prediction(tiny):
    config = tiny(*LEARNED, "model_config.dropout=0")
    learned = train_step(config)
    plain = train_step(config.model_copy(update={"loss": config.loss.model_copy(update={"vlb_weight": 0.0})}))
    for subject in (learned, plain):
        subject.state.optimizer.zero_grad = lambda: None
        subject.update(0)
    for (name, ours), (_, without) in zip(
        learned.state.network.named_parameters(), plain.state.network.named_parameters(), strict=True
    ):
        if name == "conv_out.weight":
            torch.testing.assert_close(ours.grad[:1], without.grad[:1])
            assert ours.grad[1:].abs().max() > 0
            assert without.grad[1:].abs().max() == 0
