"""From the body of a request to rows: JSON, images, forms with files, and NumPy arrays."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.data.text_files import some_of
from distsgd.errors import DistsgdError, UsageError
from distsgd.serving.limits import Limits
from distsgd.training.predictor import Predictor

__all__ = ["KINDS", "Refused", "Wanted", "wanted"]

KINDS = ("application/json", "image/*", "multipart/form-data", "application/x-npy")
"""Types of content that are understood."""

_TOP = 3


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        problem: what is wrong, one clause.
        hint: what to do.
    """

    def __init__(self, status: int, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.status, self.problem, self.hint = status, problem, hint


@dataclass(frozen=True)
class Wanted:
    """What a request asks for.

    Attributes:
        rows: as `Predictor.rows` returns them.
        top: how many classes to name.
    """

    rows: NDArray[Any]
    top: int


def wanted(
    predictor: Predictor, content_type: str, query: Mapping[str, str], body: bytes, limits: Limits
) -> Wanted:
    """The rows of a request.

    Args:
        predictor: that will classify them.
        content_type: of the body.
        query: of the address: ``top`` for bodies that are not JSON.
        body: as it came.
        limits: of rows and pixels.

    Raises:
        Refused: it cannot be classified.
    """
    kind, parameters = _content_type(content_type)
    top: Any = query.get("top", _TOP)
    try:
        if kind == "application/json":
            content = _json(body)
            top = content.pop("top", top)
            rows = _rows_of_json(predictor, content, limits)
        elif kind == "multipart/form-data":
            rows = _rows_of_images(predictor, _files(body, parameters.get("boundary", "")), limits)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            rows = _rows_of_images(predictor, [body], limits)
        elif kind == "application/x-npy":
            rows = _rows_of_array(predictor, _array(body), limits)
        else:
            what = f"the type of content {kind} is not known" if kind else "there is no type"
            raise Refused(415, what, f"Content-Type is one of {', '.join(KINDS)}")
    except DistsgdError as error:
        raise Refused(422, error.problem, error.hint) from None
    return Wanted(rows, _whole(top))


def _content_type(given: str) -> tuple[str, dict[str, str]]:
    message = Message()
    message["content-type"] = given or "none/none"
    kind = message.get_content_type() if given else ""
    return kind, {str(name).lower(): str(value) for name, value in (message.get_params() or [])[1:]}


def _whole(top: Any) -> int:
    text = str(top)
    if isinstance(top, bool) or not text.isascii() or not text.isdecimal() or not 0 < len(text) < 9:
        raise Refused(422, f"top cannot be {text[:20]}", "Give a whole number from 1")
    if int(text) < 1:
        raise Refused(422, "top cannot be 0", "Give a whole number from 1")
    return int(text)


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:100]}", _HOW) from None
    if not isinstance(content, dict):
        raise Refused(400, "the JSON is no object", _HOW)
    return content


_HOW = 'Send {"rows": [[...], ...]}, {"rows": [{"column": value, ...}, ...]} or {"images": [...]}'


def _rows_of_json(predictor: Predictor, content: dict[str, Any], limits: Limits) -> NDArray[Any]:
    strange = sorted(set(content) - {"rows", "columns", "images"})
    if strange:
        raise Refused(422, f"the JSON has '{strange[0][:40]}', which is not known", _HOW)
    rows: Any = content.get("rows")
    images: Any = content.get("images")
    if (rows is None) == (images is None):
        raise Refused(422, "the JSON needs either rows or images", _HOW)
    if images is not None:
        return _rows_of_images(predictor, _decoded(images), limits)
    if not isinstance(rows, list) or not rows:
        raise Refused(422, "rows is no list, or an empty one", _HOW)
    if not isinstance(rows[0], list | dict):
        rows = [rows]  # a single one
    _check_count(len(rows), limits)
    if isinstance(rows[0], dict):
        return predictor.rows(_checked(predictor, _in_order(predictor, rows)))
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != width:
            raise Refused(422, f"row {number} is not as long as row 1", _HOW)
    columns: Any = content.get("columns")
    if columns is not None:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise Refused(422, "columns is no list of names", _HOW)
        if len(set(columns)) != len(columns) or len(columns) != width:
            raise Refused(422, f"{len(columns)} columns do not go with rows of {width}", _HOW)
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        rows = _in_order(predictor, named)
    return predictor.rows(_checked(predictor, rows))


