"""Which BLAS kernel a process multiplies by: the processor decides, unless the user has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import PATIENCE, Run

from distsgd.bench.contenders import usual_contenders
from distsgd.bench.processes import run_process
from distsgd.engine import blas, core_type
from distsgd.engine.core_type import VARIABLE, best_core_type, choose_core_type, chosen
from distsgd.on_ray import session
from distsgd.on_ray.private import BY_PROCESSOR, works_for_command_line

AVX2 = "fpu sse4_2 avx fma avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"

on_x86 = pytest.mark.skipif(best_core_type() is None, reason="nothing is chosen here")


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another processor into this machine; the environment chooses nothing yet."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(core_type, "_chosen", None)

    def put(flags: str, machine: str = "x86_64") -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs :\n", encoding="ascii")
        monkeypatch.setattr(core_type, "_PROCESSORS", path)
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))

    return put


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        (AVX512, "SkylakeX"),
        (f"{AVX512} avx512_bf16 amx_bf16 avx512_fp16", "SkylakeX"),
        (f"{AVX2} avx512f avx512cd avx512er avx512pf", "Haswell"),
        (AVX2, "Haswell"),
        (AVX2.replace("fma", ""), None),
        ("fpu sse4_2 avx", None),
        ("", None),
    ],
)
def test_the_best_for_what_a_processor_can_do(processor: Any, flags: str, best: str) -> None:
    processor(flags)
    assert best_core_type() == best
    processor(flags, machine="aarch64")
    assert best_core_type() is None


def test_without_proc_nothing_is_chosen(
    tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(AVX512)
    monkeypatch.setattr(core_type, "_PROCESSORS", tmp_path / "none")
    assert best_core_type() is None and not core_type.runs_here("Haswell")


def test_an_older_core_type_runs_on_a_newer_processor(processor: Any) -> None:
    processor(AVX2)
    assert all(map(core_type.runs_here, ("Haswell", "Zen", "Sandybridge", "Nehalem")))
    assert not any(map(core_type.runs_here, ("SkylakeX", "Cooperlake", "SapphireRapids", "Ours")))


@pytest.mark.parametrize("given", [None, "", "Nehalem"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_choice_is_made_once_and_never_against_the_user(
    processor: Any, monkeypatch: pytest.MonkeyPatch, given: str | None, loaded: bool
) -> None:
    processor(AVX512)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    if not loaded:
        monkeypatch.delitem(sys.modules, "numpy")
    choose_core_type()
    ours = given is None and not loaded
    assert os.environ.get(VARIABLE) == ("SkylakeX" if ours else given)
    assert chosen() == ("SkylakeX" if ours else None)
    kept = core_type.without_choice({VARIABLE: "x", "A": "b"})
    assert kept == ({"A": "b"} if ours else {VARIABLE: "x", "A": "b"})


@on_x86
def test_the_command_line_says_which_and_why(distsgd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if blas.core_type_of(blas.blas_kernel()) is None:
        pytest.skip("numpy has another BLAS")
    ours = distsgd("--version").stdout.splitlines()[1]
    assert ours == f"{blas.blas_kernel()}, for what this processor can do"
    theirs = distsgd("--version", env={VARIABLE: "Nehalem"}).stdout.splitlines()[1]
    assert theirs.endswith(f"(Nehalem), by {VARIABLE}=Nehalem")


def test_importing_the_package_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    code = f"import os, distsgd.on_ray, distsgd.training; print(os.environ.get({VARIABLE!r}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=PATIENCE)
    assert done.stdout == b"None\n"


@on_x86
def test_the_processes_of_a_python_program_multiply_as_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr(session, "init_ray", lambda variables, **_: given.append(variables))
    monkeypatch.setattr(blas, "blas_kernel", lambda: "openblas 0.3.31 (Nehalem)")
    for loaded in (None, "SkylakeX"):
        monkeypatch.delenv(VARIABLE, raising=False)
        if loaded:
            monkeypatch.setenv(VARIABLE, loaded)
        session._start(1, tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    for kernel in ("mkl 2024.0 (Intel)", "openblas 0.3 (Katmai)", "unknown"):
        monkeypatch.setattr(blas, "blas_kernel", lambda kernel=kernel: kernel)
        session._start(1, tmp_path)
    assert [variables.get(VARIABLE) for variables in given] == ["Nehalem", *[None] * 4]


@pytest.mark.parametrize(
    ("mode", "metadata", "works"),
    [
        (1, BY_PROCESSOR, True),
        (1, {"distsgd": "0.1", **BY_PROCESSOR}, True),
        (1, {}, False),
        (0, BY_PROCESSOR, False),
        (None, {}, False),
    ],
)
def test_a_process_of_others_ray_chooses_for_a_command_line_only(
    monkeypatch: pytest.MonkeyPatch, mode: int | None, metadata: dict[str, str], works: bool
) -> None:
    config = SimpleNamespace(metadata=metadata)
    core = SimpleNamespace(get_job_config=lambda: config)
    worker = SimpleNamespace(mode=mode, core_worker=core)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(WORKER_MODE=1))
    monkeypatch.setitem(sys.modules, "ray._private.worker", SimpleNamespace(global_worker=worker))
    assert works_for_command_line() is works


def test_peers_of_the_benchmark_have_the_kernel_of_their_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "Chosen")
    monkeypatch.setattr(core_type, "_chosen", "Chosen")
    code = f"import os; print(os.environ.get({VARIABLE!r}))"
    seen = [
        run_process([sys.executable, "-c", code], PATIENCE, peer=peer).output
        for peer in (False, True)
    ]
    assert seen == ["Chosen\n", "None\n"]
    peers = {one.name for one in usual_contenders(["auto"]) if one.is_peer}
    assert "numpy" in peers and not any(name.startswith("inline") for name in peers)
