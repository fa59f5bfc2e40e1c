# SPDX-License-Identifier: Apache-2.0
"""A registry over a store in this process, and requests to it."""
import contextlib
import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.server import http as httpd
from minipull.server.registry import Registry
from minipull.store.store import ImageSource, Store
from tests.kit.images import OCI_INDEX, OCI_MANIFEST, Descriptor, digest_of, to_json

DATA = bytes(range(256)) * 40
NOBODY = "0a1b2c3d-0a1b-4c2d-8e3f-0a1b2c3d4e5f"
ABSENT = digest_of(b"what nobody has")
OCTETS = "application/octet-stream"


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> Tuple[int, str]:
        """The status, and the code of an error."""
        return self.status, self.json["errors"][0]["code"] if self.status >= 400 else ""


class Site:
    """A registry over ``root``, or over another source of images, in a thread of its own."""

    def __init__(self, root: Path, writable: bool = True, domain: str = "localhost",
                 timeout: float = 10, source: Optional[ImageSource] = None) -> None:
        self.root = root
        self.store = Store(str(root), timeout=timeout)
        self.log: List[Tuple[int, str]] = []
        self._server = httpd.Server("127.0.0.1", 0, Registry(source or self.store, writable, domain), 10,
                                    lambda status, text: self.log.append((status, text)))
        self.host = self._server.address
        self._cancel = Cancel()
        self._thread = threading.Thread(target=self._server.run, args=(self._cancel,))
        self._thread.start()

    def stop(self) -> None:
        self._cancel.cancel()
        self._thread.join()

    def ask(self, method: str, path: str, body: Any = b"",
            headers: Optional[Mapping[str, str]] = None) -> Answer:
        """Send a request on a connection of its own; an iterable body is sent in chunks."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): ", ".join(response.headers.get_all(name, []))
                      for name in response.headers}
            return Answer(response.status, fields, response.read())
        finally:
            connection.close()

    def trouble(self) -> List[str]:
        """Return the lines of the log with a status from 500 up."""
        return [text for status, text in self.log if status >= 500]

    # What a client does.

    def blob(self, data: bytes, media_type: str = OCTETS, repository: str = "app") -> Descriptor:
        answer = self.ask("POST", "/v2/%s/blobs/uploads/?digest=%s" % (repository, digest_of(data)), data)
        assert answer.status == 201, answer
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def manifest(self, text: str = "one", **members: Any) -> bytes:
        """An artifact whose blobs are there."""
        layer = self.blob(text.encode(), "text/plain")
        config = self.blob(b"{}", "application/vnd.oci.empty.v1+json")
        return to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config,
                        "layers": [layer], **members})

    def put(self, raw: bytes, reference: str = "1", repository: str = "app", query: str = "",
            content_type: str = "") -> Answer:
        return self.ask("PUT", "/v2/%s/manifests/%s%s" % (repository, reference, query), raw,
                        {"Content-Type": content_type} if content_type else {})

    def push(self, text: str = "one", reference: str = "1", repository: str = "app", **members: Any) -> bytes:
        raw = self.manifest(text, **members)
        answer = self.put(raw, reference, repository)
        assert answer.status == 201, answer
        return raw

    def session(self, repository: str = "app") -> str:
        """The location of a new upload."""
        answer = self.ask("POST", "/v2/%s/blobs/uploads/" % repository)
        assert answer.status == 202, answer
        return answer.headers["location"]

    def held(self, location: str) -> str:
        answer = self.ask("GET", location)
        assert answer.status == 204, answer
        return answer.headers["range"]

    def names(self) -> List[str]:
        return [str(known.name) for known in Store(str(self.root)).references.all()]


Start = Callable[..., Site]


def described(raw: bytes, media_type: str = OCI_MANIFEST) -> Descriptor:
    return {"mediaType": media_type, "digest": digest_of(raw), "size": len(raw)}


def index_of(*children: Descriptor, **members: Any) -> bytes:
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children, **members})


def path_of(site: Site, digest: str) -> Path:
    return Path(site.store.content.path(Digest(digest)))


def snapshot(root: Path) -> Dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def half_sent(site: Site, method: str, target: str, head: str, body: bytes) -> Iterator[socket.socket]:
    """A request that has not ended yet."""
    with socket.create_connection(("127.0.0.1", int(site.host[len("127.0.0.1:"):])), timeout=30) as client:
        client.sendall(("%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (method, target, head)).encode() + body)
        yield client


def children(site: Site, media_type: str, child: bytes) -> bytes:
    site.blob(child)
    return index_of(described(child, media_type))


def append(site: Site, location: str, data: bytes, start: Optional[int] = None) -> Answer:
    fields = {} if start is None else {"Content-Range": "%d-%d" % (start, start + len(data) - 1)}
    return site.ask("PATCH", location, data, fields)


def finish(site: Site, location: str, data: bytes = DATA, rest: bytes = b"") -> None:
    answer = site.ask("PUT", location + "?digest=" + digest_of(data), rest)
    assert answer.status == 201 and answer.headers["docker-content-digest"] == digest_of(data), answer
    assert site.ask("GET", answer.headers["location"]).body == data
