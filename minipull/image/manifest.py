# SPDX-License-Identifier: Apache-2.0
"""Manifests and indexes, parsed strictly, their raw bytes kept.

A document that two clients could read in two ways is refused: an image that is
also an index, a mediaType that is not the Content-Type.  Unknown members are
allowed; ``raw`` keeps them, and only ``raw`` is stored or sent.

Mirrors docker/distribution's manifest/{schema2,manifestlist,ocischema} and
moby's detectManifestBlobMediaType.  Spec: image-spec, manifest.md, image-index.md.
"""
import contextlib
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple, Union

from ..digest import Digest
from ..errors import InvalidDocument, PolicyError, Unsupported
from .descriptor import (
    DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, INDEX_TYPES, MANIFEST_TYPES, OCI_CONFIG, OCI_INDEX,
    OCI_MANIFEST, SCHEMA1, SCHEMA1_SIGNED, Descriptor)
from .strictjson import list_at, object_at, parse_json, string_at

MAX_MANIFEST = 8 << 20  # bytes; the specification asks for 4 MiB at least
MAX_LAYERS = 1000
MAX_ENTRIES = 10000

#: Content-Types that don't tell the kind of a manifest.
NO_CLAIM = frozenset(
    ("", "text/plain", "application/json", "application/octet-stream", "binary/octet-stream"))

#: Media types that registries and old tools give to the config of an image.
CONFIG_TYPES = frozenset(
    (DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", "application/json", "text/html"))


class Manifest(NamedTuple):
    """An image: a config and its layers, the bottom one first."""
    raw: bytes
    digest: Digest
    media_type: str
    config: Descriptor
    layers: Tuple[Descriptor, ...]
    artifact_type: str = ""
    subject: Optional[Descriptor] = None

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.raw))

    @property
    def blobs(self) -> Tuple[Descriptor, ...]:
        return (self.config, *self.layers)


class Index(NamedTuple):
    """Manifests and further indexes, of which a platform selects one."""
    raw: bytes
    digest: Digest
    media_type: str
    manifests: Tuple[Descriptor, ...]
    subject: Optional[Descriptor] = None

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.raw))

    @property
    def blobs(self) -> Tuple[Descriptor, ...]:
        return ()  # those of its manifests are theirs

    @property
    def offered(self) -> List[Descriptor]:
        """The entries of a kind that we know."""
        return [entry for entry in self.manifests if entry.is_document]

    @property
    def images(self) -> List[Descriptor]:
        """The entries of images with a platform; attestations have none."""
        return [entry for entry in self.offered if entry.platform and entry.platform.os != "unknown"]

    @property
    def unknown(self) -> List[Descriptor]:
        """The other entries, each a manifest or a blob, which are kept as they are."""
        return [entry for entry in self.manifests if not entry.is_document]


Document = Union[Manifest, Index]


def parse(raw: bytes, content_type: str = "", source: str = "manifest") -> Document:
    """Parse a manifest or index, which came with this Content-Type.

    Raises InvalidDocument, Unsupported for schema 1, PolicyError past MAX_LAYERS or MAX_ENTRIES.
    """
    obj = parse_json(raw, source)
    claimed = content_type.partition(";")[0].strip().lower()
    claimed = "" if claimed in NO_CLAIM else claimed
    declared = string_at(obj, "mediaType", source)
    if claimed and declared and claimed != declared:
        raise InvalidDocument("%s: mediaType %s came with Content-Type %s" % (
            source, ascii(declared)[:100], ascii(claimed)[:100]))
    media_type = detect(obj, source, claimed)
    version = obj.get("schemaVersion")
    if media_type in (SCHEMA1, SCHEMA1_SIGNED) or (version == 1 and not declared):
        raise Unsupported("%s: the image is in the old schema 1 format, which only pull understands" % source)
    if type(version) is not int or version != 2:
        raise InvalidDocument("%s: schemaVersion must be 2" % source)
    if media_type in (DOCKER_MANIFEST, DOCKER_LIST) and not declared:
        raise InvalidDocument("%s: mediaType is missing, expected %s" % (source, media_type))
    subject = None
    if obj.get("subject") is not None:
        subject = Descriptor.from_json(obj["subject"], source + ": subject")
    if media_type in MANIFEST_TYPES:
        layers = _descriptors(obj, "layers", source, MAX_LAYERS)
        # Docker and skopeo take a config without a mediaType as well.
        usual = OCI_CONFIG if media_type == OCI_MANIFEST else DOCKER_CONFIG
        config = Descriptor.from_json(obj.get("config"), source + ": config", usual)
        return Manifest(
            raw, Digest.of(raw), media_type, config, layers, string_at(obj, "artifactType", source), subject)
    if media_type in INDEX_TYPES:
        if "manifests" not in obj:
            raise InvalidDocument("%s: neither an image nor an index" % source)
        entries = _descriptors(obj, "manifests", source, MAX_ENTRIES)
        return Index(raw, Digest.of(raw), media_type, entries, subject)
    raise InvalidDocument("%s: unsupported manifest format %s" % (source, ascii(media_type)[:100]))


