"""`distsgd doctor`: all checks of a machine, and of a cluster, the most urgent findings first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from distsgd.advice.health import (
    cluster,
    datasets,
    limits,
    network,
    software,
    storage,
    surroundings,
)
from distsgd.advice.health.finding import OK, PROBLEM, WARNING, Check, Finding, problem
from distsgd.errors import DistsgdError, in_short

__all__ = ["Diagnosis", "examine"]

_URGENCY = (PROBLEM, WARNING, OK)


@dataclass(frozen=True)
class Diagnosis:
    """What the checks have found.

    Attributes:
        findings: problems, then warnings, then what is well.
    """

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> int:
        """How many things must be mended."""
        return sum(one.state == PROBLEM for one in self.findings)

    @property
    def warnings(self) -> int:
        """How many things could be better."""
        return sum(one.state == WARNING for one in self.findings)


def examine(address: str | None = None, *, start_ray: bool = False) -> Diagnosis:
    """Check this machine; takes a few seconds.

    Args:
        address: HOST:PORT of the head of a cluster, or "auto", whose nodes are checked as well;
            None for none.
        start_ray: whether to start a private Ray, too, which takes seconds more.

    Returns:
        what was found, also by checks after one that has failed.
    """
    checks: list[Check] = [
        software.packages,
        software.ray_names,
        software.sessions,
        software.blas,
        limits.processors,
        limits.memory,
        limits.ulimits,
        surroundings.surroundings,
        surroundings.clock,
        network.loopback,
        network.ports,
        partial(network.proxies, address),
        network.tls,
        storage.folders,
        storage.shared_memory,
        storage.token,
        datasets.datasets,
    ]
    if start_ray:
        checks.append(software.ray_start)
    if address is not None:
        checks.append(partial(cluster.nodes, address))
    found = [finding for check in checks for finding in _findings(check)]
    return Diagnosis(tuple(sorted(found, key=lambda one: _URGENCY.index(one.state))))


def _findings(check: Check) -> Iterator[Finding]:
    """The findings of a check; its failure is one."""
    name = str(getattr(check, "func", check).__name__).replace("_", " ")
    try:
        yield from check()
    except DistsgdError as error:
        yield problem(name, error.problem, error.hint)
    except Exception as error:
        yield problem(
            name,
            f"this could not be checked: {type(error).__name__}: {in_short(error)}",
            "Mend what else is wrong first, and try again",
        )
