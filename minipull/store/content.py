# SPDX-License-Identifier: Apache-2.0
"""Content: blobs under their digests, and how they come in.

Bytes come in through an Ingest (ingest.py): written and hashed once, compared with the
promised digest and size, synced, and only then renamed to where a reader looks.
Until then they are a partial in ``ingest/``, which the next process continues:
all of it after kill -9, as much as was synced after a power cut.  A blob that comes
in one piece needs no note of that.  Names outlive a power cut by a sync of their
directory: one for all blobs of an image, by ``make_durable``, before index.json.

Mirrors containerd's core/content.  Layout: image-spec image-layout.md.
"""
import contextlib
import os
from typing import BinaryIO, List, Optional, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import ALGORITHMS, Digest
from ..errors import ContentMismatch, InvalidDocument, StorageError, corrupt, storage_errors
from ..parts import part
from .source import BlobSource


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
        partial = os.path.join(self.scratch, digest.replace(":", "-"))
        size = self.size(digest) if os.path.lexists(partial) or os.path.lexists(partial + ".json") else None
        if size is not None:
            with contextlib.suppress(StorageError):
                part("store.ingest").Ingest(self, Cancel(), digest, size, patience=0).close()

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
                        files.unlink(path)
                elif horizon and os.lstat(path).st_mtime < horizon:
                    if os.path.basename(path).startswith("rotten-"):  # moved away by check --repair
                        files.remove(path)
                        continue
                    with contextlib.suppress(StorageError):
                        with files.locked(path, True, timeout=0, flags=os.O_RDWR):
                            files.unlink(path)

    def digests(self) -> List[Digest]:
        """List every stored blob."""
        return [digest for digest, _ in listing(os.path.join(self.root, "blobs"))]


def listing(folder: str) -> List[Tuple[Digest, str]]:
    """List the files below ``folder`` that are named ``algorithm/hex``, with their paths; no link is followed."""
    entries = []
    with storage_errors("list %s" % folder):
        for algorithm in sorted(os.listdir(folder)) if os.path.isdir(folder) and not os.path.islink(folder) else []:
            inner = os.path.join(folder, algorithm)
            for name in sorted(os.listdir(inner)) if os.path.isdir(inner) and not os.path.islink(inner) else []:
                with contextlib.suppress(InvalidDocument):
                    digest = Digest.parse("%s:%s" % (algorithm, name))
                    entries.append((digest, os.path.join(inner, name)))
    return entries
