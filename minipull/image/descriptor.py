# SPDX-License-Identifier: Apache-2.0
"""Descriptors: content by media type, digest and size, and the media types that we know.

Spec: image-spec, descriptor.md and media-types.md; moby's "Image Manifest Version 2, Schema 2".
"""
import binascii
import contextlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..digest import Digest
from ..errors import InvalidDocument
from .platform import Platform, preference
from .strictjson import digest_at, int_at, object_at, string_at, strings_at

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"  # or with +gzip, +zstd
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER = DOCKER_TAR + ".gzip"
#: Layers that are not to be redistributed, compressed or not.
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_LIST))
MAX_DATA = 1 << 20  # bytes of inline content
_NEVER_FOREIGN = MANIFEST_TYPES | INDEX_TYPES | {OCI_CONFIG, DOCKER_CONFIG}


def select(platform: Platform, descriptors: Sequence["Descriptor"]) -> List["Descriptor"]:
    """Return the descriptors that run on a platform, the best first (containerd).

    Those with os.features that nobody asked for come after the others, those of no platform last.
    """
    order = preference(platform)
    ranked = []
    for descriptor in descriptors:
        offered = descriptor.platform
        ranks = [(bool(set(offered.os_features) - set(platform.os_features)), rank)
                 for rank, runnable in enumerate(order) if offered and runnable.matches(offered)]
        if ranks or offered is None:
            ranked.append((ranks[0] if ranks else (True, len(order)), descriptor))
    return [descriptor for _, descriptor in sorted(ranked, key=lambda pair: pair[0])]


class Descriptor(NamedTuple):
    """Content by type, digest and size; not a DownloadDescriptor or UploadDescriptor, which are jobs."""
    media_type: str
    digest: Digest
    size: int
    urls: Tuple[str, ...] = ()
    annotations: Optional[Mapping[str, str]] = None
    platform: Optional[Platform] = None
    artifact_type: str = ""
    data: bytes = b""  # the content itself, if it came along and has this digest and size

    @classmethod
    def of(cls, data: bytes, media_type: str) -> "Descriptor":
        """Describe ``data`` by its sha256."""
        return cls(media_type, Digest.of(data), len(data))

    @classmethod
    def from_json(cls, obj: object, source: str, media_type: str = "") -> "Descriptor":
        """Parse a descriptor; ``media_type`` stands in for a missing one.  Raises InvalidDocument."""
        if not isinstance(obj, dict) or not (obj.get("mediaType") or media_type):
            raise InvalidDocument("%s: not a descriptor, it has no mediaType" % source)
        notes = object_at(obj, "annotations", source)
        offered = object_at(obj, "platform", source)
        platform = Platform.from_json(offered, source) if offered else None
        digest, size = digest_at(obj, "digest", source), int_at(obj, "size", source)
        return cls(
            string_at(obj, "mediaType", source) or media_type, digest, size, strings_at(obj, "urls", source),
            {key: string_at(notes, key, source) for key in notes} or None,
            platform if platform and any(platform) else None, string_at(obj, "artifactType", source),
            _inline(obj.get("data"), digest, size))

    @property
    def is_document(self) -> bool:
        """Whether this is a manifest or index, of a kind that we know."""
        return self.media_type in MANIFEST_TYPES or self.media_type in INDEX_TYPES

    def to_json(self) -> Dict[str, Any]:
        members = {
            "mediaType": self.media_type, "digest": self.digest, "size": self.size,
            "urls": list(self.urls), "annotations": self.annotations,
            "platform": self.platform and self.platform.to_json(),
            "artifactType": self.artifact_type}
        return {key: value for key, value in members.items() if value or key == "size"}

    @property
    def bare(self) -> "Descriptor":
        """The content alone, for lists of many: no annotations, no platform, of the URLs one at most."""
        return self._replace(annotations=None, platform=None, urls=self.urls[:1])

    @property
    def is_foreign(self) -> bool:
        """Whether it is a layer, of any type, that may be kept at its ``urls`` only (moby: by urls)."""
        return bool(self.urls) and self.media_type not in _NEVER_FOREIGN

    def __str__(self) -> str:
        return self.digest.short


def _inline(text: object, digest: Digest, size: int) -> bytes:
    """Decode the inline content of a descriptor; empty if it does not fit digest and size, or is not small."""
    data = b""
    if isinstance(text, str) and size <= MAX_DATA and len(text) <= (size + 2) // 3 * 4:
        with contextlib.suppress(ValueError):
            data = binascii.a2b_base64(text)
    return data if len(data) == size and Digest.of(data, digest.algorithm) == digest else b""
