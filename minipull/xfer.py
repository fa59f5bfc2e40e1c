# SPDX-License-Identifier: Apache-2.0
"""Transfers: work that several users share, within a number of slots.

A transfer is one function run once for all who ask for its key.  Each user
holds a watcher: a place where progress goes, and a vote to keep the work
alive.  The rules:

- a transfer is cancelled when its last watcher leaves before the manager has
  closed it, and by nothing else; a user who gives up only leaves;
- it holds its slot until it ends or says :meth:`Transfer.inactive`; slots are
  handed on in the order of asking;
- who joins sees the newest progress at once; who leaves has seen the newest,
  and after :meth:`TransferManager.release` the output is never called again;
- who asks for the key of a cancelled transfer waits until that is gone and
  gets a new one; a finished one that is still there is shared, error included.

The engine runs a goroutine for each role.  Here a transfer has one thread,
made when it gets its slot, and all state lies under one Condition; progress is
delivered by whoever emits it, and an output that is busy elsewhere is left to
the thread that is in it, which then delivers the newest.

Mirrors moby's distribution/xfer/transfer.go.  Knows no images.
"""
import collections
import threading
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence

from .errors import Cancelled
from .progress import Output, Progress, discard
from .streams import Cancel


class Watcher:
    """One user's subscription to a transfer."""

    def __init__(self, transfer: "Transfer", output: Output) -> None:
        self.transfer = transfer
        self.output = output
        self.seen = 0  # number of the progress that was delivered last
        self.busy: Optional[threading.Thread] = None  # who is in the output
        self.error: Optional[BaseException] = None  # what the output raised


class Transfer:
    """Work in progress; made by :meth:`TransferManager.transfer` only.

    ``result`` or ``error`` is valid once ``done``.  ``released`` says that no
    user needs the result any longer and the manager has dropped it.
    """

    def __init__(self, manager: "TransferManager", key: str, run: "Run") -> None:
        self.key = key
        self.cancel = Cancel()
        self.started = False
        self.done = False
        self.released = False
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self._manager = manager
        self._run = run
        self._active = False  # holds a slot
        self._closed = False
        self._watchers: List[Watcher] = []
        self._last: Optional[Progress] = None
        self._count = 0  # of progress so far

    def __repr__(self) -> str:
        state = "done" if self.done else "running" if self.started else "waiting"
        return "<Transfer %s: %s, %d watchers>" % (self.key, state, len(self._watchers))

    def progress(self, progress: Progress) -> None:
        """Tell every watcher; called by the work."""
        with self._manager.changed:
            self._last = progress
            self._count += 1
            watchers = list(self._watchers)
        for watcher in watchers:
            self._manager.deliver(watcher)

    def inactive(self) -> None:
        """Give the slot back although there is work left, such as waiting."""
        with self._manager.changed:
            self._manager.free_slot(self)


Run = Callable[[Transfer], Any]


