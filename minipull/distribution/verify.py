# SPDX-License-Identifier: Apache-2.0
"""Signatures at a registry: under cosign's tags of an image, and among its referrers.

Mirrors cosign's verify --key; moby has none.
"""
from typing import Iterator, List, Sequence

from ..cancel import Cancel
from ..digest import Digest
from ..errors import NotFound
from ..image.descriptor import Descriptor
from ..image.manifest import Document
from ..image.signature import KINDS, Key, Signatures, first_good
from ..progress import Output, Progress
from ..registry.errors import IfThere
from ..registry.v2 import Repository
from .read import found, read_blob, referring


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

    def read(self, blob: Descriptor, limit: int) -> bytes:
        with IfThere():
            return read_blob(self._repository, blob, limit, self._cancel)
        raise NotFound("blob %s is not there" % blob.digest)


def verify(repository: Repository, digests: Sequence[Digest], keys: Sequence[Key], output: Output,
           cancel: Cancel) -> None:
    """Tell the good signature of an image; raises ContentMismatch if no key has signed one of its manifests."""
    output(Progress(message=str(first_good(RemoteSignatures(repository, cancel).of(digests, keys), keys))))
