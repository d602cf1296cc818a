"""Draws run folders, datasets and sources of data that are made to do harm.

Chains and digests have no key: whoever changes a file can recompute them, and so does this.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

ODD = (
    0, -1, 1, 2**31, 2**53, 2**63, -(2**63), 10**12, 10**15, 10**30, 10**4000, 1e400, -1e400,
    1e-320, float("nan"), 0.5, True, None, "", "0", "x" * 300, "\x1b[31m\x07", "\udcff",
    "../../outside/file", "日本\u202e", [], [[]], [0] * 1000, {}, {"a": {}},
)  # fmt: skip
"""What may replace any value of a JSON file."""

RUN_FILES = ("config.json", "metrics.jsonl", "journal.jsonl", "report.json", ".running",
             "kernels.json", "tags.json", "workers.json", "checkpoints")  # fmt: skip

RUN_COMMANDS = ("runs list", "runs show RUN", "audit RUN", "replay RUN", "evaluate RUN",
                "evaluate RUN --best --split train", "predict RUN PICTURE", "resume RUN",
                "landscape --run RUN --along run --points 3 --plot OUT", "scale RUN --workers 2",
                "submit --resume RUN --address 127.0.0.1:1")  # fmt: skip
DATASET_COMMANDS = ("data info --dataset SET", "data verify --dataset SET", "data list",
                    "train --dataset SET --workers 0 --epochs 1", "evaluate GOOD --dataset SET",
                    "gradcheck --dataset SET", "stepsize --dataset SET")  # fmt: skip
SOURCE_COMMANDS = (
    "data import SOURCE --name made", "predict ROWS SOURCE", "predict GOOD SOURCE",
    "train --config SOURCE --workers 0 --epochs 1", "simulate --scenario SOURCE",
)  # fmt: skip
COMMANDS = {"run": RUN_COMMANDS, "set": DATASET_COMMANDS, "source": SOURCE_COMMANDS}


@dataclass
class Hostile:
    """One hostile folder, with its surroundings.

    Attributes:
        random: all that is left to chance.
        folder: of the case; the harm is in ``folder / "in"``.
        material: sound files.
        port: of a listener that nothing may connect to.
        said: what was done to it.
    """

    random: Random
    folder: Path
    material: Path
    port: int
    said: list[str]

    @property
    def outside(self) -> Path:
        """Files that no command may touch."""
        return self.folder / "outside"

    def draw(self) -> str:
        """Make it; returns its kind: "run", "set" or "source"."""
        kind = self.random.choice(("run", "run", "run", "set", "set", "source"))
        for name in ("in", "outside", "home/runs", "cache/datasets", "cwd"):
            (self.folder / name).mkdir(parents=True)
        shutil.copytree(self.material / "good", self.outside / "run")
        shutil.copytree(self.material / "sample", self.outside / "sample")
        (self.outside / "file").write_text("mine\n")
        (self.outside / "empty").mkdir()
        shutil.copytree(self.material / "columns", self.folder / "cache/datasets/columns")
        if kind == "source":
            self._draw_source()
            return kind
        run, data = self.folder / "in/run", self.folder / "in/set"
        which = self.random.choice(("good", "asp", "local", "backup", "topk", "bounded"))
        self.said.append(f"a run of the kind {which}" if kind == "run" else "a dataset")
        shutil.copytree(self.material / which, run)
        shutil.copytree(self.material / "sample", data)
        if kind == "run":
            link = self.folder / "home/runs/listed"
            link.symlink_to(run, target_is_directory=True)
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            chosen = self.random.choice(_OF_RUN if kind == "run" else _OF_SET)
            if not (what := chosen(self, run if kind == "run" else data)):
                continue
            self.said.append(what)
        return kind

    def odd(self) -> Any:
        """Any value that does not belong there."""
        if self.random.random() < 0.2:
            return f"http://127.0.0.1:{self.port}/x"
        return self.random.choice(ODD)

    # ---------------------------------------------------------------- files

    def replace_by_special(self, folder: Path) -> str:
        """A link, pipe, device, socket or folder where a file was."""
        names = [*RUN_FILES, "checkpoints/*"] if folder.name == "run" else ["*"]
        path = self._one_of(folder, self.random.choice(names))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        kinds = [
            _link_to_file, _link_to_twin, _link_to_folder, _dangling, _loop, _link_to_device,
            _pipe, _socket, _folder, _hard_link,
        ]  # fmt: skip
        if os.geteuid() == 0:
            kinds.append(_device)
        chosen = self.random.choice(kinds)
        chosen(self, path)
        return f"{path.name}: {chosen.__name__}"

    def _one_of(self, folder: Path, pattern: str) -> Path:
        found = sorted(folder.glob(pattern))
        return self.random.choice(found) if found else folder / pattern.replace("*", "more")

    def raw(self, folder: Path) -> str:
        """Bytes that distsgd never writes."""
        name = self.random.choice((
            "config.json", "metrics.jsonl", "journal.jsonl", "report.json", "kernels.json",
            "manifest.json", "checkpoints/*", "*.arrow",
        ))  # fmt: skip
        path = self._one_of(folder, name)
        if not path.parent.is_dir():
            return ""
        what, content = self.random.choice(_RAW)
        path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
        if content is None:
            with path.open("wb") as file:
                file.truncate(self.random.choice((10**10, 10**12)))
        else:
            keep = self.random.random() < 0.5
            path.write_bytes((b"" if not keep else b'{"v": 1}\n') + content())
        return f"{path.name}: {what}"

    # ---------------------------------------------------------------- validly signed nonsense

    def odd_value(self, folder: Path) -> str:
        """Another value in a JSON file whose digest holds."""
        name = self.random.choice(("config.json", "report.json", "kernels.json", "workers.json"))
        path = folder / name
        content = _read_json(path)
        content.pop("digest", None)
        if not content:
            content = {"kernels": [], "workers": 1}
        if isinstance(content.get("settings"), dict) and self.random.random() < 0.7:
            key = self.random.choice(sorted(content["settings"]))
            value = content["settings"][key] = self._odd_setting(key, content)
            said = f"settings.{key}"
        else:
            said, value = self._change(content)
        _write_json(path, {**content, "digest": _digest([name, content])})
        return f"{name}: {said} = {value!r:.60}"

    def _odd_setting(self, key: str, content: dict[str, Any]) -> Any:
        there = f"127.0.0.1:{self.port}"
        if key == "dataset" and self.random.random() < 0.8:
            content["dataset"]["folder"] = str(self.folder / "in/nowhere")
            return self.random.choice((
                f"s3://b/x?endpoint_override={there}&scheme=http", f"http://{there}/x",
                f"https://{there}/x", f"gs://b/x?endpoint_override={there}&scheme=http",
                f"file://{self.outside}/sample", f"//{there}/share", str(self.outside / "run"),
                f"s3://key:secret@b/x?endpoint_override=http://{there}", "/dev/zero",
                "/proc/self/fd/0",
            ))  # fmt: skip
        if key == "model" and self.random.random() < 0.7:
            return self.random.choice(("mlp:10000", "mlp:1000000000", "mlp:-1", "mlp:1"))
        return self.odd()

    def _change(self, content: Any) -> tuple[str, Any]:
        """Another value somewhere in it."""
        here, where = content, ""
        while True:
            keys = sorted(here) if isinstance(here, dict) else list(range(len(here)))
            key = self.random.choice(keys)
            where += f".{key}"
            if isinstance(here[key], dict | list) and here[key] and self.random.random() < 0.8:
                here = here[key]
                continue
            here[key] = self.odd()
            return where[1:], here[key]

    def journal(self, folder: Path) -> str:
        """Changed lines, with a chain that holds."""
        from distsgd.runs.journal import chained
        from distsgd.runs.opened_run import open_run

        path, said = folder / "journal.jsonl", []
        try:
            digest = open_run(folder).first
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        except Exception:  # it has been changed before
            return ""
        first = [lines.pop(0)] if "o" in lines[0] else []
        for line in lines:
            line.pop("d", None)
        if first:
            digest = first[0]["d"]
        for _ in range(self.random.choice((1, 1, 2))):
            said.append(self._forge(lines))
        with path.open("w") as file:
            for line in first:
                file.write(json.dumps(line) + "\n")
            for line in lines:
                digest = chained(digest, line)
                file.write(json.dumps({**line, "d": digest}) + "\n")
        if self.random.random() < 0.7:  # what else would tell
            (folder / "report.json").unlink(missing_ok=True)
            for checkpoint in sorted((folder / "checkpoints").glob("*.npz"))[1:]:
                checkpoint.unlink()
        return "journal: " + ", ".join(said)

    def _forge(self, lines: list[dict[str, Any]]) -> str:
        random = self.random
        at = random.randrange(len(lines))
        line = lines[at]
        kind = random.choice(("value",) * 3 + ("resumed", "resized", "again", "q", "long"))
        if kind == "resumed":
            entry: dict[str, Any] = {"r": at, "e": 3, "n": 0, "s": 1, "h": "auto"}
            if random.random() < 0.8:
                entry[random.choice("rensh")] = self.odd()
            lines.insert(at, entry)
        elif kind == "resized":
            lines.insert(at, {"w": random.choice((2, 3, self.odd()))})
        elif kind == "again":
            lines.insert(at, line)
        elif kind == "q":
            line["q"] = [[n, at, 0, 10**12] for n in range(random.choice((1, 10, 10_000)))]
        elif kind == "long":
            line["c"] = [[0, at, 0, 7, at, 1, 0, at]] * random.choice((2, 100_000))
        else:
            where, value = self._change(line)
            return f"line {at}: {where} = {value!r:.60}"
        return f"{kind} at {at}"

    def metrics(self, folder: Path) -> str:
        """Records with a checksum that holds."""
        record: dict[str, Any] = {
            "kind": "epoch", "version": 8, "epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5,
            "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0,
        }  # fmt: skip
        where, value = self._change(record)
        count = self.random.choice((1, 3, 50_000))
        text = json.dumps({**record, "c": zlib.crc32(json.dumps(record, sort_keys=True).encode())})
        with (folder / "metrics.jsonl").open("a" if self.random.random() < 0.5 else "w") as file:
            file.write((text + "\n") * count)
        return f"metrics: {count} records with {where} = {value!r:.60}"

    def checkpoint(self, folder: Path) -> str:
        """Changed arrays and metadata, with a checksum that holds."""
        import numpy as np

        path = self._one_of(folder / "checkpoints", "*.npz")
        try:
            with np.load(path) as file:
                arrays: dict[str, Any] = dict(file)
            meta, said = json.loads(arrays.pop("meta").tobytes()), ""
        except Exception:  # it has been changed before
            return ""
        if self.random.random() < 0.5:
            name = self.random.choice(sorted(arrays))
            how = self.random.choice(sorted(_ARRAYS))
            arrays[name] = _ARRAYS[how](arrays[name])
            said = f"{name} {how}"
        else:
            where, value = self._change(meta)
            said = f"{where} = {value!r:.60}"
        digest = hashlib.sha256()
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
        if "sha256" in meta:
            meta["sha256"] = digest.hexdigest()
        save = self.random.choice((np.savez, np.savez, np.savez, np.savez_compressed))
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        save(path, meta=text, **arrays)  # type: ignore[operator]
        return f"checkpoint: {said}, {save.__name__}"

    def archive(self, folder: Path) -> str:
        """A checkpoint that unpacks to gigabytes, or says so."""
        path = self._one_of(folder / "checkpoints", "*.npz")
        if not path.parent.is_dir():
            return ""
        what = self.random.choice(sorted(_ARCHIVES))
        path.write_bytes(_ARCHIVES[what]())
        return f"checkpoint: {what}"

    def manifest(self, folder: Path) -> str:
        """Another value in the manifest of a dataset, whose digest holds."""
        path = folder / "manifest.json"
        content = _read_json(path)
        content.pop("digest", None)
        if not content:
            return ""
        kind = self.random.random()
        if kind < 0.15:
            content["classes"] = ["a\x1b", "b"] * self.random.choice((1, 6_000, 500_000))
            said, value = "classes", "many"
        elif kind < 0.3:
            content["shape"] = self.random.choice(
                ([10**9], [1, 10**9], [2**31, 2**31, 3], [0], [-3, -32, 32], [3, 32, 33])
            )
            content["pixel_sums"] = content["pixel_sums"][: self.random.choice((0, 3072))]
            said, value = "shape", content["shape"]
        elif kind < 0.4:
            content["train"] = content["train"] * self.random.choice((2, 20_000))
            for number, shard in enumerate(content["train"]):
                content["train"][number] = {**shard, "file": f"s-{number}.arrow"}
            said, value = "train", f"{len(content['train'])} shards"
        else:
            said, value = self._change(content)
        _write_json(path, {**content, "digest": _digest(content)})
        return f"manifest: {said} = {value!r:.60}"

    def shard(self, folder: Path) -> str:
        """A shard that Arrow has to unpack, or of another shape; the manifest fits it."""
        path = self._one_of(folder, "*.arrow")
        if not path.is_file() or path.is_symlink():
            return ""
        what = self.random.choice(sorted(_SHARDS))
        try:
            content = _read_json(folder / "manifest.json")
            path.write_bytes(_SHARDS[what](path))
        except (OSError, ValueError, KeyError):
            return ""
        content.pop("digest", None)
        for shard in (*content.get("train", ()), *content.get("test", ())):
            if isinstance(shard, dict) and shard.get("file") == path.name:
                shard["size"] = path.stat().st_size
                shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        _write_json(folder / "manifest.json", {**content, "digest": _digest(content)})
        return f"{path.name}: {what}"

    def remote(self, folder: Path) -> str:
        """A dataset that names another place as its source."""
        there = f"127.0.0.1:{self.port}"
        uri = self.random.choice((
            f"http://{there}/x", f"s3://b/x?endpoint_override={there}&scheme=http",
            f"file://{self.outside}/sample", f"http://{there}/" + "x" * 10**6, {"a": 1}, 5,
        ))  # fmt: skip
        (folder / "source.json").write_text(json.dumps({"uri": uri}))
        if self.random.random() < 0.5:
            for path in folder.glob("*.arrow"):
                path.unlink()
        return f"source.json: {uri!r:.60}"

    def _draw_source(self) -> None:
        name = self.random.choice(sorted(_SOURCES))
        path = self.folder / "in" / name
        if self.random.random() < 0.15:
            kinds = [_link_to_folder, _dangling, _loop, _link_to_device, _pipe, _socket]
            chosen = self.random.choice(kinds)
            chosen(self, path)
            self.said.append(f"{name}: {chosen.__name__}")
        else:
            _SOURCES[name](self, path)
            self.said.append(name)

    def source(self) -> Path:
        """The one file or folder in it."""
        return next((self.folder / "in").iterdir())


_OF_RUN: list[Callable[[Hostile, Path], str]] = [
    Hostile.replace_by_special, Hostile.replace_by_special, Hostile.raw, Hostile.odd_value,
    Hostile.odd_value, Hostile.journal, Hostile.journal, Hostile.metrics, Hostile.checkpoint,
    Hostile.checkpoint, Hostile.archive,
]  # fmt: skip
_OF_SET: list[Callable[[Hostile, Path], str]] = [
    Hostile.replace_by_special, Hostile.raw, Hostile.manifest, Hostile.manifest, Hostile.shard,
    Hostile.shard, Hostile.remote,
]  # fmt: skip


# -------------------------------------------------------------------- files that are none


def _link_to_file(case: Hostile, path: Path) -> None:
    path.symlink_to(case.outside / "file")


def _link_to_twin(case: Hostile, path: Path) -> None:
    """To the same file of another run, or of another dataset."""
    names = [case.outside / kind / path.name for kind in ("run", "run/checkpoints", "sample")]
    path.symlink_to(next((twin for twin in names if twin.exists()), names[0]))


def _link_to_folder(case: Hostile, path: Path) -> None:
    path.symlink_to(case.outside / "run", target_is_directory=True)


def _dangling(case: Hostile, path: Path) -> None:
    path.symlink_to(case.outside / "new")


def _loop(case: Hostile, path: Path) -> None:
    path.symlink_to(path)


def _link_to_device(case: Hostile, path: Path) -> None:
    path.symlink_to(case.random.choice(("/dev/zero", "/dev/tty", "/dev/full", "/proc/self/mem")))


def _hard_link(case: Hostile, path: Path) -> None:
    twin = case.outside / "run" / path.name
    path.hardlink_to(twin if twin.is_file() else case.outside / "file")


def _pipe(case: Hostile, path: Path) -> None:
    os.mkfifo(path)


def _socket(case: Hostile, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # its name may not be long
        made.bind(path.name)
        os.chdir(before)


def _folder(case: Hostile, path: Path) -> None:
    path.mkdir()


def _device(case: Hostile, path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zero


# -------------------------------------------------------------------- contents


_RAW: list[tuple[str, Callable[[], bytes] | None]] = [
    ("deep JSON", lambda: b"[" * 200_000),
    ("deep objects", lambda: b'{"a":' * 200_000),
    ("a million digits", lambda: b'{"v": ' + b"9" * 10**6 + b"}\n"),
    ("NaN", lambda: b'{"v": NaN, "s": Infinity, "d": -Infinity}\n'),
    ("keys twice", lambda: b'{"v": 1, "v": 2, "d": "x", "d": "y"}\n'),
    ("one line of 20 MB", lambda: b'{"a": "' + b"x" * 20_000_000),
    ("many lines", lambda: b'{"v":1,"s":0,"c":[],"q":[],"d":"0"}\n' * 300_000),
    ("many small lists", lambda: b"[" + b"[]," * 5_000_000 + b"[]]"),
    ("no text", lambda: bytes(range(256)) * 100),
    ("zeros", lambda: bytes(10_000)),
    ("nothing", lambda: b""),
    ("a hole of gigabytes", None),
]


def _arrays() -> dict[str, Callable[[Any], Any]]:
    import numpy as np

    return {
        "complex": lambda a: a.astype(np.complex64), "objects": lambda a: a.astype(object),
        "text": lambda a: a.astype("U9"), "NaN": lambda a: a * np.nan,
        "infinite": lambda a: a + np.inf, "dates": lambda a: a.astype("M8[s]"),
        "whole": lambda a: a.astype(np.int64), "huge": lambda a: np.full(a.shape, 3e38, a.dtype),
        "flat": lambda a: a.reshape(-1), "empty": lambda a: a[:0], "one": lambda a: np.float32(1),
        "short": lambda a: a[:-1], "half": lambda a: a.astype(np.float16),
        "fortran": np.asfortranarray, "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
        "record": lambda a: np.zeros(3, [("a", "f4")]), "void": lambda a: np.zeros(3, "V8"),
    }  # fmt: skip


class _Lazily(dict[str, Any]):
    """Filled when it is first read, since that imports numpy."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._make = make

    def __iter__(self) -> Any:
        if not len(self):
            self.update(self._make())
        return super().__iter__()


