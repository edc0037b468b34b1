"""Begin a run with the network of another pipeline: what is taken over from it, and what is made anew."""

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ddpm_hf.checkpoints.fetch import fetch_pipeline
from ddpm_hf.checkpoints.find import (
    UNET_EMA,
    check_finite,
    check_network,
    find_unet,
    network_folder,
    read_schedule,
    weights_hash,
)
from ddpm_hf.checkpoints.format import SCHEDULER_CONFIG, SCHEDULER_FILE
from ddpm_hf.config import ModelConfig
from ddpm_hf.config.model import FURTHER_ARGUMENTS
from ddpm_hf.config.reader import explain
from ddpm_hf.models import DDPMUNet, network_arguments
from ddpm_hf.models.layers.attention import SelfAttentionBlock
from ddpm_hf.runtime.errors import UserError, first_line

OPTION = "model_config.pretrained"

CHANGEABLE = {"image_size", "image_channels", "num_classes", "dropout", "initialization"}
"""Options that may differ from the source's; with them variance_type, as long as the network does not learn it."""

FIXED_VARIANCES = {"fixed_small": "fixed_small", "fixed_large": "fixed_large"}
FIXED_VARIANCES |= {f"{name}_log": name for name in FIXED_VARIANCES}

SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
"""Our names of diffusers' schedules."""


@dataclass(frozen=True)
class Source:
    """A saved network.

    Attributes:
        name: as it is recorded: a folder, or USER/REPO@COMMIT.
        unet: folder of its weights.
        scheduler: file of its schedule; None if there is none.
    """

    name: str
    unet: Path
    scheduler: Path | None


@dataclass(frozen=True)
class Pretrained:
    """Where a fine-tuned run begins.

    Attributes:
        model: the complete `model_config` section.
        weights: of the run's network.
        changes: what differs from the source, for a person.
    """

    model: ModelConfig
    weights: dict[str, Tensor]
    changes: tuple[str, ...]


def find_source(pretrained: str) -> Source:
    """Find a saved network; one of the Hub is downloaded.

    Args:
        pretrained: folder of a pipeline, of a run, of a checkpoint of either, or of one of train_unconditional.py; or
            USER/REPO[@REVISION].

    Raises:
        UserError: if there is none, or its weights are pickled only.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the model.
    """
    found, name = find_unet(pretrained, OPTION), pretrained
    if found is None:
        saved = fetch_pipeline(pretrained)
        found = network_folder(saved)
        name = f"{pretrained.partition('@')[0]}@{saved.name}"  # the cache names the folder by its commit
    if not any(found.glob("*.safetensors")):
        raise UserError(
            f"{OPTION}: {found} holds no weights as safetensors, and pickled ones can run code: nothing is loaded. If "
            'you trust them, convert them: python -c "from diffusers import UNet2DModel; '
            f"UNet2DModel.from_pretrained('{found}', use_safetensors=False).save_pretrained('{found}')\""
        )
    own = found / SCHEDULER_FILE  # of a pipeline without folders
    schedules = (own, found.parent / SCHEDULER_CONFIG, found.parents[1] / SCHEDULER_CONFIG)
    return Source(name, found, next((file for file in schedules if file.is_file()), None))


def load_pretrained(given: ModelConfig, source: Source) -> Pretrained:
    """Load the network that a run begins with.

    Args:
        given: the `model_config` section as the user wrote it.
        source: of the network.

    Raises:
        UserError: if the source cannot be read or trained on, or naming every option that contradicts it.
    """
    try:
        check_network(source.unet)
        network = DDPMUNet.from_pretrained(str(source.unet), use_safetensors=True, torch_dtype=torch.float32)
        check_finite(network.named_parameters())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{OPTION}: {source.name} cannot be loaded: {first_line(error)}") from error
    found = _model_of(network, source, given)
    model = follow(given, found, CHANGEABLE)
    target, changes = network_arguments(model), _changes(found, model)
    if source.unet.name == UNET_EMA:
        changes = (f"its averaged weights, of {UNET_EMA}/, are taken", *changes)
    if source.scheduler is None:
        changes = ("it has no schedule: that of model_config is taken", *changes)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DDPMUNet(**target).state_dict().items()}
    own = network.state_dict()
    return Pretrained(model, {name: _adapted(name, own.get(name), shape) for name, shape in shapes.items()}, changes)


