"""Fetch from the Hub with huggingface_hub, plus checks: names stay in their folder, hashes match, nothing can run."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash

from ddpm_hf.checkpoints.format import (
    INDEX,
    MANIFEST,
    NETWORK_FILE,
    PROGRESS,
    SCHEDULER,
    SCHEDULER_FILE,
    STATE,
    UNET,
    WEIGHTS,
    sha256,
    tensor_shapes,
)
from ddpm_hf.config.hub import REPO_ID, repo_id_of
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import stays_inside
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, is_offline, remember_commit
from ddpm_hf.runtime.values import MAX_BYTES, as_type, shown

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIX = ".safetensors"
MAX_WEIGHTS_BYTES = 64 * 2**30
MAX_TEXT_BYTES = MAX_BYTES
"""Longest file of weights and longest JSON file that are downloaded; the JSON files of a model have a few kB."""

CONFIG = "training_config.yaml"
"""The name of a run's configuration in a repository, which tells how the images were decoded."""

AT_THE_ROOT = (NETWORK_FILE, f"{WEIGHTS}*.json", f"{WEIGHTS}*.safetensors", SCHEDULER_FILE)
"""The files of a pipeline without folders, as the first of diffusers were saved (google/ddpm-*)."""

PIPELINE_PATTERNS = (INDEX, CONFIG, f"{UNET}/*.json", f"{UNET}/*.safetensors", f"{SCHEDULER}/*.json", *AT_THE_ROOT)
CHECKPOINT_PATTERNS = (*PIPELINE_PATTERNS, MANIFEST, f"{STATE}/*.json", f"{STATE}/*.safetensors")
"""The files that are downloaded; none of them can hold code."""

PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".joblib")

CHECKPOINT_BRANCH = "checkpoints"
"""Where a checkpoint is looked for if main has none and no branch is given."""


