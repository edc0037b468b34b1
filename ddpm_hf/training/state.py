"""The training state: everything that updates change, and how a checkpoint saves and restores it.

It is stored as safetensors and JSON, so nothing in a checkpoint can run code.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf.checkpoints.format import (
    DISCRIMINATOR,
    DISCRIMINATOR_OPTIMIZER,
    NETWORK,
    OPTIMIZER,
    STATE,
    TIMESTEP_SAMPLER,
    UNET,
    WEIGHTS,
    Progress,
)
from ddpm_hf.config import Config
from ddpm_hf.losses import make_timestep_sampler
from ddpm_hf.models import DDPMUNet, build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import build_scheduler
from ddpm_hf.training.accelerator import gather_shards, shard_like
from ddpm_hf.training.ema import ExponentialMovingAverage
from ddpm_hf.training.objective import DiscriminatorStep
from ddpm_hf.training.resume import Start


class TrainState:
    """The network, its averages, the optimizer, and whatever else an update changes.

    Args:
        config: of the run.
        accelerator: the processes and devices.
        start: the checkpoint to restore; None for new weights.

    Attributes:
        network: prepared by accelerate.
        averages: of the weights; the first one is the one for use.
        pipeline: samples from the first average.
        discriminator: of the adversarial loss; None without one.
        num_accumulation_steps: micro-batches per update in each process.
        num_skipped: updates skipped because the loss or a gradient was not finite.
    """

    def __init__(self, config: Config, accelerator: Accelerator, start: Start | None = None) -> None:
        self.config, self.accelerator, training = config, accelerator, config.training
        start = start or Start()
        self.scheduler = build_scheduler(config.model)
        self.timestep_sampler = make_timestep_sampler(config.loss.timestep_sampling, config.model.time_steps)
        self.discriminator = DiscriminatorStep(config, accelerator) if config.loss.adversarial.weight else None
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = build_network(config.model).to(accelerator.device)
        self.averages = [
            ExponentialMovingAverage(network, decay, training.ema_schedule, training.ema_power)
            for decay in (training.ema_decay, *training.ema_extra_decays)
        ]
        self.pipeline = DDPMPipeline(unet=self.averages[0].network, scheduler=self.scheduler)
        if start.checkpoint is not None:
            self._load_weights(start.checkpoint, network)
        if training.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if training.channels_last:
            network.to(memory_format=torch.channels_last)
        if training.compile:
            network.compile_repeated_blocks(dynamic=True)
        optimizer = _make_optimizer(list(network.parameters()), config)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.parameters = list(self.network.parameters())  # which may be shards now
        for average in self.averages:
            average.track(self.parameters)
        if start.checkpoint is not None:
            load_optimizer_state(self.optimizer.optimizer, start.checkpoint / STATE / OPTIMIZER)
        self.num_skipped, self.num_accumulation_steps = start.progress.num_skipped, self._accumulation_steps(start)
        if accelerator.scaler is not None and start.progress.scaler:
            accelerator.scaler.load_state_dict(start.progress.scaler)

    def gather_averages(self) -> None:
        """Gather sharded averages before the pipeline is used; every process calls this together."""
        for average in self.averages:
            average.gather()

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of the training state, for `save`; every process calls this together."""
        self.gather_averages()
        weights = self.accelerator.unwrap_model(self.network).state_dict()
        files = {
            NETWORK: gather_shards(weights, self.accelerator),
            OPTIMIZER: gather_shards(optimizer_state(self.optimizer.optimizer), self.accelerator),
            TIMESTEP_SAMPLER: self.timestep_sampler.state_dict(),
        }
        if self.discriminator is not None:
            files[DISCRIMINATOR] = self.discriminator.loss.state_dict()
            files[DISCRIMINATOR_OPTIMIZER] = optimizer_state(self.discriminator.optimizer)
        return files

    def save(self, folder: Path, progress: Progress, files: dict[str, dict[str, Tensor]]) -> None:
        """Write the files of a checkpoint: a pipeline of the averaged weights, and beside it the training state.

        Args:
            folder: an empty folder.
            progress: of the run.
            files: of the training state; see `gather`.
        """
        self.save_pipeline(folder)
        (folder / STATE).mkdir()
        for name, tensors in files.items():
            # safetensors wants contiguous tensors; those of a network may be channels_last
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, folder / STATE / name)
        progress.write(folder)

    def save_pipeline(self, folder: Path) -> None:
        """Write a pipeline of the averaged weights, with the further averages as variants."""
        self.pipeline.save_pretrained(folder)
        for average in self.averages[1:]:
            average.network.save_pretrained(folder / UNET, variant=_variant(average.decay))

    def _load_weights(self, checkpoint: Path, network: DDPMUNet) -> None:
        """Restore everything but the optimizer; an average that the checkpoint lacks starts as the first one."""
        state, first = checkpoint / STATE, checkpoint / UNET / f"{WEIGHTS}.safetensors"
        network.load_state_dict(load_file(state / NETWORK))
        self.timestep_sampler.load_state_dict(load_file(state / TIMESTEP_SAMPLER))
        self.averages[0].network.load_state_dict(load_file(first))
        for average in self.averages[1:]:
            own = first.with_name(f"{WEIGHTS}.{_variant(average.decay)}.safetensors")
            average.network.load_state_dict(load_file(own if own.exists() else first))
        if self.discriminator is not None and (state / DISCRIMINATOR).exists():  # else it starts with the resumed run
            self.discriminator.loss.load_state_dict(load_file(state / DISCRIMINATOR))
            load_optimizer_state(self.discriminator.optimizer, state / DISCRIMINATOR_OPTIMIZER)

    def _accumulation_steps(self, start: Start) -> int:
        """The configured number, or the larger one that `TrainStep.fit_memory` found for the same share of a batch."""
        configured, progress = self.config.training.gradient_accumulation_steps, start.progress
        if start.checkpoint is None:
            return configured
        before = (progress.num_processes, progress.config["training"]["gradient_accumulation_steps"])
        return progress.num_accumulation_steps if before == (self.accelerator.num_processes, configured) else configured


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer, as `index of the parameter.name`; its settings are in the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, tensors in state.items() for name, value in tensors.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Restore the tensors of an optimizer of the same parameters, sharded if these are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        has_its_shape = value.shape == parameter.shape  # unlike the number of updates
        tensor = shard_like(value.to(parameter.device), parameter) if has_its_shape else value
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _variant(decay: float) -> str:
    """The name of an average among the weights of a pipeline; diffusers finds no variant with a dot in its name."""
    return f"ema-{decay:g}".replace(".", "_")


def _make_optimizer(parameters: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    training = config.training
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return optimizer_class(
        parameters,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
