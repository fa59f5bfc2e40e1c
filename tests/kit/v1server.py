# SPDX-License-Identifier: Apache-2.0
"""A registry and index of the v1 protocol, over a :class:`ScriptedServer`, so that faults can be laid over it."""
import gzip
import hashlib
import io
import json
from base64 import b64encode
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tests.kit.images import Spec, to_json, write_tar
from tests.kit.servers import Action, Connection, ScriptedServer, content, reply


class Stored(NamedTuple):
    raw: bytes
    layer: Optional[bytes] = None
    checksum: str = ""  # once the image is complete


class V1Server:
    """Rules for everything of the protocol.

    With ``user`` (NAME:PASSWORD) the index wants that, and its registry the token that
    it hands out; ``endpoints`` is what it names as its registries.
    """

    def __init__(self, server: ScriptedServer, user: str = "", endpoints: str = "",
                 standalone: Optional[str] = None) -> None:
        self.server = server
        self.user = user
        self.endpoints = server.host if not endpoints else endpoints
        self.images: Dict[str, Stored] = {}
        self.tags: Dict[str, str] = {}
        self.indexed: List[Tuple[str, Any]] = []  # what the index was told, by path
        self.tarsums: Dict[str, str] = {}
        self.payload_checksums = True
        server.on("GET", "^/v2/", reply(404, "<html>", {"Content-Type": "text/html"}))
        server.on("GET", "^/v1/_ping$", reply(
            200, {}, {} if standalone is None else {"X-Docker-Registry-Standalone": standalone}))
        for method, pattern, action in (
                ("GET", "repositories/[^/]+/[^/]+/images$", self.index("read")),
                ("PUT", "repositories/[^/]+/[^/]+/$", self.index("write")),
                ("PUT", "repositories/[^/]+/[^/]+/images$", self.index("write", 204)),
                ("GET", "repositories/[^/]+/[^/]+/tags$", self.registry(self.list_tags)),
                ("GET", "repositories/[^/]+/[^/]+/tags/", self.registry(self.get_tag)),
                ("PUT", "repositories/[^/]+/[^/]+/tags/", self.registry(self.put_tag)),
                ("GET", "images/[^/]+/ancestry$", self.registry(self.ancestry)),
                ("GET", "images/[^/]+/json$", self.registry(self.get_json)),
                ("GET", "images/[^/]+/layer$", self.registry(self.get_layer)),
                ("PUT", "images/[^/]+/json$", self.registry(self.put_json)),
                ("PUT", "images/[^/]+/layer$", self.registry(self.put_layer)),
                ("PUT", "images/[^/]+/checksum$", self.registry(self.put_checksum))):
            server.on(method, "^/v1/" + pattern, action)

    def add(self, layers: Sequence[bytes], *tags: str, **config: Any) -> List[str]:
        """An image of these blobs, the bottom first; the ids, the top first."""
        ids: List[str] = []
        for number, layer in enumerate(layers):
            v1 = {"created": "2014-01-02T03:04:05Z", "container_config": {"Cmd": ["step", str(number)]},
                  **({"parent": ids[0]} if ids else {}), **(config if number == len(layers) - 1 else {})}
            v1_id = hashlib.sha256(to_json(v1) + layer).hexdigest()
            raw = to_json({"id": v1_id, **v1})
            self.images[v1_id] = Stored(raw, layer, payload(raw, layer))
            ids.insert(0, v1_id)
        for tag in tags:
            self.tags[tag] = ids[0]
        return ids

    def index(self, access: str, status: int = 200) -> Action:
        def act(connection: Connection) -> None:
            request, body = connection.request, connection.body()
            if self.user and request.headers.get("authorization") != (
                    "Basic " + b64encode(self.user.encode()).decode()):
                return reply(401, {"error": "Requires authorization"})(connection)
            if request.method == "PUT":
                self.indexed.append((request.path, json.loads(body)))
            token = 'Token signature=ABC,repository="ns/r",access=' + access
            assert request.headers["x-docker-token"] == "true"
            reply(status, b"" if status == 204 else b"[]", {
                "X-Docker-Endpoints": self.endpoints, "X-Docker-Token": token})(connection)
        return act

    def registry(self, action: Action) -> Action:
        def act(connection: Connection) -> None:
            token = connection.request.headers.get("authorization", "")
            if self.user and not token.startswith('Token signature=ABC,repository="ns/r",access='):
                connection.body()
                return reply(401, {"error": "Requires authorization"})(connection)
            action(connection)
        return act

    def list_tags(self, connection: Connection) -> None:
        reply(200, self.tags)(connection)

    def get_tag(self, connection: Connection) -> None:
        found = self.tags.get(_last(connection))
        (reply(200, json.dumps(found)) if found else reply(404, {"error": "Tag not found"}))(connection)

    def put_tag(self, connection: Connection) -> None:
        self.tags[_last(connection)] = json.loads(connection.body())
        reply(200)(connection)

    def ancestry(self, connection: Connection) -> None:
        v1_id, ids = self._id(connection), []
        while v1_id in self.images:
            ids.append(v1_id)
            v1_id = json.loads(self.images[v1_id].raw).get("parent", "")
        (reply(200, json.dumps(ids)) if ids else reply(404, {"error": "Image not found"}))(connection)

    def get_json(self, connection: Connection) -> None:
        stored = self.images.get(self._id(connection))
        if stored is None:
            return reply(404, {"error": "Image not found"})(connection)
        if not stored.checksum:
            return reply(400, {"error": "Image is being uploaded, retry later"})(connection)
        said = {"X-Docker-Checksum-Payload": stored.checksum} if self.payload_checksums else {}
        reply(200, stored.raw, {"X-Docker-Size": str(len(stored.layer or b"")), **said})(connection)

    def get_layer(self, connection: Connection) -> None:
        content(self.images[self._id(connection)].layer or b"", headers={"Accept-Ranges": "bytes"})(connection)

    def put_json(self, connection: Connection) -> None:
        v1_id, raw = self._id(connection), connection.body()
        v1 = json.loads(raw)
        if v1_id in self.images and self.images[v1_id].checksum:
            return reply(409, {"error": "Image already exists"})(connection)
        if v1["id"] != v1_id or v1.get("parent", v1_id) not in {v1_id, *self.images}:
            return reply(400, {"error": "Image depends on a non existing parent"})(connection)
        self.images[v1_id] = Stored(raw)
        reply(200)(connection)

    def put_layer(self, connection: Connection) -> None:
        v1_id = self._id(connection)
        self.images[v1_id] = self.images[v1_id]._replace(layer=connection.body())
        reply(200)(connection)

    def put_checksum(self, connection: Connection) -> None:
        v1_id, headers = self._id(connection), connection.request.headers
        raw, layer, _ = self.images[v1_id]
        if headers["x-docker-checksum-payload"] != payload(raw, layer or b""):
            return reply(400, {"error": "Checksum mismatch"})(connection)
        self.images[v1_id] = Stored(raw, layer, headers["x-docker-checksum-payload"])
        self.tarsums[v1_id] = headers["x-docker-checksum"]
        reply(200)(connection)

    @staticmethod
    def _id(connection: Connection) -> str:
        return connection.request.path.split("/")[3]


def _last(connection: Connection) -> str:
    return connection.request.path.rpartition("/")[2]


def payload(raw: bytes, layer: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw + b"\n" + layer).hexdigest()


def blobs(count: int, size: int = 20000) -> List[bytes]:
    """``count`` different layers: the odd ones gzip, the others plain tar."""
    found = []
    for number in range(count):
        stream = io.BytesIO()
        write_tar(Spec(size, seed=number), stream)
        found.append(gzip.compress(stream.getvalue(), 1) if number % 2 else stream.getvalue())
    return found
