"""Draws random command lines and their surroundings, for `faults.py commands`.

Commands, arguments and options are read from the command line's own tree.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

from harness.material import Material

MARK = "RANDOM_COMMANDS_CASE"
"""In the environment of a case's processes: its folder."""


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
        """The kind of value it takes: that of the first pattern that fits its name and help."""
        known = f"{self.name}: {self.help}{' (required)' * self.required}"
        return next((kind for pattern, kind in KINDS if re.search(pattern, known)), self.type)


@dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def weight(self) -> int:
        """How often it is drawn: more often if more of its values can be odd in many ways."""
        files = [one for one in self.parameters if one.kind in ("run", "dataset", "path", "output")]
        return 4 + len(self.parameters) + 4 * len(files)


KINDS = (
    (r"^json:", "json"),
    (r"^(run|resume): ", "run"),
    (r"^set_?: ", "setting"),
    (r"^chaos", "chaos"),
    (r"^workers: (?!Simulated|.*\(required\))", "ray workers"),
    (r"^(address|join|node_ip)|HOST:PORT", "address"),
    (r"^dataset", "dataset"),
    (r"^(plot|out|output|trace|run_dir): ", "output"),
    (r"comma-separated|,\.\.\.", "list"),
)
"""Patterns over `name: help (required)`, so that a new option finds its kind by its words."""


def commands() -> list[Command]:
    """All commands, as the command line has them."""
    import typer

    from distsgd.cli.app import app

    return list(_walk(typer.main.get_command(app), ()))


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[Command]:
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        yield from _walk(one, (*words, name))
    if inner and not (words and command.invoke_without_command):
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
    """The type of a parameter of click, or of the copy of click in newer versions of typer."""
    kind = getattr(known, "type", None) or getattr(known, "type_descriptor", "")
    words = f"{getattr(kind, 'name', '')} {getattr(kind, 'annotation', kind)}".lower()
    for name in ("int", "float", "path"):
        if name in words or (name == "path" and "file" in words):
            return name
    return "text"


CLOSED_ADDRESS = "127.9.9.9:1"
"""Nobody listens there."""

