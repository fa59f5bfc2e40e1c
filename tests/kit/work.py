# SPDX-License-Identifier: Apache-2.0
"""Work in threads, observed: an output that remembers, a counter, a result that arrives later."""
import threading
from typing import Any, Callable, Dict, List, Tuple

from minipull.progress import Progress


class Counter:
    """How many are inside at once, and how often anybody was."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc_info: object) -> None:
        with self.lock:
            self.now -= 1


class Log:
    """An output that remembers."""

    def __init__(self) -> None:
        self.events: List[Progress] = []

    def __call__(self, event: Progress) -> None:
        self.events.append(event)

    def actions(self, id: str) -> List[str]:
        """The different actions of an id, in order."""
        found = [event.action for event in list(self.events) if event.id == id]
        return [action for n, action in enumerate(found) if n == 0 or found[n - 1] != action]

    def tells(self, text: str) -> bool:
        """Whether an event has a text."""
        return any(text in str(event) for event in self.events)

    @property
    def last(self) -> Dict[str, str]:
        return {event.id: event.action for event in self.events}


def background(work: Callable[[], Any]) -> Tuple[threading.Thread, List[Any]]:
    """Run ``work`` in a thread; its result or error arrives in the list."""
    results: List[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as exc:
            results.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results