def _in_order(predictor: Predictor, rows: list[Any]) -> list[list[Any]]:
    """The values of rows by name, in the order of the model's columns."""
    names = predictor.columns
    if not names:
        raise Refused(422, "the model's columns have no names", "Send rows in their order")
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise Refused(422, f"row {number} has no names, and row 1 has", _HOW)
        if missing := [name for name in names if name not in row]:
            raise Refused(
                422, f"row {number} has no {some_of(missing)}", f"The model takes {some_of(names)}"
            )
        found.append([row[name] for name in names])
    return found


def _checked(predictor: Predictor, rows: Sequence[Sequence[Any]]) -> NDArray[Any]:
    """Lists of values as an array, shape (rows, columns).

    Raises:
        Refused: one is no number where the model takes numbers; names it.
    """
    words, fills, names = predictor.words, predictor.fills, predictor.columns
    for number, row in enumerate(rows, 1):
        for place, value in enumerate(row):
            if type(value) in (int, float) or (value is None and fills):
                continue
            if place < len(words) and words[place] and (value is None or type(value) is str):
                continue
            column = f"'{names[place]}'" if place < len(names) else place + 1
            shown = json.dumps(value)[:40]
            raise Refused(422, f"row {number}, column {column} is no number: {shown}")
    try:
        return np.array(rows, dtype=object if words or fills else np.float64)
    except OverflowError:
        raise Refused(422, "a number is too large") from None


def _decoded(images: Any) -> list[bytes]:
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise Refused(422, "images is no list of texts", "Send files of images in Base64")
    found = []
    for number, image in enumerate(images, 1):
        try:
            found.append(base64.b64decode(image, validate=True))
        except (binascii.Error, ValueError):
            raise Refused(422, f"image {number} is not in Base64") from None
    return found


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.rows:
        raise Refused(413, f"{count} rows are more than {limits.rows}", "Send them in parts")
    if not count:
        raise Refused(422, "there is nothing to classify", "Send a row or an image")


def _rows_of_images(predictor: Predictor, files: list[bytes], limits: Limits) -> NDArray[Any]:
    _check_count(len(files), limits)
    rows = []
    for number, file in enumerate(files, 1):
        try:
            rows.append(predictor.row_of_image(file, limits.pixels))
        except DistsgdError as error:
            problem = error.problem if len(files) == 1 else f"image {number}: {error.problem}"
            raise UsageError(problem, error.hint) from None
    return np.stack(rows)


def _files(body: bytes, boundary: str) -> list[bytes]:
    """The files of a form, RFC 7578; fields without a file name are left out."""
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + body).split(mark)
    if not boundary or len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise Refused(400, "the form is incomplete, or has no boundary", "Send multipart/form-data")
    found = []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head.lower():
            found.append(content)
    if not found:
        raise Refused(422, "the form has no file", "Give each part a file name")
    return found


def _array(body: bytes) -> NDArray[Any]:
    """An array in NumPy's format; its header is checked before anything is read by it."""
    file = BytesIO(body)
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else _read_header_2
        shape, fortran, dtype = read(file)
        if dtype.kind not in "uif" or dtype.hasobject or fortran:
            raise ValueError("it is no array of numbers, row after row")
        values = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        raise Refused(
            400, f"the body is not an array: {str(error)[:100]}", "Use numpy.save"
        ) from None
    return values


def _read_header_2(file: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_2_0(file)


def _rows_of_array(predictor: Predictor, values: NDArray[Any], limits: Limits) -> NDArray[Any]:
    _check_count(len(values) if values.ndim > 1 else 1, limits)
    return predictor.rows(values)
