"""DDPMUNet and diffusers.UNet2DModel: the same keys, shapes, outputs, gradients and files."""

import warnings

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from ddpm_hf.models import DDPMUNet
from ddpm_hf.models.fast import accelerate, restore

D, AD, U, AU = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
PAPER = {
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "attention_head_dim": None,
}


def levels(attention: str, channels: tuple[int, ...], **more: object) -> dict:
    """`attention`: one letter per level, finest first, "a" with attention."""
    return {
        "block_out_channels": channels,
        "down_block_types": tuple(AD if letter == "a" else D for letter in attention),
        "up_block_types": tuple(AU if letter == "a" else U for letter in reversed(attention)),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "sample_size": 16,
    } | more


CONFIGURATIONS = {
    "ddpm-cifar10-32": levels("-a--", (16, 32, 32, 32), layers_per_block=2, dropout=0.1, sample_size=32, **PAPER),
    "ddpm-celebahq-256": levels("----a-", (8, 8, 16, 16, 32, 32), layers_per_block=2, sample_size=32, **PAPER),
    "ddpm_config": levels("---a-", (16, 16, 32, 32, 64), layers_per_block=3, sample_size=32, **PAPER),
    "digits": levels("-a-", (16, 32, 32), in_channels=1, out_channels=1, sample_size=8, **PAPER),
    "attention at level 0": levels("a-", (16, 32), sample_size=8),
    "attention at level 1": levels("-a", (16, 32)),
    "attention everywhere": levels("aaa", (16, 16, 32), sample_size=8),
    "attention nowhere": levels("--", (16, 32), add_attention=False),
    "attention only in the middle": levels("--", (16, 32)),
    "attention down but not up": levels("-a", (16, 32), up_block_types=(U, U)),
    "attention up but not down": levels("--", (16, 32), up_block_types=(AU, U)),
    "one level": levels("a", (16,), sample_size=8),
    "two residual blocks": levels("-a", (16, 32), layers_per_block=2),
    "three residual blocks": levels("-a", (16, 32), layers_per_block=3),
    "four residual blocks": levels("-a", (16, 32), layers_per_block=4),
    "grayscale": levels("-a", (16, 32), in_channels=1, out_channels=1),
    "four channels": levels("-a", (16, 32), in_channels=4, out_channels=4),
    "six channels in, three out": levels("-a", (16, 32), in_channels=6, out_channels=3),
    "wide": levels("-a", (16, 32), sample_size=(8, 24)),
    "tall": levels("-a-", (16, 32, 32), sample_size=(32, 8), **PAPER),
    "classes": levels("-a", (16, 32), num_class_embeds=10),
    "symmetric padding": levels("---", (16, 32, 32), downsample_padding=1),
    "asymmetric padding": levels("---", (16, 32, 32), downsample_padding=0),
    "cosines first": levels("-a", (16, 32), flip_sin_to_cos=True, freq_shift=0),
    "sines first": levels("-a", (16, 32), flip_sin_to_cos=False, freq_shift=1),
    "one head": levels("-a", (16, 32), attention_head_dim=None),
    "heads of 16": levels("aa", (16, 32), attention_head_dim=16, sample_size=8),
    "heads that leave a rest": levels("aa", (16, 32), attention_head_dim=12, sample_size=8),
    "no middle": levels("-a", (16, 32), mid_block_type=None),
    "heads of 4": levels("-a", (16, 32), attention_head_dim=4),
    "small norm_eps": levels("-a", (16, 32), norm_eps=1e-6),
    "large norm_eps": levels("-a", (16, 32), norm_eps=1e-2),
    "other groups in the middle": levels("-a", (16, 32), attn_norm_num_groups=4),
    "own time dimension": levels("-a", (16, 32), time_embedding_dim=40),
    "input in [0, 1]": levels("-a", (16, 32), center_input_sample=True),
    "odd embedding": levels("--", (15, 30), norm_num_groups=5, add_attention=False),
    "block types of 2022": levels("-a", (16, 32), down_block_types=("UNetRes" + D, "UNetRes" + AD)),
}


def example(config: dict, batch: int = 2) -> dict:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    inputs = {
        "sample": torch.randn(batch, config.get("in_channels", 3), height, width),
        "timestep": torch.randint(0, 1000, (batch,)),
    }
    if "num_class_embeds" in config:
        inputs["class_labels"] = torch.randint(0, config["num_class_embeds"], (batch,))
    return inputs


