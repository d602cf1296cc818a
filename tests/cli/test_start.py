"""What stops the command line before it begins: a missing package, python -OO, no home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE

WITHOUT = """
import sys
name, *arguments = sys.argv[1:]
sys.modules[name] = None
sys.argv = ["distsgd", *arguments]
from distsgd.cli.start import main
main()
"""

LECTURE = ("lecture", "--quick", "--dataset", "sample", "--workers", "0", "--only", "chain_rule")
TRAIN = ("train", "--dataset", "sample", "--epochs", "1", "--workers")


def run(*command, env=None, cwd=None, **more):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=cwd,
        env=env or os.environ, stdin=subprocess.DEVNULL, **more,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "bug in distsgd" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("name", "package", "arguments"),
    [
        ("matplotlib", "matplotlib", LECTURE),
        ("matplotlib", "matplotlib", ("study", "hinges", "--plot", "hinges.png")),
        ("typer", "typer", ("--help",)),
        ("rich", "rich", ("data", "list")),
        ("numpy", "numpy", (*TRAIN, "0")),
        ("pyarrow", "pyarrow", (*TRAIN, "0")),
        ("PIL", "pillow", ("predict", "latest", "x.png")),
        ("ray", "ray", (*TRAIN, "1")),
    ],
)
def test_a_missing_package_is_named(distsgd_here, tmp_path, name, package, arguments):
    if arguments[0] == "predict":
        assert distsgd_here(*TRAIN, "0").returncode == 0
    done = run(sys.executable, "-c", WITHOUT, name, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: the package {package} is not installed. "
        f"Run: {sys.executable} -m pip install --upgrade {package}.\n"
    )
    assert not (tmp_path / "lecture" / "lecture-en.html").exists()


@pytest.mark.parametrize(("ray", "code"), [(True, 2), (False, 7)])
def test_a_process_with_ray_ends_without_what_libraries_do_then(ray, code):
    """gRPC may wait for ever, and no signal ends that."""
    script = f"""
import os, sys, types
if {ray}:
    sys.modules["ray"] = types.ModuleType("ray")
class Library:
    def __del__(self, leave=os._exit):
        leave(7)
library = Library()
sys.argv = ["distsgd", "--nothing"]
from distsgd.__main__ import main
main()
"""
    done = run(sys.executable, "-c", script)
    assert done.returncode == code
    assert done.stderr.startswith("error: No such option: --nothing")


def test_assertions_do_nothing_and_docstrings_do_much():
    python = (sys.executable, "-OO", "-m", "distsgd")
    done = run(*python, "--version")
    assert done.returncode == 1 and done.stderr.startswith("error: Python runs with -OO")
    trained = [
        run(sys.executable, *flags, "-m", "distsgd", *TRAIN, "0", "--json").stdout
        for flags in ((), ("-O",))
    ]
    first, second = (json.loads(out)["weights_sha256"] for out in trained)
    assert first == second
    shown = run(sys.executable, "-O", "-m", "distsgd", "audit", "--help").stdout
    assert "Example: distsgd audit" in shown


HOMES = ("HOME", "DISTSGD_HOME", "DISTSGD_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME")


@pytest.mark.parametrize("home", [None, "/proc/nothing"])
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("data", "info", "--dataset", "sample"), ""),
        (("data", "list"), ""),
        (("runs", "list"), ""),
        ((*TRAIN, "0", "--run-dir", "run"), ""),
        ((*TRAIN, "0"), "DISTSGD_HOME"),
        (("evaluate", "~/run"), "~/run"),
    ],
)
def test_a_user_without_a_home_that_can_be_written(
    distsgd_here, tmp_path, monkeypatch, home, arguments, problem
):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    done = distsgd_here(*arguments, env={"HOME": home} if home else {})
    assert "Traceback" not in done.stderr and "bug in distsgd" not in done.stderr
    assert done.returncode == (1 if problem else 0) or (home is None and problem == "~/run")
    if problem:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and problem in line
    assert not Path(tmp_path, "~").exists()
