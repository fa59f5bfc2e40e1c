# SPDX-License-Identifier: Apache-2.0
"""Uploads: blobs side by side, each continued from where the registry has it.

Every blob is a transfer, so two tags of one repository share it.  It holds its
slot until its end; what the registry answers is the transfer's result.

Mirrors moby's distribution/xfer/upload.go.
"""
import abc
import contextlib
import functools
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Union

from .descriptor import Descriptor
from .digest import Verifier
from .download import MAX_ATTEMPTS, MAX_BREAKS
from .errors import NetworkError, RegistryError
from .progress import Output, Progress
from .repository import Repository, Upload
from .store import Store
from .streams import Body, Buffer, Cancel
from .xfer import Transfer, TransferManager, Watcher

CONCURRENT_UPLOADS = 5
SMALL = 1 << 20  # bytes; up to here a blob is sent along with its commit
_STUCK_DELAYS = (0.2, 0.5, 1.0)  # seconds, before what did not move at all is tried again
_RESUMED = frozenset((404, 408, 410, 416, 499, 500, 502, 503, 504))


class UploadDescriptor(abc.ABC):
    """A blob to be sent, and the protocol's way to send it."""
    key: str  # what goes where, for sharing
    id: str  # for the reader

    @abc.abstractmethod
    def upload(self, transfer: Transfer) -> Any:
        """Have the blob at its target; what this returns is given to every user."""


class LayerUploadManager:
    """Shared by the pushes that are to share transfers and slots.

    ``attempts`` counts all tries of one blob, ``tick`` is the second of the
    countdown between them.
    """

    def __init__(self, concurrency: int = CONCURRENT_UPLOADS, attempts: int = MAX_ATTEMPTS,
                 tick: float = 1.0) -> None:
        self.transfers = TransferManager(concurrency)
        self.attempts = attempts
        self.tick = tick

    def upload(self, store: Optional[Store], blobs: Sequence[UploadDescriptor], output: Output,
               cancel: Cancel) -> List[Any]:
        """Send all ``blobs``, of ``store`` if of any; the results in their order.

        The first error ends it all; transfers that others need go on.
        """
        with contextlib.ExitStack() as stack:
            watchers: Dict[str, Watcher] = {}
            for blob in blobs:
                if blob.id:
                    output(Progress(id=blob.id, action="Preparing"))
                if blob.key not in watchers:
                    waiting = Progress(id=blob.id, action="Waiting") if blob.id else None
                    watchers[blob.key] = self.transfers.transfer(
                        blob.key, functools.partial(self._work, store, blob), output, waiting, cancel)
                    stack.callback(self.transfers.release, watchers[blob.key])
            self.transfers.wait(list(watchers.values()), cancel)
            return [watchers[blob.key].transfer.result for blob in blobs]

    def _work(self, store: Optional[Store], blob: UploadDescriptor, transfer: Transfer) -> Any:
        with contextlib.ExitStack() as stack:
            if store is not None:  # this may outlive the push that it works for
                stack.enter_context(store.using(transfer.cancel))
            return transfer.attempt(
                lambda: blob.upload(transfer), blob.id, self.attempts, self.tick)


def send_blob(repository: Repository, blob: Descriptor, source: Callable[[int, int], Body],
              cancel: Cancel, upload: Optional[Upload] = None, chunk_size: int = 0) -> None:
    """Send a blob, and after a break what the registry does not have of it yet.

    ``source`` gives so many bytes from an offset on.  ``upload`` is an open one
    to be used, ``chunk_size`` (bytes) is the most that one request brings.
    """
    breaks, stuck, best = MAX_BREAKS + (blob.size >> 20), 0, 0
    while True:
        try:
            if upload is None:
                upload = repository.start_upload(cancel)
                assert upload is not None
            most = max(chunk_size, upload.least) if chunk_size else blob.size
            if upload.offset == 0 and blob.size <= min(most, SMALL):
                upload.commit(blob.digest, cancel, source(0, blob.size))
                return
            while upload.offset < blob.size:
                count = min(most, blob.size - upload.offset)
                upload.append(source(upload.offset, count), cancel, chunk=count < blob.size)
            upload.commit(blob.digest, cancel)
            return
        except (NetworkError, RegistryError) as exc:
            cancel.check()
            wrong = isinstance(exc, RegistryError) and exc.code == "DIGEST_INVALID"
            if not (_passes(exc) or wrong and best) or upload is None:
                raise
            try:
                # Its answer may have been lost, and not the blob.
                at_end = upload.offset in (0, blob.size)
                if at_end and repository.stat(blob.digest, cancel) == blob.size:
                    return
                upload.sync(cancel)
            except (NetworkError, RegistryError):
                upload = None
            if upload is not None and (wrong or not 0 < upload.offset <= blob.size):
                upload = None  # there is nothing, or nothing of this, to go on from
            offset = upload.offset if upload else 0
            best, stuck = 0 if wrong else max(best, offset), 0 if offset > best else stuck + 1
            breaks -= 1
            if not breaks or stuck > len(_STUCK_DELAYS):
                raise exc
            cancel.pause(_STUCK_DELAYS[stuck - 1] if stuck else 0)


def send_stream(repository: Repository, stream: Callable[[], Iterable[Buffer]], cancel: Cancel,
                upload: Optional[Upload] = None, chunk_size: int = 0) -> Verifier:
    """Send a blob that is made on its way, after a break all of it; returns what it was.

    Of a ``chunk_size`` (bytes) so many are held in memory.
    """
    delays = list(_STUCK_DELAYS)
    verifier = Verifier()

    def pieces() -> Iterator[Buffer]:
        nonlocal verifier
        verifier = Verifier()
        for piece in stream():
            verifier.update(piece)
            yield piece

    def bodies(most: int) -> Iterator[Body]:
        held = bytearray()
        for piece in pieces():
            held += piece
            while len(held) > most:
                yield Body.of(bytes(held[:most]))
                del held[:most]
        yield Body.of(bytes(held))

    while True:
        try:
            upload = upload or repository.start_upload(cancel)
            assert upload is not None
            most = max(chunk_size, upload.least)
            for body in bodies(most) if chunk_size else [Body(pieces)]:
                upload.append(body, cancel, chunk=True)
            upload.commit(verifier.digest, cancel)
            return verifier
        except (NetworkError, RegistryError) as exc:
            if not _passes(exc) or upload is None or not delays:
                raise
        upload = None
        cancel.pause(delays.pop(0))


def _passes(exc: Union[NetworkError, RegistryError]) -> bool:
    """Whether another session, or what is left of this one, may still do."""
    if isinstance(exc, RegistryError) and exc.status == 413:
        error = exc.within("too much for one request, try --chunk-size")
        error.retry = False
        raise error from exc
    return exc.status in _RESUMED if isinstance(exc, RegistryError) else exc.retry
