# SPDX-License-Identifier: Apache-2.0
"""Sources: blobs to be read by digest, of a store or of an archive."""
import abc
from typing import BinaryIO, Mapping, Optional

from ..cancel import Cancel
from ..digest import Digest, Verifier
from ..errors import storage_errors
from .compression import hash_file


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
