# SPDX-License-Identifier: Apache-2.0
"""Downloads: layers side by side, registered as a chain.

Each layer is a transfer.  Its key stands for the layer and all layers below it,
so images that share their bottom layers share those transfers.  A layer needs
its slot only while it is downloaded.  Its DiffID is then found when a processor
is free, and only the last step, the record on top of its parent's, waits for
the parent.

Mirrors moby's distribution/xfer/download.go.

Where this leaves the engine:

- A layer is present if the blob is that its descriptor names, not if any layer
  with that chain of DiffIDs is.
- Keys are hashes of the chain, not all keys strung together, and say which store.
- Layers are decompressed in parallel, to learn their DiffIDs, not to unpack them.
- The config is one more transfer, which starts first and fails all layers.
"""
import abc
import contextlib
import hashlib
import itertools
import math
import os
import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..cancel import Cancel
from ..digest import ChainID
from ..errors import Error, InvalidReference
from ..image.descriptor import Descriptor
from ..progress import Output, Progress
from ..store.layer import Diff, Layer
from ..store.store import Store
from .transfer import Run, Transfer, TransferManager, Watcher

MAX_ATTEMPTS = 5
CONCURRENT_DOWNLOADS = 3


class DownloadDescriptor(abc.ABC):
    """A layer to download, and how its protocol does it."""
    key: str  # equal for equal bytes
    id: str  # of its progress
    size = 0  # bytes, if known

    @abc.abstractmethod
    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        """Return the blob and its DiffID if both are in the store."""

    @abc.abstractmethod
    def download(self, transfer: Transfer) -> Optional[Descriptor]:
        """Store the blob and return it, or None if it may stay elsewhere; frees the slot once it is here."""

    @abc.abstractmethod
    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        """Find the DiffID, in the stored blob or else in the config."""

    def registered(self, diff: Diff) -> None:
        """Note that the layer has its record."""


class LayerManager:
    """Transfers of layers, their slots, and ``attempts`` at each; the base of downloads and uploads.

    The countdown between two attempts goes by ``tick`` seconds.
    """
    default_concurrency = CONCURRENT_DOWNLOADS

    def __init__(self, concurrency: Optional[int] = None, attempts: int = MAX_ATTEMPTS,
                 tick: float = 1.0) -> None:
        if attempts < 1 or (concurrency or 0) < 0:  # nothing would be begun, and some of it be taken for done
            raise InvalidReference("want one attempt or more, and a concurrency that is not negative")
        self.transfers = TransferManager(self.default_concurrency if concurrency is None else concurrency)
        self.processors = Turnstile(os.cpu_count() or 1)  # for what needs no slot
        self.attempts = attempts
        self.tick = tick

    def attempt(self, transfer: Transfer, work: Run, id: str) -> Any:
        """Attempt ``work``, with the engine's countdown (5, 10, ... ticks) between; raises its last error."""
        for attempt in range(1, self.attempts + 1):
            try:
                return work(transfer)
            except Error as exc:
                transfer.cancel.check()
                if not exc.retry or attempt == self.attempts:
                    raise
            for left in range(attempt * 5, 0, -1):
                text = "Retrying in %d second%s" % (left, "" if left == 1 else "s")
                transfer.progress(Progress(id=id, action=text))
                transfer.cancel.pause(self.tick)


