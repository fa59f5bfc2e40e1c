# SPDX-License-Identifier: Apache-2.0
"""The two ends of a copy: a repository at a registry, or an image layout or an archive on disk.

What one end gives goes straight into the other: from a registry to a registry
nothing is held but one buffer, and what is on disk is sent by sendfile(2).
Whoever keeps bytes has verified them first.  The store is a layout like any
other; only its names are whole references.
"""
import abc
import contextlib
import os
import tempfile
import threading
from typing import Callable, ContextManager, Dict, Iterator, List, Optional, Tuple

from ..archive.reader import Archive
from ..archive.save import packed, write_file
from ..cancel import Cancel
from ..digest import Buffer, Digest
from ..errors import (
    Cancelled, ContentMismatch, Error, InvalidReference, NetworkError, NotFound, PolicyError, Unauthorized,
    storage_errors)
from ..image import manifest
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST
from ..progress import Meter, Output
from ..reference import Reference
from ..registry.errors import RegistryError
from ..registry.request import PIECE, Body, FileBody
from ..registry.response import Response
from ..registry.url import Origin
from ..registry.v2 import Received, Repository
from ..store.references import REF_NAME, Named, named
from ..store.store import Store, damaged, host_platform
from ..xfer.transfer import Transfer
from .blobs import SMALL, RemoteBlob, fetch_blob, persist, send_blob
from .places import Place

Source = Callable[[int, int], Body]  # so many bytes from an offset on


