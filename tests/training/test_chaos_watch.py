"""Training under chaos: the same bits, what it says of itself, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distsgd.errors import UsageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.folder import RunFolder
from distsgd.training import train
from distsgd.training.results import TrainResult
from distsgd.training.training import resume

PUSHES = "drop-push:p=0.1:for=20ms,dup-push:p=0.1,delay:p=0.1:for=1ms"


def strikes(result: TrainResult) -> list[dict[str, Any]]:
    lines = (Path(result.run_dir) / "chaos.jsonl").read_text(encoding="utf-8").splitlines()
    return [found for found in map(json.loads, lines) if "fault" in found]


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("policy", ["bsp", "ssp", "asp", "backup", "local"])
def test_one_process(policy: str, servers: int) -> None:
    settings = {"epochs": 5, "consistency": policy, "servers": servers, "slot_size": 50}
    result = train("sample", workers=0, chaos=PUSHES, **settings)  # type: ignore[arg-type]
    assert result.weights_sha256 == train("sample", workers=0, **settings).weights_sha256  # type: ignore[arg-type]
    chaos = result.chaos
    assert chaos is not None
    assert sum(chaos.faults.values()) > 0 or policy == "local"  # it sends little
    # Here nothing but a dropped push is for nothing; a doubled one is computed once.
    assert chaos.answers_in_vain == chaos.faults["drop-push"]
    assert (chaos.slots_in_vain > 0) == (chaos.answers_in_vain > 0)
    assert chaos.audited_updates == result.steps


def test_the_run_folder_tells_of_it_and_a_resumed_run_is_left_in_peace() -> None:
    result = train("sample", workers=0, epochs=5, chaos=f"{PUSHES},seed=4")
    folder = RunFolder(Path(result.run_dir))
    assert folder.read("config.json")["chaos"] == f"{PUSHES},seed=4"
    assert TrainResult(**folder.read("report.json")) == result
    assert not list(folder.path.glob("*.tally"))
    longer = resume(folder.path, epochs=7)
    assert longer.chaos is None and audit(folder.path).complete
    again = resume(folder.path, epochs=9, chaos=PUSHES)
    assert again.chaos is not None and again.chaos.seed == 0
    assert again.chaos.answers_in_vain == again.chaos.faults["drop-push"]
    repeated = train("sample", workers=0, epochs=5)
    assert repeated.weights_sha256 == result.weights_sha256 and repeated.chaos is None
    assert replay(folder.path).weights_sha256 == again.weights_sha256


def test_the_same_seed_does_the_same(tmp_path: Path) -> None:
    found = [train("sample", workers=0, epochs=9, chaos=f"{PUSHES},seed={n}") for n in (1, 1, 2)]
    one, same, other = (result.chaos.faults for result in found if result.chaos)
    assert one == same != other


def test_a_resume_with_bad_chaos_leaves_the_run_as_it_was() -> None:
    result = train("sample", workers=0, epochs=2)
    with pytest.raises(UsageError, match="kill-worker:at=5"):
        resume(result.run_dir, epochs=3, chaos="kill-worker:at=5")
    assert RunFolder(Path(result.run_dir)).status() == "finished"


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "servers", "channel"), [(2, 1, "shm"), (3, 3, "tcp")])
def test_on_ray_with_everything(workers: int, servers: int, channel: str, shared_ray: None) -> None:
    chaos = (
        "kill-worker:at=60,kill-server:at=150,stop-worker:at=20:for=300ms,"
        "drop-push:p=0.005:for=50ms,dup-push:p=0.05,delay:p=0.02:for=2ms"
    )
    given: dict[str, Any] = {"workers": workers, "servers": servers, "channel": channel}
    result = train("sample", epochs=60, chaos=chaos, **given)
    assert result.weights_sha256 == train("sample", epochs=60, workers=0).weights_sha256
    assert result.chaos is not None
    done = result.chaos.faults
    assert (done["kill-worker"], done["kill-server"], done["stop-worker"]) == (1, 1, 1)
    assert done["dup-push"] > 0 and result.chaos.answers_in_vain > 0
    assert result.chaos.stalled_seconds > 0  # a server was made anew
    assert [found["fault"] for found in strikes(result)] == [
        "stop-worker", "kill-worker", "kill-server",
    ]  # fmt: skip
    assert audit(result.run_dir).complete


@pytest.mark.ray
@pytest.mark.parametrize(
    "settings",
    [
        {"consistency": "ssp", "staleness": 3, "channel": "shm", "servers": 2},
        {"consistency": "asp", "optimizer": "adam", "learning_rate": 1e-3, "channel": "ray",
         "servers": 2, "arithmetic": "exact"},
        {"consistency": "backup", "backup": 2, "channel": "tcp", "servers": 2},
        {"consistency": "local", "local_steps": 3, "channel": "tcp", "servers": 1,
         "arithmetic": "exact"},
    ],
    ids=lambda settings: settings["consistency"],
)  # fmt: skip
def test_every_policy_holds_and_replays(settings: dict[str, Any], shared_ray: None) -> None:
    chaos = "kill-worker:at=15,dup-push:p=0.1,drop-push:p=0.01:for=50ms,delay:p=0.05:for=2ms"
    result = train("sample", workers=3, epochs=20, chaos=chaos, **settings)
    found = audit(result.run_dir)
    assert found.complete and found.epochs == 20
    if settings["consistency"] == "ssp":
        assert max(map(int, result.staleness)) <= 3
    if settings["consistency"] == "backup":
        assert sum(found.class_delays.values()) > 0
    assert replay(result.run_dir).weights_sha256 == result.weights_sha256
    assert result.chaos is not None and result.chaos.faults["kill-worker"] == 1


@pytest.mark.ray
def test_lost_for_longer_than_a_lease_others_take_it(shared_ray: None) -> None:
    """A worker that dropped a push is silent for longer than a lease may be out."""
    chaos = "drop-push:p=0.003:for=3s"
    result = train("sample", workers=3, epochs=60, chaos=chaos)
    assert result.weights_sha256 == train("sample", epochs=60, workers=0).weights_sha256
    assert result.chaos is not None and result.chaos.faults["drop-push"] > 0
