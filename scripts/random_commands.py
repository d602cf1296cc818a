"""Random command lines over the real commands, in odd environments; none may end in a fault.

    python scripts/random_commands.py [N=2000] [--seed S] [--first K] [--jobs 2] [--ray SHARE]

Commands, arguments and options are read from the command line's own tree, so that new ones are
covered as they come. Values are drawn by kind: right ones, near misses, huge and odd numbers, texts
with markup, control characters and bytes that are no UTF-8, files and folders that are missing,
damaged, unreadable, or no files at all. So are the environment, the three streams, small limits,
the working folder, and a user that the system does not know. A case passes if

- its exit code is one of 0, 1, 2, 130, 141, 143, or the signal of a limit that it was given;
- it shows no traceback, no "fault of distsgd" and no warning of Python's;
- it says in exactly one line, `error: ...`, why it ended with 1 or 2 (the parser's box counts);
- with --json, its stdout is one JSON object, or, if it failed, nothing;
- it ends: one that works for long is interrupted, one that stands still has failed;
- files that were there before have their old content, and nothing of it is running afterwards.

A case depends on the seed and its number alone; `--first K` with `N` of 1 plays it again, and
`--show` says what it is. Commands that would start Ray or a node are drawn as errors, except for a
SHARE of the cases. Exit code 1 if a case failed. One second a case or less.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import pty
import re
import resource
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

MARK = "RANDOM_COMMANDS_CASE"
"""In the environment of a case's processes: its folder."""

WORKED, WAITED, TO_STOP = 8.0, 60.0, 30.0
"""Seconds of computing, or of anything, after which a case is interrupted; and then to end in."""

RAY_WORKED, RAY_WAITED = 40.0, 120.0

EXPECTED = (0, 1, 2, 130, 141, 143)
FAULT = re.compile(
    r"fault of distsgd|Traceback \(most recent|Exception ignored|Fatal Python|Segmentation|OpenBLAS"
    r"|\b[A-Z][A-Za-z]*Warning: "
)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MEMORY = 6 * 2**30
"""Bytes of address space of a case that is given no smaller limit: a stopgap for the machine."""


# ---------------------------------------------------------------- what there is to be called


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    flags: tuple[str, ...]  # as written; none for an argument
    help: str
    type: str  # "int", "float", "text" or "path"
    required: bool
    switch: bool  # takes no value
    several: bool

    @property
    def kind(self) -> str:
        """What sort of value it takes; the first pattern that fits its name and help."""
        known = f"{self.name}: {self.help}"
        return next((kind for pattern, kind in KINDS if re.search(pattern, known)), self.type)


@dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    parameters: tuple[Parameter, ...]


KINDS = (
    (r"^json:", "json"),
    (r"^(run|resume): |a run\b.*latest|Go on with this run", "run"),
    (r"^set_?: ", "setting"),
    (r"^chaos", "chaos"),
    (r"^workers: .*(Processes|auto)", "ray workers"),
    (r"^(address|join|node_ip)|HOST:PORT", "address"),
    (r"^dataset", "dataset"),
    (r"^(plot|out|output|trace|run_dir): ", "output"),
    (r"commas? between|,\.\.\.", "list"),
)
"""Patterns over `name: help`, so that a new option finds its kind by its words."""


def commands() -> list[Command]:
    """All commands, as the command line has them."""
    import typer

    from distsgd.cli.main import app

    return list(_walk(typer.main.get_command(app), ()))


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[Command]:
    if inner := getattr(command, "commands", None):
        for name, one in inner.items():
            yield from _walk(one, (*words, name))
        return
    found = [_parameter(one) for one in command.params if one.name != "help"]
    yield Command(words, tuple(found))


def _parameter(known: Any) -> Parameter:
    option = known.param_type_name == "option"
    return Parameter(
        name=known.name,
        flags=(*known.opts, *known.secondary_opts) if option else (),
        help=known.help or "",
        type=_type_of(known),
        required=known.required,
        switch=bool(getattr(known, "is_flag", False)),
        several=bool(getattr(known, "multiple", False)) or known.nargs == -1,
    )


def _type_of(known: Any) -> str:
    """Of a parameter of click's, or of the copy of click that newer versions of typer have."""
    kind = getattr(known, "type", None) or getattr(known, "type_descriptor", "")
    words = f"{getattr(kind, 'name', '')} {getattr(kind, 'annotation', kind)}".lower()
    for name in ("int", "float", "path"):
        if name in words or (name == "path" and "file" in words):
            return name
    return "text"


# ---------------------------------------------------------------- values