_ARRAYS = _Lazily(_arrays)


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    """The beginning of an .npy file."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def zipped(members: dict[str, bytes | None], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive; of a member that is None a gigabyte of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind, compresslevel=1) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                if content is None:
                    file.write(npy_header("(268435456,)"))
                    for _ in range(64):
                        file.write(bytes(1 << 24))
                else:
                    file.write(content)
    return buffer.getvalue()


_BOMB: list[bytes] = []


def _bomb() -> bytes:
    """A gigabyte of zeros in a megabyte, made once."""
    if not _BOMB:
        _BOMB.append(zipped({"meta.npy": None}))
    return _BOMB[0]


_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a gigabyte in a megabyte": _bomb,
    "a petabyte claimed": lambda: zipped({"meta.npy": npy_header(f"({10**15},)")}, 0),
    "a negative shape": lambda: zipped({"meta.npy": npy_header("(-1, 5)")}, 0),
    "a deep header": lambda: zipped({"meta.npy": npy_header("(" * 50 + ")" * 50)}, 0),
    "many arrays": lambda: zipped({f"{n}.npy": npy_header("(0,)") for n in range(50_000)}, 0),
    "objects": lambda: zipped({"meta.npy": npy_header("(1,)", "|O") + b"\x80\x04."}, 0),
    "an empty archive": lambda: zipped({}),
    "a list that claims gigabytes": lambda: _ending(
        zipped({"meta.npy": npy_header("(0,)")}), 0xFFFFFFF0),
    "names that lead outside": lambda: zipped({"../../outside/file": b"yours"}, 0),
}  # fmt: skip


def _ending(content: bytes, length: int) -> bytes:
    at = content.rindex(b"PK\5\6") + 12
    return content[:at] + struct.pack("<I", length) + content[at + 4 :]


def _shard(compression: str | None, rows: int, width: int) -> Callable[[Path], bytes]:
    """An Arrow file, perhaps compressed, of so many rows; 0 for those of the shard before."""

    def make(path: Path) -> bytes:
        import numpy as np
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            schema, before = (opened := pa.ipc.open_file(file)).schema, opened.get_batch(0).num_rows
        count = rows or before
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        kind = schema.field("image").type
        storage = pa.FixedSizeListArray.from_arrays(
            pa.array(np.zeros(count * width, np.uint8)), width
        )
        image = pa.ExtensionArray.from_storage(kind, storage) if width == 3072 else storage
        columns = [image, pa.array(np.zeros(count, np.uint8))]
        if width != 3072:
            schema = pa.schema([("image", storage.type), ("label", pa.uint8())])
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        return bytes(sink.getvalue())

    return make


def _claims(path: Path) -> bytes:
    """A compressed shard whose buffer claims 2^50 bytes."""
    content = bytearray(_shard("zstd", 0, 3072)(path))
    at = content.find(struct.pack("<q", 3072))
    found = next(
        (n for n in range(0, len(content) - 8, 8)
         if 10**6 < struct.unpack_from("<q", content, n)[0] < 10**7
         and content[n + 8 : n + 12] == b"\x28\xb5\x2f\xfd"), at,
    )  # fmt: skip
    if found >= 0:
        struct.pack_into("<q", content, found, 2**50)
    return bytes(content)


_SHARDS: dict[str, Callable[[Path], bytes]] = {
    "compressed by zstd": _shard("zstd", 0, 3072),
    "300,000 rows compressed": _shard("zstd", 300_000, 3072),
    "compressed by lz4": _shard("lz4", 0, 3072),
    "a petabyte claimed": _claims,
    "other columns": _shard(None, 10, 5),
    "fewer rows": _shard(None, 1, 3072),
    "half of it": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "zeros": lambda path: path.read_bytes()[:200] + bytes(path.stat().st_size - 200),
    "random": lambda path: Random(0).randbytes(100_000),
}


# -------------------------------------------------------------------- sources of data


def _table(compression: str, rows: int) -> Callable[[Hostile, Path], None]:
    def write(case: Hostile, path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {f"c{n}": np.zeros(rows) for n in range(3)}
        table = pa.table({**columns, "label": np.zeros(rows, np.int64)})
        pq.write_table(table, path, compression=compression, row_group_size=rows)

    return write


def _texts(case: Hostile, path: Path) -> None:
    """A column of long texts that are all alike: a dictionary of one entry."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    long = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 10**7])
    pq.write_table(pa.table({"u": pa.array([0.0] * 2000), "label": long}), path)


