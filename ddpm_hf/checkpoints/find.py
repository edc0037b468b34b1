"""Find and load the model that a person names: a run folder, a saved pipeline, or a repository on the Hub."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import Field
from typing_extensions import TypedDict

from ddpm_hf.checkpoints.format import (
    INDEX,
    MANIFEST,
    NETWORK_FILE,
    SCHEDULER_CONFIG,
    SCHEDULER_FILE,
    UNET,
    WEIGHTS,
    count_parameters,
    find_changed_pipeline,
    find_latest,
)
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.config.model import MAX_TIME_STEPS, PredictionType
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError, first_line
from ddpm_hf.runtime.values import as_type, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ddpm_hf.pipelines.ddpm import DDPMPipeline

Length = Annotated[int, Ge(1), Le(8192)]
Channels = Annotated[int, Ge(1), Le(2**16)]
Timesteps = Annotated[int, Ge(1), Le(MAX_TIME_STEPS)]
Beta = Annotated[float, Ge(0), Le(1)]
Levels = Len(1, 16)


class _Index(TypedDict):
    """What model_index.json has to say."""

    unet: tuple[Literal["diffusers"], Literal["UNet2DModel"]]
    scheduler: tuple[Literal["diffusers"], str]


class _NetworkConfig(TypedDict, total=False):
    """The arguments of UNet2DModel, within what a network for images may have."""

    sample_size: Length | tuple[Length, Length] | None
    in_channels: Channels
    out_channels: Channels
    center_input_sample: bool
    time_embedding_type: Literal["positional", "fourier", "learned"]
    time_embedding_dim: Channels | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: Annotated[list[str], Levels]
    mid_block_type: str | None
    up_block_types: Annotated[list[str], Levels]
    block_out_channels: Annotated[list[Channels], Levels]
    layers_per_block: Annotated[int, Ge(1), Le(64)]
    mid_block_scale_factor: Annotated[float, Gt(0)]
    downsample_padding: Annotated[int, Ge(0), Le(1)]
    downsample_type: str
    upsample_type: str
    dropout: Annotated[float, Ge(0), Lt(1)]
    act_fn: str
    attention_head_dim: Channels | None
    norm_num_groups: Channels
    attn_norm_num_groups: Channels | None
    norm_eps: Beta
    resnet_time_scale_shift: str
    add_attention: bool
    class_embed_type: str | None
    num_class_embeds: Annotated[int, Ge(1), Le(10**6)] | None
    num_train_timesteps: Timesteps | None


class _SchedulerConfig(TypedDict, total=False):
    """The arguments of diffusers' schedulers that more than one of them has."""

    num_train_timesteps: Timesteps
    beta_start: Annotated[float, Ge(0), Lt(1)]
    beta_end: Annotated[float, Ge(0), Lt(1)]
    beta_schedule: str
    trained_betas: Annotated[list[Beta], Len(1, MAX_TIME_STEPS)] | None
    prediction_type: PredictionType
    variance_type: (
        Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"] | None
    )
    clip_sample: bool
    clip_sample_range: Annotated[float, Gt(0)]
    thresholding: bool
    dynamic_thresholding_ratio: Annotated[float, Gt(0), Le(1)]
    sample_max_value: Annotated[float, Gt(0)]
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: Annotated[int, Ge(0), Le(MAX_TIME_STEPS)]
    rescale_betas_zero_snr: bool


class _ShardIndex(TypedDict):
    """What the index of weights in several files has to say."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]]


UNET_EMA = "unet_ema"
"""Averaged weights in a checkpoint of diffusers' train_unconditional.py."""

ALLOWED = "a run folder, a saved pipeline, or an id on the Hub (user/name[@REV])"


def newest_pipeline(folder: Path, option: str = "--model") -> Path:
    """The saved pipeline in a folder, or else the newest complete checkpoint of the run in it.

    Args:
        folder: of a saved pipeline or a run.
        option: the option that named it, for the message.

    Raises:
        UserError: if there is neither, naming the run folders in it.
    """
    pipeline = folder if (folder / INDEX).is_file() else find_latest(RunFolder(folder).checkpoints)
    if pipeline is None:
        content = f"holds neither a pipeline ({INDEX}) nor a complete checkpoint of a run"
        hint = f"; run folders in it: {', '.join(runs)}" if (runs := _runs(folder)) else ""
        raise UserError(f"{option}: {folder} {content if folder.is_dir() else 'does not exist'}{hint}")
    return pipeline


