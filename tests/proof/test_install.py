"""Golden values: the weights of exact arithmetic, by kernels of OpenBLAS that differ."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import Run, command_line

from distsgd.engine.core_type import VARIABLE, runs_here
from distsgd.errors import UsageError
from distsgd.proof import install
from distsgd.proof.install import KNOWN, verify_install


def test_this_process_gives_the_known_weights():
    found = verify_install()
    assert [one.name for one in found] == [known.name for known in KNOWN["sample"]]
    assert all(one.same for one in found), found


@pytest.mark.parametrize("kernel", ["Prescott", "Haswell"])
def test_other_kernels_give_the_known_weights(kernel):
    """Their products of floats differ from each other."""
    if not runs_here(kernel):
        pytest.skip(f"this processor cannot execute {kernel}")
    done = subprocess.run(
        command_line("verify-install", "--json"), env={**os.environ, VARIABLE: kernel},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] and len(found["trainings"]) == 4


def test_cifar10_gives_the_known_weights(cifar10: Path):
    """All three, by this process's kernel; scripts/known_weights.py does so by all of them."""
    found = verify_install("cifar10")
    assert len(found) == 3
    assert all(one.same for one in found), found


def test_a_machine_that_gives_other_weights_is_told(distsgd_here: Run, monkeypatch):
    wrong = (install.Known("softmax", {"loss": "softmax"}, "0" * 64),)
    monkeypatch.setitem(install.KNOWN, "sample", wrong)
    assert not verify_install()[0].same
    done = distsgd_here("verify-install")
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout and "exact arithmetic gives other weights here" in done.stderr


def test_other_datasets_have_no_known_weights():
    with pytest.raises(UsageError, match="Give one of sample, cifar10"):
        verify_install("mnist")
