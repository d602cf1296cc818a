"""The parameter server as a state machine: leases and pushes in, decisions and updates out.

`ParameterServer` decides and updates; a `RangeServer` applies its decisions to a range of the
parameters. `position` is how far a run has come, `consistency` when a worker may go ahead.
"""

from distsgd.core.server.parameter_server import ParameterServer
from distsgd.core.server.position import Ledger, Position, WorkQueue
from distsgd.core.server.range_server import Keep, MergedState, RangeServer, SplitServer, rebuilt
from distsgd.core.server.sampled_updates import SampledUpdate, UpdateSampler
from distsgd.core.server.update_check import UpdateCheck

__all__ = [
    "Keep",
    "Ledger",
    "MergedState",
    "ParameterServer",
    "Position",
    "RangeServer",
    "SampledUpdate",
    "SplitServer",
    "UpdateCheck",
    "UpdateSampler",
    "WorkQueue",
    "rebuilt",
]
