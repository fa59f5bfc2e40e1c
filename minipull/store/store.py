# SPDX-License-Identifier: Apache-2.0
"""The store: content, layers, names and metadata under one root.

The root is an OCI image layout that other tools may read.  Every user holds a
shared lock and ``gc`` an exclusive one, so no blob that an operation relies on
disappears.  Layer records and metadata are caches; blobs and ``index.json`` are
the truth, and the index is written last.

Mirrors moby's daemon wiring of its layer, image and reference stores.
"""
import contextlib
import os
from typing import ContextManager, Iterator, Optional, Union

from .. import files
from ..cancel import Cancel
from ..errors import InvalidDocument, InvalidReference, NotFound, StorageError
from ..image import manifest
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..reference import Reference
from .content import ContentStore
from .layer import LayerStore
from .metadata import MetadataStore, V2MetadataService
from .references import Association, ReferenceStore
from .source import ImageSource


class Store(ImageSource):
    """A store under ``root``; creates nothing until written to.

    ``timeout`` (seconds) bounds the wait for a lock; ``zstd`` is the path of that program.
    """
    content: ContentStore
    layers: LayerStore
    references: ReferenceStore

    def __init__(self, root: str, timeout: float = 60.0, zstd: Optional[str] = None) -> None:
        self.root = os.path.abspath(root)
        self.timeout = timeout
        self.content = ContentStore(self.root, timeout)
        scratch = self.content.scratch
        self.layers = LayerStore(os.path.join(self.root, "layers"), scratch, self.content, zstd)
        self.references = ReferenceStore(self.root, scratch, timeout)
        self.metadata = V2MetadataService(
            MetadataStore(os.path.join(self.root, "metadata"), scratch))

    @contextlib.contextmanager
    def reading(self, cancel: Optional[Cancel] = None) -> Iterator[None]:
        """Hold the store's lock, shared with all but gc.

        Continues without one where there is no lock file, or no lock in this file system.
        Raises Locked if gc does not end in time, Cancelled.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(False, cancel, os.O_RDONLY))
            except files.Locked:
                raise
            except StorageError:
                pass
            yield

    def writing(self, cancel: Optional[Cancel] = None) -> ContextManager[None]:
        """Hold the same lock and make sure that there is one; raises StorageError, Cancelled."""
        files.make_directory(self.root)
        return self._locked(False, cancel)

    def alone(self, cancel: Optional[Cancel] = None) -> ContextManager[None]:
        """Hold the lock exclusively, to remove blobs; raises StorageError, Cancelled."""
        files.make_directory(self.root)
        return self._locked(True, cancel)

    def _locked(self, exclusive: bool, cancel: Optional[Cancel], *flags: int) -> ContextManager[None]:
        pause = (cancel or Cancel()).pause
        return files.locked(os.path.join(self.root, "lock"), exclusive, pause, self.timeout, *flags)

    def load(self, association: Association) -> Image:
        with damaged():
            return super().load(association)

    def document(self, descriptor: Descriptor) -> manifest.Document:
        with damaged():
            return super().document(descriptor)

    def tag(self, name: Union[str, Reference], image: Image, cancel: Optional[Cancel] = None) -> None:
        """Give an image another name; raises StorageError, InvalidReference."""
        reference = name if isinstance(name, Reference) else Reference.parse(name)
        if reference.digest is not None:
            raise InvalidReference("refusing to create a tag with a digest reference")
        pause = (cancel or Cancel()).pause
        with self.writing(cancel):
            for blob in self.missing(image.descriptor):
                raise StorageError("%s lacks blob %s; pull it again" % (image, blob.digest))
            self.references.set(reference.with_default_tag(), image.descriptor, image.source, pause)

    def remove(self, name: Reference, cancel: Optional[Cancel] = None) -> None:
        """Remove a name; the blobs stay until gc.  Raises NotFound."""
        if self.references.get(name) is not None:
            with self.writing(cancel):
                if self.references.delete(name, (cancel or Cancel()).pause):
                    return
        raise NotFound("No such image: %s" % name.familiar)


@contextlib.contextmanager
def damaged() -> Iterator[None]:
    """Map InvalidDocument to StorageError: a stored document was valid when it came, so the disk spoiled it."""
    try:
        yield
    except InvalidDocument as exc:
        raise StorageError("%s; run minipull check" % exc) from exc
