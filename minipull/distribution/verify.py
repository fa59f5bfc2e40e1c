# SPDX-License-Identifier: Apache-2.0
"""Signatures at a registry: under cosign's tags of an image, and among its referrers.

Mirrors cosign's verify --key; moby has none.
"""
from typing import Iterator, List, Optional, Sequence

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, NotFound
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Index
from ..image.signature import KINDS, Signatures
from ..registry.errors import RegistryError
from ..registry.v2 import Received, Repository
from .blobs import persist


def found(repository: Repository, reference: str, cancel: Cancel) -> Optional[Received]:
    """Return a manifest, or None if the registry has none; raises an Error if its answer is not clear."""
    try:
        return persist(repository, cancel, repository.manifest, reference)
    except RegistryError as exc:
        if exc.status != 404:
            raise
        return None


def referring(repository: Repository, digest: Digest, cancel: Cancel) -> Sequence[Descriptor]:
    """List the manifests that refer to one, by the registry's API or else the fallback tag."""
    listed = persist(repository, cancel, repository.referrers, digest)
    if listed is None:
        received = found(repository, digest.replace(":", "-"), cancel)
        index = received.document() if received else None
        return index.manifests if isinstance(index, Index) else ()
    return listed


class RemoteSignatures(Signatures):
    """The signatures in a repository."""

    def __init__(self, repository: Repository, cancel: Cancel) -> None:
        self._repository = repository
        self._cancel = cancel

    def manifests(self, digest: Digest) -> Iterator[Document]:
        tag = digest.replace(":", "-")
        yield from self._manifest(tag + ".sig")
        for entry in referring(self._repository, digest, self._cancel):
            if entry.artifact_type.startswith(KINDS) or not entry.artifact_type:
                yield from self._manifest(entry.digest)
        yield from self._manifest(tag + ".att")

    def _manifest(self, reference: str) -> List[Document]:
        """Return the manifest, in a list that is empty if there is none."""
        received = found(self._repository, reference, self._cancel)
        return [received.document()] if received else []

    def read(self, digest: Digest, limit: int) -> bytes:

        def fetch(cancel: Cancel) -> bytes:
            with self._repository.blob(digest, 0, cancel) as response:
                return response.read(limit)

        try:
            data = persist(self._repository, self._cancel, fetch)
        except RegistryError as exc:
            raise (NotFound("blob %s is not there" % digest) if exc.status == 404 else exc) from exc
        if Digest.of(data, digest.algorithm) != digest:
            raise ContentMismatch("blob %s is something else" % digest)
        return data
