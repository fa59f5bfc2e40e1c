# SPDX-License-Identifier: Apache-2.0
"""One reference from one endpoint, by the v2 protocol.

A tag is resolved once; everything after that goes by digest.  What is already
in the store is not asked for, manifests included, so an image that is all
there costs one HEAD.  The name is written last, when every blob that it needs
is stored and durable.

Mirrors moby's distribution/pull_v2.go; presence is decided by blobs.
"""
import contextlib
import functools
from typing import Callable, Iterator, List, NamedTuple, Optional, Set, Tuple, TypeVar

from . import image, manifest
from .connection import Response
from .descriptor import (
    DOCKER_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    Descriptor,
    Platform,
    is_foreign,
    preference,
    select,
)
from .content import Ingest
from .digest import Digest, DiffID
from .download import DownloadDescriptor, LayerDownloadManager
from .errors import (
    Cancelled,
    ContentMismatch,
    Error,
    InvalidDocument,
    NetworkError,
    NotFound,
    PolicyError,
    RegistryError,
    StorageError,
    Unsupported,
)
from .image import Image, ImageConfig
from .layer import Diff
from .manifest import Document, Index, Manifest
from .metadata import V2Metadata
from .progress import Meter, Output, Progress, discard
from .reference import Reference
from .references import Association
from .repository import Repository
from .store import MAX_CONFIG, MAX_DEPTH, MAX_MANIFEST, Store
from .streams import BUFFER, Cancel
from .xfer import Transfer