def follow(given: ModelConfig, source: ModelConfig, changeable: set[str]) -> ModelConfig:
    """The section of a run that takes what was not given from its source.

    Args:
        given: as the user wrote it.
        source: the complete section that it must not contradict.
        changeable: options that may differ.

    Raises:
        UserError: naming every option that was given and contradicts the source.
    """
    names = given.model_fields_set - {"pretrained", "pretrained_hash"}
    if source.beta_schedule == "cosine" == given.beta_schedule:
        names -= {"beta_start", "beta_end", "rescale_betas"}  # which it does not read
    if "learned_range" not in (given.variance_type, source.variance_type):
        changeable = changeable | {"variance_type"}
    wanted = {name: getattr(given, name) for name in names}
    refused = [
        f"{name} is {json.dumps(getattr(source, name))} there, given {json.dumps(value)}"
        for name, value in sorted(wanted.items())
        if name not in changeable and not _agrees(value, getattr(source, name))
    ]
    if refused:
        raise UserError(
            f"{OPTION}: {source.pretrained} contradicts model_config: {'; '.join(refused)}; leave these options out: "
            "the run follows it"
        )
    changed = {name: value for name, value in wanted.items() if name in changeable}
    try:
        return ModelConfig.model_validate({**source.model_dump(), **changed})
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text, _ in explain(error, "model_config"))
        raise UserError(f"{OPTION}: {source.pretrained} does not fit: {mistakes}") from None


def _agrees(given: Any, own: Any) -> bool:
    """Whether a value that was given is the source's, or a part of its arguments."""
    return given.items() <= own.items() if isinstance(given, dict) else bool(given == own)


