"""Sampling by recorded forward passes makes the images of eager sampling.

A stand-in for the recorder runs on every machine; the tests marked cuda record graphs.
"""

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

import pytest
import tiny
import torch
from torch.testing import assert_close

from ddpm_hf.models.fast.graphs import MAX_RECORDINGS, NUM_EAGER_PASSES, RECORDERS, rerun
from ddpm_hf.pipelines.samplers import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

TIME_STEPS, NUM_STEPS = 40, 10


class Recorder:
    """Records for a device, and knows how often it did and which recordings are still kept."""

    def __init__(self, device):
        self.record = RECORDERS.get(device, rerun)
        self.count, self.kept, self.error = 0, WeakSet(), None

    def __call__(self, work):
        self.count += 1
        if self.error is not None:
            raise self.error
        replay = self.record(work)
        self.kept.add(replay)
        return replay


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param


@pytest.fixture
def recorder(device, monkeypatch):
    made = Recorder(device)
    monkeypatch.setitem(RECORDERS, device, made)
    return made


@pytest.fixture
def eagerly(device, monkeypatch):
    """Draw images without any recording."""

    def draw(pipeline, **arguments):
        with monkeypatch.context() as patch:
            patch.delitem(RECORDERS, device, raising=False)
            return images(pipeline, **arguments)

    return draw


def images(pipeline, **arguments):
    return pipeline(output_type="pt", **{"num_inference_steps": NUM_STEPS} | arguments).images


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("ddpm_hf")]


def conditional(device):
    return tiny.pipeline(TIME_STEPS, num_class_embeds=3).to(device)


@pytest.mark.filterwarnings("ignore:sampler:UserWarning")  # pndm does not clip
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sampler": "ddim"},
        {"sampler": "dpmsolver++"},  # keeps earlier predictions, as pndm does
        {"sampler": "sde-dpmsolver++"},
        {"sampler": "pndm"},
        {"class_labels": [0, 1]},
        {"class_labels": [0, 1], "guidance_scale": 3.0},
        {"class_labels": [0, 1], "guidance_scale": 3.0, "sampler": "dpmsolver++"},
    ],
    ids=str,
)
def test_every_step_is_that_of_eager_passes(arguments, device, recorder, eagerly):
    pipeline = conditional(device) if "class_labels" in arguments else tiny.pipeline(TIME_STEPS).to(device)
    recorded, eager = [], []

    def keep(states):
        # pixels of the images are black or white, whatever a network of random weights predicts last
        return lambda pipe, index, t, state: states.append(state["sample"])

    images(pipeline, seeds=[1, 2], callback_on_step_end=keep(recorded), **arguments)
    assert recorder.count == 1
    assert not recorder.kept
    eagerly(pipeline, seeds=[1, 2], callback_on_step_end=keep(eager), **arguments)
    assert len(recorded) >= NUM_STEPS
    for ours, theirs in zip(recorded, eager, strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


def test_batches_within_one_context_share_recordings(device, recorder, eagerly):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    batches = ([1, 2], [3, 4], [5], [6, 7], [8])
    with pipeline.sampling():
        drawn = [images(pipeline, seeds=seeds) for seeds in batches]
        assert recorder.count == len(recorder.kept) == 2
    assert not recorder.kept
    for batch, seeds in zip(drawn, batches, strict=True):
        assert torch.equal(batch, eagerly(pipeline, seeds=seeds))


def test_few_passes_are_not_recorded(device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    images(pipeline, seeds=[1], num_inference_steps=NUM_EAGER_PASSES)
    assert recorder.count == 0


def test_the_recording_that_was_used_longest_ago_goes(device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)

    def draw(num_images):
        images(pipeline, seeds=range(num_images))
        return recorder.count

    with pipeline.sampling():
        first, second, *others = range(1, MAX_RECORDINGS + 1)
        assert [draw(size) for size in (first, second, *others)][-1] == MAX_RECORDINGS
        assert draw(first) == MAX_RECORDINGS
        assert draw(MAX_RECORDINGS + 1) == MAX_RECORDINGS + 1
        assert len(recorder.kept) == MAX_RECORDINGS
        assert draw(first) == MAX_RECORDINGS + 1
        assert draw(second) == MAX_RECORDINGS + 2


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("no memory left")])
def test_where_recording_fails_passes_stay_eager(error, device, recorder, eagerly, caplog):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    recorder.error = error
    with caplog.at_level(logging.WARNING):
        drawn = [images(pipeline, seeds=[1, 2]), images(pipeline, seeds=[1, 2])]
    assert [str(error) in message for message in warnings_of(caplog)] == [True]
    assert recorder.count == 1
    for batch in drawn:
        assert torch.equal(batch, eagerly(pipeline, seeds=[1, 2]))


def test_recordings_make_room_for_a_pass_that_runs_out_of_memory(device, recorder, eagerly, monkeypatch):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    forward = type(pipeline.unet).forward

    def tight(network, sample, *inputs, **named):
        if len(sample) == 3 and recorder.kept:
            raise torch.OutOfMemoryError("no memory left")
        return forward(network, sample, *inputs, **named)

    monkeypatch.setattr(type(pipeline.unet), "forward", tight)
    with pipeline.sampling():
        images(pipeline, seeds=[1, 2])
        assert len(recorder.kept) == 1
        drawn = images(pipeline, seeds=[1, 2, 3], num_inference_steps=NUM_EAGER_PASSES)
        assert not recorder.kept
    assert torch.equal(drawn, eagerly(pipeline, seeds=[1, 2, 3], num_inference_steps=NUM_EAGER_PASSES))


