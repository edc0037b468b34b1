"""torch.compile and torch.export, in processes without run-time checks of shapes, which these tools cannot trace."""

import sys

import pytest
from processes import run

pytestmark = pytest.mark.slow

SETUP = """
import torch
from ddpm_hf.models import DDPMUNet

torch.manual_seed(0)
unet = DDPMUNet(
    block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, dropout=0.1, initialization="pytorch",
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)

def images(batch):
    return torch.randn(batch, 3, 16, 16), torch.randint(0, 1000, (batch,))
"""

NO_RECOMPILATION = """
torch._dynamo.config.error_on_recompile = True
compiled = torch.compile(unet, fullgraph=True, dynamic=True, backend="aot_eager")
for batch in (8, 5, 3):
    with torch.autocast("cpu", torch.bfloat16):
        compiled(*images(batch)).sample.float().square().mean().backward()

torch._dynamo.reset()
unet.eval()
with torch.no_grad():
    for timestep in (torch.tensor(5), torch.tensor(999), torch.tensor(0)):
        compiled(torch.randn(4, 3, 16, 16), timestep)
torch._dynamo.reset()
with torch.no_grad():
    for timestep in (500, 999, 7, 1, 0):
        compiled(torch.randn(4, 3, 16, 16), timestep)
"""

SAME_NUMBERS = """
unet.eval()
sample, timestep = images(4)

def result_and_gradient():
    unet.zero_grad()
    output = unet(sample, timestep).sample
    output.square().mean().backward()
    return output.detach(), unet.conv_in.weight.grad

expected = result_and_gradient()
unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
for ours, eager in zip(result_and_gradient(), expected):
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4 * eager.abs().max().item())
assert not any("_orig_mod" in key for key in unet.state_dict())
"""

EXPORT = """
unet.eval()
batch = torch.export.Dim("batch", min=2, max=64)
program = torch.export.export(unet, images(4), dynamic_shapes=({0: batch}, {0: batch}))
inputs = images(7)
torch.testing.assert_close(program.module()(*inputs).sample, unet(*inputs).sample, rtol=1e-4, atol=1e-5)
"""

WIDE = """
from ddpm_hf.models.fast.winograd import WinogradConv

layer = WinogradConv(128, 128, 3, padding=1)
torch._dynamo.config.error_on_recompile = True
compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")

def value_and_gradients(conv, hidden):
    hidden = hidden.requires_grad_()
    output = conv(hidden)
    return output, *torch.autograd.grad(output.square().sum(), (hidden, *layer.parameters()))

def plain(hidden):
    return torch.nn.functional.conv2d(hidden, *layer.parameters(), padding=1)

for batch in (8, 2, 16):
    hidden = torch.randn(batch, 128, 16, 16)
    found = value_and_gradients(compiled, hidden)
    for ours, eager in zip(found, value_and_gradients(plain, hidden)):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-5 * eager.abs().max().item())
    # many images go by Winograd's algorithm, few do not
    assert torch.equal(found[0], plain(hidden)) == (batch == 2), batch

torch._dynamo.reset()
with torch.no_grad():
    assert torch.equal(compiled(hidden), plain(hidden))
program = torch.export.export(layer, (hidden,))
called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
assert called == {"aten.conv2d.default"}, called
"""


@pytest.mark.parametrize(
    "script",
    [NO_RECOMPILATION, SAME_NUMBERS, EXPORT, WIDE],
    ids=["no recompilation", "regional", "export", "wide enough for Winograd's algorithm"],
)
def test_compiler(script: str) -> None:
    run(sys.executable, "-c", SETUP + script, check=True)
