# SPDX-License-Identifier: Apache-2.0
"""Content: blobs under their digests, and the only way in.

Bytes come in through :class:`Ingest`: written and hashed once, compared with the
promised digest and size, synced, and only then renamed to where a reader looks.
Until then they are a partial in ``ingest/``, which the next process continues:
all of it after kill -9, as much as was synced after a power cut.  A blob that comes
in one piece needs no note of that.  Names outlive a power cut by a sync of their
directory: one for all blobs of an image, by ``make_durable``, before index.json.

The file of a partial carries its own lock.  Its former owner may just have
renamed that very file into place; so a new owner compares the open file with the
path, then looks for the blob, and only then changes anything.

Mirrors containerd's core/content.  Layout: image-spec image-layout.md.
"""
import contextlib
import functools
import json
import os
from typing import BinaryIO, Callable, ContextManager, List, Optional, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import ALGORITHMS, Buffer, Digest, Verifier
from ..errors import ContentMismatch, InvalidDocument, StorageError, corrupt, storage_errors
from ..image.strictjson import int_at, parse_json, string_at
from .compression import BUFFER, hash_file, pieces
from .source import BlobSource

SYNC_EVERY = 64 << 20  # bytes of a partial between two fsyncs


class ContentStore(BlobSource):
    """Blobs of one root; ``timeout`` (seconds) is how long another owner of a partial may stand still."""

    def __init__(self, root: str, timeout: float = 60.0) -> None:
        self.root = root
        self.scratch = os.path.join(root, "ingest")
        blobs = os.path.join(root, "blobs")
        self.folders = [os.path.join(blobs, algorithm) for algorithm in ALGORITHMS] + [blobs]
        self.timeout = timeout

    def path(self, digest: Digest) -> str:
        return os.path.join(self.root, "blobs", digest.algorithm, digest.encoded)

    def size(self, digest: Digest) -> Optional[int]:
        with storage_errors("examine blob %s" % digest), contextlib.suppress(
                FileNotFoundError, NotADirectoryError):
            return os.lstat(self.path(digest)).st_size
        return None

    def open(self, digest: Digest) -> BinaryIO:
        with storage_errors("open blob %s" % digest):
            return open(files.open_regular(self.path(digest)), "rb", buffering=0)

    def read(self, digest: Digest, limit: int) -> bytes:
        data = files.read_bytes(self.path(digest), limit)
        if data is None:
            raise StorageError("blob %s is missing from the store; pull the image again" % digest)
        if Digest.of(data, digest.algorithm) != digest:
            raise corrupt(digest)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        """Store a small blob from memory, unless it is stored and sound; make_durable() is to follow."""
        if Digest.of(data, digest.algorithm) != digest:
            raise ContentMismatch("blob %s: content is something else" % digest)
        if self.size(digest) != len(data) or files.read_bytes(self.path(digest), len(data)) != data:
            for directory in (self.scratch, os.path.dirname(self.path(digest))):
                files.make_directory(directory)
            files.write_atomic(self.path(digest), data, self.scratch, settle=False)
        self.drop_partial(digest)

    def drop_partial(self, digest: Digest) -> None:
        """Remove the partial of a blob that is stored, and its note, unless another thread owns them."""
        name = digest.replace(":", "-")
        partial = os.path.join(self.scratch, name)
        if os.path.lexists(partial) or os.path.lexists(partial + ".json"):
            size = self.size(digest)
            with contextlib.suppress(StorageError):
                if size is not None:
                    Ingest(self, name, Cancel(), digest, size, patience=0).close()

    def make_durable(self, horizon: float = 0.0) -> None:
        """Make the names of all blobs durable, and sweep ``ingest/``; raises StorageError.

        A run that was killed between a rename, or a mkdir, and the sync of its directory left blobs
        that the next run takes for durable, and notes of partials that have become blobs.
        Partials go that nobody has written to since ``horizon`` (seconds) and nobody owns.
        """
        with storage_errors("write %s" % self.root):
            for folder in filter(os.path.isdir, (*self.folders, self.root, os.path.join(self.root, os.pardir))):
                files.sync_directory(folder)
            files.sweep(self.scratch)
            for path in sorted(files.paths(self.scratch, "")):  # notes come last
                partial, extension = os.path.splitext(path)
                if os.path.basename(path).startswith("."):  # what sweep() has left to its owner
                    continue
                with contextlib.suppress(InvalidDocument):
                    self.drop_partial(Digest.parse(os.path.basename(partial).replace("-", ":", 1)))
                if extension == ".json":
                    if os.path.isfile(path) and not os.path.lexists(partial):
                        Ingest.remove(path)
                elif horizon and os.lstat(path).st_mtime < horizon:
                    if os.path.basename(path).startswith("rotten-"):  # moved away by check --repair
                        files.remove(path)
                        continue
                    with contextlib.suppress(StorageError):
                        with files.locked(path, True, timeout=0, flags=os.O_RDWR):
                            Ingest.remove(path)

    def copy(self, source: BlobSource, digest: Digest, size: int, cancel: Cancel,
             advance: Callable[[int], None] = lambda count: None) -> None:
        """Copy and verify a blob of another source; raises ContentMismatch, StorageError, Cancelled."""
        with source.open(digest) as file, self.ingest(digest, size, cancel) as ingest:
            if not ingest.complete:
                ingest.restart()
                with storage_errors("read blob %s" % digest):
                    for piece in pieces(file, cancel, None, BUFFER):
                        ingest.write(piece)
                        advance(len(piece))
                ingest.commit(settle=False)

    def digests(self) -> List[Digest]:
        """List every stored blob."""
        return [digest for digest, _ in listing(os.path.join(self.root, "blobs"))]

    def ingest(self, digest: Digest, size: int, cancel: Cancel) -> "Ingest":
        """Own the partial of a blob; raises Cancelled, and StorageError if its owner stands still too long."""
        return Ingest(self, digest.replace(":", "-"), cancel, digest, size)


