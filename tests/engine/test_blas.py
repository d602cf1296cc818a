"""What bits depend on: the kernel that multiplies matrices, and by how many threads."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Run
from threadpoolctl import threadpool_info, threadpool_limits

from distsgd.core.model import SMALL_PRODUCTS, WHOLE_PRODUCTS
from distsgd.core.model.slot_gradient import LinearKernel
from distsgd.data.split import Split
from distsgd.engine import blas
from distsgd.engine.blas import best_products, blas_kernel, check_blas_threads, one_blas_thread
from distsgd.engine.core_type import VARIABLE
from distsgd.errors import RuntimeFailure
from distsgd.on_ray import fleet as ray_fleet
from distsgd.proof.replay import replay
from distsgd.runs import folder
from distsgd.runs.folder import RunFolder, kernels_of, other_kernels
from distsgd.training import evaluate, resume, train
from distsgd.training.results import EpochRow, Reporter

OLD = {"OPENBLAS_CORETYPE": "Nehalem"}
"""Every x86 processor can do as that one did; without fused products its bits are others."""

openblas_on_x86 = pytest.mark.skipif(
    "openblas" not in blas_kernel() or platform.machine() != "x86_64",
    reason="the kernel of this BLAS cannot be chosen",
)


@openblas_on_x86
def test_a_run_of_another_processor(distsgd: Run, distsgd_here: Run, tmp_path: Path) -> None:
    options = ("--dataset", "sample", "--workers", 0, "--run-dir", tmp_path / "run")
    assert distsgd("train", *options, "--epochs", 2, env=OLD).returncode == 0
    assert "(Nehalem)" in distsgd_here("runs", "show", "--all", tmp_path / "run").stdout
    with pytest.MonkeyPatch.context() as patch:  # the command line starts again with that kernel
        patch.delenv(VARIABLE, raising=False)
        assert distsgd("replay", tmp_path / "run").returncode == 0
    elsewhere = distsgd_here("replay", tmp_path / "run")
    assert elsewhere.returncode == 1 and "OPENBLAS_CORETYPE" in elsewhere.stderr
    assert "computed by openblas" in elsewhere.stderr and " and openblas" not in elsewhere.stderr
    resumed = distsgd_here("resume", tmp_path / "run", "--epochs", 3)
    assert resumed.returncode == 0 and "computed by openblas" in resumed.stderr
    mixed = distsgd("replay", tmp_path / "run", env=OLD)  # no one kernel computed it
    assert mixed.returncode == 1 and " and openblas" in mixed.stderr
    other = tmp_path / "other"
    quiet = distsgd_here("train", "--dataset", "sample", "--workers", 0, "--run-dir", other)
    assert "OPENBLAS_CORETYPE" not in quiet.stderr + distsgd_here("replay", other).stderr


def test_a_run_cuts_products_as_it_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, cuts, real = tmp_path / "run", [], LinearKernel.__init__

    def noted(self: LinearKernel, *arguments: Any) -> None:
        real(self, *arguments)
        cuts.append(arguments[0].products)

    monkeypatch.setattr(LinearKernel, "__init__", noted)
    for kernel, products in {"Zen": WHOLE_PRODUCTS, "SkylakeX": SMALL_PRODUCTS}.items():
        monkeypatch.setattr(blas, "blas_kernel", lambda kernel=kernel: f"openblas 0.3 ({kernel})")
        assert best_products() == products
        if not run.exists():
            train("sample", workers=0, epochs=1, run_dir=run)
    resumed = resume(run, epochs=2)
    assert replay(run).weights_sha256 == resumed.weights_sha256
    assert len(cuts) >= 3 and set(cuts) == {WHOLE_PRODUCTS}


class Notices(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.ray
def test_workers_on_other_processors_are_told_once(
    shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other = Notices(), Notices()
    train("sample", workers=2, epochs=2, reporter=same)
    monkeypatch.setattr(ray_fleet, "blas_kernel", lambda: "openblas 0.1 (Abacus)")
    monkeypatch.setattr(folder, "blas_kernel", lambda: "openblas 0.1 (Abacus)")
    found = RunFolder(Path(train("sample", workers=2, epochs=2, reporter=other).run_dir))
    assert kernels_of(found) == ["openblas 0.1 (Abacus)", blas_kernel()]
    assert blas_kernel() in other_kernels(found)
    (text,) = [text for text in other.texts if "multiplies by" in text]
    assert f"multiplies by {blas_kernel()}, this process by openblas 0.1 (Abacus)" in text
    assert not [text for text in same.texts if "multiplies by" in text]


def blas_threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads() -> Iterator[None]:
    """As a caller has them, also on a machine of one core."""
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS cannot be given two threads")
        yield


class AtEpoch(Reporter):
    """Does something at the end of each epoch."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def epoch(self, row: EpochRow) -> None:
        self.action()


