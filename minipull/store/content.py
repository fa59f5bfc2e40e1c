# SPDX-License-Identifier: Apache-2.0
"""Content: blobs under their digests, and the only way in.

Bytes come in through :class:`Ingest`: written and hashed once, compared with
the digest and size that were promised, synced, and only then renamed to where
a reader looks.  Until that moment they lie in ``ingest/``, where the next
process goes on with them after kill -9, and after a power cut with as much of
them as was synced.

The file of a partial carries its own lock.  The former owner may just have
renamed that very file into place, so who gets the lock first compares the open
file with the path, then looks for the blob, and only then changes anything.

Mirrors containerd's core/content.  Layout: image-spec image-layout.md.
"""
import contextlib
import json
import os
import tempfile
from typing import BinaryIO, Callable, List, Optional, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import ContentMismatch, InvalidDocument, StorageError, corrupt, storage_errors
from ..image.strictjson import int_at, parse_json, string_at
from .compression import BUFFER, pieces

SYNC_EVERY = 64 << 20  # bytes of a partial between two fsyncs


class ContentStore:
    """Blobs of one root; creates nothing until written to.

    ``timeout`` (seconds) is how long another owner of a partial may stand still.
    """

    def __init__(self, root: str, timeout: float = 60.0) -> None:
        self.root = root
        self.scratch = os.path.join(root, "ingest")
        self.timeout = timeout

    def path(self, digest: Digest) -> str:
        return os.path.join(self.root, "blobs", digest.algorithm, digest.encoded)

    def size(self, digest: Digest) -> Optional[int]:
        """Size of a stored blob in bytes, or None."""
        try:
            return os.lstat(self.path(digest)).st_size
        except OSError:
            return None

    def has(self, digest: Digest, size: int) -> bool:
        return self.size(digest) == size

    def open(self, digest: Digest) -> BinaryIO:
        """The unbuffered file of a blob, not verified; raises StorageError."""
        with storage_errors("open blob %s" % digest):
            return open(files.open_regular(self.path(digest)), "rb", buffering=0)

    def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified; raises StorageError if it is missing or corrupt."""
        data = files.read_bytes(self.path(digest), limit)
        if data is None:
            raise StorageError("blob %s is missing from the store; pull the image again" % digest)
        if Digest.of(data, digest.algorithm) != digest:
            raise corrupt(digest)
        return data

    def hash(self, digest: Digest, verifier: Verifier, cancel: Cancel) -> None:
        """Show every byte of a blob to ``verifier``; raises StorageError, Cancelled."""
        with storage_errors("read blob %s" % digest), self.open(digest) as file:
            for _ in pieces(file, cancel, verifier, BUFFER):
                pass

    def put(self, digest: Digest, data: bytes) -> None:
        """Store a small blob that is held in memory, unless it is there."""
        if Digest.of(data, digest.algorithm) != digest:
            raise ContentMismatch("blob %s: content is something else" % digest)
        with storage_errors("read blob %s" % digest):
            if self.size(digest) == len(data) and files.read_bytes(self.path(digest), len(data)) == data:
                return
        self._prepare(digest)
        files.write_atomic(self.path(digest), data, self.scratch)

    def copy(self, source: "ContentStore", digest: Digest, size: int, cancel: Cancel,
             advance: Callable[[int], None] = lambda count: None) -> None:
        """Take a blob of another store, verified; raises ContentMismatch, StorageError, Cancelled."""
        with source.open(digest) as file, self.ingest(digest, size, cancel) as ingest:
            if not ingest.complete:
                ingest.restart()
                with storage_errors("read blob %s" % digest):
                    for piece in pieces(file, cancel, None, BUFFER):
                        ingest.write(piece)
                        advance(len(piece))
                ingest.commit()

    def adopt(self, path: str, digest: Digest) -> None:
        """Give a synced file the name of the blob that it is; an OSError is the caller's to map."""
        final = self.path(digest)
        files.make_directory(os.path.dirname(final))
        os.rename(path, final)
        files.sync_directory(os.path.dirname(final))

    def digests(self) -> List[Digest]:
        """Every stored blob."""
        return [digest for digest, _ in listing(os.path.join(self.root, "blobs"))]

    def ingest(self, digest: Digest, size: int, cancel: Cancel) -> "Ingest":
        """Own the partial of a blob, waiting for its present owner.

        Raises Cancelled, or StorageError if the owner stands still too long.
        """
        self._prepare(digest)
        return Ingest(self, digest, size, cancel)

    def _prepare(self, digest: Digest) -> None:
        for directory in (self.scratch, os.path.dirname(self.path(digest))):
            files.make_directory(directory)


