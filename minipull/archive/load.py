# SPDX-License-Identifier: Apache-2.0
"""load(): the images of an archive, as save() writes it and as docker, podman and skopeo do.

An archive is a store that is only read.  Its tar is gone through once; from
then on every member is a part of the file, read where it lies.  What can't be
read so, from a pipe or compressed, is first put into a file without a name.
Members are found by name within the archive, links included, and nothing is
ever opened on disk because of what one says.

- Where there is an image layout, that counts; manifest.json adds the names and
  the images that it has not.
- A layer of docker's own archives is a plain tar, so its digest is its DiffID.
- An image that comes without a manifest gets one of schema 2, always the same.

Mirrors moby's image/tarexport/load.go.  Spec: image-spec image-layout.md.
"""
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Dict, List, Optional, Sequence, Set, Union

from ..cancel import Cancel
from ..digest import DiffID, Digest
from ..errors import ContentMismatch, Error, StorageError, Unsupported
from ..files import make_directory
from ..image.config import Image, ImageConfig
from ..image.descriptor import Descriptor
from ..image.manifest import Manifest, is_runnable
from ..progress import Meter, Output, Progress, discard, serialized
from ..reference import Reference
from ..store.references import Association, image_of
from ..store.source import MAX_CONFIG, ImageSource
from ..store.store import Store
from .reader import opened

UNNAMED = Reference("localhost", "loaded")  # with its digest, what came without a name


def load(file: Union[str, BinaryIO], store: Store, *, progress: Output = discard,
         cancel: Optional[Cancel] = None) -> List[Image]:
    """Take the images of an archive into ``store``; ``file`` is a path or an open file.

    Nothing has a name before all of it is there and verified.  An image that
    has none in the archive is called ``localhost/loaded@DIGEST``.  Raises
    InvalidDocument, ContentMismatch, PolicyError, StorageError, Cancelled.
    """
    cancel, output = cancel or Cancel(), serialized(progress)
    try:
        with store.writing(cancel):
            make_directory(store.content.scratch)
            with opened(file, cancel, store.layers.zstd, store.content.scratch) as archive:
                found = [Association(name or UNNAMED.with_digest(top.digest), top, top.digest)
                         for name, top in map(image_of, archive.references.descriptors())]
                _take(archive, [item.descriptor for item in found], store, output, cancel)
            before = {item.name: item for item in store.references.all()}
            for item in found:
                old = before.get(item.name, item)
                if old.descriptor.digest != item.descriptor.digest:
                    what = old.descriptor.digest
                    with contextlib.suppress(StorageError):
                        what = store.load(old).id
                    output(Progress(message="The image %s already exists, renaming the old one with ID %s"
                                    " to empty string" % (item.name.familiar, what)))
            store.references.set_all(found, cancel.pause)
            return [store.load(item) for item in found]
    except Error as exc:
        raise exc.within("load %s" % file if isinstance(file, str) else "load") from exc


def _take(archive: ImageSource, tops: Sequence[Descriptor], store: Store, output: Output,
          cancel: Cancel) -> None:
    """Have all of some images in a store, every layer what its config says."""
    blobs: Dict[Digest, Descriptor] = {}
    said: Dict[Digest, Set[DiffID]] = {}
    for top in tops:
        for item, document in archive.walk(top):
            blobs[item.digest] = item
            if isinstance(document, Manifest) and is_runnable(document):
                config = ImageConfig.parse(archive.content.read(document.config.digest, MAX_CONFIG))
                for blob, diff_id in config.paired(document.layers):
                    said.setdefault(blob.digest, set()).add(diff_id)

    def take(blob: Descriptor) -> None:
        if not store.content.has(blob.digest, blob.size):
            if archive.content.size(blob.digest) is None:
                return  # a foreign layer
            what = output if blob.digest in said else discard
            meter = Meter(what, blob.digest.short, "Loading layer", blob.size)
            store.content.copy(archive.content, blob.digest, blob.size, cancel, meter.advance)
            meter.finish()
        for diff_id in said.get(blob.digest, set()) - {store.metadata.get_diff_id(blob.digest)}:
            try:
                found = store.layers.diff(blob.digest, cancel).diff_id
            except Unsupported as exc:
                output(Progress(id=blob.digest.short, message="Not verified: %s" % exc))
                return
            if found != diff_id:
                raise ContentMismatch("layer %s is %s, not %s as its config says" % (
                    blob.digest, found, diff_id))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(take, sorted(blobs.values(), key=lambda blob: -blob.size)):
            pass