def short(**settings: Any) -> str:
    """The W of a training whose bits are others with two BLAS threads."""
    settings = {"model": "mlp:64", "epochs": 3, **settings}
    return train("sample", workers=0, **settings).weights_sha256


def test_the_first_to_end_leaves_the_limit_to_the_others(two_blas_threads: None) -> None:
    alone = short(), short(epochs=4)
    begun, ended = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert ended.wait(PATIENCE)

    with ThreadPoolExecutor(1) as other:
        longer = other.submit(short, epochs=4, reporter=AtEpoch(wait))
        assert begun.wait(PATIENCE)
        first = short()
        assert blas_threads() == {1}
        ended.set()
        assert (first, longer.result()) == alone
    assert blas_threads() == {2}


def test_eight_trainings_in_threads_are_as_eight_alone(two_blas_threads: None) -> None:
    def process() -> object:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return blas_threads(), handlers, sys.stdout, sys.stderr, dict(os.environ)

    lengths, before = [1, 2, 3, 4] * 2, process()
    alone = [short(epochs=epochs) for epochs in lengths[:4]] * 2
    together = threading.Barrier(len(lengths))

    def one(epochs: int) -> str:
        together.wait(PATIENCE)
        return short(epochs=epochs)

    with ThreadPoolExecutor(len(lengths)) as threads:
        assert list(threads.map(one, lengths)) == alone
    assert process() == before


def test_a_limit_that_the_main_thread_has_set_for_good_does_not_shut_out_a_training() -> None:
    alone = short()
    before = threadpool_limits(2)  # not undone: from here on threadpoolctl listens to this thread
    try:
        with ThreadPoolExecutor(1) as other:
            assert other.submit(short).result() == alone
        assert blas_threads() == {2}
    finally:
        before.restore_original_limits()


def test_a_limit_changed_in_mid_run_ends_it_before_an_update_has_other_bits(
    two_blas_threads: None, tmp_path: Path
) -> None:
    def change() -> None:
        threadpool_limits(2)

    with pytest.raises(RuntimeFailure, match=f"set to 2 threads .*resume {tmp_path / 'run'}`"):
        short(reporter=AtEpoch(change), run_dir=tmp_path / "run")
    assert blas_threads() == {2}
    replay(tmp_path / "run")


@pytest.mark.parametrize("measure", [evaluate, replay], ids=["evaluate", "replay"])
def test_a_limit_changed_while_a_run_is_measured_is_told(
    measure: Callable[[str], object], two_blas_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("sample", workers=0, epochs=1).run_dir
    gather = Split.labels_of if measure is replay else Split.batches

    def changed(*arguments: Any) -> Any:
        threadpool_limits(2)
        return gather(*arguments)

    monkeypatch.setattr(Split, gather.__name__, changed)
    with pytest.raises(RuntimeFailure, match="set to 2 threads"):
        measure(run)


def test_a_child_of_a_process_that_trains_has_its_threads_back(two_blas_threads: None) -> None:
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        with one_blas_thread():
            inside.set()
            assert over.wait(PATIENCE)

    with ThreadPoolExecutor(1) as other:
        other.submit(hold)
        assert inside.wait(PATIENCE)
        child = os.fork()
        if not child:
            with one_blas_thread():  # the lock is not one that a thread of the parent holds
                check_blas_threads()
            os._exit(blas_threads() != {2})
        over.set()
    assert os.waitpid(child, 0)[1] == 0