class Ingest:
    """One blob on its way in, owned by one thread; a context manager.

    ``complete`` says that the blob is in the store already; else ``offset``
    bytes of it are held and hashed, and ``write`` goes on from there.
    """

    def __init__(self, content: ContentStore, digest: Digest, size: int, cancel: Cancel) -> None:
        self.digest = digest
        self.size = size
        self.complete = False
        self.resumed = False  # held bytes that another attempt had written
        self._content = content
        self._cancel = cancel
        self._verifier = Verifier(digest.algorithm)
        self._path = os.path.join(content.scratch, "%s-%s" % (digest.algorithm, digest.encoded))
        self._fd = -1
        self._synced = 0
        with storage_errors("write %s" % self._path):
            try:
                self._own()
            except BaseException:
                self.close()
                raise

    @property
    def offset(self) -> int:
        return self._verifier.size

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        """Append what arrived; raises ContentMismatch past the promised size."""
        if self.offset + len(data) > self.size:
            self.restart()
            raise ContentMismatch("blob %s is longer than %d bytes" % (self.digest, self.size))
        with storage_errors("write %s" % self._path):
            files.write_all(self._fd, memoryview(data))
            self._verifier.update(data)
            if self.offset - self._synced >= SYNC_EVERY:
                self._sync()
                self._note()

    def restart(self) -> None:
        """Forget every byte held."""
        self.resumed = False
        with storage_errors("write %s" % self._path):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._verifier = Verifier(self.digest.algorithm)
            if self._synced:
                self._synced = 0
                self._note()

    def verify(self, what: str) -> None:
        """Compare size and hash; on a mismatch nothing is kept to be resumed.

        The ContentMismatch may be retried only if some of the bytes came from
        an earlier attempt, which may be the one that was wrong.
        """
        try:
            self._verifier.verify(self.digest, self.size, what)
        except ContentMismatch as exc:
            exc.retry = self.resumed
            self.restart()
            raise

    def commit(self) -> None:
        """Verify the bytes and make them durable, then give them their name."""
        if self.complete:
            return
        self.verify("blob %s" % self.digest)
        with storage_errors("store blob %s" % self.digest):
            self._sync()
            self._content.adopt(self._path, self.digest)
            self.complete = True
            self._forget_note()

    def close(self) -> None:
        """Leave the partial to whoever comes next."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with storage_errors("write %s" % self._path):
                os.close(fd)

    def _own(self) -> None:
        while True:
            self._fd = files.open_regular(self._path, os.O_RDWR | os.O_CREAT)
            files.lock(
                self._fd, self._path, True, self._cancel.pause, self._content.timeout,
                alive=lambda: os.fstat(self._fd).st_size)
            try:
                same = os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
            except FileNotFoundError:
                same = False
            if same:
                break
            self.close()
        if self._content.has(self.digest, self.size):
            self.complete = True
            os.unlink(self._path)
            self._forget_note()  # of one who was killed when the blob had its name
            return
        keep = self._kept()
        os.ftruncate(self._fd, keep)
        self._note()
        hash_file(self._fd, self._verifier, self._cancel)
        self.resumed = keep > 0

    def _forget_note(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path + ".json")

    def _kept(self) -> int:
        """How many bytes of the partial are as they were written."""
        held, what = os.fstat(self._fd).st_size, self._path + ".json"
        try:
            note = parse_json(files.read_bytes(what, 4096) or b"", what)
            synced, boot = int_at(note, "length", what), string_at(note, "boot", what)
        except InvalidDocument:
            return 0
        if not boot or boot != _boot_id():
            held = min(held, synced)
        if held > self.size:
            return 0
        self._synced = min(held, synced)
        return held

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError:
            # Any of it may be lost, and the next fsync would not say so.
            self.restart()
            raise
        self._synced = self.offset

    def _note(self) -> None:
        note = json.dumps({"length": self._synced, "boot": _boot_id()}).encode()
        files.write_atomic(self._path + ".json", note, self._content.scratch, durable=False)


class Arrival:
    """A blob on its way in whose digest nobody has told; a context manager for one thread.

    What is not committed when it ends is forgotten.
    """

    def __init__(self, content: ContentStore) -> None:
        self.verifier = Verifier()
        self._content = content
        files.make_directory(content.scratch)
        with storage_errors("write %s" % content.scratch):
            self._fd, self._path = tempfile.mkstemp(prefix="arrival-", dir=content.scratch)

    def __enter__(self) -> "Arrival":
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def write(self, data: Buffer) -> None:
        with storage_errors("write %s" % self._path):
            files.write_all(self._fd, memoryview(data))
        self.verifier.update(data)

    def commit(self) -> Digest:
        """Make the bytes durable and give them their name, which is returned."""
        digest = self.verifier.digest
        with storage_errors("store blob %s" % digest):
            os.fsync(self._fd)
            self._content.adopt(self._path, digest)
        return digest


def hash_file(fd: int, verifier: Verifier, cancel: Cancel) -> None:
    """Show what is left of an open file to ``verifier``; an OSError is the caller's to map."""
    for _ in pieces(fd, cancel, verifier, BUFFER):
        pass


def listing(folder: str) -> List[Tuple[Digest, str]]:
    """The files below ``folder`` that are named ``algorithm/hex``, with their paths."""
    found = []
    with storage_errors("list %s" % folder):
        for algorithm in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            inner = os.path.join(folder, algorithm)
            for name in sorted(os.listdir(inner)) if os.path.isdir(inner) else []:
                with contextlib.suppress(InvalidDocument):
                    digest = Digest.parse("%s:%s" % (algorithm, name))
                    found.append((digest, os.path.join(inner, name)))
    return found


def _boot_id() -> str:
    """Changes with every boot; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""