class LayerDownloadManager(LayerManager):
    """Downloads of layers; pulls with the same manager share processors too."""

    def download(self, store: Store, layers: Sequence[DownloadDescriptor], output: Output,
                 cancel: Cancel, beside: Tuple[str, Run]) -> Tuple[List[Layer], Any]:
        """Download ``layers``, bottom first; a transfer ``beside``, of a key and its work, starts first.

        Raises the first error of all; a transfer that another pull shares goes on.
        """
        with self.downloading(store, layers, output, cancel, beside) as wait:
            return wait()

    @contextlib.contextmanager
    def downloading(self, store: Store, layers: Sequence[DownloadDescriptor], output: Output, cancel: Cancel,
                    beside: Tuple[str, Run]) -> Iterator[Callable[[], Tuple[List[Layer], Any]]]:
        """Download as download() does within the block, which gets a function that returns the result."""
        manager = self.transfers
        with contextlib.ExitStack() as stack:

            def start(key: str, run: Run, id: str) -> Watcher:
                waiting = Progress(id=id, action="Waiting") if id else None
                watcher = manager.transfer(
                    "%s %s" % (store.root, key), run, output, waiting, cancel, store.writing)
                stack.callback(manager.release, watcher)
                return watcher

            first = start(*beside, "")
            present: List[Layer] = []
            watchers: List[Watcher] = []
            by_key: Dict[str, Transfer] = {}
            chain_key = hashlib.sha256()
            for descriptor in layers:
                chain_key.update(descriptor.key.encode() + b"\0")
                stored = None if watchers else descriptor.present()
                if stored is not None:
                    blob, diff = stored
                    parent = present[-1].chain_id if present else None
                    present.append(store.layers.register(parent, diff, blob))
                    output(Progress(id=descriptor.id, action="Already exists"))
                    descriptor.registered(diff)
                    continue
                work = _LayerDownload(
                    self, store, descriptor, present[-1] if present else None,
                    watchers[-1].transfer if watchers else None, by_key.get(descriptor.key))
                if work.duplicate is None:
                    output(Progress(id=descriptor.id, action="Pulling fs layer", expected=descriptor.size))
                id = "" if work.duplicate else descriptor.id
                watchers.append(start(chain_key.hexdigest(), work.run, id))
                by_key.setdefault(descriptor.key, watchers[-1].transfer)

            def wait() -> Tuple[List[Layer], Any]:
                results = manager.wait([first] + watchers, cancel)
                return present + results[1:], results[0]

            yield wait


class _LayerDownload(NamedTuple):
    """The work of one layer's transfer, described by the pull that started it."""
    manager: LayerDownloadManager
    store: Store
    descriptor: DownloadDescriptor
    below: Optional[Layer]  # the top layer that is present
    parent: Optional[Transfer]  # of the layer below, if that is not present
    duplicate: Optional[Transfer]  # of the same blob, lower in the image

    def run(self, transfer: Transfer) -> Layer:
        if self.parent is not None and self.parent.error is not None:
            raise self.parent.error
        blob, diff = self._copy(transfer) if self.duplicate else self._fetch(transfer)
        layer = self.store.layers.register(self._chain(transfer), diff, blob)
        if self.duplicate is None:
            transfer.progress(Progress(id=self.descriptor.id, action="Pull complete"))
        self.descriptor.registered(diff)
        return layer

    def _fetch(self, transfer: Transfer) -> Tuple[Optional[Descriptor], Diff]:
        blob: Optional[Descriptor] = self.manager.attempt(
            transfer, self.descriptor.download, self.descriptor.id)
        transfer.inactive()
        with self.manager.processors.turn(blob.size if blob else 0, transfer.cancel):
            return blob, self.descriptor.diff(transfer, blob)

    def _copy(self, transfer: Transfer) -> Tuple[Optional[Descriptor], Diff]:
        transfer.inactive()
        assert self.duplicate is not None
        source: Layer = self.manager.transfers.result(self.duplicate, transfer.cancel)
        return self.descriptor.present() or (None, source.diff)

    def _chain(self, transfer: Transfer) -> Optional[ChainID]:
        if self.parent is not None:
            parent: Layer = self.manager.transfers.result(self.parent, transfer.cancel)
            return parent.chain_id
        return self.below.chain_id if self.below else None


class Turnstile:
    """A lock that ``limit`` threads may hold at once; of those that wait, the largest work is first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrivals = itertools.count()
        self._sizes: Dict[int, float] = {}  # of the work, by arrival; a thread with its turn counts as infinite
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        holders = list(self._sizes.values()).count(math.inf)
        return "<Turnstile: %d of %d in use, %d waiting>" % (holders, self._limit, len(self._sizes) - holders)

    @contextlib.contextmanager
    def turn(self, size: int, cancel: Cancel) -> Iterator[None]:
        """Hold the lock within the block, for work on ``size`` bytes; raises Cancelled while waiting."""
        arrival = next(self._arrivals)
        try:
            with cancel.calling(self._wake), self._changed:
                self._sizes[arrival] = size
                while arrival not in sorted(self._sizes, key=lambda n: (-self._sizes[n], n))[:self._limit]:
                    cancel.check()
                    self._changed.wait()
                self._sizes[arrival] = math.inf
            yield
        finally:
            with self._changed:
                self._sizes.pop(arrival, None)
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
