"""What diffusers models do, ours does: and it begins as the paper's does."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput

from ddpm_hf.config.model import ModelConfig
from ddpm_hf.models import DDPMUNet, build_network
from ddpm_hf.models.layers.attention import SelfAttentionBlock, attend

TINY = ModelConfig(
    image_size=16,
    hidden_channels=16,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    num_res_blocks=1,
    norm_groups=8,
)


def network(**changes: object) -> DDPMUNet:
    torch.manual_seed(0)
    return build_network(TINY.model_copy(update={"initialization": "pytorch", **changes}))


def images(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 16, generator=generator), torch.arange(batch) * 100


def loss_of(unet: DDPMUNet) -> torch.Tensor:
    return unet(*images()).sample.square().mean()


def gradients_of(unet: DDPMUNet) -> list[torch.Tensor]:
    torch.manual_seed(5)
    unet.zero_grad()
    loss_of(unet).backward()
    return [parameter.grad for parameter in unet.parameters()]


def test_paper_network_has_the_paper_number_of_parameters() -> None:
    with torch.device("meta"):
        unet = build_network(ModelConfig(channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_levels=(1,)))
    assert unet.num_parameters() == 35_746_307


def test_a_configuration_expresses_the_heads_and_the_middle_of_stock() -> None:
    config = ModelConfig(attention_head_dim=48, mid_block_type=None)
    with torch.device("meta"):
        unet = build_network(config)
        stock = UNet2DModel.from_config({**unet.config, "_class_name": "UNet2DModel"})
    assert unet.mid_block is None and unet.config.attention_head_dim == 48
    assert {name: each.shape for name, each in unet.state_dict().items()} == {
        name: each.shape for name, each in stock.state_dict().items()
    }
    # of a network without attention, any head
    assert ModelConfig(attention_head_dim=9999, attention_levels=(), mid_block_type=None).attention_levels == ()


@pytest.mark.parametrize("size", [8, 16])
def test_first_loss_of_noise_prediction_is_one(size: int) -> None:
    torch.manual_seed(0)
    unet = build_network(TINY.model_copy(update={"image_size": size}))
    noise = torch.randn(128, 3, size, size)
    loss = (unet(torch.randn_like(noise), torch.randint(0, 1000, (128,))).sample - noise).square().mean()
    assert abs(loss.item() - noise.square().mean().item()) < 1e-3
    assert abs(loss.item() - 1) < 0.02


def test_initialisation_is_uniform_fan_average_with_zero_bias() -> None:
    unet = build_network(TINY.model_copy(update={"hidden_channels": 64}))
    weight = unet.down_blocks[1].resnets[0].conv1.weight  # 64 -> 128 channels
    limit = (6 / (9 * 64 + 9 * 128)) ** 0.5
    assert 0.99 * limit < weight.abs().max() <= limit
    assert abs(weight.std().item() / (limit / 3**0.5) - 1) < 0.02
    for name, parameter in unet.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    almost_zero = (unet.conv_out, unet.mid_block.resnets[0].conv2, unet.mid_block.attentions[0].to_out[0])
    assert all(0 < layer.weight.abs().max() < 1e-4 for layer in almost_zero)


def test_output_forms() -> None:
    unet = network().eval()
    output = unet(*images())
    assert isinstance(output, UNet2DOutput)
    (plain,) = unet(*images(), return_dict=False)
    assert plain.shape == (3, 3, 16, 16)
    torch.testing.assert_close(plain, output.sample, rtol=0, atol=0)


@pytest.mark.parametrize(
    "timestep", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7, 7]), torch.tensor(7.0)]
)
def test_one_timestep_or_one_each(timestep) -> None:
    unet = network().eval()
    sample, _ = images()
    expected = unet(sample, torch.full((3,), 7)).sample
    torch.testing.assert_close(unet(sample, timestep).sample, expected, rtol=0, atol=0)


def test_input_is_left_alone() -> None:
    unet = network()
    sample, timestep = images()
    before = sample.clone()
    unet(sample, timestep).sample.sum().backward()
    torch.testing.assert_close(sample, before, rtol=0, atol=0)


def test_each_image_is_computed_alone() -> None:
    unet = network().eval()
    sample, timestep = images()
    together = unet(sample, timestep).sample
    alone = torch.cat([unet(sample[i : i + 1], timestep[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_channels_last_input_gives_the_same() -> None:
    unet = network().eval()
    sample, timestep = images()
    other = sample.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unet(other, timestep).sample, unet(sample, timestep).sample, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    unet = network(dropout=0.3).train()
    expected = gradients_of(unet)
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    for result, gradient in zip(gradients_of(unet), expected, strict=True):
        assert torch.equal(result, gradient)
    copy.deepcopy(unet)
    pickle.loads(pickle.dumps(unet))
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


def saved_bytes(unet: DDPMUNet) -> int:
    """Bytes that autograd keeps from forward to backward, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(unet)
    total = sum(storage.nbytes() for storage in storages.values())
    loss.backward()
    return total