def find_folder(model: str | Path, option: str = "--model") -> Path | None:
    """The folder with the pipeline of a model; None for an id on the Hub.

    Args:
        model: folder of a saved pipeline, or of a run (whose newest checkpoint is used while it is not finished), or an
            id on the Hub.
        option: the option that named it, for the messages.

    Raises:
        UserError: if it is none of these.
    """
    if repo_id_of(str(model)) != str(model):  # an address
        return None
    path = Path(model).expanduser()
    if path.is_dir():
        return newest_pipeline(path, option)
    if path.exists():
        raise UserError(f"{option}: {path} is a file; allowed: {ALLOWED}")
    if runs := _runs(path.parent) if path.parent != Path() else []:
        raise UserError(f"{option}: there is no folder {model}; run folders there: {', '.join(runs)}")
    if path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise UserError(f"{option}: there is no folder {model}; allowed: {ALLOWED}")
    if path.parent.is_dir() or path.parts[0] == "runs":  # not a user of the Hub
        raise UserError(f"{option}: there is no folder {model}; if it is an id on the Hub, write hub:{model}")
    return None


def find_unet(model: str, option: str) -> Path | None:
    """The folder with the network of a model; None for an id on the Hub.

    Args:
        model: as `find_folder` takes it, or a checkpoint of diffusers' train_unconditional.py, whose averaged weights
            are preferred.
        option: the option that named it, for the messages.

    Raises:
        UserError: if it is none of these.
    """
    folder = Path(model).expanduser()
    for name in (UNET_EMA, UNET):
        if (folder / name / NETWORK_FILE).is_file():
            return folder / name
    saved = find_folder(model, option)
    return None if saved is None else network_folder(saved)


def network_folder(pipeline: Path) -> Path:
    """The folder of the network of a saved pipeline: its own, or that of the pipeline, as diffusers once saved it."""
    return pipeline if (pipeline / NETWORK_FILE).is_file() else pipeline / UNET


def pipeline_folder(model: str | Path) -> Path:
    """The folder with the pipeline of a model, downloaded if it is one on the Hub; no PyTorch is loaded.

    Args:
        model: as in `load_pipeline`.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the model.
    """
    folder = find_folder(model)
    if folder is not None:
        return folder
    from ddpm_hf.checkpoints.fetch import fetch_pipeline  # the Hub's client takes a moment to import

    with waiting(f"asking the Hub for {model}"):
        return fetch_pipeline(str(model))


def check_options(folder: Path, class_labels: Sequence[int] | None, guidance_scale: float = 1.0) -> int:
    """Check options of the command line against a saved pipeline, before PyTorch is loaded.

    Args:
        folder: of the pipeline.
        class_labels: as given by --class_labels.
        guidance_scale: as given by --guidance_scale.

    Returns:
        The model's time steps, T.

    Raises:
        UserError: if the model has no such class, or no guidance is possible.
    """
    try:
        network, scheduler = read_configs(folder)
    except UserError as error:
        raise UserError(f"--model: {error}") from None
    num_labels = network.get("num_class_embeds") or 0  # the last of them stands for no class
    if class_labels and not num_labels:
        given = " ".join(map(str, class_labels))
        raise UserError(f"--class_labels: given {given}; allowed: none, since the model is unconditional")
    for label in class_labels or ():
        if not 0 <= label < num_labels - 1:
            raise UserError(
                f"--class_labels: given {label}; allowed: 0 to {num_labels - 2}, or leave it out for images of no class"
            )
    if guidance_scale != 1 and not class_labels:
        raise UserError(f"--guidance_scale: given {guidance_scale:g}; allowed: 1, or with --class_labels")
    return int(scheduler.get("num_train_timesteps", 1000))


def run_of(folder: str | None, config: str) -> str:
    """The run folder of a YAML file.

    Args:
        folder: its output_dir.
        config: its name, for the message.

    Raises:
        UserError: if the run has not begun.
    """
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"--config: the run of {config} has not begun, there is no folder {folder}; train it first")
    return folder


