"""Actor calls of a worker that another process has replaced."""

from __future__ import annotations

import numpy as np
import pytest

from distsgd.core.messages import Lease, Push
from distsgd.transport.base import Work
from distsgd.transport.ray_calls import RayPort


class Counting:
    """A server that counts what it is asked, and answers with ones."""

    asked = 0

    def arrived(self, worker: int, incarnation: int) -> None:
        pass

    def exchange(self, worker: int, push: Push | None, size: int) -> Work | None:
        self.asked += 1
        return Lease(0, 0, 1, 0), np.ones(4)


@pytest.mark.parametrize("worker", [0, 3])
def test_a_call_that_comes_late_is_dismissed(worker: int) -> None:
    """It would end the call of the other, which would get neither work nor dismissal."""
    server = Counting()
    port = RayPort(server, 32, lambda encoded, rows: np.zeros((rows, 4)))  # type: ignore[arg-type]
    assert port.exchange(worker, 1, None)[0] is not None
    assert port.exchange(worker, 2, None)[0] is not None
    assert port.exchange(worker, 1, None) == [None, None]
    assert port.exchange(worker + 1, 1, None)[0] is not None
    assert server.asked == 3