def detect(obj: Mapping[str, Any], source: str, claimed: str = "") -> str:
    """Return the media type that a document declares, or else the one that fits its members.

    ``claimed`` stands in for a missing mediaType.  Raises InvalidDocument if
    members of another kind are there as well, even null ones.
    """
    media_type = string_at(obj, "mediaType", source) or claimed
    image = "config" in obj or "layers" in obj
    index = "manifests" in obj
    old = "fsLayers" in obj
    if not media_type:
        if image + index + old > 1:
            raise InvalidDocument("%s: media-type: cannot determine" % source)
        return OCI_MANIFEST if image else SCHEMA1 if old else OCI_INDEX
    if media_type in MANIFEST_TYPES and (index or old):
        raise InvalidDocument('%s: media-type: "%s" should not have "manifests" or "fsLayers"' % (
            source, media_type))
    if media_type in INDEX_TYPES and (image or old):
        raise InvalidDocument('%s: media-type: "%s" should not have "config", "layers", or'
                              ' "fsLayers"' % (source, media_type))
    return media_type


def is_schema1(raw: bytes, content_type: str = "") -> bool:
    """Whether a manifest is of schema 1, by its Content-Type or else by its members."""
    claimed = content_type.partition(";")[0].strip().lower()
    with contextlib.suppress(InvalidDocument, PolicyError):
        if claimed in NO_CLAIM and b'"fsLayers"' in raw:
            claimed = detect(parse_json(raw, "manifest"), "manifest")
    return claimed in (SCHEMA1, SCHEMA1_SIGNED)


def listed(document: Document) -> Descriptor:
    """Describe a manifest for the list of its subject's referrers (distribution-spec, "Listing Referrers")."""
    members = parse_json(document.raw, "manifest")
    kind = string_at(members, "artifactType", "manifest")
    if isinstance(document, Manifest):
        kind = kind or document.config.media_type
    notes = object_at(members, "annotations", "manifest")
    return document.descriptor._replace(
        artifact_type=kind, annotations={key: string_at(notes, key, "annotations") for key in notes})


def _descriptors(obj: Mapping[str, Any], key: str, source: str, limit: int) -> Tuple[Descriptor, ...]:
    items: List[Any] = list_at(obj, key, source)
    if len(items) > limit:
        raise PolicyError("%s: %d %s, the limit is %d" % (source, len(items), key, limit))
    return tuple(
        Descriptor.from_json(item, "%s: %s[%d]" % (source, key, i)) for i, item in enumerate(items))


def is_runnable(document: Manifest) -> bool:
    """Whether a manifest is of an image, not of an attestation, chart or other artifact."""
    types = [document.config.media_type] + [layer.media_type for layer in document.layers]
    return not document.artifact_type and types[0] in CONFIG_TYPES and all(
        kind.startswith(("application/vnd.oci.image.", "application/vnd.docker."))
        or kind in CONFIG_TYPES for kind in types)
