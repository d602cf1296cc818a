"""Ray jobs: commands of distsgd that a cluster runs on its own, each with a copy of our code."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import requests

from distsgd.cluster.access import known_token, token_file
from distsgd.cluster.connection import address_of
from distsgd.cluster.local_node import JOBS_PORT
from distsgd.cluster.node import read_node
from distsgd.data.locations import RUN_NAME
from distsgd.data.system import pause
from distsgd.errors import DistsgdError, RuntimeFailure, UsageError
from distsgd.on_ray.private import BY_PROCESSOR, JOB_LOGGERS, job_client
from distsgd.on_ray.session import ray_environment
from distsgd.spelling import spelled
from distsgd.transport.ray_variables import ADDRESS, AUTH_MODE, TOKEN_PATH, settings
from distsgd.version import __version__

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["JobApi", "JobState", "job_api", "jobs_address"]


@contextmanager
def package(files: Sequence[Path], *, sample: bool) -> Iterator[Path]:
    """A folder with our own code and the given files: no data, no environment.

    Args:
        files: copied into it, without their folders.
        sample: whether the embedded images are included.
    """
    top = Path(__file__).parents[1]
    left_out = ["__pycache__"] if sample else ["__pycache__", "*.arrow"]
    with tempfile.TemporaryDirectory(prefix="distsgd-package-") as name:
        folder = Path(name)
        shutil.copytree(top, folder / "distsgd", ignore=shutil.ignore_patterns(*left_out))
        for path in files:
            shutil.copyfile(path, folder / path.name)
        yield folder


_MARK = "distsgd"
_SECONDS_FOR_AGENT = 40.0
_SECONDS_TO_STOP = 30.0
_SECONDS_UNSEEN, _SECONDS_GONE = 5.0, 60.0
_PATIENCE, _PATIENCE_TO_SEND = (5.0, 60.0), (600.0, 60.0)
"""Seconds to connect and to wait for a response; sending counts as connecting."""
_ENDED = ("succeeded", "failed", "stopped")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A job.

    Attributes:
        job: its name.
        run: the name of its run: that of the job, or of the run that it resumes.
        state: "pending", "running", "succeeded", "failed" or "stopped".
        begun: start time in UTC, ISO 8601, or "".
        ended: end time, likewise.
        command: the command line after "distsgd".
        message: Ray's message about it.
    """

    job: str
    run: str
    state: str
    begun: str
    ended: str
    command: str
    message: str

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in _ENDED


def jobs_address(address: str) -> str:
    """The URL at which the head of a cluster takes jobs.

    Args:
        address: the URL, or HOST:PORT of the head, or "auto", see `address_of`.

    Raises:
        UsageError: it is none of them.
    """
    if address == "auto" and "://" in (known := os.environ.get(ADDRESS, "")):
        address = known  # as Ray's own commands for jobs take it
    if "://" in address:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise UsageError(
                f"{spelled('address')} cannot be {parts.scheme}://...",
                "Give http://HOST:8265, HOST:PORT of the head, or auto",
            )
        return f"{parts.scheme}://{parts.netloc}"
    node = read_node()
    where = address_of(address)
    port = node.jobs_port if node is not None and node.address == where else 0
    return f"http://{where.rpartition(':')[0]}:{port or JOBS_PORT}"


