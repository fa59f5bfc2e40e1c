# SPDX-License-Identifier: Apache-2.0
"""The two ends of a copy: a repository at a registry, or an image layout on disk.

Blobs go straight from end to end: between registries only one buffer of a blob is
held, and a file is sent by sendfile(2).  An end that keeps bytes verifies them
first.  The store is a layout whose names are whole references.  What the copy of one
image asks of an end, both have; a layout is listed, too.
"""
import contextlib
import copy
import functools
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import (
    ContentMismatch, Error, InvalidReference, NetworkError, NotFound, PolicyError, Unauthorized, corrupt)
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST, Document, listed
from ..image.signature import Signatures
from ..reference import Reference
from ..registry.errors import Dispensable, RegistryError
from ..registry.request import Body, FileBody
from ..registry.response import Response
from ..registry.url import Origin
from ..registry.v2 import Received, Repository
from ..store.ingest import copy_blob
from ..store.references import REF_NAME, UNNAMED, association, named
from ..store.signatures import StoredSignatures
from ..store.store import ImageSource, Store, damaged
from ..xfer.transfer import Transfer, nothing
from .blobs import SMALL, RemoteBlob, existing, fetch_blob, persist, put_document
from .places import ARCHIVES, Place
from .read import found
from .sessions import Source, upload_blob
from .verify import RemoteSignatures


