"""What stops the command line before it begins: a missing package, python -OO, no home."""

import json
import os
import subprocess
import sys

import pytest
from support import command_line

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
        command, capture_output=True, text=True, timeout=120, cwd=cwd,
        env=env or os.environ, stdin=subprocess.DEVNULL, **more,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "fault of distsgd" not in done.stderr
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
def test_a_missing_package_is_named(tmp_path, name, package, arguments):
    if arguments[0] == "predict":
        assert run(*command_line(*TRAIN, "0")).returncode == 0
    done = run(sys.executable, "-c", WITHOUT, name, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: the package {package} is not installed. "
        f"Run: {sys.executable} -m pip install --upgrade {package}.\n"
    )
    assert not (tmp_path / "lecture" / "lecture-en.html").exists()


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
