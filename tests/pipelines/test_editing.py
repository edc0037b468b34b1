"""Encoding, reconstruction, interpolation, variation and repair of images."""

import math

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.editing import MIN_SIGNAL, repaint_moves, slerp
from ddpm_hf.pipelines.samplers import make_sampler
from ddpm_hf.schedulers import DDPMScheduler

MEAN, STD = 0.25, 0.2  # of the exact network's images


def gaussian_images(count, seed=0):
    """Images in [0, 1] of the distribution that the exact network knows."""
    x_0 = MEAN + STD * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (x_0.clamp(-1, 1) + 1) / 2


def test_encoding_is_the_closed_form_of_the_flow(gaussian_pipeline):
    """Of Gaussian images the deterministic flow keeps standardised pixels: x_T has those of the image."""
    images = gaussian_images(8)
    latents = gaussian_pipeline().encode(images)
    assert_close(latents, (images * 2 - 1 - MEAN) / STD, rtol=0, atol=0.02)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("num_steps", "error"), [(25, 0.01), (100, 0.001)])
def test_decoding_undoes_encoding(gaussian_pipeline, prediction_type, num_steps, error):
    pipeline, images = gaussian_pipeline(prediction_type), gaussian_images(8)
    latents = pipeline.encode(images, num_steps)
    assert_close(pipeline.decode(latents, num_steps, output_type="pt"), images, rtol=0, atol=error)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_encoding_part_of_the_way(gaussian_pipeline, timestep):
    pipeline, images = gaussian_pipeline(), gaussian_images(4)
    num_steps = min(50, timestep + 1)
    latents = pipeline.encode(images, num_steps, timestep)
    assert_close(pipeline.decode(latents, num_steps, timestep, output_type="pt"), images, rtol=0, atol=2e-3)


def test_encoding_stops_where_the_networks_errors_can_still_be_undone(gaussian_pipeline):
    """With a network that is off by 1%, the images come back; from T - 1 they would not."""
    pipeline, images = gaussian_pipeline(), gaussian_images(4)
    pipeline.unet.weight.data.fill_(0.99)
    errors = [
        (pipeline.decode(pipeline.encode(images, 50, t), 50, t, output_type="pt") - images).abs().max()
        for t in (None, 999)
    ]
    assert errors[0] < 0.02
    assert errors[1] > 0.2
    way = pipeline.interpolate(images[:1], images[1:2], 3, num_inference_steps=50, output_type="pt")
    assert_close(way[[0, -1]], images[:2], rtol=0, atol=0.02)


def test_where_encoding_stops(gaussian_pipeline):
    """At the last timestep with the least signal; where all have it at T - 1, where none has it at 0."""
    pipeline = gaussian_pipeline()
    signal = pipeline.scheduler.alphas_cumprod.sqrt()
    last = pipeline.last_with_signal()
    assert signal[last] >= MIN_SIGNAL > signal[last + 1]
    for betas, expected in (([0.1, 0.1, 0.1], 2), ([0.9999, 0.5], 0)):
        pipeline.scheduler = DDPMScheduler(num_train_timesteps=len(betas), trained_betas=betas)
        assert pipeline.last_with_signal() == expected


def test_reconstruction_from_the_first_timestep_is_the_image(gaussian_pipeline):
    images = gaussian_images(4)
    assert_close(gaussian_pipeline().reconstruct(images, 0, output_type="pt"), images, rtol=0, atol=0.02)


def test_reconstruction_denoises_from_the_timestep_it_noised_to(gaussian_pipeline):
    """Each of its steps sees the variance of eq. 4 at its own timestep; the first sees it exactly."""
    pipeline, seen = gaussian_pipeline(), []
    predict = pipeline._predict

    def watched(x_t, t, *arguments):
        seen.append((int(t), x_t))
        return predict(x_t, t, *arguments)

    pipeline._predict = watched
    images = gaussian_images(500)
    pipeline.reconstruct(images, 700, torch.Generator().manual_seed(1), num_inference_steps=71)
    assert [t for t, _ in seen] == list(range(700, -1, -10))
    alpha_bar = pipeline.scheduler.process.tables["alpha_bar"]
    for t, x_t in seen[::10]:
        expected = alpha_bar[t] * STD**2 + 1 - alpha_bar[t]
        assert abs(x_t.var() / expected - 1) < 0.25 if t != 700 else abs(x_t.var() / expected - 1) < 0.06


def test_reconstructions_have_the_distribution_of_the_images(gaussian_pipeline):
    output = gaussian_pipeline().reconstruct(gaussian_images(400), 500, output_type="pt", num_inference_steps=501)
    x_0 = output * 2 - 1
    assert abs(x_0.mean() - MEAN) < 4 * STD / 80
    assert abs(x_0.std() - STD) < 0.01


