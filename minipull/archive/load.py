# SPDX-License-Identifier: Apache-2.0
"""load(): the images of an archive, as save() writes it and as docker, podman and skopeo do.

Mirrors moby's image/tarexport/load.go.
"""
import contextlib
import os
from typing import BinaryIO, ContextManager, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from ..cancel import Cancel
from ..digest import DiffID, Digest
from ..errors import ContentMismatch, NotFound, StorageError, Unsupported, storage_errors, within
from ..files import make_directory
from ..image.config import Image, ImageConfig
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST, Manifest, is_runnable
from ..image.signature import Key
from ..image.walk import Seen
from ..parts import futures
from ..progress import Meter, Output, Progress, discard, serialized
from ..store.compression import is_compressed
from ..store.ingest import copy_blob
from ..store.signatures import StoredSignatures
from ..store.store import MAX_CONFIG, Store
from .reader import Archive, opened


def load(file: Union[str, BinaryIO], store: Store, *, keys: Sequence[Key] = (), progress: Output = discard,
         cancel: Optional[Cancel] = None) -> List[Image]:
    """Take the images of an archive into ``store``; ``file`` is a path or an open file.

    No image has a name before all of them are stored and verified; if there are ``keys``,
    none is stored before one of them has been found to have signed each.  An image
    without a name is called ``localhost/loaded@DIGEST``.  Raises
    NotFound for a delta without its base, InvalidDocument, ContentMismatch, PolicyError,
    StorageError, Cancelled.

    Example::

        for image in minipull.load("app.tar", minipull.Store("other")):
            print(image.name, image.id)
    """
    cancel, output = cancel or Cancel(), serialized(progress)
    with _loading(file), store.writing(cancel):
        make_directory(store.content.scratch)
        with opened(file, cancel, store.layers.zstd, store.content.scratch) as archive:
            names = archive.references
            images = list(filter(None, map(names.association, names.descriptors())))
            if keys:
                StoredSignatures(archive).require_all(keys)
            _take(archive, [image.descriptor for image in images], store, output, cancel)
            for image in images:
                if image.source != image.descriptor.digest:
                    store.content.put(image.source, archive.content.read(image.source, MAX_MANIFEST))
        before = {image.name: image for image in store.references.all()}
        for image in images:
            old = before.get(image.name, image)
            if old.descriptor.digest != image.descriptor.digest:
                old_id = old.descriptor.digest
                with contextlib.suppress(StorageError):
                    old_id = store.load(old).id
                output(Progress(message="The image %s already exists, renaming the old one with ID %s"
                                " to empty string" % (image.name.familiar, old_id)))
        store.references.put([image.to_json() for image in images], cancel.pause)
        return store.images(lambda text: output(Progress(message="warning: " + text)), images)


def needed(file: Union[str, BinaryIO], store: Store,
           cancel: Cancel) -> List[Tuple[str, Digest, Dict[Digest, int]]]:
    """Return name and digest of each image that load() would take, and the sizes of its blobs.

    Raises as load(), and writes nothing.
    """
    with _loading(file), opened(file, cancel, store.layers.zstd) as archive:
        images = [(str(image.name), image.source, {
            item.digest: item.size for item, _ in archive.walk(image.descriptor)
            if archive.content.size(item.digest) is not None or item.digest in archive.content.left_out})
            for image in archive.references.all()]
        _complete(archive, {digest for _, _, sizes in images for digest in sizes}, store)
        return images


def _loading(file: Union[str, BinaryIO]) -> ContextManager[None]:
    return within("load %s" % file if isinstance(file, str) else "load")


def _complete(archive: Archive, digests: Iterable[Digest], store: Store) -> None:
    """Raise NotFound if the archive is a delta, and ``store`` lacks a blob that it leaves out."""
    sizes = archive.content.left_out
    lacking = sorted(digest for digest in sizes.keys() & set(digests)
                     if not store.content.has(digest, sizes[digest]))
    if lacking:
        text = "%d of the blobs that it leaves out, %d bytes, are not in the store: %s%s; load %s first"
        raise NotFound(text % (len(lacking), sum(sizes[digest] for digest in lacking), ", ".join(lacking[:3]),
                               ", ..." if lacking[3:] else "", archive.base))


def _take(archive: Archive, tops: Sequence[Descriptor], store: Store, output: Output,
          cancel: Cancel) -> None:
    """Copy all that some images need, and compare every layer with the DiffID in its config."""
    blobs: Dict[Digest, Descriptor] = {}
    claims: Dict[Digest, Set[DiffID]] = {}
    seen: Seen = set()
    for top in tops:
        for item, document in archive.walk(top, seen=seen):
            blobs[item.digest] = item.bare
            if isinstance(document, Manifest) and is_runnable(document):
                config = ImageConfig.parse(archive.content.read(document.config.digest, MAX_CONFIG))
                for blob, diff_id in config.paired(document.layers):
                    claims.setdefault(blob.digest, set()).add(diff_id)

    _complete(archive, blobs, store)

    ordered = sorted(blobs.values(), key=lambda blob: -blob.size)
    for blob in ordered:
        if blob.digest in claims and not store.content.has(blob.digest, blob.size) and (
                archive.content.size(blob.digest) is not None):
            output(Progress(id=blob.digest.short, action="Waiting", expected=blob.size))

    def take(blob: Descriptor) -> None:
        told, result = output if blob.digest in claims else discard, "Already exists"
        if not store.content.has(blob.digest, blob.size):
            if archive.content.size(blob.digest) is None:
                return  # a foreign layer
            meter = Meter(told, blob.digest.short, "Loading layer", blob.size)
            copy_blob(store.content, archive.content, blob.digest, blob.size, cancel, meter.advance)
            meter.finish()
            result = "Load complete"
        known = store.metadata.get_diff_id(blob.digest)
        if result == "Load complete" and blob.digest in claims and _is_plain(store, blob.digest):
            known = DiffID(blob.digest)  # it has just been hashed
        for claim in claims.get(blob.digest, set()) - {known}:
            try:
                meter = Meter(told, blob.digest.short, "Verifying", blob.size)
                diff_id = store.layers.diff(blob.digest, cancel, move=meter.move).diff_id
            except Unsupported as exc:
                output(Progress(id=blob.digest.short, message="Not verified: %s" % exc))
                return
            if diff_id != claim:
                raise ContentMismatch("layer %s is %s, not %s as its config says" % (
                    blob.digest, diff_id, claim))
        told(Progress(id=blob.digest.short, action=result))

    with futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(take, ordered):
            pass


def _is_plain(store: Store, blob: Digest) -> bool:
    """Whether a blob is a tar without compression, so that its SHA-256 is its DiffID."""
    with store.content.open(blob) as file, storage_errors("read layer"):
        return blob.algorithm == "sha256" and not is_compressed(file.read(6))
