"""Rows of plain values as the content of a CSV or an Arrow file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ROW_FORMATS", "rows_content"]

ROW_FORMATS = ("csv", "arrow")


def rows_content(
    rows: Sequence[Mapping[str, Any]], form: str, about: Mapping[str, Any] | None = None
) -> bytes:
    """A tidy table: one line for each row, one column for each name.

    A column of whole numbers, numbers or truth values keeps its type in Arrow; all others are text.

    Args:
        rows: name -> value; a name that a row lacks is empty there.
        form: one of `ROW_FORMATS`.
        about: what the table is, kept in an Arrow file's metadata.
    """
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    if form == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue().encode()
    return _arrow(columns, about or {})


def _arrow(columns: Mapping[str, list[Any]], about: Mapping[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table({name: _typed(values) for name, values in columns.items()})
    meta = {name: value if isinstance(value, str) else json.dumps(value)
            for name, value in about.items()}  # fmt: skip
    table = table.replace_schema_metadata(meta)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _typed(values: list[Any]) -> Any:
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {int}:
        return pa.array(values)
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    return pa.array([None if value is None else str(value) for value in values])