def test_img2img_keeps_less_the_stronger_it_is(gaussian_pipeline):
    pipeline, images = gaussian_pipeline(), gaussian_images(64)
    distances = [
        (pipeline.img2img(images, strength, num_inference_steps=1 + int(20 * strength), output_type="pt") - images)
        .square()
        .mean()
        .item()
        for strength in (0.001, 0.1, 0.3, 0.8)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 1e-4


def test_img2img_at_full_strength_begins_at_the_last_timestep(tiny_pipeline):
    pipeline = tiny_pipeline(time_steps=7)
    images = torch.zeros(1, 1, 8, 8)
    whole = pipeline.img2img(images, 1.0, seeds=[1], output_type="pt")
    assert torch.equal(whole, pipeline.reconstruct(images, 6, seeds=[1], output_type="pt"))


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_the_ends_of_an_interpolation_are_reconstructions(tiny_pipeline, method):
    pipeline = tiny_pipeline(time_steps=20)
    a, b = torch.rand(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    way = pipeline.interpolate(a, b, 5, timestep=12, method=method, seed=3, output_type="pt")
    assert way.shape == (5, 1, 8, 8)
    for end, image in ((way[:1], a), (way[-1:], b)):
        if method == "ddpm":
            expected = pipeline.reconstruct(image, 12, seeds=[3], output_type="pt")
        else:
            expected = pipeline.decode(pipeline.encode(image, timestep=12), timestep=12, output_type="pt")
        assert_close(end, expected, rtol=0, atol=1e-5)


def test_interpolation_between_seeds(tiny_pipeline):
    pipeline = tiny_pipeline()
    way = pipeline.interpolate(1, 2, 4, output_type="pt")
    for index, seed in ((0, 1), (-1, 2)):
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert_close(way[index], pipeline.decode(noise, output_type="pt")[0], rtol=0, atol=1e-5)
    assert [image.mode for image in pipeline.interpolate(1, 2, 3)] == ["L"] * 3


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_what_is_interpolated_stays_likely(gaussian_pipeline, method):
    """Half-way between two images of the distribution, pixels still have its spread."""
    pipeline = gaussian_pipeline()
    half = torch.cat(
        [
            pipeline.interpolate(a[None], b[None], 3, 999, method, seed=i, num_inference_steps=100, output_type="pt")[1]
            for i, (a, b) in enumerate(zip(gaussian_images(12), gaussian_images(12, seed=1), strict=True))
        ]
    )
    assert abs((half * 2 - 1).std() - STD) < 0.04


def test_interpolation_of_pil_images_and_labels(tiny_pipeline):
    pipeline = tiny_pipeline(num_class_embeds=3)
    a, b = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 255)
    assert len(pipeline.interpolate(a, b, 3, method="ddim", class_labels=[0, 0, 1])) == 3
    assert len(pipeline.interpolate(a, b, 3, method="ddpm", class_labels=1)) == 3
    assert len(pipeline.interpolate(1, 2, 3, class_labels=[0, 0, 1])) == 3


def test_slerp():
    a, b = torch.randn(2, 1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    a, b = a / a.norm(), b / b.norm()
    weights = torch.linspace(0, 1, 5).reshape(-1, 1, 1, 1)
    arc = slerp(a, b, weights)
    assert torch.equal(arc[:1], a)
    assert torch.equal(arc[-1:], b)
    assert_close(arc.flatten(1).norm(dim=1), torch.ones(5))
    angle = math.acos(float((a * b).sum()))
    steps = [math.acos(min(1.0, float((arc[i] * arc[i + 1]).sum()))) for i in range(4)]
    assert steps == pytest.approx([angle / 4] * 4, abs=1e-3)
    assert_close(slerp(a, a, weights), a.expand(5, -1, -1, -1))


def test_inpainting_keeps_what_it_should_and_paints_the_rest(gaussian_pipeline):
    """Pixels of the exact network are independent: what is painted has their distribution, whatever is kept."""
    pipeline = gaussian_pipeline()
    images = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    painted = pipeline.inpaint(images, mask, torch.Generator().manual_seed(1), 60, output_type="pt")
    assert_close(painted[..., :2], images[..., :2], rtol=0, atol=1e-6)
    x_0 = painted[..., 2:] * 2 - 1
    assert abs(x_0.mean() - MEAN) < 4 * STD / 40
    assert abs(x_0.std() - STD) < 0.03


def test_inpainting_does_not_depend_on_the_batch(tiny_pipeline):
    pipeline = tiny_pipeline(time_steps=4)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, ..., 4:], masks[1, ..., :4] = 1, 1
    together = pipeline.inpaint(images, masks, seeds=[1, 2], output_type="pt")
    alone = pipeline.inpaint(images[1:], masks[1:], seeds=[2], output_type="pt")
    assert_close(together[1:], alone, rtol=0, atol=1e-5)
    assert pipeline.inpaint(Image.new("L", (8, 8)), Image.new("L", (8, 8), 255))[0].mode == "L"


@pytest.mark.parametrize("num_steps", [1, 2, 10, 11, 25, 250])
def test_repaints_way_is_connected_and_does_each_step_ten_times(num_steps):
    position, downs = 0, [0] * num_steps
    for index, is_down in repaint_moves(num_steps):
        assert position == (index if is_down else index + 1)
        position = index + 1 if is_down else index
        downs[index] += is_down
    assert position == num_steps
    assert downs == [10] * (num_steps - 1) + [1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p, x: p.reconstruct(x, 10), "timestep is 10"),
        (lambda p, x: p.reconstruct(x, -1), "timestep is -1"),
        (lambda p, x: p.reconstruct(x, 4, num_inference_steps=6), "num_inference_steps is 6"),
        (lambda p, x: p.reconstruct(x, 4, seeds=[1]), "1 seeds for 2 images"),
        (lambda p, x: p.encode(x, 0), "num_inference_steps is 0"),
        (lambda p, x: p.encode(x[..., 1:]), r"images: shape \(2, 1, 8, 7\)"),
        (lambda p, x: p.decode(x[..., 1:]), r"latents have shape \(2, 1, 8, 7\)"),
        (lambda p, x: p.img2img(x, 0.0), "strength is 0.0"),
        (lambda p, x: p.img2img(x, 1.5), "strength is 1.5"),
        (lambda p, x: p.interpolate(x[:1], x[1:], 1), "num_steps is 1"),
        (lambda p, x: p.interpolate(x[:1], x[1:], method="linear"), "method is 'linear'"),
        (lambda p, x: p.interpolate(x, x), "2 were given"),
        (lambda p, x: p.interpolate(x[:1], 3), "two seeds"),
        (lambda p, x: p.interpolate(1, 3, method="ddpm"), "two seeds"),
        (lambda p, x: p.inpaint(x, torch.ones(1, 1, 4, 4)), r"the mask: shape \(1, 1, 4, 4\)"),
        (lambda p, x: p.inpaint(x, torch.ones(3, 1, 8, 8)), "3 masks for 2 images"),
        (lambda p, x: p.inpaint(x, torch.ones(1, 1, 8, 8), output_type="gif"), "output_type is 'gif'"),
        (lambda p, x: p.encode(x, class_labels=1), "class_labels"),
        (lambda p, x: p.encode(x[:0]), "images: none"),
        (lambda p, x: p.encode([]), "images: given none"),
        (lambda p, x: p.decode(x[:0]), r"latents have shape \(0, 1, 8, 8\)"),
    ],
)  # fmt: skip
def test_bad_arguments(tiny_pipeline, edit, message):
    with pytest.raises(ValueError, match=message):
        edit(tiny_pipeline(), torch.zeros(2, 1, 8, 8))