def load_pipeline(model: str | Path) -> "DDPMPipeline":
    """Load a pipeline onto the GPU, if there is one.

    Args:
        model: folder of a saved pipeline, or of a run (whose newest checkpoint is used while it is not finished), or an
            id on the Hub, as user/name or user/name@REVISION.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the model.
    """
    folder = pipeline_folder(model)

    # these load torch, which takes seconds; programs report a wrong --model before
    import torch
    from diffusers.utils import logging as diffusers_logging

    # it loads torch, too
    from ddpm_hf.pipelines.ddpm import DDPMPipeline

    diffusers_logging.disable_progress_bar()
    try:
        check_pipeline(folder)
        pipeline = DDPMPipeline.from_pretrained(str(folder))
        check_finite(pipeline.unet.named_parameters())
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise errors of any type for files that are not as they should be
        raise UserError(f"--model: {model} cannot be loaded: {first_line(error)}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of a saved pipeline's network and scheduler, checked for sense value by value.

    Raises:
        UserError: naming the file, the field, its value and what is allowed.
    """
    unet = network_folder(folder)
    _read(folder / INDEX, _Index)
    schedule = folder / (SCHEDULER_CONFIG if unet != folder else SCHEDULER_FILE)
    return _read(unet / NETWORK_FILE, _NetworkConfig), read_schedule(schedule)


def read_schedule(file: Path) -> dict[str, Any]:
    """The configuration of a scheduler, checked for sense value by value; errors are those of `read_configs`."""
    return _read(file, _SchedulerConfig)


def _read(file: Path, kind: Any) -> dict[str, Any]:
    try:
        values = read_json(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; get the model anew") from None
    as_type(kind, values, str(file))
    return values


def check_pipeline(folder: Path, weights: bool = False) -> None:
    """Check the files of a saved pipeline for sense, before memory is taken for what they describe.

    Args:
        folder: of the pipeline.
        weights: whether the values of the weights are checked, too, without a network.

    Raises:
        UserError: naming the file, and what in it is wrong.
    """
    # here, since programs import this module for find_folder before they load torch
    from safetensors import safe_open

    if change := find_changed_pipeline(folder):
        hint = f"if the change is meant, delete {MANIFEST} beside it"
        raise UserError(f"{folder}: {change}, and is not what the run saved; {hint}")
    read_configs(folder)
    unet = network_folder(folder)
    check_network(unet)
    for file in sorted(unet.glob("*.safetensors")) if weights else ():
        with safe_open(file, "pt") as tensors:
            check_finite((f"{name} of {file}", tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118


def check_network(unet: Path) -> None:
    """Check the files of a saved network, but not the values of its weights; errors are those of `check_pipeline`."""
    import torch  # here, as above
    from diffusers.models.unets.unet_2d import UNet2DModel

    config = _read(unet / NETWORK_FILE, _NetworkConfig)
    if not any(unet.glob(f"{WEIGHTS}*")):
        raise UserError(f"{unet} holds no weights: there is no {WEIGHTS}.safetensors in it")
    if (shards := unet / f"{WEIGHTS}.safetensors.index.json").exists():
        as_type(_ShardIndex, read_json(shards), str(shards))
    try:
        with torch.device("meta"):  # which takes no memory
            network = UNet2DModel.from_config(config)
    except Exception as error:  # of any type, by the argument that is wrong
        raise UserError(f"{unet / NETWORK_FILE} describes no network: {first_line(error)}") from error
    needed, found = sum(parameter.numel() for parameter in network.parameters()), count_parameters(unet)
    if needed > found > 0:
        given = f"describes a network of {needed:,} parameters, but the weights beside it are {found:,}"
        raise UserError(f"{unet / NETWORK_FILE} {given}")


def check_finite(tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    """Raise a UserError that names the first of these tensors that is not finite."""
    for name, tensor in tensors:
        if not tensor.float().isfinite().all():
            raise UserError(f"the weights are broken: {name} has values that are NaN or infinite")


def weights_hash(network: "nn.Module") -> str:
    """The first 16 hex digits of a SHA-256 of a network's weights, which distinguishes models of the same name."""
    import torch  # here, since programs import this module for find_folder before they load torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _runs(folder: Path) -> list[str]:
    """The folders in a folder that hold a model."""
    if not folder.is_dir():
        return []
    return sorted(
        str(path) for path in folder.iterdir() if (path / INDEX).exists() or RunFolder(path).checkpoints.is_dir()
    )