NUMBERS = (
    "0", "-1", "1", "2", "3", "1.5", "1000000000", "1" + "0" * 30, "-" + "9" * 40, "nan", "inf",
    "-inf", "1e400", "1e-400", "0x10", "1_000", "٣", "１", "", " ", "9" * 5000, "1,5", "NaN", "None",
    "2147483648", "9223372036854775808", "18446744073709551616", "-0", "+1", "1e3", "true", "½",
)  # fmt: skip
TEXTS = (
    "", " ", "-", "--", "[/b]", "[bold]", "a[/b]c", "[red]x", ":cat:", "\x1b[31mred", "a\nb", "a\tb",
    "\r", "café", unicodedata.normalize("NFD", "café"), "日本", "🐈", "\udcff\udcfe", "a\udc80",
    "x" * 300, "x" * 100_000, "..", ".", "/", "a/b", "../x", "~", "~nobody", "$HOME", "%s", "{0}",
    "\\", "'", '"', "null", "latest", "\ufeffx", "\u202e", "\u200b", "*", "?", "a=b", "=", ",", ":",
    "@", "http://", "file:///x", "s3://", "gs://x", "CON", "nul", "\x7f", "\x01", "#", ";",
)  # fmt: skip
GOOD: dict[str, tuple[str, ...]] = {
    "run": ("latest", "good", "good/run", "two", "latest"),
    "dataset": ("sample", "sample", "sample", "columns", "photos"),
    "ray workers": ("0",),
    "chaos": ("delay:p=0.5:for=1ms", "drop-push:p=0.1,seed=3", "dup-push:p=0.5"),
    "address": ("127.0.0.1:1", "http://127.0.0.1:1", "[::1]:1"),
    "setting": ("lr=0.1", "learning_rate=0.01", "momentum=0.5", "optimizer=adam", "log_every=1"),
    "list": ("1", "1,2", "16,64", "0.1,0.01", "1:4", "0@1", "bsp,asp"),
    "int": ("1", "2", "3", "20"),
    "float": ("0.1", "0.5", "1", "1e-4"),
    "text": ("x",),
}
ODD: dict[str, tuple[str, ...]] = {
    "ray workers": ("-1", "nan", "", "0.5", "-" + "9" * 30, "None", "zero", "１x", "0x"),
    "chaos": ("kill-worker:at=1", "burn", "delay", "delay:p=nan:for=1s", "delay:p=2", "seed=x",
              "drop-push:p=1", ":", ",", "=", "delay:p=0.5:for=1e400s", "delay:p=0.5:for=-1s"),
    "address": ("", "x", ":", "127.0.0.1:99999999", "host.invalid:1", "[::1", "ray://127.0.0.1:1",
                "127.0.0.1:-1", "http://", "127.0.0.1:1/", "a b:1", "日:1", "999.1.1.1:1", "x" * 5000,
                "https://127.0.0.1:1", "user:pass@127.0.0.1:1", "[bold]:1", "\udcff:1", "0.0.0.0:1"),
    "dataset": ("cifar10", "columns", "nothing", "s3://nowhere/x", "file:///nowhere", "http://127.0.0.1:1/x",
                "gs://", "s3://", "hdfs://x", "http://[", "ftp://x/y", "s3://a b/ü"),
    "setting": ("dataset=", "lr", "=1", "momentum=", "momentum=nan", "seed=1" + "0" * 30, "x=y",
                "learning_rate=[/b]", "[bold]=1", "dtype=float64", "dtype=int8", "slot_size=0",
                "slot_size=1000000000", "epochs=1e3", "hang_seconds=0", "cache_budget=0",
                "init_scale=1e30", "pixel_scale=1e-300", "learning_rate=1e300", "log_every=0",
                "checkpoint_seconds=-1", "keep_checkpoints=1", "journal=bounded", "regularization=1e300",
                "schedule=step", "step_epochs=1e-300", "warmup_epochs=1e300", "shuffle_window=0",
                "cache=float32", "compress=topk:0.1", "compress=topk:nan", "verify=1", "\udcff=1"),
}  # fmt: skip
CLOSED_ADDRESS = "127.0.0.1:1"
_WORD = re.compile(r"[a-z][a-z0-9:.-]*")


def listed(text: str) -> list[str]:
    """The words that a help text offers: softmax and svm of "softmax or svm. (default: softmax)"."""
    first = re.split(r"\.(?=\s|$)|\(|\\?\[|;", text)[0].rpartition(": ")[2]
    parts = [part.strip() for part in re.split(r",? or |, ", first)]
    examples = [part.rpartition(" as ")[2] for part in parts if " as " in part]
    words = [word for word in parts + examples if _WORD.fullmatch(word)]
    return words if len(parts) > 1 else []


# ---------------------------------------------------------------- material


