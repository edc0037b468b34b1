"""DDPMUNet against diffusers' UNet2DModel, in one run: python benchmarks/network.py [--device cuda] [--save]

Both have the same weights and take turns, pair by pair; a ratio is the median over the pairs of stock's time / ours, so
above 1 ours is the faster. A training step is forward, loss and backward; the optimiser, which is the same for both, is
left out. bfloat16 is autocast, as in training. "of peak": the network's nominal multiplications and additions (those
of the stock form) per second, against those of 3x3 convolutions of 256 channels at 16x16 timed in the same run; where
Winograd's algorithm does with fewer of them, it may exceed 100%. Ratios
of CPU time are given too: they say the same on a machine that does other work meanwhile, best with --threads 1, since
threads that wait for each other spend CPU time.
With --save, results join those in benchmarks/results/network.json and network.md; --profile writes the operators of a
training step to benchmarks/results/profile_network.md.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.config.model import ModelConfig
from ddpm_hf.models import DDPMUNet, build_network
from ddpm_hf.models.fast import restore

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "cifar10": ModelConfig(channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_levels=(1,)),
    "ddpm_config": ModelConfig(),
    "celebahq256": ModelConfig(
        image_size=256, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(4,), dropout=0.0
    ),
    "digits": ModelConfig(
        image_size=8,
        image_channels=1,
        hidden_channels=32,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        norm_groups=8,
        dropout=0.0,
    ),
}


def build_pair(name: str, device: str) -> tuple[UNet2DModel, DDPMUNet]:
    """Make the stock network and ours, with equal weights of their own."""
    torch.manual_seed(0)
    ours = build_network(NETWORKS[name].model_copy(update={"initialization": "pytorch"}))
    stock = UNet2DModel.from_config({k: v for k, v in ours.config.items() if k != "initialization"})
    stock.load_state_dict(ours.state_dict())
    return stock.to(device), ours.to(device)


def make_call(network: nn.Module, name: str, task: str, batch: int, dtype: str) -> Callable[[], None]:
    """Make a function that takes one training step, or one forward pass without gradients."""
    config, device = NETWORKS[name], next(network.parameters()).device
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    sample, noise = torch.randn(shape, device=device), torch.randn(shape, device=device)
    timestep = torch.randint(0, config.time_steps, (batch,), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    network.train(task == "train")
    parameters = list(network.parameters())

    def train() -> None:
        for parameter in parameters:
            parameter.grad = None
        with autocast:
            prediction = network(sample, timestep).sample
        F.mse_loss(prediction.float(), noise).backward()

    def forward() -> None:
        with torch.no_grad(), autocast:
            network(sample, timestep)

    return train if task == "train" else forward


def clock(call: Callable[[], None]) -> tuple[float, float]:
    """Give wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(stock: Callable[[], None], ours: Callable[[], None], pairs: int, warm_up: int) -> dict[str, float]:
    """Time two functions in turns; which goes first changes from pair to pair."""
    for _ in range(warm_up):
        stock()
        ours()
    times: dict[str, list[tuple[float, float]]] = {"stock": [], "ours": []}
    for pair in range(pairs):
        order = (("stock", stock), ("ours", ours)) if pair % 2 else (("ours", ours), ("stock", stock))
        for who, call in order:
            times[who].append(clock(call))
    ratios = [[s[kind] / o[kind] for s, o in zip(times["stock"], times["ours"], strict=True)] for kind in (0, 1)]
    return {
        "stock_seconds": statistics.median(seconds for seconds, _ in times["stock"]),
        "ours_seconds": statistics.median(seconds for seconds, _ in times["ours"]),
        "ratio": statistics.median(ratios[0]),
        "ratio_low": min(ratios[0]),
        "ratio_high": max(ratios[0]),
        "ratio_of_cpu_time": statistics.median(ratios[1]),
    }


def convolution_peak(device: str, dtype: str) -> float:
    """Floating-point operations per second of 3x3 convolutions of 256 channels at 16x16, forward and backward."""
    precision = getattr(torch, dtype)
    x = torch.randn(16, 256, 16, 16, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=precision)
    x.requires_grad_()
    weight.requires_grad_()

    def call() -> None:
        F.conv2d(x, weight, padding=1).sum().backward()

    call()
    return 3 * 2 * 16 * 256 * 256 * 9 * 16 * 16 / min(clock(call)[0] for _ in range(10))


def nominal_operations(name: str, task: str, batch: int) -> float:
    """Count the multiplications and additions of the stock network."""
    with torch.device("meta"):
        stock = UNet2DModel.from_config(build_pair_config(name))
        counter = FlopCounterMode(display=False)
        config = NETWORKS[name]
        sample = torch.empty(batch, config.image_channels, config.image_size, config.image_size)
        with counter:
            stock(sample, torch.zeros(batch)).sample.sum().backward()
    total = counter.get_total_flops()
    return total if task == "train" else total / 3


