# SPDX-License-Identifier: Apache-2.0
"""Pace: bytes that move, how fast, and how long the rest will take."""
import time
from typing import Callable, Dict, List, Set, Tuple

from ..progress import Progress

WINDOW = 5.0  # seconds that a speed is the mean of
_SAMPLE = 0.2  # seconds between two samples
_MAX_FLOWS = 4096
#: Last words for a blob that did not have to move.
_PRESENT = ("Already exists", "Layer already exists", "Mounted from")
_NOT_MOVED = _PRESENT + ("Skipped", "Retrying", "Pulling")
_UNITS = (("B", 0), ("kB", 1), ("MB", 2), ("GB", 3), ("TB", 4))


class Flow:
    """Bytes of one blob, or of all: ``current`` of ``total`` (0 if unknown), ``moved`` by this process."""

    def __init__(self, now: float, action: str = "", total: int = 0, moved: int = 0) -> None:
        self.action = action  # empty if no byte has moved
        self.current, self.total, self.moved = 0, total, moved
        self._samples: List[Tuple[float, int]] = [(now, moved)]

    def move(self, now: float, current: int, total: int, moved: int) -> None:
        self.current, self.total, self.moved = current, total, moved
        if now - self._samples[-1][0] >= _SAMPLE:
            self._samples.append((now, moved))
            while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW:
                del self._samples[0]

    def amount(self) -> str:
        """Return the numbers, in one unit if they share it: ``31.2/207.8MB``."""
        current, total = decimal(self.current), decimal(self.total)
        if self.total < max(self.current, 1):
            return current if self.current > 0 else ""
        number, unit = current.rstrip("kMGTB"), total.lstrip("0123456789.")
        return "%s/%s" % (number if current == number + unit else current, total)

    def rest(self, now: float) -> List[str]:
        """Return speed and time left, as far as they are known."""
        begin, before = self._samples[0]
        if now - begin < _SAMPLE or self.moved <= before:
            return []
        speed = (self.moved - before) / (now - begin)
        left = [duration((self.total - self.current) / speed)] if self.total > self.current else []
        return [decimal(speed) + "/s", *left]


class Pace:
    """The flows of one command: of each id, and of all together by the first action that counts bytes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._flows: Dict[str, Flow] = {}
        self._action = ""
        self._done: Set[str] = set()  # ids that have ended, which another image may name again
        self._ended = [0, 0]  # bytes of blobs that have ended; those of them that this process moved
        self._present = 0  # blobs
        self._whole = Flow(self._begin)

    def note(self, event: Progress) -> Flow:
        """Take an event's numbers; returns the flow of its id."""
        moved = max(event.current - event.start, 0)
        now, flow = self._clock(), self._flows.get(event.id)
        if event.action == "Pulling fs layer":
            self._action = "Downloading"  # though what is here already may be extracted before
        elif event.action == "Preparing":
            self._done.discard(event.id)
        if event.expected and flow is not None:
            return flow  # on its way already, for another image
        if flow is not None and event.action not in ("", "Waiting", flow.action):
            del self._flows[event.id]
            if flow.action and flow.action == self._action:
                self._ended[1] += flow.moved
                if event.action.startswith("Retrying"):
                    self._flows[event.id] = Flow(now, total=flow.total)
                    return flow
                self._ended[0] += max(flow.total, flow.current)
                self._ended[1] += max(flow.total - flow.current, 0)
                self._done.add(event.id)
            elif not (flow.action or event.current or event.total or event.action.startswith(_NOT_MOVED)):
                self._ended = [count + flow.total for count in self._ended]  # too small for a meter
                self._done.add(event.id)
            flow = None
        if event.action.startswith(_PRESENT):
            self._present += 1
        if flow is None:
            flow = Flow(now, event.action if event.current or event.total else "", event.expected,
                        moved)
            known = event.id in self._done and flow.action in ("", self._action)
            if (flow.total or flow.action) and not known:
                self._flows[event.id] = flow
                # Neither the file of an archive nor what is compressed on the way are more bytes.
                if flow.action != "Compressing" and (event.id or not self._ended[0]):
                    self._action = self._action or flow.action
            if len(self._flows) > _MAX_FLOWS:
                del self._flows[next(iter(self._flows))]
        if event.current or event.total:
            flow.move(now, event.current, event.total, moved)
        return flow

    def whole(self) -> Flow:
        """Return the flow of all that moves by the first action."""
        flows = [flow for flow in self._flows.values() if flow.action in ("", self._action)]
        self._whole.move(self._clock(), self._ended[0] + sum(flow.current for flow in flows),
                         self._ended[0] + sum(max(flow.total, flow.current) for flow in flows),
                         self._ended[1] + sum(flow.moved for flow in flows))
        return self._whole

    def summary(self) -> str:
        """Return the result in one line, empty if it is not worth one: ``213MB in 17 s, 12.4MB/s``."""
        moved, seconds = self.whole().moved, self._clock() - self._begin
        if not moved or moved < 1000000 and seconds < 1:
            return ""
        time_taken = "%.2g s" % seconds if seconds < 10 else "%.0f s" % seconds
        present = "; %d layer%s there" % (self._present, " was" if self._present == 1 else "s were")
        return "%s in %s, %s/s%s" % (
            decimal(moved), time_taken, decimal(moved / max(seconds, 0.01)), present if self._present else "")

    def interrupted(self) -> str:
        """Return the line for an interrupt: downloads into a store are kept as far as they came."""
        whole = self.whole()
        if self._action != "Downloading" or not whole.current:
            return "interrupted"
        return "interrupted; the same command goes on at %s" % whole.amount().replace("/", " of ")


def decimal(size: float) -> str:
    """Return a size in decimal units and three digits or four: ``31.2MB``, ``207.8MB``."""
    for unit, power in _UNITS:
        number = size / 1000 ** power
        if number < 999.95 or unit == "TB":
            break
    text = "%.1f" % number
    return (text[:-2] if text.endswith(".0") or unit == "B" else text) + unit


def duration(seconds: float) -> str:
    """Return a time as ``0:14`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, rest) if hours else "%d:%02d" % (minutes, rest)
