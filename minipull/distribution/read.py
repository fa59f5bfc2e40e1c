# SPDX-License-Identifier: Apache-2.0
"""Reading a repository: a manifest that may be missing, what refers to it, and blobs that are not kept."""
import contextlib
import functools
from typing import Iterator, Optional, Sequence

from ..cancel import Cancel
from ..digest import Digest, Verifier
from ..errors import PolicyError
from ..image.descriptor import Descriptor
from ..image.manifest import Index
from ..registry.errors import IfThere
from ..registry.v2 import Received, Repository
from .blobs import RemoteBlob, persist


def found(repository: Repository, reference: str, cancel: Cancel) -> Optional[Received]:
    """Return a manifest, or None if the registry has none; raises an Error if its answer is not clear."""
    with IfThere():
        return persist(repository, cancel, repository.manifest, reference)
    return None


def referring(repository: Repository, digest: Digest, cancel: Cancel) -> Sequence[Descriptor]:
    """List the manifests that refer to one, by the registry's API or else the fallback tag."""
    listed = persist(repository, cancel, repository.referrers, digest)
    if listed is None:
        received = found(repository, digest.replace(":", "-"), cancel)
        index = received.document() if received else None
        return index.manifests if isinstance(index, Index) else ()
    return listed


def read_blob(repository: Repository, blob: Descriptor, limit: int, cancel: Cancel) -> bytes:
    """Return a blob of at most ``limit`` bytes; raises ContentMismatch, PolicyError, RegistryError."""
    if blob.size > limit:
        raise PolicyError("blob %s is larger than %d bytes" % (blob.digest, limit))
    return blob.data or persist(
        repository, cancel, lambda cancel: b"".join(map(bytes, verified(repository, blob, cancel))))


def verified(repository: Repository, blob: Descriptor, cancel: Cancel) -> Iterator[memoryview]:
    """Yield the bytes of a blob as they arrive; a wrong one raises ContentMismatch at its end."""
    verifier = Verifier(blob.digest.algorithm)
    remote = RemoteBlob(blob.digest, blob.size, functools.partial(repository.blob, blob.digest), cancel)
    with contextlib.closing(remote):
        for piece in remote.pieces(0):
            verifier.update(piece)
            yield piece
    verifier.verify(blob.digest, blob.size, "blob %s" % blob.digest)
