# SPDX-License-Identifier: Apache-2.0
"""Manifests side by side, within the slots of blobs: asked for before their turn, pulled whole, and put.

The order of a walk stays, and so does its first error.  moby asks for one after another.
"""
import collections
import contextlib
import functools
import itertools
import zlib
from typing import Any, Callable, Container, ContextManager, Deque, Dict, Iterable, Iterator, List, Optional, Tuple

from ..cancel import Cancel
from ..digest import Digest
from ..errors import PolicyError
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Index, Manifest
from ..progress import discard
from ..registry.v2 import Received, Repository
from ..xfer.transfer import Holding, Run, Transfer, TransferManager, Watcher, nothing
from .blobs import persist

MAX_AHEAD = 1 << 20  # bytes of JSON, which may take 30 times that, here or asked for before their turn
MAX_HELD = 1 << 19  # bytes of JSON that are parsed, of all manifests of an image
_WAVES = 3  # manifests on their way, or in line, in terms of the slots: one that is slow holds up few


class Held:
    """Manifests in order; those past MAX_HELD are kept as bytes, compressed, and parsed at each turn."""
    top: Document  # the last one

    def __init__(self) -> None:
        self._made: List[Callable[[], Document]] = []
        self._room = MAX_HELD

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Document]:
        return (make() for make in self._made)

    def below(self) -> Iterator[Document]:
        return itertools.islice(self, max(0, len(self) - 1))

    def append(self, document: Document) -> None:
        self.top = document
        self._room -= len(document.raw)
        if self._room >= 0:
            self._made.append(lambda: document)
            return
        packed, names = zlib.compress(document.raw, 1), (document.media_type, document.digest)
        self._made.append(lambda: Received(zlib.decompress(packed), *names).document())


class Ahead(ContextManager["Ahead"]):
    """The manifests of a walk, of which a repository is asked for those to come; use it in a ``with``.

    ``plain`` returns one that has not been asked for: ``stored`` ones, and all without a ``repository``.
    Entries that the walk has ``seen`` are left out.
    """

    def __init__(self, plain: Callable[[Descriptor], Document], repository: Optional[Repository],
                 transfers: TransferManager, cancel: Cancel,
                 stored: Callable[[Digest, int], bool] = lambda digest, size: False,
                 seen: Container[Tuple[str, Digest, int]] = ()) -> None:
        self._plain = plain
        self._repository = repository
        self._transfers = transfers
        self._cancel = cancel
        self._stored = stored
        self._seen = seen
        self._asked: Dict[Digest, Watcher] = {}
        self._sizes: Dict[Digest, int] = {}  # of those that were ever asked for
        self._held = 0  # bytes of those whose turn is still to come, by their index

    def __exit__(self, *exc_info: object) -> None:
        for digest in list(self._asked):
            self._release(digest)

    def below(self, index: Index) -> Iterator[Descriptor]:
        """Yield the entries of an index one by one, after asking for it and for some that follow."""
        entries, coming = [entry for entry in index.manifests if entry[:3] not in self._seen], 0
        for position, entry in enumerate(entries):
            while coming < len(entries) and (coming <= position or self._room(entries[coming])):
                self._ask(entries[coming])
                coming += 1
            yield entry
            if entry.digest in self._asked:  # another process has stored it meanwhile
                self._release(entry.digest)

    def get(self, entry: Descriptor) -> Document:
        """Return the manifest of an entry; raises as Repository.manifest and ``plain``."""
        watcher = self._asked.get(entry.digest)
        if watcher is not None:
            try:
                # One larger than its index says is had again, alone: the walk tells what is wrong.
                with contextlib.suppress(PolicyError):
                    received: Received = self._transfers.wait([watcher], self._cancel)[0]
                    return received.document()
            finally:
                self._release(entry.digest)
        return self._plain(entry) if self._repository is None else self.in_turn(lambda: self._plain(entry))

    def in_turn(self, work: Callable[[], Any], holding: Holding = nothing) -> Any:
        """Return the result of ``work``, which asks for what has not been asked for, within a slot."""
        works = [("turn:%x" % id(self), lambda transfer: work())]
        with side_by_side(self._transfers, works, self._cancel, holding) as wait:
            return wait()[0]

    def _room(self, entry: Descriptor) -> bool:
        return len(self._asked) < most_ahead(self._transfers) and self._held + entry.size <= MAX_AHEAD

    def _ask(self, entry: Descriptor) -> None:
        repository, digest, size = self._repository, entry.digest, entry.size
        known = digest in self._sizes or bool(entry.data) or self._stored(digest, size)
        if repository is None or known or not entry.is_document:
            return
        work = functools.partial(repository.manifest, digest, limit=size)

        def run(transfer: Transfer) -> Received:
            return persist(repository, transfer.cancel, work)

        key = "manifest:%s %s %s %d" % (repository.endpoint, repository.path, digest, size)
        self._asked[digest] = self._transfers.transfer(key, run, discard, None, self._cancel)
        self._sizes[digest] = size
        self._held += size

    def _release(self, digest: Digest) -> None:
        self._held -= self._sizes[digest]
        self._transfers.release(self._asked.pop(digest))


