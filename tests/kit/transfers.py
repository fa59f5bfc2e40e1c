# SPDX-License-Identifier: Apache-2.0
"""Work for a TransferManager that a test steers, and an output that can be waited for."""
import queue
import threading
import time
from typing import Any, Callable, Dict, List

from minipull.cancel import Cancel
from minipull.progress import Progress
from minipull.xfer.transfer import Transfer, TransferManager

TIMEOUT = 30.0  # seconds; only a failing test waits that long
TOTAL = 10
NEVER = Cancel()


class Recorder:
    """An output that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.seen: List[int] = []
        self.inside = False
        self._changed = threading.Condition()

    def __call__(self, progress: Progress) -> None:
        with self._changed:
            assert not self.inside, "called by two threads at once"
            self.inside = True
        with self._changed:
            self.inside = False
            self.seen.append(progress.current)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, TIMEOUT)

    def check(self) -> None:
        """Strictly in order, and the newest was not lost."""
        assert self.seen == sorted(set(self.seen)) and self.seen[-1] == TOTAL


def count_up(transfer: Transfer) -> None:
    for current in range(TOTAL + 1):
        transfer.progress(Progress("", "", "testing", current, TOTAL))


def until_cancelled(transfer: Transfer) -> None:
    """Emit until nobody listens."""
    current = 0
    while True:
        current += 1
        transfer.progress(Progress("", "", "testing", current))
        transfer.cancel.pause(0.001)


def wait_for(manager: TransferManager, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    with manager.changed:
        while not ready():
            assert time.monotonic() < end
            manager.changed.wait(0.01)  # not every change is notified


def spawn(target: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def join(thread: threading.Thread) -> None:
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def at_rest(manager: TransferManager) -> bool:
    return (manager.active, len(manager.waiting)) == (0, 0) and not manager._transfers


class Gate:
    """Work that says when it has begun, and ends when it is told to."""

    def __init__(self, inactive: bool = False) -> None:
        self.begun: "queue.Queue[str]" = queue.Queue()
        self.gates: Dict[str, threading.Event] = {}
        self._inactive = inactive

    def run(self, transfer: Transfer) -> str:
        gate = self.gates.setdefault(transfer.key, threading.Event())
        self.begun.put(transfer.key)
        assert gate.wait(TIMEOUT)
        count_up(transfer)
        if self._inactive:
            transfer.inactive()
            transfer.inactive()
            assert self.gates.setdefault("end", threading.Event()).wait(TIMEOUT)
        return transfer.key.upper()

    def next(self) -> str:
        return self.begun.get(timeout=TIMEOUT)

    def open(self, key: str) -> None:
        self.gates.setdefault(key, threading.Event()).set()
