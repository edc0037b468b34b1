"""Push a run, finished or not, to where its configuration or the person says."""

import shlex
from collections.abc import Callable
from pathlib import Path

from ddpm_hf.checkpoints.format import find_latest
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import checkpoint_package, find_pipeline, pipeline_package
from ddpm_hf.hub.upload import Destination, Pushed, push
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient


def pipeline_destination(client: HubClient, settings: HubConfig) -> Destination:
    """Where the pipeline goes.

    Raises:
        UserError: if no repository is named.
    """
    if settings.repo_id is None:
        raise UserError("hub.repo_id: not given; name a repository, as user/name, or a name alone for your own")
    return Destination(full_repo_id(client, settings.repo_id), settings.revision, settings.private)


def checkpoint_destination(client: HubClient, settings: HubConfig) -> Destination:
    """Where checkpoints with all training state go."""
    pipeline = pipeline_destination(client, settings)
    repo_id = full_repo_id(client, settings.checkpoint_repo_id) if settings.checkpoint_repo_id else pipeline.repo_id
    branch = settings.checkpoint_branch or ("main" if settings.checkpoint_repo_id else "checkpoints")
    return Destination(repo_id, branch, settings.private, starts_empty=True)


def full_repo_id(client: HubClient, repo_id: str) -> str:
    """A repository's name with its owner: without one it is the token's."""
    if "/" in repo_id:
        return repo_id
    owner = client.call("asking whose the token is", lambda: client.api.whoami(cache=True)["name"])
    return f"{owner}/{repo_id}"


def push_run(
    run: Path,
    settings: HubConfig,
    client: HubClient | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Pushed:
    """Push the pipeline of a run: the finished one, or else that of its newest complete checkpoint.

    Args:
        run: the run folder.
        settings: where to, and what of it.
        client: the Hub; None is the usual one.
        on_progress: called with the bytes that are done and those of all files.

    Raises:
        UserError: if the folder, the token or the repository cannot be used.
        HubUnreachableError: if the Hub did not answer.
    """
    client, pipeline = client or HubClient(), find_pipeline(run)
    destination = pipeline_destination(client, settings)
    package = pipeline_package(run, settings, destination.repo_id, pipeline)
    return push(client, destination, package, lambda done: on_progress(done, package.num_bytes))


def push_newest_checkpoint(
    run: Path,
    settings: HubConfig,
    client: HubClient | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Pushed:
    """Push the newest complete checkpoint of a run with all its training state, for `--resume hub:…`.

    Args:
        run: the run folder.
        settings: where to.
        client: the Hub; None is the usual one.
        on_progress: called with the bytes that are done and those of all files.

    Raises:
        UserError: if there is no complete checkpoint, or the token or the repository cannot be used.
        HubUnreachableError: if the Hub did not answer.
    """
    client, checkpoint = client or HubClient(), find_latest(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"RUN_FOLDER: {run} holds no complete checkpoint; leave --checkpoints out")
    package = checkpoint_package(checkpoint)
    destination = checkpoint_destination(client, settings)
    return push(client, destination, package, lambda done: on_progress(done, package.num_bytes))


def push_command(run: Path, settings: HubConfig, checkpoints: bool = False) -> str:
    """The command line that pushes a run later."""
    words = ["python", "pipelines/push_to_hub.py", str(run), "--repo_id", str(settings.repo_id)]
    words += [] if settings.private else ["--no-private"]
    words += [] if settings.revision == "main" else ["--revision", settings.revision]
    words += ["--license", settings.license] if settings.license else []
    return shlex.join([*words, *(["--checkpoints"] if checkpoints else [])])
