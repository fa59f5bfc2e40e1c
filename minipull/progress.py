# SPDX-License-Identifier: Apache-2.0
"""Progress: events that the library reports to its caller while it works.

An output is any callable that takes a :class:`Progress`; it is called from
worker threads, never twice at once for one operation.

Mirrors moby's pkg/progress.
"""
import threading
from typing import Any, Callable, Mapping, NamedTuple, Optional

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


class Progress(NamedTuple):
    """An event: an action on ``id``, or a message.

    ``current`` and ``total`` (0 if unknown) are in bytes, and so are ``start``, how many were there
    before this process began, and ``expected``, how many there will be.  ``kept`` ones are not
    moved again after an interrupt.
    """
    id: str = ""
    message: str = ""
    action: str = ""
    current: int = 0
    total: int = 0
    aux: Optional[Mapping[str, Any]] = None
    last_update: bool = False
    start: int = 0
    expected: int = 0
    kept: bool = False

    def __str__(self) -> str:
        text = self.message or self.action
        if self.current:
            text += " %d/%d" % (self.current, self.total)
        return "%s: %s" % (self.id, text) if self.id else text


Output = Callable[[Progress], None]


def discard(_: Progress) -> None:
    """The output of a caller that wants none."""


def serialized(output: Output) -> Output:
    """``output``, called by one thread at a time."""
    lock = threading.RLock()  # an output may cause another event

    def locked(progress: Progress) -> None:
        with lock:
            output(progress)

    return locked


class Meter:
    """Counts bytes of one action and reports every 512 KiB or 1 %, the smaller; ``start`` are there before.

    Threads may advance it together.
    """

    def __init__(self, output: Output, id: str, action: str, total: int, start: int = 0,
                 kept: bool = False) -> None:
        self._output = output
        self._event = Progress(id=id, action=action, total=total, start=start, kept=kept)
        self._step = min(512 << 10, total // 100) if total > 0 else 512 << 10
        self._reported = 0
        self._lock = threading.Lock()
        self.current = start

    def advance(self, count: int) -> None:
        with self._lock:
            self.move(self.current + count)

    def move(self, position: int) -> None:
        """Set the position in bytes, which may go back when a transfer starts again."""
        self.current = position
        if not 0 <= self.current - self._reported <= self._step:
            self._report(False)

    def finish(self) -> None:
        self._report(True)

    def _report(self, last: bool) -> None:
        self._reported = self.current
        self._output(self._event._replace(current=self.current, last_update=last))


def human_size(size: float) -> str:
    """Bytes in decimal units and four digits, as docker prints them: ``1.024kB``."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size /= 1000
        power += 1
    return "%.4g%s" % (size, _UNITS[power])
