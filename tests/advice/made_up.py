"""Made-up machines, whose measurements follow from a few numbers."""

from distsgd.advice.machine import Machine, Trial
from distsgd.advice.measuring import trials_for

PARAMETERS = 30_880


def machine(
    *, cores=2, example=4e-6, crowd=1.0, meeting=5e-5, push=1e-4, start=5.0, examples=50_000, **more
):
    """A machine.

    Args:
        cores: of it.
        example: seconds of a core for the gradient of an example.
        crowd: how many times longer it takes when others compute.
        meeting: seconds of a team to meet and to apply.
        push: seconds of the server for a push; as many for an update.
        start: seconds of Ray to start.
        examples: of the training set.
    """
    trials = {"memory": Trial(1e10)}
    for run in trials_for(cores, 64, examples):
        kind, name = run["kind"], run["name"]
        batch, workers = run.get("batch_size", 0), run.get("workers", 0)
        busy = min(max(workers, run.get("processes", 1)), cores)
        each = example * (crowd if busy > 1 else 1.0)
        details = {}
        if kind == "kernel":
            value = each * batch
        elif kind == "inline":
            value = example * batch + meeting
        elif kind == "codec":
            value, details = 1e-4, {"decode": 5e-5, "bytes": PARAMETERS / 8}
        elif kind == "fleet":
            value = each * batch / busy + meeting
            if run.get("consistency") == "local":
                value *= 8
            if run["channel"] != "team":
                value += (1 + workers) * push - meeting
                details = {"busy": (1 + workers) * push}
        else:
            continue
        trials[name] = Trial(value, 0.02, details)
    return Machine(
        cores=cores, model="linear", examples=examples, parameters=PARAMETERS,
        vector_bytes=4 * PARAMETERS, trials=trials, start_seconds=start, **more,
    )  # fmt: skip
