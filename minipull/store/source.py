# SPDX-License-Identifier: Apache-2.0
"""Sources: blobs to be read by digest, of a store or of an archive, and files in pieces."""
import abc
import io
import os
from typing import BinaryIO, Iterator, Mapping, Optional, Union, cast

from ..cancel import Cancel
from ..digest import Digest, Verifier
from ..errors import storage_errors

BUFFER = 1 << 20  # bytes; the largest piece
INPUT = 128 << 10  # bytes; at the usual ratio they inflate to one piece


class BlobSource(abc.ABC):
    """Blobs by digest; nothing is written."""
    left_out: Mapping[Digest, int] = {}  # blobs that a delta lacks on purpose, and their sizes in bytes

    @abc.abstractmethod
    def path(self, digest: Digest) -> str:
        """Return the path of a blob, or of its member in the archive, for messages."""

    @abc.abstractmethod
    def size(self, digest: Digest) -> Optional[int]:
        """Return the size of a blob in bytes, or None."""

    @abc.abstractmethod
    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob without a buffer; nothing is verified.  Raises StorageError, InvalidDocument."""

    @abc.abstractmethod
    def read(self, digest: Digest, limit: int) -> bytes:
        """Read and verify a small blob; raises an Error if it is missing, corrupt or past ``limit`` bytes."""

    def has(self, digest: Digest, size: int) -> bool:
        return self.size(digest) == size

    def hash(self, digest: Digest, verifier: Verifier, cancel: Cancel) -> None:
        """Show every byte of a blob to ``verifier``; raises StorageError, Cancelled."""
        with storage_errors("read blob %s" % digest), self.open(digest) as file:
            hash_file(file, verifier, cancel)


def pieces(file: Union[int, BinaryIO], cancel: Cancel, raw: Optional[Verifier] = None,
           size: int = INPUT) -> Iterator[memoryview]:
    """Yield the rest of an unbuffered file, hashed by ``raw``; an OSError is the caller's to map."""
    buffer = memoryview(bytearray(size))
    while True:
        cancel.check()
        count = os.readv(file, [buffer]) if isinstance(file, int) else cast(io.RawIOBase, file).readinto(buffer)
        if not count:
            return
        if raw is not None:
            raw.update(buffer[:count])
        yield buffer[:count]


def hash_file(file: Union[int, BinaryIO], verifier: Verifier, cancel: Cancel) -> None:
    """Show the rest of an open file to ``verifier``; an OSError is the caller's to map."""
    for _ in pieces(file, cancel, verifier, BUFFER):
        pass
