"""A Hugging Face Hub on 127.0.0.1 for tests: standard library only, everything in memory, faults on demand."""

from loopback.faults import Fault
from loopback.server import LoopbackHub, Request

__all__ = ["Fault", "LoopbackHub", "Request"]
