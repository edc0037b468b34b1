"""Arithmetic so small only waits for other threads."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread for each test of this folder."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
