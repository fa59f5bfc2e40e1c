# SPDX-License-Identifier: Apache-2.0
"""Cancellation: a one-way switch, the part of Go's context that the engine uses."""
import contextlib
import threading
from typing import Callable, Iterator, List

from .errors import Cancelled


class Cancel:
    """A one-way switch that any thread may set; callbacks then run once each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: List[Callable[[], None]] = []
        self._local = 0

    @property
    def busy(self) -> bool:
        """Whether there is work within local()."""
        return self._local > 0

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        """Work on this host alone for the block: once cancelled it cleans up, however long that takes."""
        with self._lock:
            self._local += 1
        try:
            yield
        finally:
            with self._lock:
                self._local -= 1

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        """Set the switch, then run the callbacks."""
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise Cancelled if the switch is set."""
        if self._event.is_set():
            raise Cancelled()

    def pause(self, seconds: float) -> None:
        """Sleep, but raise Cancelled as soon as the switch is set."""
        if self._event.wait(seconds):
            raise Cancelled()

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` if the switch is set within the block, or was before."""
        with self._lock:
            early = self._event.is_set()
            if not early:
                self._callbacks.append(callback)
        if early:
            callback()
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(callback)
