"""DDPMPipeline's call: what it draws, what it leaves as it was, and what it refuses."""

import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.models import DDPMUNet
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import SAMPLERS
from ddpm_hf.schedulers import DDPMScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own


def stock_unet(down="DownBlock2D", up="UpBlock2D"):
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=(down, down),
        up_block_types=(up, up),
    )


def test_stock_parts_become_ours_around_the_same_parameters():
    stock = stock_unet()
    pipeline = DDPMPipeline(stock, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert type(pipeline.unet) is DDPMUNet
    assert type(pipeline.scheduler) is DDPMScheduler
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipeline.unet.conv_in.weight is stock.conv_in.weight


def test_what_ours_cannot_express_stays_stock():
    stock, ddim = stock_unet("SkipDownBlock2D", "SkipUpBlock2D"), diffusers.DDIMScheduler(num_train_timesteps=4)
    pipeline = DDPMPipeline(stock, ddim)
    assert pipeline.unet is stock
    assert pipeline.scheduler is ddim


def test_agrees_with_the_stock_pipeline(tiny_pipeline):
    ours = tiny_pipeline(time_steps=20)
    stock_unet = diffusers.UNet2DModel.from_config(dict(ours.unet.config) | {"_class_name": "UNet2DModel"})
    stock_unet.load_state_dict(ours.unet.state_dict())
    stock_scheduler = diffusers.DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    stock = diffusers.DDPMPipeline(stock_unet.eval(), stock_scheduler)
    stock.set_progress_bar_config(disable=True)
    for num_steps in (20, 5):
        images = [
            pipeline(3, torch.Generator().manual_seed(7), num_steps, "np", return_dict=False)[0]
            for pipeline in (ours, stock)
        ]
        assert_close(images[0], images[1], rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch(tiny_pipeline):
    pipeline = tiny_pipeline()
    together = pipeline(seeds=[1, 2, 3, 4], output_type="pt").images
    for index, seed in enumerate([1, 2, 3, 4]):
        assert_close(pipeline(seeds=[seed], output_type="pt").images[0], together[index], rtol=0, atol=1e-5)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 2)]
    assert_close(pipeline(2, generators, output_type="pt").images, together[[3, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("heun", "euler", "pndm")])
@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
def test_an_image_does_not_depend_on_its_batch_with_any_sampler(tiny_pipeline, sampler):
    pipeline = tiny_pipeline()
    together = pipeline(seeds=[1, 2], sampler=sampler, num_inference_steps=5, output_type="pt").images
    alone = pipeline(seeds=[2], sampler=sampler, num_inference_steps=5, output_type="pt").images
    assert_close(alone[0], together[1], rtol=0, atol=1e-5)


def test_noise_is_bit_equal_in_any_batch(tiny_pipeline):
    pipeline = tiny_pipeline()
    together = pipeline(seeds=[1, 2, 3], return_intermediates=1).intermediates[0].x_t
    assert torch.equal(pipeline(seeds=[2], return_intermediates=1).intermediates[0].x_t[0], together[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(tiny_pipeline, channels):
    pipeline = tiny_pipeline(in_channels=channels, out_channels=channels)
    pil, array, tensor = (pipeline(seeds=[5, 6], output_type=each).images for each in ("pil", "np", "pt"))
    assert [image.mode for image in pil] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert pil[0].size == (8, 8)
    assert array.shape == (2, 8, 8, channels)
    assert tensor.shape == (2, channels, 8, 8)
    assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), tensor)
    levels = np.stack([np.asarray(image).reshape(8, 8, channels) for image in pil])
    assert (levels == (array * 255).round()).all()
    assert 0 <= array.min() <= array.max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_half_precision_networks(tiny_pipeline, dtype, output_type):
    half = tiny_pipeline().to(dtype)
    images = half(seeds=[1], output_type=output_type, return_intermediates=2)
    assert half.unet.dtype == dtype
    assert images.intermediates[0].x_t.dtype == torch.float32
    full = tiny_pipeline()(seeds=[1], output_type=output_type).images
    assert_close(np.asarray(images.images[0], float), np.asarray(full[0], float), rtol=0.1, atol=0.1 * np.max(full[0]))


def test_default_number_of_steps(gaussian_pipeline):
    pipeline = gaussian_pipeline(num_train_timesteps=13)
    pipeline()
    assert pipeline.unet.num_evaluations == 13


def test_intermediates(gaussian_pipeline):
    pipeline = gaussian_pipeline()
    output = pipeline(2, num_inference_steps=50, return_intermediates=5, output_type="pt")
    assert [each.timestep for each in output.intermediates] == [999, 754, 510, 245, 0]
    assert all(each.x_t.shape == each.x_0.shape == (2, 1, 4, 4) for each in output.intermediates)
    last = output.intermediates[-1]
    assert_close((last.x_0 / 2 + 0.5), output.images, rtol=0, atol=1e-6)
    _, intermediates = pipeline(num_inference_steps=3, return_intermediates=1, return_dict=False)
    assert len(intermediates) == 1
    assert len(pipeline(num_inference_steps=3, return_dict=False)) == 1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
def test_predicted_x_0_is_the_networks_own(gaussian_pipeline, sampler):
    """E[x_0 | x_t] in closed form, whatever units a sampler keeps its images in."""
    pipeline = gaussian_pipeline(clip_sample=False)
    output = pipeline(8, num_inference_steps=10, sampler=sampler, return_intermediates=4)
    alpha_bar = pipeline.scheduler.process.tables["alpha_bar"]
    for each in output.intermediates:
        signal = alpha_bar[int(each.timestep)]
        shrink = signal.sqrt() * 0.04 / (signal * 0.04 + 1 - signal)
        assert_close(
            each.x_0.double(), 0.25 + shrink * (each.x_t.double() - signal.sqrt() * 0.25), rtol=1e-3, atol=2e-3
        )


def test_callback_sees_and_changes_each_step(gaussian_pipeline):
    pipeline, seen = gaussian_pipeline(), []

    def callback(pipe, index, t, state):
        assert pipe is pipeline
        assert not pipe.unet.training
        seen.append((index, int(t)))
        assert state["pred_original_sample"].shape == state["sample"].shape == (1, 1, 4, 4)
        return {"sample": torch.full_like(state["sample"], 0.5)} if index == 3 else None

    images = pipeline(num_inference_steps=4, callback_on_step_end=callback, output_type="pt").images
    assert seen == [(0, 999), (1, 666), (2, 333), (3, 0)]
    assert (images == 0.75).all()


def test_class_labels_and_guidance(gaussian_pipeline):
    """Class c has mean c / 4: guidance moves the mean by w times its distance from the last class's."""
    pipeline = gaussian_pipeline(num_class_embeds=4, clip_sample=False)
    means = [
        pipeline(400, torch.Generator().manual_seed(0), 50, "pt", class_labels=1, guidance_scale=w, sampler="ddim")
        .images.mean()
        .item()
        * 2
        - 1
        for w in (0.0, 1.0, 2.0)
    ]
    assert_close(torch.tensor(means), torch.tensor([0.75, 0.25, -0.25]), rtol=0, atol=0.03)
    both = pipeline(class_labels=[0, 2], num_inference_steps=50, output_type="pt").images.mean((1, 2, 3)) * 2 - 1
    assert_close(both, torch.tensor([0.0, 0.5]), rtol=0, atol=0.2)


def test_learned_variance(tiny_pipeline):
    pipeline = tiny_pipeline(in_channels=3, out_channels=6)
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=10, beta_schedule="cosine", variance_type="learned_range")
    for sampler in (None, "ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc"):
        assert pipeline(2, sampler=sampler)[0][0].mode == "RGB"
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=10, beta_schedule="cosine", variance_type="fixed_large")
    assert pipeline(2)[0][0].mode == "RGB"