class RegistryEnd:
    """A repository at a registry; ``chunk_size`` (bytes) is the most that one request sends, 0 for all.

    With ``dry_run`` an end answers as ever, and takes nothing.  ``store`` has the notes of its uploads.
    """

    def __init__(self, repository: Repository, chunk_size: int = 0, dry_run: bool = False,
                 store: Optional[ImageSource] = None) -> None:
        self.repository = repository
        self.path = repository.path
        self._dry_run = dry_run
        self._chunk_size = chunk_size
        self._store = store
        #: The first reference and its manifest, by which an endpoint is chosen; not asked for again.
        self._first: Optional[Tuple[str, Received]] = None

    def __str__(self) -> str:
        """A key unique to this end: two ends with the same text share transfers."""
        return "%s/%s" % (self.repository.endpoint, self.repository.path)

    def holding(self, cancel: Cancel) -> ContextManager[Any]:
        """Hold the lock that writing to this end needs; a transfer may outlive the copy that began it."""
        return nothing(cancel)

    def get(self, reference: str, cancel: Cancel) -> Received:
        """Return a manifest by tag or :class:`Digest`, verified; raises NotFound, RegistryError."""
        if self._first is not None and reference == self._first[0]:
            return self._first[1]
        received = persist(self.repository, cancel, self.repository.manifest, reference)
        self._first = self._first or (reference, received)
        return received

    def named(self, tag: str, cancel: Cancel) -> Optional[Digest]:
        """Return the digest of the image with a name, or None; raises an Error if the answer is not clear."""
        digest = self.repository.resolve(tag, cancel)
        received = None if digest else found(self.repository, tag, cancel)
        return received.document().digest if received else digest

    def put(self, document: Document, cancel: Cancel) -> bool:
        """Take a manifest by its digest; True if this end lists it as a referrer of its subject."""
        return self._dry_run or put_document(self.repository, document.digest, document, cancel)

    def tag(self, tag: str, document: Document, cancel: Cancel) -> None:
        """Take a manifest under its name, a tag or a :class:`Digest`."""
        if not self._dry_run:
            put_document(self.repository, tag, document, cancel)

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """List the manifests whose subject is ``digest``; None if this end keeps no such list."""
        return persist(self.repository, cancel, self.repository.referrers, digest)

    def signatures(self, cancel: Cancel) -> Signatures:
        return RemoteSignatures(self.repository, cancel)

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        return existing(self.repository, blob.digest, cancel) == blob.size

    def offers(self, blob: Descriptor, cancel: Cancel) -> bool:
        """Whether a blob can be had from this end; raises an Error if its answer is not clear."""
        return persist(self.repository, cancel, self.repository.stat, blob.digest) is not None

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        """Open a blob to be sent to a registry, part by part."""
        if blob.data:
            yield lambda offset, size: Body.of(blob.data[offset:offset + size])
            return
        verifier = Verifier(blob.digest.algorithm)  # of the bytes that were read without a gap

        def opened(offset: int, cancel: Cancel) -> Response:
            try:
                return self.repository.blob(blob.digest, offset, cancel)
            except (RegistryError, Unauthorized) as exc:
                if offset and isinstance(exc, RegistryError) and exc.status == 416:
                    raise ContentMismatch("%s: %s" % (self, exc)) from exc
                # Neither of the two: that would be taken for the answer of the target.
                error = (NotFound if isinstance(exc, NotFound) else Error)("%s: %s" % (self, exc))
                error.exit_code, error.retry = exc.exit_code, exc.retry
                raise error from exc

        def pieces(offset: int, size: int) -> Iterator[Buffer]:
            nonlocal verifier
            if not offset:
                verifier = Verifier(blob.digest.algorithm)
            try:
                for piece in remote.pieces(offset, size):
                    if verifier.size == offset:
                        verifier.update(piece)
                    offset += len(piece)
                    if offset == verifier.size == blob.size:
                        verifier.verify(blob.digest, blob.size, "blob %s" % blob.digest)
                    yield piece
            except ContentMismatch as exc:
                exc.retry = remote.broke_off
                raise

        with contextlib.closing(RemoteBlob(blob.digest, blob.size, opened, cancel)) as remote:
            yield lambda offset, size: Body(lambda: pieces(offset, size), size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        """Copy a blob of this end into a layout."""
        source = functools.partial(self.repository.blob, blob.digest)
        if blob.size <= SMALL and not blob.data:
            # A small blob needs no partial on disk, unless its body breaks off.
            with contextlib.suppress(NetworkError, PolicyError), source(0, transfer.cancel) as response:
                raw = response.read(blob.size)
                if len(raw) == blob.size:
                    store.content.put(blob.digest, raw)
                    return
        fetch_blob(store, blob, source, transfer.cancel, transfer=transfer)

    def receive(self, blob: Descriptor, source: "End", transfer: Transfer, sibling: str = "") -> str:
        """Take a blob of another end, or of a ``sibling`` repository; returns the last word of its progress."""
        cancel, ours, upload = transfer.cancel, self.repository, None
        theirs = source.repository if isinstance(source, RegistryEnd) else ours
        if not sibling and Origin.of(theirs.endpoint.url) == Origin.of(ours.endpoint.url):
            sibling = theirs.path if theirs.path != ours.path else ""
        if sibling and self._dry_run:
            return "Mounted"
        if sibling:
            with contextlib.suppress(Unauthorized), Dispensable():
                upload = ours.start_upload(cancel, blob.digest, sibling)
                if upload is None:
                    return "Mounted from %s" % sibling
        with source.reading(blob, cancel) as read:
            if self._dry_run:
                return "Pushed"
            for last in (False, True):
                try:
                    upload_blob(ours, blob, read, transfer.progress, blob.digest.short, cancel, upload,
                                self._chunk_size, self._store)
                    break
                except ContentMismatch as exc:
                    # The rest is of another blob, as from another backend: all of it then, but once.
                    exc.retry = exc.retry and not last
                    if not exc.retry:
                        raise
                    upload = None
                except RegistryError as exc:
                    if exc.code != "DIGEST_INVALID":
                        raise
                    raise source.spoiled(blob) from exc
        return "Pushed"

    def spoiled(self, blob: Descriptor) -> Error:
        """The error for bytes that are not what their digest says."""
        return _mismatch(self, blob)


class LayoutEnd:
    """An image layout, or an archive; or ``store``, where tags are those of the place's name."""
    path = ""  # there are no repositories to mount from

    def __init__(self, place: Place, store: Optional[ImageSource], dry_run: bool = False) -> None:
        self._dry_run = dry_run
        if place.kind == "store" and store is None:
            raise InvalidReference("no store is given for %s" % (place,))
        self.source = Store(place.folder) if place.kind == "oci" or store is None else store
        self._base = place.name if place.kind == "store" else None
        self.is_archive = place.kind in ARCHIVES  # then names are whole references
        self._referrers: Optional[Dict[Digest, List[Descriptor]]] = None  # by subject

    def __str__(self) -> str:
        return self.source.root

    @property
    def store(self) -> Store:
        """The source, to be written to; raises StorageError for an archive."""
        return self.source.writable

    def holding(self, cancel: Cancel) -> ContextManager[Any]:
        return self.store.writing(cancel) if self._base and not self._dry_run else self.store.reading(cancel)

    def get(self, reference: str, cancel: Cancel) -> Received:
        digest, media_type = reference, ""
        if not isinstance(digest, Digest):
            descriptor = self._find(reference)
            digest, media_type = descriptor.digest, descriptor.media_type
        if self.source.content.size(digest) is None:
            raise NotFound("%s: manifest %s is not there" % (self.source.root, digest))
        return Received(self.source.content.read(digest, MAX_MANIFEST), media_type, digest)

    def _find(self, tag: str) -> Descriptor:
        entries = self.source.references.descriptors()
        label = self._label(tag)
        matching = [entry for entry in entries if named(entry) == label or not label and len(entries) == 1]
        if not matching:
            names = ", ".join(sorted(filter(None, map(named, entries)))[:20])
            raise NotFound("%s: no image %s; there is %s" % (
                self.source.root, label or "without a name", names or "none with one"))
        with damaged():
            return Descriptor.from_json(matching[0], "index.json")

    def _label(self, tag: str) -> str:
        if self._base is None:
            return tag
        return str(self._base.with_digest(tag) if isinstance(tag, Digest) else self._base.with_tag(tag))

    def named(self, tag: str, cancel: Cancel) -> Optional[Digest]:
        label = self._label(tag)  # without one, images are kept side by side
        return dict(self.images()).get(label) if label else None

    def images(self) -> List[Tuple[str, Digest]]:
        """List the label, which may be empty, and the digest of every image with an entry."""
        return [(named(entry), Digest(entry["digest"])) for entry in self.source.references.descriptors()]

    def referring(self) -> Set[str]:
        """Return the labels of signatures and other referrers, which go with their image."""
        return {str(item.name) for item in self.source.references.all()
                if self.source.subject(item.name, item.descriptor)}

    def put(self, document: Document, cancel: Cancel) -> bool:
        if self._dry_run:
            return True
        self.store.content.put(document.digest, document.raw)
        if self._base is None or document.subject is None:
            return False
        name = self._base.with_digest(document.digest)
        self.store.references.set(name, document.descriptor, document.digest, cancel.pause)
        return True

    def tag(self, tag: str, document: Document, cancel: Cancel) -> None:
        if self._dry_run:
            return
        digest = tag if isinstance(tag, Digest) else Digest.of(document.raw)
        descriptor = document.descriptor._replace(digest=digest)
        self.store.content.put(digest, document.raw)
        if self._base is None:
            notes = {REF_NAME: tag} if tag else None
            self.store.references.put([descriptor._replace(annotations=notes).to_json()], cancel.pause)
        else:
            name = self._base.with_digest(digest) if tag is digest else self._base.with_tag(tag)
            self.store.references.set(name, descriptor, digest, cancel.pause)

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[Iterable[Descriptor]]:
        # Only manifests with an entry of their own in this repository, as serve lists them, are found.
        if self._referrers is None:
            self._referrers = {}
            for entry in self.source.references.descriptors():
                cancel.check()
                ours = association(entry)
                if self._base and ours and ours.name.name != self._base.name:
                    continue
                with contextlib.suppress(Error):
                    item = Descriptor.from_json(entry, "index.json")
                    document = self.source.document(item)
                    if document.subject is not None and listed(document):  # which may raise
                        self._referrers.setdefault(document.subject.digest, []).append(
                            Descriptor(*item[:3]))
        items = self._referrers.get(digest)
        # Their annotations may take much, so one is parsed at a time.
        return items and (listed(self.source.document(item))._replace(digest=item.digest) for item in items)

    def signatures(self, cancel: Cancel) -> Signatures:
        return StoredSignatures(self.source)

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        return self.source.content.has(blob.digest, blob.size)

    offers = has

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with self.source.content.open(blob.digest) as file:
            yield lambda offset, size: FileBody(file, offset, size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        try:
            copy_blob(store.content, self.source.content, blob.digest, blob.size, transfer.cancel)
        except ContentMismatch as exc:
            raise self.spoiled(blob) from exc

    def spoiled(self, blob: Descriptor) -> Error:
        """The error for bytes that are not what their digest says."""
        return corrupt(blob.digest) if self._base else _mismatch(self, blob)

    def receive(self, blob: Descriptor, source: "End", transfer: Transfer, sibling: str = "") -> str:
        if self._dry_run:
            with source.reading(blob, transfer.cancel):  # a delta may lack it
                return "Download complete"
        source.fetch(blob, self.store, transfer)
        return "Download complete"


End = Union[RegistryEnd, LayoutEnd]


def beside(end: End, label: str) -> End:
    """Return the end of the referrers of an image: in an archive, the repository in its label."""
    if isinstance(end, LayoutEnd) and end.is_archive:
        end = copy.copy(end)
        end._base = UNNAMED
        with contextlib.suppress(InvalidReference):  # there is none, or that of another tool
            name = "" if isinstance(label, Digest) else label
            end._base = Reference.parse(name)._replace(tag="", digest=None)
    return end


def _mismatch(end: End, blob: Descriptor) -> ContentMismatch:
    return ContentMismatch("%s: blob %s is something else" % (end, blob.digest))
