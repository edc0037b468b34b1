"""Our training against that of diffusers' own script, in one run: python benchmarks/versus_diffusers.py --save

Contenders train the same network (by default the 35.7M-parameter one of DDPM on 32x32 images) on the same images with
the same batch and seed, each in a process of its own, in turns. *script* is the training step of
diffusers' examples/unconditional_image_generation/train_unconditional.py, written anew from what it documents: images
decoded and normalised by a DataLoader in every epoch, UNet2DModel under accelerate, AdamW, a cosine learning rate,
save_state. *script, best flags* adds its --use_ema, --mixed_precision=bf16 and two --dataloader_num_workers. *ours* is
our TrainStep with its default configuration (mixed_precision auto, EMA always on).

A figure is the median over the rounds; a ratio the median over the pairs. Peak memory is of the whole process. The
time to the first step begins with the process; saving and loading a checkpoint ends when it is usable. Two columns are
shares of rates measured in the same run. Arithmetic: the multiplications and additions that the stock network needs for
an update, per second, of those of large bf16 matrix products. Traffic: the bytes that operators take and give, counted,
of those that a copy of memory moves; what stays in caches counts, too.

On a GPU: python benchmarks/versus_diffusers.py --device cuda --batches 128 512 --profile --save
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, NETWORKS, Ours, make_images, make_script, our_config

RESULTS = Path(__file__).parent / "results"
STARTED = time.time()

PAIRS = [
    ("script", "ours, fp32", "equal dtype, fp32"),
    ("script, bf16", "ours, bf16", "equal dtype, bf16"),
    ("script", "ours", "defaults against defaults"),
    ("script, best flags", "ours", "its best flags against our defaults"),
    ("ours, bf16", "ours, compiled", "compiled against eager"),
    ("ours, bf16", "ours, channels last", "channels last against not"),
    ("ours, bf16", "ours, checkpointing", "gradient checkpointing against not"),
]
GOALS = {
    "cpu": {"equal dtype, fp32": 1.25, "equal dtype, bf16": 1.25, "defaults against defaults": 2.5},
    "cuda": {"equal dtype, bf16": 2.5},
}
"""Ratios that are to be reached, by device."""


def contend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one contender for some steps, in this process."""
    import torch
    from rates import work_of

    settings = dict(CONTENDERS[arguments.contender])
    kind = settings.pop("kind")
    if kind == "ours":
        subject: Any = Ours(our_config(arguments, settings.get("options", [])))
    else:
        subject = make_script(arguments, **settings)

    def synchronize() -> None:
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    subject.update()
    synchronize()
    first = time.time() - STARTED
    for _ in range(arguments.warm_up):
        subject.update()
    synchronize()
    seconds, waited = [], 0.0
    for _ in range(arguments.steps):
        started = time.perf_counter()
        waited += subject.update()
        synchronize()
        seconds.append(time.perf_counter() - started)
    if arguments.profile:
        write_profile(arguments, subject.update)
    if arguments.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    compiled = arguments.contender == "ours, compiled"  # what is compiled shows no operators
    operations, traffic = (None, None) if compiled else work_of(subject.update)
    with tempfile.TemporaryDirectory() as folder:
        save, checkpoint = clock(lambda: subject.save(Path(folder) / "checkpoint"))
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
        load, _ = clock(lambda: subject.load(checkpoint))
    return {
        "images_per_second": arguments.batch / statistics.median(seconds),
        "data_share": waited / sum(seconds),
        "first_step": first,
        "peak_memory": peak,
        "save": save,
        "load": load,
        "checkpoint_bytes": size,
        "operations": operations,
        "traffic": traffic,
    }


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def write_profile(arguments: argparse.Namespace, update: Callable[[], float]) -> None:
    """Write which operators an update spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if arguments.device == "cuda" else [])]
    with profile(activities=kinds) as record:
        update()
    key = "self_cuda_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
    name = arguments.contender.replace(", ", "_").replace(" ", "_")
    table = record.key_averages().table(sort_by=key, row_limit=25)
    (RESULTS / f"profile_{arguments.device}_{name}_{arguments.batch}.txt").write_text(table)


def run_contender(arguments: argparse.Namespace, contender: str) -> dict[str, Any]:
    """Let a contender train in a process of its own."""
    command = [sys.executable, __file__, "--contender", contender, "--data", arguments.data]
    for name in ("network", "batch", "steps", "warm_up", "device"):
        command += [f"--{name}", str(getattr(arguments, name))]
    if arguments.profile:
        command.append("--profile")
    place = {"ACCELERATE_USE_CPU": "true"} if arguments.device == "cpu" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **place})
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All pairs, in turns; which goes first changes from round to round."""
    import accelerate
    import diffusers
    import torch
    from rates import matrix_rate, memory_rate

    chosen = [pair for pair in PAIRS if arguments.pairs is None or any(text in pair[2] for text in arguments.pairs)]
    contenders = list(dict.fromkeys(name for pair in chosen for name in pair[:2]))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for index in range(arguments.rounds):
        for name in contenders if index % 2 else reversed(contenders):
            rounds[name].append(run_contender(arguments, name))
            print(f"round {index + 1}: {name}: {rounds[name][-1]['images_per_second']:.2f} img/s", file=sys.stderr)
    figures = {
        name: {key: None if of[0][key] is None else statistics.median(each[key] for each in of) for key in of[0]}
        for name, of in rounds.items()
    }
    pairs = []
    for theirs, ours, what in chosen:
        ratios = [
            mine["images_per_second"] / other["images_per_second"]
            for mine, other in zip(rounds[ours], rounds[theirs], strict=True)
        ]
        pairs.append(
            {
                "what": what,
                "theirs": theirs,
                "ours": ours,
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "goal": GOALS[arguments.device].get(what),
                "memory": figures[ours]["peak_memory"] / figures[theirs]["peak_memory"],
            }
        )
    machine = (
        torch.cuda.get_device_name() if arguments.device == "cuda" else f"{platform.machine()} {os.cpu_count()} cores"
    )
    return {
        "machine": machine,
        "network": arguments.network,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "matrix_rate_tflops": matrix_rate(arguments.device) / 1e12,
        "memory_rate_gbps": memory_rate(arguments.device) / 1e9,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
        },
        "date": datetime.now(timezone.utc).date().isoformat(),
        "operations": max(each["operations"] or 0 for each in figures.values()),
        "contenders": figures,
        "pairs": pairs,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = ["# Training against diffusers' script", "", " ".join((__doc__ or "").split("\n\n")[1].split()), ""]
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        lines += [
            f"## {result['network']}, batch {result['batch']}, {result['machine']}",
            "",
            f"{result['date']}; {versions}; {result['rounds']} rounds of {result['steps']} steps; bf16 matrix products "
            f"reach {result['matrix_rate_tflops']:.2f} TFLOP/s here, a copy of memory moves "
            f"{result['memory_rate_gbps']:,.0f} GB/s.",
            "",
            "| comparison | ratio of images/s (lowest to highest) | goal | ratio of peak memory |",
            "|---|--:|--:|--:|",
        ]
        for pair in result["pairs"]:
            goal = "" if pair["goal"] is None else f"{pair['goal']}"
            lines.append(
                f"| {pair['what']}: *{pair['ours']}* / *{pair['theirs']}* | {pair['ratio']:.2f} ({pair['low']:.2f} to "
                f"{pair['high']:.2f}) | {goal} | {pair['memory']:.2f} |"
            )
        lines += [
            "",
            "| contender | images/s | arithmetic | traffic | peak memory, MB | to first step, s | waiting for data "
            "| save, s | load, s | checkpoint, MB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, figures in result["contenders"].items():
            arithmetic, traffic = shares(result, figures)
            lines.append(
                f"| {name} | {figures['images_per_second']:.2f} | {arithmetic:.0%} | "
                f"{'' if traffic is None else format(traffic, '.0%')} | {figures['peak_memory'] / 1e6:,.0f} "
                f"| {figures['first_step']:.1f} | {figures['data_share']:.2%} | {figures['save']:.2f} "
                f"| {figures['load']:.2f} | {figures['checkpoint_bytes'] / 1e6:,.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def shares(result: dict[str, Any], figures: dict[str, Any]) -> tuple[float, float | None]:
    """How near an update comes to the measured rates of matrix products and of memory; the second may be unknown."""
    updates = figures["images_per_second"] / result["batch"]
    arithmetic = result["operations"] * updates / (result["matrix_rate_tflops"] * 1e12)
    if figures["traffic"] is None:
        return arithmetic, None
    return arithmetic, figures["traffic"] * updates / (result["memory_rate_gbps"] * 1e9)


def save(result: dict[str, Any]) -> None:
    """Join the result to those on disk; one of the same machine, network and batch replaces its elder."""
    path = RESULTS / "versus_diffusers.json"
    kept = {tuple(each[key] for key in ("machine", "network", "batch")): each for each in _read(path)}
    kept[result["machine"], result["network"], result["batch"]] = result
    results = [kept[key] for key in sorted(kept)]
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar10")
    parser.add_argument("--batches", type=int, nargs="+", default=[16], metavar="N", help="images per update (16)")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4, help="measured updates per round")
    parser.add_argument("--warm_up", type=int, default=2, help="updates before them, besides the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pairs", nargs="+", metavar="TEXT", help="comparisons whose name has one of these texts in it"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="write torch.profiler's table of each contender")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/versus_diffusers.*")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments)))
        return
    from ddpm_hf.config import ModelConfig

    with tempfile.TemporaryDirectory() as folder:
        arguments.data = folder
        side = 16 if arguments.network == "tiny" else ModelConfig().image_size
        make_images(Path(folder), side)
        for batch in arguments.batches:
            arguments.batch = batch
            result = compare(arguments)
            print(table([result]))
            if arguments.save:
                save(result)


if __name__ == "__main__":
    main()
