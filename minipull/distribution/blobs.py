# SPDX-License-Identifier: Apache-2.0
"""Blobs in or out, each continued where it broke off.

A body that broke off is no failed attempt: it goes on at once, as long as it
moves.  :class:`RemoteBlob` reads a blob, for the store, for another registry or
by the v1 protocol; ``send_blob`` and ``send_stream`` share the one loop that
sends.

Where this leaves the engine:

- it resumes a download only in its next attempt, after the countdown, and starts
  an upload anew; here five attempts count what did not move at all;
- a range is asked for without If-Range: whether the rest belongs to the bytes
  held is for the digest to say;
- a blob of up to 1 MiB goes along with the request that commits it;
- a copy whose source goes on with other bytes sends the blob anew, once.
"""
import contextlib
import re
from typing import Callable, Iterable, Iterator, Optional, Sequence, Tuple, TypeVar, Union

from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import ContentMismatch, Error, InvalidDocument, NetworkError, NoSupport, NotFound
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST, Document
from ..progress import Meter, Progress, discard
from ..registry.errors import Dispensable, RegistryError
from ..registry.request import Body
from ..registry.response import Response
from ..registry.upload import Upload
from ..registry.v2 import Repository
from ..store.ingest import Ingest
from ..store.source import BUFFER
from ..store.store import Store
from ..xfer.transfer import Transfer

MAX_BREAKS = 100  # in one blob, and one more for each MiB
READ_DELAYS = (0.2,)  # seconds, before a body is opened again that broke off at its first byte
SEND_DELAYS = (0.2, 0.5, 1.0)  # seconds, before an upload is tried again that did not move at all
DOCUMENT_DELAYS = (0.25, 0.5, 1.0, 2.0)  # seconds between five attempts
SMALL = 1 << 20  # bytes; up to here a blob is sent along with its commit
_RESUMED = frozenset((404, 408, 410, 416, 499, 500, 502, 503, 504))
LACKS_BLOB = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")  # of a manifest
#: Statuses by which registries refuse to write a tag that must not change.
_IMMUTABLE = frozenset((400, 403, 405, 409, 412, 422, 423))
Opener = Callable[[int, Cancel], Response]  # opens a blob at an offset in bytes
T = TypeVar("T")


class RemoteBlob:
    """A blob at a registry, read from any offset on; close() it, since its body may be open.

    Where the registry sends the whole blob instead of its rest, the bytes before the
    offset are skipped.  ``size`` in bytes may be unknown until the blob is opened.
    """

    def __init__(self, digest: str, size: Optional[int], source: Opener, cancel: Cancel,
                 max_breaks: int = 0, stuck_delays: Sequence[float] = ()) -> None:
        self.broke_off = False  # so the bytes are of two bodies, which may differ
        self._digest = digest
        self._size = size
        self._source = source
        self._cancel = cancel
        self._response: Optional[Response] = None
        self._position = self._opened_at = 0
        self._breaks = (max_breaks or MAX_BREAKS) + ((size or 0) >> 20)
        self._stuck = 0
        self._stuck_delays = stuck_delays

    def pieces(self, offset: int, size: Optional[int] = None) -> Iterator[memoryview]:
        """Yield ``size`` bytes from ``offset`` on, or all to the end, unverified, as they arrive.

        Raises NetworkError, ContentMismatch for a body of another size, and as the opener does.
        """
        if offset != self._position:
            self.close()
            self._position = offset
        view = memoryview(bytearray(BUFFER if self._size is None else min(BUFFER, self._size + 1)))
        while True:
            end = self._size if size is None else offset + size  # perhaps known since the blob was opened
            if self._position == end:
                return
            try:
                count = self._read(view if end is None else view[:end - self._position])
            except NetworkError:
                if not self._may_continue():
                    raise
                continue
            if not count:
                return
            self._position += count
            yield view[:count]

    def _read(self, view: memoryview) -> int:
        """Read what has arrived; 0 only at the end of a blob of unknown size."""
        response = self._response or self._open()
        count = response.readinto(view)
        if not count and self._size is not None:
            raise NetworkError("%s ended the body early" % (response.origin,))
        if self._position + count == self._size and response.remaining is None:
            with contextlib.suppress(NetworkError):
                if response.readinto(memoryview(bytearray(1))):
                    raise ContentMismatch("blob %s is longer than %d bytes" % (self._digest, self._size))
        return count

    def _open(self) -> Response:
        self._opened_at = self._position
        self.broke_off = self._position > 0
        response = self._response = self._source(self._position, self._cancel)
        start = self._position if response.status == 206 else 0
        if self._size is None and response.remaining is not None:
            self._size = start + response.remaining
        if self._size is not None and response.remaining not in (None, self._size - start):
            raise ContentMismatch("blob %s: size is not %d as promised" % (self._digest, self._size))
        skipped = memoryview(bytearray(min(BUFFER, self._position - start + 1)))
        while start < self._position:
            count = response.readinto(skipped[:self._position - start])
            if not count:
                raise NetworkError("%s ended the body early" % (response.origin,))
            start += count
        return response

    def _may_continue(self) -> bool:
        """Pause as long as is due after a break; False if it was one too many."""
        opened, moved = self._response is not None, self._position > self._opened_at
        self.close()
        self._breaks -= 1
        self._stuck = 0 if moved else self._stuck + 1
        # The transport has already tried again to open a body.
        if not self._breaks or self._stuck and not opened or self._stuck > len(self._stuck_delays):
            return False
        self._cancel.pause((0, *self._stuck_delays)[self._stuck])
        return True

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


