"""Files of a folder that somebody else may have made; and that no module opens them otherwise."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import PATIENCE

import distsgd
from distsgd.data.folder_files import (
    names_inside,
    open_inside,
    read_inside,
    remove_inside,
    replace_inside,
    stat_inside,
)
from distsgd.data.lock_file import LockFile, is_locked
from distsgd.errors import NotPlainFile

PACKAGE = Path(distsgd.__file__).parent


def a_socket(path: Path) -> None:
    """Bound by a short name: that of a socket must be."""
    folder = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


KINDS: dict[str, Callable[[Path], object]] = {
    "a symbolic link": lambda path: path.symlink_to(path.parent.parent / "elsewhere"),
    "a pipe": os.mkfifo,
    "a socket": a_socket,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "use",
    [
        read_inside,
        stat_inside,
        lambda path: open_inside(path, os.O_RDWR | os.O_CREAT),
        lambda path: open_inside(path, os.O_WRONLY | os.O_APPEND),
        lambda path: LockFile(path).acquire(),
    ],
)
def test_what_is_no_plain_file_is_refused(
    folder: Path, kind: str, use: Callable[[Path], object]
) -> None:
    KINDS[kind](folder / "file")
    with pytest.raises(NotPlainFile, match=f"it is {kind}, not a file") as caught:
        use(folder / "file")
    assert caught.value.filename == str(folder / "file")
    assert not is_locked(folder / "file")
    assert (folder.parent / "elsewhere").read_bytes() == b"precious"


def test_a_file_with_a_second_name_is_read_and_not_written(folder: Path) -> None:
    (folder / "file").hardlink_to(folder.parent / "elsewhere")
    assert read_inside(folder / "file") == b"precious"
    with pytest.raises(NotPlainFile, match="hard link"):
        open_inside(folder / "file", os.O_RDWR)
    replace_inside(folder / "file", b"new")
    assert (folder.parent / "elsewhere").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_and_removing_touch_the_name_alone(folder: Path, kind: str) -> None:
    beside = folder / f".file.{os.getpid()}.tmp"
    for name in (beside, folder / "file"):
        KINDS[kind](name)
    replace_inside(folder / "file", b"new")
    assert read_inside(folder / "file") == b"new" and not beside.exists()
    KINDS[kind](folder / "other")
    remove_inside(folder / "other")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder.parent / "elsewhere").read_bytes() == b"precious"


def test_a_folder_within_is_no_link_and_the_folder_itself_may_be_one(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_bytes(b"content")
    (folder.parent / "name").symlink_to(folder, target_is_directory=True)
    path = folder.parent / "name" / "inner" / "file"
    assert read_inside(path, below=path.parent.parent) == b"content"
    assert names_inside(path.parent, below=path.parent.parent) == ["file"]

    (folder / "link").symlink_to("inner", target_is_directory=True)
    path = folder / "link" / "file"
    for use in (read_inside, remove_inside, lambda p, below: replace_inside(p, b"", below=below)):
        with pytest.raises(NotPlainFile, match="link is a symbolic link, not a folder"):
            use(path, below=folder)  # type: ignore[operator]
    with pytest.raises(NotPlainFile, match="it is a symbolic link, not a folder"):
        names_inside(path.parent, below=folder)
    assert read_inside(folder / "inner" / "file") == b"content"


def test_a_file_may_be_too_large(folder: Path) -> None:
    (folder / "file").touch()
    os.truncate(folder / "file", 1 << 40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes, more than such a file ever has"):
        read_inside(folder / "file", most=1 << 20)


def test_a_lock_is_held_by_one_and_keeps_what_the_file_has(folder: Path) -> None:
    (folder / "lock").write_bytes(b"content")
    first, second = LockFile(folder / "lock"), LockFile(folder / "lock")
    assert not is_locked(folder / "lock")
    assert first.acquire() and is_locked(folder / "lock")
    assert not second.acquire(wait=False)
    first.release()
    assert second.acquire(wait=False)
    second.release()
    assert (folder / "lock").read_bytes() == b"content"


def test_a_lock_ends_with_its_process(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distsgd.data.lock_file import LockFile;"
        "lock = LockFile(Path(sys.argv[1])); lock.acquire(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not LockFile(folder / "lock").acquire(wait=False)
        holder.kill()
        holder.wait(PATIENCE)
    assert LockFile(folder / "lock").acquire(wait=False)


# --- the scan

OPENS = {
    "open", "read_bytes", "read_text", "write_bytes", "write_text", "touch", "memmap",
    "memory_map", "OSFile", "FileLock", "copyfile", "np.load", "np.save", "np.fromfile",
    "os.truncate",
}  # fmt: skip
"""Calls that open a file by its path, whoever made it: functions, and methods of any object."""

PARTS = (
    "runs", "config", "proof", "training", "simulation", "cli", "transport", "data",
    "tuning", "serving", "advice", "sklearn",
)  # fmt: skip
"""Layers that read and write run folders, datasets and caches."""

ELSEWHERE = {
    "data/folder_files.py": "the mechanism",
    "data/atomic.py": "files that the user names, and folders of ours to be synced",
    "data/text_files.py": "files that the user names",
    "data/importing/spool.py": "a file that the user names, and new ones of ours",
    "data/importing/images.py": "images that the user names",
    "data/cifar10/archive.py": "archives that the user names, and folders of them",
    "data/importing/csv_file.py": "files that the user names",
    "data/importing/npz.py": "files that the user names",
    "data/importing/parquet.py": "files that the user names",
    "data/remote/stores.py": "a store",
    "data/system.py": "/dev/null",
    "cli/docs_commands.py": "pages of the package, and a page made of them",
    "cli/streams.py": "/dev/null",
    "cli/stop_signals.py": "/dev/null",
}
"""Modules that open files of another kind, and which."""

ALLOWED = {
    ("data/verified.py", "read_text"): "/proc",
    ("data/shards.py", "write_text"): "a folder of ours that has just been made",
    ("data/shards.py", "memory_map"): "by `mappable`",
    ("data/shards.py", "OSFile"): "by `mappable`",
    ("data/plain_rows.py", "memory_map"): "by `mappable`",
    ("runs/array_archive.py", "open"): "a member of an archive that is open",
    ("config/sources.py", "read_text"): "a file that the user names",
    ("runs/origin.py", "read_text"): "files of git, from which a commit is taken and no more",
    ("cli/watch_commands.py", "open"): "a page in the browser",
    ("cli/model_commands.py", "open"): "a file that the user names",
    ("data/importing/given_rows.py", "open"): "a folder of ours that has just been made",
    ("serving/application.py", "read_bytes"): "files of the package",
    ("advice/machine.py", "read_text"): "a file that the user names",
    ("advice/health/storage.py", "read_text"): "/proc",
    ("advice/health/storage.py", "read_bytes"): "the token of Ray, whose place the user chooses",
    ("advice/health/surroundings.py", "read_text"): "/proc",
    ("simulation/scenario.py", "read_text"): "a file that the user names",
}


def opening_calls(source: str) -> Iterator[str]:
    """Calls of a module that open files by their paths."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if found := OPENS & {name, name.rpartition(".")[2]}:
                yield found.pop()


@pytest.mark.parametrize("part", PARTS)
def test_files_of_folders_are_opened_by_one_module(part: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / part).rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in ELSEWHERE:
            continue
        calls = opening_calls(path.read_text(encoding="utf-8"))
        wrong += [f"{name}: {call}" for call in calls if (name, call) not in ALLOWED]
    assert not wrong, "use distsgd.data.folder_files, or say why not in this test"


@pytest.mark.parametrize(
    "source",
    ["path.open('rb')", "open(path)", "os.open(path, 0)", "path.read_text()", "np.load(path)",
     "pa.memory_map(path)", "(folder / NAME).write_bytes(b'')", "FileLock(path)"],
)  # fmt: skip
def test_the_scan_finds(source: str) -> None:
    assert list(opening_calls(source))
