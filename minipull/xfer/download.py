# SPDX-License-Identifier: Apache-2.0
"""Downloads: layers side by side, registered as a chain.

Every layer is a transfer.  Its key stands for the layer and all below it, so
images that share their bottom layers share those transfers.  A layer needs its
slot only while bytes come in; finding its DiffID waits for a processor, and
only the very last step, the record on top of the parent's, waits for the
parent.

Mirrors moby's distribution/xfer/download.go; a layer counts as present only if
the blob that was asked for is.
"""
import abc
import contextlib
import functools
import hashlib
import itertools
import os
import threading
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..cancel import Cancel
from ..digest import ChainID
from ..image.descriptor import Descriptor
from ..progress import Output, Progress
from ..store.layer import Diff, Layer
from ..store.store import Store
from .transfer import Run, Transfer, TransferManager, Watcher

MAX_ATTEMPTS = 5
CONCURRENT_DOWNLOADS = 3


class DownloadDescriptor(abc.ABC):
    """A layer to be had, and the protocol's way to have it."""
    key: str  # what the bytes are, for sharing
    id: str  # for the reader

    @abc.abstractmethod
    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        """The blob and its DiffID, if both are in the store."""

    @abc.abstractmethod
    def download(self, transfer: Transfer) -> Optional[Descriptor]:
        """Put the blob into the store; None if it may stay elsewhere.

        Calls ``transfer.inactive()`` once the network is not needed any longer.
        """

    @abc.abstractmethod
    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        """Find the DiffID, from the stored blob or else from the config."""

    def registered(self, diff: Diff) -> None:
        """Called when the layer has its record."""


class Downloaded(NamedTuple):
    """The layers, bottom first, and what the work beside them came to."""
    layers: List[Layer]
    beside: Any


class LayerDownloadManager:
    """Shared by the pulls that are to share transfers, slots and processors.

    ``attempts`` counts all tries of one layer, ``tick`` is the second of the
    countdown between them.
    """

    def __init__(self, concurrency: int = CONCURRENT_DOWNLOADS, attempts: int = MAX_ATTEMPTS,
                 tick: float = 1.0) -> None:
        self.transfers = TransferManager(concurrency)
        self.processors = Turnstile(os.cpu_count() or 1)
        self.attempts = attempts
        self.tick = tick

    def download(self, store: Store, layers: Sequence[DownloadDescriptor], output: Output,
                 cancel: Cancel, beside: Tuple[str, Run]) -> Downloaded:
        """Have all ``layers``, bottom first, and the result of ``beside``.

        ``beside`` is the key and the work of one more transfer, which starts
        first.  The first error ends it all; transfers that others need go on.
        """
        manager = self.transfers
        with contextlib.ExitStack() as stack:

            def start(key: str, run: Run, id: str) -> Watcher:
                waiting = Progress(id=id, action="Waiting") if id else None
                work = functools.partial(locked, store, run)
                watcher = manager.transfer(store.root + key, work, output, waiting, cancel)
                stack.callback(manager.release, watcher)
                return watcher

            first = start(beside[0], beside[1], "")
            found: List[Layer] = []
            watchers: List[Watcher] = []
            by_key: Dict[str, Transfer] = {}
            chain_key = hashlib.sha256()
            for descriptor in layers:
                chain_key.update(descriptor.key.encode() + b"\0")
                present = None if watchers else descriptor.present()
                if present is not None:
                    blob, diff = present
                    parent = found[-1].chain_id if found else None
                    found.append(store.layers.register(parent, diff, blob))
                    output(Progress(id=descriptor.id, action="Already exists"))
                    descriptor.registered(diff)
                    continue
                job = _Job(
                    self, store, descriptor, found[-1] if found else None,
                    watchers[-1].transfer if watchers else None, by_key.get(descriptor.key))
                if job.same is None:
                    output(Progress(id=descriptor.id, action="Pulling fs layer"))
                id = "" if job.same else descriptor.id
                watchers.append(start(chain_key.hexdigest(), job.run, id))
                by_key.setdefault(descriptor.key, watchers[-1].transfer)
            results = manager.wait([first] + watchers, cancel)
            return Downloaded(found + results[1:], results[0])


class _Job(NamedTuple):
    """The work of one layer's transfer, by whichever pull comes first."""
    manager: LayerDownloadManager
    store: Store
    descriptor: DownloadDescriptor
    below: Optional[Layer]  # the present layer that this one lies on, or
    parent: Optional[Transfer]  # the transfer that brings it
    same: Optional[Transfer]  # which brings the same blob, lower in the image

    def run(self, transfer: Transfer) -> Layer:
        if self.parent is not None and self.parent.error is not None:
            raise self.parent.error
        blob, diff = self._copy(transfer) if self.same else self._fetch(transfer)
        layer = self.store.layers.register(self._chain(transfer), diff, blob)
        if self.same is None:
            transfer.progress(Progress(id=self.descriptor.id, action="Pull complete"))
        self.descriptor.registered(diff)
        return layer

    def _fetch(self, transfer: Transfer) -> Tuple[Optional[Descriptor], Diff]:
        blob: Optional[Descriptor] = transfer.attempt(
            lambda: self.descriptor.download(transfer), self.descriptor.id,
            self.manager.attempts, self.manager.tick)
        transfer.inactive()
        with self.manager.processors.turn(blob.size if blob else 0, transfer.cancel):
            return blob, self.descriptor.diff(transfer, blob)

    def _copy(self, transfer: Transfer) -> Tuple[Optional[Descriptor], Diff]:
        transfer.inactive()
        assert self.same is not None
        source: Layer = self.manager.transfers.result(self.same, transfer.cancel)
        return self.descriptor.present() or (None, source.diff)

    def _chain(self, transfer: Transfer) -> Optional[ChainID]:
        if self.parent is not None:
            parent: Layer = self.manager.transfers.result(self.parent, transfer.cancel)
            return parent.chain_id
        return self.below.chain_id if self.below else None


def locked(store: Store, run: Run, transfer: Transfer) -> Any:
    """Run with a lock of its own: a worker may outlive the pull that it works for."""
    with store.writing(transfer.cancel):
        return run(transfer)


class Turnstile:
    """Lets at most ``limit`` threads in, those with the largest work first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._queue: List[Tuple[int, int]] = []
        self._arrivals = itertools.count()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, size: int, cancel: Cancel) -> Iterator[None]:
        """Be inside within the block; raises Cancelled while waiting."""
        with cancel.calling(self._wake), self._changed:
            place = (-size, next(self._arrivals))
            self._queue.append(place)
            try:
                while self._inside >= self._limit or min(self._queue) != place:
                    cancel.check()
                    self._changed.wait()
                self._inside += 1
            finally:
                self._queue.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
