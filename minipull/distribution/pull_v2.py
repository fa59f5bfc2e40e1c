# SPDX-License-Identifier: Apache-2.0
"""An image from one endpoint, by the v2 protocol.

A tag is resolved once; everything after that goes by digest.  Manifests that are
stored are not asked for again, so an image that is up to date costs one HEAD.
The name is written last, when every blob that it needs is stored and durable.

Mirrors moby's distribution/pull_v2.go.

Where this leaves the engine:

- presence is decided by blobs, not by ChainID or image ID: one DiffID may come in
  two blobs, and a push must send the one that its manifest names;
- a tag already known is checked with HEAD, which costs no pull quota, and then
  fetched by digest; nothing is asked of ``/v2/`` before the first manifest;
- with ``all_platforms`` an index is stored whole, attestations and unknown
  entries included;
- a foreign layer that the registry lacks is skipped; its URLs are asked on request
  only, over https and without credentials;
- a layer that can't be decompressed (zstd without a decoder) has the DiffID of the
  config, unverified;
- content that a descriptor carries as ``data`` is not asked for;
- an entry of an unknown kind is a manifest if the registry has it as one, else a blob;
- the name is written again if nothing has changed: a run that was killed may have
  left it without the sync;
- a name of an index that gets one of its platforms is a warning, and one that gets
  another platform is told.
"""
import contextlib
import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..cancel import Cancel
from ..digest import DiffID, Digest
from ..errors import ContentMismatch, Error, NotFound, PolicyError, StorageError, Unsupported, within
from ..image.config import Image, ImageConfig
from ..image.descriptor import Descriptor
from ..image.manifest import MAX_MANIFEST, Document, Index, Manifest, is_runnable, is_schema1
from ..image.platform import Platform, preference
from ..image.walk import choose, walk
from ..parts import part
from ..progress import Output, Progress
from ..reference import Reference
from ..registry.errors import RegistryError
from ..registry.v2 import Received, Repository
from ..store.layer import Layer
from ..store.references import Association
from ..store.store import MAX_CONFIG, Store
from ..xfer.download import LayerDownloadManager
from ..xfer.transfer import Transfer
from .blobs import fetch_blob, moved_as_manifest, persist
from .documents import Ahead, pull_in_order, side_by_side
from .layers import V2LayerDescriptor
from .naming import name_pulled

if TYPE_CHECKING:
    from ..image.signature import Key

ENGINE_MAX_LAYERS = 125


class PullOptions(NamedTuple):
    """The images of a name to pull, and the way to pull them.

    ``exact``: the user asked for the platform, so an image for another is an error.
    ``referrers``: fetch signatures, attestations and SBOMs, of the index too.
    ``foreign``: fetch layers from the URLs that a manifest names.
    ``defer_diff_ids``: don't decompress layers to learn their DiffIDs; unpack and
    export read every layer right after and record them.
    ``keys``: if there are any, one must have signed the manifest or an index above it.
    ``keep_name``: a name that the store has stays with its image.
    """
    platform: Platform
    exact: bool = False
    all_platforms: bool = False
    foreign: bool = False
    defer_diff_ids: bool = False
    referrers: bool = False
    keys: Sequence["Key"] = ()
    keep_name: bool = False


class Pulled(NamedTuple):
    """An image, and whether the pull changed anything."""
    image: Image
    updated: bool


