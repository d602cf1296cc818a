"""Which checkpoints stay."""

from __future__ import annotations

from itertools import pairwise

import pytest

from distsgd.runs.checkpoint import superfluous, wanted


def kept_after(epochs: int, keep: int, updates: int) -> list[int]:
    """The epochs with a checkpoint after as many, each of which had as many updates."""
    found = [0]
    for epoch in range(1, epochs + 1):
        found.append(epoch * updates)
        gone = superfluous(found, epoch, epoch * updates, keep)
        found = [version for version in found if version not in gone]
    return [version // updates for version in found]


@pytest.mark.parametrize("updates", [1, 7])
@pytest.mark.parametrize("keep", [1, 2, 8, 9, 20, 60])
def test_at_most_so_many_stay_and_they_span_the_run(keep: int, updates: int) -> None:
    for epochs in (1, 5, 60, 61, 100, 1000, 2500):
        found = kept_after(epochs, keep, updates)
        assert len(found) <= keep + 1 and found[0] == 0
        newest = min(keep, 8, epochs)
        assert found[-newest:] == list(range(epochs - newest + 1, epochs + 1))
        if epochs <= keep:
            assert found == list(range(epochs + 1))
        older = [epoch for epoch in found[:-newest] if epoch > 64]
        gaps = {after - before for before, after in pairwise(older)}
        assert len(gaps) <= 1  # evenly spaced


def test_epochs_double_at_the_beginning() -> None:
    assert kept_after(2500, 60, 1)[:10] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 192]


def test_all_stay_if_wanted() -> None:
    assert not superfluous(range(1000), 999, 999, 0) and wanted(997, 0)


def test_what_stays_was_wanted_when_it_ended() -> None:
    """Few are written in vain: about as many for each doubling of the run."""
    assert {epoch for epoch in kept_after(2500, 60, 1)[1:-8] if not wanted(epoch, 60)} == set()
    assert sum(wanted(epoch, 60) for epoch in range(1, 100_001)) < 400


def test_epochs_of_about_as_many_updates() -> None:
    """As with workers that do not wait for each other."""
    versions = [0, *(epoch * 10 + epoch % 3 for epoch in range(1, 101))]
    gone = superfluous(versions, 100, versions[-1], 20)
    kept = [round(version / 10) for version in versions if version not in gone]
    assert kept == [0, 1, 2, 4, 8, *range(16, 92, 16), *range(93, 101)]
