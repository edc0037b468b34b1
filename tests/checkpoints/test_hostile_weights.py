"""Hostile safetensors are refused by the library itself: no crash, and no more memory than the file has bytes."""

import json
import os
import random
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_hf.checkpoints.format import tensor_shapes
from ddpm_hf.runtime.errors import UserError

NUM_MUTATIONS = int(os.environ.get("DDPM_HF_MUTATIONS", "500"))


@pytest.fixture
def good(tmp_path):
    file = tmp_path / "good.safetensors"
    save_file(
        {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}, file, {"format": "pt"}
    )
    return file


def with_header(header, data=b"\0" * 16):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(first, last, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def test_a_good_file_passes(good):
    assert tensor_shapes(good) == {"a": [3, 4], "b": [2]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        (2**63).to_bytes(8, "little") + b"{}",
        (100_000_000 + 1).to_bytes(8, "little") + b"{}",
        with_header(b"not json"),
        with_header(b"[]"),
        with_header(b"\xff\xfe{}"),
        with_header(b"[" * 100_000),
        with_header({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12),
        with_header({"a": tensor(0, 8), "b": tensor(10, 18)}, b"\0" * 18),
        with_header({"a": tensor(0, 8)}, b"\0" * 9),
        with_header({"a": tensor(0, 8)}, b"\0" * 7),
        with_header({"a": tensor(8, 0)}),
        with_header({"a": tensor(-8, 0)}),
        with_header({"a": tensor(0, 16, (2**40, 2**40))}),
        with_header({"a": tensor(0, 16, (-2, -2))}),
        with_header({"a": tensor(0, 16, dtype="X99")}),
        with_header({"a": {"dtype": "F32"}}),
        with_header({"a": None}),
        with_header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": 1}'),
    ],
    ids=range(20),
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.safetensors"):
        tensor_shapes(file)


@pytest.mark.parametrize("count", [NUM_MUTATIONS, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_are_errors_or_harmless(good, tmp_path, count):
    """Whatever passes our check loads as well; nothing crashes the process or fills its memory."""
    original, file = good.read_bytes(), tmp_path / "mutated.safetensors"
    rng = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed = 0
    for _ in range(count):
        raw = bytearray(original)
        for _ in range(rng.randint(1, 8)):
            kind, at = rng.randrange(4), rng.randrange(max(len(raw), 1))
            if kind == 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 1:
                del raw[at : at + rng.randint(1, 20)]
            elif kind == 2:
                raw[at:at] = rng.randbytes(rng.randint(1, 20))
            else:
                raw[at : at + 1] = rng.choice([b"0", b"9", b"-", b"[", b"]", b"{", b"}", b'"', b","])
            if not raw:
                break
        file.write_bytes(raw)
        try:
            tensor_shapes(file)
        except UserError:
            continue
        passed += 1
        load_file(file)  # what we let through, the library reads
    assert 0 < passed < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