class JobApi:
    """The jobs of a cluster.

    Args:
        client: of Ray.
        address: its URL.
    """

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self._client, self.address = client, address

    def submit(
        self, arguments: Sequence[str], files: Sequence[Path], *, sample: bool,
        run: str | None = None, listed: bool = True,
    ) -> str:  # fmt: skip
        """Submit a command of distsgd; returns the name of the job.

        Args:
            arguments: what follows "distsgd".
            files: files that the command reads, by their names without a folder.
            sample: whether the embedded images are included.
            run: name of the run that it resumes; None for a new run named after the job.
            listed: whether `jobs` shows it.

        Raises:
            RuntimeFailure: the cluster does not accept it.
        """
        job = f"job-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with package(files, sample=sample) as folder:
            settings: dict[str, Any] = {
                # Within a job, that is the cluster that it runs on.
                "entrypoint": join(["python", "-m", "distsgd", *arguments, "--address", "auto"]),
                "submission_id": job,
                "metadata": {
                    **({_MARK: __version__} if listed else {}),
                    "command": join(arguments),
                    "run": run or job,
                    **BY_PROCESSOR,
                },
                "runtime_env": {
                    "working_dir": str(folder),
                    "env_vars": {RUN_NAME: job, "COLUMNS": "100"},
                },
            }
            until = time.monotonic() + _SECONDS_FOR_AGENT
            while True:
                try:
                    self._call(lambda: self._client.submit_job(**settings))
                    return job
                except RuntimeFailure as error:
                    # A head that has just started answers before it accepts jobs.
                    if "No available agent" not in error.problem or time.monotonic() > until:
                        raise
                    pause(0.5)

    def state(self, job: str) -> JobState:
        """The state of a job.

        Raises:
            RuntimeFailure: no job has that name.
        """
        return _state(self._call(lambda: self._client.get_job_info(job)))

    def jobs(self) -> list[JobState]:
        """The jobs of distsgd, newest first."""
        found = self._call(self._client.list_jobs)
        ours = [info for info in found if _MARK in (info.metadata or {})]
        return [_state(info) for info in sorted(ours, key=lambda one: -(one.start_time or 0))]

    def logs(self, job: str) -> str:
        """The output of a job so far."""
        return str(self._call(lambda: self._client.get_job_logs(job)))

    def follow(self, job: str, show: Callable[[str], None]) -> JobState:
        """Show the output of a job until it ends; returns its final state.

        Raises:
            RuntimeFailure: the head no longer answers, which the stream itself does not report.
        """

        async def lines() -> None:
            async for text in self._client.tail_job_logs(job):
                show(text)

        async def watched() -> None:
            reading, over = asyncio.create_task(lines()), False
            while not over and not (await asyncio.wait({reading}, timeout=_SECONDS_UNSEEN))[0]:
                over = await asyncio.to_thread(self._over, job)
            await asyncio.wait({reading}, timeout=_SECONDS_UNSEEN)
            if reading.done():
                reading.result()

        self._call(lambda: asyncio.run(watched()))
        return self._ended(job)

    def _over(self, job: str) -> bool:
        """Whether it has ended; retries for a minute when the head does not answer."""
        until = time.monotonic() + _SECONDS_GONE
        while True:
            try:
                return self.state(job).over
            except RuntimeFailure:
                if time.monotonic() > until:
                    raise
                pause(_SECONDS_UNSEEN)

    def stop(self, job: str) -> JobState:
        """Stop a job, and wait until it has ended; its run can be resumed."""
        if not (state := self.state(job)).over:
            self._call(lambda: self._client.stop_job(job))
            state = self._ended(job)
        return state

    def _ended(self, job: str) -> JobState:
        until = time.monotonic() + _SECONDS_TO_STOP
        while not (state := self.state(job)).over and time.monotonic() < until:
            pause(0.1)
        return state

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            raise _as_ours(error, self.address) from None


@contextmanager
def job_api(address: str) -> Iterator[JobApi]:
    """The jobs of a cluster.

    The token is taken from ``$RAY_AUTH_TOKEN`` or ``$RAY_AUTH_TOKEN_PATH``, else from the file of
    `distsgd cluster start`.

    Raises:
        UsageError: see `jobs_address`.
        RuntimeFailure: nothing answers there, or the token is not the cluster's.
    """
    where = jobs_address(address)
    near = _is_near(urlsplit(where).hostname or "")
    proxies = {"proxies": {"http": None, "https": None}} if near else {}

    def options(sends: bool) -> dict[str, Any]:
        return {"timeout": _PATIENCE_TO_SEND if sends else _PATIENCE, **proxies}

    with ray_environment(**settings("client"), **known_token()), _silent(JOB_LOGGERS):
        try:
            client = job_client(where, options)
        except Exception as error:
            raise _as_ours(error, where) from None
        yield JobApi(client, where)


@contextmanager
def _silent(names: Sequence[str]) -> Iterator[None]:
    """While entered, these loggers report only errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in a private network: requests bypass the proxy."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(one).is_private for one in found)
    except (OSError, ValueError):
        return False


def _as_ours(error: Exception, address: str) -> DistsgdError:
    """An error of Ray, as one of ours in one line."""
    if isinstance(error, DistsgdError):
        return error
    text = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
    if type(error).__name__ == "AuthenticationError":
        what = "another token" if "nvalid" in text else "a token"
        return RuntimeFailure(
            f"the Ray cluster at {address} requires {what}",
            f"Copy the head's token to {token_file()}, or name its file in {TOKEN_PATH} "
            f"with {AUTH_MODE}=token",
        )
    # Ray's client hides it behind an error of its own.
    if any(isinstance(one, requests.exceptions.ProxyError) for one in (error, error.__context__)):
        return RuntimeFailure(
            f"the proxy that http_proxy or https_proxy names does not lead to {address}",
            f"Name the host in no_proxy: export no_proxy={urlsplit(address).hostname}",
        )
    unreachable = isinstance(error, ConnectionError | requests.ConnectionError | requests.Timeout)
    if unreachable or "Failed to connect" in text or "Cannot connect" in text:
        return RuntimeFailure(
            f"nothing accepts jobs at {address}",
            "Look whether the head is up, and whether its port for jobs (8265) can be reached",
        )
    if "does not exist" in text:
        return RuntimeFailure(f"there is no such job at {address}", "See `distsgd jobs list`")
    return RuntimeFailure(f"the Ray cluster at {address} refuses: {text}")


def _state(info: Any) -> JobState:
    def at(milliseconds: int | None) -> str:
        if not milliseconds:
            return ""
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

    return JobState(
        job=info.submission_id,
        run=(info.metadata or {}).get("run", info.submission_id),
        state=str(getattr(info.status, "value", info.status)).lower(),
        begun=at(info.start_time),
        ended=at(info.end_time),
        command=(info.metadata or {}).get("command", info.entrypoint),
        message=(info.message or "").strip(),
    )
