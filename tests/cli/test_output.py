"""What reaches a terminal, a file or a pipe: text as it is, tables that fit, until nobody reads."""

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, command_line

import distsgd.cli
from distsgd.cli import output
from distsgd.cli.output import pass_on, print_json, print_pairs, print_table, say, visible

NASTY = "a[/b] [bold]x :cat: \x1b[31m\n\x07é日"
SHOWN = r"a[/b] [bold]x :cat: \x1b[31m\n\x07é日"

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "3")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NASTY, SHOWN),
        ("name\udcff.png", r"name\xff.png"),  # a file name that is not UTF-8
        ("\ud800", r"\ud800"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),  # turns the direction of writing
        ("می\u200cخواهم", "می\u200cخواهم"),  # a joiner is part of the word
        ("\x9b31m\r\t", r"\x9b31m\r\t"),
        ("C:\\x [1]", "C:\\x [1]"),
    ],
)
def test_text_is_shown_as_it_is(text, shown):
    assert visible(text) == shown


def test_every_way_out_shows_it(capsys):
    print_pairs([(NASTY, NASTY)])
    print_table((NASTY, "n"), [(NASTY, NASTY)], title=NASTY)
    output.show(NASTY)
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 7 and "\x1b" not in out and "\x07" not in out
    say(NASTY)
    assert capsys.readouterr().err == SHOWN + "\n"
    pass_on("\x1b[36m(pid=1)\x1b[0m one\ttwo\r\nthree\x1b]0;title\x07")
    assert capsys.readouterr().out == "(pid=1) one\ttwo\nthree\\x1b]0;title\\x07"
    print_json({"class": NASTY, "path": "\udcff", "loss": float("nan")})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"class": NASTY, "path": "\udcff", "loss": None}


def test_progress_displays_take_text_for_text(monkeypatch, capsys):
    """Also what a live display, which is drawn by rich, is given."""
    from distsgd.cli.progress_bar import ProgressBar
    from distsgd.cli.train_reporter import make_reporter

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(output, "_drawable", lambda stream: True)
    with ProgressBar() as bar:
        bar.say(NASTY)
        bar._bar.refresh()
    assert SHOWN.split()[0] in capsys.readouterr().err
    make_reporter(json=False).notice(NASTY)
    assert SHOWN in capsys.readouterr().out


# Of these only Spinner takes text, and that is no data.
ALLOWED_OF_RICH = {
    "BarColumn", "DownloadColumn", "Live", "MofNCompleteColumn", "Progress", "TimeElapsedColumn",
    "TimeRemainingColumn", "Spinner",
}  # fmt: skip
WRITERS = {"output.py", "streams.py"}


@pytest.mark.parametrize(
    "path", sorted(Path(distsgd.cli.__file__).parent.glob("*.py")), ids=lambda path: path.name
)
def test_nothing_else_of_the_command_line_writes(path):
    """No print, no echo, no rich markup outside the modules that escape."""
    if path.name in WRITERS:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "typer.echo", "typer.secho", "rich.print")
            assert not called.endswith(("stdout.write", "stderr.write")), called
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
            assert {alias.name for alias in node.names} <= ALLOWED_OF_RICH
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "rich" for alias in node.names)


HEADINGS = ("run", "status", "model", "loss", "workers", "test accuracy")
ROW = ("20261126-105300-mlp100-softmax-ab12", "interrupted", "mlp:100", "softmax", "2", "41.3 %")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, None])
@pytest.mark.parametrize("optional", [(), ("workers", "loss", "model")])
def test_no_word_of_a_table_is_broken(monkeypatch, capsys, width, optional):
    monkeypatch.setattr(output, "_width", lambda: width)
    print_table(HEADINGS, [ROW, ("b", *ROW[1:])], optional=optional)
    out, err = capsys.readouterr()
    words = out.split()
    for cell in (*HEADINGS, *ROW):
        left_out = cell in err or (cell in ROW and HEADINGS[ROW.index(cell)] in err)
        assert left_out or set(cell.split()) <= set(words)
    if width in (80, 100) and optional:
        assert max(map(len, out.splitlines())) <= width
        assert ("too narrow for all columns" in err) == (width < 100)
    if width is None:
        assert not err and len(out.strip().splitlines()) == 4


