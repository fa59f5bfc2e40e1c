# SPDX-License-Identifier: Apache-2.0
"""Cancel: a one-way switch with callbacks."""
import threading
from typing import List

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled

TIMEOUT = 30.0


def test_cancel_runs_every_callback_once() -> None:
    cancel = Cancel()
    told: List[str] = []
    with cancel.calling(lambda: told.append("in time")):
        with cancel.calling(lambda: told.append("too late")):
            cancel.check()
            cancel.pause(0)
            assert (cancel.cancelled, told) == (False, [])
        cancel.cancel()
        cancel.cancel()
    assert (cancel.cancelled, told) == (True, ["in time"])
    with cancel.calling(lambda: told.append("before")):
        assert told == ["in time", "before"]
    cancel.cancel()
    assert told == ["in time", "before"]
    for act in (cancel.check, lambda: cancel.pause(TIMEOUT)):
        with pytest.raises(Cancelled, match="^cancelled$"):
            act()


def test_one_callback_may_be_asked_for_twice_and_goes_once_at_a_time() -> None:
    cancel = Cancel()
    told: List[int] = []

    def callback() -> None:
        told.append(1)
        with cancel.calling(lambda: told.append(2)):  # takes no lock that is held
            cancel.cancel()

    with cancel.calling(callback):
        with pytest.raises(ValueError), cancel.calling(callback):
            raise ValueError
        cancel.cancel()
        assert told == [1, 2]
    with cancel.calling(callback):
        pass
    assert told == [1, 2, 1, 2]


def test_a_pause_ends_when_the_switch_is_set() -> None:
    cancel = Cancel()
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(Cancelled):
            cancel.pause(TIMEOUT * 10)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    cancel.cancel()
    assert ended.wait(TIMEOUT)
    thread.join(TIMEOUT)
