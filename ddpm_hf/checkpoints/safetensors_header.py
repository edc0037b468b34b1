"""Read the header of a safetensors file that may be hostile, before anything else does."""

import json
from pathlib import Path
from typing import Any

from ddpm_hf.runtime.errors import UserError

MAX_HEADER_BYTES = 16 * 2**20
"""Longest header that is read; a network of a thousand tensors needs a tenth of a megabyte."""

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


def check_weights(file: Path) -> dict[str, Any]:
    """Check that a safetensors file is what its header says: every tensor's bytes, once, in the file, none besides.

    Memory is bounded by MAX_HEADER_BYTES whatever the file says.

    Args:
        file: .safetensors.

    Returns:
        The header: dtype, shape and data_offsets of every tensor, by name.

    Raises:
        UserError: naming the file and what is wrong.
    """
    try:
        return _read(file)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{file.name} is no valid safetensors file: {error}; it is not loaded") from None


def _read(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its header has {length:,} bytes in a file of {size:,}")
        header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    header.pop("__metadata__", None)
    spans = []
    for name, tensor in header.items():
        first, last = tensor["data_offsets"]
        count = 1
        for side in tensor["shape"]:
            if type(side) is not int or not 0 <= side < 2**40:
                raise ValueError(f"{name!r} has an impossible shape")
            count *= side
        if type(first) is not int or type(last) is not int or count * BITS[tensor["dtype"]] != 8 * (last - first):
            raise ValueError(f"{name!r} has another size than its shape and type ask for")
        spans.append((first, last))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = last
    if 8 + length + end != size:
        raise ValueError(f"its tensors need {end:,} bytes and there are {size - 8 - length:,}")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return dict(pairs)
