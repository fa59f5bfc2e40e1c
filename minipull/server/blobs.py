# SPDX-License-Identifier: Apache-2.0
"""Blobs of a registry: sent whole or in part, received in upload sessions.

A blob is sent unverified, since its receiver hashes it anyway.  It is received
in one request, in chunks that must be contiguous, or in one stream.

A session is one file in ``ingest/``, named after its id and its repository.  Its
length is its offset, so a session outlives the server, and another server on the
same store may continue it.  A request that writes holds the file's lock.

Mirrors docker/distribution's registry/storage/blobwriter.go.
distribution-spec "Pulling blobs", "Pushing blobs"; RFC 9110 section 14.
"""
import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from typing import Dict, Iterator, List, Optional, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import ALGORITHMS, Buffer, Digest, Verifier
from ..errors import InvalidDocument, NotFound, PolicyError, RateLimited, StorageError, storage_errors
from ..store.content import ContentStore
from ..store.gc import delete
from ..store.ingest import Ingest
from ..store.source import BlobSource
from ..store.store import Store
from .message import Headers, Refusal, Request, Response

MAX_SESSIONS = 1000
MAX_BLOB = 64 << 30  # bytes
RESERVE = 64 << 20  # bytes of the disk that no push may take
EXPIRE = 24 * 3600.0  # seconds after the last byte
BUSY = 5.0  # seconds to wait for another request that writes
_CHECK_EVERY = 1 << 20  # bytes between two checks of the free space
_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SESSION = re.compile("upload-%s-[0-9a-f]{16}" % _ID)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Upload(Ingest):
    """An upload session that a request writes to."""

    def write(self, data: Buffer) -> None:
        """Append bytes; raises StorageError, PolicyError past MAX_BLOB."""
        end = self.offset + len(data)
        if end > MAX_BLOB:
            raise PolicyError("the upload is larger than %d bytes" % MAX_BLOB)
        if self.offset // _CHECK_EVERY != end // _CHECK_EVERY:
            need_room(self._content.scratch)
        super().write(data)

    def restart(self) -> None:
        """End the session: its bytes are not the digest, or a failing fsync may have lost them."""
        self.discard()


class UploadStore:
    """The sessions of one store; the caller holds the store's shared lock."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        # Hashes so far of the sessions that no request writes to, by path.
        self._hashed: Dict[str, Verifier] = {}

    def start(self, repository: str) -> str:
        """Start a session and return its id; raises RateLimited if there are too many."""
        files.make_directory(self._content.scratch)
        if self.sweep() >= MAX_SESSIONS:
            raise RateLimited("%d uploads are under way" % MAX_SESSIONS)
        need_room(self._content.scratch)
        name = str(uuid.uuid4())
        path = self._path(repository, name)
        with storage_errors("write %s" % path):
            os.close(files.open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        return name

    def size(self, repository: str, name: str) -> int:
        """Return the bytes that a session holds; raises NotFound."""
        path = self._path(repository, name)
        with storage_errors("examine %s" % path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.lstat(path).st_size
        raise NotFound("no upload %s in %s" % (name, repository))

    @contextlib.contextmanager
    def owning(self, repository: str, name: str, cancel: Optional[Cancel] = None) -> Iterator[Upload]:
        """Own a session; raises NotFound, and files.Locked while another request writes."""
        path = self._path(repository, name)
        self.size(repository, name)
        try:
            upload = Upload(self._content, cancel or Cancel(), name=os.path.basename(path),
                            hashed=self._hashed.pop(path, None), create=False, patience=BUSY)
        except StorageError:
            self.size(repository, name)  # raises NotFound once it is committed or abandoned
            raise
        with upload:
            try:
                yield upload
            finally:
                self._hashed[path] = upload.verifier

    def sweep(self) -> int:
        """Remove expired sessions; return how many are left."""
        with storage_errors("list %s" % self._content.scratch):
            entries = [e for e in os.scandir(self._content.scratch) if _SESSION.fullmatch(e.name)]
        alive = {entry.path for entry in entries if not _expired(entry)}
        for path in set(self._hashed) - alive:
            self._hashed.pop(path, None)
        return len(alive)

    def _path(self, repository: str, name: str) -> str:
        if not re.fullmatch(_ID, name):
            raise NotFound("no upload of this name in %s" % repository)
        bound = Digest.of(repository.encode()).encoded[:16]
        return os.path.join(self._content.scratch, "upload-%s-%s" % (name, bound))


def _expired(entry: "os.DirEntry[str]") -> bool:
    """Remove a session that is old and not in use; return whether it is gone."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < EXPIRE:
                return False
            fd = files.open_regular(entry.path, os.O_RDWR)  # NFS needs a writable file for an exclusive lock
            try:
                files.lock(fd, entry.path, True, timeout=0)
                os.unlink(entry.path)
                os.unlink(entry.path + ".json")
            finally:
                os.close(fd)
        return True
    except (OSError, StorageError):  # in use, or a thing that we did not make, which is no new upload's fault
        return False


def need_room(directory: str) -> None:
    """Raise StorageError, for ENOSPC, where only the RESERVE is left."""
    with storage_errors("write %s" % directory):
        if shutil.disk_usage(directory).free < RESERVE:
            raise OSError(errno.ENOSPC, "less than %d MB of the disk are free" % (RESERVE >> 20))


