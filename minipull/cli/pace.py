# SPDX-License-Identifier: Apache-2.0
"""Pace: bytes that move, how fast, and how long the rest will take."""
import time
from typing import Callable, Dict, List, Set, Tuple

from ..progress import Progress, human_size

WINDOW = 5.0  # seconds that a speed is the mean of
_SAMPLE = 0.2  # seconds between two samples
_MAX_FLOWS = 4096
#: Last words for a blob that did not have to move.
_PRESENT = ("Already exists", "Layer already exists", "Mounted from")
_NOT_MOVED = _PRESENT + ("Skipped", "Retrying", "Pulling")
#: Actions whose bytes may be summed: those of a command are summed by the first of these that it has.
_SUMMED = ("Downloading", "Pushing", "Loading layer", "Saving", "Checking", "Extracting")
_ANNOUNCED = {"Pulling fs layer": "Downloading", "Preparing": "Pushing"}


class Flow:
    """Bytes of one blob, or of all: ``current`` of ``total`` (0 if unknown), ``moved`` by this process."""

    def __init__(self, now: float, action: str = "", total: int = 0, moved: int = 0) -> None:
        self.action = action  # empty if no byte has moved
        self.kept = False  # after an interrupt
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
        current, total = human_size(self.current), human_size(self.total)
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
        return [_per_second(speed), *left]


class Pace:
    """The flows of one command: of each id, and of all together by the action that is summed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._flows: Dict[str, Flow] = {}
        self._action = ""
        self._done: Set[str] = set()  # ids that have ended, which another image may name again
        self._ended = [0, 0]  # bytes of blobs that have ended; those of them that this process moved
        self._present: Set[str] = set()  # ids of blobs that were there
        self._whole = Flow(self._begin)

    def note(self, event: Progress) -> Flow:
        """Take an event's numbers; returns the flow of its id."""
        now, flow, counts = self._clock(), self._flows.get(event.id), bool(event.current or event.total)
        moved = max(event.current - event.start, 0)
        action = _ANNOUNCED.get(event.action, event.action if counts else "")
        if action in _SUMMED[:_SUMMED.index(self._action) if self._action else None]:
            self._action = action
        if event.action == "Preparing":
            self._done.discard(event.id)  # it goes to another repository
        if event.expected and flow is not None:
            if flow.action in ("", self._action):
                return flow  # on its way already, for another image
            del self._flows[event.id]  # it has been read, and will be again
            flow = None
        if flow is not None and event.action not in ("", "Waiting", flow.action):
            self._end(event, flow, counts)
            flow = self._flows.get(event.id)
        if event.action.startswith(_PRESENT) and event.id not in self._done and len(self._present) < _MAX_FLOWS:
            self._present.add(event.id)
        if flow is None:
            flow = Flow(now, event.action if counts else "", event.expected, moved)
            known = event.id in self._done and flow.action in ("", self._action)
            if (flow.total or flow.action) and not known and len(self._flows) < _MAX_FLOWS:
                self._flows[event.id] = flow
        if counts:
            flow.move(now, event.current, event.total, moved)
            flow.kept = event.kept
        return flow

    def _end(self, event: Progress, flow: Flow, counts: bool) -> None:
        """End a flow, whose bytes count as far as they are summed; one that is tried again begins anew."""
        del self._flows[event.id]
        if flow.action and flow.action == self._action:
            self._ended[1] += flow.moved
            if event.action.startswith("Retrying"):
                self._flows[event.id] = Flow(self._clock(), total=flow.total)
                return
            self._ended[0] += max(flow.total, flow.current)
            self._ended[1] += max(flow.total - flow.current, 0)
        elif flow.action or counts or event.action.startswith(_NOT_MOVED):
            return
        else:  # too small for a meter
            self._ended = [count + flow.total for count in self._ended]
        self._done.add(event.id)

    def whole(self) -> Flow:
        """Return the flow of all that moves by the action that is summed."""
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
        text = "%s in %s, %s" % (human_size(moved), time_taken, _per_second(moved / max(seconds, 0.01)))
        if self._present:
            count = len(self._present)
            text += "; %d layer%s there" % (count, " was" if count == 1 else "s were")
        return text

    def interrupted(self) -> str:
        """Return the line for an interrupt, with the bytes that are kept."""
        whole = self.whole()
        lost = sum(flow.current for flow in self._flows.values() if flow.action == self._action and not flow.kept)
        if self._action not in ("Downloading", "Pushing") or whole.current <= lost:
            return "interrupted"
        kept = Flow(0, total=whole.total)
        kept.current = whole.current - lost
        text = "interrupted; the same command goes on at %s" % kept.amount().replace("/", " of ")
        sent = self._action == "Pushing" and any(flow.kept and flow.current for flow in self._flows.values())
        return text + (" if the registry does" if sent else "")  # docker-registry 2.8 does not


def _per_second(speed: float) -> str:
    """Return a speed in three digits, the fourth of which would only flicker."""
    return human_size(float("%.3g" % speed)) + "/s"


def duration(seconds: float) -> str:
    """Return a time as ``0:14`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, rest) if hours else "%d:%02d" % (minutes, rest)
