# SPDX-License-Identifier: Apache-2.0
"""The registry: who may do what, what is kept of what came, and what is still there after trouble.

The requests of well-behaved clients stand in test_conformance; here are the others.
"""
import concurrent.futures
import contextlib
import errno
import http.client
import json
import os
import shutil
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import parse_qsl, urlsplit

import pytest

import minipull
from tests.kit import ROOT
from tests.kit.processes import Serve, ask, free_port, run, short_folder, wait_until
from tests.kit.images import (
    DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, digest_of,
    multi_platform, push_layout_http, single, to_json)
from minipull.image import walk
from minipull.server import blobs
from minipull import files
from minipull.server import http as httpd
from minipull.server import registry as module
from minipull.server import uploads
from minipull.store.gc import gc
from minipull.digest import Digest
from minipull.errors import InvalidReference, NetworkError
from minipull.server.registry import Registry, serve
from minipull.store.store import Store
from minipull.cancel import Cancel
from tests.kit.stores import ENV, problems

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
    """A registry over ``root`` in a thread of its own."""

    def __init__(self, root: Path, writable: bool = True, domain: str = "localhost",
                 timeout: float = 10) -> None:
        self.root = root
        self.store = Store(str(root), timeout=timeout)
        self.log: List[Tuple[int, str]] = []
        self._server = httpd.Server("127.0.0.1", 0, Registry(self.store, writable, domain), 10,
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
        """One request on a connection of its own; a body that is no bytes goes in chunks."""
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
        """What the log says of trouble of our own."""
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "TICK", 0.005)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(ROOT, writable=False, ...)``; the root is the test's own."""
    with contextlib.ExitStack() as stack:
        def go(root: Optional[Path] = None, **options: Any) -> Site:
            site = Site(root or tmp_path / "root", **options)
            stack.callback(site.stop)
            return site
        yield go


@pytest.fixture
def site(start: Start) -> Site:
    return start()


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


# -- the gate ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "MKCOL"])
def test_a_read_only_registry_refuses_every_change(start: Start, method: str) -> None:
    writer = start()
    raw, location = writer.push(), writer.session()
    before, reader = snapshot(writer.root), start(writable=False)
    for path in (
            "/v2/app/manifests/1", "/v2/app/manifests/" + digest_of(raw),
            "/v2/app/blobs/" + digest_of(b"one"), "/v2/app/blobs/uploads/",
            "/v2/app/blobs/uploads/?digest=" + digest_of(DATA),
            "/v2/app/blobs/uploads/?from=x&mount=" + digest_of(b"one"), location,
            location + "?digest=" + ABSENT, "/v2/app/tags/list", "/v2/", "/", "/v2/../x"):
        answer = reader.ask(method, path, DATA)
        assert answer.outcome == (405, "UNSUPPORTED") and answer.headers["allow"] == "GET, HEAD", path
    assert snapshot(writer.root) == before
    assert reader.ask("GET", "/v2/app/manifests/1").body == raw


@pytest.mark.parametrize("method, path, allow", [
    ("PUT", "/v2/", "GET, HEAD"), ("DELETE", "/v2/_catalog", "GET, HEAD"),
    ("POST", "/v2/app/tags/list", "GET, HEAD"), ("PATCH", "/v2/app/manifests/1", "GET, PUT, DELETE, HEAD"),
    ("GET", "/v2/app/blobs/uploads/", "POST"), ("PUT", "/v2/app/blobs/" + ABSENT, "GET, DELETE, HEAD")])
def test_what_a_page_can_not_do_it_says(site: Site, method: str, path: str, allow: str) -> None:
    answer = site.ask(method, path)
    assert answer.outcome == (405, "UNSUPPORTED") and answer.headers["allow"] == allow


TRICKS = (
    "/", "/v1/", "/v2", "//v2/", "/V2/", "/v2//tags/list", "/v2/../v2/", "/v2/%2e%2e/tags/list",
    "/v2/%252e/tags/list", "/v2/a/../b/tags/list", "/v2/a/%2e%2e/%2e%2e/tags/list", "/v2/a%00/tags/list",
    "/v2/a%0a/tags/list", "/v2/a%5cb/tags/list", "/v2/A/tags/list", "/v2/a:1/tags/list",
    "/v2/%e9/tags/list", "/v2/" + "a" * 256 + "/tags/list", "/v2/a/tags/list/", "/v2/a/tags/list%3fx",
    "/v2/a/manifests/..", "/v2/a/manifests/%2e%2e%2findex.json", "/v2/a/manifests/%00", "/v2/a/manifests/",
    "/v2/a/manifests/../../x", "/v2/a/blobs/..%2f..%2findex.json", "/v2/a/blobs/sha256:..%2findex.json",
    "/v2/a/blobs/sha256%2f" + "0" * 64, "/v2/a/blobs/uploads/..", "/v2/a/blobs/uploads/%2e%2e%2findex.json",
    "/v2/a/blobs/uploads/../../x", "/v2/a/referrers/..%2fx", "http://evil.example/v2/a/tags/list")


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_out_of_the_registry(site: Site, path: str) -> None:
    site.push(repository="other")
    before = snapshot(site.root.parent)
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "POST"):
        answer = site.ask(method, path, DATA)
        assert answer.status in ((200, 405) if path == "/v2" else (400, 404, 405)), method
    assert snapshot(site.root.parent) == before and site.trouble() == []


def test_an_absent_root_is_an_empty_registry_until_something_is_pushed(start: Start) -> None:
    reader = start(writable=False)
    for path, outcome in (
            ("/v2/", (200, "")), ("/v2/_catalog", (200, "")), ("/v2/app/tags/list", (404, "NAME_UNKNOWN")),
            ("/v2/app/manifests/1", (404, "MANIFEST_UNKNOWN")),
            ("/v2/app/blobs/" + ABSENT, (404, "BLOB_UNKNOWN")),
            ("/v2/app/referrers/" + ABSENT, (200, "")),
            ("/v2/app/blobs/uploads/" + NOBODY, (404, "BLOB_UPLOAD_UNKNOWN"))):
        assert reader.ask("GET", path).outcome == outcome
    assert not reader.root.exists() and reader.trouble() == []
    writer = start()
    raw = writer.push()
    assert reader.ask("GET", "/v2/app/manifests/1").body == raw
    assert problems(writer.store) == []


UNPRIVILEGED = """
import encodings.idna, os, sys
from pathlib import Path
from tests.server.test_registry import Site
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
reader, writer = Site(Path(sys.argv[1]), writable=False), Site(Path(sys.argv[1]))
for site, method, path in (
        (reader, "GET", "/v2/_catalog"), (reader, "GET", "/v2/app/manifests/1"),
        (reader, "GET", "/v2/app/blobs/" + sys.argv[2]), (writer, "GET", "/v2/app/tags/list"),
        (writer, "POST", "/v2/app/blobs/uploads/"), (writer, "DELETE", "/v2/app/manifests/1")):
    print(site.ask(method, path).status)
reader.stop()
writer.stop()
"""


