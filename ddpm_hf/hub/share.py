"""Push a run to where its configuration says, and check beforehand that it may be pushed there."""

import logging
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ddpm_hf.checkpoints.find import newest_pipeline
from ddpm_hf.checkpoints.format import find_latest
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import checkpoint_package, pipeline_package
from ddpm_hf.hub.upload import Destination, Pushed, check_privacy, push
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, is_offline

logger = logging.getLogger(__name__)

Kind = Literal["pipeline", "checkpoint"]
OnProgress = Callable[[int, int], object]
"""Called with the number of bytes done and that of all files."""

UNREACHABLE_AT_START = "%s: the run starts nevertheless and pushes once the Hub is back"


def push_run(
    run: Path,
    settings: HubConfig,
    client: HubClient | None = None,
    on_progress: OnProgress = lambda done, total: None,
    kind: Kind = "pipeline",
) -> Pushed:
    """Push a run: its pipeline for use, or its newest complete checkpoint for `--resume hub:…`.

    Args:
        run: the run folder.
        settings: where to push, and what of the run.
        client: None: the usual Hub.
        on_progress: called with the number of bytes done and that of all files.
        kind: "pipeline" pushes the finished one, or else that of the newest complete checkpoint; "checkpoint" pushes
            that checkpoint with all its training state.

    Returns:
        The commit that holds everything, its URL, and how many files differed; if none did, no commit was made.

    Raises:
        UserError: if the folder, the token or the repository cannot be used, or the run has no complete checkpoint.
        HubUnreachableError: if the Hub did not answer.
    """
    if kind == "pipeline":
        folder = newest_pipeline(run, "RUN_FOLDER")
    elif (latest := find_latest(RunFolder(run).checkpoints)) is not None:
        folder = latest
    else:
        raise UserError(f"RUN_FOLDER: {run} holds no complete checkpoint; leave --checkpoints out")
    return push_folder(kind, run, folder, settings, client or HubClient(), on_progress)


def push_folder(
    kind: Kind, run: Path, folder: Path, settings: HubConfig, client: HubClient, on_progress: OnProgress
) -> Pushed:
    """Push the pipeline, or the checkpoint, in a folder of a run; see `push_run`."""
    to = destination(kind, settings, client)
    if kind == "pipeline":
        return push(client, to, pipeline_package(run, settings, to.repo_id, folder), on_progress)
    return push(client, to, checkpoint_package(folder), on_progress)


def push_command(run: Path, settings: HubConfig, checkpoints: bool = False) -> str:
    """The command line that pushes a run later."""
    words = ["python", "pipelines/push_to_hub.py", str(run), "--repo_id", str(settings.repo_id)]
    words += [] if settings.private else ["--no-private"]
    words += [] if settings.revision == "main" else ["--revision", settings.revision]
    words += ["--license", settings.license] if settings.license else []
    return shlex.join([*words, *(["--checkpoints"] if checkpoints else [])])


def destination(kind: Kind, settings: HubConfig, client: HubClient) -> Destination:
    """Where the pipeline of a run, or its checkpoints with all training state, are pushed.

    Raises:
        UserError: if no repository is given.
    """
    if settings.repo_id is None:
        raise UserError("hub.repo_id: not given; name a repository, as user/name, or a name alone for your own")
    if kind == "pipeline":
        return Destination(full_repo_id(client, settings.repo_id), settings.revision, settings.private)
    branch = settings.checkpoint_branch or ("main" if settings.checkpoint_repo_id else "checkpoints")
    repo_id = full_repo_id(client, settings.checkpoint_repo_id or settings.repo_id)
    return Destination(repo_id, branch, settings.private, starts_empty=True)


def kinds(settings: HubConfig) -> list[Kind]:
    """What of a run is pushed."""
    return ["pipeline", "checkpoint"] if settings.keeps_checkpoints else ["pipeline"]


def full_repo_id(client: HubClient, repo_id: str) -> str:
    """The id of a repository with its owner, which is that of the token if none is given."""
    if "/" in repo_id:
        return repo_id
    return f"{_owner(client)['name']}/{repo_id}"


def _owner(client: HubClient) -> dict[str, Any]:
    return client.call("looking up the owner of the token", lambda: client.api.whoami(cache=True))


def check_access(client: HubClient, settings: HubConfig) -> None:
    """Check token, namespace, write permission and repository before a run begins; nothing is made.

    A Hub that does not answer is reported only, since it may do so later.

    Args:
        client: the Hub.
        settings: where to push.

    Raises:
        UserError: naming the option that cannot be used.
    """
    if is_offline():
        raise UserError(
            "hub.repo_id: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or set hub.repo_id=null"
        )
    if not client.has_token:
        raise UserError(
            "hub.repo_id: there is no token for the Hub; make one with the role write "
            "(huggingface.co/settings/tokens) and run: hf auth login, or set HF_TOKEN"
        )
    client = client.for_lookups
    try:
        with waiting("asking the Hub for the owner of the token"):
            user = _owner(client)
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"hub.repo_id: the token of {user['name']} may only read; make one with the role write "
                "(huggingface.co/settings/tokens) and run: hf auth login"
            )
        namespaces = [user["name"], *(each["name"] for each in user.get("orgs", []))]
        for kind in kinds(settings):
            to = destination(kind, settings, client)
            if to.repo_id.split("/")[0] not in namespaces:
                raise UserError(
                    f"hub.repo_id: given {to.repo_id}, but the token is that of {user['name']}; "
                    f"allowed: repositories of {', '.join(namespaces)}"
                )
            client.call(f"checking {to}", partial(_check_repository, client, to), to.repo_id)
    except HubUnreachableError as error:
        logger.warning(UNREACHABLE_AT_START, error)


def _check_repository(client: HubClient, to: Destination) -> None:
    if client.api.repo_exists(to.repo_id):  # otherwise it will be made
        client.api.auth_check(to.repo_id, write=True)
        check_privacy(client, to)