NUMBERS = (
    "0", "-1", "1", "2", "3", "1.5", "1000000000", "1" + "0" * 30, "-" + "9" * 40, "nan", "inf",
    "-inf", "1e400", "1e-400", "0x10", "1_000", "٣", "１", "", " ", "9" * 5000, "1,5", "NaN", "½",
    "None", "2147483648", "9223372036854775808", "18446744073709551616", "-0", "+1", "1e3", "true",
)  # fmt: skip
TEXTS = (
    "", " ", "-", "--", "[/b]", "[bold]", "a[/b]c", "[red]x", ":cat:", "\x1b[31mred", "a\nb", "\t",
    "\r", "café", unicodedata.normalize("NFD", "café"), "日本", "🐈", "\udcff\udcfe", "a\udc80",
    "x" * 300, "x" * 100_000, "..", ".", "/", "a/b", "../x", "~", "~no-user", "$HOME", "%s", "{0}",
    "\\", "'", '"', "null", "latest", "\ufeffx", "\u202e", "\u200b", "*", "?", "a=b", "=", ",", ":",
    "@", "http://", "file:///x", "s3://", "gs://x", "CON", "nul", "\x7f", "\x01", "#", ";",
)  # fmt: skip
GOOD: dict[str, tuple[str, ...]] = {
    "dataset": ("sample", "sample", "sample", "columns", "photos"),
    "chaos": ("delay:p=0.5:for=1ms", "drop-push:p=0.1,seed=3", "dup-push:p=0.5"),
    "address": ("127.9.9.9:1", "http://127.9.9.9:1", "[::1]:1"),
    "setting": ("lr=0.1", "learning_rate=0.01", "momentum=0.5", "optimizer=adam", "log_every=1"),
    "list": ("1", "1,2", "16,64", "0.1,0.01", "1:4", "0@1", "bsp,asp"),
    "int": ("1", "2", "3", "20"),
    "float": ("0.1", "0.5", "1", "1e-4"),
    "text": ("x", "label", "1", "0.1", "1000", "32x32", "1x28x28"),
}
ODD: dict[str, tuple[str, ...]] = {
    "ray workers": ("-1", "nan", "", "0.5", "-" + "9" * 30, "None", "zero", "１x", "0x"),
    "chaos": (
        "kill-worker:at=1", "burn", "delay", "delay:p=nan:for=1s", "delay:p=2", "seed=x", "=", ",",
        "drop-push:p=1", ":", "delay:p=0.5:for=1e400s", "delay:p=0.5:for=-1s",
    ),
    "address": (
        "", "x", ":", "127.9.9.9:99999999", "host.invalid:1", "[::1", "ray://127.9.9.9:1",
        "127.9.9.9:-1", "http://", "127.9.9.9:1/", "a b:1", "日:1", "999.1.1.1:1", "x" * 5000,
        "https://127.9.9.9:1", "user:pass@127.9.9.9:1", "[bold]:1", "\udcff:1",
    ),
    "dataset": (
        "cifar10", "columns", "nothing", "s3://nowhere/x", "file:///nowhere", "s3://a b/ü",
        "http://127.9.9.9:1/x", "gs://", "s3://", "hdfs://x", "http://[", "ftp://x/y",
    ),
    "setting": (
        "dataset=", "lr", "=1", "momentum=", "momentum=nan", "seed=1" + "0" * 30, "x=y",
        "learning_rate=[/b]", "[bold]=1", "dtype=float64", "dtype=int8", "slot_size=0",
        "slot_size=1000000000", "epochs=1e3", "hang_seconds=0", "cache_budget=0", "init_scale=1e30",
        "pixel_scale=1e-300", "learning_rate=1e300", "log_every=0", "checkpoint_seconds=-1",
        "keep_checkpoints=1", "journal=bounded", "regularization=1e300", "schedule=step",
        "step_epochs=1e-300", "warmup_epochs=1e300", "shuffle_window=0", "cache=float32",
        "compress=topk:0.1", "compress=topk:nan", "verify=1", "\udcff=1",
    ),
}  # fmt: skip
_WORD = re.compile(r"[a-z][a-z0-9:.-]*")


def listed(text: str) -> list[str]:
    """The words that a help text offers: softmax and svm of "softmax or svm. (default: svm)"."""
    first = re.split(r"\.(?=\s|$)|\(|\\?\[|;", text)[0].rpartition(": ")[2]
    parts = [part.strip() for part in re.split(r",? or |, ", first)]
    parts = [re.sub("[A-Z]{2,}", "1", part) for part in parts]  # mlp:HIDDEN, topk:FRACTION
    words = [part for part in parts if _WORD.fullmatch(part)] if len(parts) > 1 else []
    return words + re.findall(r"\bas (\w[^,\s]*)", first)


@dataclass
class Case:
    """A command line and its surroundings, made in a folder of its own."""

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
    def encoding(self) -> str:
        """The encoding of what it prints."""
        return (self.environment.get("PYTHONIOENCODING") or "utf-8").partition(":")[0]

    @property
    def json(self) -> bool:
        return "--json" in self.words

    def line(self) -> str:
        """The command line as a user would type it."""
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


DATA_ENDINGS = (".csv", ".npz", ".parquet", ".png", ".gif", ".gz")
PATHS = (
    "missing", "folder", "fifo", "null", "full", "unreadable", "loop", "dangling", "long", "name",
    "under a file", "proc", "socket", "empty",
)  # fmt: skip
OUTPUT_ENDINGS = (".svg", ".jpg", ".PNG", ".pdf", "", ".", ".csv")
NAMES = ("[bold]a[/b]", ":cat:", "日本", "a\nb", "\udcff", "café", "x" * 250)


