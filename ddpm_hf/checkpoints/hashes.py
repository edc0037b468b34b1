"""The two hashes by which the Hub identifies a file: git's for small files, SHA-256 for large ones."""

import hashlib
from pathlib import Path

Content = Path | bytes
"""A file on disk, or the bytes of one."""


def sha256(content: Content) -> str:
    """SHA-256 in hex."""
    return _hexdigest(hashlib.sha256(), content)


def content_hash(content: Content, like: str) -> str:
    """SHA-256, or git's SHA-1 of a blob (a header with the size, then the bytes), whichever has the length of like."""
    if len(like) == 64:
        return sha256(content)
    return _hexdigest(hashlib.sha1(b"blob %d\0" % size_of(content), usedforsecurity=False), content)


def size_of(content: Content) -> int:
    """Number of bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _hexdigest(digest: "hashlib._Hash", content: Content) -> str:
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
