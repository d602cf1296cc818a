"""Runs on processors whose matrix products round differently: told, not taken for damage."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from support import Run

from distsgd.api import train
from distsgd.api.reporter import Reporter
from distsgd.run import folder
from distsgd.run.folder import RunFolder
from distsgd.run.kernels import kernels_of, other_kernels
from distsgd.runtime import ray_fleet
from distsgd.runtime.blas import blas_kernel

OLD = {"OPENBLAS_CORETYPE": "Nehalem"}
"""Every x86 processor can do as that one did; without fused products its bits are others."""

openblas_on_x86 = pytest.mark.skipif(
    "openblas" not in blas_kernel() or platform.machine() != "x86_64",
    reason="the kernel of this BLAS cannot be chosen",
)


@openblas_on_x86
def test_a_run_of_another_processor(distsgd: Run, tmp_path: Path) -> None:
    options = ("--dataset", "sample", "--workers", 0, "--run-dir", tmp_path / "run")
    assert distsgd("train", *options, "--epochs", 2, env=OLD).returncode == 0
    assert "(Nehalem)" in distsgd("runs", "show", tmp_path / "run").stdout
    assert distsgd("replay", tmp_path / "run", env=OLD).returncode == 0
    elsewhere = distsgd("replay", tmp_path / "run")
    assert elsewhere.returncode == 1 and "OPENBLAS_CORETYPE" in elsewhere.stderr
    assert "computed by openblas" in elsewhere.stderr and " and openblas" not in elsewhere.stderr
    resumed = distsgd("resume", tmp_path / "run", "--epochs", 3)
    assert resumed.returncode == 0 and "computed by openblas" in resumed.stderr
    mixed = distsgd("replay", tmp_path / "run", env=OLD)
    assert mixed.returncode == 1 and " and openblas" in mixed.stderr
    other = tmp_path / "other"
    quiet = distsgd("train", "--dataset", "sample", "--workers", 0, "--run-dir", other)
    assert "OPENBLAS_CORETYPE" not in quiet.stderr + distsgd("replay", other).stderr


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
    (text,) = other.texts
    assert f"multiplies by {blas_kernel()}, this process by openblas 0.1 (Abacus)" in text
    assert same.texts == []