class Drawer:
    """Draws one case; puts the files that its values name into its folder."""

    def __init__(self, random: Random, material: Material, folder: Path) -> None:
        self.random, self.material, self.folder = random, material, folder
        self.inputs = folder / "in"
        self.odd_left = random.choice((0, 1, 1, 1, 2, 99))  # more than one hide each other
        self.may_change: set[Path] = set()
        self.ray = False

    def odd(self) -> bool:
        """Whether the next value is an odd one."""
        odd = self.odd_left > 0 and self.random.random() < 0.5
        self.odd_left -= odd
        return odd

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
            odd = (b"-1", b"1e400", b"null", b"0")
            file.write_bytes(re.sub(rb"\d+", lambda _: self.random.choice(odd), content, count=9))

    def odd_path(self) -> str:
        """The path of something that is not a plain file, or has an odd name."""
        kind = self.random.choice(PATHS)
        path = self.inputs / kind.replace(" ", "-")
        if kind == "proc":
            return self.random.choice(("/proc/self/mem", "/proc/1/environ", "/proc/no/x", "/sys"))
        if kind == "long":
            return str(path / ("x" * 300))
        if kind in ("null", "full"):
            return self.device(kind)
        if kind == "name":
            path = self.inputs / f"{self.random.choice(NAMES)[:200]}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)  # some names have a slash
        if kind in ("loop", "dangling") and not path.is_symlink():
            path.symlink_to(path if kind == "loop" else "nothing")
        elif kind == "folder":
            path.mkdir(exist_ok=True)
        elif kind == "fifo" and not path.exists():
            os.mkfifo(path)
        elif kind == "socket" and not path.exists():
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif kind in ("name", "under a file", "unreadable", "empty"):
            path.write_text("" if kind == "empty" else "u,v,label\n1,2,a\n")
        if kind == "unreadable":
            path.chmod(0)
        return str(path / "x" if kind == "under a file" else path)

    def device(self, name: str) -> str:
        """A device made in the folder of the case if possible: root could replace the machine's."""
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
        offered = listed(parameter.help) if kind in ("text", "list") else []
        if not self.odd():
            good = GOOD.get(kind, GOOD["text"])
            return self.random.choice(offered if offered and self.random.random() < 0.9 else good)
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
        """A word with a typing error."""
        slip = self.random.randrange(6)
        at = self.random.randrange(len(word))
        return (word.upper(), f"{word} ", word[:at] + word[at + 1 :], f"{word}:", f"{word}:0",
                f"{word}:{self.random.choice(NUMBERS)}")[slip]  # fmt: skip

    def setting(self) -> str:
        if not self.odd():
            return self.random.choice(GOOD["setting"])
        if self.random.random() < 0.5:
            return self.random.choice(ODD["setting"])
        from distsgd.config.settings import TrainConfig

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
        """A file of settings or of data, whichever the help names."""
        known = sorted(p.name for p in self.material.folder.iterdir() if p.is_file())
        config = re.search("toml|settings", parameter.help, re.IGNORECASE)
        endings = (".toml", ".json") if config else DATA_ENDINGS
        fitting = [name for name in known if name.endswith(endings)]
        if not self.odd():
            return str(self.place(self.random.choice([*fitting, *([] if config else ["photos"])])))
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
            path = str(out / f"{self.random.choice(NAMES)}{ending}")
        elif chance < 0.8:
            path = str(out / f"x{self.random.choice(OUTPUT_ENDINGS)}")
        else:
            path = self.random.choice(
                ("", ".", "..", "missing/x.png", "x.png", "-", "~no-such-user/x")
            )
        self.may_change.add(Path(path))
        return path

    # the command line

    def words(self, command: Command, ray_share: float) -> list[str]:
        """The words of the command, its options and arguments."""
        options: list[list[str]] = []
        arguments: list[str] = []
        for parameter in command.parameters:
            if not parameter.flags:
                if self.random.random() < (0.98 if parameter.required else 0.6):
                    times = self.random.choice((1, 1, 2, 5)) if parameter.several else 1
                    arguments += [self.value(parameter, command) for _ in range(times)]
            elif parameter.required and self.random.random() < 0.97:
                options.append(self.option(parameter, command))
            else:
                chance = min(0.25, 3 / len(command.parameters))
                if parameter.kind == "json":
                    chance = 0.35
                elif parameter.kind == "address":
                    chance = 0.03
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
        """Options that keep the work of a command small, and away from other clusters."""
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
                if parameter.name != "node_ip" and command.words[0] not in ("train", "resume"):
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


