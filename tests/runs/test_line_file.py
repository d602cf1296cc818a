from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distsgd.errors import RunError, StorageError
from distsgd.runs.line_file import LineFile
from distsgd.runs.metrics import MetricsWriter, read_metrics


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


def test_a_last_line_that_was_cut_is_removed_and_metrics_go_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in range(2):
        writer = MetricsWriter(path)
        writer.write({"n": number})
        writer.close()
        with path.open("ab") as file:
            file.write(b'{"n": 7' + b" " * (1 << 17))
    writer = MetricsWriter(path)
    writer.write({"n": 2})
    writer.close()
    assert read_metrics(path) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", ['{"n": 1}', '{"n": 1, "c": 5}', "[]"])
def test_metrics_without_their_checksum_are_damaged(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match=r"line 1 of .* is damaged"):
        read_metrics(path)