class TransferManager:
    """At most ``limit`` transfers hold a slot at once; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0
        self.waiting: Deque[Transfer] = collections.deque()
        #: Guards every field here and in the transfers; notified on each change.
        self.changed = threading.Condition()
        self._transfers: Dict[str, Transfer] = {}

    def __repr__(self) -> str:
        return "<TransferManager: %d of %d active, %d waiting>" % (
            self.active, self.limit, len(self.waiting),
        )

    def transfer(
        self, key: str, run: Run, output: Output, waiting: Optional[Progress] = None
    ) -> Watcher:
        """Join the transfer of ``key`` or start it as ``run(transfer)``.

        ``waiting`` is what is shown until the transfer gets its slot.  The
        watcher is to be released, whatever happens.
        """
        with self.changed:
            while True:
                transfer = self._transfers.get(key)
                if transfer is None or not transfer.cancel.cancelled:
                    break
                self.changed.wait()
            if transfer is None:
                transfer = self._transfers[key] = Transfer(self, key, run)
                watcher = self._add(transfer, output)
                if not self.limit or self.active < self.limit:
                    self.active += 1
                    self._start(transfer)
                else:
                    self.waiting.append(transfer)
                    if waiting is not None:
                        transfer._last, transfer._count = waiting, 1
            else:
                watcher = self._add(transfer, output)
        self.deliver(watcher)
        return watcher

    def watch(self, transfer: Transfer, output: Output) -> Watcher:
        """One more watcher of a transfer; nothing is replayed after its end."""
        with self.changed:
            watcher = self._add(transfer, output)
        self.deliver(watcher)
        return watcher

    def wait(self, watchers: Sequence[Watcher], cancel: Cancel) -> List[Any]:
        """The results of all the watched transfers, in their order.

        Raises the first error there is, without waiting for the rest; also what
        a watcher's own output raised; and Cancelled when ``cancel`` is set.
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
        """As wait(), for work that needs another transfer but holds no watcher."""
        return self.wait([Watcher(transfer, discard)], cancel)[0]

    def release(self, watcher: Watcher) -> None:
        """End a subscription; the newest progress is delivered before it returns."""
        transfer = watcher.transfer
        with self.changed:
            if watcher not in transfer._watchers:
                return
            transfer._watchers.remove(watcher)
            last = not transfer._watchers
            if last and transfer._closed:
                transfer.released = True
            elif last:
                transfer.cancel.cancel()  # under the lock: nobody may join in between
                if not transfer.started:
                    self.waiting.remove(transfer)
                    self._finish(transfer, None, Cancelled())
            self.changed.notify_all()
        self.deliver(watcher)
        with self.changed:
            while watcher.busy not in (None, threading.current_thread()):
                self.changed.wait()
            watcher.error = watcher.error or Cancelled()  # mutes it for good

    def deliver(self, watcher: Watcher) -> None:
        """Call the output with the newest progress, unless another thread is in it."""
        transfer = watcher.transfer
        with self.changed:
            if watcher.busy is not None:
                return
            watcher.busy = threading.current_thread()
            try:
                while watcher.seen < transfer._count and watcher.error is None:
                    watcher.seen, progress = transfer._count, transfer._last
                    assert progress is not None
                    self.changed.release()
                    try:
                        watcher.output(progress)
                    except BaseException as exc:
                        # An output's error is its owner's: see wait().
                        watcher.error = exc
                    finally:
                        self.changed.acquire()
            finally:
                watcher.busy = None
                self.changed.notify_all()

    # The rest is called with the lock held.

    def free_slot(self, transfer: Transfer) -> None:
        if not transfer._active:
            return
        transfer._active = False
        # The slot is handed over as it is: a limit lowered meanwhile holds for
        # new transfers only, as in the engine.
        if self.waiting:
            self._start(self.waiting.popleft())
        else:
            self.active -= 1

    def _add(self, transfer: Transfer, output: Output) -> Watcher:
        watcher = Watcher(transfer, output)
        if transfer.done:
            watcher.seen = transfer._count
        transfer._watchers.append(watcher)
        return watcher

    def _start(self, transfer: Transfer) -> None:
        transfer.started = transfer._active = True
        threading.Thread(
            target=self._work, args=(transfer,), name="transfer " + transfer.key, daemon=True
        ).start()

    def _work(self, transfer: Transfer) -> None:
        result, error = None, None
        try:
            transfer.cancel.check()
            result = transfer._run(transfer)
        except BaseException as exc:
            error = exc
        with self.changed:
            self._finish(transfer, result, error)

    def _finish(self, transfer: Transfer, result: Any, error: Optional[BaseException]) -> None:
        transfer.result, transfer.error, transfer.done = result, error, True
        self.free_slot(transfer)
        del self._transfers[transfer.key]
        transfer._closed = True
        transfer.released = not transfer._watchers
        self.changed.notify_all()

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()