class Blobs:
    """Handlers of requests; ``name`` is a checked repository, in which every blob is visible."""

    def __init__(self, content: BlobSource, store: Store) -> None:
        self._store = store
        self._content = content
        self._uploads = UploadStore(store.content)

    def get(self, request: Request, name: str, text: str) -> Response:
        digest, fields = asked_digest(text), request.headers
        size = self._content.size(digest)
        if size is None:
            raise Refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")
        etag = '"%s"' % digest
        headers = [
            ("Content-Type", "application/octet-stream"), ("Docker-Content-Digest", digest),
            ("ETag", etag), ("Accept-Ranges", "bytes")]
        status, first, count = 200, 0, size
        if request.method == "GET" and fields.get("if-range", etag) == etag:
            part = _range(fields.get("range", ""), size)
            if part is not None:
                status, (first, count) = 206, part
                last = first + count - 1
                headers.append(("Content-Range", "bytes %d-%d/%d" % (first, last, size)))
        return Response(status, headers, b"", self._content.open(digest), first, count)

    def delete(self, request: Request, name: str, text: str) -> Response:
        try:
            if not delete(self._store, asked_digest(text)):
                raise Refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")
        except PolicyError as exc:
            raise Refusal(405, "UNSUPPORTED", str(exc)) from exc
        return Response(202)

    def start(self, request: Request, name: str) -> Response:
        """Open a session, mount a blob of the store, or receive a whole blob."""
        query = request.parameter
        if query("digest-algorithm") not in ("", *ALGORITHMS):
            raise Refusal(400, "DIGEST_INVALID", "unsupported digest algorithm")
        mounted = asked_digest(query("mount")) if query("mount") else None
        digest = asked_digest(query("digest")) if query("digest") else None
        with self._store.writing():
            if mounted is not None and self._content.size(mounted) is not None:
                return Response(201, created("/v2/%s/blobs/%s" % (name, mounted), mounted))
            session = self._uploads.start(name)
        if digest is None:
            return Response(202, _progress(name, session, 0))
        with self._uploads.owning(name, session) as upload:
            try:
                return self._finish(request, name, session, upload, digest)
            except BaseException:
                upload.discard()  # the client does not know of this session
                raise

    def status(self, request: Request, name: str, session: str) -> Response:
        return Response(204, _progress(name, session, self._uploads.size(name, session)))

    def append(self, request: Request, name: str, session: str) -> Response:
        with self._owning(name, session) as upload:
            _receive(request, name, session, upload)
            return Response(202, _progress(name, session, upload.offset))

    def commit(self, request: Request, name: str, session: str) -> Response:
        digest = asked_digest(request.parameter("digest"))
        with self._owning(name, session) as upload:
            return self._finish(request, name, session, upload, digest)

    def _finish(self, request: Request, name: str, session: str, upload: Upload,
                digest: Digest) -> Response:
        _receive(request, name, session, upload)
        with self._store.writing():
            upload.commit(digest)
        return Response(201, created("/v2/%s/blobs/%s" % (name, digest), digest))

    def abandon(self, request: Request, name: str, session: str) -> Response:
        with self._store.writing(), self._owning(name, session) as upload:
            upload.discard()
        return Response(204)

    @contextlib.contextmanager
    def _owning(self, name: str, session: str) -> Iterator[Upload]:
        try:
            with self._uploads.owning(name, session) as upload:
                yield upload
        except files.Locked as exc:  # a second request can't know its offset
            state = _progress(name, session, self._uploads.size(name, session))
            raise Refusal(416, "BLOB_UPLOAD_INVALID", "another request writes", state) from exc


def asked_digest(text: str) -> Digest:
    """Parse the digest of a request; raises Refusal."""
    try:
        return Digest.parse(text)
    except InvalidDocument as exc:
        raise Refusal(400, "DIGEST_INVALID", str(exc)) from exc


def created(path: str, digest: Digest) -> List[Tuple[str, str]]:
    """Return the headers of an answer to a finished push."""
    return [("Location", path), ("Docker-Content-Digest", digest)]


def _progress(name: str, session: str, size: int) -> Headers:
    return [
        ("Location", "/v2/%s/blobs/uploads/%s" % (name, session)),
        ("Range", "0-%d" % max(0, size - 1)), ("Docker-Upload-UUID", session)]


def _receive(request: Request, name: str, session: str, upload: Upload) -> None:
    """Append the body to a session; raises Refusal where its Content-Range does not continue it."""
    text, length = request.headers.get("content-range"), request.body.length
    end = None if length is None else upload.offset + length
    if text is not None:
        match = re.fullmatch(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?", text)
        first, last = map(int, match.groups()) if match else (-1, -1)
        if first != upload.offset or end not in (None, last + 1):
            raise Refusal(
                416, "BLOB_UPLOAD_INVALID", "the upload goes on at byte %d" % upload.offset,
                _progress(name, session, upload.offset))
        end = last + 1
    if (end or 0) > MAX_BLOB:
        raise Refusal(413, "SIZE_INVALID", "the upload is larger than %d bytes" % MAX_BLOB)
    for piece in request.body:
        upload.write(piece)
    if end not in (None, upload.offset):
        raise Refusal(400, "SIZE_INVALID", "the chunk is not as long as its Content-Range")


def _range(text: str, size: int) -> Optional[Tuple[int, int]]:
    """Return offset and length of a Range header in bytes, or None to send the whole blob."""
    match = _RANGE.fullmatch(text)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise Refusal(416, "UNSUPPORTED", "no such range", [("Content-Range", "bytes */%d" % size)])
    return start, end - start