@dataclass(frozen=True)
class HubAddress:
    """A model repository at a revision.

    Attributes:
        repo_id: user/name.
        revision: branch, tag or commit; None: main.
    """

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Read USER/REPO or USER/REPO@REV, with or without "hub:" before it, or the address of a repository.

        Raises:
            UserError: if it is neither.
        """
        repo_id, at, revision = repo_id_of(text.removeprefix("hub:")).partition("@")
        if repo_id.count("/") != 1 or not re.fullmatch(REPO_ID, repo_id) or (at and not revision):
            raise UserError(
                f"given {text!r}; a repository on the Hub is written hub:USER/REPO or hub:USER/REPO@REVISION"
            )
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def fetch_pipeline(model: str, client: HubClient | None = None) -> Path:
    """Download a pipeline (model_index.json, unet, scheduler); offline, find it in the cache.

    Args:
        model: USER/REPO or USER/REPO@REV.
        client: None: the usual Hub.

    Returns:
        A folder for `from_pretrained`, in huggingface_hub's cache. No file in it is pickled or code.

    Raises:
        UserError: if there is no such repository, or its content cannot be used.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the pipeline.
    """
    return _fetch(HubAddress.parse(model), client or HubClient(), with_state=False)


def fetch_checkpoint(address: str, client: HubClient | None = None) -> Path:
    """Download a checkpoint with its training state; offline, find it in the cache.

    Args:
        address: hub:USER/REPO or hub:USER/REPO@REV; without REV main, or else the branch "checkpoints".
        client: None: the usual Hub.

    Returns:
        A checkpoint folder, in huggingface_hub's cache.

    Raises:
        UserError: if there is no such repository, or no checkpoint in it.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the checkpoint.
    """
    client, parsed = client or HubClient(), HubAddress.parse(address)
    for revision in [parsed.revision] if parsed.revision else ["main", CHECKPOINT_BRANCH]:
        try:
            return _fetch(HubAddress(parsed.repo_id, revision), client, with_state=True)
        except UserError as error:
            reason = error
    raise UserError(f"--resume {address}: {reason}") from None


@dataclass(frozen=True)
class Head:
    """The newest commit of a branch.

    Attributes:
        repo_id: user/name.
        repo_type: "model" or "space".
        commit: hash.
        sizes: bytes of each file by path.
        hashes: SHA-256 of each large file and git's hash of each small one, by path.
    """

    repo_id: str
    repo_type: str
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str]


def read_head(client: HubClient, repo_id: str, revision: str | None = None, repo_type: str = "model") -> Head:
    """Ask the Hub for the head of a branch.

    Raises:
        UserError: if there is no such repository or branch, or the name of a file leads out of the repository.
        HubUnreachableError: if the Hub did not answer.
    """
    ask = partial(client.api.repo_info, repo_id, revision=revision, repo_type=repo_type, files_metadata=True)
    try:
        info: Any = client.call(f"listing {repo_id}", ask, repo_id)
        listed = [
            (each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id) for each in info.siblings
        ]
        files = as_type(list[tuple[str, Annotated[int, Ge(0)], str]], listed, f"the file list of {repo_id}")
        commit = str(info.sha)
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"the Hub's list of the files of {repo_id} is damaged ({type(error).__name__})") from error
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise UserError(f"the Hub's commit of {repo_id} is damaged: given {shown(commit)}; allowed: 40 hex digits")
    for name, _, _ in files:
        if not stays_inside(name):
            raise UserError(
                f"{repo_id} lists a file named {name!r}, which would not stay inside its folder; nothing of it is "
                "downloaded, since no honest upload makes such a name"
            )
    sizes, hashes = {name: size for name, size, _ in files}, {name: digest for name, _, digest in files}
    return Head(str(info.id), repo_type, commit, sizes, hashes)


def download(client: HubClient, head: Head, patterns: Iterable[str], cache: Path | None = None) -> Path:
    """Download files of a commit; files whose hash differs from the Hub's are deleted and downloaded once more.

    Args:
        client: the Hub.
        head: the commit.
        patterns: of the files' paths.
        cache: None: huggingface_hub's cache.

    Returns:
        The folder of the commit.

    Raises:
        UserError: if a file is wrong the second time, too, or longer than any of its kind.
        HubUnreachableError: if the Hub did not answer.
    """
    wanted = {name: head.hashes[name] for name in filter_repo_objects(head.hashes, allow_patterns=list(patterns))}
    large = [name for name in wanted if name.endswith(WEIGHTS_SUFFIX)]
    small = [name for name in wanted if name not in large]
    for name in wanted:
        longest = MAX_WEIGHTS_BYTES if name in large else MAX_TEXT_BYTES
        if head.sizes[name] > longest:
            raise UserError(f"{name} of {head.repo_id} has {head.sizes[name]:,} bytes; at most {longest:,} are read")

    def fetch(names: list[str]) -> Path:
        folder = snapshot_download(
            head.repo_id,
            repo_type=head.repo_type,
            revision=head.commit,
            allow_patterns=names,
            cache_dir=cache,
            endpoint=client.api.endpoint,
            token=client.token,
        )
        return Path(folder)

    for is_last in (False, True):
        for names in filter(None, (small, large)):  # apart, so that no small file takes the room of the weights
            task = f"downloading {', '.join(sorted(names))} of {head.repo_id}"
            num_bytes = sum(head.sizes[name] for name in names)
            folder = client.call(task, partial(fetch, names), head.repo_id, num_bytes)
        damaged = _find_damaged(folder, wanted)
        for name in damaged:
            (folder / name).resolve().unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
            if not is_last:
                logger.warning("%s of %s is damaged on this machine: downloading it again", name, head.repo_id)
        if not damaged:
            return folder
    raise UserError(
        f"{damaged[0]} of {head.repo_id} arrived damaged twice: its hash is not the Hub's ({wanted[damaged[0]]}); "
        "try again, or over another network"
    )


def _fetch(address: HubAddress, client: HubClient, with_state: bool) -> Path:
    patterns = CHECKPOINT_PATTERNS if with_state else PIPELINE_PATTERNS
    head, reason = None, "HF_HUB_OFFLINE is set"
    if not is_offline():
        try:
            head = read_head(client.for_lookups, address.repo_id, address.revision)
        except HubUnreachableError as error:
            logger.warning("%s: looking for %s in the cache", error, address)
            reason = "the Hub cannot be reached"
    if head is None:
        folder = _find_cached(address, patterns, with_state, reason)
    else:
        _check_files(address, head.sizes, with_state)
        folder = download(client, head, patterns)
    for pattern in patterns:
        if pattern.endswith(".safetensors"):
            for file in folder.glob(pattern):
                tensor_shapes(file)  # raises if the file is not valid
    if head is not None:
        remember_commit(head.repo_id, "model", address.revision, head.commit)
    return folder


def _find_cached(address: HubAddress, patterns: tuple[str, ...], with_state: bool, reason: str) -> Path:
    """The folder of a revision in the cache, checked against the hashes by which the cache names its files."""
    needed = [pattern for pattern in patterns if pattern != CONFIG]
    try:
        folder = Path(
            snapshot_download(address.repo_id, revision=address.revision, allow_patterns=needed, local_files_only=True)
        )
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        _check_files(address, names, with_state)
    except (IncompleteSnapshotError, UserError) as error:
        raise UserError(
            f"{reason}, and the cache does not hold all of {address} ({error}); fetch it once while online"
        ) from None
    except (LocalEntryNotFoundError, HFValidationError):
        raise UserError(f"{reason}, and {address} is not in the cache; fetch it once while online") from None
    blobs = {name: (folder / name).resolve().name for name in filter_repo_objects(names, allow_patterns=list(patterns))}
    # where there are no symbolic links, the files have their own names
    for name in _find_damaged(folder, {name: blob for name, blob in blobs.items() if len(blob) in (40, 64)}):
        raise UserError(
            f"{name} of {address} is damaged in the cache ({(folder / name).resolve()}); delete that file and fetch it "
            "again online"
        )
    return folder


def _find_damaged(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """The files that are missing or do not have the given hash: SHA-256 of a large file, git's of a small one."""
    return [
        name
        for name, expected in sorted(hashes.items())
        if not (file := folder / name).is_file()
        or (sha256(file) if len(expected) == 64 else git_hash(file.read_bytes())) != expected
    ]


def _check_files(address: HubAddress, names: Iterable[str], with_state: bool) -> None:
    """Refuse a repository without a pipeline, with pickled weights only, or without a training state that is needed."""
    if INDEX not in names:
        raise UserError(f"{address} holds no pipeline: there is no {INDEX}")
    names = list(names)
    in_unet = sorted(name for name in names if name.startswith(f"{UNET}/"))
    in_unet = in_unet or sorted(name for name in names if name.startswith(WEIGHTS))  # at the root
    if not any(name.endswith(".safetensors") for name in in_unet):
        if pickles := [name for name in in_unet if name.endswith(PICKLES)]:
            raise UserError(
                f"{address} holds pickled weights only ({', '.join(pickles)}), and a pickle can run code: nothing of "
                "it is loaded; ask its owner for safetensors (the Hub has a converter)"
            )
        raise UserError(f"{address} holds no weights: {UNET}/ has no .safetensors file")
    missing = [name for name in (f"{STATE}/{PROGRESS}", MANIFEST) if name not in names]
    if with_state and missing:
        raise UserError(
            f"{address} holds a pipeline but no training state ({', '.join(missing)} missing); name the branch or "
            "repository of the run's hub.checkpoint_branch or hub.checkpoint_repo_id"
        )
