"""Every environment variable of Ray that the package sets or reads, and why: one table.

Ray takes settings of this kind from the environment alone. `settings` gives those that a process
of ours needs; other rooms name variables by the constants here.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = [
    "ADDRESS", "AUTH_MODE", "JOB_CONFIG", "KEEP_ENVIRONMENT", "LOOPBACK", "STARTING", "TABLE",
    "TLS_FILES", "TOKEN", "TOKEN_PATH", "USE_TLS", "Variable", "settings", "uses_tls",
]  # fmt: skip

ADDRESS = "RAY_ADDRESS"
AUTH_MODE = "RAY_AUTH_MODE"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
KEEP_ENVIRONMENT = "SPT_NOENV"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
STARTING = "RAY_worker_maximum_startup_concurrency"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
USE_TLS = "RAY_USE_TLS"
TLS_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")

_NATIVE = "_raylet.so"
_CONSTANTS = "_private/ray_constants.py"
_NO_PORT = "-1"


class Variable(NamedTuple):
    """A variable of Ray.

    Attributes:
        name: its name.
        why: what it is set or read for.
        value: what it is set to, or None if its value differs or it is only read.
        set_by: "session" (a Ray of our own), "client" (a process that joins a cluster) and "node"
            (what `cluster start` starts), each of which sets it to ``value``.
        read_in: a file of Ray that names it, with or without the prefix.
    """

    name: str
    why: str
    value: str | None = None
    set_by: tuple[str, ...] = ()
    read_in: str = _NATIVE


_EVERYWHERE = ("session", "client", "node")

TABLE = (
    Variable(AUTH_MODE, "processes show each other a token", "token", ("session", "node")),
    Variable(TOKEN, "the token of a session, while its processes start; a user's own, read"),
    Variable(TOKEN_PATH, "the file with the token of a cluster; a user's own, read"),
    Variable(ADDRESS, "the cluster that the address \"auto\" means; read", read_in=_CONSTANTS),
    Variable(JOB_CONFIG, "set in a job, whose workers import from the folder sent with it; read",
             read_in="_private/worker.py"),
    Variable(USE_TLS, "whether the cluster uses TLS, and with it our own connections; read"),
    *(Variable(name, "a file of the certificates for TLS; read") for name in TLS_FILES),
    Variable(
        # Despite its name: take the loopback address for this node, whatever the system. It would
        # turn a 127.0.0.1 given to ray.init into an outer address.
        LOOPBACK, "listen on the loopback address alone", "0", ("session",), _CONSTANTS,
    ),
    Variable("RAY_USAGE_STATS_ENABLED", "send nothing to Ray's makers", "0", _EVERYWHERE,
             "_common/usage/usage_constants.py"),
    Variable(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
        "under `uv run`, do not rebuild the environment and upload the working folder",
        "0", _EVERYWHERE, _CONSTANTS,
    ),
    Variable(
        "RAY_worker_niceness", "workers do the work that the user waits for: no lower priority",
        "0", ("session", "node"),
    ),
    Variable(
        "RAY_prestart_worker_first_driver",
        "`ray.init` waits for no worker: those that are needed start at once, and no others",
        "0", ("session",),
    ),
    Variable(STARTING, "how many workers start at a time, if not one a core"),
    Variable(
        "RAY_local_fs_capacity_threshold",
        "a full disk is reported by us, where it matters, and not by Ray all the time",
        "1", ("session", "node"),
    ),
    Variable(
        "RAY_IGNORE_UNHANDLED_ERRORS",
        "errors of calls without a waiter are known from other calls",
        "1", ("session", "client"), "_private/worker.py",
    ),
    Variable(
        "RAY_gcs_rpc_server_reconnect_timeout_s",
        "where we do not notice first that the head has gone, Ray ends us after 15 s, not 60",
        "15", ("session", "client"),
    ),
    Variable(
        # A process that has an object of that store in use, or asks for one, is ended by Ray as
        # soon as the node dies, with exit code 1 and no message.
        "RAY_max_direct_call_object_size",
        "arguments and results up to 10 MiB stay out of the object store", str(10 * 2**20),
        _EVERYWHERE,
    ),
    Variable(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "leave the variables of accelerators alone",
        "0", ("session",), "_private/utils.py",
    ),
    # Metrics are served without a token, and their exporter leaves a thread in this process. The
    # dashboard and the autoscaler's monitor have no switch, but do without metrics when they cannot
    # listen, and no process can listen at port -1.
    Variable("RAY_enable_open_telemetry", "serve no metrics", "0", _EVERYWHERE),
    Variable("RAY_enable_metrics_collection", "serve no metrics", "0", _EVERYWHERE),
    Variable("DASHBOARD_METRIC_PORT", "serve no metrics", _NO_PORT, _EVERYWHERE,
             "dashboard/consts.py"),
    Variable("AUTOSCALER_METRIC_PORT", "serve no metrics", _NO_PORT, _EVERYWHERE,
             "autoscaler/_private/constants.py"),
    # A node that does not answer for so long is dead: 5 s instead of a minute.
    *(
        Variable(f"RAY_health_check_{name}", "take a silent node for dead after 5 s", value,
                 ("node",))
        for name, value in (
            ("initial_delay_ms", "1000"), ("period_ms", "1000"), ("timeout_ms", "1000"),
            ("failure_threshold", "4"),
        )
    ),
    Variable(
        KEEP_ENVIRONMENT, "processes that rename themselves keep their environment, with our mark",
        "1", ("node",),
    ),
)  # fmt: skip


def settings(of: str) -> dict[str, str]:
    """What a process sets, by name.

    Args:
        of: "session", "client" or "node", see `Variable.set_by`.
    """
    return {one.name: one.value for one in TABLE if of in one.set_by and one.value is not None}


def uses_tls() -> bool:
    """Whether Ray is set to use TLS."""
    return os.environ.get(USE_TLS, "0").lower() in ("1", "true")
