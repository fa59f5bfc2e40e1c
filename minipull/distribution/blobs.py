# SPDX-License-Identifier: Apache-2.0
"""One blob in or out, continued where it broke off."""
import contextlib
from typing import Callable, Iterable, Iterator, Optional, TypeVar, Union

from ..cancel import Cancel
from ..digest import Buffer, Verifier
from ..errors import ContentMismatch, Error, NetworkError
from ..image.descriptor import Descriptor
from ..progress import Meter, Output, Progress, discard
from ..registry.errors import RegistryError
from ..registry.request import Body
from ..registry.response import Response
from ..registry.v2 import Repository, Upload
from ..store.compression import BUFFER
from ..store.content import Ingest
from ..store.store import Store
from ..xfer.transfer import Transfer

MAX_BREAKS = 100  # in one blob, and one more for each MiB
STUCK_DELAY = 0.2  # seconds, before a body that broke off at its first byte
DOCUMENT_DELAYS = (0.25, 0.5, 1.0, 2.0)  # seconds between five attempts
T = TypeVar("T")
SMALL = 1 << 20  # bytes; up to here a blob is sent along with its commit
_STUCK_DELAYS = (0.2, 0.5, 1.0)  # seconds, before what did not move at all is tried again
_RESUMED = frozenset((404, 408, 410, 416, 499, 500, 502, 503, 504))


def fetch_blob(store: Store, blob: Descriptor, what: str, cancel: Cancel,
               source: Callable[[int], Response], transfer: Optional[Transfer] = None) -> None:
    """Bring a blob into the store, from where an earlier attempt left it.

    ``source`` opens it at an offset.  A body that breaks off is continued at
    once, as long as it moves.  ``what`` begins the text if the content is wrong.
    """
    output = transfer.progress if transfer else discard
    with store.content.ingest(blob.digest, blob.size, cancel) as ingest:
        if ingest.complete:
            return
        breaks, stuck, again = MAX_BREAKS + (blob.size >> 20), 0, True
        while ingest.offset < blob.size:
            start, opened = ingest.offset, False
            try:
                with source(start) as response:
                    opened = True
                    _copy(response, ingest, output)
            except NetworkError:
                breaks -= 1
                stuck = 0 if ingest.offset > start else stuck + 1
                # What did not even open was tried again below.
                if not breaks or stuck and not opened or stuck > 1:
                    raise
                cancel.pause(stuck * STUCK_DELAY)
                ingest.resumed = True  # who sends the rest may send something else
            except (ContentMismatch, RegistryError) as exc:
                # The rest can't be had, or is not the rest: all of it then, but once.
                wrong = isinstance(exc, ContentMismatch) or exc.status == 416
                if not (wrong and start and again):
                    raise
                again = False
                ingest.restart()
        output(Progress(id=blob.digest.short, action="Verifying Checksum"))
        ingest.verify(what)
        output(Progress(id=blob.digest.short, action="Download complete"))
        if transfer is not None:
            transfer.inactive()  # the sync below may overlap the next download
        ingest.commit()


def _copy(response: Response, ingest: Ingest, output: Output) -> None:
    if ingest.offset and response.status != 206:
        ingest.restart()  # the server sends it all, so never append
    if response.remaining not in (None, ingest.size - ingest.offset):
        ingest.restart()
        raise ContentMismatch("blob %s: size is not %d as promised" % (ingest.digest, ingest.size))
    meter = Meter(output, ingest.digest.short, "Downloading", ingest.size)
    meter.current = ingest.offset
    view = memoryview(bytearray(min(BUFFER, ingest.size + 1)))
    for count in iter(lambda: response.readinto(view), 0):
        ingest.write(view[:count])
        meter.advance(count)
    if ingest.offset < ingest.size:
        raise NetworkError("%s ended the body early" % (response.origin,))


def persist(repository: Repository, cancel: Cancel, work: Callable[[], T]) -> T:
    """Small documents have their own attempts, as the engine's configs have."""
    for delay in DOCUMENT_DELAYS:
        try:
            return work()
        except Error as exc:
            # Who never answered is not there: that need not take long to say.
            # Nor does a registry that said no say yes a second later.
            said_no = isinstance(exc, RegistryError) and exc.status < 500
            if not exc.retry or said_no or not repository.answered:
                raise
        cancel.pause(delay)
    return work()


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


class RemoteBlob:
    """A blob of a registry, read from wherever it is wanted next.

    What breaks off is continued here, so that who is sent to notices nothing.
    """

    def __init__(self, repository: Repository, blob: Descriptor, cancel: Cancel,
                 stack: contextlib.ExitStack) -> None:
        self._repository = repository
        self._blob = blob
        self._cancel = cancel
        self._stack = stack
        self._response: Optional[Response] = None
        self._position = self._opened = 0
        self._breaks = MAX_BREAKS + (blob.size >> 20)
        #: Of all that was read, if that was without a gap.
        self._verifier: Optional[Verifier] = Verifier(blob.digest.algorithm)

    def read(self, offset: int, size: int) -> Iterator[Buffer]:
        view, end = memoryview(bytearray(min(BUFFER, size + 1))), offset + size
        if offset != self._position:
            self._response, self._position = None, offset
            self._verifier = None if offset else Verifier(self._blob.digest.algorithm)
        while self._position < end:
            try:
                response = self._response or self._open()
                count = response.readinto(view[:end - self._position])
                if not count:
                    raise NetworkError("%s ended the body early" % (response.origin,))
            except NetworkError:
                moved, self._response = self._position > self._opened, None
                self._breaks -= 1
                if not moved or self._breaks <= 0:
                    raise
                continue
            self._position += count
            if self._verifier is not None:
                self._verifier.update(view[:count])
                if self._position == self._blob.size:
                    self._verifier.verify(
                        self._blob.digest, self._blob.size, "blob %s" % self._blob.digest)
            yield view[:count]

    def _open(self) -> Response:
        """The blob from our position on; raises ContentMismatch for one of another size."""
        self._stack.close()
        self._opened = self._position
        try:
            response = self._stack.enter_context(
                self._repository.blob(self._blob.digest, self._position, self._cancel))
        except RegistryError as exc:
            # No RegistryError: that would be taken for the answer of who is sent to.
            error = Error("%s/%s: %s" % (self._repository.endpoint, self._repository.path, exc))
            error.exit_code, error.retry = exc.exit_code, exc.retry
            raise error from exc
        start = self._position if response.status == 206 else 0
        if response.remaining not in (None, self._blob.size - start):
            raise ContentMismatch("blob %s: size is not %d as promised" % (
                self._blob.digest, self._blob.size))
        skipped = memoryview(bytearray(min(BUFFER, self._position - start + 1)))
        while start < self._position:  # it gives all or nothing
            count = response.readinto(skipped[:self._position - start])
            if not count:
                raise NetworkError("%s ended the body early" % (response.origin,))
            start += count
        self._response = response
        return response