def most_ahead(transfers: TransferManager) -> int:
    """The number of requests that may be in line before their turn."""
    return _WAVES * (transfers.limit or 8)


def put_below(documents: Iterable[Document], put: Callable[[Document, Cancel], Any], key: str,
              transfers: TransferManager, cancel: Cancel, holding: Holding = nothing) -> None:
    """Put manifests, each by its digest and children before their index; raises the first error in order.

    ``key`` is unique to their target.  Referrers, whose order a list may show, are put one by one.
    """
    def run(transfer: Transfer, document: Document) -> None:
        put(document, transfer.cancel)

    with contextlib.ExitStack() as stack:
        coming: Deque[Tuple[Watcher, int]] = collections.deque()
        room = most_ahead(transfers)
        for document in documents:
            alone, size = isinstance(document, Index) or document.subject is not None, len(document.raw)
            while len(coming) >= (1 if alone else room) or coming and size + sum(
                    other for _, other in coming) > MAX_HELD:
                transfers.wait([coming.popleft()[0]], cancel)
            coming.append((transfers.transfer(
                "put:%s %s" % (key, document.digest), functools.partial(run, document=document), discard,
                None, cancel, holding), size))
            stack.callback(transfers.release, coming[-1][0])
            room = 1 if alone else most_ahead(transfers)  # so nothing is beside it
        for watcher, _ in coming:
            transfers.wait([watcher], cancel)


@contextlib.contextmanager
def side_by_side(transfers: TransferManager, works: Iterable[Tuple[str, Run]], cancel: Cancel,
                 holding: Holding = nothing) -> Iterator[Callable[[], List[Any]]]:
    """Work within the block, which gets a function for the results; it raises the first error in order."""
    with contextlib.ExitStack() as stack:
        watchers: List[Watcher] = []
        for key, run in works:
            watchers.append(transfers.transfer(key, run, discard, None, cancel, holding))
            stack.callback(transfers.release, watchers[-1])

        def wait() -> List[Any]:
            return [transfers.wait([watcher], cancel)[0] for watcher in watchers]

        yield wait


def pull_in_order(entries: Iterable[Descriptor], get: Callable[[Descriptor], Document],
                  begin: Callable[[Manifest], ContextManager[Callable[[], Any]]],
                  lacks: Callable[[Descriptor], bool], transfers: TransferManager) -> None:
    """Pull the images of some entries: they begin while others are on their way, and end in their turn.

    ``lacks`` tells which blobs are to come; an image waits for those before it that share one of these.
    """
    with contextlib.ExitStack() as every:
        coming: Deque[Tuple[Manifest, contextlib.ExitStack, Callable[[], Any]]] = collections.deque()

        def end() -> None:
            _, block, wait = coming.popleft()
            with block:
                wait()

        def room(size: int) -> bool:
            return size + sum(len(other.raw) + other.config.size for other, _, _ in coming) <= MAX_AHEAD

        for entry in entries:
            while coming and not room(entry.size):
                end()  # before the next one is parsed
            image = get(entry)
            if isinstance(image, Index):
                continue
            missing = {blob.digest for blob in image.blobs if lacks(blob)}
            while coming:
                others = [blob.digest for other, _, _ in coming for blob in other.blobs]
                fits = len(others) < most_ahead(transfers) and room(entry.size + image.config.size)
                if fits and missing.isdisjoint(others):
                    break
                end()
            block = every.enter_context(contextlib.ExitStack())
            coming.append((image, block, block.enter_context(begin(image))))
        while coming:
            end()
