# SPDX-License-Identifier: Apache-2.0
"""check: is an image at a registry whole?

Every manifest is fetched and parsed, and every blob asked for by its size; a deep
check reads and hashes the blobs, and keeps nothing.
"""
from typing import Dict, List, Optional, Tuple

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, InvalidDocument
from ..image.config import ImageConfig
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Manifest, is_runnable
from ..image.walk import walk
from ..progress import Meter, Output, Progress
from ..registry.errors import IfThere, RegistryError
from ..registry.v2 import Received, Repository
from ..store.check import Problem
from ..store.store import MAX_CONFIG
from ..store.usage import Counts
from .blobs import persist
from .read import found, read_blob, verified


def check_repository(repository: Repository, top: Received, deep: bool, output: Output,
                     cancel: Cancel) -> Tuple[List[Problem], Counts]:
    """Return what is wrong with an image, given by its manifest, and what it has; raises an Error."""
    problems: List[Problem] = []
    blobs: Dict[Tuple[object, ...], Descriptor] = {}  # by digest and size, of which one may be wrong
    sizes: Dict[Digest, int] = {}

    def get(entry: Descriptor) -> Optional[Document]:
        try:
            received = Received.inline(entry) or persist(repository, cancel, repository.manifest, entry.digest)
            return received.document()
        except (ContentMismatch, InvalidDocument, RegistryError) as exc:
            if not isinstance(exc, RegistryError) or exc.status == 404:
                problems.append(Problem(str(entry.digest), "manifest", str(exc)))
                return None
            raise

    for item, document in walk(top.document(), lambda entry: get(entry) if entry.is_document else None):
        sizes[item.digest] = item.size
        if document is not None:
            blobs.update((blob[1:3], blob.bare) for blob in document.blobs)
        elif not item.is_document:
            blobs[item[1:3]] = item.bare
        if isinstance(document, Manifest) and is_runnable(document):
            problems += _config_problems(repository, document, cancel)
    remote = [blob for blob in blobs.values() if not blob.data]
    for blob in remote:
        output(Progress(id=blob.digest.short, action="Waiting", expected=blob.size if deep else 0))
    for blob in remote:
        trouble = _blob_problems(repository, blob, deep, output, cancel)
        output(Progress(id=blob.digest.short, action="Damaged" if trouble else "Checked"))
        problems += trouble
    sizes.update((blob.digest, blob.size) for blob in blobs.values())
    return problems, Counts(1, len(sizes), sum(sizes.values()))


def _config_problems(repository: Repository, image: Manifest, cancel: Cancel) -> List[Problem]:
    with IfThere():  # else the check of its blob tells
        try:
            ImageConfig.parse(read_blob(repository, image.config, MAX_CONFIG, cancel)).paired(image.layers)
        except (ContentMismatch, InvalidDocument) as exc:
            return [Problem(str(image.config.digest), "config", str(exc))]
    return []


def _blob_problems(repository: Repository, blob: Descriptor, deep: bool, output: Output,
                   cancel: Cancel) -> List[Problem]:
    size = persist(repository, cancel, repository.stat, blob.digest)
    if size is None and (blob.is_foreign or _is_manifest(repository, blob, cancel)):
        return []
    if size != blob.size:
        detail = "it is missing" if size is None else "%d bytes, not %d" % (size, blob.size)
        return [Problem(str(blob.digest), "blob", detail)]
    if deep:
        meter = Meter(output, blob.digest.short, "Checking", blob.size)
        try:
            for piece in verified(repository, blob, cancel):
                meter.advance(len(piece))
        except (ContentMismatch, RegistryError) as exc:
            if isinstance(exc, RegistryError) and exc.status != 404:
                raise
            return [Problem(str(blob.digest), "blob", str(exc))]
        meter.finish()
    return []


def _is_manifest(repository: Repository, entry: Descriptor, cancel: Cancel) -> bool:
    """Whether an entry of an index of an unknown kind, which is no blob, is a manifest at the registry."""
    received = found(repository, entry.digest, cancel)
    return received is not None and len(received.raw) == entry.size