def test_cells_are_folded_between_words_and_very_long_ones_anywhere(monkeypatch, capsys):
    monkeypatch.setattr(output, "_width", lambda: 60)
    print_table(("class", "accuracy"), [("x" * 90, "50.0 %"), ("日本 " * 20, "7 %")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("x") for line in lines if "x" in line] == [47, 43]
    assert all(output._cells(line) <= 60 for line in lines)
    assert sum(line.count("日本") for line in lines) == 20


@pytest.mark.parametrize(("columns", "width"), [(None, None), ("60", 60), ("0", None), ("x", None)])
def test_a_pipe_has_no_width_but_what_columns_says(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert output._width() == width


@pytest.mark.parametrize(
    ("term", "drawable"), [("xterm-256color", True), ("dumb", False), (None, False)]
)
def test_only_a_terminal_gets_a_live_display(monkeypatch, term, drawable):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "PY_COLORS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    assert output.terminal() is None  # pytest has taken stdout away
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert (output.terminal() is not None) == drawable
    os.close(leader)


def run(*arguments, stdout=subprocess.PIPE, env=None, before=()):
    return subprocess.run(
        [*before, *command_line(*arguments)], stdout=stdout, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, timeout=PATIENCE,
    )  # fmt: skip


def closed_pipe():
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_colours_and_bars_are_for_terminals(tmp_path):
    env = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "GITHUB_ACTIONS": "1"}
    for arguments in ((*TRAIN, "--run-dir", tmp_path / "run"), ("train", "--help"), ("runs", "x")):
        done = run(*arguments, env=env)
        assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("where", ["closed", "/dev/full"])
def test_a_training_outlives_its_reader(tmp_path, where):
    stdout = closed_pipe() if where == "closed" else os.open(where, os.O_WRONLY)
    done = run(*TRAIN, "--run-dir", tmp_path / "run", stdout=stdout)
    os.close(stdout)
    assert done.returncode == (0 if where == "closed" else 1)
    first, *more = done.stderr.decode().splitlines()
    assert first.startswith("cannot write to stdout: ")
    assert first.endswith("; training continues without it")
    assert len(more) == (0 if where == "closed" else 1)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "arguments", [("runs", "list"), ("data", "info", "--dataset", "sample", "--json"), ("--help",)]
)
def test_other_commands_end_quietly_with_their_reader(arguments):
    stdout = closed_pipe()
    done = run(*arguments, stdout=stdout)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (141, b"")
    with Path("/dev/full").open("wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write to stdout: no space left on device")


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, os.fsencode("日")),
        (ASCII, b"caf\xe9"),
        ({"PYTHONUTF8": "1"}, b"caf\xe9"),
    ],
)
def test_any_encoding_and_any_file_name(tmp_path, env, name):
    """A locale without the characters of a path, and a path without characters."""
    home = {"DISTSGD_HOME": str(tmp_path / "home"), **env}
    folder = os.fsencode(tmp_path) + b"/" + name
    done = subprocess.run(
        [*command_line(*TRAIN, "--run-dir"), folder], capture_output=True, timeout=PATIENCE,
        env={**os.environ, **home},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = "日" if name.startswith(b"\xe6") else r"caf\xe9"
    assert ascii(shown).strip("'").replace("\\\\", "\\").encode() in done.stdout or (
        shown.encode() in done.stdout
    )
    # Each of these reads what the other locale has written.
    other = {"DISTSGD_HOME": home["DISTSGD_HOME"], "PYTHONUTF8": "1"}
    for reads, command in (
        (home, ["evaluate"]),
        (home, ["runs", "show"]),
        (other, ["runs", "show"]),
    ):
        done = subprocess.run(
            [*command_line(*command), folder], capture_output=True, timeout=PATIENCE,
            env={**os.environ, **reads},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run("evaluate", b"nothing".decode() + "日", env=env)
    assert done.returncode == 1 and done.stderr.startswith(b"error: there is no run ")
