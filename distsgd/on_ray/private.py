"""Everything private of Ray that the package uses, each behind a function that says what for.

There is no public call for any of it. `tests/on_ray/test_private.py` looks for every name in the
installed Ray and says what breaks without it; pyproject.toml pins the minor versions for which it
has passed.

Run as a program, this is `ray start` without the server of Ray Client:

    python -m distsgd.on_ray.private OPTIONS
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

from distsgd.transport.ray_variables import LOOPBACK

__all__ = [
    "BY_PROCESSOR", "CHECK_ALIVE", "DRIVER_LOG", "HEAD_RESOURCE", "JOB_LOGGERS", "NAMES",
    "SOCKET_PATH", "VITAL_PROCESSES", "WORKER_LOGGER", "call_in_actor", "dead_processes",
    "drop_gcs_client", "free_cpus", "global_node", "init_code", "init_options", "installed_only",
    "is_head", "is_own_excepthook", "job_client", "missing_names", "named", "no_extra_processes",
    "quiet_output", "read_token", "replaced_init", "reread_environment", "set_auto_init", "start",
    "without_sigterm_handler", "works_for_command_line",
]  # fmt: skip

VITAL_PROCESSES = frozenset({"raylet", "gcs_server"})
"""Names of the processes that a Ray cannot do without, as `dead_processes` gives them."""

DRIVER_LOG = re.compile(r"/python-core-driver-\w+_(\d+)\.log")
"""Log file of a driver, with its process id. Ray leaves it open after `ray.shutdown`."""

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that only the head node has."""

CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""The cheapest gRPC call of a head: it needs the token, and no arguments."""

SOCKET_PATH = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket below a session's folder; 107 bytes fit in all."""

WORKER_LOGGER = "ray._private.worker"
"""The logger that warns when `ray.init` runs in a thread, which can install no signal handler."""

BY_PROCESSOR = {"distsgd-core-type": "processor"}
"""In the metadata of a job: its workers choose their BLAS kernel, as its driver does."""

