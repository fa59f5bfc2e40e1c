# SPDX-License-Identifier: Apache-2.0
"""Transfers: work that several users share, within a number of slots.

A transfer is one function run once for all who ask for its key.  Each user
holds a watcher: a place where progress goes, and a vote to keep the work
alive.  The rules:

- a transfer is cancelled when its last watcher leaves before the manager has
  closed it, and by nothing else; a user who gives up only leaves;
- it holds its slot until it ends or says :meth:`Transfer.inactive`; slots are
  given in the order of asking, and a limit set meanwhile holds for the next;
- who joins sees the newest progress at once; who leaves has seen the newest,
  and after :meth:`TransferManager.release` the output is never called again;
- who asks for the key of a cancelled transfer waits until that is gone and
  gets a new one.

The engine runs a goroutine for each role.  Here a transfer has one thread from
when it gets its slot, and all state lies under one Condition; progress is
delivered by whoever emits it, who waits while the output is busy elsewhere and
skips what has been overtaken by then.

Mirrors moby's distribution/xfer/transfer.go.  Knows no images.
"""
import collections
import threading
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence

from ..cancel import Cancel
from ..errors import Cancelled, Error
from ..progress import Output, Progress, discard


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

    def attempt(self, work: Callable[[], Any], id: str, attempts: int, tick: float) -> Any:
        """The engine's attempts at ``work``, with its countdown in between; ``tick`` is its second."""
        for attempt in range(1, attempts + 1):
            try:
                return work()
            except Error as exc:
                self.cancel.check()
                if not exc.retry or attempt == attempts:
                    raise
            for left in range(attempt * 5, 0, -1):
                text = "Retrying in %d second%s" % (left, "" if left == 1 else "s")
                self.progress(Progress(id=id, action=text))
                self.cancel.pause(tick)

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
        self._queued = 0  # threads that wait for an output

    def __repr__(self) -> str:
        return "<TransferManager: %d of %d active, %d waiting>" % (
            self.active, self.limit, len(self.waiting))

    def transfer(self, key: str, run: Run, output: Output, waiting: Optional[Progress] = None,
                 cancel: Optional[Cancel] = None) -> Watcher:
        """Join the transfer of ``key`` or start it as ``run(transfer)``.

        ``waiting`` is what is shown until the transfer gets its slot.  The
        watcher is to be released, whatever happens.  ``cancel`` raises Cancelled
        where a cancelled transfer has to go first.
        """
        cancel = cancel or Cancel()
        with cancel.calling(self._wake), self.changed:
            while True:
                transfer = self._transfers.get(key)
                if transfer is None or not transfer.cancel.cancelled:
                    break
                cancel.check()
                self.changed.wait()
            if transfer is not None:
                watcher = self._add(transfer, output)
            else:
                transfer = self._transfers[key] = Transfer(self, key, run)
                watcher = self._add(transfer, output)
                self.waiting.append(transfer)
                self._fill()
                if not transfer.started and waiting is not None:
                    transfer._last, transfer._count = waiting, 1
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
            if last and transfer.done:
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
                self._wait_for_output()
            watcher.error = watcher.error or Cancelled()  # mutes it for good

    def deliver(self, watcher: Watcher) -> None:
        """Show the output the newest progress, unless somebody else does.

        It is called once at most: what comes in meanwhile keeps nobody here but
        who brought it.
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
                # An output's error is its owner's: see wait().
                watcher.error = exc
            finally:
                self.changed.acquire()
                watcher.busy = None
                # Waking everybody for every event would cost more than the work.
                if self._queued or watcher.error is not None:
                    self.changed.notify_all()

    # The rest is called with the lock held.

    def free_slot(self, transfer: Transfer) -> None:
        if transfer._active:
            transfer._active = False
            self.active -= 1
            self._fill()

    def _fill(self) -> None:
        for transfer in iter(self._next, None):
            thread = threading.Thread(target=self._work, args=(transfer,), daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # the system has no more threads
                transfer._active = False
                self.active -= 1
                self._finish(transfer, None, Error("transfer %s: %s" % (transfer.key, exc)))

    def _next(self) -> Optional[Transfer]:
        """Who gets a slot now, if there is one."""
        if not self.waiting or self.limit and self.active >= self.limit:
            return None
        transfer = self.waiting.popleft()
        transfer.started = transfer._active = True
        self.active += 1
        return transfer

    def _wait_for_output(self) -> None:
        self._queued += 1
        try:
            self.changed.wait()
        finally:
            self._queued -= 1

    def _add(self, transfer: Transfer, output: Output) -> Watcher:
        watcher = Watcher(transfer, output)
        if transfer.done:
            watcher.seen = transfer._count
        transfer._watchers.append(watcher)
        return watcher

    def _work(self, first: Transfer) -> None:
        transfer: Optional[Transfer] = first
        while transfer is not None:  # for whoever waits, no other thread need be made
            threading.current_thread().name = "transfer " + transfer.key
            result, error = None, None
            try:
                transfer.cancel.check()
                result = transfer._run(transfer)
            except BaseException as exc:
                error = exc
            with self.changed:
                if transfer._active:
                    transfer._active = False
                    self.active -= 1
                following = self._next()
                self._finish(transfer, result, error)
                self._fill()
            transfer = following

    def _finish(self, transfer: Transfer, result: Any, error: Optional[BaseException]) -> None:
        transfer.result, transfer.error, transfer.done = result, error, True
        transfer.released = not transfer._watchers
        del self._transfers[transfer.key]
        self.free_slot(transfer)
        self.changed.notify_all()

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()