def _picture(width: int, height: int) -> Callable[[Hostile, Path], None]:
    """A PNG of one colour, of few bytes."""

    def write(case: Hostile, path: Path) -> None:
        def chunk(kind: bytes, content: bytes) -> bytes:
            whole = kind + content
            return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        packer = zlib.compressobj(1)
        rows = height if width * height < 2 * 10**8 else 3  # more than that is only claimed
        body = b"".join(packer.compress(bytes(3 * min(width, 10**5) + 1)) for _ in range(rows))
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")
        )  # fmt: skip

    return write


def _photos(case: Hostile, path: Path) -> None:
    """Folders of classes with links out of them, pipes, and files that are not pictures."""
    for kind in ("a", "b\x1b[31m", "c" * 200):
        (path / kind).mkdir(parents=True)
        (path / kind / "link.png").symlink_to(case.outside / "file")
        (path / kind / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        os.mkfifo(path / kind / "pipe.png")
    (path / "loop").symlink_to(path, target_is_directory=True)
    _picture(13_000, 13_000)(case, path / "a/large.png")


def _bytes(content: Callable[[], bytes]) -> Callable[[Hostile, Path], None]:
    def write(case: Hostile, path: Path) -> None:
        path.write_bytes(content())

    return write


_CSV = b"u,v,label\n1,2,a\n3,4,b\n"
_SOURCES: dict[str, Callable[[Hostile, Path], None]] = {
    "bomb.npz": _bytes(_bomb),
    "images.npz": _bytes(lambda: zipped({"x.npy": None, "y.npy": None})),
    "claims.npz": _bytes(lambda: zipped({
        "x.npy": npy_header("(1000000000000, 3)"), "y.npy": npy_header("(1000000000000,)")})),
    "wide.npz": _bytes(lambda: zipped({
        "x.npy": npy_header("(1, 1000000000000)"), "y.npy": npy_header("(1,)") + bytes(4)})),
    "negative.npz": _bytes(lambda: zipped({
        "x.npy": npy_header("(-5, 3)"), "y.npy": npy_header("(-5,)")})),
    "many.npz": _bytes(lambda: zipped({f"{n}.npy": b"" for n in range(20_000)}, 0)),
    "objects.npz": _bytes(lambda: zipped({
        "x.npy": npy_header("(2,)", "|O") + b"cos\nsystem\n(S'touch pwned'\ntR.",
        "y.npy": npy_header("(2,)") + bytes(8)})),
    "same.parquet": _table("zstd", 1_000_000), "texts.parquet": _texts,
    "snappy.parquet": _table("snappy", 1_000_000),
    "raw.parquet": _bytes(lambda: b"PAR1" + b"\xff" * 100 + struct.pack("<I", 2**31) + b"PAR1"),
    "bomb.csv.gz": _bytes(lambda: gzip.compress(bytes(3 * 10**8), 1)),
    "line.csv.bz2": _bytes(lambda: bz2.compress(b"u,label\n" + b"1" * 10**8)),
    "long.csv": _bytes(lambda: _CSV + b"1," * 5_000_000),
    "wide.csv": _bytes(lambda: b",".join(b"c%d" % n for n in range(200_000)) + b"\n1\n"),
    "quote.csv": _bytes(lambda: _CSV + b'"' + b"x" * 20_000_000),
    "digits.csv": _bytes(lambda: _CSV + b"9" * 10**6 + b",1,a\n"),
    "names.csv": _bytes(lambda: "\x1b[31m,\x07,label\n1,2,\u202ea\n3,4,\x1b]0;x\x07\n".encode()),
    "nul.csv": _bytes(lambda: bytes(10**7)),
    "large.png": _picture(13_000, 13_000), "huge.png": _picture(60_000, 60_000),
    "claims.png": _picture(2**31 - 1, 2**31 - 1), "photos": _photos,
    "deep.toml": _bytes(lambda: b"a = " + b"[" * 100_000),
    "tables.toml": _bytes(lambda: b"[" + b"a." * 50_000 + b"a]\nb = 1\n"),
    "keys.toml": _bytes(lambda: b"".join(b"k%d = 1\n" % n for n in range(100_000))),
    "digits.json": _bytes(lambda: b'{"settings": {"seed": ' + b"9" * 10**6 + b"}}"),
    "lists.json": _bytes(lambda: b"[" + b"[]," * 5_000_000 + b"[]]"),
    "settings.json": _bytes(lambda: json.dumps({"settings": {"batch_size": 10**15,
                                                            "epochs": 10**9}}).encode()),
}  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one if the file has been replaced."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > 10**7:
            return {}
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    if not path.exists() or stat.S_ISREG(path.lstat().st_mode):
        if path.is_symlink():
            return
        path.write_text(json.dumps(content, indent=1))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