def test_a_read_only_root_is_served_to_readers(start: Start) -> None:
    folder = short_folder()  # pytest's are closed to other users
    try:
        folder.chmod(0o755)
        writer = start(folder / "root")
        writer.push()
        for where, _, names in os.walk(str(folder)):
            for name in names:
                os.chmod(os.path.join(where, name), 0o444)
            os.chmod(where, 0o555)
        done = run([sys.executable, "-c", UNPRIVILEGED, folder / "root", digest_of(b"one")], ENV, cwd=ROOT)
        assert [int(word) for word in done.out.split()] == [200, 200, 200, 200, 500, 500]
    finally:
        for where, _, _ in os.walk(str(folder)):
            os.chmod(where, 0o755)
        shutil.rmtree(str(folder))


# -- manifests -----------------------------------------------------------------


def test_a_manifest_is_kept_byte_for_byte(site: Site) -> None:
    raw = b"\n " + site.manifest().replace(b",", b" ,\t") + b"\r\n"
    raw = raw.replace(b'"layers"', b'"custom" :[1e3 ,{"b":"\\u00e9","a":"\xc3\xa9"}], "layers"')
    assert site.put(raw).headers["docker-content-digest"] == digest_of(raw)
    for reference in ("1", digest_of(raw)):
        got, head = (site.ask(method, "/v2/app/manifests/" + reference) for method in ("GET", "HEAD"))
        assert (got.status, got.body, head.status, head.body) == (200, raw, 200, b"")
        assert {key: got.headers[key] for key in ("content-length", "content-type", "docker-content-digest",
                                                  "etag", "x-content-type-options")} == {
            "content-length": str(len(raw)), "content-type": OCI_MANIFEST, "etag": '"%s"' % digest_of(raw),
            "docker-content-digest": digest_of(raw), "x-content-type-options": "nosniff"}
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
    assert problems(site.store) == []


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST])
def test_a_manifest_is_of_the_type_that_it_says_or_has_the_shape_of(site: Site, media_type: str) -> None:
    document = json.loads(site.manifest())
    if media_type in (OCI_INDEX, DOCKER_LIST):
        document = {"schemaVersion": 2, "manifests": []}
    assert site.put(to_json({**document, "mediaType": media_type})).status == 201
    assert site.ask("GET", "/v2/app/manifests/1").headers["content-type"] == media_type
    if media_type in (OCI_MANIFEST, OCI_INDEX):
        document.pop("mediaType", None)
        assert site.put(to_json(document), "plain", content_type=media_type).status == 201
        assert site.ask("GET", "/v2/app/manifests/plain").headers["content-type"] == media_type


@pytest.mark.parametrize("condition, status", [
    ('"%s"', 304), ('W/"%s"', 304), ('"x", "%s"', 304), ('"x"', 200), ("%s", 200)])
def test_what_a_client_has_is_not_sent_again(site: Site, condition: str, status: int) -> None:
    raw = site.push()
    known = condition % digest_of(raw) if "%s" in condition else condition
    answer = site.ask("GET", "/v2/app/manifests/1", headers={"If-None-Match": known})
    assert (answer.status, answer.body) == (status, b"" if status == 304 else raw)
    assert answer.headers["docker-content-digest"] == digest_of(raw)


@pytest.mark.parametrize("rotten", [b"", b"{}", b"bit"])
def test_a_manifest_that_has_rotted_is_never_sent(site: Site, rotten: bytes) -> None:
    raw = site.push()
    path = path_of(site, digest_of(raw))
    path.write_bytes(raw.replace(b"2", b"3", 1) if rotten == b"bit" else rotten)
    for reference in ("1", digest_of(raw)):
        for method in ("GET", "HEAD"):
            answer = site.ask(method, "/v2/app/manifests/" + reference)
            assert answer.status == 500 and str(site.root).encode() not in answer.body
            assert "corrupt" in site.trouble().pop() and digest_of(raw) in site.log.pop()[1]
    assert site.put(raw).status == 201  # which repairs it
    assert site.ask("GET", "/v2/app/manifests/1").body == raw
    path.unlink()
    assert site.ask("GET", "/v2/app/manifests/1").outcome == (404, "MANIFEST_UNKNOWN")


def test_a_blob_that_is_no_manifest_is_not_served_as_one(site: Site) -> None:
    for data in (b"", b"{}", b"[]", DATA, b"<script>", b"\xff", b'{"schemaVersion":1,"fsLayers":[]}'):
        digest = site.blob(data)["digest"]
        assert site.ask("GET", "/v2/app/manifests/" + digest).outcome == (404, "MANIFEST_UNKNOWN")
        got = site.ask("GET", "/v2/app/blobs/" + digest)
        assert (got.body, got.headers["content-type"]) == (data, OCTETS)
    assert site.trouble() == []


def _children(site: Site, media_type: str, child: bytes) -> bytes:
    site.blob(child)
    return index_of(described(child, media_type))


def _nest(site: Site, depth: int) -> bytes:
    raw = index_of()
    for _ in range(depth):
        raw = _children(site, OCI_INDEX, raw)
    return raw