ENVIRONMENT: dict[str, tuple[str | None, ...]] = {
    "HOME": (None, "", "@missing", "@file", "@closed", "relative", "\udcff"),
    "DISTSGD_HOME": ("", "@missing", "@file", "@closed", "relative", "~/x", "/proc/x", "@\udcff"),
    "DISTSGD_CACHE": ("", "@missing", "@file", "@closed", "relative", "~/x", "/proc/x", "@[bold]"),
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
    "RAY_ADDRESS": (CLOSED_ADDRESS, "nonsense", "ray://127.9.9.9:1", ""),
    "RAY_USE_TLS": ("1", "x"),
    "RAY_AUTH_TOKEN_PATH": ("@missing", "@file"),
    "DISTSGD_RUN_NAME": ("", "a/b", "..", "[bold]", "x" * 300, "\udcff", "\n"),
    "DISTSGD_CLUSTER_HOME": ("@missing", "@file", "@closed", ""),
    "XDG_DATA_HOME": ("@file", "relative", ""),
    "USER": (None, "\udcff"),
    "no_proxy": ("*", "x"),
    "https_proxy": (None, "nonsense", "http://", "socks5://127.9.9.9:1"),
}  # fmt: skip
"""Odd values of variables: None removes one; @ is the folder of the case."""

STREAMS = {0: ("closed",), 1: ("closed", "full", "early"), 2: ("closed", "full")}
LIMITS = {
    "NOFILE": (32, 64, 256),
    "FSIZE": (0, 1000, 100_000, 1_000_000),
    "AS": tuple(
        size * 2**20 for size in (64, 128, 200, 256, 320, 400, 512, 700, 1000, 1100, 1300, 1600)
    ),
}
FOLDERS = ("deleted", "unreadable", "shadows", "read-only", "[bold]a[/b]", "\udcff", "日本")
UNKNOWN_USER = 54_321


def draw_case(
    seed: int, number: int, material: Material, folder: Path, ray_share: float = 0.0,
    strangers: bool = False,
) -> Case:  # fmt: skip
    """The case of a number, with all its files in place."""
    random = Random(f"{seed}-{number}")
    drawer = Drawer(random, material, folder)
    drawer.inputs.mkdir(parents=True)
    for name in ("home", "tmp", "cwd", "out", "data/runs", "cache/datasets"):
        (folder / name).mkdir(parents=True)
    known = commands()
    command = random.choices(known, [one.weight for one in known])[0]
    words = _whole_line(random, drawer, command, ray_share)
    case = Case(number, folder, words, ray=drawer.ray)
    _fill_home(random, material, folder)
    small = 0.3 * random.random()
    for name, values in ENVIRONMENT.items():
        if random.random() < small / 3:
            value = random.choice(values)
            case.environment[name] = value and value.replace("@", f"{folder}/")
    stranger = random.random() < 0.08  # drawn in any case, so that the rest is the same
    unset = [name for name in ("HOME", "DISTSGD_HOME", "USER") if random.random() < 0.5]
    if stranger and strangers:
        case.user = UNKNOWN_USER
        case.environment.update(dict.fromkeys(unset))
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
    """Mostly a command with its options; sometimes less, or with typing errors."""
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
        "DISTSGD_CLUSTER_HOME": f"{case.folder}/cluster", "NPM_CONFIG_REGISTRY": nowhere,
        "NPM_CONFIG_FETCH_RETRIES": "0",
        "http_proxy": nowhere, "https_proxy": nowhere, "AWS_ENDPOINT_URL": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true", "GCE_METADATA_HOST": CLOSED_ADDRESS,
        "PYTHONDONTWRITEBYTECODE": "1",  # a limit of file sizes would leave half of a module
        MARK: str(case.folder), **case.environment,
    }  # fmt: skip
    if known["HOME"] is None and not case.user:  # what is left is the home of this very user
        known["DISTSGD_HOME"] = known["DISTSGD_HOME"] or f"{case.folder}/data"
        known["DISTSGD_CACHE"] = known["DISTSGD_CACHE"] or f"{case.folder}/cache"
    return {name: value for name, value in known.items() if value is not None}
