"""Reading the pickles of the official python archive, and no others.

A pickle can call anything it names. This unpickler resolves the three names that the official
files need to build an array of bytes, and one more that Python 3 writes for byte strings when
the same content is pickled again; every other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from distsgd.errors import SourceError

__all__ = ["load_batch"]


def _reconstruct(subtype: type, shape: tuple[int, ...], dtype: bytes) -> Any:
    """What numpy's own function of this name does, for empty plain arrays only."""
    if subtype is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("not a plain array")
    return np.ndarray(shape, dtype=np.uint8)  # __setstate__ follows, and sets all of it


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols; no other codec is admitted."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin-1")


def _plain_dtype(name: Any, *rest: Any) -> Any:
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"the dtype {name!r} is not admitted")
    return np.dtype("u1", *rest)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
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
        raise SourceError(
            f"{name} is not a pickle that can be read safely: {error}",
            "Use the official archive, unchanged",
        ) from None
    if not isinstance(batch, dict):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
    fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
    data, labels = fields.get("data"), fields.get("labels")
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) and 0 <= label < 256 for label in labels)
    ):
        raise SourceError(f"{name} holds no batch", "Use the official archive, unchanged")
    return data, labels