class Material:
    """Files as a user has them, made once: copies of them go into the folder of each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Train, import, and write files."""
        from distsgd.api.training import train
        from distsgd.data.import_dataset import import_dataset
        from distsgd.data.locations import SAMPLE

        self.folder.mkdir(parents=True)
        self._files()
        before = dict(os.environ)
        os.environ.update(DISTSGD_CACHE=f"{self.folder}/cache", DISTSGD_HOME=f"{self.folder}/home")
        try:
            import_dataset(self.folder / "plain.csv", "columns")
            import_dataset(self.folder / "photos", "photos")
            shutil.copytree(SAMPLE, self.folder / "cache/datasets/cifar10")
            few = {"workers": 0, "epochs": 1, "checkpoint_seconds": 1e-9}
            train("sample", run_dir=self.folder / "good", **few)  # type: ignore[arg-type]
            train("sample", run_dir=self.folder / "two", model="mlp:3", **few)  # type: ignore[arg-type]
            train("columns", run_dir=self.folder / "rows", batch_size=8, workers=0, epochs=1)
        finally:
            os.environ.clear()
            os.environ.update(before)
        shutil.copytree(SAMPLE, self.folder / "sample")

    def _files(self) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        random, here = np.random.default_rng(0), self.folder
        rows = random.normal(size=(60, 3))
        kinds = [("a", "b")[number % 2] for number in range(60)]
        lines = [f"{x:.3f},{y:.3f},{z:.3f},{k}" for (x, y, z), k in zip(rows, kinds, strict=True)]
        plain = "\n".join(["u,v,w,label", *lines]) + "\n"
        texts = {
            "plain": plain, "empty": "", "header": "u,v,label\n", "comma": plain.replace("\n", ",\n"),
            "semicolons": plain.replace(",", ";").replace(".", ","), "one-class": plain.replace(",b", ",a"),
            "markup": plain.replace(",a\n", ",a[/b]\n").replace(",b\n", ",:cat: [bold]\n"),
            "escape": plain.replace(",a\n", ",\x1b[31m\n"), "nan": plain.replace("0.", "nan"),
            "huge": plain.replace("0.", "1e400"), "quotes": plain.replace(",a", ',"a'),
            "nul": plain.replace(",a", ",\0"), "unicode": plain.replace(",a", ",日本").replace(",b", ",café"),
            "wide": ",".join(f"c{n}" for n in range(3000)) + "\n" + ",".join(["1"] * 3000) + "\n",
            "ragged": plain.replace(",a\n", "\n"), "same": plain.replace("u,v", "u,u"),
            "index": plain.replace("u,v", ",v"), "three": "\n".join(plain.splitlines()[:4]) + "\n",
        }  # fmt: skip
        for name, text in texts.items():
            (here / f"{name}.csv").write_text(text)
        (here / "bom.csv").write_text(plain, encoding="utf-8-sig")
        (here / "utf16.csv").write_text(plain, encoding="utf-16")
        (here / "latin.csv").write_bytes(plain.replace(",a", ",é").encode("latin-1"))
        (here / "plain.csv.gz").write_bytes(gzip.compress(plain.encode()))
        (here / "plain.txt").write_text(plain)
        images = random.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(24) % 2
        arrays: dict[str, dict[str, Any]] = {
            "plain": {"x": images, "y": labels}, "flat": {"x": images.reshape(24, -1), "y": labels},
            "fortran": {"x": np.asfortranarray(images), "y": labels}, "short": {"x": images, "y": labels[:9]},
            "floats": {"x": images / 255.0, "y": labels}, "objects": {"x": np.array([{}, []], dtype=object)},
            "none": {}, "scalars": {"x": np.float64(1), "y": np.int64(1)}, "empty": {"x": images[:0], "y": labels[:0]},
            "negative": {"x": images, "y": labels - 9}, "complex": {"x": images * 1j, "y": labels},
        }  # fmt: skip
        for name, content in arrays.items():
            np.savez(here / f"{name}.npz", **content)
        columns = {"u": rows[:, 0], "v": rows[:, 1], "label": kinds}
        tables: dict[str, dict[str, Any]] = {
            "plain": columns, "nulls": {**columns, "v": [None] * 60}, "lists": {**columns, "v": [[1.0]] * 60},
            "markup": {**columns, "[/b]": rows[:, 2]}, "none": {"label": kinds}, "bytes": {**columns, "v": [b"x"] * 60},
        }  # fmt: skip
        for name, content in tables.items():
            pq.write_table(pa.table(content), here / f"{name}.parquet")
        for kind in ("cat", "dog"):
            (here / "photos" / kind).mkdir(parents=True)
            for number in range(6):
                picture = Image.fromarray(images[number])
                picture.save(here / "photos" / kind / f"{number}.png")
        Image.fromarray(images[0]).resize((32, 32)).save(here / "picture.png")
        Image.fromarray(images[0, :, :, 0]).save(here / "grey.png")
        Image.new("1", (5000, 1)).save(here / "thin.png")
        Image.new("RGBA", (3, 3)).save(here / "clear.gif")
        configs = {
            "plain.toml": "epochs = 1\nworkers = 0\n", "bom.toml": "\ufeffepochs = 1\nworkers = 0\n",
            "deep.toml": "epochs = " + "[" * 3000 + "\n", "table.toml": "[train]\nepochs = 1\n",
            "markup.toml": 'loss = "[/b]"\n', "list.json": "[]", "null.json": "null", "deep.json": "[" * 100_000,
            "nan.json": '{"epochs": NaN, "workers": 0}', "plain.json": '{"epochs": 1, "workers": 0}',
            "big.json": '{"seed": 1' + "0" * 5000 + "}", "empty.toml": "", "date.toml": "epochs = 1979-05-27\n",
            "fleet.toml": 'workers = 2\nspeed = 1000\nslow = "1:4"\n[train]\nepochs = 1\n',
            "text.toml": 'epochs = "one"\n', "twice.toml": "epochs = 1\nepochs = 2\n", "escape.toml": '"\x1b" = 1\n',
        }  # fmt: skip
        for name, text in configs.items():
            (here / name).write_text(text)
        (here / "bytes.toml").write_bytes(b"loss = '\xff'\n")
        (here / "utf16.toml").write_text("epochs = 1\n", encoding="utf-16")


# ---------------------------------------------------------------- a case


