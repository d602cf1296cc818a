from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distsgd.errors import StorageError
from distsgd.run.line_file import LineFile


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As a full disk: what goes beyond is not written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_lines_wait_for_room_and_the_file_ends_with_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    for number in range(10):
        file.write({"n": number})
    file.flush()
    with files_no_longer_than(path.stat().st_size + 15):
        for number in range(10, 30):
            file.write({"n": number})
        with pytest.raises(StorageError, match=r"cannot write .*lines\.jsonl"):
            file.flush()
        assert numbers(path) == list(range(10))
    file.write({"n": 30})
    file.sync()
    assert numbers(path) == list(range(31))
    file.close()


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    for number in range(3):
        file = LineFile(tmp_path / "lines.jsonl")
        file.write({"n": number})
        file.close()
    assert numbers(tmp_path / "lines.jsonl") == [0, 1, 2]
    assert (tmp_path / "lines.jsonl").stat().st_mode & 0o777 == 0o600
