import os
import threading

import pytest

from distsgd.training.measuring import Background


def test_it_has_the_lowest_priority_and_the_caller_keeps_its_own():
    background = Background()
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found = background.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    background.close()
    assert found == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_what_goes_wrong_comes_through():
    background = Background()
    with pytest.raises(ZeroDivisionError):
        background.run(lambda: 1 // 0)
    background.close()