def _model_of(network: DDPMUNet, source: Source, given: ModelConfig) -> ModelConfig:
    """The section that describes a saved network; its schedule is the given one where none is saved with it."""
    own = json.loads(json.dumps(dict(network.config)))
    channels = own["block_out_channels"]
    learns_variance = own["out_channels"] == 2 * own["in_channels"]
    if own["in_channels"] not in (1, 3) or not (learns_variance or own["out_channels"] == own["in_channels"]):
        raise UserError(
            f"{OPTION}: {source.name} takes images of {own['in_channels']} channels, predicts {own['out_channels']}; "
            "allowed: 1 or 3, and as many, or twice as many with the variance"
        )
    size = own["sample_size"]
    multipliers = (
        [each // channels[0] for each in channels] if all(each % channels[0] == 0 for each in channels) else []
    )
    schedule = _schedule(source, given)
    if learns_variance != (schedule["variance_type"] == "learned_range"):
        raise UserError(
            f"{OPTION}: {source.name} predicts {own['out_channels']} channels, which does not fit variance_type "
            f"{schedule['variance_type']}"
        )
    values = schedule | {
        "pretrained": source.name,
        "pretrained_hash": weights_hash(network),
        "image_size": given.image_size if size is None else size,
        "image_channels": own["in_channels"],
        "hidden_channels": channels[0],
        "channel_multipliers": multipliers or [1] * len(channels),  # then unet_arguments has them
        "attention_levels": [level for level, kind in enumerate(own["down_block_types"]) if "Attn" in kind],
        "attention_head_dim": own["attention_head_dim"],
        "mid_block_type": own["mid_block_type"],
        "num_res_blocks": own["layers_per_block"],
        "dropout": own["dropout"],
        "norm_groups": own["norm_num_groups"],
        "num_classes": own["num_class_embeds"] and max(own["num_class_embeds"] - 1, 1),
    }
    try:
        model = ModelConfig.model_validate(values)
        with torch.device("meta"):  # only its arguments are wanted
            ours = json.loads(json.dumps(dict(DDPMUNet(**network_arguments(model)).config)))
    except ValueError as error:
        raise UserError(f"{OPTION}: {source.name} has a network that cannot be trained here: {error}") from error
    further = {name: own[name] for name in FURTHER_ARGUMENTS if own[name] != ours[name]}
    return model.model_copy(update={"unet_arguments": further})


def _schedule(source: Source, given: ModelConfig) -> dict[str, Any]:
    """The options of a saved scheduler, or those that were given where there is none."""
    names = (
        "time_steps",
        "beta_schedule",
        "beta_start",
        "beta_end",
        "rescale_betas",
        "prediction_type",
        "variance_type",
    )
    if source.scheduler is None:
        return {name: getattr(given, name) for name in names}
    saved = read_schedule(source.scheduler)
    kind, variance = saved.get("beta_schedule", "linear"), saved.get("variance_type", "fixed_small")
    variance = FIXED_VARIANCES.get(variance, variance)
    problems = {
        "beta_schedule": kind if kind not in SCHEDULES else None,
        "trained_betas": saved.get("trained_betas"),
        "rescale_betas_zero_snr": saved.get("rescale_betas_zero_snr") or None,
        "variance_type": variance if variance not in (*FIXED_VARIANCES, "learned_range") else None,
    }
    if found := [f"{name} {json.dumps(value)}" for name, value in problems.items() if value is not None]:
        raise UserError(
            f"{OPTION}: the scheduler of {source.name} has {', '.join(found)}; a run trains by the betas of schedules "
            f"{' and '.join(SCHEDULES)}, and variances fixed_small, fixed_large and learned_range"
        )
    return {
        "time_steps": saved.get("num_train_timesteps", 1000),
        "beta_schedule": SCHEDULES[kind],
        "beta_start": saved.get("beta_start", 1e-4),
        "beta_end": saved.get("beta_end", 0.02),
        "rescale_betas": False,  # they are scaled already
        "prediction_type": saved.get("prediction_type", "epsilon"),
        "variance_type": variance,
    }


def _changes(source: ModelConfig, model: ModelConfig) -> tuple[str, ...]:
    """What a run changes in the network that it begins with, for a person."""
    changes = []
    if model.sides != source.sides:
        new, old = ("x".join(map(str, sides)) for sides in (model.sides, source.sides))
        changes.append(f"images of {new} pixels instead of {old}")
    before, channels = source.image_channels, model.image_channels
    if channels != before:
        how = "repeated" if channels > before else "averaged"
        changes.append(f"conv_in and conv_out are made anew for {channels} channels: those for {before} are {how}")
    if model.num_classes != source.num_classes:
        had, has = source.num_classes, model.num_classes
        text = (
            f"class_embedding is made anew for {has} classes and begins at zero"
            if has
            else "class_embedding is dropped"
        )
        changes.append(text + (f" (it had {had} classes)" if had else ""))
    return tuple(changes)


def _adapted(name: str, own: Tensor | None, shape: torch.Size) -> Tensor:
    """A tensor of the source in the shape that the run needs.

    A gray image is a colour image of three equal channels. So the first convolution sums over the channels or divides
    among them, and the last one averages or repeats them: the network's answer stays the same.
    """
    if own is not None and own.shape == shape:
        return own.detach().clone()
    if name.startswith("class_embedding"):
        return torch.zeros(shape)
    if own is None or not name.startswith(("conv_in", "conv_out")):
        raise UserError(f"{OPTION}: {name} has shape {None if own is None else tuple(own.shape)}, not {tuple(shape)}")
    if name == "conv_in.weight":
        summed = own.sum(dim=1, keepdim=True)
        return summed if shape[1] == 1 else summed.expand(shape).contiguous() / shape[1]
    gray = (
        shape[0] <= 2
    )  # of the output's channels; one for each image channel, and with the variance one more for each
    groups = own.unflatten(0, (-1, 3)).mean(1) if gray else own.repeat_interleave(3, 0)
    return groups.contiguous()


def freeze(network: nn.Module, what: str | tuple[str, ...] | None) -> None:
    """Freeze weights of a network.

    Args:
        network: to be trained.
        what: see `training.freeze`.

    Raises:
        UserError: if a pattern matches nothing, or nothing is left to train.
    """
    if what is None:
        return
    names = [name for name, _ in network.named_parameters()]
    if isinstance(what, str):
        trained = {
            f"{above}.{name}"
            for above, module in network.named_modules()
            if isinstance(module, (SelfAttentionBlock, nn.GroupNorm, nn.Embedding))
            for name, _ in module.named_parameters()
        }
        frozen = set(names) - trained
    else:
        found = {each: fnmatch.filter(names, each) + fnmatch.filter(names, f"{each}.*") for each in what}
        if useless := [each for each, matches in found.items() if not matches]:
            parts = sorted({name.partition(".")[0] for name in names})
            raise UserError(
                f"training.freeze: {', '.join(useless)} matches no weight; the network's parts are {', '.join(parts)}"
            )
        frozen = {name for matches in found.values() for name in matches}
    if frozen >= set(names):
        raise UserError("training.freeze: all weights would be frozen; leave some to be trained")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
