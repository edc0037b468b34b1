"""Repositories as the Hub keeps them: commits of files, branches that point at commits, large files by their hash."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LARGE_SUFFIXES = (".safetensors", ".bin", ".pkl", ".pt", ".parquet", ".arrow", ".zip", ".tar", ".png", ".jpg")
"""What the Hub's .gitattributes keeps as large files (LFS), whatever the size."""

LARGE_BYTES = 10 * 2**20
"""Every file above this size is large, too."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit; `data` is None if its bytes lie in the Xet store."""

    data: bytes | None
    size: int
    blob_id: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id

    def entry(self, path: str, xet_hash: str | None) -> dict:
        """As the tree API shows it."""
        shown: dict = {"type": "file", "oid": self.blob_id, "size": self.size, "path": path}
        if self.sha256:
            shown["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(_pointer(self.sha256, self.size))}
        if xet_hash:
            shown["xetHash"] = xet_hash
        return shown


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    was_public: bool = False

    def __post_init__(self) -> None:
        self.was_public = not self.private
        self.commit("main", "initial commit", {".gitattributes": small_file(b"*.safetensors filter=lfs\n")})

    def commit(self, branch: str, title: str, changed: Mapping[str, StoredFile], deleted: Iterable[str] = ()) -> Commit:
        """Add a commit to a branch; a deleted name that ends in a slash is a folder."""
        parent = self.branches.get(branch)
        files = dict(self.commits[parent].files) if parent else {}
        for name in deleted:
            files = {path: file for path, file in files.items() if path != name and not _is_in(path, name)}
        files.update(changed)
        tree = sorted((path, file.blob_id) for path, file in files.items())
        text = json.dumps([self.kind, self.id, parent, title, len(self.commits), time.time(), tree])
        made = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, files)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        return made

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a hash."""
        revision = revision.removeprefix("refs/heads/")
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a branch, newest first."""
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found


def small_file(data: bytes) -> StoredFile:
    """A file that git itself keeps."""
    return StoredFile(data, len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def large_file(data: bytes | None, sha256: str, size: int) -> StoredFile:
    """A file that git keeps a pointer to."""
    return StoredFile(data, size, small_file(_pointer(sha256, size)).blob_id, sha256)


def any_file(path: str, data: bytes) -> StoredFile:
    """A file in the form that the Hub would choose."""
    if is_large(path, len(data)):
        return large_file(data, hashlib.sha256(data).hexdigest(), len(data))
    return small_file(data)


def is_large(path: str, size: int) -> bool:
    """Whether the Hub keeps a file as a large one."""
    return size > 0 and (size > LARGE_BYTES or path.lower().endswith(LARGE_SUFFIXES))


def folders_of(files: Iterable[str]) -> list[str]:
    """Every folder that some files lie in."""
    parts = [path.split("/") for path in files]
    return sorted({"/".join(part[:depth]) for part in parts for depth in range(1, len(part))})


def _is_in(path: str, folder: str) -> bool:
    return folder.endswith("/") and path.startswith(folder)


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