def test_gradient_checkpointing_keeps_at_most_two_fifths() -> None:
    unet = network(num_res_blocks=2, dropout=0.1).train()
    whole = saved_bytes(unet)
    kept_inputs: list[torch.Tensor] = []

    def record(layer, *args):
        kept_inputs.extend(argument for argument in args if isinstance(argument, torch.Tensor))
        return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)

    unet.enable_gradient_checkpointing(record)
    outside = saved_bytes(unet)
    inputs = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept_inputs}
    assert outside + sum(inputs.values()) < 0.4 * whole


def test_deepcopy_and_pickle() -> None:
    unet = network().eval()
    expected = unet(*images()).sample
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        torch.testing.assert_close(twin(*images()).sample, expected, rtol=0, atol=0)
        assert twin.config == unet.config


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_moves(dtype: torch.dtype) -> None:
    unet = network().eval()
    expected = unet(*images()).sample
    sample, timestep = images()
    result = unet.to(dtype)(sample.to(dtype), timestep).sample
    assert result.dtype == dtype
    error = (result - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float64 else 0.05)


def test_meta_device_takes_no_memory_and_loads() -> None:
    unet = network().eval()
    with torch.device("meta"):
        empty = DDPMUNet.from_config(unet.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not list(empty.buffers())
    assert empty(torch.empty(2, 3, 16, 16, device="meta"), 5).sample.is_meta
    empty.load_state_dict(unet.state_dict(), assign=True)
    torch.testing.assert_close(empty.eval()(*images()).sample, unet(*images()).sample, rtol=0, atol=0)
    with init_empty_weights():
        assert next(DDPMUNet.from_config(unet.config).parameters()).is_meta


def test_device_map_with_weights_on_disk(tmp_path) -> None:
    unet = network().eval()
    expected = unet(*images()).sample
    names = [name for name, _ in unet.named_children()]
    device_map = {name: "disk" if name in ("up_blocks", "mid_block", "conv_norm_out") else "cpu" for name in names}
    spread = dispatch_model(copy.deepcopy(unet), device_map, main_device="cpu", offload_dir=tmp_path / "offload")
    assert next(spread.up_blocks.parameters()).is_meta
    torch.testing.assert_close(spread(*images()).sample, expected, rtol=0, atol=0)

    unet.save_pretrained(tmp_path / "saved")
    loaded = DDPMUNet.from_pretrained(tmp_path / "saved", device_map={"": "cpu"})
    torch.testing.assert_close(loaded(*images()).sample, expected, rtol=0, atol=0)


def test_attention_processor_is_a_function_of_query_key_value() -> None:
    unet = network().eval()
    expected = unet(*images()).sample
    seen = []

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen.append(query.shape)
        return attend(query, key, value)

    unet.set_attn_processor(spy)
    torch.testing.assert_close(unet(*images()).sample, expected, rtol=0, atol=0)
    assert len(seen) == sum(isinstance(module, SelfAttentionBlock) for module in unet.modules()) == 4
    with pytest.raises(ValueError, match="AttnProcessor2_0"):
        unet.set_attn_processor(AttnProcessor2_0())


def test_updates_in_place_are_seen_at_once() -> None:
    """As the optimiser and EMA make them: fused forms must not outlive the weights that they come from."""
    unet = network().eval()
    parameters = list(unet.parameters())
    others = [parameter.detach() * 0.5 for parameter in network(dropout=0.0).parameters()]
    with torch.no_grad():
        unet(*images())
        torch._foreach_lerp_(parameters, others, 0.7)
        for parameter in parameters:
            parameter.data.mul_(1.1)
        fresh = DDPMUNet.from_config(unet.config).eval()
        fresh.load_state_dict(unet.state_dict())
        torch.testing.assert_close(unet(*images()).sample, fresh(*images()).sample, rtol=0, atol=0)