class V2Puller(NamedTuple):
    """A pull from one repository at one endpoint into one store."""
    repository: Repository
    store: Store
    downloads: LayerDownloadManager
    options: PullOptions
    output: Output
    cancel: Cancel

    def pull(self, reference: Reference) -> Pulled:
        """Pull a tag or digest; the caller holds the store's shared lock."""
        former = self.store.references.get(reference)
        received = self._resolve(reference, former)
        label = str(reference) if reference.digest else reference.tag
        pulling = Progress(id=label, message="Pulling from %s" % reference.path)
        if is_schema1(received.raw, received.content_type):
            self._verify([received.digest])
            pulled: Pulled = part("distribution.schema1").pull(self, reference, received, pulling)
            return pulled
        top = received.document()
        self.output(pulling)
        documents = [top] if self.options.all_platforms and isinstance(top, Index) else self.chosen(top)
        self._verify([document.digest for document in documents])
        chosen = documents[0]
        association = Association(reference, chosen.descriptor, top.digest)
        updated, config = True, None
        with contextlib.suppress(StorageError):
            updated = former != association or any(self.store.missing(chosen.descriptor, self.options.foreign))
        if updated:
            if isinstance(chosen, Manifest):
                with self._pulling(chosen, True) as wait:
                    config = wait()
            else:
                self._pull_whole(chosen)
        for document in documents:  # also where check has moved a rotten one away
            self.store.content.put(document.digest, document.raw)
        if self.options.referrers:
            below = [item.digest for item, document in self.store.walk(chosen.descriptor) if document]
            referrers = part("distribution.referrers").into_store(
                self.repository, self.store, reference, self._pull_whole, self.cancel, bool(self.options.keys))
            referrers.copy(sorted({top.digest, *below}))
        # Also of one that is up to date: who put it there may have been killed before it was durable.
        name_pulled(self.store, association, self.options.keep_name, self.output, self.cancel)
        image = Image(*association, config) if config else self.store.load(association)
        if image.config is not None:
            self.check_platform(image.config)
        return Pulled(image, updated)

    def _verify(self, digests: Sequence[Digest]) -> None:
        """Raise ContentMismatch if keys are given and none has signed; nothing has been kept by then."""
        if self.options.keys:
            part("distribution.verify").verify(self.repository, digests, self.options.keys, self.output, self.cancel)

    def _resolve(self, reference: Reference, former: Optional[Association]) -> Received:
        """Return the verified manifest of a reference, from the store if it has been pulled and not moved."""
        digest, offline = reference.digest, self.repository.offline
        if former is not None and offline:
            digest = digest or former.source
        if former is not None or offline:
            digest = digest or persist(self.repository, self.cancel, self.repository.resolve, reference.tag)
            with contextlib.suppress(StorageError):
                if digest is not None:
                    return Received(self.store.content.read(digest, MAX_MANIFEST), "", digest)
        if digest is not None:
            try:
                return self._received(digest)
            except RegistryError as exc:
                # Some registries know a tag, and not the digest that they just told for it.
                if reference.digest is not None or exc.status != 404:
                    raise
        return self._received(reference.tag)

    def _received(self, reference: str) -> Received:
        return persist(self.repository, self.cancel, self.repository.manifest, reference)

    def _child(self, entry: Descriptor) -> Document:
        """Return a manifest of an index, from the store or the registry."""
        with contextlib.suppress(Error):
            return self.store.document(entry)
        return (Received.inline(entry) or self._received(entry.digest)).document()

    def chosen(self, top: Document) -> List[Document]:
        """Return the manifest of the image for our platform, and the indexes above it up to ``top``."""
        path = [document for _, document in choose(self.options.platform, top, self._child)]
        if isinstance(top, Index) and not path:
            platforms = sorted({str(entry.platform) for entry in top.images})
            raise NotFound(
                "no matching manifest for %s in the manifest list entries%s"
                % (str(self.options.platform), "; there is " + ", ".join(platforms) if platforms else ""))
        if isinstance(path[0], Manifest) and not is_runnable(path[0]):
            kind = ascii(path[0].artifact_type or path[0].config.media_type)
            raise Unsupported("not an image to run but %s; minipull copy takes it as it is" % kind)
        return path

    def _pull_whole(self, top: Document) -> None:
        """Store a document and those below it, of which only the descriptors are held, and then all blobs."""

        def get(item: Descriptor) -> Optional[Document]:
            if item.is_document:
                with contextlib.suppress(Error):  # a rotten one is had again
                    return self.store.document(item)
                return ahead.get(item)
            if not content.has(item.digest, item.size):
                ahead.in_turn(functools.partial(self._unknown, item), self.store.writing)
            return None

        descriptors = []
        transfers, content = self.downloads.transfers, self.store.content
        with Ahead(self._child, self.repository, transfers, self.cancel, content.has) as ahead:
            for item, document in walk(top, get, ahead.below):
                if document is not None:
                    content.put(item.digest, document.raw)
                    descriptors.append(item)
        pull_in_order(descriptors, self.store.document, self._pulling,
                      lambda blob: not content.has(blob.digest, blob.size), transfers)

    def _unknown(self, entry: Descriptor) -> None:
        put = functools.partial(self.store.content.put, entry.digest)
        if not moved_as_manifest(entry, lambda digest: self._received(digest).raw, put):
            self._plain_blob(entry, self.cancel)

    @contextlib.contextmanager
    def _pulling(self, document: Manifest, chosen: bool = False) -> Iterator[Callable[[], Any]]:
        """Download every blob of a manifest within the block, which gets a function that waits for them.

        ``chosen`` if it is the image that gets the name.
        """
        if not is_runnable(document):
            works = [("%s plain:%s %s %d" % (self.store.root, self.repository.name, blob.digest, blob.size),
                      lambda transfer, blob=blob: self._plain_blob(blob, transfer.cancel)) for blob in document.blobs]
            with side_by_side(self.downloads.transfers, works, self.cancel, self.store.writing) as wait_plain:
                yield wait_plain
            return
        if len(document.layers) > ENGINE_MAX_LAYERS:
            self.output(Progress(message="image has %d layers, docker will not load more than %d" % (
                len(document.layers), ENGINE_MAX_LAYERS)))
        parsed: List[ImageConfig] = []  # the config, which may be large, once for all layers
        parsing = threading.Lock()

        def parsed_config(cancel: Cancel) -> ImageConfig:
            with parsing:
                if not parsed:
                    parsed.append(self._config(document, cancel))
                return parsed[0]

        def claimed(position: int, cancel: Cancel) -> DiffID:
            return parsed_config(cancel).paired(document.layers)[position][1]

        layers = [V2LayerDescriptor(self.repository, self.store, layer, self.options.foreign,
                                    self.options.defer_diff_ids, functools.partial(claimed, position))
                  for position, layer in enumerate(document.layers)]
        exact = chosen and self.options.exact
        place, platform = self.repository.endpoint.url, self.options.platform if exact else ""
        key = "config:%s %s %d %s" % (place, *document.config[1:3], platform)

        def fetch(transfer: Transfer) -> ImageConfig:
            config = parsed_config(transfer.cancel)
            if exact:
                self.check_platform(config)
            return config

        asked = self.store, layers, self.output, self.cancel, (key, fetch)
        with self.downloads.downloading(*asked) as wait:

            def checked() -> ImageConfig:
                config: ImageConfig
                stored, config = wait()
                if _diff_ids(stored) != config.diff_ids:
                    for descriptor, layer in zip(layers, stored):
                        self._forget(descriptor.blob.digest, layer)
                    stored, config = self.downloads.download(*asked)
                if _diff_ids(stored) != config.diff_ids:
                    raise ContentMismatch("layers from manifest don't match image configuration")
                return config

            yield checked

    def _forget(self, blob: Digest, layer: Layer) -> None:
        """Drop the cached DiffID and the record of a layer, which may be wrong."""
        with contextlib.suppress(StorageError, OSError):
            self.store.metadata.forget(blob)
            self.store.metadata.retain(layer.diff.diff_id, lambda entry: entry.digest != blob)
            os.unlink(self.store.layers.path(layer.chain_id))

    def _config(self, document: Manifest, cancel: Cancel) -> ImageConfig:
        descriptor = document.config
        with within("error pulling image configuration"):
            if descriptor.size > MAX_CONFIG:
                raise PolicyError("config is larger than %d bytes" % MAX_CONFIG)
            self._plain_blob(descriptor, cancel)
            return ImageConfig.parse(self.store.content.read(descriptor.digest, MAX_CONFIG))

    def check_platform(self, config: ImageConfig) -> None:
        """Warn if an image is for another platform; raise NotFound if the user asked for ours."""
        wanted, platform = self.options.platform, config.platform.normalized()
        runnable = {(candidate.os, candidate.architecture) for candidate in preference(wanted)}
        if platform.os and (platform.os, platform.architecture) not in runnable:
            text = "image is for %s, not for %s" % (platform, wanted)
            if self.options.exact:
                raise NotFound(text)
            self.output(Progress(message="WARNING: " + text))

    def _plain_blob(self, blob: Descriptor, cancel: Cancel) -> None:
        source = functools.partial(self.repository.blob, blob.digest)
        persist(self.repository, cancel, fetch_blob, self.store, blob, source)


def _diff_ids(layers: Sequence[Layer]) -> Tuple[DiffID, ...]:
    return tuple(layer.diff.diff_id for layer in layers)
