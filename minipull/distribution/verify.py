# SPDX-License-Identifier: Apache-2.0
"""Signatures at a registry: under cosign's tags of an image, and among its referrers.

Mirrors cosign's verify --key; moby has none.
"""
from typing import Iterator, List

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, NotFound
from ..image.manifest import Document, Index
from ..image.signature import KINDS, Signatures
from ..registry.errors import RegistryError
from ..registry.v2 import Repository
from .blobs import persist


class RemoteSignatures(Signatures):
    """The signatures in a repository."""

    def __init__(self, repository: Repository, cancel: Cancel) -> None:
        self._repository = repository
        self._cancel = cancel

    def manifests(self, digest: Digest) -> Iterator[Document]:
        tag = digest.replace(":", "-")
        yield from self._manifest(tag + ".sig")
        listed = persist(self._repository, self._cancel, self._repository.referrers, digest)
        if listed is None:  # it has no API for them
            listed = [entry for index in self._manifest(tag) if isinstance(index, Index)
                      for entry in index.manifests]
        for entry in listed:
            if entry.artifact_type.startswith(KINDS) or not entry.artifact_type:
                yield from self._manifest(entry.digest)
        yield from self._manifest(tag + ".att")

    def _manifest(self, reference: str) -> List[Document]:
        """Return the manifest, in a list that is empty if there is none."""
        try:
            return [persist(self._repository, self._cancel, self._repository.manifest, reference).document()]
        except RegistryError as exc:
            if exc.status != 404:
                raise
        return []

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