ENGINE_MAX_LAYERS = 125
MAX_BREAKS = 100  # in one blob, and one more for each MiB
DOCUMENT_DELAYS = (0.25, 0.5, 1.0, 2.0)  # seconds between five attempts
#: Config types of an image to run; registries of old sent the last ones.
CONFIG_TYPES = frozenset(
    (DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", "application/json", "text/html")
)

T = TypeVar("T")


class PullOptions(NamedTuple):
    """What to take of what a name offers."""

    platform: Platform
    exact: bool = False  # the user asked for the platform
    all_platforms: bool = False
    foreign: bool = False  # fetch layers from the URLs that a manifest names


class Pulled(NamedTuple):
    """An image, and whether the pull changed anything."""

    image: Image
    updated: bool


class NoMatch(NotFound):
    """An index has nothing for the wanted platform."""


class V2Puller:
    """Pulls from one repository at one endpoint into one store."""

    def __init__(
        self,
        repository: Repository,
        store: Store,
        downloads: LayerDownloadManager,
        options: PullOptions,
        output: Output,
        cancel: Cancel,
    ) -> None:
        self._repository = repository
        self._store = store
        self._downloads = downloads
        self._options = options
        self._output = output
        self._cancel = cancel

    def pull(self, reference: Reference) -> Pulled:
        """Pull a tag or digest; the caller holds the store's shared lock."""
        known = self._store.references.get(reference)
        top = self._resolve(reference, known)
        shown = str(reference) if reference.digest else reference.tag
        self._output(Progress(id=shown, message="Pulling from %s" % reference.path))
        if self._options.all_platforms and isinstance(top, Index):
            documents = list(self._everything(top))
            chosen: Document = top
        else:
            documents = list(self._chosen(top))
            chosen = documents[-1]
        wanted = Association(reference, chosen.descriptor, top.digest)
        updated = known != wanted or not self._complete(chosen)
        config = None
        if updated:
            for document in documents:
                if isinstance(document, Manifest):
                    config = self._pull_manifest(document, document is chosen)
            for document in documents:
                self._store.content.put(document.digest, document.raw)
            self._store.references.set(
                reference, chosen.descriptor, top.digest, self._cancel.pause
            )
        if config is None or isinstance(chosen, Index):
            return Pulled(self._store.load(wanted), updated)
        return Pulled(Image(reference, chosen.descriptor, top.digest, config), updated)

    # Manifests.

    def _resolve(self, reference: Reference, known: Optional[Association]) -> Document:
        """What the reference means now, verified."""
        digest = reference.digest
        if digest is None and known is not None:
            digest = self._persist(lambda: self._repository.resolve(reference.tag, self._cancel))
        if digest is not None:
            if known is not None and known.source == digest:
                with contextlib.suppress(Error):
                    return manifest.parse(self._store.content.read(digest, MAX_MANIFEST))
            try:
                return self._fetch_document(str(digest))
            except RegistryError as exc:
                # Some registries don't give by digest what they just resolved.
                if reference.digest is not None or exc.status != 404:
                    raise
        return self._fetch_document(reference.tag)

    def _fetch_document(self, reference: str) -> Document:
        received = self._persist(lambda: self._repository.manifest(reference, self._cancel))
        document = manifest.parse(received.raw, received.content_type)
        return document._replace(digest=received.digest)

    def _child(self, descriptor: Descriptor) -> Document:
        """An entry of an index, which must be what the index says."""
        document = None
        if self._store.content.has(descriptor.digest, descriptor.size):
            with contextlib.suppress(Error):
                raw = self._store.content.read(descriptor.digest, MAX_MANIFEST)
                document = manifest.parse(raw, descriptor.media_type)
        if document is None:
            document = self._fetch_document(str(descriptor.digest))
        if (document.media_type, len(document.raw)) != (descriptor.media_type, descriptor.size):
            raise InvalidDocument("manifest %s is not as its index says" % descriptor.digest)
        return document._replace(digest=descriptor.digest)

    def _chosen(self, top: Document, depth: int = 0) -> Iterator[Document]:
        """``top``, and if that is an index the way down to the wanted platform."""
        if isinstance(top, Manifest):
            _check_runnable(top)
            yield top
            return
        if depth > MAX_DEPTH:
            raise PolicyError("indexes nested deeper than %d" % MAX_DEPTH)
        offered = [d for d in top.manifests if d.media_type in MANIFEST_TYPES | INDEX_TYPES]
        for candidate in select(self._options.platform, offered):
            with contextlib.suppress(NoMatch):
                below = list(self._chosen(self._child(candidate), depth + 1))
                yield top
                yield from below
                return
        there = sorted({str(d.platform) for d in offered if d.platform and d.platform.os != "unknown"})
        raise NoMatch(
            "no matching manifest for %s in the manifest list entries%s"
            % (str(self._options.platform), "; there is " + ", ".join(there) if there else "")
        )

    def _everything(self, top: Index) -> Iterator[Document]:
        """``top`` and every manifest below it, each once."""
        seen: Set[Digest] = set()
        stack: List[Tuple[Document, int]] = [(top, 0)]
        while stack:
            document, depth = stack.pop()
            yield document
            if isinstance(document, Index):
                if depth > MAX_DEPTH:
                    raise PolicyError("indexes nested deeper than %d" % MAX_DEPTH)
                for child in document.manifests:
                    if child.digest in seen:
                        continue
                    seen.add(child.digest)
                    if child.media_type in MANIFEST_TYPES | INDEX_TYPES:
                        stack.append((self._child(child), depth + 1))
                    elif not self._store.content.has(child.digest, child.size):
                        self._persist(lambda: self._opaque(child))

    def _opaque(self, child: Descriptor) -> None:
        """An entry of a kind that we know nothing of, kept as it is."""
        received = self._repository.manifest(str(child.digest), self._cancel)
        self._store.content.put(child.digest, received.raw)

    def _complete(self, top: Document) -> bool:
        with contextlib.suppress(StorageError):
            return not any(True for _ in self._store.missing(top.descriptor))
        return False

    # Configs and layers.

    def _pull_manifest(self, document: Manifest, chosen: bool) -> Optional[ImageConfig]:
        """Have all that a manifest names; the config, if it is an image to run."""
        if not _is_runnable(document):
            for blob in (document.config,) + document.layers:
                self._persist(lambda: self._plain_blob(blob, self._cancel))
            return None
        if len(document.layers) > ENGINE_MAX_LAYERS:
            text = "image has %d layers, docker will not load more than %d"
            self._output(Progress(message=text % (len(document.layers), ENGINE_MAX_LAYERS)))
        layers = [
            V2LayerDescriptor(
                self._repository, self._store, layer, self._options.foreign,
                functools.partial(self._word, document, position),
            )
            for position, layer in enumerate(document.layers)
        ]
        key = "config:" + document.config.digest
        if chosen and self._options.exact:
            key += ":%s" % (self._options.platform,)

        def fetch(transfer: Transfer) -> ImageConfig:
            config = self._config(document, transfer.cancel)
            if chosen:
                self._check_platform(config)
            return config

        for last in (False, True):
            done = self._downloads.download(
                self._store, layers, self._output, self._cancel, (key, fetch)
            )
            config: ImageConfig = done.beside
            if tuple(layer.diff.diff_id for layer in done.layers) == config.diff_ids:
                break
            if last:
                raise ContentMismatch("layers from manifest don't match image configuration")
            for layer in layers:  # or what we remember of them is wrong
                self._store.metadata.forget(layer.blob.digest)
        return config

    def _config(self, document: Manifest, cancel: Cancel) -> ImageConfig:
        descriptor = document.config
        try:
            if descriptor.size > MAX_CONFIG:
                raise PolicyError("config is larger than %d bytes" % MAX_CONFIG)
            self._persist(lambda: self._plain_blob(descriptor, cancel))
            return image.parse(self._store.content.read(descriptor.digest, MAX_CONFIG))
        except Cancelled:
            raise
        except Error as exc:
            raise exc.within("error pulling image configuration") from exc

    def _word(self, document: Manifest, position: int, cancel: Cancel) -> DiffID:
        """What the config says a layer is, for one that we can't look into."""
        diff_ids = self._config(document, cancel).diff_ids
        if len(diff_ids) != len(document.layers):
            raise ContentMismatch("layers from manifest don't match image configuration")
        return diff_ids[position]

    def _check_platform(self, config: ImageConfig) -> None:
        wanted = self._options.platform
        fit = {(platform.os, platform.architecture) for platform in preference(wanted)}
        found = config.platform.normalized()
        if not found.os or (found.os, found.architecture) in fit:
            return
        text = "image is for %s, not for %s" % (str(found), str(wanted))
        if self._options.exact:
            raise NotFound(text)
        self._output(Progress(message="WARNING: " + text))

    def _plain_blob(self, blob: Descriptor, cancel: Cancel) -> None:
        fetch_blob(
            self._store, blob, "blob verification failed for digest %s" % blob.digest, cancel,
            lambda offset: self._repository.blob(blob.digest, offset, cancel),
        )

    def _persist(self, work: Callable[[], T]) -> T:
        """Small documents have their own attempts, as the engine's configs have."""
        for delay in DOCUMENT_DELAYS:
            try:
                return work()
            except Error as exc:
                # Who never answered is not there: that need not take long to say.
                if not exc.retry or not self._repository.answered:
                    raise
            self._cancel.pause(delay)
        return work()


class V2LayerDescriptor(DownloadDescriptor):
    """A layer of a manifest; ``word`` is what the image's config says it is."""

    def __init__(
        self,
        repository: Repository,
        store: Store,
        blob: Descriptor,
        foreign: bool,
        word: Callable[[Cancel], DiffID],
    ) -> None:
        self.key = "v2:" + blob.digest
        self.id = blob.digest.short
        self.blob = blob
        self._repository = repository
        self._store = store
        self._foreign = foreign
        self._word = word

    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        diff_id = self._store.metadata.get_diff_id(self.blob.digest)
        if diff_id is None or not self._store.content.has(self.blob.digest, self.blob.size):
            return None
        return self.blob, Diff(diff_id)

    def download(self, transfer: Transfer) -> Optional[Descriptor]:
        blob, cancel = self.blob, transfer.cancel
        sources = [lambda offset: self._repository.blob(blob.digest, offset, cancel)]
        if is_foreign(blob.media_type) and self._foreign:
            sources += [
                functools.partial(self._repository.foreign_blob, url, cancel) for url in blob.urls
            ]
        for position, source in enumerate(sources, 1):
            try:
                fetch_blob(
                    self._store, blob,
                    "filesystem layer verification failed for digest %s" % blob.digest,
                    cancel, source, transfer,
                )
                return blob
            except RegistryError as exc:
                if exc.status != 404 or not is_foreign(blob.media_type) or not blob.urls:
                    raise
                if position == len(sources) and self._foreign:
                    raise
        transfer.progress(Progress(id=self.id, message="Skipped foreign layer"))
        return None

    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        if blob is None:
            return Diff(self._word(transfer.cancel), verified=False)
        known = self._store.metadata.get_diff_id(blob.digest)
        if known is not None:
            return Diff(known)
        meter = Meter(transfer.progress, self.id, "Extracting", blob.size)
        try:
            return self._store.layers.diff(blob.digest, transfer.cancel, advance=meter.advance)
        except Unsupported as exc:
            transfer.progress(Progress(id=self.id, message="Not verified: %s" % exc))
            return Diff(self._word(transfer.cancel), verified=False)

    def registered(self, diff: Diff) -> None:
        # A cache: not being able to write it fails no pull.
        with contextlib.suppress(StorageError):
            if diff.verified:
                entry = V2Metadata(self.blob.digest, self._repository.name)
                self._store.metadata.add(diff.diff_id, entry)


def fetch_blob(
    store: Store,
    blob: Descriptor,
    what: str,
    cancel: Cancel,
    source: Callable[[int], Response],
    transfer: Optional[Transfer] = None,
) -> None:
    """Bring a blob into the store, from where an earlier attempt left it.

    ``source`` opens it at an offset.  A body that breaks off is continued at
    once, as long as it moves.  ``what`` begins the text if the content is wrong.
    """
    output = transfer.progress if transfer else discard
    with store.content.ingest(blob.digest, blob.size, cancel) as ingest:
        if ingest.complete:
            return
        meter = Meter(output, blob.digest.short, "Downloading", blob.size)
        breaks = MAX_BREAKS + (blob.size >> 20)
        while ingest.offset < blob.size:
            start = ingest.offset
            try:
                with source(start) as response:
                    _copy(response, ingest, meter)
            except NetworkError:
                breaks -= 1
                if ingest.offset <= start or not breaks:
                    raise
        output(Progress(id=blob.digest.short, action="Verifying Checksum"))
        ingest.verify(what)
        output(Progress(id=blob.digest.short, action="Download complete"))
        if transfer is not None:
            transfer.inactive()  # the sync below may overlap the next download
        ingest.commit()


def _copy(response: Response, ingest: Ingest, meter: Meter) -> None:
    if ingest.offset and response.status != 206:
        ingest.restart()  # the server sends it all, so never append
    if response.remaining not in (None, ingest.size - ingest.offset):
        ingest.restart()
        raise ContentMismatch(
            "blob %s: size is not %d as promised" % (ingest.digest, ingest.size)
        )
    meter.current = ingest.offset
    view = memoryview(bytearray(BUFFER))
    while True:
        count = response.readinto(view)
        if not count:
            break
        ingest.write(view[:count])
        meter.advance(count)
    if ingest.offset < ingest.size:
        raise NetworkError("%s ended the body early" % (response.origin,))


def _is_runnable(document: Manifest) -> bool:
    """Whether this is an image, and no attestation, chart or other artifact."""
    types = [document.config.media_type] + [layer.media_type for layer in document.layers]
    return not document.artifact_type and document.config.media_type in CONFIG_TYPES and all(
        kind.startswith(("application/vnd.oci.image.", "application/vnd.docker."))
        or kind in CONFIG_TYPES for kind in types
    )


def _check_runnable(document: Manifest) -> None:
    if not _is_runnable(document):
        kind = document.artifact_type or document.config.media_type
        raise Unsupported("not an image to run but %s; minipull copy takes it as it is" % ascii(kind))