JOB_LOGGERS = (
    "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)  # fmt: skip
"""The loggers that report the progress of submitting a job."""


NAMES = {
    "ray._private.worker:_global_node": "the death of a process of Ray is noticed after 15 s only",
    "ray._private.node:Node.dead_processes": "the death of a process of Ray is noticed late",
    "ray._private.node:Node.is_head": "a cluster's head that no longer answers is not noticed",
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": "our own Ray listens on outer addresses",
    "ray._raylet:Config.initialize": "settings of a session are ignored after the first import",
    "ray._raylet:AuthenticationTokenLoader.instance": "a second session cannot authenticate",
    "ray._private.ray_logging:stdout_deduplicator.skip_re": "Ray prints among our results",
    "ray._private.ray_logging:stderr_deduplicator.skip_re": "traces of other nodes are shown",
    "ray._private.auto_init_hook:enable_auto_connect": "a call after the end starts another Ray",
    "ray._private.utils:set_sigterm_handler": "ray.init replaces the caller's SIGTERM handler",
    "ray._private.worker:custom_excepthook": "importing Ray changes the caller's excepthook",
    "ray.job_config:JobConfig._runtime_env_has_working_dir": "workers import from the script's "
    "folder, where a numpy.py ends them",
    "ray._private.worker:global_worker.mode": "workers on others' Ray multiply by other kernels",
    "ray:WORKER_MODE": "workers on others' Ray multiply by other kernels",
    "ray._raylet:CoreWorker.get_job_config": "workers on others' Ray multiply by other kernels",
    "ray._private.state:available_resources_per_node": "`cluster status` knows no free CPUs",
    "ray.dashboard.modules.dashboard_sdk:SubmissionClient._do_request": "requests about jobs have "
    "no time limit",
    "ray.actor:ActorMethod": "workers that hang cannot be asked for their process id",
    "ray.scripts.scripts:get_ray_client_dependency_error": "a head opens port 10001",
    "ray._private.node:Node.start_api_server": "a session starts a dashboard, and waits for it",
    "ray._private.node:Node.start_log_monitor": "a session starts a monitor of logs",
    "ray._private.node:Node.start_monitor": "a session starts the monitor of an autoscaler",
    "ray._private.utils:get_dashboard_dependency_error": "a session imports the dashboard's needs",
    "ray._raylet:persist_port": "a session waits for the agents of its node",
    "ray.scripts.scripts:cli": "`cluster start` cannot call `ray start`",
}
"""Where a name is -> what breaks without it."""


def named(name: str) -> Any:
    """What stands at a key of `NAMES`.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such name.
    """
    module, _, attributes = name.partition(":")
    place: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        place = getattr(place, attribute)
    return place


def missing_names() -> dict[str, str]:
    """Those of `NAMES` that the installed Ray does not have; imports Ray."""
    missing = {}
    for name, breaks in NAMES.items():
        try:
            named(name)
        except (ImportError, AttributeError):
            missing[name] = breaks
    return missing


def global_node() -> Any:
    """The node that `ray.init` has started or joined in this process, or None."""
    import ray

    return getattr(ray._private.worker, "_global_node", None)


def dead_processes() -> set[str]:
    """Names of the processes of our own Ray that have died."""
    return {str(name) for name, _ in getattr(global_node(), "dead_processes", list)()}


def is_head() -> bool:
    """Whether this process has started its Ray itself: then its processes are our children."""
    return bool(getattr(global_node(), "is_head", lambda: True)())


def drop_gcs_client(node: Any) -> None:
    """Close the connection to the head that `ray.shutdown` leaves open.

    Left open, it ends the process some seconds after the head has gone.

    Args:
        node: what `global_node` gave before the shutdown.
    """
    if getattr(node, "_gcs_client", None) is not None:
        node._gcs_client = None


def reread_environment() -> None:
    """Make Ray read again what it reads once, when it is first imported.

    These are the authentication mode, the token (every session has another one), and whether to
    stay on the loopback address.
    """
    try:
        from ray._private import ray_constants
        from ray._raylet import (  # type: ignore[attr-defined]
            AuthenticationTokenLoader,
            Config,
        )
    except ImportError:
        return
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(LOOPBACK) != "0"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def read_token() -> None:
    """Make Ray read the token now, to keep it when it is no longer in the environment."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().has_token()


@contextmanager
def quiet_output(*, also_stderr: bool = False) -> Iterator[None]:
    """While entered, nothing that Ray's processes print is shown on stdout, where results belong.

    Args:
        also_stderr: nor on stderr, such as traces of Ray's own functions from other nodes.
    """
    try:
        from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator
    except ImportError:
        yield
        return
    quieted = [stdout_deduplicator, *([stderr_deduplicator] if also_stderr else [])]
    before = [one.skip_re for one in quieted]
    for one in quieted:
        one.skip_re = re.compile("")
    try:
        yield
    finally:
        for one, skipped in zip(quieted, before, strict=True):
            one.skip_re = skipped


def set_auto_init(wanted: bool) -> bool:
    """Say whether a call to Ray may start one where none is; returns what held before."""
    from ray._private import auto_init_hook

    before = bool(auto_init_hook.enable_auto_connect)
    auto_init_hook.enable_auto_connect = wanted
    return before


@contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """While entered, `ray.init` installs no handler of SIGTERM."""
    import ray

    place: Any = getattr(ray._private, "utils", None)
    install = getattr(place, "set_sigterm_handler", None)
    if install is None:
        yield
        return
    place.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        place.set_sigterm_handler = install


_AGENT_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)  # fmt: skip
_EXTRA = ("start_api_server", "start_log_monitor", "start_monitor")
_AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_NO_PORT = -1


@contextmanager
def no_extra_processes(stand_in: Sequence[str]) -> Iterator[None]:
    """While entered, `ray.init` in this thread starts a head, a node and workers, and no more.

    Left out are the server of the dashboard, the monitor of the autoscaler, the monitor of logs and
    the agents of the node: each a Python that imports Ray, and `ray.init` waits for three of them,
    one after the other. A node that finds that an agent serves nothing does without, as where
    `ray[default]` is not installed.

    Args:
        stand_in: command of a process that takes the place of an agent, and ends with the node; it
            is given the folder of the session, by which its processes are known.
    """
    from ray._private import node, services, utils
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    own, head = threading.get_ident(), node.Node
    before = {name: getattr(head, name) for name in _EXTRA}
    start_process, why_no_dashboard = (
        services.start_ray_process,
        utils.get_dashboard_dependency_error,
    )

    def left_out(extra: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(extra)
        def start_extra(*given: Any, **named: Any) -> None:
            if threading.get_ident() != own:
                extra(*given, **named)

        return start_extra

    def no_dashboard() -> Exception | None:
        # Ray would import all that the dashboard needs, to see whether that is installed.
        return ImportError() if threading.get_ident() == own else why_no_dashboard()

    def started(command: Sequence[str], name: str, *given: Any, **named: Any) -> Any:
        if name == "raylet" and threading.get_ident() == own:
            flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in command)
            for port in _AGENT_PORTS:
                persist_port(flags["session_dir"], flags["node_id"], port, _NO_PORT)
            agent = [*stand_in, flags["session_dir"]]
            command = [_replaced(flag, agent) for flag in command]
        return start_process(command, name, *given, **named)

    try:
        for name, extra in before.items():
            setattr(head, name, left_out(extra))
        services.start_ray_process = started
        utils.get_dashboard_dependency_error = no_dashboard
        yield
    finally:
        utils.get_dashboard_dependency_error = why_no_dashboard
        services.start_ray_process = start_process
        for name, extra in before.items():
            setattr(head, name, extra)


def _replaced(flag: str, stand_in: Sequence[str]) -> str:
    """A flag of a node, with another command if it is that of an agent."""
    for name in _AGENTS:
        if flag.startswith(name):
            return name + subprocess.list2cmdline(stand_in)
    return flag


def is_own_excepthook(hook: Any) -> bool:
    """Whether a `sys.excepthook` is the one that importing Ray installs."""
    import ray

    return hook is getattr(ray._private.worker, "custom_excepthook", None)


def init_code() -> CodeType:
    """The code of `ray.init` below its decorators, to find it in the frames of other threads."""
    import ray

    code: CodeType = inspect.unwrap(ray.init).__code__
    return code


@contextmanager
def replaced_init(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While entered, `ray.init` is what ``wrap`` makes of it."""
    import ray

    init = ray.init
    ray.init = wrap(init)
    try:
        yield
    finally:
        ray.init = init


def init_options(folder: Path) -> dict[str, Any]:
    """Options of `ray.init` that put all files into a folder and listen on loopback alone."""
    return {"_temp_dir": str(folder), "_node_ip_address": "127.0.0.1"}


def installed_only(folders: Sequence[str], metadata: Mapping[str, str]) -> Any:
    """A job configuration whose workers import what is installed, and nothing else.

    Ray would add the working folder and that of the script.

    Args:
        folders: from which workers import too.
        metadata: what its workers can read, such as `BY_PROCESSOR`.
    """
    from ray.job_config import JobConfig

    class InstalledOnly(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            """As if workers had a folder of their own: then Ray adds neither of the two."""
            return True

    return InstalledOnly(_py_driver_sys_path=list(folders), metadata=dict(metadata))


def works_for_command_line() -> bool:
    """Whether this is a process of Ray whose job has `BY_PROCESSOR` in its metadata."""
    ray: Any = sys.modules.get("ray")
    worker: Any = getattr(sys.modules.get("ray._private.worker"), "global_worker", None)
    if worker is None or worker.mode != ray.WORKER_MODE:
        return False
    return BY_PROCESSOR.items() <= dict(worker.core_worker.get_job_config().metadata).items()


def call_in_actor(actor: Any, function: Callable[[Any], Any]) -> Any:
    """Call a function in the process of an actor, with its object; returns a reference."""
    return actor.__ray_call__.remote(function)


def free_cpus() -> dict[str, float]:
    """Node id -> its free CPUs."""
    import ray

    found = ray._private.state.available_resources_per_node()
    return {node: free.get("CPU", 0.0) for node, free in found.items()}


def job_client(address: str, options: Callable[[bool], Mapping[str, Any]]) -> Any:
    """A client for jobs whose requests have a time limit; Ray's own has none.

    Args:
        address: URL of the head.
        options: of `requests`, for a request that has data to send (True) or none.
    """
    from ray.job_submission import JobSubmissionClient

    class PatientClient(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *given: Any, **named: Any) -> Any:
            return super()._do_request(
                *given, **{**options(named.get("data") is not None), **named}
            )

    return PatientClient(address)


def start(options: Sequence[str]) -> None:
    """`ray start` without the server of Ray Client, which a head otherwise opens at port 10001.

    Ray has no option for it: it starts that server wherever gRPC is installed. Exits with Ray's
    code; the processes that it starts outlive this one.
    """
    from ray.scripts import scripts

    command: Any = scripts
    if hasattr(command, "get_ray_client_dependency_error"):
        command.get_ray_client_dependency_error = lambda: ImportError("Ray Client is not wanted")
    command.cli.main(["start", *options])


if __name__ == "__main__":
    start(sys.argv[1:])
