# SPDX-License-Identifier: Apache-2.0
"""gc: remove the blobs that no name needs.

The store's lock is held alone, so no operation is under way.  Young blobs are kept
all the same, for a pull that was killed a moment ago and will be run again.  If
the manifest of any name can't be read, nothing is removed.

Mirrors what docker/distribution's garbage collector learned the hard way.
"""
import os
import time
from typing import List, NamedTuple, Optional, Set

from ..cancel import Cancel
from ..digest import ChainID, Digest
from ..errors import PolicyError, StorageError, storage_errors
from ..image.descriptor import Descriptor
from .content import listing
from .references import SOURCE_DIGEST
from .store import Store, damaged


class Collected(NamedTuple):
    """The blobs that gc removed; ``size`` in bytes."""
    blobs: List[Digest]
    size: int


def gc(store: Store, keep: float = 24 * 3600.0, *, cancel: Optional[Cancel] = None) -> Collected:
    """Remove the blobs and partial downloads that no name needs and that are older than ``keep`` (seconds).

    Waits until no other operation uses the store.  Raises StorageError, and then nothing has
    been removed if a manifest can't be read; Cancelled.

    Example::

        store.remove("registry.lan/app:1.0")
        freed = minipull.gc(store, keep=0).size  # bytes
    """
    if not os.path.isdir(store.root):
        return Collected([], 0)
    horizon = time.time() - keep if keep > 0 else float("inf")
    with store.alone(cancel):
        needed, content = _needed(store), store.content
        doomed = [
            digest for digest in content.digests()
            if digest not in needed and _mtime(content.path(digest)) < horizon]
        # Records first: after a crash in between, no record names a missing blob.
        _forget(store, set(doomed))
        size = sum(content.size(digest) or 0 for digest in doomed)
        for digest in doomed:
            _delete(content.path(digest))
        content.make_durable(horizon)
        if store.sessions:
            store.sessions.sweep(horizon)
    return Collected(doomed, size)


def delete(store: Store, digest: Digest, cancel: Optional[Cancel] = None) -> bool:
    """Remove one blob; False if it is not stored.  Raises PolicyError if a name needs it, StorageError."""
    with store.alone(cancel):
        if store.content.size(digest) is None:
            return False
        if digest in _needed(store):
            raise PolicyError("blob %s is needed by an image of the store" % digest)
        _forget(store, {digest})
        _delete(store.content.path(digest))
    return True


def _needed(store: Store) -> Set[Digest]:
    store.content.make_durable()  # else a power cut may bring back a name, and not its blobs
    needed: Set[Digest] = set()
    for entry in store.references.descriptors():
        with damaged():
            top = Descriptor.from_json(entry, "index.json")
            source = (top.annotations or {}).get(SOURCE_DIGEST)
            needed.update([] if source is None else [Digest.parse(source)])
        items = list(store.walk(top))
        if items[-1][1] is None:
            raise StorageError(
                "manifest %s is missing or unknown, so what it needs can't be told;"
                " pull or remove its image" % top.digest)
        needed.update(item.digest for item, _ in items)
    return needed


def _forget(store: Store, doomed: Set[Digest]) -> None:
    """Remove blobs from the caches, and records that are unsound or name no stored blob."""

    def gone(digest: Digest) -> bool:
        return digest in doomed or store.content.size(digest) is None

    for chain_id, path in listing(store.layers.root):
        layer = store.layers.get(ChainID(chain_id))
        kept = tuple(blob for blob in layer.blobs if not gone(blob[0])) if layer else ()
        if layer is None or not kept:
            _delete(path)
        elif kept != layer.blobs:
            store.layers.write(layer._replace(blobs=kept))
    service = store.metadata
    for digest, path in listing(service.path(service.BY_DIGEST, "")):
        if gone(digest):
            _delete(path)
    for diff_id, path in listing(service.path(service.BY_DIFF_ID, "")):
        service.retain(diff_id, lambda entry: not gone(entry.digest))


def _mtime(path: str) -> float:
    with storage_errors("examine %s" % path):
        return os.lstat(path).st_mtime


def _delete(path: str) -> None:
    with storage_errors("delete %s" % path):
        os.unlink(path)