def assert_same(ours: torch.Tensor, stock: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, stock, rtol=0, atol=tolerance * stock.abs().max().item())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_weights_same_network(name: str) -> None:
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]
    stock, ours = UNet2DModel(**config).eval(), DDPMUNet(**config).eval()
    shapes = {key: value.shape for key, value in stock.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes

    ours.load_state_dict(stock.state_dict())
    inputs = example(config)
    expected = stock(**inputs).sample
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    gradients = {key: parameter.grad for key, parameter in stock.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for change in (accelerate, restore):  # the fast layers, then the plain ones
        change(ours)
        with ours.prepacked(), torch.no_grad():
            for _ in range(2):  # its weights laid out, and used again
                assert_same(ours(**inputs).sample, expected, 1e-5)
        result = ours(**inputs).sample
        assert_same(result, expected, 1e-5)
        ours.zero_grad()
        (result * direction).sum().backward()
        for key, parameter in ours.named_parameters():
            # a bias that a normalisation or softmax takes out again has gradient zero but for rounding
            tolerance = 1e-4 * gradients[key].abs().max() + 1e-6 * largest
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=0, atol=tolerance.item(), msg=key)


def test_ours_loads_into_stock() -> None:
    config = CONFIGURATIONS["ddpm-cifar10-32"]
    ours, stock = DDPMUNet(**config, initialization="pytorch").eval(), UNet2DModel(**config).eval()
    stock.load_state_dict(ours.state_dict())
    inputs = example(config)
    assert_same(ours(**inputs).sample, stock(**inputs).sample, 1e-5)


@pytest.fixture
def no_word_from_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a warning of diffusers, which goes to its logger, an error."""

    def refuse(message: str, *args: object, **kwargs: object) -> None:
        raise AssertionError(message)

    for module in ("configuration_utils", "models.modeling_utils"):
        monkeypatch.setattr(logging.get_logger(f"diffusers.{module}"), "warning", refuse)


@pytest.mark.usefixtures("no_word_from_diffusers")
@pytest.mark.parametrize("name", ["ddpm-cifar10-32", "ddpm_config", "classes", "wide"])
def test_files_are_interchangeable(name: str, tmp_path) -> None:
    config = CONFIGURATIONS[name]
    ours = DDPMUNet(**config, initialization="pytorch").eval()
    ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = UNet2DModel.from_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    again = DDPMUNet.from_pretrained(tmp_path / "stock")
    inputs = example(config)
    assert_same(stock(**inputs).sample, ours(**inputs).sample, 1e-5)
    torch.testing.assert_close(again(**inputs).sample, ours(**inputs).sample, rtol=0, atol=0)
    reloaded = DDPMUNet.from_pretrained(tmp_path / "ours")
    assert reloaded.config.initialization == "pytorch"


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")  # noqa: PLW2901
        renamed[key] = value
    return renamed


def test_key_names_of_2022(tmp_path) -> None:
    config = CONFIGURATIONS["ddpm-cifar10-32"]
    stock = UNet2DModel(**config).eval()
    state = old_names(stock.state_dict())
    assert any(key.endswith("proj_attn.weight") for key in state)
    inputs = example(config)
    expected = stock(**inputs).sample

    ours = DDPMUNet(**config).eval()
    ours.load_state_dict(state)
    assert_same(ours(**inputs).sample, expected, 1e-5)

    stock.save_pretrained(tmp_path, safe_serialization=False)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    loaded = DDPMUNet.from_pretrained(tmp_path, use_safetensors=False)
    assert_same(loaded(**inputs).sample, expected, 1e-5)


def test_from_stock_shares_the_parameters() -> None:
    config = CONFIGURATIONS["one head"]
    stock = UNet2DModel(**config).train()
    stock.conv_in.requires_grad_(False)
    ours = DDPMUNet.from_stock(stock)
    assert ours.training
    for key, parameter in stock.named_parameters():
        assert ours.get_parameter(key) is parameter
    assert not ours.conv_in.weight.requires_grad
    inputs = example(config)
    stock.eval(), ours.eval()
    with torch.no_grad():
        torch._foreach_mul_(list(stock.parameters()), 1.1)
    assert_same(ours(**inputs).sample, stock(**inputs).sample, 1e-5)


def test_autocast_agrees_with_stock() -> None:
    torch.manual_seed(0)
    config = levels("-a", (32, 64), sample_size=32, **PAPER)
    stock = UNet2DModel(**config).eval()
    ours = DDPMUNet.from_stock(stock)
    inputs = example(config, batch=4)
    exact = stock(**inputs).sample
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(network(**inputs).sample - exact).std() / exact.std() for network in (ours, stock)]
    assert errors[0] < 1.2 * errors[1] < 0.02
