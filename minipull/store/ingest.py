# SPDX-License-Identifier: Apache-2.0
"""Ingest: a blob on its way into the store.

The file of a partial carries its own lock.  Its former owner may just have
renamed that very file into place; so a new owner compares the open file with the
path, then looks for the blob, and only then changes anything.
"""
import contextlib
import functools
import json
import os
import sys
from typing import Callable, ContextManager, Optional

from .. import files
from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import ContentMismatch, InvalidDocument, StorageError, storage_errors
from ..image.strictjson import int_at, parse_json, string_at
from .content import ContentStore
from .source import BUFFER, BlobSource, hash_file, pieces

SYNC_EVERY = 64 << 20  # bytes of a partial between two fsyncs
BEGIN_EVERY = 16 << 20  # bytes of it that the disk is then told to begin with


class Ingest(ContextManager["Ingest"]):
    """A blob on its way in, owned by one thread; a context manager.

    ``offset`` bytes of its partial, ``ingest/NAME`` (by default the digest's), are held and
    hashed; ``write`` continues there.  A promised blob that the store has is ``complete`` at once.
    Without a promised ``digest`` and ``size`` (bytes), ``commit`` learns the digest.

    ``hashed`` is the hash that ran over the partial, if the caller kept it.
    ``create`` makes a partial where there is none.  Another owner is waited for
    while its partial grows, or for ``patience`` seconds in all.
    """

    def __init__(self, content: ContentStore, cancel: Cancel, digest: Optional[Digest] = None,
                 size: Optional[int] = None, *, name: str = "", hashed: Optional[Verifier] = None,
                 create: bool = True, patience: Optional[float] = None) -> None:
        self.digest = digest
        self.size = size
        self.complete = False
        self.resumed = False  # holds bytes of another attempt
        self.verifier = hashed or Verifier(digest.algorithm if digest else "sha256")
        self._content = content
        self._cancel = cancel
        self._path = os.path.join(content.scratch, name or (digest or "").replace(":", "-"))
        self._fd = -1
        self._synced = 0
        self._noted = False
        files.make_directory(content.scratch)
        with storage_errors("write %s" % self._path):
            try:
                self._own(os.O_RDWR | os.O_CREAT if create else os.O_RDWR, patience)
            except BaseException:
                self.close()
                raise

    @property
    def offset(self) -> int:
        return self.verifier.size

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        """Append bytes; raises ContentMismatch past the promised size."""
        if self.size is not None and self.offset + len(data) > self.size:
            self.restart()
            raise ContentMismatch("blob %s is longer than %d bytes" % (self.digest, self.size))
        with storage_errors("write %s" % self._path):
            if not self._noted and self.offset + len(data) != self.size:
                self._note()
            files.write_all(self._fd, memoryview(data))
            self.verifier.update(data)
            if (self.offset - len(data)) // BEGIN_EVERY < self.offset // BEGIN_EVERY:
                self._begin()
            if self.offset - self._synced >= SYNC_EVERY:
                self._sync()
                self._note()

    def restart(self) -> None:
        """Forget every byte held."""
        self.resumed = False
        with storage_errors("write %s" % self._path):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self.verifier = Verifier(self.digest.algorithm if self.digest else "sha256")
            if self._synced:
                self._synced = 0
                self._note()

    def verify(self, source: str) -> None:
        """Compare size and hash with what was promised; on a mismatch no byte is kept.

        ContentMismatch may be retried if some bytes came from an earlier attempt: they may be wrong.
        """
        assert self.digest is not None
        try:
            self.verifier.verify(self.digest, self.offset if self.size is None else self.size, source)
        except ContentMismatch as exc:
            exc.retry = self.resumed
            self.restart()
            raise

    def commit(self, digest: Optional[Digest] = None, settle: bool = True) -> Digest:
        """Verify the bytes and make them durable; returns their name: ``digest``, or SHA-256 for none.

        Without ``settle`` that name is durable only once make_durable() has been called.
        """
        self.digest = self.digest or digest or self.verifier.digest
        if self.complete:
            return self.digest
        with storage_errors("store blob %s" % self.digest):
            if self.verifier.digest.algorithm != self.digest.algorithm:
                self._hash(self.digest.algorithm)
            self.verify("upload" if self.size is None else "blob %s" % self.digest)
            self._sync()
            final = self._content.path(self.digest)
            files.make_directory(os.path.dirname(final))
            os.rename(self._path, final)
            if settle:
                files.sync_directory(os.path.dirname(final))
            self.complete = True
            if self._noted:
                files.unlink(self._path + ".json")
            if os.path.basename(self._path) != self.digest.replace(":", "-"):
                self._content.drop_partial(self.digest)
        return self.digest

    def discard(self) -> None:
        """Remove the partial of a blob that nobody will continue."""
        with storage_errors("delete %s" % self._path):
            files.unlink(self._path, self._path + ".json")

    def close(self) -> None:
        """Leave the partial to its next owner."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with storage_errors("write %s" % self._path):
                os.close(fd)

    def _own(self, flags: int, patience: Optional[float]) -> None:
        # One who has more than the blob may never end.
        most = 0 if patience is not None else sys.maxsize if self.size is None else self.size
        while True:
            self._fd = files.open_regular(self._path, flags)
            files.lock(
                self._fd, self._path, True, self._cancel.pause,
                self._content.timeout if patience is None else patience,
                alive=lambda: min(os.fstat(self._fd).st_size, most))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(self._path)):
                    break
            self.close()
        if self.digest is not None and self.size is not None and self._content.has(self.digest, self.size):
            files.unlink(self._path, self._path + ".json")  # the note of an owner that was killed in commit
            self.complete = True
            return
        held = self._kept()
        if not held or held != self.offset:  # not the bytes that the caller has hashed
            os.ftruncate(self._fd, held)
            if self._noted:
                self._note()
            self._hash(self.verifier.digest.algorithm)
        os.lseek(self._fd, 0, os.SEEK_END)
        self.resumed = held > 0

    def _hash(self, algorithm: str) -> None:
        self.verifier = Verifier(algorithm)
        if os.fstat(self._fd).st_size:  # else many uploads at once would take a buffer each for nothing
            os.lseek(self._fd, 0, os.SEEK_SET)
            hash_file(self._fd, self.verifier, self._cancel)

    def _kept(self) -> int:
        """Return how many bytes of the partial are as they were written."""
        held, path = os.fstat(self._fd).st_size, self._path + ".json"
        self._noted = True
        try:
            raw = files.read_bytes(path, 4096)
            self._noted = raw is not None
            note = parse_json(raw or b"", path)
            synced, boot = int_at(note, "length", path), string_at(note, "boot", path)
        except InvalidDocument:
            return 0
        if not boot or boot != _boot_id():
            held = min(held, synced)
        if self.size is not None and held > self.size:
            return 0
        self._synced = min(held, synced)
        return held

    def _begin(self) -> None:
        """Let the disk begin with the last bytes, so that fsync waits less: Linux writes before it drops."""
        start = max(self._synced, (self.offset // BEGIN_EVERY - 1) * BEGIN_EVERY)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a file system without
                os.posix_fadvise(self._fd, start, self.offset - start, os.POSIX_FADV_DONTNEED)

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError:
            self.restart()  # any of it may be lost, and the next fsync would not say so
            raise
        self._synced = self.offset

    def _note(self) -> None:
        """Write down how many bytes outlive a power cut."""
        note = json.dumps({"length": self._synced, "boot": _boot_id()}).encode()
        files.write_atomic(self._path + ".json", note, self._content.scratch, durable=False, settle=False)
        self._noted = True


def copy_blob(content: ContentStore, source: BlobSource, digest: Digest, size: int, cancel: Cancel,
              advance: Callable[[int], None] = lambda count: None) -> None:
    """Copy and verify a blob of another source; raises ContentMismatch, StorageError, Cancelled."""
    with source.open(digest) as file, Ingest(content, cancel, digest, size) as ingest:
        if not ingest.complete:
            ingest.restart()
            with storage_errors("read blob %s" % digest):
                for piece in pieces(file, cancel, None, BUFFER):
                    ingest.write(piece)
                    advance(len(piece))
            ingest.commit(settle=False)


@functools.lru_cache(maxsize=None)
def _boot_id() -> str:
    """Return an id that changes with every boot; empty where the system has none."""
    with contextlib.suppress(StorageError):
        return (files.read_file("/proc/sys/kernel/random/boot_id", 100) or b"").decode().strip()
    return ""
