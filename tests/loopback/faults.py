"""What can go wrong on the way to the Hub and back, at a named route, a given number of times."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        route: name of the route that it strikes, as in `routes.ROUTES`; "*" is any.
        status: answer this status instead of doing the work.
        headers: of that answer.
        drop: close the connection, before the work is done or after it.
        hang: seconds of silence before the answer.
        over: once it is set, silence ends; the hub's end sets it.
        flip: change one byte of the answer's body.
        cut: close the connection after this many bytes of the answer's body.
        flood: send blanks without end instead of the answer's body.
        drip: seconds before each byte of the answer's body.
        endless: name a next page of the answer, every time.
        compressed: say that the answer's body is compressed.
        then: called when the work is done and its answer not yet sent.
        times: how often.
    """

    route: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: Literal["before", "after"] | None = None
    hang: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    flip: bool = False
    cut: int | None = None
    flood: bool = False
    drip: float = 0.0
    endless: bool = False
    compressed: bool = False
    then: Callable[[], object] | None = None
    times: float = 1


class Faults:
    """The faults that wait for their route."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lock = threading.Lock()

    def arm(self, fault: Fault) -> None:
        self._armed.append(fault)

    def take(self, route: str) -> Fault | None:
        """The next fault of a route, which has then struck once."""
        with self._lock:
            for fault in self._armed:
                if fault.times > 0 and fault.route in (route, "*"):
                    fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        self._armed.clear()

    def end(self) -> None:
        """Break every silence."""
        for fault in self._armed:
            fault.over.set()
