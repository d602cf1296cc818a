"""Reading the pickles of the official python archive, and no others.

A pickle can call anything it names. This unpickler resolves the three names that the official
files need to build an array of bytes, and one more that Python 3 writes for byte strings when
the same content is pickled again; every other name is refused. The names of numpy lead to
stand-ins: numpy's own unpickling trusts what it is told, down to the flags that say which bytes
are pointers.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from distsgd.errors import SourceError

__all__ = ["load_batch"]


class _ByteType:
    """Stands in for numpy's dtype of single bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"the dtype {name!r} is not admitted")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing to a single byte."""


class _Array:
    """Stands in for numpy's array."""

    values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _ByteType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of something else than bytes is not admitted")
        values = np.frombuffer(content, dtype=np.uint8)
        self.values = values.reshape(shape, order="F" if column_major else "C")


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> _Array:
    """An array still empty; its state follows in the pickle."""
    if subtype is not _Array:
        raise pickle.UnpicklingError("not a plain array")
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols; no other codec is admitted."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Resolve an admitted name; refuse every other."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused") from None


def load_batch(content: bytes, name: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The pixels, shape (rows, 3072), uint8, and labels of one pickled batch.

    Raises:
        SourceError: the pickle names something else than data, or is not a batch.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile or broken pickle can raise anything
        # Also a MemoryError: a damaged pickle asks for any number of bytes.
        raise SourceError(
            f"{name} is not a pickle that can be read safely: {error}",
            "Use the official archive, unchanged",
        ) from None
    if not isinstance(batch, dict):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
    array, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    data = array.values if isinstance(array, _Array) else None
    if not (
        data is not None
        and data.ndim == 2
        and isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) and 0 <= label < 256 for label in labels)
    ):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
    return data, labels
