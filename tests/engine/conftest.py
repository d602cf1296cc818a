"""Workers in processes of their own, for tests of teams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from team_processes import Nursery, nursery


@pytest.fixture(scope="module")
def births() -> Iterator[Nursery]:
    with nursery() as found:
        yield found
