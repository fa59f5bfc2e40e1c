# SPDX-License-Identifier: Apache-2.0
"""Transfers: work that several users share, within a number of slots.

A transfer runs one function once for all users of its key.  Each user has a
watcher: an output for progress, and a vote to keep the work alive.  The rules:

- A transfer is cancelled when its last watcher is released before its end, and
  by nothing else: a user that gives up only releases its own watcher.
- A transfer holds its slot until its end or :meth:`Transfer.inactive`.  Slots
  are given in the order of asking; a changed limit holds for the next slot.
- A new watcher gets the newest progress at once.  A released one has got it,
  and after :meth:`TransferManager.release` its output is never called again.
- A user of the key of a cancelled transfer waits for the end of that transfer
  and gets a new one.
- The work may outlive all its users, since cancelling takes time.  A lock that
  it needs is taken for each run (``holding``), not borrowed from a user.

Mirrors moby's distribution/xfer/transfer.go.  Knows no images.

Where this leaves the engine:

- One thread for each transfer that has a slot and callbacks under one
  Condition, not a goroutine for each role.  Progress is delivered by the thread
  that emits it, which waits while the output is busy and skips what is outdated.
- A transfer that is cancelled while it waits for a slot ends at once.
- A finished transfer leaves the manager at once; its result stays with the
  watchers, so there is no separate ``released``.
- A lower limit holds at once, where the engine hands a slot over regardless.
"""
import collections
import contextlib
import threading
from typing import Any, Callable, ContextManager, Deque, Dict, List, Optional, Sequence

from ..cancel import Cancel
from ..errors import Cancelled, Error
from ..progress import Output, Progress, discard


class Watcher:
    """The subscription of one user to a transfer."""

    def __init__(self, transfer: "Transfer", output: Output) -> None:
        self.transfer = transfer
        self.output = output
        self.seen = 0  # number of the newest progress delivered
        self.busy: Optional[threading.Thread] = None  # the thread that calls the output
        self.error: Optional[BaseException] = None  # raised by the output


class Transfer:
    """Work in progress, made by TransferManager alone; ``result`` or ``error`` is valid once ``done``."""

    def __init__(self, manager: "TransferManager", key: str, run: "Run", holding: "Holding") -> None:
        self.key = key
        self.cancel = Cancel()
        self.started = False
        self.done = False
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self._manager = manager
        self._run = run
        self._holding = holding
        self._active = False  # holds a slot
        self._watchers: List[Watcher] = []
        self._last: Optional[Progress] = None
        self._count = 0  # of progress so far

    def __repr__(self) -> str:
        state = "done" if self.done else "running" if self.started else "waiting"
        return "<Transfer %s: %s, %d watchers>" % (self.key, state, len(self._watchers))

    def progress(self, progress: Progress) -> None:
        """Deliver progress to every watcher; called by the work."""
        with self._manager.changed:
            self._last = progress
            self._count += 1
            watchers = list(self._watchers)
        for watcher in watchers:
            self._manager.deliver(watcher)

    def inactive(self) -> None:
        """Give the slot back while there is work left that needs none, such as waiting."""
        with self._manager.changed:
            self._manager.free_slot(self)
            self._manager.fill_slots()


Run = Callable[[Transfer], Any]
Holding = Callable[[Cancel], ContextManager[Any]]


def nothing(cancel: Cancel) -> ContextManager[Any]:
    """Hold nothing: the ``holding`` of work that needs no lock."""
    return contextlib.ExitStack()


