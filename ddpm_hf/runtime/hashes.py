"""The two hashes by which the Hub knows a file: git's for small ones, SHA-256 for large ones."""

import hashlib
from pathlib import Path

Content = Path | bytes
"""A file on disk, or what is to be in it."""


def sha256(content: Content) -> str:
    """SHA-256 in hex."""
    return _digest(hashlib.sha256(), content)


def git_blob_id(content: Content) -> str:
    """SHA-1 in hex of git's blob: a header with the size, then the bytes."""
    return _digest(hashlib.sha1(b"blob %d\0" % size_of(content), usedforsecurity=False), content)


def size_of(content: Content) -> int:
    """Number of bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _digest(digest: "hashlib._Hash", content: Content) -> str:
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
