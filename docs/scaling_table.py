"""Write the tables of docs/scaling.md anew, from the networks themselves: python docs/scaling_table.py"""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from ddpm_hf.config import Config, load_config  # noqa: E402
from ddpm_hf.models import build_network  # noqa: E402

PAGE = REPOSITORY / "docs" / "scaling.md"

RATE = 187e12
"""bf16 operations per second of a recorded, compiled update on an H200 (benchmarks/results/gpu_graphs.md)."""
SECONDS_PER_OPERATOR = 5e-6
"""Of the shortest operator of a recorded update there: 2.2 ms for a forward pass of one image."""
IN_MACHINE, BETWEEN_MACHINES = 300e9, 40e9
"""Bytes per second and GPU of an all-reduce over NVLink, and over 400 Gbit/s networks (assumed)."""
SECONDS_PER_HOP = 10e-6
"""Of a message between two GPUs (assumed)."""
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Recipe:
    """What a configuration costs, whatever the machine."""

    name: str
    num_images: int

    @cached_property
    def config(self) -> Config:
        return load_config(REPOSITORY / "configs" / f"{self.name}.yaml")

    @cached_property
    def _counts(self) -> tuple[int, int, int]:
        model, count = self.config.model, 2
        with torch.device("meta"):
            network = build_network(model)
            images = torch.empty(count, model.image_channels, model.image_size, model.image_size)
            flops, operators = FlopCounterMode(display=False), _Operators()
            with operators, flops:
                network(images, torch.zeros(count)).sample.sum().backward()
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        return num_parameters, flops.get_total_flops() // count, operators.count

    @property
    def num_parameters(self) -> int:
        return self._counts[0]

    @property
    def operations(self) -> int:
        """Multiplications and additions of one image in one update."""
        return self._counts[1]

    @property
    def num_operators(self) -> int:
        """Operators of one forward and backward pass."""
        return self._counts[2]

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, their average and two moments, in float32."""
        return 16 * self.num_parameters

    @property
    def cache_bytes(self) -> int:
        """Decoded images, on disk."""
        return self.num_images * self.config.model.image_channels * self.config.model.image_size**2


class _Operators(TorchDispatchMode):
    """Counts the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Cost:
    """The parts of one update, in seconds."""

    compute: float
    shortest: float
    exchange: float

    @property
    def step(self) -> float:
        """The gradients are exchanged after they are computed."""
        return max(self.compute, self.shortest) + self.exchange


def traffic(num_parameters: int, num_gpus: int) -> float:
    """Bytes that each GPU sends per update: a ring all-reduce of float32 gradients."""
    return 2 * (num_gpus - 1) / num_gpus * 4 * num_parameters


def cost(recipe: Recipe, num_gpus: int, batch_size: int) -> Cost:
    """Estimate an update from the assumptions above."""
    compute = recipe.operations * batch_size / num_gpus / RATE
    bandwidth = IN_MACHINE if num_gpus <= GPUS_PER_MACHINE else BETWEEN_MACHINES
    exchange = traffic(recipe.num_parameters, num_gpus) / bandwidth + 2 * math.log2(num_gpus) * SECONDS_PER_HOP
    return Cost(compute, recipe.num_operators * SECONDS_PER_OPERATOR, exchange)


RECIPES = (Recipe("cifar10", 50_000), Recipe("celeba64", 162_770), Recipe("ddpm_config", 50_000))
MACHINES = ((1, 128), (8, 128), (8, 1024), (256, 256), (256, 32_768))


def sizes() -> list[str]:
    """The table of what recipes weigh; what is sent is that of one GPU in one update."""
    rows = []
    for recipe in RECIPES:
        sent = (f"{traffic(recipe.num_parameters, num_gpus) / 1e6:,.0f} MB" for num_gpus in (2, 8, 256))
        rows.append(
            [
                f"`configs/{recipe.name}.yaml`",
                f"{recipe.num_parameters:,}",
                f"{recipe.operations / 1e9:.1f}",
                *sent,
                f"{recipe.checkpoint_bytes / 1e9:.2f} GB",
                f"{recipe.cache_bytes / 1e9:.2f} GB",
            ]
        )
    head = "recipe,parameters,GFLOP per image,sent on 2 GPUs,on 8,on 256,checkpoint,decoded images"
    return _table(head.split(","), rows)


def runs() -> list[str]:
    """The table of what whole runs cost."""
    rows = []
    for recipe in RECIPES[:2]:
        training = recipe.config.training
        assert training.num_steps is not None
        seen = training.num_steps * training.batch_size
        alone = cost(recipe, 1, 128).step / 128
        for num_gpus, batch_size in MACHINES:
            each = cost(recipe, num_gpus, batch_size)
            hours = each.step * seen / batch_size / 3600
            rows.append(
                [
                    recipe.name,
                    str(num_gpus),
                    f"{batch_size:,}",
                    f"{batch_size // num_gpus:,}",
                    *(f"{1e3 * part:.1f}" for part in (each.compute, each.shortest, each.exchange, each.step)),
                    f"{seen // batch_size:,}",
                    f"{hours:.2g}",
                    f"{hours * num_gpus:,.0f}",
                    f"{alone / (each.step / batch_size * num_gpus):.0%}",
                ]
            )
    head = "recipe,GPUs,batch,per GPU,compute ms,shortest ms,exchange ms,update ms,updates,hours,GPU hours,efficiency"
    return _table(head.split(","), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]


def renew(text: str) -> str:
    """The page with its tables computed anew."""
    for name, table in (("sizes", sizes()), ("runs", runs())):
        marks = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = re.sub(f"(?s){marks[0]}.*{marks[1]}", marks[0] + "\n".join(table) + "\n" + marks[1], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
