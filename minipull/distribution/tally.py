# SPDX-License-Identifier: Apache-2.0
"""Tally: the blobs at the target of one command, as far as it knows; filled by a dry run as by a real one."""
from typing import Container, Dict, NamedTuple, Optional, Tuple

from ..digest import Digest
from ..errors import Error
from ..image.descriptor import Descriptor
from .places import Place

Sizes = Dict[Digest, int]  # of blobs, in bytes
_MOVED, _THERE, _MOUNTED = range(3)
_KINDS = {"Layer": _THERE, "Mounted": _MOUNTED}  # by the first word of a result


class Copied(NamedTuple):
    """The manifest of an image at the target, and its digest at the source."""
    descriptor: Descriptor
    source: Digest


class Outcome(NamedTuple):
    """The end of one image: ``result`` is copied, would copy, there (so it was let alone) or failed."""
    source: Place
    target: Place
    result: str
    sizes: Tuple[Sizes, Sizes, Sizes] = ({}, {}, {})  # of what moved, was there, was mounted
    digest: Optional[Digest] = None  # at the target
    copied: Optional[Copied] = None
    error: Optional[Error] = None
    covered: Container[str] = ()  # digests, by signatures that have been verified with all of its source


class Tally:
    """The repositories that have a blob, and what the present image took."""

    def __init__(self) -> None:
        self._known: Dict[Digest, Dict[str, bool]] = {}
        self._sizes: Tuple[Sizes, Sizes, Sizes] = ({}, {}, {})

    def known(self, digest: Digest) -> Dict[str, bool]:
        """Return the repositories that have a blob, and whether this command brought it there."""
        return self._known.get(digest, {})

    def add(self, blob: Descriptor, path: str, result: str) -> None:
        """Note what became of a blob at the repository ``path``."""
        word = result.partition(" ")[0]
        if word != "Skipped":
            kind = _KINDS.get(word, _MOVED)
            self._sizes[kind][blob.digest] = blob.size
            self._known.setdefault(blob.digest, {}).setdefault(path, kind != _THERE)

    def sizes(self) -> Tuple[Sizes, Sizes, Sizes]:
        """Return what the present image took, and begin with the next."""
        sizes, self._sizes = self._sizes, ({}, {}, {})
        return sizes