class TransferManager:
    """Transfers by key, at most ``limit`` of which hold a slot at once; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0
        self.waiting: Deque[Transfer] = collections.deque()
        #: Guards every field here and in the transfers; notified on each change.
        self.changed = threading.Condition()
        self._transfers: Dict[str, Transfer] = {}
        self._queued = 0  # threads that wait for a busy output

    def __repr__(self) -> str:
        return "<TransferManager: %d of %d active, %d waiting>" % (
            self.active, self.limit, len(self.waiting))

    def transfer(self, key: str, run: Run, output: Output, waiting: Optional[Progress] = None,
                 cancel: Optional[Cancel] = None, holding: Holding = nothing) -> Watcher:
        """Join the transfer of ``key``, or start it; the caller must release the watcher.

        ``run`` is called with the transfer, within the block of ``holding``, which gets
        the transfer's Cancel.  ``waiting`` is the progress until there is a slot.  Raises
        Cancelled if ``cancel`` is set before a cancelled transfer of this key has ended.
        """
        cancel = cancel or Cancel()
        with cancel.calling(self._wake), self.changed:
            while True:
                transfer = self._transfers.get(key)
                if transfer is None or not transfer.cancel.cancelled:
                    break
                cancel.check()
                self.changed.wait()
            if transfer is None:
                transfer = self._transfers[key] = Transfer(self, key, run, holding)
                self.waiting.append(transfer)
            watcher = Watcher(transfer, output)
            transfer._watchers.append(watcher)
            self.fill_slots()
            if waiting is not None and not transfer.started and not transfer._count:
                transfer._last, transfer._count = waiting, 1
        self.deliver(watcher)
        return watcher

    def wait(self, watchers: Sequence[Watcher], cancel: Cancel) -> List[Any]:
        """Return the results of the watched transfers, in their order.

        Raises the first error of a transfer or output, without waiting for the rest, and Cancelled.
        """
        with cancel.calling(self._wake), self.changed:
            while True:
                for watcher in watchers:
                    error = watcher.error or watcher.transfer.error
                    if error is not None:
                        raise error
                if all(watcher.transfer.done for watcher in watchers):
                    return [watcher.transfer.result for watcher in watchers]
                cancel.check()
                self.changed.wait()

    def result(self, transfer: Transfer, cancel: Cancel) -> Any:
        """Return the result of a transfer that the caller needs but does not watch, as wait() does."""
        return self.wait([Watcher(transfer, discard)], cancel)[0]

    def release(self, watcher: Watcher) -> None:
        """End a subscription, after the newest progress is delivered."""
        transfer = watcher.transfer
        with self.changed:
            if watcher not in transfer._watchers:
                return
            transfer._watchers.remove(watcher)
            if not transfer._watchers and not transfer.done:
                transfer.cancel.cancel()  # under the lock, so that nobody joins in between
                if not transfer.started:
                    self.waiting.remove(transfer)
                    self._finish(transfer, None, Cancelled())
            self.changed.notify_all()
        self.deliver(watcher)
        with self.changed:
            while watcher.busy not in (None, threading.current_thread()):
                self._wait_for_output()
            watcher.error = watcher.error or Cancelled()  # no more calls of its output

    def settle(self, text: str) -> None:
        """Wait for the end of all transfers with ``text`` in their key, such as a folder about to go."""
        with self.changed:
            while any(text in key for key in self._transfers):
                self.changed.wait()

    def deliver(self, watcher: Watcher) -> None:
        """Call the output with the newest progress, unless another thread has done so.

        Calls it once at most: newer progress is delivered by the thread that emits it.
        """
        transfer, current = watcher.transfer, threading.current_thread()
        with self.changed:
            number = transfer._count
            while watcher.seen < number and watcher.busy not in (None, current):
                self._wait_for_output()
            if watcher.seen >= number or watcher.busy or watcher.error is not None:
                return
            watcher.busy, watcher.seen, progress = current, transfer._count, transfer._last
            assert progress is not None
            self.changed.release()
            try:
                watcher.output(progress)
            except BaseException as exc:
                watcher.error = exc  # raised by wait(), to the watcher's owner alone
            finally:
                self.changed.acquire()
                watcher.busy = None
                # Waking all threads for each event would cost more than the work.
                if self._queued or watcher.error is not None:
                    self.changed.notify_all()

    # Called with the lock held, except _work and _wake, which take it.

    def free_slot(self, transfer: Transfer) -> None:
        if transfer._active:
            transfer._active = False
            self.active -= 1

    def fill_slots(self) -> None:
        for transfer in iter(self._next, None):
            thread = threading.Thread(target=self._work, args=(transfer,), daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no thread left in the system
                self._finish(transfer, None, Error("transfer %s: %s" % (transfer.key, exc)))

    def _next(self) -> Optional[Transfer]:
        """Give a slot to the transfer that has waited longest, if there are both."""
        if not self.waiting or self.limit and self.active >= self.limit:
            return None
        transfer = self.waiting.popleft()
        transfer.started = transfer._active = True
        self.active += 1
        return transfer

    def _wait_for_output(self) -> None:
        self._queued += 1  # a count that an interrupt leaves too high only costs time
        self.changed.wait()
        self._queued -= 1

    def _work(self, first: Transfer) -> None:
        transfer: Optional[Transfer] = first
        while transfer is not None:  # one thread serves the next in the queue as well
            threading.current_thread().name = "transfer " + transfer.key
            result, error = None, None
            try:
                transfer.cancel.check()
                with transfer._holding(transfer.cancel):
                    result = transfer._run(transfer)
            except BaseException as exc:
                error = exc
            with self.changed:
                self._finish(transfer, result, error)
                transfer = self._next()
                self.fill_slots()

    def _finish(self, transfer: Transfer, result: Any, error: Optional[BaseException]) -> None:
        transfer.result, transfer.error, transfer.done = result, error, True
        del transfer._run  # its watchers may stay long, and what it worked on need not
        del self._transfers[transfer.key]
        self.free_slot(transfer)
        self.changed.notify_all()

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()
