"""Put files into a repository, in one commit; without a difference there is no commit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from ddpm_hf.checkpoints.fetch import Head, download, read_head
from ddpm_hf.checkpoints.hashes import Content, content_hash, size_of
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient

CARD = "README.md"
LARGE = (".safetensors", ".png")
"""Files that are uploaded before the commit; the others are part of its request."""


@dataclass(frozen=True)
class Destination:
    """A branch of a repository.

    Attributes:
        repo_id: user/name.
        revision: branch.
        private: whether the repository must not be public.
        starts_empty: whether a new branch starts at the repository's first commit instead of main.
        repo_type: "model" or "space".
    """

    repo_id: str
    revision: str = "main"
    private: bool = True
    starts_empty: bool = False
    repo_type: str = "model"

    def __str__(self) -> str:
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"

    def check_privacy(self, private: bool) -> None:
        """Raise if the repository is public but private=True was requested.

        Raises:
            UserError: saying how to fix it.
        """
        if self.private and not private:
            raise UserError(
                f"hub.private: given true, but {self.repo_id} is public already; make it private on its page on the "
                "Hub, choose another hub.repo_id, or set hub.private=false"
            )


@dataclass(frozen=True)
class Package:
    """The files of a push.

    Attributes:
        files: content by path in the repository.
        message: of the commit.
        make_card: makes the card from the one in the repository (None: there is none); None: no card.
        is_ours: whether a file in the repository may be deleted if it is not in `files`.
        hashes: SHA-256 of files, by path, where it is known already; weights are not read again to compute it.
    """

    files: Mapping[str, Content]
    message: str
    make_card: Callable[[str | None], str] | None = None
    is_ours: Callable[[str], bool] = lambda path: False
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(size_of(content) for content in self.files.values())


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        commit: hash of the branch's head, which holds everything that was pushed.
        url: of the repository at that commit.
        num_changed: files that differed; if 0, nothing was uploaded and no commit was made.
    """

    commit: str
    url: str
    num_changed: int


def prepare(client: HubClient, destination: Destination) -> None:
    """Make the repository and the branch if they do not exist.

    Raises:
        UserError: if the token may not do that, or the repository is public but must not be.
        HubUnreachableError: if the Hub did not answer.
    """
    repo_id, kind, api = destination.repo_id, destination.repo_type, client.api

    def act() -> None:
        try:
            private = bool(api.repo_info(repo_id, repo_type=kind).private)
        except RepositoryNotFoundError:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(repo_id, private=destination.private, repo_type=kind, space_sdk=sdk, exist_ok=True)
            private = bool(api.repo_info(repo_id, repo_type=kind).private)
        destination.check_privacy(private)
        if destination.revision != "main":
            try:
                api.repo_info(repo_id, repo_type=kind, revision=destination.revision)
            except RevisionNotFoundError:
                start = None
                if destination.starts_empty:
                    start = api.list_repo_commits(repo_id, repo_type=kind)[-1].commit_id
                api.create_branch(repo_id, repo_type=kind, branch=destination.revision, revision=start, exist_ok=True)

    client.call(f"preparing {destination}", act, repo_id)


def push(
    client: HubClient,
    destination: Destination,
    package: Package,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> Pushed:
    """Bring a branch up to date with a package; files of other people stay.

    Every attempt reads the head anew, uploads what differs from it and commits onto that head only. A lost answer
    therefore leads to no second commit, and commits of others in the meantime are respected.

    Args:
        client: the Hub.
        destination: is made if it does not exist.
        package: the files.
        on_progress: called with the number of bytes done, out of package.num_bytes.

    Raises:
        UserError: if the token, the repository or a file is refused.
        HubUnreachableError: if every attempt failed.
    """
    disable_progress_bars()  # the caller shows one for all files
    prepare(client, destination)
    repo_id, kind, branch = destination.repo_id, destination.repo_type, destination.revision
    additions: dict[str, CommitOperationAdd] = {}  # kept between attempts: uploaded files are not sent again

    def act() -> Pushed:
        head, files = read_head(client, repo_id, branch, kind), dict(package.files)
        there = head.hashes
        if package.make_card is not None:
            files[CARD] = package.make_card(read_card(client, head)).encode()
        for path, content in files.items():
            given = content if isinstance(content, bytes) else str(content)
            if path not in additions or additions[path].path_or_fileobj != given:
                additions[path] = CommitOperationAdd(path, given)
                if path in package.hashes:
                    additions[path].upload_info.sha256 = bytes.fromhex(package.hashes[path])
        changed = [path for path in files if path not in there or _hash_of(additions[path], there[path]) != there[path]]
        deleted = [path for path in there if path not in files and package.is_ours(path)]
        large = [path for path in changed if path.endswith(LARGE)]
        done = package.num_bytes - sum(size_of(files[path]) for path in large)
        for path in large:  # one after the other, so that there is progress to show and no thread pool outlives us
            on_progress(done)
            client.api.preupload_lfs_files(
                repo_id, [additions[path]], repo_type=kind, revision=branch, free_memory=False
            )
            done += size_of(files[path])
        on_progress(done)
        commit = head.commit
        if changed or deleted:
            operations: list[Any] = [
                *(additions[path] for path in changed),
                *(CommitOperationDelete(path) for path in deleted),
            ]
            commit = client.api.create_commit(
                repo_id,
                operations,
                commit_message=package.message,
                repo_type=kind,
                revision=branch,
                parent_commit=head.commit,
            ).oid
        page = f"spaces/{repo_id}" if kind == "space" else f"{repo_id}/tree/{commit}"
        return Pushed(commit, f"{client.api.endpoint}/{page}", len(changed) + len(deleted))

    return client.call(f"pushing to {destination}", act, repo_id)


def read_card(client: HubClient, head: Head) -> str | None:
    """The card in a repository; None if there is none."""
    if CARD not in head.hashes:
        return None
    with TemporaryDirectory() as cache:
        folder = download(client, head, [CARD], Path(cache))
        return (folder / CARD).read_text(encoding="utf-8", errors="replace")


def _hash_of(addition: CommitOperationAdd, like: str) -> str:
    """The hash of a file of the same kind as another; a SHA-256 is computed once and reused by the upload."""
    if len(like) == 64:
        return addition.upload_info.sha256.hex()
    given = addition.path_or_fileobj
    return content_hash(given if isinstance(given, bytes) else Path(str(given)), like)
