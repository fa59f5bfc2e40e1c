# SPDX-License-Identifier: Apache-2.0
"""Digests: the names of bytes.

A digest from outside goes through :meth:`Digest.parse` before any path or URL
is built from it; every other module may then trust the type.

Mirrors opencontainers/go-digest and moby's layer.CreateChainID.
Spec: image-spec, descriptor.md "Digests" and config.md "Layer ChainID".
"""
import hashlib
import re
from typing import NewType, Optional, Union

from .errors import ContentMismatch, InvalidDocument

ALGORITHMS = ("sha256", "sha384", "sha512")
#   digest ::= algorithm ":" encoded          (only the registered algorithms)
_DIGEST = r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}"

Buffer = Union[bytes, memoryview]


class Digest(str):
    """``algorithm:encoded``; a plain string to JSON, dicts and printf."""
    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> "Digest":
        """Parse a digest; raises InvalidDocument."""
        if not isinstance(text, str) or re.fullmatch(_DIGEST, text) is None:
            raise InvalidDocument("invalid digest %s" % ascii(text)[:100])
        return cls(text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> "Digest":
        return cls("%s:%s" % (algorithm, hashlib.new(algorithm, data).hexdigest()))

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve hex digits, as docker shows them."""
        return self.encoded[:12]


DiffID = NewType("DiffID", Digest)  # names one uncompressed layer tar
ChainID = NewType("ChainID", Digest)  # names that layer on top of its parents
ImageID = NewType("ImageID", Digest)  # names an image config


def next_chain_id(parent: Optional[ChainID], diff_id: DiffID) -> ChainID:
    """Name a layer on top of its parent; the bottom layer of a chain is its own DiffID."""
    return ChainID(Digest.of(("%s %s" % (parent, diff_id)).encode()) if parent else diff_id)


class Verifier:
    """A running hash and byte count, compared in the end with a digest and size."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self.size = 0

    def update(self, data: Union[bytes, memoryview]) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> Digest:
        return Digest("%s:%s" % (self._algorithm, self._hash.hexdigest()))

    def verify(self, digest: Digest, size: int, subject: str) -> None:
        """Raise ContentMismatch unless exactly ``size`` bytes of ``digest`` came by."""
        if self.size != size:
            raise ContentMismatch("%s: size is %d, expected %d" % (subject, self.size, size))
        if self.digest != digest:
            raise ContentMismatch("%s: content is %s, expected %s" % (subject, self.digest, digest))
