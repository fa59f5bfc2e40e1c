# SPDX-License-Identifier: Apache-2.0
"""The walk down an index: every document below it once, children first, within one bound.

An index names manifests and further indexes, each by its digest, so a tree may
be deep, may name a child many times, and may be far larger than its top.  Pull,
push, copy, load, save, check, gc and serve all go down it here.

Mirrors containerd's images.Walk.  Spec: image-spec, image-index.md.
"""
from typing import Callable, Iterable, Iterator, List, Optional, Set, Tuple, Union

from ..digest import Digest
from ..errors import InvalidDocument, PolicyError
from .descriptor import Descriptor, select
from .manifest import Document, Index, Manifest, is_runnable
from .platform import Platform

MAX_DEPTH = 8  # indexes above a manifest
MAX_DOCUMENTS = 1000  # in one tree
MAX_BYTES = 16 << 20  # of all manifests and indexes of one tree

#: Entries that a walk has met.  An index may claim two types or sizes for one digest: two entries.
Seen = Set[Tuple[str, Digest, int]]


class Bounds:
    """Documents, and bytes of them, that a walk may still meet; several walks may share them."""

    def __init__(self, documents: Optional[int] = None) -> None:
        self.documents = MAX_DOCUMENTS if documents is None else documents
        self.size = MAX_BYTES

    def count(self, documents: int, size: int, top: Digest) -> None:
        """Take documents and bytes off the bounds; raises PolicyError, whose text names the top of the tree."""
        self.documents -= documents
        self.size -= size
        if self.documents < 0:
            raise PolicyError("%s: more than %d manifests in all" % (top, MAX_DOCUMENTS))
        if self.size < 0:
            raise PolicyError("%s: more than %d bytes of manifests" % (top, MAX_BYTES))


def walk(top: Union[Descriptor, Document], get: Callable[[Descriptor], Optional[Document]],
         below: Callable[[Index], Iterable[Descriptor]] = lambda index: index.manifests,
         seen: Optional[Seen] = None, bounds: Optional[Bounds] = None
         ) -> Iterator[Tuple[Descriptor, Optional[Document]]]:
    """Go through everything at and below ``top``, each entry once, children before their index.

    ``top`` is a descriptor, or a document that is at hand.  ``get`` returns the
    document of a descriptor, or None if it is missing or of an unknown kind.
    ``below`` chooses the entries of an index to follow, lazily.  Entries in ``seen``
    are left out, and those met are added.  One document is held for each level.
    Raises PolicyError past a bound, InvalidDocument for a child that is not as listed.
    """
    held, top = (None, top) if isinstance(top, Descriptor) else (top, top.descriptor)
    met: Seen = set() if seen is None else seen
    room = bounds or Bounds()

    def visit(item: Descriptor, depth: int) -> Iterator[Tuple[Descriptor, Optional[Document]]]:
        met.add(item[:3])
        room.count(1, 0, top.digest)
        document = get(item) if depth or held is None else held
        if document is not None:
            document = document._replace(digest=item.digest)
            room.count(0, len(document.raw), top.digest)
            if depth and (document.media_type, len(document.raw)) != (item.media_type, item.size):
                raise InvalidDocument("manifest %s is not as its index says" % item.digest)
        if isinstance(document, Index):
            if depth == MAX_DEPTH:
                raise PolicyError("%s: indexes nested deeper than %d" % (top.digest, MAX_DEPTH))
            for child in below(document):
                if child[:3] not in met:
                    yield from visit(child, depth + 1)
        yield item, document

    if top[:3] not in met:
        yield from visit(top, 0)


def runs(top: Union[Descriptor, Document], get: Callable[[Descriptor], Optional[Document]],
         seen: Optional[Seen] = None) -> bool:
    """Whether there is an image to run at or below ``top``, whatever it calls itself; raises as walk()."""
    return any(isinstance(document, Manifest) and is_runnable(document._replace(artifact_type=""))
               for _, document in walk(top, get, seen=seen))


def choose(platform: Platform, top: Union[Descriptor, Document],
           get: Callable[[Descriptor], Optional[Document]]) -> List[Tuple[Descriptor, Document]]:
    """Return the best manifest for a platform, then the indexes above it, or nothing; raises as walk()."""
    path: List[Tuple[Descriptor, Document]] = []

    def candidates(index: Index) -> Iterator[Descriptor]:
        for candidate in select(platform, index.offered):
            if path:
                break
            yield candidate

    for item, document in walk(top, get, candidates):
        if document is not None and (path or isinstance(document, Manifest)):
            path.append((item, document))
    return path