@dataclass
class Case:
    """A command line and all that it meets; made in its own folder."""

    number: int
    folder: Path
    words: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)  # None: not set
    streams: dict[int, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    working_folder: str = "plain"
    user: int | None = None
    ray: bool = False
    may_change: set[Path] = field(default_factory=set)

    @property
    def json(self) -> bool:
        return "--json" in self.words

    def line(self) -> str:
        """As one would type it."""
        parts = [f"cd {self.working_folder};"] if self.working_folder != "plain" else []
        parts += [f"ulimit {name} {size};" for name, size in self.limits.items()]
        parts += ["env", *(f"-u {k}" for k, v in self.environment.items() if v is None)]
        parts += [f"{k}={_typed(v)}" for k, v in self.environment.items() if v is not None]
        parts += ["distsgd", *map(_typed, self.words)]
        parts += [f"{fd}:{kind}" for fd, kind in self.streams.items()]
        parts += [f"as user {self.user}"] if self.user else []
        return " ".join(part for part in parts if part != "env" or self.environment)


def _typed(word: str) -> str:
    shown = word if len(word) < 120 else f"{word[:60]}...({len(word)})"
    if shown.isprintable() and shown.isascii():
        return shlex.quote(shown)
    return "$" + repr(shown)


class Drawer:
    """Draws one case; what its values name, is put into its folder."""

    def __init__(self, random: Random, material: Material, folder: Path) -> None:
        self.random, self.material, self.folder = random, material, folder
        self.inputs = folder / "in"
        self.oddness = random.choice((0.03, 0.15, 0.4))
        self.may_change: set[Path] = set()
        self.ray = False

    def odd(self) -> bool:
        return self.random.random() < self.oddness

    # paths

    def place(self, name: str) -> Path:
        """A copy of material in the folder of the case, maybe damaged."""
        target = self.inputs / name
        if not target.exists():
            self.copy(self.material.folder / name, target)
        return target

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)

    def damaged(self, name: str) -> Path:
        """A copy of material of which one file is damaged."""
        path = self.place(name)
        files = sorted(p for p in (path, *path.rglob("*")) if p.is_file())
        if files:  # it may have been damaged before
            self.damage(self.random.choice(files))
        return path

    def damage(self, file: Path) -> None:
        content = file.read_bytes()
        middle = int(len(content) * self.random.random())
        way = self.random.randrange(9)
        if way == 0:
            file.unlink()
        elif way == 1:
            file.write_bytes(content[:middle])
        elif way == 2:
            file.write_bytes(b"")
        elif way == 3 and content:
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        elif way == 4:
            file.write_bytes(content + b"\n{\0\xff")
        elif way == 5:
            file.unlink()
            file.mkdir()
        elif way == 6:
            file.write_bytes(b"[1, null, {}]\n")
        elif way == 7:
            file.chmod(0)
        else:
            words = re.sub(
                rb"\d+", lambda m: self.random.choice((b"-1", b"1e400", b"null", m[0])), content
            )
            file.write_bytes(words)

    def odd_path(self) -> str:
        """Of something that is no plain file."""
        self.inputs.mkdir(exist_ok=True)
        kind = self.random.choice(
            ("missing", "folder", "fifo", "null", "full", "unreadable", "loop", "dangling", "long",
             "name", "bytes", "under a file", "proc", "socket", "empty")
        )  # fmt: skip
        path = self.inputs / kind.replace(" ", "-")
        if kind == "long":
            return str(path / ("x" * 300))
        if kind == "name":
            path = self.inputs / self.random.choice(
                ("[bold]a[/b]", ":cat:.csv", "日本.png", "a\nb.csv")
            )
            path.write_text("u,v\n1,2\n")
        elif kind == "bytes":
            path = self.inputs / "\udcff.csv"
            path.write_text("u,v,label\n1,2,a\n")
        elif kind == "under a file":
            path.write_text("")
            return str(path / "x")
        elif kind == "proc":
            return self.random.choice(
                ("/proc/self/mem", "/proc/1/environ", "/proc/nothing/x", "/sys")
            )
        elif kind == "folder":
            path.mkdir(exist_ok=True)
        elif kind == "fifo" and not path.exists():
            os.mkfifo(path)
        elif kind in ("null", "full"):
            return self.device(kind)
        elif kind == "unreadable":
            path.write_text("epochs = 1\n")
            path.chmod(0)
        elif kind in ("loop", "dangling") and not path.is_symlink():
            path.symlink_to(path if kind == "loop" else "nothing")
        elif kind == "empty":
            path.write_text("")
        elif kind == "socket" and not path.exists():
            with suppress(OSError):  # a path too long for one
                os.mknod(path, 0o140600)
        return str(path)

    def device(self, name: str) -> str:
        """Of our own where we may make one: root could replace the machine's."""
        path = self.inputs / name
        if os.geteuid():
            return f"/dev/{name}"
        if not path.exists():
            os.mknod(path, 0o020666, os.makedev(1, 3 if name == "null" else 7))
            path.chmod(0o666)
        return str(path)

    # values

    def value(self, parameter: Parameter, command: Command) -> str:
        """One value for a parameter."""
        kind = parameter.kind
        if kind == "output":
            return self.output(parameter)
        if kind == "run":
            return self.run(command)
        if kind == "dataset":
            return self.dataset(command)
        if kind == "ray workers":
            return self.random.choice(ODD[kind]) if self.odd() else "0"
        if kind == "setting":
            return self.setting()
        if kind == "path" or re.search(r"\bfiles?\b|\bfolder\b|archive", parameter.help):
            return self.input(parameter)
        offered = listed(parameter.help) if kind == "text" else []
        if not self.odd():
            good = offered or GOOD.get(kind, GOOD["text"])
            return self.random.choice(good)
        if kind in ("int", "float") and self.random.random() < 0.8:
            return self.random.choice(NUMBERS)
        if kind == "list":
            return ",".join(self.random.choices(NUMBERS, k=self.random.randint(1, 3)))
        if kind in ODD and self.random.random() < 0.8:
            return self.random.choice(ODD[kind])
        if offered and self.random.random() < 0.3:
            return self.near(self.random.choice(offered))
        return self.random.choice(TEXTS + NUMBERS)

    def near(self, word: str) -> str:
        """A slip of the hand."""
        slip = self.random.randrange(6)
        at = self.random.randrange(len(word))
        return (word.upper(), f"{word} ", word[:at] + word[at + 1 :], f"{word}:", f"{word}:0",
                f"{word}:{self.random.choice(NUMBERS)}")[slip]  # fmt: skip

    def setting(self) -> str:
        if not self.odd():
            return self.random.choice(GOOD["setting"])
        if self.random.random() < 0.5:
            return self.random.choice(ODD["setting"])
        from distsgd.run.config import TrainConfig

        names = [one.name for one in fields(TrainConfig) if one.name not in ("workers", "elastic")]
        return f"{self.random.choice(names)}={self.random.choice(TEXTS + NUMBERS)}"

    def run(self, command: Command) -> str:
        name = self.random.choice(("good", "good", "two", "rows"))
        if not self.odd():
            path = self.place(name)
        elif self.random.random() < 0.7:
            path = self.damaged(name)
        else:
            return self.random.choice(
                (self.odd_path(), self.random.choice(TEXTS), "good", str(self.place("plain.csv")))
            )
        if command.words[0] in ("resume", "scale"):
            self.may_change.add(path)
        return str(path)

    def dataset(self, command: Command) -> str:
        if not self.odd():
            return self.random.choice(GOOD["dataset"])
        chance = self.random.random()
        if chance < 0.5:
            name = self.random.choice(("sample", "cache/datasets/columns", "cache/datasets/photos"))
            path = self.damaged(name)
            self.may_change |= {path} if command.words[-1] == "fetch" else set()
            return str(path)
        if chance < 0.7:
            return self.odd_path()
        return self.random.choice(ODD["dataset"] + TEXTS)

    def input(self, parameter: Parameter) -> str:
        known = sorted(p.name for p in self.material.folder.iterdir() if p.is_file())
        config = "toml" in parameter.help.lower() or "settings" in parameter.help.lower()
        fitting = [
            name
            for name in known
            if name.endswith(
                (".toml", ".json")
                if config
                else (".csv", ".npz", ".parquet", ".png", ".gif", ".gz")
            )
        ]
        if not self.odd():
            folder = [] if config else ["photos"]
            return str(self.place(self.random.choice(fitting + folder)))
        chance = self.random.random()
        if chance < 0.5:
            return str(self.damaged(self.random.choice([*fitting, "photos"])))
        if chance < 0.6:
            return str(self.place(self.random.choice(known)))
        return self.odd_path() if chance < 0.9 else self.random.choice(TEXTS)

    def output(self, parameter: Parameter) -> str:
        ending = ".png" if re.search(r"png", parameter.help) else ""
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        if not self.odd():
            return str(out / f"{parameter.name}{ending or '.x'}")
        chance = self.random.random()
        if chance < 0.4:
            path = self.odd_path()
        elif chance < 0.6:
            name = self.random.choice(
                ("[bold]", "日本", "\udcff", "a\nb", ":cat:", "x" * 250, "café")
            )
            path = str(out / f"{name}{ending}")
        elif chance < 0.8:
            path = str(
                out / f"x{self.random.choice(('.svg', '.jpg', '.PNG', '.pdf', '', '.', '.csv'))}"
            )
        else:
            path = self.random.choice(
                ("", ".", "..", "missing/x.png", "~", "x.png", "-", "~nobody/x.png")
            )
        self.may_change.add(Path(path))
        return path

    # the command line

    def words(self, command: Command, ray_share: float) -> list[str]:
        """Of the command, its options and arguments."""
        options: list[list[str]] = []
        arguments: list[str] = []
        for parameter in command.parameters:
            if not parameter.flags:
                if (
                    parameter.required and self.random.random() < 0.98
                ) or self.random.random() < 0.6:
                    times = self.random.choice((1, 1, 2, 5)) if parameter.several else 1
                    arguments += [self.value(parameter, command) for _ in range(times)]
            elif parameter.required and self.random.random() < 0.97:
                options.append(self.option(parameter, command))
            else:
                chance = (
                    0.35 if parameter.kind == "json" else 0.03 if parameter.name == "debug" else 0.2
                )
                while self.random.random() < chance:
                    options.append(self.option(parameter, command))
                    if not parameter.several and self.random.random() < 0.97:
                        break
        options += self.keep_small(command, {word for one in options for word in one}, ray_share)
        self.random.shuffle(options)
        words = [word for option in options for word in option]
        if any(word.startswith("-") for word in arguments) and self.random.random() < 0.5:
            return [*command.words, *words, "--", *arguments]
        return [*command.words, *arguments, *words]

    def option(self, parameter: Parameter, command: Command) -> list[str]:
        flag = self.random.choice(parameter.flags)
        if parameter.switch:
            return [flag]
        value = self.value(parameter, command)
        return [f"{flag}={value}"] if self.random.random() < 0.3 else [flag, value]

    def keep_small(self, command: Command, given: set[str], ray_share: float) -> list[list[str]]:
        """What keeps the work of a command small, and off clusters that are not of this case."""
        flags = {word.partition("=")[0] for word in given}
        more: list[list[str]] = []
        missing = [one for one in command.parameters if one.flags and not flags & set(one.flags)]
        nodes = command.words == ("cluster", "start")
        for parameter in missing:
            flag = parameter.flags[0]
            if parameter.kind == "ray workers":
                self.ray = self.random.random() < ray_share
                more.append([flag, "2" if self.ray else "0"])
            elif parameter.kind == "address" and (nodes or "auto" in parameter.help):
                if parameter.name != "node_ip" and command.words[0] != "train":
                    more.append([flag, CLOSED_ADDRESS])
            elif parameter.kind == "int" and self.random.random() < 0.85:
                if parameter.name in SMALL:
                    more.append([flag, str(self.random.choice((1, 2, 3, 20)))])
            elif parameter.kind == "dataset" and self.random.random() < 0.8:
                if command.words[-1] != "fetch":
                    more.append([flag, "sample"])
            elif parameter.name == "quick":
                more.append([flag])
            elif parameter.name == "only":
                chapters = ("losses", "numpy", "inline", "layers", "sampling", "nothing")
                more.append([flag, self.random.choice(chapters)])
        return more


