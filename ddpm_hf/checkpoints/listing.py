"""What a repository holds at one commit."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hashes import Content, git_blob_id, sha256, size_of
from ddpm_hf.runtime.hub_client import HubClient


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub has it.

    Attributes:
        path: within the repository, parts joined by slashes.
        size: bytes.
        blob_id: git's hash of it, or of the pointer to a large file.
        sha256: of a large file; None for a small one.
    """

    path: str
    size: int
    blob_id: str
    sha256: str | None

    def matches(self, content: Content) -> bool:
        """Whether some content is this file's, byte by byte."""
        if size_of(content) != self.size:
            return False
        return sha256(content) == self.sha256 if self.sha256 else git_blob_id(content) == self.blob_id


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repo_id: user/name.
        commit: hash.
        private: whether only its owners see it.
        files: by path.
    """

    repo_id: str
    commit: str
    private: bool
    files: dict[str, RemoteFile]


def list_repository(client: HubClient, repo_id: str, revision: str | None = None) -> Listing:
    """Ask the Hub once what a model repository holds; the caller retries.

    Args:
        client: the Hub.
        repo_id: user/name.
        revision: branch, tag or commit; None is main.

    Raises:
        UserError: if a name in the listing leads out of the repository.
    """
    info: Any = client.api.repo_info(repo_id, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    check_names(repo_id, (sibling.rfilename for sibling in siblings))
    files = {
        each.rfilename: RemoteFile(each.rfilename, each.size or 0, each.blob_id, each.lfs.sha256 if each.lfs else None)
        for each in siblings
    }
    return Listing(info.id, info.sha, bool(info.private), files)


def check_names(repo_id: str, names: Iterable[str]) -> None:
    """Refuse a listing whose names could be written outside of the folder that they belong in.

    Raises:
        UserError: naming the first of them.
    """
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts) or name[1:2] == ":":
            raise UserError(
                f"{repo_id} lists a file named {name!r}, which would not stay inside its folder; nothing of it is "
                "downloaded, since no honest upload makes such a name"
            )
