"""Pin a dataset of the Hub to the commit that a run begins with."""

import logging
import re
from pathlib import Path

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.sources import BUILT_IN
from ddpm_hf.runtime.hub_cache import remember_commit, remembered_commit
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, Patience, is_offline

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")

LOOKING_UP = Patience(attempts=5)
"""Some ten seconds, since a person waits for the start, and the cache can take over."""


def pin_dataset(dataset: DatasetConfig, client: HubClient | None = None) -> DatasetConfig:
    """The same dataset with the hash of its newest commit as its revision, so that a run can be repeated.

    What is built in or lies on this machine is left as it is. Offline, the commit is the one in the cache.

    Args:
        dataset: may name a branch or a tag.
        client: the Hub; None is the usual one.

    Raises:
        UserError: if there is no such dataset or revision on the Hub.
    """
    if not is_on_hub(dataset) or COMMIT.fullmatch(dataset.revision or ""):
        return dataset
    if is_offline():
        return _pinned(dataset, remembered_commit("dataset", dataset.name, dataset.revision))
    client = client or HubClient(patience=LOOKING_UP)
    try:
        commit = client.call(
            f"looking up the dataset {dataset.name}",
            lambda: client.api.dataset_info(dataset.name, revision=dataset.revision).sha,
            dataset.name,
        )
    except HubUnreachableError as error:
        logger.warning(
            "%s: the cache decides which commit of %s is used; HF_HUB_OFFLINE=1 does without asking",
            error,
            dataset.name,
        )
        commit = remembered_commit("dataset", dataset.name, dataset.revision)
    if commit is not None:
        remember_commit("dataset", dataset.name, dataset.revision, commit)
    return _pinned(dataset, commit)


def is_on_hub(dataset: DatasetConfig) -> bool:
    """Whether a dataset's name can only be that of one on the Hub."""
    name = dataset.name
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or Path(name).exists()
    return name not in BUILT_IN and not looks_local


def _pinned(dataset: DatasetConfig, commit: str | None) -> DatasetConfig:
    return dataset if commit is None else dataset.model_copy(update={"revision": commit})
