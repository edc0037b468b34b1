"""Bring files from the Hub: pinned to one commit, checked byte by byte, weights and text only."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from ddpm_hf.checkpoints.format import INDEX, MANIFEST, PROGRESS, SCHEDULER, STATE, UNET
from ddpm_hf.checkpoints.listing import Listing, RemoteFile, list_repository
from ddpm_hf.checkpoints.safetensors_header import check_weights
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_cache import remember_commit
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, is_offline

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 16 * 2**20
"""Longest JSON file that is read: a model's are a few kB."""

PIPELINE_FOLDERS = (f"{UNET}/", f"{SCHEDULER}/")
PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".joblib")

CHECKPOINT_BRANCH = "checkpoints"
"""Where checkpoints are looked for when main has none and no branch is named."""


@dataclass(frozen=True)
class HubAddress:
    """A model repository, and which state of it.

    Attributes:
        repo_id: user/name.
        revision: branch, tag or commit; None for what the repository is first looked at with.
    """

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Read USER/REPO or USER/REPO@REV, with or without "hub:" before it.

        Raises:
            UserError: if it is neither.
        """
        repo_id, _, revision = text.removeprefix("hub:").partition("@")
        if repo_id.count("/") != 1 or not all(repo_id.split("/")) or ("@" in text and not revision):
            raise UserError(
                f"given {text!r}; a repository on the Hub is written hub:USER/REPO or hub:USER/REPO@REVISION"
            )
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def fetch_pipeline(model: str, client: HubClient | None = None) -> Path:
    """Bring a pipeline (model_index.json, unet, scheduler) to this machine; offline, find it in the cache.

    Args:
        model: USER/REPO or USER/REPO@REV.
        client: the Hub; None is the usual one.

    Returns:
        A folder for `from_pretrained`, in huggingface_hub's cache. No file in it is pickled or code.

    Raises:
        UserError: if there is no such repository, or what it holds cannot be used.
        HubUnreachableError: if the Hub did not answer and the cache does not have it.
    """
    return _fetch(HubAddress.parse(model), client or HubClient(), _is_pipeline_file, _check_pipeline)


def fetch_checkpoint(address: str, client: HubClient | None = None) -> Path:
    """Bring a checkpoint with its training state to this machine; offline, find it in the cache.

    Args:
        address: hub:USER/REPO or hub:USER/REPO@REV; without REV main, or else the branch "checkpoints".
        client: the Hub; None is the usual one.

    Returns:
        A checkpoint folder, in huggingface_hub's cache.

    Raises:
        UserError: if there is no such repository, or no checkpoint in it.
        HubUnreachableError: if the Hub did not answer and the cache does not have it.
    """
    client, parsed = client or HubClient(), HubAddress.parse(address)
    wanted = [parsed.revision] if parsed.revision else ["main", CHECKPOINT_BRANCH]
    for revision in wanted:
        try:
            at = HubAddress(parsed.repo_id, revision)
            return _fetch(at, client, lambda path: _is_pipeline_file(path) or _is_state_file(path), _check_checkpoint)
        except UserError as error:
            if revision == wanted[-1]:
                raise UserError(f"--resume {address}: {error}") from None
    raise AssertionError


def fetch_file(client: HubClient, listing: Listing, path: str, cache: Path | None = None) -> Path:
    """Bring one file of a listing; a copy that is not what the Hub lists is thrown away and fetched once more.

    Args:
        client: the Hub.
        listing: says what the file is to be.
        path: within the repository.
        cache: folder of the cache; None is huggingface_hub's.

    Raises:
        UserError: if the second copy is wrong, too.
        HubUnreachableError: if the Hub did not answer.
    """
    expected = listing.files[path]

    def download(again: bool) -> Path:
        return client.call(
            f"downloading {path} of {listing.repo_id}",
            lambda: Path(
                hf_hub_download(
                    listing.repo_id,
                    path,
                    revision=listing.commit,
                    cache_dir=cache,
                    force_download=again,
                    endpoint=client.api.endpoint,
                    token=client.token,
                )
            ),
            listing.repo_id,
        )

    found = download(again=False)
    if expected.matches(found):
        return found
    logger.warning("%s of %s is damaged on this machine: downloading it again", path, listing.repo_id)
    found = download(again=True)
    if not expected.matches(found):
        found.resolve().unlink(missing_ok=True)
        raise UserError(
            f"{path} of {listing.repo_id} arrived damaged twice: its bytes are not those that the Hub lists "
            f"({expected.sha256 or expected.blob_id}); try again, or over another network"
        )
    return found


def _fetch(
    address: HubAddress, client: HubClient, wanted: Callable[[str], bool], check: Callable[[HubAddress, set[str]], None]
) -> Path:
    if is_offline():
        return _find_cached(address, wanted, check, "HF_HUB_OFFLINE is set")
    try:
        listing = client.call(
            f"listing {address}",
            lambda: list_repository(client, address.repo_id, address.revision),
            address.repo_id,
        )
    except HubUnreachableError as error:
        logger.warning("%s: looking for %s in the cache", error, address)
        return _find_cached(address, wanted, check, "the Hub cannot be reached")
    names = {path for path in listing.files if wanted(path)}
    check(address, set(listing.files))
    for path in names:
        if not path.endswith(".safetensors") and listing.files[path].size > MAX_TEXT_BYTES:
            raise UserError(
                f"{path} of {address} has {listing.files[path].size:,} bytes; at most {MAX_TEXT_BYTES:,} are read"
            )
    files = [fetch_file(client, listing, path) for path in sorted(names)]
    for file in files:
        if file.suffix == ".safetensors":
            check_weights(file)
    remember_commit("model", listing.repo_id, address.revision, listing.commit)
    return _snapshot_of(files[0], min(names))


def _find_cached(
    address: HubAddress, wanted: Callable[[str], bool], check: Callable[[HubAddress, set[str]], None], why: str
) -> Path:
    """The snapshot of an address in the cache, checked against the hashes that its blobs are named by."""
    try:
        index = Path(hf_hub_download(address.repo_id, INDEX, revision=address.revision, local_files_only=True))
    except (EntryNotFoundError, HFValidationError):
        raise UserError(f"{why}, and {address} is not in the cache; fetch it once while online") from None
    snapshot = _snapshot_of(index, INDEX)
    names = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}
    try:
        check(address, names)
        _check_parts(snapshot, names)
    except UserError as error:
        raise UserError(f"{why}, and the cache does not hold all of it: {error}; fetch it once while online") from None
    for name in sorted(filter(wanted, names)):
        blob = (snapshot / name).resolve()
        is_sha256 = len(blob.name) == 64
        file = RemoteFile(name, blob.stat().st_size, blob.name, blob.name if is_sha256 else None)
        if len(blob.name) in (40, 64) and not file.matches(blob):
            raise UserError(
                f"{name} of {address} is damaged in the cache ({blob}); delete that file and fetch it again online"
            )
        if name.endswith(".safetensors"):
            check_weights(snapshot / name)
    return snapshot


def _check_parts(snapshot: Path, names: set[str]) -> None:
    parts = [name for name, kind in json.loads((snapshot / INDEX).read_text()).items() if isinstance(kind, list)]
    for part in parts:
        if not any(name.startswith(f"{part}/") for name in names):
            raise UserError(f"{part}/ is missing")


def _snapshot_of(path: Path, name: str) -> Path:
    """The folder that a downloaded file lies in by its name in the repository."""
    return Path(os.fspath(path)[: -len(name)])


def _is_pipeline_file(path: str) -> bool:
    return path == INDEX or (path.startswith(PIPELINE_FOLDERS) and path.endswith((".json", ".safetensors")))


def _is_state_file(path: str) -> bool:
    return path == MANIFEST or (path.startswith(f"{STATE}/") and path.endswith((".json", ".safetensors")))


def _check_pipeline(address: HubAddress, names: set[str]) -> None:
    """Refuse a repository without a pipeline, or with one whose weights are pickled."""
    if INDEX not in names:
        raise UserError(f"{address} holds no pipeline: there is no {INDEX}")
    weights = [name for name in names if name.startswith(f"{UNET}/") and name.endswith(".safetensors")]
    if weights:
        return
    pickles = sorted(name for name in names if name.startswith(f"{UNET}/") and name.endswith(PICKLES))
    if pickles:
        raise UserError(
            f"{address} holds pickled weights only ({', '.join(pickles)}), and a pickle can run code: nothing of it is "
            "loaded; ask its owner for safetensors (the Hub has a converter)"
        )
    raise UserError(f"{address} holds no weights: {UNET}/ has no .safetensors file")


def _check_checkpoint(address: HubAddress, names: set[str]) -> None:
    _check_pipeline(address, names)
    missing = [name for name in (f"{STATE}/{PROGRESS}", MANIFEST) if name not in names]
    if missing:
        raise UserError(
            f"{address} holds a pipeline but no training state ({', '.join(missing)} missing); name the branch or "
            "repository of the run's hub.checkpoint_branch or hub.checkpoint_repo_id"
        )
