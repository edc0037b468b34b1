"""The perceptual loss with tiny real backbones in local folders."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python
from pydantic import ValidationError
from torch import nn

from ddpm_hf.config.loss import PerceptualConfig
from ddpm_hf.losses.perceptual import LpipsDistance, PerceptualLoss
from ddpm_hf.runtime.errors import UserError


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.25], "image_processor_type": "BitImageProcessor"}'
    )
    return str(folder)


def perceptual(backbone: str, channels: int = 3, size: int = 16, **options: Any) -> PerceptualLoss:
    return PerceptualLoss(PerceptualConfig(weight=1, backbone=backbone, **options), channels, (size, size))


def images(channels: int = 3, size: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    predicted, real = (torch.rand(4, channels, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return predicted, real, torch.arange(4)


@pytest.mark.parametrize("size", [8, 32, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_kind_have_a_distance(resnet: str, channels: int, size: int) -> None:
    loss = perceptual(resnet, channels, size)
    predicted, real, timesteps = images(channels, size)
    distance = loss(predicted, real, timesteps)
    assert distance.shape == (4,)
    assert (distance > 0).all()
    torch.testing.assert_close(loss(real, real, timesteps), torch.zeros(4))
    torch.testing.assert_close(loss(real, predicted, timesteps), distance)
    nearer = loss(real + 0.1 * (predicted - real), real, timesteps)
    assert (nearer < distance).all()


def test_grayscale_is_three_equal_channels(resnet: str) -> None:
    predicted, real, timesteps = images(1)
    as_colour = perceptual(resnet)(predicted.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1), timesteps)
    torch.testing.assert_close(perceptual(resnet, 1)(predicted, real, timesteps), as_colour)


def test_distance_is_the_squared_difference_of_unit_features(resnet: str) -> None:
    """Written out for one stage: 2 - 2 cos of the angle between the features of each place."""
    from transformers import ResNetModel

    predicted, real, timesteps = images(size=64)
    distance = perceptual(resnet, size=64, stages=[2])(predicted, real, timesteps)
    network = ResNetModel.from_pretrained(resnet).eval()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        one, other = (network((each / 2 + 0.5 - mean) / std).last_hidden_state for each in (predicted, real))
    expected = (2 - 2 * torch.cosine_similarity(one, other, dim=1)).mean((1, 2))
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-6)


def test_stages_are_averaged(resnet: str) -> None:
    each = [perceptual(resnet, stages=[stage])(*images()) for stage in (0, 1, 2)]
    torch.testing.assert_close(perceptual(resnet, stages=[0, 1, 2])(*images()), torch.stack(each).mean(0))
    torch.testing.assert_close(perceptual(resnet)(*images()), torch.stack(each[1:]).mean(0))


def test_own_preprocessing_of_a_backbone_is_used(dinov2: str) -> None:
    loss = perceptual(dinov2, image_size=28)
    (distance,) = loss._hidden
    torch.testing.assert_close(distance.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(distance.std.flatten(), torch.tensor([0.5, 0.5, 0.25]))
    assert (loss(*images()) > 0).all()


def test_gradient_reaches_the_prediction_and_never_the_backbone(resnet: str) -> None:
    loss = perceptual(resnet)
    predicted, real, timesteps = images()
    with torch.autocast("cpu", torch.bfloat16):
        distance = loss(predicted.requires_grad_(), real, timesteps)
    assert distance.dtype == torch.float32
    distance.sum().backward()
    assert predicted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss._hidden[0].parameters())


def test_backbone_is_not_saved_counted_or_trained_but_follows_to_the_device(resnet: str) -> None:
    loss = perceptual(resnet).train()
    (backbone,) = loss._hidden
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    holder = nn.ModuleList([loss]).to("meta")
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert not holder.state_dict()


def refusal(backbone: str, *shape: int, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        perceptual(backbone, *shape, **options)
    return str(refused.value)


def test_what_cannot_be_used_is_found_at_construction(resnet: str, dinov2: str, tmp_path: Path) -> None:
    assert "cannot be loaded" in refusal(str(tmp_path / "nothing"))
    assert "cannot be loaded" in refusal("nobody/has-this-model")
    assert "given [3]; allowed: 0 to 2" in refusal(resnet, stages=[3])
    assert "given 4; allowed: 1 or 3" in refusal(resnet, 4)
    with pytest.raises(UserError, match="needs a backbone"):
        PerceptualLoss(PerceptualConfig(), 3, (16, 16))


def test_images_that_a_backbone_does_not_take_are_found_at_construction(dinov2: str) -> None:
    assert "does not take images of 5x5 pixels" in refusal(dinov2, image_size=5)


def test_models_that_are_no_backbone_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **tiny)).save_pretrained(tmp_path)
    assert "is a bert; allowed: image backbones" in refusal(str(tmp_path))


def test_a_folder_without_all_weights_is_refused(resnet: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((Path(resnet) / "config.json").read_bytes())
    weights = load_file(Path(resnet) / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "stages.1" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert "its features would be random" in refusal(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_lpips_without_torchvision_is_refused() -> None:
    assert "lpips-alex needs more packages: pip install torchmetrics torchvision" in refusal("lpips-alex")


def test_backbones_without_transformers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "needs transformers" in refusal("microsoft/resnet-18")


def test_lpips_distance_is_one_number_per_image() -> None:
    class Network(nn.Module):  # torchmetrics' returns (batch, 1, 1, 1)
        def forward(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
            return (images - references).square().mean((1, 2, 3), keepdim=True)

    predicted, real, _ = images()
    distance = LpipsDistance(Network())(predicted, real)
    torch.testing.assert_close(distance, (predicted - real).square().mean((1, 2, 3)))


def test_nothing_is_imported_until_it_is_used() -> None:
    code = (
        "import sys, ddpm_hf.losses; print(*{m.split('.')[0] for m in sys.modules} & {'transformers', 'torchmetrics'})"
    )
    assert run_python(code, check=True).stdout.strip() == ""


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"weight": 1}, {"backbone"}),
        ({"weight": -1, "image_size": 0, "stages": [], "bakbone": "x"}, {"weight", "image_size", "stages", "bakbone"}),
        ({"backbone": "lpips-resnet"}, {"backbone"}),
        ({"backbone": "lpips-vgg", "stages": [1]}, {"stages"}),
        ({"backbone": "microsoft/resnet-18", "stages": [2, 1]}, {"stages"}),
    ],
)
def test_bad_options_are_refused_at_once(values: dict[str, Any], fields: set[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        PerceptualConfig.model_validate(values)
    assert {error["loc"][0] for error in refused.value.errors()} == fields


def test_default_is_off() -> None:
    assert PerceptualConfig().weight == 0
