# SPDX-License-Identifier: Apache-2.0
"""The images of a store, as its page lists them: tags, platforms, and which layers are shared.

They are read once for each state of the names, within bounds: past those images
are listed by name alone.  What is damaged or missing is told with its image, and
hides no other one.
"""
import collections
import hashlib
import threading
import time
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..digest import Digest
from ..errors import Error, PolicyError, shown
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Manifest, is_runnable
from ..image.platform import Platform
from ..image.strictjson import parse_json, string_at
from ..image.walk import Bounds, walk
from ..reference import version
from ..store.references import tag_subject
from ..store.store import ImageSource
from .catalog import Catalog

MAX_DOCUMENTS = 20000  # of all images
MAX_READ = 32 << 20  # bytes of them
SMALL = 256 << 10  # bytes; larger documents are not looked into
MAX_TEXT = 100  # characters of a platform, time or type
AGAIN = 10.0  # seconds until a store with damage is read again

DAMAGED = "Some of it is missing or damaged; minipull check says what."
TOO_MUCH = "There is too much here to show all of it."


class Variant(NamedTuple):
    """An image for one platform; ``created`` is a time in RFC 3339, or any text."""
    platform: str
    created: str
    layers: Sequence[Tuple[Digest, int]]  # with their sizes in bytes


class Listed(NamedTuple):
    """An image of a repository; ``size`` (bytes) counts each blob once."""
    repository: str
    tags: Sequence[str]  # sorted as versions; none for an image by digest
    digest: Digest
    size: int
    variants: Sequence[Variant]
    kind: str  # the type of what is no image
    note: str  # why not all is shown
    referrers: int  # signatures and the like


class Listing(NamedTuple):
    """The images of a store, sorted; ``users`` counts the images that have a layer."""
    images: Sequence[Listed]
    users: Mapping[Digest, int]
    size: int  # bytes of all layers, each counted once
    nameless: int  # names that no client can ask for
    state: str  # differs when any of this does


class Overview:
    """The listing of a store or archive, read anew when a name has changed."""

    def __init__(self, source: ImageSource, catalog: Catalog) -> None:
        self._source = source
        self._catalog = catalog
        self._lock = threading.Lock()
        # The repositories as they were read, until when that holds, and the listing.
        self._seen: Tuple[object, float, Optional[Listing]] = (None, 0.0, None)

    def listing(self) -> Listing:
        """List every image by the names that clients ask for; raises StorageError for a damaged index."""
        with self._lock:
            repositories = self._catalog.repositories()
            seen, until, listing = self._seen
            if listing is None or seen is not repositories or time.monotonic() > until:
                listing = self._listing(sum(
                    len(repository) for domains in repositories.values() for repository in domains.values()))
                damaged = any(image.note == DAMAGED for image in listing.images)
                self._seen = (repositories, time.monotonic() + AGAIN if damaged else float("inf"), listing)
            return listing

    def _listing(self, names: int) -> Listing:
        trees: Dict[Digest, _Tree] = {}
        tags: Dict[Tuple[str, Digest], List[str]] = {}
        bounds = Bounds(MAX_DOCUMENTS)
        bounds.size = MAX_READ
        for address, repository in self._catalog.addresses():
            for image in repository.values():
                digest = image.descriptor.digest
                if digest not in trees:
                    trees[digest] = _Tree(self._source, image.descriptor, bounds)
                    trees[digest].subject = trees[digest].subject or tag_subject(image.name.tag)
                tags.setdefault((address, digest), []).extend(filter(None, [image.name.tag]))
                names -= 1
        # A push of an index leaves its manifests with names of their own, by digest.
        below = {digest for top, tree in trees.items() for digest in tree.manifests if digest != top}
        known = below.union(trees)
        referrers = collections.Counter(tree.subject for tree in trees.values() if tree.subject in known)
        nameless = {  # an image is summed up once, however many names it has
            top: Listed("", (), top, sum(tree.sizes.values()), tree.variants, "" if tree.variants else tree.kind,
                        tree.note, sum(referrers[manifest] for manifest in tree.manifests))
            for top, tree in trees.items() if tree.subject not in known}
        images = [
            nameless[digest]._replace(repository=address, tags=sorted(labels, key=version))
            for (address, digest), labels in tags.items()
            if digest in nameless and (labels or digest not in below)]
        images.sort(key=lambda image: (image.repository, list(map(version, image.tags[::-1])), image.digest))
        layers = [dict(layer for variant in tree.variants for layer in variant.layers) for tree in trees.values()]
        users = collections.Counter(digest for digests in layers for digest in digests)
        size = sum(dict(layer for digests in layers for layer in digests.items()).values())
        # The digest of an image stands for its variants.
        state = repr((names, [image._replace(variants=()) for image in images]))
        return Listing(images, users, size, names, hashlib.sha256(state.encode()).hexdigest())


class _Tree:
    """The stored documents of an image or index, as far as ``bounds`` allow."""

    def __init__(self, source: ImageSource, top: Descriptor, bounds: Bounds) -> None:
        self.sizes = {top.digest: top.size}
        self.variants: List[Variant] = []
        self.manifests = {top.digest}
        self.subject: Optional[Digest] = None
        self.kind = self.note = ""
        self._source, self._bounds = source, bounds
        try:
            for item, document in walk(top, self._document, bounds=bounds):
                if document is not None:
                    self._add(item, document)
                if item is top and document is None:
                    self.note = self.note or DAMAGED
                elif item is top and document is not None and document.subject:
                    self.subject = document.subject.digest
        except Error as exc:
            self._tell(exc)

    def _tell(self, exc: Error) -> None:
        self.note = TOO_MUCH if isinstance(exc, PolicyError) else DAMAGED

    def _document(self, item: Descriptor) -> Optional[Document]:
        try:
            return self._source.stored(self._small(item))
        except Error as exc:
            self._tell(exc)
            return None

    def _small(self, item: Descriptor) -> Descriptor:
        if item.size > SMALL:
            raise PolicyError("%s is large" % item.digest)
        return item

    def _add(self, item: Descriptor, document: Document) -> None:
        self.manifests.add(item.digest)
        self.sizes.update((blob.digest, blob.size) for blob in (item, *document.blobs))
        if not isinstance(document, Manifest):
            return
        if not is_runnable(document):
            self.kind = shown(document.artifact_type or document.config.media_type, MAX_TEXT)
            return
        platform, created = "", ""
        try:
            self._bounds.count(0, self._small(document.config).size, item.digest)
            # No more of a config is checked than is shown: the first page is to come soon.
            config = parse_json(self._source.content.read(document.config.digest, SMALL), "image config")
            platform = str(Platform.from_json(config, "image config"))
            created = string_at(config, "created", "image config")
        except Error as exc:
            self._tell(exc)
        layers = [(layer.digest, layer.size) for layer in document.layers]
        self.variants.append(Variant(shown(platform, MAX_TEXT), created[:MAX_TEXT], layers))
