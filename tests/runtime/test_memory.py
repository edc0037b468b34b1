"""Work that runs out of memory goes on in smaller chunks."""

import itertools
import logging

import pytest
import torch

from ddpm_hf.runtime.memory import Chunks, first_that_fits, is_out_of_memory


def cpu_out_of_memory() -> RuntimeError:
    """What the CPU's allocator really says."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to …"), cpu_out_of_memory()])
def test_a_batch_is_halved_until_it_fits_and_stays_so(error, caplog):
    assert is_out_of_memory(error)
    tried = []

    def work(chunk: range) -> list[int]:
        tried.append(len(chunk))
        if len(chunk) > 4:
            raise error
        return list(chunk)

    chunks = Chunks("sampling")
    with caplog.at_level(logging.WARNING):
        assert list(itertools.chain(*chunks(range(100, 116), work))) == list(range(100, 116))
        assert tried == [16, 8, 4, 4, 4, 4]
        assert list(itertools.chain(*chunks(range(116, 122), work))) == list(range(116, 122))
    assert tried[6:] == [4, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory while sampling 16 images at a time: using chunks of 4 from now on. The results are the same."
    ]


def test_one_image_that_does_not_fit_is_an_error():
    def work(chunk: range) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        Chunks("sampling")(range(3), work)


def test_other_errors_are_not_hidden():
    def work(chunk: range) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Chunks("sampling")(range(8), work)


def test_the_first_setting_that_fits_is_found():
    tried = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count < 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    assert first_that_fits([2, 3, 4, 6, 12], attempt) == 6
    assert tried == [2, 3, 4, 6]
    with pytest.raises(torch.OutOfMemoryError):
        first_that_fits([2, 3], attempt)