SMALL = (
    "epochs", "attempts", "tries", "examples", "parameters", "points", "segments", "originals",
    "times", "draws", "repeats", "measure_examples", "top", "rounds",
)  # fmt: skip
NEVER = ("--debug", "--install-completion", "--show-completion")


# ---------------------------------------------------------------- what a case meets


ENVIRONMENT: dict[str, tuple[str | None, ...]] = {
    "HOME": (None, "", "@missing", "@file", "@closed", "relative", "\udcff"),
    "DISTSGD_HOME": ("", "@missing", "@file", "@closed", "relative", "~/data", "/proc/x", "@\udcff", "@[/b]"),
    "DISTSGD_CACHE": ("", "@missing", "@file", "@closed", "relative", "~/x", "/proc/x", "@\udcff", "@[bold]"),
    "TMPDIR": (None, "@missing", "@file", "@closed", "relative", "@" + "x" * 150),
    "LANG": (None, "C", "POSIX", "xx_YY.UTF-8", "ko_KR.EUC-KR", "en_US.ISO-8859-1"),
    "LC_ALL": ("C", "POSIX", "xx", "en_US.ISO-8859-1"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "ascii:strict", "utf-8:strict", "cp1252"),
    "PYTHONUTF8": ("0", "1"),
    "PYTHONCOERCECLOCALE": ("0",),
    "PYTHONUNBUFFERED": ("1",),
    "PYTHONOPTIMIZE": ("1",),
    "TERM": (None, "", "dumb", "xterm-256color", "nonsense"),
    "COLUMNS": ("20", "1", "0", "-1", "x", "60", "10000"),
    "LINES": ("1", "0", "x"),
    "NO_COLOR": ("1", ""),
    "FORCE_COLOR": ("1", "0", ""),
    "TTY_COMPATIBLE": ("1",),
    "MPLBACKEND": ("nonsense", "tkagg", ""),
    "MPLCONFIGDIR": ("@file", "@closed", ""),
    "PATH": (None, "", "@missing"),
    "TZ": ("nonsense", ""),
    "OMP_NUM_THREADS": ("0", "x", "-1", "999"),
    "OPENBLAS_NUM_THREADS": ("0", "x", "1"),
    "RAY_ADDRESS": (CLOSED_ADDRESS, "nonsense", "ray://127.0.0.1:1", ""),
    "RAY_USE_TLS": ("1", "x"),
    "RAY_AUTH_TOKEN_PATH": ("@missing", "@file"),
    "DISTSGD_RUN_NAME": ("", "a/b", "..", "[bold]", "x" * 300, "\udcff", "\n"),
    "DISTSGD_CLUSTER_HOME": ("@missing", "@file", "@closed", ""),
    "XDG_DATA_HOME": ("@file", "relative", ""),
    "USER": (None, "\udcff"),
    "no_proxy": ("*", "x"),
    "https_proxy": (None, "nonsense", "http://", "socks5://127.0.0.1:1"),
}  # fmt: skip
"""Odd values of variables: None removes one; @ is the folder of the case."""

