# SPDX-License-Identifier: Apache-2.0
"""The two ends of a copy: a repository at a registry, or an image layout on disk.

What one end gives goes straight into the other: from a registry to a registry
nothing is held but one buffer, and what is on disk is sent by sendfile(2).
Whoever keeps bytes has verified them first.  The store is a layout like any
other; only its names are whole references.
"""
import abc
import contextlib
from typing import Callable, ContextManager, Iterator, List, NamedTuple, Optional

from .connection import Body, FileBody, Origin, Response
from .descriptor import Descriptor
from .digest import Digest, Verifier
from .download import fetch_blob
from .errors import InvalidReference, NetworkError, NotFound, RegistryError, Unauthorized
from .manifest import MAX_MANIFEST
from .reference import Reference
from .references import REF_NAME, named
from .repository import Received, Repository
from .store import Store, damaged
from .streams import BUFFER, Buffer, Cancel, pieces
from .upload import SMALL, send_blob
from .xfer import Transfer

Source = Callable[[int, int], Body]  # so many bytes from an offset on


class Place(NamedTuple):
    """An end as it is written: ``docker://REF``, ``store:REF`` or ``oci:DIR[:NAME]``."""
    kind: str
    folder: str
    tag: str
    name: Reference

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Raises InvalidReference."""
        kind, _, rest = text.partition(":")
        if kind == "oci" and rest:
            folder, _, tag = rest.partition(":")
            return cls(kind, folder, tag, Reference("", ""))
        if kind == "docker" and rest.startswith("//") or kind == "store" and rest:
            name = Reference.parse(rest[2:] if kind == "docker" else rest).docker_ref()
            return cls(kind, "", name.digest or name.tag, name._replace(tag="", digest=None))
        raise InvalidReference("want docker://REF, store:REF or oci:DIR[:NAME]")

    @property
    def domains(self) -> List[str]:
        """The registry, if it is one."""
        return [self.name.domain] if self.kind == "docker" else []

    def __str__(self) -> str:
        return self.folder or self.name.name


class End(abc.ABC):
    """Where an image comes from or goes to; ``tag`` is what it is called there."""
    tag: str

    @abc.abstractmethod
    def get(self, reference: str, cancel: Cancel) -> Received:
        """A manifest by tag or :class:`Digest`, verified; raises NotFound, RegistryError."""

    @abc.abstractmethod
    def put(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        """Take a manifest by tag or :class:`Digest`; whether its subject was noted."""

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        """What refers to a manifest; None if this end keeps no such list itself."""
        return None

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
    """``chunk_size`` (bytes) is the most that one request brings, 0 for all of a blob.

    ``first`` is what ``tag`` has turned out to be.
    """

    def __init__(self, repository: Repository, tag: str, chunk_size: int = 0,
                 first: Optional[Received] = None) -> None:
        self.repository = repository
        self.tag = tag
        self._chunk_size = chunk_size
        self._first = first

    def get(self, reference: str, cancel: Cancel) -> Received:
        if self._first is not None and reference == self.tag:
            return self._first
        return self.repository.manifest(reference, cancel)

    def put(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        return self.repository.put_manifest(reference, raw, media_type, cancel)

    def referrers(self, digest: Digest, cancel: Cancel) -> Optional[List[Descriptor]]:
        return self.repository.referrers(digest, cancel)

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        try:
            return self.repository.stat(blob.digest, cancel) == blob.size
        except RegistryError:
            return False  # no answer to this is a reason to fail

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with contextlib.ExitStack() as stack:
            stream = _Stream(self.repository, blob, cancel, stack)
            yield lambda offset, size: Body(lambda: stream.read(offset, size), size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        def source(offset: int) -> Response:
            return self.repository.blob(blob.digest, offset, transfer.cancel)

        if blob.size <= SMALL:
            # A partial costs more than such a blob, unless it breaks off.
            with contextlib.suppress(NetworkError), source(0) as response:
                store.content.put(blob.digest, response.read(blob.size))
                return
        what = "blob verification failed for digest %s" % blob.digest
        fetch_blob(store, blob, what, transfer.cancel, source, transfer)

    def receive(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        cancel, here, upload = transfer.cancel, self.repository, None
        there = source.repository if isinstance(source, RegistryEnd) else here
        if there.path != here.path and Origin.of(there.endpoint.url) == Origin.of(here.endpoint.url):
            with contextlib.suppress(RegistryError, Unauthorized):
                upload = here.start_upload(cancel, blob.digest, there.path)
                if upload is None:
                    return "Mounted from %s" % there.path
        with source.reading(blob, cancel) as read:
            send_blob(here, blob, read, cancel, upload, self._chunk_size)
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
        if self._base is not None and reference is not digest:
            name = self._base.with_tag(reference)
            self.store.references.set(name, descriptor, digest, cancel.pause)
        elif reference is not digest:
            notes = {REF_NAME: reference} if reference else None
            entry = descriptor._replace(annotations=notes).to_json()
            self.store.references.put(reference, entry, cancel.pause)
        return False

    def has(self, blob: Descriptor, cancel: Cancel) -> bool:
        return self.store.content.has(blob.digest, blob.size)

    @contextlib.contextmanager
    def reading(self, blob: Descriptor, cancel: Cancel) -> Iterator[Source]:
        with self.store.content.open(blob.digest) as file:
            yield lambda offset, size: FileBody(file, offset, size)

    def fetch(self, blob: Descriptor, store: Store, transfer: Transfer) -> None:
        cancel = transfer.cancel
        with self.store.content.open(blob.digest) as file, \
                store.content.ingest(blob.digest, blob.size, cancel) as ingest:
            if not ingest.complete:
                ingest.restart()
                for piece in pieces(file.fileno(), cancel, None, BUFFER):
                    ingest.write(piece)
                ingest.commit()

    def receive(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        source.fetch(blob, self.store, transfer)
        return "Download complete"


class _Stream:
    """A blob of a registry, read from wherever it is wanted next."""

    def __init__(self, repository: Repository, blob: Descriptor, cancel: Cancel,
                 stack: contextlib.ExitStack) -> None:
        self._repository = repository
        self._blob = blob
        self._cancel = cancel
        self._stack = stack
        self._response: Optional[Response] = None
        self._position = 0
        self._verifier: Optional[Verifier] = None  # of all that was read, from the start on

    def read(self, offset: int, size: int) -> Iterator[Buffer]:
        if self._response is None or offset != self._position:
            self._open(offset)
        response, view = self._response, memoryview(bytearray(min(BUFFER, size + 1)))
        assert response is not None
        end = offset + size
        while self._position < end:
            try:
                count = response.readinto(view[:end - self._position])
                if not count:
                    raise NetworkError("%s ended the body early" % (response.origin,))
            except NetworkError:
                self._response = None
                raise
            self._position += count
            if self._verifier is not None:
                self._verifier.update(view[:count])
                if self._position == self._blob.size:
                    self._verifier.verify(
                        self._blob.digest, self._blob.size, "blob %s" % self._blob.digest)
            yield view[:count]

    def _open(self, offset: int) -> None:
        self._stack.close()
        response = self._stack.enter_context(
            self._repository.blob(self._blob.digest, offset, self._cancel))
        self._response, self._position = response, offset if response.status == 206 else 0
        self._verifier = None if self._position else Verifier(self._blob.digest.algorithm)
        skipped = memoryview(bytearray(min(BUFFER, offset - self._position + 1)))
        while self._position < offset:  # it gives all or nothing
            count = response.readinto(skipped[:offset - self._position])
            if not count:
                raise NetworkError("%s ended the body early" % (response.origin,))
            self._position += count
            self._verifier = None
