"""`ray start` without the server of Ray Client, which a head otherwise opens at port 10001.

    python -m distsgd.on_ray.start OPTIONS

Ray has no option for it: its command line starts that server wherever gRPC is installed. Nothing
of ours connects through it.
"""

from __future__ import annotations

import sys
from typing import Any

__all__: list[str] = []


def main(options: list[str]) -> None:
    """Start Ray's processes, which outlive this one; exits with Ray's code."""
    from ray.scripts import scripts

    command: Any = scripts
    if hasattr(command, "get_ray_client_dependency_error"):  # private: absent from other versions
        command.get_ray_client_dependency_error = lambda: ImportError("Ray Client is not wanted")
    command.cli.main(["start", *options])


if __name__ == "__main__":
    main(sys.argv[1:])
