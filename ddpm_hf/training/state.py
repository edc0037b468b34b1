"""The training state: everything that updates change, and how a checkpoint saves and restores it.

It is stored as safetensors and JSON, so nothing in a checkpoint can run code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import build_scheduler
from ddpm_hf.training.accelerator import gather_shards, shard_like
from ddpm_hf.training.compilation import compile_network
from ddpm_hf.training.ema import ExponentialMovingAverage
from ddpm_hf.training.fine_tuning import freeze
from ddpm_hf.training.finite import FiniteCheck
from ddpm_hf.training.objective import DiscriminatorStep
from ddpm_hf.training.resume import Start


class TrainState:
    """The network, its averages, the optimizer, and whatever else an update changes.

    Args:
        config: of the run.
        accelerator: the processes and devices.
        start: the checkpoint to restore; None for new weights.
        compiled: whether the network is compiled; None for what the configuration says, and not with `auto`.

    Attributes:
        network: the trained network; prepared by accelerate if its weights are sharded.
        parameters: of it that are trained.
        compiled: whether it is compiled.
        channels_last: whether its images are stored with their channels innermost.
        averages: of the weights; the first one is the one for use.
        pipeline: samples from the first average.
        discriminator: of the adversarial loss; None without one.
        num_accumulation_steps: micro-batches per update in each process.
        finite: which updates are skipped because a gradient is not finite.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, start: Start | None = None, compiled: bool | None = None
    ) -> None:
        self.config, self.accelerator, training = config, accelerator, config.training
        start = start or Start()
        self.compiled = training.compile is True if compiled is None else compiled
        is_faster = self.compiled and accelerator.device.type == "cuda"
        self.channels_last = is_faster if training.channels_last == "auto" else training.channels_last
        self.scheduler = build_scheduler(config.model)
        self.timestep_sampler = make_timestep_sampler(config.loss.timestep_sampling, config.model.time_steps)
        self.discriminator = DiscriminatorStep(config, accelerator) if config.loss.adversarial.weight else None
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = build_network(config.model).to(accelerator.device)
        freeze(network, training.freeze)
        if start.pretrained is not None:
            network.load_state_dict(start.pretrained.weights)
            start.pretrained.weights.clear()  # which take as much memory as the network
        self.averages = [
            ExponentialMovingAverage(network, decay, training.ema_schedule, training.ema_power)
            for decay in (training.ema_decay, *training.ema_extra_decays)
        ]
        self.pipeline = DDPMPipeline(unet=self.averages[0].network, scheduler=self.scheduler)
        if start.checkpoint is not None:
            with _loading(start.checkpoint):
                self._load_weights(start.checkpoint, network)
        if training.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.compiled:
            compile_network(network, accelerator.device)
        optimizer = _make_optimizer([each for each in network.parameters() if each.requires_grad], config, accelerator)
        if accelerator.is_fsdp2:
            self.network, self.optimizer = accelerator.prepare(network, optimizer)
        else:  # without DistributedDataParallel: `TrainStep` averages the gradients
            self.network, self.optimizer = network, accelerator.prepare(optimizer)
        self.parameters = [each for each in self.network.parameters() if each.requires_grad]  # which may be shards now
        for average in self.averages:
            average.track(self.network.parameters())
        if start.checkpoint is not None:
            with _loading(start.checkpoint):
                load_optimizer_state(self.optimizer.optimizer, start.checkpoint / STATE / OPTIMIZER)
        self.finite = FiniteCheck(training.max_skipped_updates, start.progress.num_skipped, accelerator.device)
        self.num_accumulation_steps = self._accumulation_steps(start)
        if accelerator.scaler is not None and start.progress.scaler:
            accelerator.scaler.load_state_dict(start.progress.scaler)

    @property
    def skips_on_device(self) -> bool:
        """Whether the optimizer itself skips an update that is not finite, so that the host need not wait to do it."""
        is_fused, is_sharded = self.optimizer.param_groups[0]["fused"], self.accelerator.is_fsdp2
        return is_fused and not is_sharded and self.accelerator.scaler is None and self.discriminator is None

    def gather_averages(self) -> None:
        """Gather sharded averages before the pipeline is used; every process calls this together."""
        for average in self.averages:
            average.gather()

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of the training state, for `save`; every process calls this together."""
        self.gather_averages()
        weights = self.network.state_dict()
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
        state.setdefault(int(index), {})[name] = _placed_like(value, parameter) if has_its_shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def _loading(checkpoint: Path) -> Iterator[None]:
    """Name the checkpoint whose tensors are not those of this network, which only somebody else's may be."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint} cannot be resumed from: its tensors do not fit the network: {reason}") from error


def _variant(decay: float) -> str:
    """The name of an average among the weights of a pipeline; diffusers finds no variant with a dot in its name."""
    return f"ema-{decay:g}".replace(".", "_")


def _placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor on a parameter's device, in its memory format and its shards.

    The optimizer's fused kernels take both to be laid out alike, and do not check it.
    """
    is_channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return shard_like(value.to(parameter.device).contiguous(memory_format=memory_format), parameter)


def _make_optimizer(
    parameters: list[torch.nn.Parameter], config: Config, accelerator: Accelerator
) -> torch.optim.Optimizer:
    training, device = config.training, accelerator.device
    is_fused = device.type in ("cpu", "cuda")
    # A recorded update reads the learning rate from a tensor, which sharded parameters do not take.
    takes_tensor = is_fused and not accelerator.is_fsdp2
    rate = torch.tensor(training.learning_rate, device=device) if takes_tensor else training.learning_rate
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return optimizer_class(
        parameters,
        lr=rate,
        betas=(training.beta1, training.beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=is_fused,
        capturable=takes_tensor and device.type == "cuda",
    )
