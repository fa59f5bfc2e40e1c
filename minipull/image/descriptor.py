# SPDX-License-Identifier: Apache-2.0
"""Descriptors and platforms, and the one door for JSON from outside.

:func:`parse_json` and the ``*_at`` accessors turn foreign bytes into typed
values or raise InvalidDocument, naming ``what`` was read; a null string, array
or object counts as absent, as in Go.  Mirrors containerd's platforms.
Spec: image-spec, descriptor.md and image-index.md "platform".
"""
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
#: Layers that may be kept at their ``urls`` only, compressed or not.
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_LIST))


def is_foreign(media_type: str) -> bool:
    """Whether layers of this type may be kept at their ``urls`` only."""
    return media_type.startswith((DOCKER_FOREIGN, OCI_FOREIGN))


def select(wanted: Platform, descriptors: Sequence["Descriptor"]) -> List["Descriptor"]:
    """Those that run on ``wanted``, the best first; those that don't say, last."""
    order = preference(wanted)
    ranked = []
    for descriptor in descriptors:
        platform = descriptor.platform
        ranks = [i for i, p in enumerate(order) if platform is None or p.matches(platform)]
        if ranks:
            ranked.append((len(order) if platform is None else ranks[0], descriptor))
    return [descriptor for _, descriptor in sorted(ranked, key=lambda pair: pair[0])]


class Descriptor(NamedTuple):
    """Content by type, digest and size: the OCI kind, not a job of xfer."""
    media_type: str
    digest: Digest
    size: int
    urls: Tuple[str, ...] = ()
    annotations: Optional[Mapping[str, str]] = None
    platform: Optional[Platform] = None
    artifact_type: str = ""

    @classmethod
    def of(cls, data: bytes, media_type: str) -> "Descriptor":
        return cls(media_type, Digest.of(data), len(data))

    @classmethod
    def from_json(cls, obj: object, what: str) -> "Descriptor":
        """Check a descriptor from outside; raises InvalidDocument."""
        if not isinstance(obj, dict) or not obj.get("mediaType"):
            raise InvalidDocument("%s: not a descriptor, it has no mediaType" % what)
        notes = object_at(obj, "annotations", what)
        platform = Platform.from_json(object_at(obj, "platform", what), what)
        return cls(
            string_at(obj, "mediaType", what), digest_at(obj, "digest", what),
            int_at(obj, "size", what), strings_at(obj, "urls", what),
            {key: string_at(notes, key, what) for key in notes} or None,
            platform if any(platform) else None, string_at(obj, "artifactType", what))

    def to_json(self) -> Dict[str, Any]:
        members = {
            "mediaType": self.media_type, "digest": self.digest, "size": self.size,
            "urls": list(self.urls), "annotations": self.annotations,
            "platform": self.platform and self.platform.to_json(),
            "artifactType": self.artifact_type}
        return {key: value for key, value in members.items() if value or key == "size"}

    def __str__(self) -> str:
        return self.digest.short
