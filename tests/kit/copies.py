# SPDX-License-Identifier: Apache-2.0
"""Copies in tests: a registry that takes them, images of every kind, what came of it."""
import base64
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Union


from tests.kit import images
import minipull
from tests.kit.images import OCI_MANIFEST, Descriptor, Layout
from minipull.progress import Progress
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import Connection, Request, ScriptedServer, Uploads, challenge, content, error

EMPTY = "application/vnd.oci.empty.v1+json"


def who(request: Request) -> str:
    """USER:PASSWORD, or whatever a request brings to prove itself with."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    return base64.b64decode(rest).decode() if scheme == "Basic" else rest


class Target(ScriptedServer):
    """A registry that takes pushes to ``r``.

    ``logins`` are USER:PASSWORD by how a path begins: who asks there must be that user.
    """

    def __init__(self, logins: Optional[Dict[str, str]] = None, **options: Any) -> None:
        self.logins = logins or {}
        super().__init__(**options)
        self.uploads = Uploads(self)
        self.on("GET", "^/v2/r/manifests/", self._manifest)

    def _manifest(self, connection: Connection) -> None:
        data = self.manifests.get(connection.request.path.rpartition("/")[2])
        kind = json.loads(data)["mediaType"] if data else ""
        (error(404, "MANIFEST_UNKNOWN") if data is None else content(data, kind, ranges=False))(connection)

    def handle(self, connection: Connection) -> None:
        for path, login in self.logins.items():
            if connection.request.path.startswith(path) and who(connection.request) != login:
                connection.body()
                return challenge('Basic realm="r"')(connection)
        super().handle(connection)

    @property
    def blobs(self) -> Dict[str, bytes]:
        return self.uploads.blobs

    @property
    def manifests(self) -> Dict[str, bytes]:
        return self.uploads.manifests

    @property
    def place(self) -> str:
        return "docker://%s/r:1" % self.host

    def put(self) -> List[str]:
        """What manifests were put under, in their order."""
        return [request.path.rpartition("/")[2] for request in self.seen("PUT", "/manifests/")]


def copied(source: str, target: Union[str, Target], **options: Any) -> Any:
    place = target.place if isinstance(target, Target) else target
    options.setdefault("uploads", LayerUploadManager(tick=0.001))
    return minipull.copy(source, place, **options)


def messages(source: str, target: Union[str, Target], **options: Any) -> List[str]:
    events: List[Progress] = []
    copied(source, target, progress=events.append, **options)
    return [event.message for event in events if event.message]


def add(layout: Layout, document: Any, name: Optional[str] = None) -> Descriptor:
    descriptor = layout.blob(images.to_json(document), document["mediaType"])
    if name is not None:
        layout.name(descriptor, name)
    return descriptor


def artifact(layout: Layout, name: Optional[str] = None, payload: Optional[bytes] = None,
             **members: Any) -> Descriptor:
    """Not an image; without ``payload`` it has no layers."""
    layers = [layout.blob(payload, "application/spdx+json")] if payload is not None else []
    return add(layout, {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.test",
        "config": layout.blob(b"{}", EMPTY), "layers": layers, **members}, name)


def bare(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}


def make_single(root: Path) -> Layout:
    return images.single(root)[0]


def make_schema2(root: Path) -> Layout:
    return images.single(root, docker=True)[0]


def make_awkward(root: Path) -> Layout:
    return images.awkward(root, "latest")[0]


def make_index(root: Path) -> Layout:
    return images.multi_platform(root, nested=True)[0]


def make_list(root: Path) -> Layout:
    return images.multi_platform(root, docker=True)[0]


def make_artifact(root: Path) -> Layout:
    layout = Layout(root)
    artifact(layout, "latest")
    return layout


def make_artifacts(root: Path) -> Layout:
    """An index of an artifact, an image twice and one more index that is empty."""
    layout = Layout(root)
    image = layout.image(images.specs(1)).descriptor
    layout.index([artifact(layout, payload=b"bill"), image, image, layout.index([]).descriptor], "latest")
    return layout


def make_nothing(root: Path) -> Layout:
    layout = Layout(root)
    layout.index([], "latest")
    return layout


def below(layout: Layout, digest: str) -> Dict[str, bytes]:
    """Every blob and manifest of an image, by digest."""
    document = json.loads(layout.read(digest))
    found = {digest: layout.read(digest)}
    for child in document.get("manifests", []):
        found.update(below(layout, child["digest"]))
    for blob in [document["config"], *document["layers"]] if "config" in document else []:
        found[blob["digest"]] = layout.read(blob["digest"])
    return found


def blobs_of(path: Path) -> Dict[str, bytes]:
    return {"sha256:" + file.name: file.read_bytes() for file in (path / "blobs" / "sha256").iterdir()}


def entries(path: Path) -> Any:
    return json.loads((path / "index.json").read_text())["manifests"]
