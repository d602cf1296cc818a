"""Which cuts of a minibatch a fleet can have made; else: `tests/proof/test_forged_journal.py`."""

import pytest

from distsgd.core.messages import Applied, Lease
from distsgd.core.plan import Plan
from distsgd.core.server import Ledger, UpdateCheck
from distsgd.core.server.consistency import make_policy

PLAN = Plan(sampling="sequential", seed=0, examples=64, batch_size=16, slot_size=2, epochs=1)


def update(*ends):
    """The first, of eight slots, in pieces that end there."""
    leases = [Lease(0, first, last, 0) for first, last in zip((0, *ends), ends, strict=False)]
    contributions = tuple(enumerate(leases))
    return Applied(0, 0, 1, 1.0, 0, 16, 0.1, contributions, (), False)


@pytest.mark.parametrize(
    ("workers", "ends", "possible"),
    [
        (4, (2, 4, 6, 8), True),
        (4, (4, 8), True),
        (4, (4, 6, 8), True),
        (4, (2, 8), True),
        (3, (5, 8), True),
        (4, (1, 8), False),  # a piece of one slot needs five workers
        (5, (1, 8), True),
        (4, (3, 8), False),
        (4, (2, 2, 8), False),
        (4, (2, 4, 6), False),
        (4, (4, 2, 8), False),
        (4, (8, 8), False),
    ],
)
def test_workers_of_a_node_may_have_their_pieces_in_one(workers, ends, possible):
    check = UpdateCheck(PLAN, make_policy("bsp"), Ledger(), workers)
    if possible:
        check.add(update(*ends))
    else:
        with pytest.raises(ValueError, match="not those of step 0"):
            check.add(update(*ends))


def test_but_only_in_bsp():
    check = UpdateCheck(PLAN, make_policy("ssp"), Ledger(), 4)
    with pytest.raises(ValueError, match="not those of step 0"):
        check.add(update(4, 6, 8))
