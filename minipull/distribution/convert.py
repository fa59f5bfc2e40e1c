# SPDX-License-Identifier: Apache-2.0
"""From docker's format to OCI's and back: only what names things changes."""
import json
from typing import Any, Dict

from ..errors import Unsupported
from ..image import manifest
from ..image.descriptor import (
    DOCKER_CONFIG, DOCKER_FOREIGN, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_TAR, OCI_CONFIG, OCI_FOREIGN,
    OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor)
from ..image.manifest import Document
from ..image.strictjson import parse_json

#: Each type with what stands for it in the other format; a prefix stands for its compressed kinds.
_DOCKER = {OCI_MANIFEST: DOCKER_MANIFEST, OCI_INDEX: DOCKER_LIST, OCI_CONFIG: DOCKER_CONFIG,
           OCI_LAYER: DOCKER_TAR, OCI_FOREIGN: DOCKER_FOREIGN}
FORMATS = {"docker": _DOCKER, "oci": {ours: theirs for theirs, ours in _DOCKER.items()}}


def renamed(media_type: str, names: Dict[str, str]) -> str:
    """A type in the other format, or itself if it is of that already."""
    known = set(names.values())
    stem, kind = media_type, ""
    for mark in (".gzip", "+gzip", ".zstd", "+zstd"):
        if media_type.endswith(mark):
            stem, kind = media_type[:-len(mark)], mark[1:]
    if stem in known:
        return media_type
    docker = DOCKER_MANIFEST in known
    if stem not in names or docker and kind == "zstd":
        raise Unsupported("%s has no equivalent in the other format" % ascii(media_type)[:100])
    return names[stem] + ((".%s" if docker else "+%s") % kind if kind else "")


def rewritten(document: Document, media_type: str, **members: Any) -> Document:
    """The document with another type and with other descriptors in it."""
    obj = dict(parse_json(document.raw, "manifest"), mediaType=media_type)
    if media_type in (DOCKER_MANIFEST, DOCKER_LIST):
        obj.pop("annotations", None)  # which that format does not have
    for key, value in members.items():
        obj[key] = value.to_json() if isinstance(value, Descriptor) else [each.to_json() for each in value]
    return manifest.parse(json.dumps(obj, separators=(",", ":")).encode(), media_type)
