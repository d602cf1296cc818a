"""What is installed: Python, packages, Ray and its private names, the BLAS of numpy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion
from threadpoolctl import threadpool_info

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.engine.blas import blas_kernel, core_type_of, one_blas_thread
from distsgd.engine.core_type import VARIABLE, best_core_type
from distsgd.errors import DistsgdError
from distsgd.on_ray.init import import_ray
from distsgd.on_ray.private import missing_names
from distsgd.on_ray.session import dead_sessions, ray_session
from distsgd.version import __version__

__all__ = ["blas", "packages", "ray_names", "ray_start", "sessions"]

_LEAST_PYTHON = (3, 11)
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_SPEEDS = ("Prescott", "Core2", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")
"""Core types from slow to fast; those that are not here are not judged."""


def packages() -> Iterator[Finding]:
    """Python and the packages that distsgd needs, against what it asks for."""
    if sys.version_info < _LEAST_PYTHON:
        yield problem(
            "packages", f"this is Python {platform.python_version()}", "Install 3.11 or later"
        )
    wrong = list(map(_wrong, _requirements()))
    yield from filter(None, wrong)
    if not any(wrong):
        yield ok(
            "packages",
            f"distsgd {__version__}, Python {platform.python_version()}, "
            f"and all {len(wrong)} packages that it needs",
        )


def _requirements() -> list[Requirement]:
    """What distsgd needs, without its extras; empty where it is not installed."""
    try:
        written = metadata.requires("distsgd") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for text in written:
        try:
            one = Requirement(text)
        except InvalidRequirement:
            continue
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found.append(one)
    return found


def _wrong(wanted: Requirement) -> Finding | None:
    """What is wrong with one package; None if nothing is."""
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    cure = f'pip install "{wanted.name}{extras}{wanted.specifier}"'
    try:
        there = metadata.version(wanted.name)
        fits = wanted.specifier.contains(there, prereleases=True)
    except metadata.PackageNotFoundError:
        return problem("packages", f"{wanted.name} is not installed", cure)
    except (InvalidVersion, TypeError):  # its metadata are damaged
        return problem("packages", f"the version of {wanted.name} cannot be told", cure)
    if fits:
        return None
    return problem(
        "packages", f"{wanted.name} {there} is installed, and {wanted.specifier} is needed", cure
    )


def ray_names() -> Iterator[Finding]:
    """Whether Ray can be imported, and has the private names that distsgd uses."""
    try:
        ray = import_ray()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        yield problem(
            "Ray",
            f"it cannot be imported: {type(error).__name__}: {first}",
            'pip install --force-reinstall "ray[default]", or train with --workers 0',
        )
        return
    missing = missing_names()
    for name, breaks in missing.items():
        yield problem(
            "Ray", f"{ray.__version__} has no {name}: {breaks}",
            "Install the version that `distsgd doctor` asks for under packages",
        )  # fmt: skip
    if not missing:
        yield ok("Ray", f"{ray.__version__}, with all private names that are used")


def ray_start() -> Iterator[Finding]:
    """Whether a private Ray starts, as for a training with workers."""
    try:
        with ray_session(cpus=1):
            pass
    except DistsgdError as error:
        yield problem("Ray", error.problem, error.hint)
    else:
        yield ok("Ray", "a private one starts and ends")


def sessions() -> Iterator[Finding]:
    """What killed trainings have left."""
    dead = dead_sessions()
    if dead:
        more = f" and {len(dead) - 1} more" if len(dead) > 1 else ""
        yield warning(
            "sessions",
            f"a training was killed together with its guard; its Ray is in {dead[0]}{more}",
            "The next training with workers, or `distsgd doctor --start-ray`, clears it away",
        )
    else:
        yield ok("sessions", "no killed training has left anything")


def blas() -> Iterator[Finding]:
    """The BLAS of numpy: its kernel, the processor's best, and its threads."""
    kernel, best = blas_kernel(), best_core_type()
    core_type = core_type_of(kernel)
    bad = False
    if core_type is None:
        bad = True
        yield warning(
            "BLAS",
            f"numpy multiplies by {kernel}: bits differ from those of OpenBLAS",
            "Take numpy's wheels (pip install --force-reinstall numpy), or --arithmetic exact",
        )
    elif _is_slower(core_type, best):
        bad = True
        given = os.environ.get(VARIABLE)
        by = f"because {VARIABLE}={given}" if given else "as OpenBLAS picks them"
        yield warning(
            "BLAS",
            f"numpy multiplies by {core_type} kernels, {by}; this processor can do {best}, which "
            "is faster",
            f"unset {VARIABLE}: the command line then takes {best}",
        )
    for name in _THREADS:
        if os.environ.get(name, "1") not in ("1", ""):
            bad = True
            yield warning(
                "BLAS",
                f"{name}={os.environ[name]}: trainings compute by one thread a worker whatever it "
                "says, but other numpy code beside them takes their processors",
                f"export {name}=1, and give --workers for more processors",
            )
    if (threads := _threads_of_training()) != 1:
        bad = True
        yield problem(
            "BLAS",
            f"{kernel} computes by {threads} threads when it is to take one: bits depend on it",
            "Set OPENBLAS_NUM_THREADS=1 and OMP_NUM_THREADS=1 before Python starts",
        )
    if not bad:
        what = "the best that this processor can do" if core_type == best else "as it picks it"
        yield ok("BLAS", f"{kernel}, {what}; one thread a worker")


def _is_slower(core_type: str, best: str | None) -> bool:
    if core_type not in _SPEEDS or best not in _SPEEDS:
        return False
    return _SPEEDS.index(core_type) < _SPEEDS.index(best)


def _threads_of_training() -> int:
    """Threads of numpy's BLAS while a training computes."""
    with one_blas_thread(check_at_end=False):
        found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return max(found, default=1)
