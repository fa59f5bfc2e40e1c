# SPDX-License-Identifier: Apache-2.0
"""The members of a tar, found in one pass and read where they lie.

A member is found by its name within the archive, links included; nothing is ever
opened on disk because of what a name or a link says.
"""
import functools
import io
import itertools
import os
import re
from typing import BinaryIO, Dict, List, Optional, Tuple, Union, cast

from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument, NotFound, PolicyError, file_errors, shown
from ..files import Extent
from ..image.descriptor import Descriptor
from ..image.tar import BLOCK, FILE, LINK, SYMLINK, Reader
from ..store.source import BlobSource

MAX_MEMBERS = 100000
MAX_NAMES = 8 << 20  # bytes of all names and links; in memory four times that
MAX_HOPS = 8  # links on the way to one member


#: Offset and size of the data in bytes, or the name that a link leads to.
Member = Union[Tuple[int, int], str]


class Members(BlobSource):
    """The members of a tar, and the blobs among them; ``root`` is its path."""

    def __init__(self, root: str, file: BinaryIO) -> None:
        self.root = root
        self.named: Dict[Digest, str] = {}  # member of a blob that does not lie where a layout has it
        self._made: Dict[Digest, bytes] = {}  # documents that are no members
        self._file = file
        self._members: Dict[str, Member] = {}
        self._repeated: Dict[str, List[Member]] = {}  # further ones of the same name
        room = MAX_NAMES
        with file_errors("read the archive"):
            end = os.fstat(file.fileno()).st_size
            archive = cast(BinaryIO, Extent(file, 0, end))
            reader = Reader(iter(lambda: archive.read(BLOCK), b""))
            for count, entry in enumerate(reader):
                name = inside(entry.name.decode("utf-8", "surrogateescape"))
                room -= len(entry.name) + len(entry.linkname)
                if count == MAX_MEMBERS or room < 0:
                    raise PolicyError("more than %d members, or %d bytes of names" % (MAX_MEMBERS, MAX_NAMES))
                if reader.sparse:
                    raise InvalidDocument("%s is a sparse file" % shown(name, 200))
                if entry.kind == FILE:
                    self._define(name, (archive.tell(), entry.size))
                elif entry.kind in (LINK, SYMLINK):
                    folder = name.rpartition("/")[0] if entry.kind == SYMLINK else ""
                    self._define(name, inside(entry.linkname.decode("utf-8", "surrogateescape"), folder))
                if archive.seek(reader.skip(), os.SEEK_CUR) > end:
                    raise InvalidDocument("tar: the stream is cut short")

    def _define(self, name: str, member: Member) -> None:
        if self._members.setdefault(name, member) != member:
            self._repeated.setdefault(name, []).append(member)

    def find(self, name: str) -> Optional[Tuple[int, int]]:
        """Return offset and size of a member's data, or None; raises InvalidDocument for an ambiguous name."""
        for _ in range(MAX_HOPS + 1):
            first = self._members.get(name)
            # A blob is verified by its digest whenever it is read, whichever of them it is.
            for other in () if re.fullmatch("blobs/sha(?:256|384|512)/[0-9a-f]+", name) else self._repeated.get(name, ()):
                if not self._same(first, other):
                    raise InvalidDocument("%s is in it twice" % shown(name, 200))
            self._repeated.pop(name, None)  # not before: other threads may ask as well
            if not isinstance(first, str):
                return first
            name = first
        raise InvalidDocument("%s lies behind more than %d links" % (shown(name, 200), MAX_HOPS))

    def _same(self, one: Optional[Member], other: Member) -> bool:
        """Whether two members of one name are files of the same bytes."""
        if not isinstance(one, tuple) or not isinstance(other, tuple) or one[1] != other[1]:
            return False
        files = [Extent(self._file, *extent) for extent in (one, other)]
        pair = [iter(functools.partial(file.read, 1 << 20), b"") for file in files]
        return all(ours == theirs for ours, theirs in itertools.zip_longest(*pair))

    def member(self, name: str, limit: int = 1 << 62) -> BinaryIO:
        """Open a member; raises InvalidDocument, and PolicyError past ``limit`` bytes."""
        extent = self.find(name)
        if extent is None:
            raise InvalidDocument("%s is missing" % shown(name, 200))
        if extent[1] > limit:
            raise PolicyError("%s is larger than %d bytes" % (shown(name, 200), limit))
        return cast(BinaryIO, Extent(self._file, *extent))

    def make(self, data: bytes, media_type: str) -> Descriptor:
        """Add a document that the archive lacks."""
        descriptor = Descriptor.of(data, media_type)
        self._made[descriptor.digest] = data
        return descriptor

    def path(self, digest: Digest) -> str:
        return os.path.join(self.root, self._name(digest))

    def size(self, digest: Digest) -> Optional[int]:
        if digest in self._made:
            return len(self._made[digest])
        extent = self.find(self._name(digest))
        return extent[1] if extent else None

    def has(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there; raises NotFound for one that a delta leaves out."""
        if digest in self.left_out:
            raise NotFound("blob %s is left out of %s, which is a delta: load it, and use the store" % (
                digest, self.root))
        return super().has(digest, size)

    def open(self, digest: Digest) -> BinaryIO:
        self.has(digest, 0)
        return io.BytesIO(self._made[digest]) if digest in self._made else self.member(self._name(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        data = self._made.get(digest) or self.member(self._name(digest), limit).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise ContentMismatch("blob %s is something else" % digest)
        return data

    def _name(self, digest: Digest) -> str:
        return self.named.get(digest) or "blobs/%s/%s" % (digest.algorithm, digest.encoded)


def inside(name: str, folder: str = "") -> str:
    """Normalize a member's name or a link's target; empty if it leads out of the archive."""
    parts = folder.split("/") if folder and not name.startswith("/") else []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
