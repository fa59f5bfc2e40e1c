# SPDX-License-Identifier: Apache-2.0
"""Schema 1: pulled where a registry sends nothing else, pushed where it takes nothing else.

A pulled manifest is stored as the schema 2 manifest of the same image, and
beside it the signed payload, whose digest is the source of the name.  Reached
by name, since a build may leave it out.

Mirrors pullSchema1 of moby's distribution/pull_v2.go and pushV2Tag of push_v2.go.
"""
import secrets
import time

from ..cancel import Cancel
from ..digest import DiffID, Digest
from ..errors import InvalidDocument, NotFound, Unsupported
from ..image import es256, schema1
from ..image.config import ImageConfig
from ..image.descriptor import DOCKER_LAYER, SCHEMA1_SIGNED, Descriptor
from ..image.manifest import Manifest
from ..progress import Progress
from ..reference import Reference
from ..registry.errors import RegistryError
from ..registry.request import Body
from ..registry.v2 import Received
from ..store.references import Association
from ..store.store import MAX_CONFIG
from .blobs import persist, send_blob
from .layers import V2LayerDescriptor
from .naming import name_pulled
from .pull_v2 import Pulled, V2Puller
from .push_v2 import V2Pusher


def pull(puller: V2Puller, reference: Reference, received: Received, pulling: Progress) -> Pulled:
    """Pull the layers, whose DiffIDs no config tells, and store them as an image of schema 2."""
    stored = Digest.of(received.raw, received.digest.algorithm) == received.digest  # so: no signatures
    old = (schema1.read if stored else schema1.parse)(received.raw)._replace(digest=received.digest)
    puller.output(pulling)
    if old.signers:
        text = "WARNING: %s has the outdated schema 1 format, signed with key %s, which may be anybody's"
        puller.output(Progress(message=text % (reference, ", ".join(old.signers))))
    blobs = [Descriptor(DOCKER_LAYER, digest, _size(puller, digest)) for digest in old.layers]
    layers = [V2LayerDescriptor(puller.repository, puller.store, blob, False, False, _no_diff_id)
              for blob in blobs]
    downloaded, _ = puller.downloads.download(
        puller.store, layers, puller.output, puller.cancel, ("schema1:" + old.digest, lambda transfer: None))
    stored_layers = list(zip(blobs, (layer.diff.diff_id for layer in downloaded)))
    config, document = schema1.converted(old.entries, stored_layers)
    puller.check_platform(config)
    image = Association(reference, document.descriptor, old.digest)
    updated = puller.store.references.get(reference) != image
    for digest, data in (
            (old.digest, old.raw), (document.config.digest, config.raw), (document.digest, document.raw)):
        puller.store.content.put(digest, data)
    # Also of one that is up to date: who put it there may have been killed before it was durable.
    name_pulled(puller.store, image, puller.options.keep_name, puller.output, puller.cancel)
    return Pulled(puller.store.load(image), updated)


def _size(puller: V2Puller, blob: Digest) -> int:
    """Size in bytes of a layer, which schema 1 does not tell."""
    size = puller.store.content.size(blob)
    if size is None:
        size = persist(puller.repository, puller.cancel, puller.repository.stat, blob)
    if size is None:
        raise NotFound("layer %s is not there" % blob)
    return size


def _no_diff_id(cancel: Cancel) -> DiffID:
    raise InvalidDocument("the layer can't be read, and schema 1 does not say what is in it")


def push(pusher: V2Pusher, tag: str, document: Manifest, refusal: RegistryError) -> Descriptor:
    """Push an image as schema 1, signed with a new key, to a registry that refused its manifest.

    Layers and config are at the registry.  Raises Unsupported, RegistryError.
    """
    for layer in document.layers:
        if not layer.media_type.endswith("gzip") or layer.is_foreign:
            raise Unsupported("schema 1 has no layers of type %s" % layer.media_type) from refusal
    config = ImageConfig.parse(pusher.store.content.read(document.config.digest, MAX_CONFIG))
    raw = schema1.build(pusher.target.path, tag, config, [layer.digest for layer in document.layers])
    empty = Descriptor.of(schema1.EMPTY, DOCKER_LAYER)
    if empty.digest.encode() in raw and pusher.repository.stat(empty.digest, pusher.cancel) is None:
        send_blob(pusher.repository, empty, lambda offset, size: Body.of(
            schema1.EMPTY[offset:offset + size]), pusher.cancel)
    key = 1 + secrets.randbelow(es256.ORDER - 1)
    signed = schema1.sign(raw, key, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    pusher.repository.put_manifest(tag, signed, SCHEMA1_SIGNED, pusher.cancel)
    pushed = Descriptor.of(raw, SCHEMA1_SIGNED)
    text = "WARNING: %s refused the manifest (%s), so it got the outdated schema 1: the digest is now %s"
    pusher.output(Progress(message=text % (pusher.repository.endpoint, refusal, pushed.digest)))
    return pushed
