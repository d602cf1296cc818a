"""The metrics of a training as events for TensorBoard, by its own writer."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.data.locations import expanded
from distsgd.engine.events import Progress
from distsgd.errors import import_optional, storage_error
from distsgd.training.callbacks.callback import Callback
from distsgd.training.results import EpochRow, TrainResult

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes a folder of events for each run: ``tensorboard --logdir FOLDER`` shows them.

    Tags: ``loss/minibatch``, ``accuracy/minibatch``, ``learning_rate`` and ``images_per_second``
    for every record of the metrics; ``loss/train``, ``loss/test``, ``accuracy/train`` and
    ``accuracy/test`` for every epoch; ``settings`` and ``notice`` as text. Steps count updates.

    Args:
        folder: where; the events of a run go to a folder of its name in it.

    Raises:
        DistsgdError: tensorboard is not installed.
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = expanded(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self._folder) from None
        self._writers = import_optional(
            "tensorboard.summary.writer.event_file_writer", "tensorboard"
        )
        self._events = import_optional("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summaries = import_optional("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._tensors = import_optional("tensorboard.compat.proto.tensor_pb2", "tensorboard")
        self._shapes = import_optional("tensorboard.compat.proto.tensor_shape_pb2", "tensorboard")
        self._writer: Any = None
        self._step, self._per_epoch = 0, 1.0

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """Open the file, and write the settings."""
        self._writer = self._writers.EventFileWriter(str(self._folder / run_dir.name))
        self._per_epoch = total_steps / max(1, config.epochs)
        rows = "".join(f"| {name} | {value} |\n" for name, value in asdict(config).items())
        self._text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def progress(self, progress: Progress) -> None:
        """Write a record of the metrics."""
        self._step = progress.step
        self._numbers(
            progress.step,
            {
                "loss/minibatch": progress.loss,
                "accuracy/minibatch": progress.accuracy,
                "learning_rate": progress.learning_rate,
                "images_per_second": progress.examples_per_second,
            },
        )

    def epoch(self, row: EpochRow) -> None:
        """Write an epoch."""
        self._numbers(
            round(row.epoch * self._per_epoch),
            {
                "loss/train": row.train_loss,
                "loss/test": row.test_loss,
                "accuracy/train": row.train_accuracy,
                "accuracy/test": row.test_accuracy,
            },
        )

    def notice(self, text: str) -> None:
        """Write a notice, as text."""
        if self._writer is not None:
            self._text("notice", text)

    def end(self, result: TrainResult | None, error: BaseException | None) -> None:
        """Write how it ended, and close the file."""
        if self._writer is None:
            return
        ended = {"error": str(error)} if result is None else {
            "status": result.status, "weights_sha256": result.weights_sha256,
            "test_accuracy": result.test_accuracy,
        }  # fmt: skip
        self._text("result", json.dumps(ended))
        self._writer.close()

    def _numbers(self, step: int, values: dict[str, float]) -> None:
        make = self._summaries.Summary
        found = [make.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, make(value=found))

    def _text(self, tag: str, text: str) -> None:
        metadata = self._summaries.SummaryMetadata(
            plugin_data=self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        )
        size = self._shapes.TensorShapeProto(dim=[self._shapes.TensorShapeProto.Dim(size=1)])
        tensor = self._tensors.TensorProto(
            dtype="DT_STRING", tensor_shape=size, string_val=[text.encode("utf-8", "replace")]
        )
        make = self._summaries.Summary
        value = make.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
        self._add(self._step, make(value=[value]))

    def _add(self, step: int, summary: Any) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.add_event(event)
