# SPDX-License-Identifier: Apache-2.0
"""gc: remove the blobs that no name needs.

The store's lock is held alone, so no operation is under way.  Young blobs are kept
all the same, for a pull that was killed a moment ago and will be run again.  If
the manifest of any name can't be read, nothing is removed.

Mirrors what docker/distribution's garbage collector learned the hard way.
"""
import contextlib
import os
import time
from typing import Dict, List, NamedTuple, Optional, Set

from .. import files
from ..cancel import Cancel
from ..digest import ChainID, Digest
from ..errors import InvalidDocument, PolicyError, StorageError, storage_errors
from ..image.descriptor import Descriptor
from ..progress import Meter, Output, discard
from .content import listing
from .references import SOURCE_DIGEST
from .sessions import SessionNotes
from .store import Store, damaged


class Collected(NamedTuple):
    """The blobs that gc removed; ``size`` is their bytes and those of the partials that it removed."""
    blobs: List[Digest]
    size: int


def gc(store: Store, keep: float = 24 * 3600.0, *, progress: Output = discard,
       cancel: Optional[Cancel] = None) -> Collected:
    """Remove the blobs and partial downloads that no name needs and that are older than ``keep`` (seconds).

    Waits until no other operation uses the store.  Raises StorageError, and then nothing has
    been removed if a manifest can't be read; Cancelled.

    Example::

        store.remove("registry.lan/app:1.0")
        freed = minipull.gc(store, keep=0).size  # bytes
    """
    # A first pull that was killed may have left no more than a lock; a mistyped root is another's directory.
    if not store.exists() and not os.path.lexists(os.path.join(store.root, "lock")):
        return Collected([], 0)
    horizon = _horizon(keep)
    with store.alone(cancel):
        before, content = sum(_ingest(store).values()), store.content
        content.make_durable()  # else a power cut may bring back a name, and not its blobs
        doomed = _doomed(store, _needed(store), horizon)
        # Records first: after a crash in between, no record names a missing blob.
        _forget(store, set(doomed))
        sizes = [content.size(digest) or 0 for digest in doomed]
        meter = Meter(progress, "", "Deleting", sum(sizes))
        for digest, size in zip(doomed, sizes):
            _delete(content.path(digest))
            meter.advance(size)
        if doomed:
            meter.finish()
        content.make_durable(horizon)
        SessionNotes(store.root).sweep(horizon)
        sizes.append(before - sum(_ingest(store).values()))
    return Collected(doomed, sum(sizes))


def collectable(store: Store, *keeps: float, cancel: Optional[Cancel] = None) -> List[Collected]:
    """Return what gc would remove now, for each of ``keeps`` (seconds); raises as gc()."""
    with store.reading(cancel):
        needed, plans = _needed(store), []
        for horizon in map(_horizon, keeps):
            doomed = _doomed(store, needed, horizon)
            size = sum(store.content.size(digest) or 0 for digest in doomed)
            partials = sum(size for path, size in _ingest(store).items() if _is_stale(store, path, horizon))
            plans.append(Collected(doomed, size + partials))
    return plans


def partials(store: Store) -> Dict[str, int]:
    """Return the paths of what has not become a blob, and how many bytes each takes with its note."""
    sizes = _ingest(store)
    return {path: size + sizes.get(path + ".json", 0) for path, size in sizes.items()
            if not path.endswith(".json")}


def delete(store: Store, digest: Digest, cancel: Optional[Cancel] = None) -> bool:
    """Remove one blob; False if it is not stored.  Raises PolicyError if a name needs it, StorageError."""
    with store.alone(cancel):
        if store.content.size(digest) is None:
            return False
        store.content.make_durable()  # else a power cut may bring back a name, and not its blobs
        if digest in _needed(store):
            raise PolicyError("blob %s is needed by an image of the store" % digest)
        _forget(store, {digest})
        _delete(store.content.path(digest))
    return True


def _needed(store: Store) -> Set[Digest]:
    needed: Set[Digest] = set()
    for entry in store.references.descriptors():
        with damaged():
            top = Descriptor.from_json(entry, "index.json")
            source = (top.annotations or {}).get(SOURCE_DIGEST)
            needed.update([] if source is None else [Digest.parse(source)])
        for item, document in store.walk(top):
            needed.add(item.digest)
        if document is None:
            raise StorageError(
                "manifest %s is missing or unknown, so what it needs can't be told;"
                " pull or remove its image" % top.digest)
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


def _horizon(keep: float) -> float:
    return time.time() - keep if keep > 0 else float("inf")


def _doomed(store: Store, needed: Set[Digest], horizon: float) -> List[Digest]:
    return [digest for digest in store.content.digests()
            if digest not in needed and _mtime(store.content.path(digest)) < horizon]


def _ingest(store: Store) -> Dict[str, int]:
    """List the files of ``ingest/`` with their sizes in bytes; a directory has those of its files."""
    sizes = {}
    with storage_errors("list %s" % store.content.scratch), contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(store.content.scratch):
            within = [os.path.join(folder, name) for folder, _, names in os.walk(entry.path) for name in names]
            with contextlib.suppress(FileNotFoundError):  # it has become a blob meanwhile
                sizes[entry.path] = sum(os.lstat(path).st_size for path in within or [entry.path])
    return sizes


def _is_stale(store: Store, path: str, horizon: float) -> bool:
    """Whether make_durable() removes a file of ``ingest/``, or the note beside it."""
    partial = path[:-len(".json")] if path.endswith(".json") else path
    name = os.path.basename(partial)
    if path != partial and not os.path.lexists(partial):
        return True
    with contextlib.suppress(StorageError):  # it is owned, or has become a blob meanwhile
        stale = _mtime(partial) < horizon
        if name.startswith("."):
            stale = name.startswith(".minipull-")  # of a run that was killed
        with contextlib.suppress(InvalidDocument):
            stale = stale or store.content.size(Digest.parse(name.replace("-", ":", 1))) is not None
        if name.startswith("rotten-"):
            return stale
        with files.locked(partial, True, timeout=0, flags=os.O_RDWR):
            return stale
    return False


def _mtime(path: str) -> float:
    with storage_errors("examine %s" % path):
        return os.lstat(path).st_mtime


def _delete(path: str) -> None:
    with storage_errors("delete %s" % path):
        os.unlink(path)