def fetch_blob(store: Store, blob: Descriptor, source: Opener, cancel: Cancel, kind: str = "blob",
               transfer: Optional[Transfer] = None) -> None:
    """Download a blob into the store, from where an earlier attempt left it, and verify it."""
    if blob.data:
        store.content.put(blob.digest, blob.data)
        return
    output = transfer.progress if transfer else discard
    with Ingest(store.content, cancel, blob.digest, blob.size) as ingest:
        if ingest.complete:
            return
        meter = Meter(output, blob.digest.short, "Downloading", blob.size, ingest.offset, store.lasting)
        remote = RemoteBlob(blob.digest, blob.size, source, cancel, stuck_delays=READ_DELAYS)
        with contextlib.closing(remote):
            for last in (False, True):
                try:
                    for piece in remote.pieces(ingest.offset):
                        ingest.write(piece)
                        meter.move(ingest.offset)
                    break
                except (ContentMismatch, RegistryError) as exc:
                    # A rest that does not fit the bytes held, or none: the whole blob then, but once.
                    misfit = isinstance(exc, ContentMismatch) or exc.status == 416
                    if last or not misfit or not ingest.offset:
                        raise
                    ingest.restart()
        ingest.resumed = ingest.resumed or remote.broke_off
        output(Progress(id=blob.digest.short, action="Verifying Checksum"))
        ingest.verify("%s verification failed for digest %s" % (kind, blob.digest))
        output(Progress(id=blob.digest.short, action="Download complete"))
        if transfer is not None:
            transfer.inactive()  # the sync below may overlap the next download
        ingest.commit(settle=False)


def moved_as_manifest(entry: Descriptor, ask: Callable[[Digest], bytes], put: Callable[[bytes], object],
                      from_registry: bool = True) -> bool:
    """Move an entry of an index that is of an unknown kind, if it is a manifest; False if it is a blob.

    It is a manifest if the registry that it comes from has it as one.  A store keeps
    manifests as blobs: from there, it is one if the target takes it.
    """
    if entry.size > MAX_MANIFEST or not re.fullmatch(  # RFC 6838, 4.2
            r"(?a)[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}", entry.media_type):
        return False
    refusals: Tuple[int, ...] = (404,)
    try:
        raw = ask(entry.digest)
        if len(raw) != entry.size:
            raise InvalidDocument("manifest %s is not as its index says" % entry.digest)
        refusals = () if from_registry else (400, 404, 405, 415)
        put(raw)
    except (NotFound, RegistryError) as exc:
        if isinstance(exc, RegistryError) and exc.status not in refusals:
            raise
        return False
    return True


def persist(repository: Optional[Repository], cancel: Cancel, work: Callable[..., T], *args: object) -> T:
    """Call ``work``, which asks for a small document, with ``args`` and ``cancel``, up to five times."""
    for delay in DOCUMENT_DELAYS:
        try:
            return work(*args, cancel)
        except Error as exc:
            # An endpoint that never answered is given up at once, so that the next is asked soon,
            # and a registry that refused would refuse again.
            refused = isinstance(exc, RegistryError) and exc.status < 500
            if not exc.retry or refused or repository and not repository.answered:
                raise
        cancel.pause(delay)
    return work(*args, cancel)


def existing(repository: Repository, digest: Digest, cancel: Cancel) -> Optional[int]:
    """The size in bytes of a blob that the repository has; None without a clear answer.

    Raises an Error if there has been no answer at all, so that the next endpoint is asked soon.
    """
    with Dispensable():
        return repository.stat(digest, cancel, once=True)
    if not repository.answered:
        with contextlib.suppress(NoSupport):  # any answer will do: then it is HEAD alone that fails
            repository.ping(cancel, once=True)
    return None


