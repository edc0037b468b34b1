"""The Xet store as the client leaves it in a local folder: which Xet hash belongs to which sha256."""

import struct
from pathlib import Path

HEADER, RECORD = 48, 48
HAS_CHECKS, HAS_SHA256 = 1 << 31, 1 << 30
END = b"\xff" * 32


def read_shards(store: Path) -> dict[str, str]:
    """Read the file section of every metadata shard: sha256 → Xet hash, both in hex."""
    found = {}
    for shard in store.rglob("shards/*.mdb"):
        data = shard.read_bytes()
        position = HEADER
        while data[position : position + 32] not in (END, b""):
            xet_hash, (flags, num_segments) = (
                data[position : position + 32],
                struct.unpack_from("<II", data, position + 32),
            )
            position += RECORD * (1 + num_segments * (2 if flags & HAS_CHECKS else 1))
            if flags & HAS_SHA256:
                found[_hex(data[position : position + 32])] = _hex(xet_hash)
                position += RECORD
    return found


def _hex(digest: bytes) -> str:
    """A hash as Xet writes it: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))