STREAMS = {0: ("closed",), 1: ("closed", "full", "early"), 2: ("closed", "full")}
LIMITS = {
    "NOFILE": (32, 64, 256),
    "FSIZE": (0, 1000, 100_000, 1_000_000),
    "AS": tuple(size * 2**20 for size in (64, 128, 200, 256, 320, 400, 512, 700, 1000, 1100, 1300, 1600)),
}
FOLDERS = ("deleted", "unreadable", "shadows", "read-only", "[bold]a[/b]", "\udcff", "日本")
UNKNOWN_USER = 54_321


def draw_case(
    seed: int, number: int, material: Material, folder: Path, ray_share: float = 0.0,
    users: bool = False,
) -> Case:  # fmt: skip
    """The case of a number, with all its files in place."""
    random = Random(f"{seed}-{number}")
    drawer = Drawer(random, material, folder)
    drawer.inputs.mkdir(parents=True)
    for name in ("home", "tmp", "cwd", "out", "data/runs", "cache/datasets"):
        (folder / name).mkdir(parents=True)
    command = random.choice(commands())
    words = _whole_line(random, drawer, command, ray_share)
    case = Case(number, folder, words, ray=drawer.ray)
    _fill_home(random, material, folder)
    small = 0.3 * random.random()
    for name, values in ENVIRONMENT.items():
        if random.random() < small / 3:
            value = random.choice(values)
            case.environment[name] = value and value.replace("@", f"{folder}/")
    if users and random.random() < 0.08:
        case.user = UNKNOWN_USER
        for name in ("HOME", "DISTSGD_HOME", "USER"):
            if random.random() < 0.5:
                case.environment[name] = None
    if random.random() < 0.1:
        case.streams = {1: "terminal", 2: "terminal"}
    elif random.random() < 0.2:
        for stream in random.sample((0, 1, 2), random.choice((1, 1, 1, 2, 3))):
            case.streams[stream] = random.choice(STREAMS[stream])
    if random.random() < 0.15:
        name = random.choice(tuple(LIMITS))
        case.limits[name] = random.choice(LIMITS[name])
    if random.random() < 0.1:
        case.working_folder = random.choice(FOLDERS)
    case.may_change = {Path(os.path.abspath(folder / "cwd" / path)) for path in drawer.may_change}  # noqa: PTH100
    if command.words[0] in ("resume", "scale", "submit"):
        case.may_change.add(folder / "data")
    if {"--force", "--repair"} & set(words):
        case.may_change.add(folder / "cache")
    return case


def _whole_line(random: Random, drawer: Drawer, command: Command, ray_share: float) -> list[str]:
    """Mostly a command with its options; sometimes less, or with slips."""
    words = drawer.words(command, ray_share)
    chance = random.random()
    if chance < 0.02:
        return words[: random.randint(0, len(command.words))]
    if chance < 0.04:
        return [
            *words,
            random.choice(("--help", "--nothing", "[/b]", "-x", "--json=1", "\udcff", "--")),
        ]
    if chance < 0.05:
        return [drawer.near(words[0]), *words[1:]]
    if chance < 0.06:
        return [random.choice(("--version", "--help", "--debugg", "--nothing")), *words]
    return [word for word in words if word not in NEVER]


def _fill_home(random: Random, material: Material, folder: Path) -> None:
    """A run that is the latest, and datasets in the cache."""
    if random.random() < 0.8:
        shutil.copytree(material.folder / "good", folder / "data/runs/20260101-000000-good")
    for name in ("columns", "photos", "cifar10"):
        if random.random() < 0.7:
            shutil.copytree(
                material.folder / "cache/datasets" / name, folder / "cache/datasets" / name
            )
    (folder / "file").write_text("")
    (folder / "closed").mkdir(mode=0)


def variables(case: Case) -> dict[str, str]:
    """All the environment of a case; nothing in it leads to another machine."""
    nowhere = f"http://{CLOSED_ADDRESS}"
    known: dict[str, str | None] = {
        "PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "TERM": "xterm",
        "HOME": f"{case.folder}/home", "TMPDIR": f"{case.folder}/tmp", "USER": "user",
        "DISTSGD_HOME": f"{case.folder}/data", "DISTSGD_CACHE": f"{case.folder}/cache",
        "DISTSGD_CLUSTER_HOME": f"{case.folder}/cluster", "NPM_CONFIG_REGISTRY": nowhere, "NPM_CONFIG_FETCH_RETRIES": "0",
        "http_proxy": nowhere, "https_proxy": nowhere, "AWS_ENDPOINT_URL": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true", "GCE_METADATA_HOST": CLOSED_ADDRESS,
        MARK: str(case.folder), **case.environment,
    }  # fmt: skip
    if known["HOME"] is None and not case.user:  # what is left is the home of this very user
        known["DISTSGD_HOME"] = known["DISTSGD_HOME"] or f"{case.folder}/data"
        known["DISTSGD_CACHE"] = known["DISTSGD_CACHE"] or f"{case.folder}/cache"
    return {name: value for name, value in known.items() if value is not None}


# ---------------------------------------------------------------- running one


@dataclass(frozen=True)
class Outcome:
    code: int | None  # negative for a signal; None if it did not end
    output: dict[int, str]  # of the streams that were read
    seconds: float
    interrupted: bool = False
    stood_still: bool = False
    left: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def program() -> list[str]:
    """The command as installed, which does not look for modules in the working folder."""
    installed = Path(sys.executable).with_name("distsgd")
    return [str(installed)] if installed.exists() else [sys.executable, "-P", "-m", "distsgd"]


