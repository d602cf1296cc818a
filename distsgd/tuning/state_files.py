"""W and optimizer state of the trials of a search, in files, so that a killed one goes on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.data.folder_files import names_inside, reader_inside, remove_inside
from distsgd.runs.array_archive import ArrayArchive
from distsgd.tuning.stacked import SettingState
from distsgd.tuning.study_folder import StudyFolder

__all__ = ["StateFiles"]

_FOLDER = "states"


class StateFiles:
    """A file for each epoch of trials that are trained together; older ones are removed.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._study, self._folder = folder, folder.make(_FOLDER)
        self._newest: dict[int, str] = {}  # trial -> its file

    def save(self, states: Mapping[int, SettingState]) -> str:
        """Write the states of trials, which have been trained for the same epochs.

        Args:
            states: by number of the trial.

        Returns:
            the name of the file; "" if there are none.
        """
        if not states:
            return ""
        epoch = next(iter(states.values())).epoch
        name = f"epoch-{epoch:06d}-trial-{min(states):06d}.npz"
        arrays: dict[str, Any] = {
            f"{number}.{key}": array
            for number, state in states.items()
            for key, array in state.arrays().items()
        }
        content = io.BytesIO()
        np.savez(content, **arrays)
        self._study.write(f"{_FOLDER}/{name}", content.getvalue())
        return name

    def kept(self, name: str, trials: Iterable[int]) -> None:
        """A line of the study says now where these trials are: files of nobody are removed."""
        before = set(self._newest.values())
        self._newest.update(dict.fromkeys(trials, name))
        for old in before - set(self._newest.values()):
            with suppress(OSError):
                remove_inside(self._folder / old)

    def forget(self, trials: Iterable[int]) -> None:
        """These trials are trained no further."""
        before = set(self._newest.values())
        for number in trials:
            self._newest.pop(number, None)
        for old in before - set(self._newest.values()):
            with suppress(OSError):
                remove_inside(self._folder / old)

    def read(self, name: str, trial: int, epoch: int) -> SettingState | None:
        """The state of a trial; None if its file is missing or damaged."""
        prefix = f"{trial}."
        try:
            with reader_inside(self._folder / Path(name).name) as file:
                archive = ArrayArchive(file)
                arrays = {
                    key.removeprefix(prefix): archive[key]
                    for key in archive
                    if key.startswith(prefix)
                }
                state = SettingState.from_arrays(epoch, arrays)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            return None
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return None
        self._newest[trial] = Path(name).name
        return state

    def sweep(self) -> None:
        """Remove the files that no trial needs, such as that of a killed write."""
        with suppress(OSError):
            for name in set(names_inside(self._folder, below=self._study.path)):
                if name not in self._newest.values():
                    remove_inside(self._folder / name)