@pytest.mark.cuda
def test_on_a_gpu_and_offloaded_from_it(tiny_pipeline):
    on_cpu = tiny_pipeline()(seeds=[1, 2], output_type="pt", return_intermediates=1)
    moved, offloaded = tiny_pipeline().to("cuda"), tiny_pipeline()
    offloaded.enable_model_cpu_offload()
    for pipeline in (moved, offloaded):
        on_gpu = pipeline(seeds=[1, 2], output_type="pt", return_intermediates=1)
        assert torch.equal(on_gpu.intermediates[0].x_t, on_cpu.intermediates[0].x_t)
        assert_close(on_gpu.images.cpu(), on_cpu.images, rtol=0, atol=1e-2)
        assert pipeline(seeds=[1])[0][0].mode == "L"
        images = pipeline.reconstruct(on_cpu.images, 5, seeds=[1, 2], output_type="pt")
        assert pipeline.inpaint(images, torch.ones(1, 1, 8, 8), num_inference_steps=2, output_type="np").shape == (
            2,
            8,
            8,
            1,
        )
        assert len(pipeline.interpolate(1, 2, 3)) == 3
    assert offloaded.unet.device.type == "cpu"


def snapshot(network):
    modes = {name: module.training for name, module in network.named_modules()}
    return modes, {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("raises", [False, True])
def test_previews_leave_the_network_as_it_was(tiny_pipeline, raises):
    pipeline = tiny_pipeline()
    network = pipeline.unet
    network.train()
    network.mid_block.eval()  # a mode of its own, such as a frozen part has
    modes, weights = snapshot(network)

    def callback(pipe, index, t, state):
        assert not any(module.training for module in network.modules())
        if raises and index == 4:
            raise RuntimeError("the disk is full")
        return state

    preview = DDPMPipeline(unet=network, scheduler=pipeline.scheduler)
    assert preview.unet is network
    if raises:
        with pytest.raises(RuntimeError, match="disk is full"):
            preview(callback_on_step_end=callback)
    else:
        preview(callback_on_step_end=callback)
    modes_after, weights_after = snapshot(network)
    assert modes_after == modes
    assert all(torch.equal(weights[name], weights_after[name]) for name in weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 11}, "num_inference_steps is 11"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seeds": []}, "batch_size is 0"),
        ({"batch_size": 3, "seeds": [1, 2]}, "2 seeds for 3 images"),
        ({"batch_size": 2, "generator": [torch.Generator()]}, "1 generator for 2 images"),
        ({"seeds": [1], "generator": torch.Generator()}, "seeds and generator"),
        ({"class_labels": 1}, "class_labels"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"sampler": "magic"}, "sampler is 'magic'"),
        ({"seeds": [2**70]}, "seeds is "),
        ({"return_intermediates": -1}, "return_intermediates is -1"),
    ],
)
def test_bad_arguments(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()(**arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "class_labels are 3; possible are 0 to 2, or none of them for no class"),  # it stands for no class
        (4, "class_labels are 4"),
        ([0, -1], r"class_labels are \[0, -1\]"),
        (torch.tensor([0.5]), "class_labels are"),
        (torch.tensor([True]), "class_labels are"),
        (torch.zeros(2, 2, dtype=torch.long), "class_labels are"),
    ],
)
def test_bad_labels(tiny_pipeline, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(num_class_embeds=4)(class_labels=labels)


def test_images_of_no_class_are_those_of_guidance_to_none(tiny_pipeline):
    pipeline = tiny_pipeline(num_class_embeds=4)
    common = {"seeds": [1, 2], "num_inference_steps": 5, "output_type": "pt"}
    without = pipeline(**common).images
    assert_close(without, pipeline(**common, class_labels=0, guidance_scale=0).images, rtol=0, atol=1e-4)
    assert not torch.equal(without, pipeline(**common, class_labels=0).images)
    with pytest.raises(ValueError, match="guidance_scale is 2"):
        pipeline(seeds=[1, 2], guidance_scale=2.0)


def test_bad_guidance(tiny_pipeline):
    with pytest.raises(ValueError, match="guidance_scale is nan"):
        tiny_pipeline(num_class_embeds=4)(class_labels=1, guidance_scale=float("nan"))


def test_one_label_for_all_may_be_a_tensor(tiny_pipeline):
    pipeline = tiny_pipeline(num_class_embeds=4)
    images = [pipeline(seeds=[1, 2], class_labels=each, output_type="pt").images for each in (2, torch.tensor(2))]
    assert torch.equal(*images)


def test_network_without_a_size(tiny_pipeline):
    with pytest.raises(ValueError, match="sample_size"):
        tiny_pipeline(sample_size=None)()


def test_two_channels_have_no_pil_mode(tiny_pipeline):
    pipeline = tiny_pipeline(in_channels=2, out_channels=2)
    with pytest.raises(ValueError, match="output_type 'pil'"):
        pipeline()
    assert pipeline(output_type="np").images.shape == (1, 8, 8, 2)
