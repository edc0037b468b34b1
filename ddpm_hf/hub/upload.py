"""Put files into a repository, in one commit; without a difference there is no commit."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.sha import git_hash

from ddpm_hf.checkpoints.fetch import Head, download, read_head
from ddpm_hf.checkpoints.format import Content, size_of
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient

CARD = "README.md"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
TEXT_SUFFIXES = (".json", ".yaml", ".md", ".py")
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


@dataclass(frozen=True)
class Package:
    """The files of a push.

    Args:
        files: content by path in the repository.
        message: of the commit.
        make_more: makes further files from the card in the repository (None: there is none), such as the new card.
        is_ours: whether a file in the repository may be deleted if it is not in `files`.
        hashes: SHA-256 of files, by path, where it is known already; weights are not read again to compute it.

    Raises:
        UserError: if a text holds a token.
    """

    files: Mapping[str, Content]
    message: str
    make_more: Callable[[str | None], Mapping[str, bytes]] | None = None
    is_ours: Callable[[str], bool] = lambda path: False
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_tokens(self.files)

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

    def __str__(self) -> str:
        changed = f"{self.num_changed} files changed" if self.num_changed else "nothing to do, it is up to date"
        return f"{changed}: {self.url}"


def refuse_tokens(files: Mapping[str, Content]) -> None:
    """Raise if a text that is to be pushed holds a token.

    Raises:
        UserError: naming the file, but not the token.
    """
    own = get_token()
    for path, content in files.items():
        if path.endswith(TEXT_SUFFIXES):
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
            if TOKEN.search(text) or (own and own in text):
                raise UserError(
                    f"{path} holds a token of the Hub; take it out of the file it comes from, then push again"
                )


def prepare(client: HubClient, destination: Destination) -> None:
    """Make the repository and the branch if they do not exist.

    Raises:
        UserError: if the token may not do that, or the repository is public but must not be.
        HubUnreachableError: if the Hub did not answer.
    """
    repo_id, kind, branch, api = destination.repo_id, destination.repo_type, destination.revision, client.api

    def act() -> None:
        if not api.repo_exists(repo_id, repo_type=kind):
            sdk = "gradio" if kind == "space" else None
            api.create_repo(repo_id, private=destination.private, repo_type=kind, space_sdk=sdk, exist_ok=True)
        check_privacy(client, destination)
        if branch != "main" and not api.revision_exists(repo_id, branch, repo_type=kind):
            commits = api.list_repo_commits(repo_id, repo_type=kind) if destination.starts_empty else []
            first = commits[-1].commit_id if commits else None
            api.create_branch(repo_id, repo_type=kind, branch=branch, revision=first, exist_ok=True)

    client.call(f"preparing {destination}", act, repo_id)


def check_privacy(client: HubClient, destination: Destination) -> None:
    """Raise if a repository is public but must not be; the caller retries.

    Raises:
        UserError: saying how to fix it.
    """
    repo_id = destination.repo_id
    if destination.private and not client.api.repo_info(repo_id, repo_type=destination.repo_type).private:
        raise UserError(
            f"hub.private: given true, but {repo_id} is public already; make it private on its page on the Hub, choose "
            "another hub.repo_id, or set hub.private=false"
        )


def push(
    client: HubClient,
    destination: Destination,
    package: Package,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Pushed:
    """Bring a branch up to date with a package; files of other people stay.

    Every attempt reads the head anew, uploads what differs from it and commits onto that head only. A lost answer
    therefore leads to no second commit, and commits of others in the meantime are respected.

    Args:
        client: the Hub.
        destination: is made if it does not exist.
        package: the files.
        on_progress: called with the number of bytes done and that of all files.

    Raises:
        UserError: if the token, the repository or a file is refused.
        HubUnreachableError: if every attempt failed.
    """
    disable_progress_bars()  # the caller shows one for all files
    prepare(client, destination)
    repo_id, kind, branch = destination.repo_id, destination.repo_type, destination.revision
    # made once, since what an attempt has uploaded is not sent again by the next one
    additions = {path: CommitOperationAdd(path, content) for path, content in package.files.items()}
    for path, digest in package.hashes.items():
        additions[path].upload_info.sha256 = bytes.fromhex(digest)

    def act() -> Pushed:
        head = read_head(client, repo_id, branch, kind)
        if package.make_more is not None:
            made = package.make_more(_read_card(client, head))
            refuse_tokens(made)
            additions.update({path: CommitOperationAdd(path, content) for path, content in made.items()})
        changed = [addition for path, addition in additions.items() if not _is_there(addition, head.hashes.get(path))]
        deleted = [path for path in head.hashes if path not in additions and package.is_ours(path)]
        large = [addition for addition in changed if addition.path_in_repo.endswith(LARGE)]
        total = package.num_bytes
        done = total - sum(addition.upload_info.size for addition in large)
        for addition in large:  # one after the other, so that there is progress to show and no thread pool outlives us
            on_progress(done, total)
            client.api.preupload_lfs_files(repo_id, [addition], repo_type=kind, revision=branch, free_memory=False)
            done += addition.upload_info.size
        on_progress(done, total)
        commit = head.commit
        if changed or deleted:
            operations: list[Any] = [*changed, *map(CommitOperationDelete, deleted)]
            commit = client.api.create_commit(
                repo_id,
                operations,
                commit_message=package.message,
                repo_type=kind,
                revision=branch,
                parent_commit=commit,
            ).oid
        page = f"spaces/{repo_id}" if kind == "space" else f"{repo_id}/tree/{commit}"
        return Pushed(commit, f"{client.api.endpoint}/{page}", len(changed) + len(deleted))

    return client.call(f"pushing to {destination}", act, repo_id, package.num_bytes)


def _read_card(client: HubClient, head: Head) -> str | None:
    if CARD not in head.hashes:
        return None
    with TemporaryDirectory() as cache:
        folder = download(client, head, [CARD], Path(cache))
        return (folder / CARD).read_text(encoding="utf-8", errors="replace")


def _is_there(addition: CommitOperationAdd, expected: str | None) -> bool:
    """Whether a file has the hash of the Hub's; a SHA-256 is computed once and reused by the upload."""
    if expected is None:
        return False
    if len(expected) == 64:
        return addition.upload_info.sha256.hex() == expected
    with addition.as_file() as file:
        return git_hash(file.read()) == expected