class Ingest(ContextManager["Ingest"]):
    """A blob on its way in, owned by one thread; a context manager.

    ``offset`` bytes of its partial, ``ingest/NAME``, are held and hashed; ``write``
    continues there.  A promised blob that the store has is ``complete`` at once.
    Without a promised ``digest`` and ``size`` (bytes), ``commit`` learns the digest.

    ``hashed`` is the hash that ran over the partial, if the caller kept it.
    ``create`` makes a partial where there is none.  Another owner is waited for
    while its partial grows, or for ``patience`` seconds in all.
    """

    def __init__(self, content: ContentStore, name: str, cancel: Cancel, digest: Optional[Digest] = None,
                 size: Optional[int] = None, *, hashed: Optional[Verifier] = None, create: bool = True,
                 patience: Optional[float] = None) -> None:
        self.digest = digest
        self.size = size
        self.complete = False
        self.resumed = False  # holds bytes of another attempt
        self.verifier = hashed or Verifier(digest.algorithm if digest else "sha256")
        self._content = content
        self._cancel = cancel
        self._path = os.path.join(content.scratch, name)
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
                self.remove(self._path + ".json")
            if os.path.basename(self._path) != self.digest.replace(":", "-"):
                self._content.drop_partial(self.digest)
        return self.digest

    def discard(self) -> None:
        """Remove the partial of a blob that nobody will continue."""
        with storage_errors("delete %s" % self._path):
            self.remove(self._path, self._path + ".json")

    def close(self) -> None:
        """Leave the partial to its next owner."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with storage_errors("write %s" % self._path):
                os.close(fd)

    def _own(self, flags: int, patience: Optional[float]) -> None:
        while True:
            self._fd = files.open_regular(self._path, flags)
            files.lock(
                self._fd, self._path, True, self._cancel.pause,
                self._content.timeout if patience is None else patience,
                alive=lambda: os.fstat(self._fd).st_size if patience is None else 0)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(self._path)):
                    break
            self.close()
        if self.digest is not None and self.size is not None and self._content.has(self.digest, self.size):
            self.remove(self._path, self._path + ".json")  # the note of an owner that was killed in commit
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

    @staticmethod
    def remove(*paths: str) -> None:
        """Delete files, as far as they are there; an OSError is the caller's to map."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def listing(folder: str) -> List[Tuple[Digest, str]]:
    """List the files below ``folder`` that are named ``algorithm/hex``, with their paths."""
    entries = []
    with storage_errors("list %s" % folder):
        for algorithm in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            inner = os.path.join(folder, algorithm)
            for name in sorted(os.listdir(inner)) if os.path.isdir(inner) else []:
                with contextlib.suppress(InvalidDocument):
                    digest = Digest.parse("%s:%s" % (algorithm, name))
                    entries.append((digest, os.path.join(inner, name)))
    return entries


@functools.lru_cache(maxsize=None)
def _boot_id() -> str:
    """Return an id that changes with every boot; empty where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""