REFUSED: Mapping[str, Tuple[Callable[[Site], bytes], Tuple[int, str]]] = {
    "empty": (lambda site: b"", (400, "MANIFEST_INVALID")),
    "not JSON": (lambda site: b"<html>", (400, "MANIFEST_INVALID")),
    "two keys": (lambda site: b'{"schemaVersion":2,' + site.manifest()[1:], (400, "MANIFEST_INVALID")),
    "schema 1": (lambda site: b'{"schemaVersion":1,"fsLayers":[]}', (400, "MANIFEST_INVALID")),
    "another type": (lambda site: to_json({"schemaVersion": 2, "mediaType": "text/html"}),
                     (400, "MANIFEST_INVALID")),
    "image and index": (lambda site: site.manifest(manifests=[]), (400, "MANIFEST_INVALID")),
    "many layers": (lambda site: site.manifest(layers=[described(b"one", OCI_LAYER)] * 1001),
                    (400, "MANIFEST_INVALID")),
    "large": (lambda site: b" " * ((8 << 20) + 1), (413, "SIZE_INVALID")),
    "subject": (lambda site: index_of(subject={"digest": "sha256:x"}), (400, "MANIFEST_INVALID")),
    "subject of a manifest": (lambda site: site.manifest(subject=[]), (400, "MANIFEST_INVALID")),
    "artifact type": (lambda site: index_of(artifactType=5), (400, "MANIFEST_INVALID")),
    "annotations": (lambda site: index_of(annotations={"a": [[]]}), (400, "MANIFEST_INVALID")),
    "lost layer": (lambda site: site.manifest(layers=[described(b"lost", OCI_LAYER)]),
                   (404, "MANIFEST_BLOB_UNKNOWN")),
    "layer of another size": (lambda site: site.manifest(layers=[{**described(b"one"), "size": 4}]),
                              (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost config": (lambda site: site.manifest(config=described(b"lost", OCI_CONFIG)),
                    (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost child": (lambda site: index_of(described(b"lost")), (404, "MANIFEST_BLOB_UNKNOWN")),
    "child of another size": (lambda site: index_of(described(site.push("child")), {
        **described(site.push("child")), "size": 1}), (400, "MANIFEST_INVALID")),
    "lost grandchild": (lambda site: _children(site, OCI_INDEX, index_of(described(b"lost"))),
                        (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost under two types": (lambda site: index_of(*(
        {**site.blob(index_of(described(b"lost"))), "mediaType": kind} for kind in (OCTETS, OCI_INDEX))),
        (404, "MANIFEST_BLOB_UNKNOWN")),
    "child of another kind": (lambda site: _children(site, OCI_MANIFEST, index_of()),
                              (400, "MANIFEST_INVALID")),
    "child that is none": (lambda site: _children(site, OCI_MANIFEST, b"{}"), (400, "MANIFEST_INVALID")),
    "child too large": (lambda site: _children(site, OCI_INDEX, index_of() + b" " * (8 << 20)),
                        (400, "MANIFEST_INVALID")),
    "deep": (lambda site: _nest(site, 8), (400, "MANIFEST_INVALID")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_manifest_that_the_store_could_not_keep_is_refused(site: Site, case: str) -> None:
    make, outcome = REFUSED[case]
    raw = make(site)
    before = site.names()
    for reference in ("bad", digest_of(raw)):
        answer = site.put(raw, reference)
        assert answer.outcome == outcome and str(site.root).encode() not in answer.body
    assert site.names() == before and site.trouble() == []
    assert gc(site.store, 0) and problems(site.store) == []


@pytest.mark.parametrize("reference, query, outcome", [
    (ABSENT, "", (400, "DIGEST_INVALID")), ("sha256:x", "", (400, "DIGEST_INVALID")),
    ("md5:" + "0" * 32, "", (400, "DIGEST_INVALID")), ("-x", "", (400, "MANIFEST_INVALID")),
    ("x" * 129, "", (400, "MANIFEST_INVALID")), ("1", "?tag=a&tag=.b", (400, "MANIFEST_INVALID")),
    ("1", "?" + "&".join("tag=t%d" % n for n in range(21)), (400, "MANIFEST_INVALID")),
    ("1", "?ns=a/b", (400, "NAME_INVALID")), ("1", "?ns=docker.io", (400, "NAME_INVALID"))])
def test_a_name_that_can_not_be_given_is_refused(
        site: Site, reference: str, query: str, outcome: Tuple[int, str]) -> None:
    raw = site.manifest()
    assert site.put(raw, reference, "sha256", query).outcome == outcome
    assert site.names() == []


def test_the_type_of_a_manifest_is_told_once(site: Site) -> None:
    raw = site.manifest()
    for claimed in (OCI_INDEX, "text/html", DOCKER_MANIFEST):
        assert site.put(raw, content_type=claimed).outcome == (400, "MANIFEST_INVALID")
    for claimed in (OCI_MANIFEST, OCI_MANIFEST + "; charset=utf-8", OCTETS, "application/json"):
        assert site.put(raw, content_type=claimed).status == 201


def test_what_may_be_elsewhere_is_not_asked_for(site: Site) -> None:
    lost = described(b"elsewhere")
    foreign = {**lost, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}
    raw = site.manifest(layers=[foreign], subject=lost)
    answer = site.put(raw, digest_of(raw), query="?tag=a&tag=b")
    assert answer.status == 201 and answer.headers["oci-subject"] == lost["digest"]
    assert answer.headers["oci-tag"] == "a, b"
    # What a manifest only carries is not looked into, whatever it is called.
    carried = {**site.blob(index_of(lost)), "mediaType": OCI_INDEX}
    assert site.put(site.manifest(layers=[carried])).status == 201
    assert sorted(site.names()) == ["localhost/app:%s" % tag for tag in "1ab"] + [
        "localhost/app@" + digest_of(raw)]
    assert gc(site.store, 0).blobs == [digest_of(b"one")]


def test_a_child_that_has_rotted_is_no_fault_of_the_client(site: Site) -> None:
    child = site.push("child")
    path_of(site, digest_of(child)).write_bytes(child.replace(b"2", b"3", 1))
    assert site.put(index_of(described(child)), "index").outcome == (500, "UNKNOWN")
    assert digest_of(child) in site.trouble()[0] and site.names() == ["localhost/app:1"]


def test_an_index_whose_tree_is_over_the_bound_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    large = index_of(annotations={"x": "y" * 1000})
    parents = [index_of(described(large, OCI_INDEX), annotations={"n": str(n)}) for n in range(5)]
    for document in (large, *parents):
        site.blob(document)
    raw = index_of(*(described(parent, OCI_INDEX) for parent in parents))
    monkeypatch.setattr(walk, "MAX_BYTES", sum(map(len, (large, raw, *parents))) - 1)
    assert site.put(raw).outcome == (400, "MANIFEST_INVALID")
    monkeypatch.undo()
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 6)
    assert site.put(raw).outcome == (400, "MANIFEST_INVALID")
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 7)
    assert site.put(raw).status == 201


def test_large_manifests_come_in_few_at_a_time_and_others_pass_them(
        start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 5000)
    site = start(timeout=0.2)
    large = site.manifest(annotations={"x": "y" * 6000})
    assert site.put(large, "large").status == 201
    head = "Content-Length: %d" % len(large)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(half_sent(
            site, "PUT", "/v2/app/manifests/slow%d" % n, head, large[:100])) for n in range(module.LARGE)]
        wait_until(lambda: site.put(large, "third").status == 429, "a third one is refused")
        refused = site.put(large, "third")
        assert refused.outcome == (429, "TOOMANYREQUESTS") and "retry-after" in refused.headers
        assert site.ask("GET", "/v2/app/manifests/large").body == large
        site.push("small", "small")
        for client in clients:
            client.sendall(large[100:])
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 201 ")
    assert site.put(large, "third").status == 201


def test_whatever_was_pushed_gc_and_the_other_commands_go_on(
        site: Site, tmp_path: Path, run_minipull: Callable[..., Any]) -> None:
    layout, made = single(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/good:1")
    for n, config in enumerate((
            b"", b"{}", b"null", DATA, b'{"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}',
            b'{"rootfs":{"type":"layers","diff_ids":[]},"os":5,"created":"\\u001b[31m\\n"}',
            b'{"rootfs":{"type":"layers"},"os":"\\u001b[31m","created":"\\u001b[2J\\ud800"}',
            b'{"rootfs":{"type":"layers"},"os":"\\u001b[31m","created":"\\u001b[2J"}', b"[" * 100000)):
        for m, layer in enumerate((b"", DATA, b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd")):
            raw = to_json({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": site.blob(config, OCI_CONFIG),
                "layers": [site.blob(layer, OCI_LAYER + "+gzip")] * m,
                "annotations": {"org.opencontainers.image.ref.name": "../x\u001b", "\u001b": "\u001b"}})
            assert site.put(raw, "config%d.%d" % (n, m), "bad").status == 201
    twice = [{**site.blob(index_of()), "mediaType": kind} for kind in (OCTETS, OCI_INDEX)]
    for n, raw in enumerate((
            _nest(site, 7), index_of(*twice), index_of(*twice[::-1]),
            index_of(described(made.raw), *twice * 50),
            index_of({**site.blob(b"x"), "platform": {"os": "\u001b", "architecture": "/"}}))):
        assert site.put(raw, "index%d" % n, "bad").status == 201
        assert site.put(raw, digest_of(raw), "bad").status == 201
    root = ("--root", str(site.root))
    for command in (["images"], ["gc", "--keep", "0"], ["images", "--format", "json"]):
        done = run_minipull(*root, *command)
        assert done.code == 0 and "\x1b" not in done.out, done
    found = problems(site.store)
    bad = {problem.path.rpartition("/")[2] for problem in found}
    assert bad.isdisjoint(layer.descriptor["digest"][7:] for layer in made.layers)
    assert run_minipull(*root, "pull", "-q", site.host + "/good:1").out.strip().endswith(made.digest)
    image = minipull.pull(site.host + "/good:1", Store(str(tmp_path / "fresh")))
    assert image.descriptor.digest == made.digest and problems(Store(str(tmp_path / "fresh"))) == []
    assert site.trouble() == []


# -- lists ---------------------------------------------------------------------


def pages(site: Site, target: str, key: str) -> Iterator[List[Any]]:
    """The pages of a list, as its links lead to them."""
    while target:
        answer = site.ask("GET", target)
        assert answer.status == 200, answer
        yield answer.json[key]
        link = answer.headers.get("link", "")
        assert not link or link.endswith('>; rel="next"') and link.startswith("</v2/")
        target = link[1:].partition(">")[0]


TAGS = ["1", "10", "2", "A", "Z", "_x", "a", "b.c-d", "z"]


@pytest.fixture
def tagged(site: Site) -> Site:
    raw = site.manifest()
    assert site.put(raw, "1", query="?" + "&".join("tag=" + tag for tag in TAGS[1:])).status == 201
    return site


@pytest.mark.parametrize("query, wanted", [
    ("", TAGS), ("?n=9", TAGS), ("?n=99999999", TAGS), ("?n=" + "9" * 18, TAGS), ("?n=0", []),
    ("?n=00", []), ("?last=2", TAGS[3:]), ("?last=0", TAGS), ("?last=zz", []), ("?last=../", TAGS),
    ("?last=%00", TAGS), ("?n=2&last=10", TAGS[2:4]), ("?last=10&n=100", TAGS[2:]), ("?last=Y", TAGS[4:]),
    ("?last=%ff", [])])
def test_a_page_is_as_it_was_asked_for(tagged: Site, query: str, wanted: List[str]) -> None:
    answer = tagged.ask("GET", "/v2/app/tags/list" + query)
    assert answer.json == {"name": "app", "tags": wanted}
    assert ("link" in answer.headers) == (query == "?n=2&last=10")


@pytest.mark.parametrize("n", ["-1", "abc", "", "1.5", "%31%0a", "+1", "0x1", "9" * 19, "%d9%a1"])
def test_a_page_of_no_size_is_refused_by_every_list(tagged: Site, n: str) -> None:
    for path in ("/v2/app/tags/list", "/v2/_catalog"):
        assert tagged.ask("GET", path + "?n=" + n).status == 400


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 10])
def test_the_links_lead_through_all_of_a_list(tagged: Site, n: int) -> None:
    found = list(pages(tagged, "/v2/app/tags/list?n=%d" % n, "tags"))
    assert [tag for page in found for tag in page] == TAGS
    assert [len(page) for page in found[:-1]] == [n] * (len(found) - 1) and 0 < len(found[-1]) <= n


def test_a_list_is_cut_where_nobody_asked_for_a_page(tagged: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAGE", 4)
    for query in ("", "?n=100"):
        assert [len(page) for page in pages(tagged, "/v2/app/tags/list" + query, "tags")] == [4, 4, 1]


def test_the_catalogue_names_what_can_be_asked_for(site: Site) -> None:
    raw = site.manifest()
    for repository, ns in (
            ("app", ""), ("team/app", ""), ("library/alpine", "docker.io"), ("app", "x.example:5")):
        assert site.put(raw, "1", repository, "?ns=" + ns).status == 201
    names = ["app", "docker.io/library/alpine", "team/app", "x.example:5/app"]
    assert [name for page in pages(site, "/v2/_catalog?n=1", "repositories") for name in page] == names
    for name in names:
        assert site.ask("GET", "/v2/%s/manifests/1" % name).body == raw
    assert list(pages(site, "/v2/_catalog?ns=docker.io&n=1", "repositories")) == [["library/alpine"]]
    assert list(pages(site, "/v2/library/alpine/tags/list?ns=docker.io&n=1", "tags")) == [["1"]]


def test_a_link_says_again_what_was_asked_and_nothing_else(tagged: Site) -> None:
    answer = tagged.ask("GET", "/v2/app/tags/list?n=1&ns=localhost&last=%0d%0aSet-Cookie:%20x%3e;%20rel=%22")
    assert "set-cookie" not in answer.headers
    assert answer.json["tags"] == ["1"]
    target = answer.headers["link"][1:].partition(">")[0]
    assert dict(parse_qsl(urlsplit(target).query)) == {"n": "1", "ns": "localhost", "last": "1"}


# -- referrers -----------------------------------------------------------------


def referrers(site: Site, subject: str, query: str = "") -> List[Descriptor]:
    answer = site.ask("GET", "/v2/app/referrers/%s%s" % (subject, query))
    assert answer.status == 200 and answer.headers["content-type"] == OCI_INDEX, answer
    assert ("oci-filters-applied" in answer.headers) == ("artifactType" in query)
    listed: List[Descriptor] = answer.json["manifests"]
    return listed


def test_referrers_are_listed_with_what_they_are(site: Site) -> None:
    subject = described(b"never pushed")
    notes = {"key": "value", "\u00e9": "\u001b"}
    plain = site.push("plain", "plain", subject=subject)
    typed = site.push("typed", "typed", subject=subject, artifactType="a/b", annotations=notes)
    index = index_of(subject=subject)
    assert site.put(index, digest_of(index)).status == 201
    site.push("other", "other", subject=described(b"another"))
    site.push("other", "elsewhere", "elsewhere", subject=subject)
    assert referrers(site, subject["digest"]) == sorted([
        {**described(plain), "artifactType": "application/vnd.oci.empty.v1+json"},
        {**described(typed), "artifactType": "a/b", "annotations": notes}, described(index, OCI_INDEX)],
        key=lambda item: str(item["digest"]))
    assert [item["digest"] for item in referrers(site, subject["digest"], "?artifactType=a/b")] == [
        digest_of(typed)]
    assert referrers(site, subject["digest"], "?artifactType=a") == referrers(site, ABSENT) == []
    assert site.ask("GET", "/v2/app/referrers/sha256:x").outcome == (400, "DIGEST_INVALID")


def test_many_referrers_come_in_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = described(b"never pushed")
    made = {digest_of(site.push("n%d" % n, "n%d" % n, subject=subject, artifactType="a/" + "b" * n))
            for n in range(7)}
    for room, each in ((1, 1), (600, 3), (10000, 7)):
        monkeypatch.setattr(module, "MAX_REFERRERS", room)
        found = list(pages(site, "/v2/app/referrers/%s?x=y" % subject["digest"], "manifests"))
        assert [len(page) for page in found] == [each] * (7 // each) + [7 % each] * (7 % each > 0)
        digests = [item["digest"] for page in found for item in page]
        assert digests == sorted(made)
    target = "/v2/app/referrers/%s?artifactType=a/b" % subject["digest"]
    assert [len(page) for page in pages(site, target, "manifests")] == [1]


def test_a_large_referrer_is_listed_in_short(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = described(b"never pushed")
    large = site.push("large", "large", subject=subject, artifactType="a/b", annotations={"x": "y" * 3000})
    assert referrers(site, subject["digest"])[0]["artifactType"] == "a/b"
    monkeypatch.setattr(module, "SMALL", 2000)
    assert referrers(site, subject["digest"]) == [described(large)]


def test_what_could_not_be_read_once_is_read_again(site: Site) -> None:
    subject = described(b"never pushed")
    raw = site.push(subject=subject)
    path = path_of(site, digest_of(raw))
    path.write_bytes(b"rotten")
    assert site.ask("GET", "/v2/app/referrers/" + subject["digest"]).status == 500
    assert "corrupt" in site.trouble()[0]
    path.write_bytes(raw)
    assert [item["digest"] for item in referrers(site, subject["digest"])] == [digest_of(raw)]
    path.unlink()
    assert referrers(site, subject["digest"]) == []


def test_names_that_others_gave_hide_no_referrer(site: Site) -> None:
    subject = described(b"never pushed")
    raw = site.push(subject=subject)
    path = site.root / "index.json"
    index = json.loads(path.read_bytes())
    named = index["manifests"][0]
    for n, data in enumerate((b"{}", b"no JSON", DATA, b'{"schemaVersion":1,"fsLayers":[]}')):
        index["manifests"].append({**named, **site.blob(data), "annotations": {
            "org.opencontainers.image.ref.name": "localhost/app:other%d" % n}})
    index["manifests"].append({"mediaType": 5})
    path.write_bytes(to_json(index))
    assert [item["digest"] for item in referrers(site, subject["digest"])] == [digest_of(raw)]
    assert site.ask("GET", "/v2/app/tags/list").json["tags"] == ["1"] + ["other%d" % n for n in range(4)]
    assert site.ask("GET", "/v2/app/manifests/other0").outcome == (404, "MANIFEST_UNKNOWN")


# -- the mirror of a site ------------------------------------------------------


def test_a_store_is_the_mirror_of_what_it_has_pulled(start: Start, tmp_path: Path) -> None:
    layout, top, _ = multi_platform(tmp_path / "layout")
    first = start(tmp_path / "first")
    push_layout_http(layout, "latest", first.host + "/library/alpine:3.20")
    store = Store(str(tmp_path / "root"))
    minipull.pull(first.host + "/library/alpine:3.20", store, all_platforms=True)
    name = minipull.Reference.parse(first.host + "/library/alpine:3.20")
    store.tag("docker.io/library/alpine:3.20", store.image(name))
    store.remove(name)
    mirror = start(writable=False)
    for path in ("library/alpine/manifests/3.20", "library/alpine/manifests/3.20?ns=docker.io",
                 "docker.io/library/alpine/manifests/3.20", "alpine/manifests/3.20"):
        assert mirror.ask("GET", "/v2/" + path).body == top.raw, path
    assert mirror.ask("GET", "/v2/library/alpine/manifests/3.20?ns=quay.io").status == 404
    service = minipull.RegistryService(mirrors=["http://" + mirror.host])
    image = minipull.pull("alpine:3.20", Store(str(tmp_path / "fresh")), all_platforms=True, service=service)
    assert (str(image.name), image.descriptor.digest) == ("docker.io/library/alpine:3.20", top.digest)
    assert problems(Store(str(tmp_path / "fresh"))) == [] and mirror.trouble() == []


def test_pushes_are_recorded_under_the_domain_of_the_registry(start: Start) -> None:
    site = start(domain="corp.example:5000")
    raw = site.push("one", "1", "team/app")
    assert site.put(raw, "2", "team/app", "?ns=docker.io").status == 201
    assert site.put(raw, digest_of(raw), "corp.example:5000/team/app").outcome == (400, "NAME_INVALID")
    assert site.names() == ["corp.example:5000/team/app:1", "docker.io/team/app:2"]
    for path in ("team/app/manifests/1", "team/app/manifests/2", "corp.example:5000/team/app/manifests/1"):
        assert site.ask("GET", "/v2/" + path).body == raw
    assert site.ask("GET", "/v2/team/app/manifests/2?ns=corp.example:5000").status == 404


# -- deletes -------------------------------------------------------------------


def test_a_deleted_tag_leaves_the_rest(site: Site) -> None:
    raw = site.push()
    assert site.put(raw, "2").status == site.put(raw, "1", "other").status == 201
    assert site.ask("DELETE", "/v2/app/manifests/1").status == 202
    assert site.ask("DELETE", "/v2/app/manifests/1").outcome == (404, "MANIFEST_UNKNOWN")
    assert site.ask("DELETE", "/v2/nothing/manifests/1").outcome == (404, "MANIFEST_UNKNOWN")
    assert site.names() == ["localhost/app:2", "localhost/other:1"]
    assert site.ask("GET", "/v2/app/manifests/" + digest_of(raw)).body == raw


def test_a_deleted_digest_takes_its_tags_and_its_bytes_at_once(site: Site) -> None:
    raw = site.push()
    assert site.put(raw, digest_of(raw), query="?tag=2").status == 201
    kept = site.push("two", "3")
    target = "/v2/app/manifests/" + digest_of(raw)
    assert site.ask("DELETE", target).status == 202
    assert [site.ask("HEAD", path).status for path in (target, "/v2/app/manifests/1")] == [404, 404]
    assert not path_of(site, digest_of(raw)).exists()
    assert site.ask("DELETE", target).outcome == (404, "MANIFEST_UNKNOWN")
    assert site.ask("DELETE", "/v2/app/manifests/sha256:x").outcome == (400, "DIGEST_INVALID")
    assert site.names() == ["localhost/app:3"] and site.ask("GET", "/v2/app/manifests/3").body == kept
    assert problems(site.store) == []


def test_a_deleted_digest_takes_the_tags_that_resolved_to_it(site: Site, tmp_path: Path) -> None:
    layout, top, _ = multi_platform(tmp_path / "layout")
    push_layout_http(layout, "latest", site.host + "/up:1")
    name = site.host + "/up:1"
    minipull.pull(name, site.store, platform="linux/amd64")  # which names one child, from this index
    assert name in site.names()
    assert site.ask("DELETE", "/v2/%s/manifests/%s" % (name[:-2], top.digest)).status == 202
    assert name not in site.names() and "localhost/up:1" in site.names()
    assert site.ask("GET", "/v2/up/manifests/1").body == top.raw


def test_what_a_name_needs_is_not_deleted(site: Site) -> None:
    child = site.manifest("child")
    index = _children(site, OCI_MANIFEST, child)
    assert site.put(index, "1").status == site.put(index, "1", "other").status == 201
    for target in (
            "manifests/" + digest_of(child), "blobs/" + digest_of(b"child"), "blobs/" + digest_of(index)):
        assert site.ask("DELETE", "/v2/app/" + target).outcome == (405, "UNSUPPORTED")
        assert site.ask("HEAD", "/v2/app/" + target).status == 200
    assert site.ask("DELETE", "/v2/app/manifests/" + digest_of(index)).status == 202
    assert site.names() == ["localhost/other:1"]  # which needs its bytes
    assert site.ask("GET", "/v2/other/manifests/1").body == index
    assert problems(site.store) == []


def test_a_deleted_blob_is_gone_from_every_repository(site: Site) -> None:
    digest = site.blob(DATA)["digest"]
    for repository in ("app", "other"):
        assert site.ask("GET", "/v2/%s/blobs/%s" % (repository, digest)).body == DATA
    assert site.ask("DELETE", "/v2/other/blobs/" + digest).status == 202
    for repository in ("app", "other"):
        assert site.ask("HEAD", "/v2/%s/blobs/%s" % (repository, digest)).status == 404
    assert site.ask("DELETE", "/v2/app/blobs/" + digest).outcome == (404, "BLOB_UNKNOWN")
    mount = site.ask("POST", "/v2/app/blobs/uploads/?from=other&mount=" + digest)
    assert mount.status == 202


def test_a_delete_waits_for_who_works_and_then_gives_up(start: Start) -> None:
    site = start(timeout=0.1)
    digest = site.blob(DATA)["digest"]
    with site.store.writing():  # a push, say
        answer = site.ask("DELETE", "/v2/app/blobs/" + digest)
        assert answer.outcome == (503, "TOOMANYREQUESTS") and answer.headers["retry-after"] == "10"
    assert site.ask("DELETE", "/v2/app/blobs/" + digest).status == 202


def test_deleting_one_tag_many_times_at_once_is_deleting_it(site: Site) -> None:
    site.push()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: site.ask("DELETE", "/v2/app/manifests/1").outcome, range(16)))
    assert (202, "") in found and set(found) <= {(202, ""), (404, "MANIFEST_UNKNOWN")}
    assert site.names() == [] and site.trouble() == []


# -- blobs ---------------------------------------------------------------------


@pytest.mark.parametrize("fields, part", [
    ({}, (0, None)), ({"Range": "bytes=5-9"}, (5, 10)), ({"Range": "bytes=-7"}, (len(DATA) - 7, len(DATA))),
    ({"Range": "bytes=10000-"}, (10000, len(DATA))), ({"Range": "bytes=0-99999999"}, (0, len(DATA))),
    ({"Range": "bytes=-99999999"}, (0, len(DATA))), ({"Range": "bytes=0-0"}, (0, 1)),
    ({"Range": "bytes=0-1,5-6"}, (0, None)), ({"Range": "bytes=-"}, (0, None)),
    ({"Range": "lines=1-2"}, (0, None)), ({"Range": "bytes=" + "9" * 19 + "-"}, (0, None)),
    ({"Range": "bytes=%d-" % len(DATA)}, None),
    ({"Range": "bytes=-0"}, None), ({"Range": "bytes=9-5"}, None),
    ({"Range": "bytes=5-9", "If-Range": '"%s"' % digest_of(DATA)}, (5, 10)),
    ({"Range": "bytes=5-9", "If-Range": 'W/"%s"' % digest_of(DATA)}, (0, None)),
    ({"Range": "bytes=5-9", "If-Range": '"else"'}, (0, None))])
def test_of_a_blob_exactly_the_part_is_sent_that_was_asked_for(
        site: Site, fields: Dict[str, str], part: Optional[Tuple[int, Optional[int]]]) -> None:
    path = "/v2/app/blobs/" + site.blob(DATA)["digest"]
    answer = site.ask("GET", path, headers=fields)
    if part is None:
        assert answer.status == 416 and answer.headers["content-range"] == "bytes */%d" % len(DATA)
        assert int(answer.headers["content-length"]) == len(answer.body)
        return
    first, end = part
    assert (answer.status, answer.body) == (206 if end else 200, DATA[first:end])
    assert answer.headers.get("content-range") == (
        "bytes %d-%d/%d" % (first, end - 1, len(DATA)) if end else None)
    assert answer.headers["accept-ranges"] == "bytes" and answer.headers["etag"] == '"%s"' % digest_of(DATA)
    head = site.ask("HEAD", path, headers=fields)  # of which there are no parts
    assert (head.status, head.headers["content-length"]) == (200, str(len(DATA)))


# -- uploads -------------------------------------------------------------------


def append(site: Site, location: str, data: bytes, start: Optional[int] = None) -> Answer:
    fields = {} if start is None else {"Content-Range": "%d-%d" % (start, start + len(data) - 1)}
    return site.ask("PATCH", location, data, fields)


def finish(site: Site, location: str, data: bytes = DATA, rest: bytes = b"") -> None:
    answer = site.ask("PUT", location + "?digest=" + digest_of(data), rest)
    assert answer.status == 201 and answer.headers["docker-content-digest"] == digest_of(data), answer
    assert site.ask("GET", answer.headers["location"]).body == data


def test_an_upload_is_known_in_its_repository_alone(site: Site) -> None:
    location = site.session()
    name = location.rpartition("/")[2]
    assert append(site, location, DATA[:10]).headers["docker-upload-uuid"] == name
    for other in ("/v2/other/blobs/uploads/" + name, "/v2/docker.io/app/blobs/uploads/" + name,
                  "/v2/app/blobs/uploads/" + NOBODY, "/v2/app/blobs/uploads/" + name.upper() + "X",
                  "/v2/app/blobs/uploads/upload-" + name, "/v2/app/blobs/uploads/.."):
        for method, query in (("GET", ""), ("PATCH", ""), ("PUT", "?digest=" + ABSENT), ("DELETE", "")):
            assert site.ask(method, other + query, DATA).outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    assert site.held(location) == "0-9"
    finish(site, location, rest=DATA[10:])
    assert problems(site.store) == []


@pytest.mark.parametrize("gone", ["closed", "reset"])
@pytest.mark.parametrize("method", ["PATCH", "PUT", "chunks"])
def test_what_arrived_before_a_client_went_is_kept(site: Site, method: str, gone: str) -> None:
    location = site.session()
    assert append(site, location, DATA[:100], 0).headers["range"] == "0-99"
    target = location + ("?digest=" + digest_of(DATA) if method == "PUT" else "")
    head, body = "Content-Length: %d" % (len(DATA) - 100), DATA[100:700]
    if method == "chunks":
        head, body = "Transfer-Encoding: chunked", b"258\r\n" + DATA[100:700] + b"\r\n1000\r\n"
    with half_sent(site, "PATCH" if method == "chunks" else method, target, head, body) as client:
        wait_until(lambda: site.held(location) == "0-699", "the first bytes")
        if gone == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert site.ask("HEAD", "/v2/app/blobs/" + digest_of(DATA)).status == 404
    assert append(site, location, DATA[700:5000], 700).headers["range"] == "0-4999"
    finish(site, location, rest=DATA[5000:])
    assert site.trouble() == [] and problems(site.store) == []


def test_a_client_that_goes_within_its_only_request_leaves_nothing(site: Site) -> None:
    target = "/v2/app/blobs/uploads/?digest=" + digest_of(DATA)
    scratch = Path(site.store.content.scratch)
    with half_sent(site, "POST", target, "Content-Length: %d" % len(DATA), DATA[:500]):
        wait_until(lambda: any(path.stat().st_size for path in scratch.glob("*")), "the first bytes")
    wait_until(lambda: not any(scratch.iterdir()), "the session is gone")
    wrong = site.ask("POST", "/v2/app/blobs/uploads/?digest=" + ABSENT, DATA)
    assert wrong.outcome == (400, "DIGEST_INVALID")
    assert not any(scratch.iterdir()) and site.trouble() == [] and problems(site.store) == []


def test_an_upload_goes_on_after_kill_9(tmp_path: Path, serve: Callable[..., Serve]) -> None:
    root = tmp_path / "root"
    first = serve(root, "--writable")
    location = first.request("POST", "/v2/app/blobs/uploads/")[1]["location"]
    assert first.request("PATCH", location, DATA[:100])[0] == 202
    with socket.create_connection(("127.0.0.1", first.port), timeout=30) as client:
        client.sendall(("PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n" % location).encode()
                       + DATA[100:700])
        wait_until(lambda: first.request("GET", location)[1]["range"] == "0-699", "the first bytes")
        first.process.kill()
        first.process.wait()
    second = serve(root, "--writable")
    assert second.request("GET", location)[1]["range"] == "0-699"
    answer = second.request("PUT", location + "?digest=" + digest_of(DATA), DATA[700:])
    assert answer[0] == 201 and second.request("GET", answer[1]["location"])[2] == DATA
    assert problems(Store(str(root))) == []


def test_who_writes_second_is_told_where_the_upload_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "BUSY", 0.05)
    location = site.session()
    with half_sent(site, "PATCH", location, "Content-Length: 1000", DATA[:600]) as client:
        wait_until(lambda: site.held(location) == "0-599", "the first bytes")
        for method, query in (("PATCH", ""), ("PUT", "?digest=" + digest_of(DATA)), ("DELETE", "")):
            answer = site.ask(method, location + query, b"x" * 1000)
            assert answer.outcome == (416, "BLOB_UPLOAD_INVALID")
            assert (answer.headers["range"], answer.headers["location"]) == ("0-599", location)
        client.sendall(DATA[600:1000])
        assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
    finish(site, location, rest=DATA[1000:])
    assert site.trouble() == [] and problems(site.store) == []


@pytest.mark.parametrize("start_at, data, length", [
    (0, b"x" * 10, None), (19, b"x" * 10, None), (21, b"x" * 10, None), (20, b"x" * 10, 11),
    (20, b"x" * 10, 9)])
def test_a_chunk_that_does_not_belong_there_changes_nothing(
        site: Site, start_at: int, data: bytes, length: Optional[int]) -> None:
    location = site.session()
    append(site, location, DATA[:20])
    fields = {"Content-Range": "%d-%d" % (start_at, start_at + (length or len(data)) - 1)}
    for method, query in (("PATCH", ""), ("PUT", "?digest=" + digest_of(DATA))):
        answer = site.ask(method, location + query, data, fields)
        assert answer.outcome == (416, "BLOB_UPLOAD_INVALID")
        assert (answer.headers["range"], answer.headers["location"]) == ("0-19", location)
    finish(site, location, rest=DATA[20:])


@pytest.mark.parametrize("text", [
    "", "0", "0-", "-9", "a-b", "0-9, 20-29", "9-0", "bytes 0-9-9", "0-" + "9" * 19])
def test_a_malformed_range_of_a_chunk_is_refused(site: Site, text: str) -> None:
    location = site.session()
    assert site.ask("PATCH", location, DATA[:10], {"Content-Range": text}).outcome == (
        416, "BLOB_UPLOAD_INVALID")
    assert append(site, location, DATA[:10]).headers["range"] == "0-9"
    assert site.ask("PATCH", location, DATA[10:20], {"Content-Range": "bytes 10-19/*"}).status == 202
    finish(site, location, rest=DATA[20:])


def test_a_stream_that_is_not_as_long_as_its_range_is_refused_and_its_bytes_count(site: Site) -> None:
    location = site.session()
    answer = site.ask("PATCH", location, iter([DATA[:6], DATA[6:8]]), {"Content-Range": "0-9"})
    assert answer.outcome == (400, "SIZE_INVALID") and site.held(location) == "0-7"
    assert site.ask("PATCH", location, iter([DATA[8:20]]), {"Content-Range": "8-19"}).status == 202
    finish(site, location, rest=DATA[20:])


def test_an_upload_has_a_largest_size_however_it_comes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (uploads, blobs):
        monkeypatch.setattr(place, "MAX_BLOB", 1000)
    location = site.session()
    for body in (DATA[:1001], iter([DATA[:700], DATA[700:1001]])):
        assert site.ask("PATCH", location, body).outcome == (413, "SIZE_INVALID")
    assert site.held(location) == "0-699"
    assert site.ask("POST", "/v2/app/blobs/uploads/?digest=" + digest_of(DATA), DATA).status == 413
    finish(site, location, DATA[:1000], DATA[700:1000])


def test_a_full_disk_is_507_and_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    location = site.session()
    monkeypatch.setattr(uploads, "RESERVE", 1 << 62)
    monkeypatch.setattr(uploads, "_CHECK_EVERY", 5000)
    for method, path in (("POST", "/v2/app/blobs/uploads/"), ("PATCH", location)):
        answer = site.ask(method, path, iter([DATA[:4000], DATA[4000:6000]]))
        assert answer.outcome == (507, "UNKNOWN") and str(site.root).encode() not in answer.body
        assert str(site.root) in site.trouble()[-1]
    assert site.held(location) == "0-3999"
    monkeypatch.undo()
    finish(site, location, rest=DATA[4000:])

    def full(fd: int, data: "memoryview") -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    raw = site.manifest("full")
    before = site.names()
    monkeypatch.setattr(files, "write_all", full)
    assert site.put(raw, "full").outcome == (507, "UNKNOWN")
    monkeypatch.undo()
    assert site.names() == before and problems(site.store) == []


def test_uploads_have_a_largest_number(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_SESSIONS", 1)
    location = site.session()
    answer = site.ask("POST", "/v2/app/blobs/uploads/")
    assert answer.outcome == (429, "TOOMANYREQUESTS") and answer.headers["retry-after"] == "10"
    assert site.ask("DELETE", location).status == 204
    assert site.ask("GET", location).outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    finish(site, site.session(), rest=DATA)


@pytest.mark.parametrize("query", ["digest=sha256:x", "digest=", "mount=..%2f..", "digest-algorithm=md5"])
def test_an_upload_begins_with_a_known_algorithm_or_not_at_all(site: Site, query: str) -> None:
    answer = site.ask("POST", "/v2/app/blobs/uploads/?" + query)
    assert answer.outcome == ((202, "") if query == "digest=" else (400, "DIGEST_INVALID"))


def test_a_blob_that_is_here_is_mounted_from_anywhere(site: Site) -> None:
    digest = site.blob(DATA, repository="first")["digest"]
    for query in ("from=first&", "from=nowhere&", "from=../..&", ""):
        answer = site.ask("POST", "/v2/app/blobs/uploads/?%smount=%s" % (query, digest))
        assert (answer.status, answer.headers["location"]) == (201, "/v2/app/blobs/" + digest)
    missing = site.ask("POST", "/v2/app/blobs/uploads/?from=first&mount=" + ABSENT)
    finish(site, missing.headers["location"], rest=DATA)


# -- others at work on the same store ------------------------------------------


def test_gc_between_two_requests_is_told_to_the_client(site: Site) -> None:
    location = site.session()
    append(site, location, DATA[:100])
    raw = site.manifest("mounted")
    mounted = site.ask("POST", "/v2/app/blobs/uploads/?from=x&mount=" + digest_of(b"mounted"))
    assert mounted.status == 201
    gc(site.store, 0)
    assert site.ask("PATCH", location, DATA[100:]).outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    assert site.put(raw).outcome == (404, "MANIFEST_BLOB_UNKNOWN")
    site.push("mounted")
    assert gc(site.store, 0).blobs == [] and problems(site.store) == []


def test_gc_does_not_interrupt_a_request(site: Site) -> None:
    location = site.session()
    with half_sent(site, "PATCH", location, "Content-Length: 1000", DATA[:600]) as client:
        wait_until(lambda: site.held(location) == "0-599", "the first bytes")
        with pytest.raises(files.Locked):
            gc(Store(str(site.root), timeout=0.1), 0)
        client.sendall(DATA[600:1000])
        assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
    finish(site, location, rest=DATA[1000:])


def test_while_gc_works_clients_are_asked_to_come_again(start: Start) -> None:
    site = start(timeout=0.1)
    raw = site.push()
    with site.store.alone():
        for method, path in (("GET", "/v2/app/manifests/1"), ("POST", "/v2/app/blobs/uploads/")):
            answer = site.ask(method, path)
            assert answer.outcome == (503, "TOOMANYREQUESTS") and answer.headers["retry-after"] == "10"
    assert site.ask("GET", "/v2/app/manifests/1").body == raw


def test_two_servers_and_pulls_share_a_store(start: Start, tmp_path: Path) -> None:
    layout, made = single(tmp_path / "layout", layers=4)
    source = start(tmp_path / "source")
    push_layout_http(layout, "latest", source.host + "/app:1")
    sites = [start(), start()]
    location = sites[0].session()
    for n in range(0, len(DATA), 1024):  # one session, by turns
        assert append(sites[n // 1024 % 2], location, DATA[n:n + 1024], n).status == 202

    def push(n: int) -> None:
        push_layout_http(layout, "latest", "%s/app:%d" % (sites[n % 2].host, n))

    def pull(n: int) -> None:
        minipull.pull(source.host + "/app:1", Store(str(tmp_path / "root"), timeout=30))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit((push, push, pull)[n % 3], n) for n in range(18)]:
            done.result()
    finish(sites[1], location)
    tags = [str(n) for n in range(18) if n % 3 < 2]
    for site in sites:
        assert sorted(site.ask("GET", "/v2/app/tags/list").json["tags"]) == sorted(tags)
        assert site.ask("GET", "/v2/app/manifests/1").body == made.raw and site.trouble() == []
    assert source.host + "/app:1" in sites[0].names()
    assert problems(sites[0].store) == [] and os.listdir(sites[0].store.content.scratch) == []


def test_many_clients_read_and_write_at_once(site: Site) -> None:
    raw = site.push()

    def work(n: int) -> List[int]:
        return [
            site.put(raw, "t%d" % n).status, site.ask("GET", "/v2/app/manifests/t%d" % n).status,
            site.ask("GET", "/v2/app/tags/list").status, site.ask("GET", "/v2/_catalog").status,
            site.ask("GET", "/v2/app/referrers/" + ABSENT).status,
            site.ask("DELETE", "/v2/app/manifests/t%d" % n).status]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [[201, 200, 200, 200, 200, 202]] * 24
    assert site.names() == ["localhost/app:1"] and site.trouble() == [] and problems(site.store) == []


# -- trouble -------------------------------------------------------------------


def test_where_things_are_on_the_disk_is_for_the_log_only(site: Site) -> None:
    site.push()
    (site.root / "index.json").write_bytes(b"{")
    for path in ("/v2/_catalog", "/v2/app/tags/list", "/v2/app/manifests/1"):
        answer = site.ask("GET", path)
        assert answer.outcome == (500, "UNKNOWN") and str(site.root).encode() not in answer.body
        assert str(site.root) in site.trouble()[-1]
    assert site.put(site.manifest()).status == 500


def test_no_answer_is_a_page_that_a_browser_would_run(site: Site) -> None:
    script = b"<script>alert(1)</script>"
    digest = site.blob(script)["digest"]
    for path in ("/v2/app/blobs/" + digest, "/v2/<script>/tags/list", "/v2/app/manifests/<script>",
                 "/v2/app/manifests/sha256:<script>", "/v2/app/tags/list?n=<script>", "/<script>"):
        answer = site.ask("GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] in ("application/json", OCTETS)
        assert script.decode() not in str(answer.headers)


# -- serve() -------------------------------------------------------------------


def test_a_program_serves_a_store_until_it_cancels(tmp_path: Path) -> None:
    store, cancel = Store(str(tmp_path / "root")), Cancel()
    urls: List[str] = []
    log: List[Tuple[int, str]] = []
    thread = threading.Thread(target=lambda: serve(
        store, port=0, cancel=cancel, ready=urls.append, log=lambda *line: log.append(line)))
    thread.start()
    wait_until(lambda: bool(urls), "serve")
    host = urls[0][len("http://"):]
    assert ask(host, "GET", "/v2/")[2] == b"{}"
    assert ask(host, "POST", "/v2/app/blobs/uploads/")[0] == 405
    assert [status for status, _ in log] == [200, 405] and log[0][1].startswith("GET /v2/ 200")
    cancel.cancel()
    thread.join()
    with pytest.raises(OSError):
        ask(host, "GET", "/v2/")
    assert not os.path.exists(store.root)


def test_an_address_or_a_domain_that_can_not_be_is_told(tmp_path: Path) -> None:
    store, port = Store(str(tmp_path / "root")), free_port()
    with pytest.raises(InvalidReference, match="not the domain of a registry"):
        serve(store, port=port, domain="no domain")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen(1)
        with pytest.raises(NetworkError, match="listen on 127.0.0.1:%d" % port):
            serve(store, port=port)
    assert not os.path.exists(store.root)
