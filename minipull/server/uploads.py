# SPDX-License-Identifier: Apache-2.0
"""Upload sessions: blobs that arrive in several requests, the last of which names the digest.

A session is one file in ``ingest/``, named after its id and its repository.  Its
length is its offset, so a session outlives the server, and another server on the
same store may continue it.  A request that writes holds the file's lock.

Mirrors docker/distribution's registry/storage/blobwriter.go.
"""
import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from typing import Dict, Iterator, Optional

from .. import files
from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import NotFound, PolicyError, RateLimited, StorageError, storage_errors
from ..store.content import ContentStore
from ..store.ingest import Ingest

MAX_SESSIONS = 1000
MAX_BLOB = 64 << 30  # bytes
RESERVE = 64 << 20  # bytes of the disk that no upload may take
EXPIRE = 24 * 3600.0  # seconds after the last byte
BUSY = 5.0  # seconds to wait for another request that writes
_CHECK_EVERY = 1 << 20  # bytes between two checks of the free space
_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SESSION = re.compile("upload-%s-[0-9a-f]{16}" % _ID)


class Upload(Ingest):
    """An upload session that a request writes to."""

    def write(self, data: Buffer) -> None:
        """Append bytes; raises StorageError, PolicyError past MAX_BLOB."""
        end = self.offset + len(data)
        if end > MAX_BLOB:
            raise PolicyError("the upload is larger than %d bytes" % MAX_BLOB)
        if self.offset // _CHECK_EVERY != end // _CHECK_EVERY:
            _need_room(self._content.scratch)
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
        _need_room(self._content.scratch)
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
    with storage_errors("examine %s" % entry.path), contextlib.suppress(FileNotFoundError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime < EXPIRE:
            return False
        fd = files.open_regular(entry.path, os.O_RDWR)  # NFS needs a writable file for an exclusive lock
        try:
            files.lock(fd, entry.path, True, timeout=0)
            os.unlink(entry.path)
            os.unlink(entry.path + ".json")
        except files.Locked:
            return False
        finally:
            os.close(fd)
    return True


def _need_room(directory: str) -> None:
    with storage_errors("write %s" % directory):
        if shutil.disk_usage(directory).free < RESERVE:
            raise OSError(errno.ENOSPC, "less than %d MB of the disk are free" % (RESERVE >> 20))