def test_labels_of_an_interpolation_are_one_or_one_for_each_image(tiny_pipeline):
    with pytest.raises(ValueError, match="2 class_labels for 4 images"):
        tiny_pipeline(num_class_embeds=3).interpolate(1, 2, 4, class_labels=[0, 1])


def test_editing_with_any_scheduler(tiny_pipeline):
    """What a pipeline samples with does not change how it edits."""
    import diffusers

    ours = tiny_pipeline()
    other = DDPMPipeline(ours.unet, diffusers.DDIMScheduler.from_config(ours.scheduler.config))
    other.set_progress_bar_config(disable=True)
    assert type(make_sampler("ddpm", other.scheduler)) is DDPMScheduler
    images = torch.rand(2, 1, 8, 8)
    for edit in (
        lambda pipeline: pipeline.reconstruct(images, 6, seeds=[1, 2], output_type="pt"),
        lambda pipeline: pipeline.encode(images, 5),
    ):
        assert_close(edit(ours), edit(other), rtol=0, atol=1e-5)


def test_editing_leaves_the_mode(tiny_pipeline):
    pipeline = tiny_pipeline()
    pipeline.unet.train()
    images = torch.zeros(1, 1, 8, 8)
    first = pipeline.encode(images)
    assert pipeline.unet.training
    assert torch.equal(first, pipeline.encode(images))  # without dropout