def test_new_weights_count_afterwards(device, recorder, eagerly):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    before = images(pipeline, seeds=[1])
    for parameter in pipeline.unet.parameters():
        parameter.data.mul_(1.1)
    after = images(pipeline, seeds=[1])
    assert recorder.count == 2
    assert not torch.equal(after, before)
    assert torch.equal(after, eagerly(pipeline, seeds=[1]))


def call(network, timestep, scale=1.0):
    """One pass in each of the forms that a timestep may have."""
    torch.manual_seed(1)
    sample = scale * torch.randn(2, 1, 8, 8, device=network.device)
    return network(sample, timestep).sample


@pytest.mark.parametrize(
    "form",
    [int, float, torch.tensor, lambda t: torch.tensor([t, t]), lambda t: torch.tensor(float(t))],
    ids=["int", "float", "tensor", "one for each", "real"],
)
def test_every_form_of_timestep(form, device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    network = pipeline.unet.eval()
    with torch.no_grad():
        expected = [call(network, form(t)) for t in range(NUM_STEPS)]
        with pipeline.sampling():
            kept = [call(network, form(t)) for t in range(NUM_STEPS)]
            wanted = [call(network, form(t), scale=2.0) for t in range(2)]
    assert recorder.count == 1
    assert_close(kept, expected, rtol=0, atol=1e-5 if device == "cpu" else 0)  # a CPU packs the weights besides
    assert not torch.equal(wanted[0], kept[0])


def test_gradients_flow_and_autocast_counts(device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    network = pipeline.unet
    with pipeline.sampling():
        for _ in range(NUM_EAGER_PASSES + 1):
            with torch.no_grad():
                full = call(network, 1)
        assert recorder.count == 1
        for _ in range(NUM_EAGER_PASSES + 1):
            call(network, 1).sum().backward()
        assert recorder.count == 1
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            rounded = [call(network, 1) for _ in range(NUM_EAGER_PASSES + 2)]
        assert recorder.count == 2
        with torch.no_grad():
            assert torch.equal(call(network, 1), full)
    assert network.conv_in.weight.grad is not None
    assert all(torch.equal(each, rounded[0]) for each in rounded)
    assert rounded[0].dtype == torch.bfloat16
    with torch.inference_mode(), pipeline.sampling():
        for _ in range(NUM_EAGER_PASSES + 2):
            call(network, 1)
    assert recorder.count == 3


def test_threads_may_share_a_network(device, recorder, eagerly):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    with pipeline.sampling(), ThreadPoolExecutor(4) as pool:
        images(pipeline, seeds=[0])
        drawn = list(pool.map(lambda seed: images(pipeline, seeds=[seed]), range(8)))
    assert recorder.count == 1
    for seed, image in enumerate(drawn):
        assert torch.equal(image, eagerly(pipeline, seeds=[seed]))


def replace_forward(network):
    network.mid_block.forward = network.mid_block.forward


def add_hook(network):
    network.mid_block.register_forward_hook(lambda *_: None)


def compile_a_layer(network):
    network.conv_norm_out.compile(backend="eager")


def wrap_a_weight(network):
    class Sharded(torch.nn.Parameter):
        """Stands for weights that are sharded or quantised."""

    network.conv_out.weight = Sharded(network.conv_out.weight.detach())


@pytest.mark.parametrize("take_over", [replace_forward, add_hook, compile_a_layer, wrap_a_weight])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, within torch.compile
def test_what_others_have_taken_over_is_left_to_them(take_over, device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)
    take_over(pipeline.unet)
    with torch.compiler.set_stance("force_eager"):  # the checks of shapes in the tests cannot be compiled
        images(pipeline, seeds=[1])
    assert recorder.count == 0


class FinishedError(Exception):
    """Ends a sampling run whose images cannot be looked at."""


@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_step_reads_a_value_from_the_device(name):
    """On the meta device there is none to read."""
    pipeline = tiny.pipeline(TIME_STEPS).to("meta")
    num_calls = itertools.count(1)

    def finish(pipe, index, t, state):
        assert state["sample"].device.type == "meta"
        if next(num_calls) == NUM_STEPS:
            raise FinishedError
        return state

    with pytest.raises(FinishedError):
        images(pipeline, seeds=[1, 2], sampler=name, callback_on_step_end=finish)


@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "unipc"])  # diffusers' own UniPC waits
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)])
def test_no_step_waits_for_the_device(name, device, recorder):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)

    def watch(pipe, index, t, state):
        if index == NUM_EAGER_PASSES + 1:  # tables have been copied, and a pass has been recorded
            torch.cuda.set_sync_debug_mode("error")
        if index == NUM_STEPS - 2:
            torch.cuda.set_sync_debug_mode("default")
        return state

    try:
        images(pipeline, seeds=[1, 2], sampler=name, callback_on_step_end=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorder.count == 1


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_pass_that_waits_for_the_device_stays_eager(device, eagerly, caplog):
    pipeline = tiny.pipeline(TIME_STEPS).to(device)

    def attend(query, key, value):
        assert query.isfinite().all()  # reads a value
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    pipeline.unet.set_attn_processor(attend)
    stream = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING):
        drawn = images(pipeline, seeds=[1, 2])
    assert len(warnings_of(caplog)) == 1
    assert torch.equal(drawn, eagerly(pipeline, seeds=[1, 2]))
    assert torch.cuda.current_stream() == stream
    assert torch.rand(100, device=device).unique().numel() > 1
    torch.cuda.synchronize()