class End(abc.ABC):
    """Where an image comes from or goes to; ``tag`` is what it is called there."""
    tag: str

    @abc.abstractmethod
    def __str__(self) -> str:
        """Where that is, and nothing else is."""

    @abc.abstractmethod
    def get(self, reference: str, cancel: Cancel) -> Received:
        """A manifest by tag or :class:`Digest`, verified; raises NotFound, RegistryError."""

    @abc.abstractmethod
    def put(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        """Take a manifest by tag or :class:`Digest`; whether its subject was noted."""

    @abc.abstractmethod
    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """What refers to a manifest; None if this end has no list of that, so a tag may."""

    @abc.abstractmethod
    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        """Whether a blob is there."""

    @abc.abstractmethod
    def reading(self, blob: Descriptor, cancel: Cancel) -> ContextManager[Source]:
        """Open a blob to be sent to a registry."""

    @abc.abstractmethod
    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        """Bring a blob into a layout."""

    @abc.abstractmethod
    def receive(self, blob: Descriptor, source: "End", transfer: Transfer) -> str:
        """Take a blob; returns what became of it, as its progress says it."""


class RegistryEnd(End):
    """``chunk_size`` (bytes) is the most that one request brings, 0 for all of a blob."""

    def __init__(self, repository: Repository, tag: str, chunk_size: int = 0) -> None:
        self.repository = repository
        self.tag = tag
        self._chunk_size = chunk_size
        self._first: Optional[Received] = None  # what ``tag`` has turned out to be

    def __str__(self) -> str:
        return "%s/%s" % (self.repository.endpoint, self.repository.path)

    def get(self, reference: str, cancel: Cancel) -> Received:
        if self._first is not None and reference == self.tag:
            return self._first
        received = persist(
            self.repository, cancel, lambda: self.repository.manifest(reference, cancel))
        if reference == self.tag:
            self._first = received
        return received

    def put(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        return self.repository.put_manifest(reference, raw, media_type, cancel)

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        return persist(self.repository, cancel, lambda: self.repository.referrers(digest, cancel))

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        try:
            return self.repository.stat(blob.digest, cancel) == blob.size
        except RegistryError:
            return False  # no answer to this is a reason to fail

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with contextlib.ExitStack() as stack:
            stream = RemoteBlob(self.repository, blob, cancel, stack)
            yield lambda offset, size: Body(lambda: stream.read(offset, size), size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        def source(offset: int) -> Response:
            return self.repository.blob(blob.digest, offset, transfer.cancel)

        if blob.size <= SMALL:
            # A partial costs more than such a blob, unless it breaks off.
            with contextlib.suppress(NetworkError, PolicyError), source(0) as response:
                store.content.put(blob.digest, response.read(blob.size))
                return
        what = "blob verification failed for digest %s" % blob.digest
        fetch_blob(store, blob, what, transfer.cancel, source, transfer)

    def receive(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        cancel, here, upload = transfer.cancel, self.repository, None
        there = source.repository if isinstance(source, RegistryEnd) else here
        if there.path != here.path and Origin.of(there.endpoint.url) == Origin.of(here.endpoint.url):
            with contextlib.suppress(RegistryError, Unauthorized, PolicyError):
                upload = here.start_upload(cancel, blob.digest, there.path)
                if upload is None:
                    return "Mounted from %s" % there.path
        meter = Meter(transfer.progress, blob.digest.short, "Pushing", blob.size)
        with source.reading(blob, cancel) as read:

            def measured(offset: int, size: int) -> Body:
                body = read(offset, size)
                body.sent = lambda sent: meter.move(offset + sent)
                return body

            try:
                send_blob(here, blob, measured, cancel, upload, self._chunk_size)
            except RegistryError as exc:
                if exc.code != "DIGEST_INVALID":
                    raise
                raise ContentMismatch("%s: blob %s is something else" % (source, blob.digest)) from exc
        return "Pushed"


class LayoutEnd(End):
    """An image layout, ``store``'s or another; in a store, a tag is one of the place's name."""

    def __init__(self, place: Place, store: Optional[Store]) -> None:
        ours = place.kind == "store"
        if ours and store is None:
            raise InvalidReference("no store is given for %s" % (place,))
        self.store = store if ours and store else Store(place.folder)
        self.tag = place.tag
        self._base = place.name if ours else None
        self._about: Optional[Dict[Digest, List[Descriptor]]] = None  # by subject

    def __str__(self) -> str:
        return self.store.root

    def get(self, reference: str, cancel: Cancel) -> Received:
        digest, media_type = reference, ""
        if not isinstance(digest, Digest):
            found = self._find(reference)
            digest, media_type = found.digest, found.media_type
        if self.store.content.size(digest) is None:
            raise NotFound("%s: manifest %s is not there" % (self.store.root, digest))
        return Received(self.store.content.read(digest, MAX_MANIFEST), media_type, digest)

    def _find(self, tag: str) -> Descriptor:
        entries = self.store.references.descriptors()
        label = self._label(tag)
        found = [entry for entry in entries if named(entry) == label or not label and len(entries) == 1]
        if not found:
            names = ", ".join(sorted(filter(None, map(named, entries)))[:20])
            raise NotFound("%s: no image %s; there is %s" % (
                self.store.root, label or "without a name", names or "none with one"))
        with damaged():
            return Descriptor.from_json(found[0], "index.json")

    def _label(self, tag: str) -> str:
        return str(self._base.with_tag(tag)) if self._base else tag

    def put(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        digest = reference if isinstance(reference, Digest) else Digest.of(raw)
        self.store.content.put(digest, raw)
        descriptor = Descriptor(media_type, digest, len(raw))
        part, noted = reference is digest and digest != self.tag, False
        if part and self._base is not None:
            noted = manifest.parse(raw, media_type).subject is not None
        if part and not noted:
            return False  # what has a name needs it
        if self._base is None:
            notes = {REF_NAME: reference} if reference else None
            entry = descriptor._replace(annotations=notes).to_json()
            self.store.references.put(reference, entry, cancel.pause)
        else:
            base = self._base
            name = base.with_digest(digest) if reference is digest else base.with_tag(reference)
            self.store.references.set(name, descriptor, digest, cancel.pause)
        return noted

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """What has an entry of its own, as after a push to serve."""
        if self._about is None:
            self._about = {}
            for entry in self.store.references.descriptors():
                cancel.check()
                with contextlib.suppress(Error):
                    item = Descriptor.from_json(entry, "index.json")
                    document = self.store.document(item)
                    if document.subject is not None:
                        self._about.setdefault(document.subject.digest, []).append(
                            manifest.listed(document)._replace(digest=item.digest))
        return self._about.get(digest)

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        return self.store.content.has(blob.digest, blob.size)

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with self.store.content.open(blob.digest) as file:
            yield lambda offset, size: FileBody(file, offset, size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        store.content.copy(self.store.content, blob.digest, blob.size, transfer.cancel)

    def receive(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        source.fetch(blob, self.store, transfer)
        return "Download complete"


class ArchiveEnd(LayoutEnd):
    """The images of an archive, which are only read."""

    def __init__(self, place: Place, archive: Archive) -> None:
        super().__init__(place, None)
        self.store = archive

    def images(self) -> List[Tuple[str, Digest]]:
        """What is there, and what it is called, if it is."""
        return [(named(entry), Digest(entry["digest"])) for entry in self.store.references.descriptors()]

    def _label(self, tag: str) -> str:
        known = not tag or tag in [label for label, _ in self.images()]
        return tag if known else str(Reference.parse(tag).with_default_tag())

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with self.store.content.open(blob.digest) as file:

            def part(offset: int, size: int) -> Iterator[Buffer]:
                file.seek(offset)
                for start in range(0, size, PIECE):
                    yield file.read(min(PIECE, size - start))

            yield lambda offset, size: Body(lambda: part(offset, size), size)


class _Temporary(LayoutEnd):
    """A layout that goes when it is closed, though transfers may outlive the copy that they work for."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, None)
        self._changed = threading.Condition()
        self._busy = 0
        self._closed = False

    def receive(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        with self._changed:
            if self._closed:
                raise Cancelled()
            self._busy += 1
        try:
            return super().receive(blob, source, transfer)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            while self._busy:
                self._changed.wait()


@contextlib.contextmanager
def archive_end(place: Place, output: Output, cancel: Cancel) -> Iterator[LayoutEnd]:
    """A layout beside an archive, which that becomes when the block has ended well."""
    path = os.path.realpath(place.folder)
    with contextlib.ExitStack() as stack:
        with storage_errors("write %s" % place.folder):
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".minipull-", dir=os.path.dirname(path)))
        end = stack.enter_context(contextlib.closing(_Temporary(place._replace(folder=folder))))
        yield end
        images: List[Named] = []
        for entry in end.store.references.descriptors():
            label = named(entry)
            images.append((Reference.parse(label).with_default_tag() if label else None,
                           Descriptor.from_json(entry, "index.json")))
        write_file(place.folder, packed(end.store, images, host_platform(), output, cancel))