def run_case(case: Case) -> Outcome:
    """Run it to its end, and look what it has left and changed."""
    cwd = _working_folder(case)
    before = contents(case)
    ends, files = _open_streams(case)
    begun = time.monotonic()
    process = subprocess.Popen(
        [*program(), *case.words], env=variables(case), cwd=cwd, stdin=files[0], stdout=files[1],
        stderr=files[2], start_new_session=True, preexec_fn=lambda: _become(case, cwd),
    )  # fmt: skip
    for file in set(files.values()):
        os.close(file)
    reader = Reader(ends, {name for name, kind in case.streams.items() if kind == "early"})
    interrupted, stood_still = _wait(case, process, reader, begun)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = None if process.poll() is None else process.returncode
    process.wait()
    reader.read_rest()
    seconds = time.monotonic() - begun
    left = _clear(case)
    after = contents(case)
    changed = tuple(sorted(name for name, digest in before.items() if after.get(name) != digest))
    return Outcome(code, reader.texts(), seconds, interrupted, stood_still, left, changed)


def _working_folder(case: Case) -> Path:
    kind = case.working_folder
    cwd = (
        case.folder / "cwd"
        if kind in ("plain", "deleted", "unreadable")
        else case.folder / "cwd" / kind
    )
    cwd.mkdir(parents=True, exist_ok=True)
    if kind == "shadows":
        for name in ("queue", "numpy", "distsgd", "typing", "ray", "rich"):
            (cwd / f"{name}.py").write_text("raise SystemExit('a file of the user is run')\n")
    if kind == "read-only":
        cwd.chmod(0o500)
    if case.user:
        for path in (case.folder, *case.folder.rglob("*")):
            if path.name != "closed" and not path.is_symlink():
                os.chown(path, case.user, case.user)
    return cwd


def _become(case: Case, cwd: Path) -> None:
    """Between fork and exec: take what the case meets upon this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a shell has its background jobs ignore some
    if case.working_folder == "unreadable":
        cwd.chmod(0)
    if case.working_folder == "deleted":
        cwd.rmdir()
    limits = {"CPU": 300, "CORE": 0, **({} if case.ray else {"AS": MEMORY}), **case.limits}
    if case.user:
        os.setgroups([])
        os.setgid(case.user)
        os.setuid(case.user)
    for name, size in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (size, size if hard < 0 else min(size, hard)))
    for stream, kind in case.streams.items():
        if kind == "closed":
            os.close(stream)


def _open_streams(case: Case) -> tuple[dict[int, int], dict[int, int]]:
    """Our ends of what is read, and what the process gets as 0, 1 and 2."""
    ends: dict[int, int] = {}
    files: dict[int, int] = {}
    terminal = pty.openpty() if "terminal" in case.streams.values() else None
    for stream in (0, 1, 2):
        kind = case.streams.get(stream, "plain")
        if kind == "terminal" and terminal is not None:
            files[stream] = os.dup(terminal[1])
            ends[1] = terminal[0]
        elif kind == "full":
            files[stream] = os.open("/dev/full", os.O_RDWR)
        elif kind == "folder":
            files[stream] = os.open("/", os.O_RDONLY)
        elif stream == 0 or kind == "closed":
            files[stream] = os.open(os.devnull, os.O_RDWR)
        else:
            ends[stream], files[stream] = os.pipe()
    if terminal is not None:
        os.close(terminal[1])
    return ends, files


class Reader:
    """Takes what the streams bring, without waiting for them."""

    def __init__(self, ends: dict[int, int], early: set[int]) -> None:
        self._selector = selectors.DefaultSelector()
        self._early = early
        self._found: dict[int, bytes] = dict.fromkeys(ends, b"")
        for stream, end in ends.items():
            self._selector.register(end, selectors.EVENT_READ, stream)

    def read(self, seconds: float) -> bool:
        """Whether there is more to come; waits for it so long at most."""
        for key, _ in self._selector.select(seconds) if self._selector.get_map() else ():
            end, stream = int(key.fd), int(key.data)
            try:
                piece = os.read(end, 65536)
            except OSError:  # the terminal has been closed at its other end
                piece = b""
            self._found[stream] = (self._found[stream] + piece)[-4_000_000:]
            if not piece or stream in self._early:
                self._selector.unregister(end)
                os.close(end)
        return bool(self._selector.get_map())

    def read_rest(self) -> None:
        """What is there already; then all is closed."""
        until = time.monotonic() + 1
        while self.read(0.05) and time.monotonic() < until:
            pass
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            os.close(int(key.fd))
        self._selector.close()

    def texts(self) -> dict[int, str]:
        return {
            stream: content.decode("utf-8", "surrogateescape")
            for stream, content in self._found.items()
            if stream not in self._early
        }


def _wait(
    case: Case, process: subprocess.Popen[bytes], reader: Reader, begun: float
) -> tuple[bool, bool]:
    """Until it ends, or did not when it was interrupted: whether it was, and why."""
    worked, waited = (RAY_WORKED, RAY_WAITED) if case.ray else (WORKED, WAITED)
    interrupted, stood_still = 0.0, False
    while process.poll() is None:
        if not reader.read(0.05):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        now, computed = time.monotonic(), _computed(process.pid)
        if not interrupted and (computed > worked or now - begun > waited):
            interrupted, stood_still = now, computed < 0.3 * worked and not case.ray
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        elif interrupted and now - interrupted > TO_STOP:
            break
    return bool(interrupted), stood_still


def _computed(pid: int) -> float:
    """Seconds of processor time of a process and the children that it has waited for."""
    with suppress(OSError, IndexError):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, parts[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _clear(case: Case) -> tuple[str, ...]:
    """Command lines of processes of the case that have not ended; they are ended."""
    until = time.monotonic() + (20 if case.ray else 3)
    while (living := _living(case)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in living:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return tuple(living.values())


def _living(case: Case) -> dict[int, str]:
    mark = os.fsencode(f"{MARK}={case.folder}")
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
    return found


def contents(case: Case) -> dict[str, str]:
    """Digests of the files that must stay as they are."""
    found = {}
    for name in ("in", "data", "cache", "home", "cwd"):
        for path in sorted((case.folder / name).rglob("*")):
            if not path.is_symlink() and path.is_file() and not _exempt(case, path):
                with suppress(OSError):
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _exempt(case: Case, path: Path) -> bool:
    return bool(case.may_change & {path, *path.parents}) or "__pycache__" in path.parts


# ---------------------------------------------------------------- judging


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with how a case ended; nothing, if it passes."""
    found = []
    output = {stream: ANSI.sub("", text) for stream, text in outcome.output.items()}
    text = "\n".join(output.values())
    lines = [line.rstrip("\r") for line in text.splitlines()]
    if outcome.code is None:
        found.append("it does not end when it is interrupted")
    elif outcome.stood_still:
        found.append("it stands still")
    elif outcome.code not in EXPECTED and not _explained(case, outcome.code):
        found.append(f"exit code {outcome.code}")
    found += [line.strip() for line in lines if FAULT.search(line)][:1]
    errors = [line for line in lines if line.startswith("error: ")]
    if outcome.code in (1, 2) and (2 in output or "terminal" in case.streams.values()):
        parser = outcome.code == 2 and "Usage: " in text
        if len(errors) + parser != 1 and not outcome.interrupted:
            found.append(f"{len(errors)} error lines with exit code {outcome.code}: {_last(lines)}")
    raw = [line for whole in outcome.output.values() for line in whole.splitlines()]
    for line in raw:
        if line.startswith("error: ") and not line.rstrip("\r").replace("\udcff", "").isprintable():
            found.append(f"control characters in an error: {line!r}")
    if case.json and 1 in output and "terminal" not in case.streams.values():
        found += _json_faults(case, outcome, output[1])
    if case.streams.get(1) == "full" and outcome.code == 0:
        found.append("its answer could not be written, and it says nothing")
    found += [f"{_kind_of(Path(name), case)} was changed" for name in outcome.changed[:1]]
    found += [f"still running: {line}" for line in outcome.left[:1]]
    return found


