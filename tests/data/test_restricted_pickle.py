"""Pickles: the official batches are read, whatever else they ask for is refused and not done."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import python2_pickle, python3_pickle, python_batch
from hypothesis import given
from hypothesis import strategies as st

from distsgd.data.cifar10.archive import load_batch
from distsgd.errors import SourceError

RECORDS = np.random.default_rng(0).integers(0, 10, (6, 3073), dtype=np.uint8)
BATCH = python_batch(RECORDS, "data_batch_1")


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def part(value: object) -> bytes:
    """A value as a part of a pickle that is put together by hand."""
    return pickle.dumps(value, 2)[2:-1]


def attack(marker: Path) -> Calls:
    return Calls(os.system, f"touch {marker}")


def evil_values(marker: Path) -> dict[str, object]:
    """Values that make the marker when they are unpickled by a plain unpickler."""
    wild = Calls(eval, f"open({str(marker)!r}, 'w').close()")
    return {
        "os.system": attack(marker),
        "eval": wild,
        "popen": Calls(subprocess.check_call, ["touch", str(marker)]),
        "in the data": {**BATCH, b"data": attack(marker)},
        "in the labels": {**BATCH, b"labels": [1, 2, [wild]]},
        "in a key": {**BATCH, (attack(marker),): 1},
        "in an argument": Calls(codecs.encode, attack(marker), "latin1"),
        "in an array of objects": {**BATCH, b"data": np.array([attack(marker)], dtype=object)},
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("how", list(evil_values(Path())))
def test_an_attack_is_refused_and_not_executed(tmp_path: Path, how: str, protocol: int) -> None:
    marker = tmp_path / "executed"
    content = pickle.dumps(evil_values(marker)[how], protocol=protocol)
    with contextlib.suppress(Exception):  # the attack has happened before
        pickle.loads(content)
    assert marker.exists(), "the attack does not work, so that nothing would be proven"
    marker.unlink()

    with pytest.raises(SourceError, match=r"^data_batch_1 "):
        load_batch(content, "data_batch_1")
    assert not marker.exists()


@pytest.mark.parametrize("write", [python2_pickle, python3_pickle])
def test_batches_of_both_pythons_are_read(write: Callable[[object], bytes]) -> None:
    pixels, labels = load_batch(write(BATCH), "data_batch_1")
    np.testing.assert_array_equal(pixels, RECORDS[:, 1:])
    assert pixels.dtype == np.uint8
    assert labels == RECORDS[:, 0].tolist()


def test_the_two_pythons_write_differently() -> None:
    assert b"_codecs" in python3_pickle(BATCH)
    assert b"_codecs" not in python2_pickle(BATCH)
    assert b"cnumpy.core.multiarray\n_reconstruct" in python2_pickle(BATCH)


def test_keys_may_be_text() -> None:
    content = python3_pickle({"data": BATCH[b"data"], "labels": BATCH[b"labels"]})
    np.testing.assert_array_equal(load_batch(content, "x")[0], RECORDS[:, 1:])


def test_a_column_major_array_keeps_its_rows() -> None:
    content = python3_pickle({**BATCH, b"data": np.asfortranarray(BATCH[b"data"])})
    np.testing.assert_array_equal(load_batch(content, "x")[0], RECORDS[:, 1:])


@pytest.mark.parametrize("codec", ["rot13", "zlib_codec", "utf-8", "unicode_escape", "idna"])
def test_other_codecs_are_refused(codec: str) -> None:
    content = b"\x80\x02c_codecs\nencode\n" + part(("text", codec)) + b"R."
    with pytest.raises(SourceError, match=f"the codec '{codec}' is not allowed"):
        load_batch(content, "data_batch_1")


@pytest.mark.parametrize("dtype", ["O", "O8", "f4", "u2", "i1", "S3", "V8", "u1,O"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    content = python3_pickle({**BATCH, b"data": np.zeros((6, 3072), dtype=dtype)})
    with pytest.raises(SourceError, match=r"^data_batch_1 cannot be unpickled .*is not allowed"):
        load_batch(content, "data_batch_1")


def array_with(dtype_state: bytes, content: bytes) -> bytes:
    """A batch whose dtype of single bytes is given another state."""
    dtype = b"cnumpy\ndtype\n" + part(("u1", False, True)) + b"R" + dtype_state
    empty = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + part((0,))
    state = b"(" + part(1) + part((2, 3)) + dtype + part(False) + content + b"tb"
    array = empty + b"U\x01btR" + state
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + part([1, 2]) + b"u."


def test_a_state_cannot_turn_bytes_into_pointers() -> None:
    pointers = part((3, "|", None, None, None, -1, -1, 0x3F)) + b"b"
    pixels, _ = load_batch(array_with(pointers, b"U\x06abcdef"), "x")
    assert pixels.tobytes() == b"abcdef"
    assert (pixels.dtype, pixels.dtype.flags) == (np.dtype("u1"), 0)
    assert np.dtype("u1").flags == 0


def test_an_array_of_a_list_of_objects_is_refused() -> None:
    with pytest.raises(SourceError, match="an array of anything but bytes"):
        load_batch(array_with(b"", part([1, 2, 3, 4, 5, 6])), "x")


@pytest.mark.parametrize(
    "named",
    [
        b"cnumpy\nload\n.",
        b"cnumpy._core.multiarray\nscalar\n.",
        b"c__builtin__\ngetattr\n.",
        b"cdistsgd.data.cifar10.archive\nload_batch\n.",
        b"\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"\x8c\x07_codecs\x8c\x0fencode.__self__\x93.",
    ],
)
def test_other_names_are_refused(named: bytes) -> None:
    with pytest.raises(SourceError, match=r"it names .*, which is refused"):
        load_batch(b"\x80\x04" + named, "data_batch_1")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2, 3],
        {},
        {b"\xff": 1},
        {b"data": BATCH[b"data"]},
        {b"labels": BATCH[b"labels"]},
        {**BATCH, b"labels": [1, 2, 3]},
        {**BATCH, b"labels": [1, 2, 3, 4, 5, 256]},
        {**BATCH, b"labels": [1, 2, 3, 4, 5, -1]},
        {**BATCH, b"labels": [1, 2, 3, 4, 5, "cat"]},
        {**BATCH, b"labels": tuple(range(6))},
        {**BATCH, b"data": np.zeros(6, dtype=np.uint8)},
        {**BATCH, b"data": b"bytes"},
        {**BATCH, b"data": [[1, 2]]},
    ],
)
def test_a_pickle_of_something_else_holds_no_batch(value: object) -> None:
    with pytest.raises(SourceError, match=r"^data_batch_1 is not a batch of CIFAR-10"):
        load_batch(python3_pickle(value), "data_batch_1")


HUGE = b"\x80\x04\x8e" + (2**50).to_bytes(8, "little")
"""It claims to have a petabyte."""


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"not a pickle", b"\x80\x02}", b"\x80\x02P1\n.", HUGE]
)
def test_what_is_no_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match=r"^data_batch_1 cannot be unpickled safely"):
        load_batch(content, "data_batch_1")


SMALL = python3_pickle({**BATCH, b"data": np.zeros((6, 2), dtype=np.uint8)})


@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_pickle_is_read_or_refused_in_words(at: int, put: bytes, drop: int) -> None:
    try:
        pixels, labels = load_batch(SMALL[:at] + put + SMALL[at + drop :], "data_batch_1")
    except SourceError:
        return
    assert pixels.dtype == np.uint8
    assert len(pixels) == len(labels)