def build_pair_config(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        return {k: v for k, v in build_network(NETWORKS[name]).config.items() if k != "initialization"}


def peak_memory(network: nn.Module, name: str, task: str, batch: int, dtype: str, mode: str) -> int:
    """Give the bytes by which a call raises what is allocated, at its peak; gradients that it leaves are among them."""
    passes = make_call(network, name, task, batch, dtype)

    def call() -> None:
        with around(network, mode):
            passes()

    call()
    for parameter in network.parameters():
        parameter.grad = None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    return peak_memory_of(call)


def peak_memory_of(call: Callable[[], object]) -> int:
    """Give the bytes by which a call raises what PyTorch has allocated on the processor, at its peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(allocated)


def measure(args: argparse.Namespace, name: str, task: str, batch: int, dtype: str, mode: str) -> dict[str, Any]:
    """Measure one line of the table."""
    stock_dtype = "float32" if mode == "default" else dtype
    stock, ours = build_pair(name, args.device)
    if mode == "checkpointed":
        stock = build_pair(name, args.device)[1]  # ours against itself
        ours.enable_gradient_checkpointing()
    if mode == "plain":
        stock = build_pair(name, args.device)[1]
        restore(stock)
    if mode == "compiled":
        ours.compile_repeated_blocks(dynamic=True)
    calls = make_call(stock, name, task, batch, stock_dtype), make_call(ours, name, task, batch, dtype)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "network": name,
        "task": task,
        "batch": batch,
        "dtype": dtype,
        "mode": mode,
        "pairs": args.pairs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    with around(ours, mode):
        result |= alternate(*calls, args.pairs, warm_up=2)
    result["of_peak"] = (
        nominal_operations(name, task, batch) / result["ours_seconds"] / convolution_peak(args.device, dtype)
    )
    result["stock_memory"] = peak_memory(stock, name, task, batch, stock_dtype, "eager")
    result["ours_memory"] = peak_memory(ours, name, task, batch, dtype, mode)
    return result


def around(network: nn.Module, mode: str) -> AbstractContextManager[None]:
    """What the mode makes calls in."""
    return network.prepared() if mode == "prepacked" else nullcontext()


def cpu_name() -> str:
    """Give the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = " (AVX512-BF16)" if "avx512_bf16" in flags else ""
    return f"{names[0] if names else platform.processor()}{extra}, {len(names)} cores"


def table(rows: list[dict[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# DDPMUNet against UNet2DModel",
        "",
        "Written by `benchmarks/network.py`, whose head says how. Mode: *eager* and *compiled* (ours compiled block by "
        "block, stock eager) at the same dtype; *prepacked* is ours as it samples, its weights laid out once for many "
        "passes (which are in its memory here); *default* is our bfloat16 against stock's float32; *checkpointed* is "
        "ours with gradient checkpointing against ours without; *plain* is ours against ours with plain layers.",
        "",
        "| device | threads | network | task | batch | dtype | mode | stock s | ours s | ratio (lowest to highest) | "
        "ratio of CPU time | of peak | memory, MB | torch, diffusers, date |",
        "|---|--:|---|---|--:|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        memory = f"{row['stock_memory'] / 1e6:.0f} → {row['ours_memory'] / 1e6:.0f}"
        spread = f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        lines.append(
            f"| {row['device']} | {row['threads']} | {row['network']} | {row['task']} | {row['batch']} "
            f"| {row['dtype']} | {row['mode']} "
            f"| {row['stock_seconds']:.4f} | {row['ours_seconds']:.4f} "
            f"| {row['ratio']:.2f} {spread} | {row['ratio_of_cpu_time']:.2f} "
            f"| {row['of_peak']:.0%} | {memory} | {row['torch']}, {row['diffusers']}, {row['date']} |"
        )
    return "\n".join(lines) + "\n"


def save(results: list[dict[str, Any]]) -> None:
    """Join new results to those on disk; a line measured again replaces its elder."""
    path = RESULTS / "network.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    keys = ("device", "threads", "network", "task", "batch", "dtype", "mode")
    merged = {tuple(row[key] for key in keys): row for row in (*rows, *results)}
    rows = [merged[key] for key in sorted(merged)]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(rows))


def write_profile(args: argparse.Namespace) -> None:
    """Write which operators a training step of each network spends its time in."""
    lines = [
        f"# Operators of a training step: {cpu_name() if args.device == 'cpu' else torch.cuda.get_device_name()}",
        "",
    ]
    for dtype in args.dtypes:
        for who, network in zip(("stock", "ours"), build_pair("cifar10", args.device), strict=True):
            call = make_call(network, "cifar10", "train", 16, dtype)
            call()
            call()
            with profile(activities=[ProfilerActivity.CPU]) as record:
                call()
            events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
            total = sum(event.self_cpu_time_total for event in events)
            lines += [
                f"## {who}, cifar10, batch 16, {dtype}: {total / 1e6:.2f} s",
                "",
                "| operator | calls | ms | share |",
            ]
            lines += ["|---|--:|--:|--:|"]
            for event in events[:16]:
                spent = event.self_cpu_time_total
                lines.append(f"| {event.key} | {event.count} | {spent / 1e3:.1f} | {spent / total:.1%} |")
            lines.append("")
    (RESULTS / "profile_network.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["cifar10"])
    parser.add_argument("--tasks", nargs="+", choices=("train", "forward"), default=["train"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    modes = ("eager", "prepacked", "compiled", "default", "checkpointed", "plain")
    parser.add_argument("--modes", nargs="+", choices=modes, default=["eager"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if "prepacked" in args.modes and "train" in args.tasks:
        parser.error("prepacked weights are for --tasks forward")
    torch.set_num_threads(args.threads)
    if args.profile:
        write_profile(args)
        return
    results = [
        measure(args, name, task, batch, dtype, mode)
        for name in args.networks
        for task in args.tasks
        for batch in args.batches
        for dtype in args.dtypes
        for mode in args.modes
    ]
    print(table(results))
    if args.save:
        save(results)


if __name__ == "__main__":
    main()