def _explained(case: Case, code: int) -> bool:
    """Whether a limit of the case ends a process by this signal."""
    return code == -signal.SIGXFSZ and "FSIZE" in case.limits


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "nothing is said")


def _json_faults(case: Case, outcome: Outcome, text: str) -> list[str]:
    if "--help" in case.words or "--version" in case.words or (outcome.code and not text.strip()):
        return []
    try:
        whole = isinstance(json.loads(text), dict)
    except ValueError:
        whole = False
    return [] if whole or outcome.code == 2 else ["stdout is not one JSON object"]


def _kind_of(path: Path, case: Case) -> str:
    return str(path.relative_to(case.folder))


def group_of(fault: str) -> str:
    """Equal for faults that differ in numbers, names and paths alone."""
    short = re.sub(r"(/[^\s:,']+)+", "PATH", fault)
    short = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", short)
    return re.sub(r"[0-9a-f]{8,}|[-+]?\d+([.,]\d+)*", "N", short)[:160]


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Verdict:
    number: int
    line: str
    code: int | None
    answer: str
    faults: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Job:
    """What a process of this script needs to know to run a case."""

    seed: int
    number: int
    material: Path
    folder: Path
    ray_share: float
    users: bool
    show: bool = False

    def run(self) -> Verdict:
        folder = self.folder / f"case-{self.number}"
        case = draw_case(
            self.seed, self.number, Material(self.material), folder, self.ray_share, self.users
        )
        if self.show:
            print(f"{self.number}: {case.line()}", flush=True)
        try:
            outcome = run_case(case)
            found = faults(case, outcome)
        finally:
            _remove(folder)
        if self.show:
            for stream, text in outcome.output.items():
                print(
                    f"--- stream {stream}\n{text[-5000:]!r}"
                    if "\x1b" in text
                    else f"--- stream {stream}\n{text[-5000:]}".encode(
                        "utf-8", "backslashreplace"
                    ).decode()
                )
        lines = [line for line in "\n".join(outcome.output.values()).splitlines() if line.strip()]
        return Verdict(
            self.number, case.line(), outcome.code, _last(lines), tuple(found), outcome.seconds
        )


def _remove(folder: Path) -> None:
    for path in [folder, *folder.glob("*"), *folder.glob("cwd/*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def reachable_to_others() -> bool:
    """Whether a user that the system does not know could run this Python."""
    try:
        code = [sys.executable, "-c", "import distsgd"]
        return (
            subprocess.run(code, user=UNKNOWN_USER, group=UNKNOWN_USER, extra_groups=[]).returncode
            == 0
        )
    except (OSError, subprocess.SubprocessError):
        return False


def play(jobs: Iterable[Job], processes: int) -> Iterator[Verdict]:
    """Verdicts as they come."""
    if processes == 1:
        yield from (job.run() for job in jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(Job.run, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ray", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--show", action="store_true", help="print each case and what it printed")
    parser.add_argument("--log", type=Path, help="write each verdict into this file, as JSON lines")
    given = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="random-commands-"))
    folder.chmod(0o755)
    users = os.geteuid() == 0 and reachable_to_others()
    if os.geteuid() == 0 and not users:
        print("without cases of an unknown user: this Python lies in a folder that is closed to it")
    try:
        material = Material(folder / "material")
        material.make()
        numbers = range(given.first, given.first + given.cases)
        jobs = [
            Job(given.seed, number, material.folder, folder, given.ray, users, given.show)
            for number in numbers
        ]
        return report(play(jobs, min(given.jobs, len(jobs))), given)
    finally:
        _remove(folder)


def report(verdicts: Iterator[Verdict], given: argparse.Namespace) -> int:
    """Print failures as they come, and then by group; 1 if there are any."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    codes: Counter[int | None] = Counter()
    begun = time.monotonic()
    log: Callable[[str], object] = given.log.open("w").write if given.log else lambda text: None
    for verdict in verdicts:
        codes[verdict.code] += 1
        log(json.dumps(vars(verdict)) + "\n")
        if verdict.faults:
            groups[group_of(verdict.faults[0])].append(verdict)
            print(f"{verdict.number}: {verdict.faults[0]}\n    {verdict.line}", flush=True)
    seconds = time.monotonic() - begun
    share = f" --ray {given.ray}" if given.ray else ""
    for name, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = found[0].number
        print(f"\n{len(found)} times: {name}\n  python scripts/random_commands.py 1 --seed "
              f"{given.seed} --first {first}{share} --show")  # fmt: skip
    failed = sum(map(len, groups.values()))
    shown = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str))
    print(
        f"\n{codes.total() - failed} of {codes.total()} pass in {seconds:.0f} s; exit codes {shown}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
