# SPDX-License-Identifier: Apache-2.0
"""From docker's format to OCI's and back: manifests change, configs and layers don't."""
from typing import Any, Dict, List, Mapping, Optional

from ..digest import Digest
from ..errors import Unsupported
from ..image import manifest
from ..image.descriptor import (
    DOCKER_CONFIG, DOCKER_FOREIGN, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_TAR, OCI_CONFIG, OCI_FOREIGN,
    OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor)
from ..image.manifest import Document, Index, is_runnable
from ..image.strictjson import compact, parse_json
from ..progress import Output, Progress
from .documents import Held

#: The OCI media types with those of docker; the type of a tar stands for its compressed kinds too.
_DOCKER = {OCI_MANIFEST: DOCKER_MANIFEST, OCI_INDEX: DOCKER_LIST, OCI_CONFIG: DOCKER_CONFIG,
           OCI_LAYER: DOCKER_TAR, OCI_FOREIGN: DOCKER_FOREIGN}
FORMATS = {"docker": _DOCKER, "oci": {docker: oci for oci, docker in _DOCKER.items()}}


def renamed(media_type: str, names: Dict[str, str]) -> str:
    """Return a media type in the other format, or itself if it is of that format; raises Unsupported."""
    stem, compression = media_type, ""
    for suffix in (".gzip", "+gzip", ".zstd", "+zstd"):
        if media_type.endswith(suffix):
            stem, compression = media_type[:-len(suffix)], suffix[1:]
    if not names or stem in names.values():
        return media_type
    docker = DOCKER_MANIFEST in names.values()
    if stem not in names or docker and compression == "zstd":
        raise Unsupported("%s has no equivalent in the other format" % ascii(media_type)[:100])
    return names[stem] + ((".%s" if docker else "+%s") % compression if compression else "")


def without_zstd(notes: Optional[Mapping[str, str]]) -> Dict[str, str]:
    """Leave out the annotations, as podman makes them, that are about the zstd of a layer or image."""
    return {key: note for key, note in (notes or {}).items() if "zstd" not in key}


def rewritten(document: Document, media_type: str, **members: Any) -> Document:
    """Return a document with another media type and other descriptors."""
    obj = dict(parse_json(document.raw, "manifest"), mediaType=media_type)
    if media_type in (DOCKER_MANIFEST, DOCKER_LIST):
        obj.pop("annotations", None)  # docker's format has none
    for key, value in members.items():
        obj[key] = value.to_json() if isinstance(value, Descriptor) else [item.to_json() for item in value]
    return manifest.parse(compact(obj), media_type)


def converted(documents: Held, format: str, output: Output,
              changed: Mapping[Digest, Descriptor] = {}) -> Held:
    """Return the manifests in ``format``, with ``changed`` layers; tells ``output`` how many are left out."""
    names = FORMATS.get(format, {})

    def parts(document: Document) -> List[Descriptor]:
        image = isinstance(document, Index) or is_runnable(document)
        return [document.descriptor, *(document.blobs if image else ())]

    def new(part: Descriptor) -> Descriptor:
        part = changed.get(part.digest, part)
        return part._replace(media_type=renamed(part.media_type, names))

    if all(new(part) == part for document in documents for part in parts(document)):
        return documents
    descriptors: Dict[Digest, Descriptor] = {}  # by the digest in the old format
    images = Held()
    for number, document in enumerate(documents, 1):
        if isinstance(document, Index):
            kept = [descriptors[child.digest]._replace(
                platform=child.platform, annotations=None if format else without_zstd(child.annotations))
                    for child in document.manifests if child.digest in descriptors]
            if not kept:
                raise Unsupported("only an image can have another format")
            lost = len(document.manifests) - len(kept)
            if lost:
                output(Progress(message="left out: %d that are no images" % lost))
            image = rewritten(document, renamed(document.media_type, names), manifests=kept)
        elif is_runnable(document):
            top, config, *layers = map(new, parts(document))
            image = document if [top, config, *layers] == parts(document) else rewritten(
                document, top.media_type, config=config, layers=layers)
        elif number == len(documents):
            raise Unsupported("only an image can have another format")
        else:
            continue
        descriptors[document.digest] = image.descriptor
        images.append(image)
    return images
