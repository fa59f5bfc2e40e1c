# SPDX-License-Identifier: Apache-2.0
"""Archives of images as docker, podman, containerd, crane and bazel write them."""
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union, cast

from minipull.image.descriptor import DOCKER_LAYER, DOCKER_TAR
from minipull.progress import Progress
from minipull.store.store import Store, host_platform
from tests.kit import images
from tests.kit.images import Layout, to_json

NAME = "docker.io/library/busybox:latest"
HERE = str(host_platform())
OTHER = "linux/s390x"


class Hard(str):
    """The target of a hard link; a plain string is that of a symbolic one."""


Members = Mapping[str, Union[bytes, str]]


def pack(members: Members, extra: Sequence[Tuple[str, Union[bytes, str]]] = ()) -> bytes:
    """A tar of files and links, by somebody else's writer; ``extra`` may repeat a name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [*members.items(), *extra]:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = tarfile.LNKTYPE if isinstance(data, Hard) else tarfile.SYMTYPE, data
                tar.addfile(info)
    return out.getvalue()


def members_of(path: Path) -> Dict[str, bytes]:
    with tarfile.open(str(path)) as tar:
        return {info.name: cast(IO[bytes], tar.extractfile(info)).read() for info in tar if info.isfile()}


def document(path: Path, name: str) -> Any:
    return json.loads(members_of(path)[name])


def layout_members(layout: Layout, entries: Sequence[Mapping[str, Any]]) -> Dict[str, Union[bytes, str]]:
    """An image layout with all blobs of ``layout``."""
    index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": list(entries)}
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": to_json(index), **{
        "blobs/sha256/" + blob.name: blob.read_bytes()
        for blob in sorted((layout.root / "blobs" / "sha256").iterdir())}}


def named(image: images.Image, name: str = NAME, tag: str = "latest") -> Dict[str, Any]:
    """An entry as docker 25 writes it."""
    return {**image.descriptor, "annotations": {"io.containerd.image.name": name, images.NAME: tag}}


def plain(layout: Layout, layer: images.Layer) -> bytes:
    data = layout.read(layer.descriptor["digest"])
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def docker_members(layout: Layout, made: Mapping[str, images.Image]) -> Dict[str, Union[bytes, str]]:
    """What docker 1.10 to 24 saves: a layer that two images have is a link in the second."""
    members: Dict[str, Union[bytes, str]] = {}
    manifest = []
    repositories: Dict[str, Dict[str, str]] = {}
    seen: Dict[str, str] = {}
    for name, image in made.items():
        config, parent, paths = layout.read(image.config["digest"]), "", []
        for position, layer in enumerate(image.layers):
            top = config if layer is image.layers[-1] else b""
            v1 = hashlib.sha256(layer.diff_id.encode() + parent.encode() + top).hexdigest()
            members[v1 + "/VERSION"] = b"1.0"
            members[v1 + "/json"] = to_json({"id": v1, "parent": parent or None, "created": images.CREATED,
                                             "container_config": {"Cmd": ["make", str(position)]}})
            first = seen.setdefault(layer.diff_id, v1)
            members[v1 + "/layer.tar"] = plain(layout, layer) if first == v1 else "../%s/layer.tar" % first
            paths.append(v1 + "/layer.tar")
            parent = v1
        members[image.config["digest"][7:] + ".json"] = config
        manifest.append({"Config": image.config["digest"][7:] + ".json", "RepoTags": [name], "Layers": paths})
        path, _, tag = name.rpartition(":")
        repositories.setdefault(path, {})[tag] = parent
    return {**members, "manifest.json": to_json(manifest), "repositories": to_json(repositories)}


def hybrid_members(layout: Layout, image: images.Image, hollow: bool = False) -> Dict[str, Union[bytes, str]]:
    """What docker 25 saves: the same as before, and an image layout of uncompressed layers.

    ``hollow`` is what 25.0.0 made of it.
    """
    other = Layout(layout.root.parent / "hybrid")
    config = other.blob(layout.read(image.config["digest"]), images.OCI_CONFIG)
    layers = [other.blob(plain(layout, layer), images.OCI_LAYER) for layer in image.layers]
    raw = to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "config": config,
                   "layers": [] if hollow else layers})
    top = images.Image(other.blob(raw, images.OCI_MANIFEST), config, image.layers, raw)
    item = {"Config": "blobs/sha256/" + config["digest"][7:], "RepoTags": ["busybox:latest"],
            "Layers": ["blobs/sha256/" + layer["digest"][7:] for layer in layers]}
    return {**layout_members(other, [named(top)]), "manifest.json": to_json([item])}


def names(store: Store) -> List[str]:
    return [str(known.name) for known in store.references.all()]


class Messages(List[str]):
    def __call__(self, event: Progress) -> None:
        if event.message:
            self.append(event.message)


class Kind(NamedTuple):
    """An archive of somebody's, and what load makes of it."""

    members: Callable[[Layout, images.Image], Members]
    media_type: str  # of the layers
    same: bool = False  # has the manifest of the image


def crane_members(layout: Layout, image: images.Image) -> Members:
    blobs = [layer.descriptor["digest"] for layer in image.layers]
    config, paths = image.config["digest"], [blob[7:] + ".tar.gz" for blob in blobs]
    return {config: layout.read(config), **{path: layout.read(blob) for path, blob in zip(paths, blobs)},
            "manifest.json": to_json([{"Config": config, "RepoTags": [NAME], "Layers": paths}])}


def linked_members(layout: Layout, image: images.Image) -> Members:
    """skopeo's and podman's way: a file for each layer, with links from where docker had it."""
    members = dict(docker_members(layout, {"busybox:latest": image}))
    [item] = json.loads(members["manifest.json"])
    for number, name in enumerate(item["Layers"]):
        diff_id = image.layers[number].diff_id[7:]
        members[diff_id + ".tar"] = plain(layout, image.layers[number])
        members[name] = "../%s.tar" % diff_id
    return {"./" + name: data for name, data in members.items()}


KINDS = {
    "docker": Kind(lambda layout, image: docker_members(layout, {"busybox:latest": image}), DOCKER_TAR),
    "linked": Kind(linked_members, DOCKER_TAR),
    "hybrid": Kind(hybrid_members, images.OCI_LAYER),
    "hollow": Kind(lambda layout, image: hybrid_members(layout, image, True), DOCKER_TAR),
    "crane": Kind(crane_members, DOCKER_LAYER),
    "containerd": Kind(
        lambda layout, image: layout_members(layout, [named(image)]), images.OCI_LAYER + "+gzip", True),
    "podman": Kind(lambda layout, image: layout_members(
        layout, [{**image.descriptor, "annotations": {images.NAME: NAME}}]), images.OCI_LAYER + "+gzip", True),
    "skopeo": Kind(lambda layout, image: layout_members(
        layout, [{**image.descriptor, "annotations": {images.NAME: "busybox:latest"}}]),
        images.OCI_LAYER + "+gzip", True)}


Three = Tuple[Store, Layout, Dict[str, images.Image]]
