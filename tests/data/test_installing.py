"""Imports at the same time: neither removes what is the other's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from data_support import write_tiny

from distsgd.data.atomic import installed, locked_dataset
from distsgd.data.importing import import_dataset as import_module
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.data.locations import dataset_folder
from distsgd.errors import UsageError


def test_a_dataset_whose_name_begins_alike_is_not_swept(cache: Path) -> None:
    big, small = dataset_folder("flowers-big"), dataset_folder("flowers")
    big.parent.mkdir(parents=True)
    for name in ("flowers-big~x", "flowers-old-big~old-3"):
        (big.parent / f".{name}").mkdir()
    with installed(big) as beside:
        (beside / "half").write_text("an hour of work")
        with installed(small) as other:
            (other / "whole").write_text("done")
        with locked_dataset("flowers", print):
            pass
        assert (beside / "half").exists()
    assert (big / "half").exists() and (small / "whole").exists()
    assert {p.name for p in big.parent.glob(".*")} == {".flowers-old-big~old-3", ".flowers.lock"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700)])
def test_a_dataset_in_a_shared_cache_follows_the_umask(cache: Path, umask: int, mode: int) -> None:
    target = dataset_folder("flowers")
    target.parent.mkdir(parents=True)
    before = os.umask(umask)
    try:
        with installed(target) as beside:
            (beside / "manifest.json").write_text("{}")
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode


def test_a_dataset_that_came_while_another_was_opened_is_not_replaced(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "plain.csv"
    source.write_text("".join(f"{i},{i % 2}\n" for i in range(100)))
    opened = import_module.open_source

    def another_ends_first(*given: Any) -> Any:
        write_tiny(dataset_folder("plain"))
        return opened(*given)

    monkeypatch.setattr(import_module, "open_source", another_ends_first)
    dataset_folder("plain").parent.mkdir(parents=True)
    with pytest.raises(UsageError, match="there is a dataset 'plain'"):
        import_dataset(source, "plain", options=import_module.ImportOptions(label="-1"))
    assert '"tiny"' in (dataset_folder("plain") / "manifest.json").read_text()
