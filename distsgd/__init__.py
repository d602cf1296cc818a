"""Distributed minibatch SGD on Ray, exact and replayable.

>>> import distsgd
>>> result = distsgd.train(dataset="sample", workers=0, epochs=2)
>>> distsgd.evaluate(result.run_dir).accuracy == result.test_accuracy
True

`train`, `resume` and `scale` train; `evaluate` and `predict` use what was trained; `audit` and
`replay` check it against its journal; `diff` finds where two runs part; `show` recomputes one
update; `blame` finds the training examples that a prediction comes from; `simulate` trains on a
virtual clock. `runs` lists runs, and `load` gives one as an object. `TrainConfig` holds the
settings; a `Callback` or a `Reporter` follows a training. All errors are of `distsgd.errors`. Names
that are not in ``__all__`` are private and may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distsgd.version import __version__

if TYPE_CHECKING:
    from distsgd import errors
    from distsgd.forensics.bisect import Bisected, bisect
    from distsgd.forensics.blame import Blame, blame
    from distsgd.forensics.difference import Difference, diff
    from distsgd.forensics.show import ShownUpdate, show
    from distsgd.proof.audit import Audit, audit
    from distsgd.proof.replay import Replay, replay
    from distsgd.runs.history import History
    from distsgd.runs.listing import RunSummary
    from distsgd.runs.listing import find_runs as runs
    from distsgd.simulation.from_python import simulate
    from distsgd.simulation.results import SimulationResult
    from distsgd.training import (
        Callback,
        DistsgdError,
        EpochRow,
        Evaluation,
        Prediction,
        Progress,
        Prometheus,
        Reporter,
        TensorBoard,
        TrainConfig,
        TrainingInterrupted,
        TrainResult,
        UsageError,
        evaluate,
        predict,
        resume,
        scale,
        train,
    )
    from distsgd.training.loaded_moment import LoadedMoment
    from distsgd.training.loaded_run import LoadedRun, load
    from distsgd.training.predictor import Predictor
    from distsgd.tuning.from_python import sweep, tune
    from distsgd.tuning.sweep_results import SweepResult
    from distsgd.tuning.tune_results import TuneResult

__all__ = [
    "Audit",
    "Bisected",
    "Blame",
    "Callback",
    "Difference",
    "DistsgdError",
    "EpochRow",
    "Evaluation",
    "History",
    "LoadedMoment",
    "LoadedRun",
    "Prediction",
    "Predictor",
    "Progress",
    "Prometheus",
    "Replay",
    "Reporter",
    "RunSummary",
    "ShownUpdate",
    "SimulationResult",
    "SweepResult",
    "TensorBoard",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "TuneResult",
    "UsageError",
    "__version__",
    "audit",
    "bisect",
    "blame",
    "diff",
    "errors",
    "evaluate",
    "load",
    "predict",
    "replay",
    "resume",
    "runs",
    "scale",
    "show",
    "simulate",
    "sweep",
    "train",
    "tune",
]

_ELSEWHERE = {
    "Difference": "forensics.difference", "diff": "forensics.difference",
    "ShownUpdate": "forensics.show", "show": "forensics.show",
    "Bisected": "forensics.bisect", "bisect": "forensics.bisect",
    "Blame": "forensics.blame", "blame": "forensics.blame",
    "Audit": "proof.audit", "audit": "proof.audit",
    "Replay": "proof.replay", "replay": "proof.replay",
    "History": "runs.history", "RunSummary": "runs.listing",
    "LoadedMoment": "training.loaded_moment",
    "LoadedRun": "training.loaded_run", "load": "training.loaded_run",
    "Predictor": "training.predictor",
    "SimulationResult": "simulation.results", "simulate": "simulation.from_python",
    "SweepResult": "tuning.sweep_results", "sweep": "tuning.from_python",
    "TuneResult": "tuning.tune_results", "tune": "tuning.from_python",
}  # fmt: skip
"""Public names that are not of `distsgd.training`, and their modules."""


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used, so that importing distsgd is instant."""
    if name not in __all__:
        raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
    from importlib import import_module

    if name in ("errors", "runs"):
        return import_module(f"distsgd.{name}")
    return getattr(import_module(f"distsgd.{_ELSEWHERE.get(name, 'training')}"), name)