def put_document(repository: Repository, reference: str, document: Document, cancel: Cancel) -> bool:
    """Store a manifest by tag or digest; returns whether it is listed as a referrer of its subject.

    A tag that can't be changed (ECR, Harbor, Quay) may have that very manifest; then all is done.
    """
    try:
        return repository.put_manifest(reference, document.raw, document.media_type, cancel)
    except RegistryError as exc:
        if exc.status not in _IMMUTABLE or exc.code in LACKS_BLOB:
            raise
        with Dispensable():
            stored = repository.resolve(reference, cancel) or repository.manifest(reference, cancel).digest
            if stored in (document.digest, reference):
                return False
        raise


def send_blob(repository: Repository, blob: Descriptor, source: Callable[[int, int], Body],
              cancel: Cancel, upload: Optional[Upload] = None, chunk_size: int = 0,
              moved: Callable[[str], object] = lambda url: None) -> None:
    """Send a blob, and after a break only what the registry does not have of it.

    ``source`` gives a body by offset and size (bytes).  ``upload`` is used if it is open
    already; ``chunk_size`` (bytes) is the most that one request brings, 0 for all.
    ``moved`` is told each URL at which the upload goes on.
    """
    def send(upload: Upload, most: int) -> None:
        most = most or blob.size
        if upload.offset == 0 and blob.size <= min(most, SMALL):
            upload.commit(blob.digest, cancel, source(0, blob.size))
            return
        while upload.offset < blob.size:
            count = min(most, blob.size - upload.offset)
            upload.append(source(upload.offset, count), cancel, chunk=count < blob.size)
        upload.commit(blob.digest, cancel)

    _send(repository, cancel, upload, chunk_size, send, blob, moved)


def send_stream(repository: Repository, stream: Callable[[], Iterable[Buffer]], cancel: Cancel,
                upload: Optional[Upload] = None, chunk_size: int = 0) -> Verifier:
    """Send a blob that is made on its way, after a break all of it; returns its size and digest."""
    verifier = Verifier()

    def pieces() -> Iterator[Buffer]:
        nonlocal verifier
        verifier = Verifier()
        for piece in stream():
            verifier.update(piece)
            yield piece

    def chunks(most: int) -> Iterator[Body]:
        held = bytearray()
        for piece in pieces():
            held += piece
            while len(held) > most:
                yield Body.of(bytes(held[:most]))
                del held[:most]
        yield Body.of(bytes(held))

    def send(upload: Upload, most: int) -> None:
        for body in chunks(most) if most else [Body(pieces)]:
            upload.append(body, cancel, chunk=True)
        upload.commit(verifier.digest, cancel)

    _send(repository, cancel, upload, chunk_size, send)
    return verifier


def _send(repository: Repository, cancel: Cancel, upload: Optional[Upload], chunk_size: int,
          send: Callable[[Upload, int], None], blob: Optional[Descriptor] = None,
          moved: Callable[[str], object] = lambda url: None) -> None:
    """Call ``send`` with an upload and the most bytes of a request until it succeeds; continue a ``blob``."""
    size = blob.size if blob else 0
    breaks, stuck, best = MAX_BREAKS + (size >> 20), 0, 0
    while True:
        try:
            upload = upload or repository.start_upload(cancel)
            assert upload is not None
            upload.moved = moved
            moved(upload.url)
            best = max(best, upload.offset)
            send(upload, max(chunk_size, upload.least) if chunk_size else 0)
            return
        except ContentMismatch:
            if upload is not None:
                upload.abandon(cancel)
            raise
        except (NetworkError, RegistryError) as exc:
            cancel.check()
            mixed = best > 0 and isinstance(exc, RegistryError) and exc.code == "DIGEST_INVALID"
            if not (_passes(exc) or mixed) or upload is None:
                raise
            if blob is None or mixed:
                upload = None
            else:
                try:
                    # A lost answer of the registry may have been its consent.
                    at_end = upload.offset in (0, size)
                    if at_end and repository.stat(blob.digest, cancel) == size:
                        return
                    upload.sync(cancel)
                except (NetworkError, RegistryError):
                    upload = None
            if upload is not None and not 0 < upload.offset <= size:
                upload = None
            offset = upload.offset if upload else 0
            stuck = 0 if offset > best else stuck + 1
            best = 0 if mixed else max(best, offset)
            breaks -= 1
            if not breaks or stuck > len(SEND_DELAYS):
                raise exc
            cancel.pause((0, *SEND_DELAYS)[stuck])


def _passes(error: Union[NetworkError, RegistryError]) -> bool:
    """Whether another upload, or the rest of this one, may succeed; raises what to do about a 413."""
    if isinstance(error, RegistryError) and error.status == 413:
        advice = error.within("too much for one request, try --chunk-size")
        advice.retry = False
        raise advice from error
    return error.status in _RESUMED if isinstance(error, RegistryError) else error.retry
