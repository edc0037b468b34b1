"""Work that finds too little memory is done in smaller parts."""

import itertools
import logging

import pytest
import torch

from ddpm_hf.runtime.memory import Parts, is_out_of_memory


def cpu_out_of_memory() -> RuntimeError:
    """What the CPU's allocator really says."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to …"), cpu_out_of_memory()])
def test_a_batch_is_halved_until_it_fits_and_stays_so(error, caplog):
    assert is_out_of_memory(error)
    tried = []

    def work(part: range) -> list[int]:
        tried.append(len(part))
        if len(part) > 4:
            raise error
        return list(part)

    parts = Parts("drawing")
    with caplog.at_level(logging.WARNING):
        assert list(itertools.chain(*parts(range(100, 116), work))) == list(range(100, 116))
        assert tried == [16, 8, 4, 4, 4, 4]
        assert list(itertools.chain(*parts(range(116, 122), work))) == list(range(116, 122))
    assert tried[6:] == [4, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory, drawing 16 images at a time; from here on 4, with the same results"
    ]


def test_one_image_that_does_not_fit_is_an_error():
    def work(part: range) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        Parts("drawing")(range(3), work)


def test_other_errors_are_not_hidden():
    def work(part: range) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Parts("drawing")(range(8), work)
