"""Whether a run may push where it is told to, asked before its first step."""

import logging
from functools import partial

from huggingface_hub.errors import RepositoryNotFoundError

from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.share import checkpoint_destination, pipeline_destination
from ddpm_hf.hub.upload import Destination
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, is_offline

logger = logging.getLogger(__name__)


def check_access(client: HubClient, settings: HubConfig) -> list[Destination]:
    """Check token, namespace, write permission and repository; nothing is made.

    Args:
        client: the Hub.
        settings: where to push.

    Returns:
        Everything that will be pushed to; empty if the Hub cannot be reached now, which ends no run.

    Raises:
        UserError: naming what does not fit.
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
    try:
        return _check(client, settings)
    except HubUnreachableError as error:
        logger.warning("%s: the run starts all the same and pushes when the Hub is back", error)
        return []


def _check(client: HubClient, settings: HubConfig) -> list[Destination]:
    user = client.call("asking whose the token is", lambda: client.api.whoami(cache=True))
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            f"hub.repo_id: the token of {user['name']} may only read; make one with the role write "
            "(huggingface.co/settings/tokens) and run: hf auth login"
        )
    namespaces = [user["name"], *(each["name"] for each in user.get("orgs", []))]
    destinations = [pipeline_destination(client, settings)]
    if settings.keeps_checkpoints:
        destinations.append(checkpoint_destination(client, settings))
    for destination in destinations:
        owner = destination.repo_id.split("/")[0]
        if owner not in namespaces:
            raise UserError(
                f"hub.repo_id: given {destination.repo_id}, but the token is that of {user['name']}; "
                f"allowed: repositories of {', '.join(namespaces)}"
            )
        client.call(f"checking {destination}", partial(_check_repository, client, destination), destination.repo_id)
    return destinations


def _check_repository(client: HubClient, destination: Destination) -> None:
    try:
        private = client.api.repo_info(destination.repo_id).private
    except RepositoryNotFoundError:
        return  # it will be made
    client.api.auth_check(destination.repo_id, write=True)
    destination.check_privacy(bool(private))
