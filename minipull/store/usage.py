# SPDX-License-Identifier: Apache-2.0
"""Usage: the bytes that each image needs, and those that no other image needs.

Names of one manifest are one image.  What can't be read needs nothing here, so
this is for lists; gc, which deletes, takes no such chance.
"""
import contextlib
from typing import Dict, NamedTuple, Optional, Sequence, Set

from ..digest import Digest
from ..errors import Error
from ..image.descriptor import Descriptor
from ..progress import human_size
from .references import SOURCE_DIGEST
from .store import ImageSource


class Counts(NamedTuple):
    """The numbers of images and of blobs, and the ``size`` of these in bytes."""
    images: int = 0
    blobs: int = 0
    size: int = 0

    def __str__(self) -> str:
        plural = ["" if number == 1 else "s" for number in self]
        return "%d image%s, %d blob%s, %s" % (
            self.images, plural[0], self.blobs, plural[1], human_size(self.size))


class Usage(NamedTuple):
    """The blobs that images need.

    ``sizes`` and ``unique`` are in bytes, by the digest of the manifest or index that a name
    points to; ``blobs`` has the size of every stored blob, and ``shared`` are those of several images.
    """
    sizes: Dict[Digest, int]
    unique: Dict[Digest, int]
    blobs: Dict[Digest, int]
    shared: Set[Digest]

    @property
    def counts(self) -> Counts:
        return Counts(len(self.sizes), len(self.blobs), sum(self.blobs.values()))


def usage(source: ImageSource, tops: Optional[Sequence[Descriptor]] = None) -> Usage:
    """Measure the images ``tops``, or all that have an entry in the index, in time linear in their blobs."""
    sizes: Dict[Digest, int] = {}
    blobs: Dict[Digest, int] = {}
    owners: Dict[Digest, Digest] = {}
    shared: Set[Digest] = set()

    def needed(digest: Digest, top: Digest) -> None:
        if owners.setdefault(digest, top) != top:
            shared.add(digest)

    def size(digest: Digest) -> int:
        stored = blobs.get(digest) or source.content.size(digest)
        if stored is None:
            return source.content.left_out.get(digest, 0)
        blobs[digest] = stored
        return stored

    sources: Set[Digest] = set()
    for top in _tops(source) if tops is None else tops:
        if top.digest not in sizes:
            digests: Set[Digest] = set()
            with contextlib.suppress(Error):  # the part that can be read
                digests.update(item.digest for item, _ in source.walk(top))
            sizes[top.digest] = sum(map(size, digests))
            for digest in digests:
                needed(digest, top.digest)
        with contextlib.suppress(Error):
            digest = Digest.parse((top.annotations or {}).get(SOURCE_DIGEST, top.digest))
            if owners.get(digest) != top.digest:  # kept for the image, and no part of its size
                needed(digest, top.digest)
                sources.add(digest)
                size(digest)
    unique = dict.fromkeys(sizes, 0)
    for digest, owner in owners.items():
        if digest not in shared and digest not in sources:
            unique[owner] += size(digest)
    return Usage(sizes, unique, blobs, shared)


def _tops(source: ImageSource) -> Sequence[Descriptor]:
    tops = []
    for entry in source.references.descriptors():
        with contextlib.suppress(Error):
            tops.append(Descriptor.from_json(entry, "index.json"))
    return tops
