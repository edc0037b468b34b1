"""Put a set of files into a repository: all of them in one commit, or no commit where nothing has changed."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from ddpm_hf.checkpoints.download import fetch_file
from ddpm_hf.checkpoints.listing import Listing, list_repository
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hashes import Content, size_of
from ddpm_hf.runtime.hub_client import HubClient

logger = logging.getLogger(__name__)

CARD = "README.md"
LARGE = (".safetensors", ".png")
"""Files that are sent before the commit; the others travel in it."""


@dataclass(frozen=True)
class Destination:
    """Where something is pushed.

    Attributes:
        repo_id: user/name of a model repository.
        revision: branch.
        private: whether it must not be public.
        starts_empty: whether a branch that has to be made begins at the repository's first commit, not at main.
    """

    repo_id: str
    revision: str = "main"
    private: bool = True
    starts_empty: bool = False

    def __str__(self) -> str:
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"

    def check_privacy(self, private: bool) -> None:
        """Refuse a repository that everybody sees, where nobody shall.

        Raises:
            UserError: saying how to mend it.
        """
        if self.private and not private:
            raise UserError(
                f"hub.private: given true, but {self.repo_id} is public already; make it private on its page on the "
                "Hub, choose another hub.repo_id, or set hub.private=false"
            )


@dataclass(frozen=True)
class Package:
    """What is pushed.

    Attributes:
        files: content by path within the repository.
        message: of the commit.
        make_card: the model card, from the one that lies in the repository (None: there is none); None for no card.
        is_ours: whether a file of the repository may be deleted when it is not among `files`.
    """

    files: Mapping[str, Content]
    message: str
    make_card: Callable[[str | None], str] | None = None
    is_ours: Callable[[str], bool] = lambda path: False

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(size_of(content) for content in self.files.values())


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        commit: hash of the repository's head, which holds all that was pushed.
        url: of the repository at that commit.
        num_changed: files that differed; 0: nothing was sent and no commit was made.
    """

    commit: str
    url: str
    num_changed: int


def prepare(client: HubClient, destination: Destination) -> None:
    """Make the repository and the branch, where they do not exist yet.

    Raises:
        UserError: if the token may not do that, or the repository is public and must not be.
        HubUnreachableError: if the Hub did not answer.
    """
    repo_id, api = destination.repo_id, client.api

    def act() -> None:
        try:
            private = bool(api.repo_info(repo_id).private)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, private=destination.private, exist_ok=True)
            private = bool(api.repo_info(repo_id).private)
        destination.check_privacy(private)
        if destination.revision != "main":
            try:
                api.repo_info(repo_id, revision=destination.revision)
            except RevisionNotFoundError:
                start = api.list_repo_commits(repo_id)[-1].commit_id if destination.starts_empty else None
                api.create_branch(repo_id, branch=destination.revision, revision=start, exist_ok=True)

    client.call(f"preparing {destination}", act, repo_id)


def push(
    client: HubClient,
    destination: Destination,
    package: Package,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> Pushed:
    """Bring a branch to hold a package; other people's files stay.

    Every attempt reads the head anew, sends what differs from it and commits onto that head only. So an answer that
    was lost makes no second commit, and what others commit meanwhile is taken into account.

    Args:
        client: the Hub.
        destination: made if need be.
        package: what to push.
        on_progress: called with the bytes that are done, out of package.num_bytes.

    Raises:
        UserError: if the token, the repository or a file is refused.
        HubUnreachableError: if every attempt failed.
    """
    disable_progress_bars()  # the caller shows one for all files
    prepare(client, destination)
    started: dict[str, CommitOperationAdd] = {}  # kept between attempts: what has arrived is not sent again

    def act() -> Pushed:
        head = list_repository(client, destination.repo_id, destination.revision)
        changed, deleted = _differences(client, head, package)
        for path, content in changed.items():
            old = started.get(path)
            if old is None or old.path_or_fileobj != _as_given(content):
                started[path] = CommitOperationAdd(path, _as_given(content))
        large = [path for path in changed if path.endswith(LARGE)]
        done = package.num_bytes - sum(size_of(changed[path]) for path in large)
        for path in large:  # one after the other, so that progress is seen and no pool of threads outlives us
            on_progress(done)
            client.api.preupload_lfs_files(
                destination.repo_id, [started[path]], revision=destination.revision, free_memory=False
            )
            done += size_of(changed[path])
        on_progress(done)
        commit = head.commit
        if changed or deleted:
            operations: list[Any] = [
                *(started[path] for path in changed),
                *(CommitOperationDelete(path) for path in deleted),
            ]
            commit = client.api.create_commit(
                destination.repo_id,
                operations,
                commit_message=package.message,
                revision=destination.revision,
                parent_commit=head.commit,
            ).oid
        url = f"{client.api.endpoint}/{destination.repo_id}/tree/{commit}"
        return Pushed(commit, url, len(changed) + len(deleted))

    return client.call(f"pushing to {destination}", act, destination.repo_id)


def _differences(client: HubClient, head: Listing, package: Package) -> tuple[dict[str, Content], list[str]]:
    """What has to be sent, and what has to go."""
    files = dict(package.files)
    if package.make_card is not None:
        files[CARD] = package.make_card(_read_card(client, head)).encode()
    changed = {
        path: content
        for path, content in files.items()
        if path not in head.files or not head.files[path].matches(content)
    }
    return changed, [path for path in head.files if path not in files and package.is_ours(path)]


def _read_card(client: HubClient, head: Listing) -> str | None:
    if CARD not in head.files:
        return None
    with TemporaryDirectory() as folder:
        return fetch_file(client, head, CARD, Path(folder)).read_text(encoding="utf-8", errors="replace")


def _as_given(content: Content) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)
