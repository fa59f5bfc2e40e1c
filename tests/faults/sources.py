# SPDX-License-Identifier: Apache-2.0
"""Archives, stores, requests and answers from outside, and what takes each of them.

Each function gets an empty directory and returns a :class:`Kind`.
"""
import abc
import gzip
import json
import random
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple, Union, cast

from minipull.archive.check import check_archive
from minipull.archive.load import load
from minipull.archive.save import save
from minipull.cancel import Cancel
from minipull.digest import ChainID, DiffID, Digest
from minipull.distribution.copy import copy
from minipull.distribution.pull import pull
from minipull.errors import Error
from minipull.reference import Reference
from minipull.registry.auth import Keyring
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.registry.request import Body
from minipull.registry.v1 import Session
from minipull.registry.v2 import Repository
from minipull.rootfs.unpack import unpack
from minipull.server.message import parse_request
from minipull.server.registry import Registry
from minipull.store.check import UNVERIFIED, check
from minipull.store.gc import gc
from minipull.store.ingest import Ingest
from minipull.store.store import Store
from tests.faults.parsers import tars
from tests.kit import images
from tests.kit.archives import docker_members, layout_members, named, pack
from tests.kit.fuzz import Kind, spoiled, spoiled_json, spoiled_text
from tests.kit.images import Layout
from tests.kit.stores import keep, multi, problems, text_layer

PORTS: Set[int] = set()  # of the servers of this process

def archives(folder: Path) -> Kind:
    layout = Layout(folder / "layout")
    one = layout.image([text_layer("one"), text_layer("two", compression="")])
    old = Layout(folder / "old", docker=True)
    two = old.image([text_layer("three")])
    v1 = json.dumps({"id": "a" * 64, "created": images.CREATED, "os": "linux", "parent": ""}).encode()
    sources: List[Dict[str, Union[bytes, str]]] = [
        layout_members(layout, [named(one)]), docker_members(old, {"demo/two:2": two}),
        {"repositories": json.dumps({"demo/x": {"1": "a" * 64}}).encode(), "a" * 64 + "/json": v1,
         "a" * 64 + "/VERSION": b"1.0", "a" * 64 + "/layer.tar": tars(folder)[1]}]
    path, number = folder / "archive.tar", [0]

    def make(rng: random.Random) -> bytes:
        members = dict(rng.choice(sources))
        extra = []
        name = rng.choice(sorted(members))
        data = members[name]
        change = rng.randrange(8)
        if isinstance(data, bytes) and change < 4 and data[:1] in (b"{", b"["):
            members[name] = spoiled_json(rng, json.loads(data.decode()), ["../x", name, "blobs", "layer.tar"])
        elif isinstance(data, bytes) and change < 5:
            members[name] = spoiled(rng, data)
        elif change == 5:
            del members[name]
            members[spoiled_text(rng, name, ["../", "/", "./"]).replace("\0", "")[:200] or "x"] = data
        elif change == 6:
            members[name] = rng.choice(sorted(members))
        elif isinstance(data, bytes):
            extra = [(name, rng.choice((data, data + b" ", spoiled(rng, data))))]
        packed = pack(members, extra)
        if rng.random() < 0.2:
            packed = spoiled(rng, packed)
        return gzip.compress(packed, 1) if rng.random() < 0.1 else packed

    def use(case: bytes) -> None:
        path.write_bytes(case)
        check_archive(str(path), Cancel())
        number[0] += 1
        if number[0] % 4 == 0:
            store = Store(str(folder / "store"), timeout=1)
            try:
                load(str(path), store)
            except Error:
                assert not store.references.all()
                raise
            else:
                assert not problems(store)
            finally:
                shutil.rmtree(store.root, ignore_errors=True)
    return Kind(make, use)


def store_files(folder: Path) -> Kind:
    template, root = folder / "template", folder / "store"
    layout, index, made = multi(folder / "layout")
    whole = Store(str(template), timeout=1)
    keep(whole, layout, made["linux/amd64"], "docker.io/demo/a:1", index)
    keep(whole, layout, made["linux/arm64"], "docker.io/demo/b:1")
    part = Digest.of(b"partial")
    with Ingest(whole.content, Cancel(), part, 7) as ingest:
        ingest.write(b"part")
    shutil.copytree(str(template), str(root))
    files = sorted(path.relative_to(template) for path in template.rglob("*") if path.is_file()
                   and path.name not in ("lock", "index.lock") and "blobs" not in path.parts)

    def make(rng: random.Random) -> Tuple[str, bytes, bool]:
        path = rng.choice(files + files[:1] + [file for file in files if file.name == "index.json"] * 4)
        data = template.joinpath(path).read_bytes()
        is_json = data[:1] in (b"{", b"[") and rng.random() < 0.8
        data = spoiled_json(rng, json.loads(data.decode())) if is_json else spoiled(rng, data)
        return str(path), data[:200000], rng.random() < 0.1

    def use(case: Tuple[str, bytes, bool]) -> None:
        (root / case[0]).write_bytes(case[1])
        try:
            _use_store(Store(str(root), timeout=1), part, case[0].partition("/")[0], case[2])
        finally:
            if case[2]:
                shutil.rmtree(str(root))
                shutil.copytree(str(template), str(root))
            else:
                shutil.copyfile(str(template / case[0]), str(root / case[0]))
    return Kind(make, use)


def _use_store(store: Store, part: Digest, folder: str, change: bool) -> None:
    """Read a store of which a file in ``folder`` is spoiled; with ``change`` also write to it."""
    def collect() -> None:
        gc(store, 0)

    def ingest() -> None:
        with Ingest(store.content, Cancel(), part, 7) as held:
            assert held.offset <= 7

    def retag() -> None:
        store.tag("docker.io/demo/c:1", store.image("docker.io/demo/b:1"))

    def records() -> None:
        for name in ("layers", "metadata"):
            for path in Path(store.root, name).rglob("*"):
                if re.fullmatch("[0-9a-f]{64}", path.name):
                    digest = Digest("sha256:" + path.name)
                    store.layers.get(ChainID(digest))
                    store.metadata.get_metadata(DiffID(digest))
                    store.metadata.get_diff_id(digest)

    asked: List[Callable[[], object]] = [store.images, store.references.all]
    if folder in ("layers", "metadata"):
        asked += [records, lambda: check(store)]
    asked += [ingest] if folder == "ingest" else []
    asked += [retag, collect, lambda: check(store)] if change else []
    for ask in asked:
        try:
            ask()
        except Error:
            pass


def requests(folder: Path) -> Kind:
    """Requests to a server, with their bodies."""
    layout, index, made = multi(folder / "layout")
    store = Store(str(folder / "store"), timeout=0.2)
    keep(store, layout, made["linux/amd64"], "localhost/demo/a:1", index)
    blob = made["linux/amd64"].config["digest"]
    registry = Registry(store, writable=True)
    session = "/v2/demo/a/blobs/uploads/00000000-0000-0000-0000-000000000000"
    raw = made["linux/amd64"].raw
    digest = images.digest_of(b"hello")
    lines = [
        b"GET /v2/ HTTP/1.1", b"GET /v2/demo/a/manifests/1 HTTP/1.1",
        b"GET /v2/demo/a/tags/list?n=1&last=0 HTTP/1.1",
        b"HEAD /v2/demo/a/blobs/%s HTTP/1.1" % blob.encode(), b"GET /v2/_catalog?n=5 HTTP/1.1",
        b"GET /v2/demo/a/referrers/%s?artifactType=a%%2Fb HTTP/1.1" % blob.encode(),
        b"POST /v2/demo/a/blobs/uploads/?digest=%s HTTP/1.1" % digest.encode(),
        b"DELETE /v2/demo/b/manifests/2 HTTP/1.1",
        b"PATCH %s HTTP/1.1" % session.encode(),
        b"PUT %s?digest=%s HTTP/1.1" % (session.encode(), digest.encode()),
        b"PUT /v2/demo/b/manifests/2?tag=3 HTTP/1.1", b"GET /v2/demo/a/blobs/%s HTTP/1.0" % blob.encode()]
    fields = [b"Host: r", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Range: bytes=0-4",
              b"Content-Range: 0-4",
              b"Content-Type: " + images.OCI_MANIFEST.encode(), b"Expect: 100-continue", b"Connection: close",
              b"If-None-Match: *", b"Accept: */*"]
    bodies = [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n", raw, b""]
    tokens = [*fields, b"chunked", b"gzip", b"%2e%2e", b"%ff", b"HTTP/1.0", b"HTTP/2.0",
              b"18446744073709551616", b"\xb2"]

    def make(rng: random.Random) -> Tuple[bytes, bytes]:
        head = [rng.choice(lines), fields[0], *rng.sample(fields[1:], rng.randrange(4))]
        body = rng.choice(bodies)
        if body == raw and rng.random() < 0.7:
            body = spoiled_json(rng, json.loads(raw.decode()))
            head = [lines[-2], fields[0], fields[5], b"Content-Length: %d" % len(body)]
        data = b"\r\n".join(head)
        if rng.random() < 0.5:  # within the target, or anywhere
            method, target, version = head[0].split(b" ")
            data = b"\r\n".join([b" ".join([method, spoiled(rng, target, tokens), version]), *head[1:]])
        elif rng.random() < 0.7:
            data = spoiled(rng, data, tokens)
        return data.partition(b"\r\n\r\n")[0], spoiled(rng, body, tokens) if rng.random() < 0.3 else body

    def use(case: Tuple[bytes, bytes]) -> None:
        view, at = memoryview(case[1]), [0]

        def receive(limit: int) -> memoryview:
            piece = view[at[0]:at[0] + min(limit, 7)]
            at[0] += len(piece)
            if not piece:
                raise ConnectionAbortedError("the client has gone")
            return piece

        try:
            request = parse_request(case[0], receive, lambda: None)
            response = registry(request)
            if response.file:
                response.file.close()
            for _, value in response.headers:
                assert re.fullmatch("[ -~]*", value), value
            request.body.drain()
        except ConnectionAbortedError:
            pass
    return Kind(make, use)


class _Listener(abc.ABC):
    """A server on loopback, for as long as the process lives."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        PORTS.add(self.port)
        threading.Thread(target=self._run, daemon=True).start()

    @abc.abstractmethod
    def _run(self) -> None:
        """Serve one client after another, without end."""


class _Answers(_Listener):
    """Gives each connection the next of some raw answers, and closes it."""

    def __init__(self) -> None:
        self.answers: Sequence[bytes] = [b""]
        self._number = 0
        super().__init__()

    def begin(self, answers: Sequence[bytes]) -> None:
        self.answers, self._number = answers, 0

    def _run(self) -> None:
        while True:
            client = self._listener.accept()[0]
            with client:
                client.settimeout(5)
                head = b""
                try:
                    while b"\r\n\r\n" not in head:
                        data = client.recv(65536)
                        if not data:
                            break
                        head += data
                    client.sendall(self.answers[self._number % len(self.answers)])
                    self._number += 1
                    client.shutdown(socket.SHUT_WR)
                except OSError:
                    pass


def answers(folder: Path) -> Kind:
    """Raw answers of a registry, of v2 and of v1."""
    server = _Answers()
    host = "127.0.0.1:%d" % server.port
    service = RegistryService(timeout=2)
    name = Reference.parse(host + "/demo/a")
    image = Layout(folder / "layout").image([text_layer("x")])
    digest, v1_id = Digest(image.digest), "a" * 64
    base = "http://%s/v2/demo/a/" % host

    def answer(status: str, body: bytes = b"", *fields: str) -> bytes:
        head = ["HTTP/1.1 " + status, "Content-Length: %d" % len(body), *fields]
        return "\r\n".join([*head, "", ""]).encode() + body

    index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [
        dict(image.descriptor, artifactType="a/b")]}
    token = {"token": "abc", "access_token": "def", "refresh_token": "g", "expires_in": 60,
             "issued_at": images.CREATED}
    documents: List[Any] = [
        token, index, {"name": "demo/a", "tags": ["1", "2"]}, json.loads(image.raw.decode()), [v1_id],
        {"1": v1_id}, v1_id,
        {"id": v1_id, "parent": "b" * 64, "created": images.CREATED, "os": "linux"}, {"standalone": True},
        {"errors": [{"code": "DENIED", "message": "no", "detail": [{"Class": "", "Name": "demo/a"}]}]}]
    chunks = "\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "5;a=b", "hello", "0",
                          "X: y", "", ""]).encode()
    good = [
        answer("200 OK", image.raw, "Content-Type: " + images.OCI_MANIFEST, "Docker-Content-Digest: " + digest),
        answer("200 OK", b'{"name":"demo/a","tags":["1","2"]}',
               'Link: </v2/demo/a/tags/list?last=2&n=2>; rel="next"'),
        answer("200 OK", images.to_json(index), "Content-Type: " + images.OCI_INDEX, "OCI-Filters-Applied: x"),
        answer("206 Partial Content", b"hello", "Content-Range: bytes 3-7/8"),
        answer("200 OK", b"hello", "ETag: x"),
        answer("401 Unauthorized", b'{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}',
               "Content-Type: application/json",
               'WWW-Authenticate: Bearer realm="http://%s/token",service="r",scope="a:b:c"' % host),
        answer("307 Temporary Redirect", b"", "Location: %sblobs/%s" % (base, digest)),
        answer("429 Too Many Requests", b"slow", "Retry-After: 5"), answer("503 No", b"", "Retry-After: 3600"),
        answer("202 Accepted", b"", "Location: %sblobs/uploads/x?state=y" % base, "Range: 0-4",
               "OCI-Chunk-Min-Length: 5"),
        answer("201 Created", b"", "Location: /v2/demo/a/blobs/" + digest),
        answer("200 OK", images.to_json(token)), chunks,
        answer("404 Not Found", b'{"errors":[{"code":"NAME_UNKNOWN","detail":{}}]}',
               "Content-Type: application/json"),
        answer("200 OK", json.dumps([v1_id]).encode(),
               "X-Docker-Token: signature=a,repository=\"b\",access=read",
               "X-Docker-Endpoints: " + host, "X-Docker-Registry-Standalone: true"),
        answer("103 Early Hints") + answer("200 OK", b"hello"),
        answer("204 No Content", b"", "Warning: 299 - \"old\"")]
    tokens = [line for text in good for line in text.split(b"\r\n") if line] + [
        b"Content-Length: 1", b"Transfer-Encoding: gzip, chunked", b"Content-Encoding: gzip", b"HTTP/1.0",
        b"HTTP/2 200", b"100", b"999", b"Connection: close", b"\r\n ", host.encode(), b"127.0.0.2", b"https://",
        b"Set-Cookie: a=b"]

    challenge = next(data for data in good if data.startswith(b"HTTP/1.1 401"))

    def one(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            body = spoiled_json(rng, rng.choice(documents)) if rng.random() < 0.9 else b""
            return answer(rng.choice(("200 OK", "200 OK", "404 No", "400 No")), body,
                          rng.choice(("Content-Type: application/json", "X: y")))
        data = rng.choice(good)
        return spoiled(rng, data, tokens) if rng.random() < 0.8 else data

    def make(rng: random.Random) -> Tuple[int, List[bytes]]:
        chain = [one(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        if rng.random() < 0.15:  # a token is asked for, and comes with the next answer
            body = spoiled_json(rng, token)
            chain = [challenge, answer("200 OK", body), *chain]
        return rng.randrange(9), chain

    def use(case: Tuple[int, List[bytes]]) -> None:
        server.begin(case[1])
        transport, cancel = service.transport(), Cancel()
        endpoint = Endpoint("http://" + host, host)
        repository = Repository(endpoint, name, transport, Keyring(), "pull,push")

        def upload() -> None:
            opened = repository.start_upload(cancel)
            assert opened is not None
            opened.append(Body.of(b"hello"), cancel, True)
            opened.sync(cancel)
            opened.commit(digest, cancel)

        def session() -> None:
            old = Session(endpoint._replace(version=1), name, transport, lambda: Keyring().get(host))
            old.all_tags(cancel)
            registry = old.registries[0]
            old.ancestry(registry, old.tag("1", cancel), cancel)
            old.image(registry, v1_id, cancel)

        actions: List[Callable[[], object]] = [
            lambda: repository.manifest("1", cancel).document(), lambda: repository.manifest(digest, cancel),
            lambda: [repository.resolve("1", cancel), repository.stat(digest, cancel)],
            lambda: repository.tags(cancel),
            lambda: repository.referrers(digest, cancel),
            lambda: repository.blob(digest, 3, cancel).read(1 << 20),
            lambda: repository.put_manifest("1", image.raw, images.OCI_MANIFEST, cancel), upload, session]
        try:
            actions[case[0]]()
        finally:
            transport.close()
    return Kind(make, use)


class _Registry(_Listener):
    """A registry for one image of :func:`pulls`; each connection takes one request."""

    def __init__(self) -> None:
        self.pages: Dict[str, Tuple[str, bytes]] = {}  # Content-Type and body, by the end of a path
        super().__init__()

    def _run(self) -> None:
        while True:
            client = self._listener.accept()[0]
            with client, client.makefile("rb") as file:
                line = file.readline().split()
                while file.readline() not in (b"\r\n", b""):
                    pass
                page = self.pages.get(line[1].decode("latin-1").rpartition("/")[2]) if len(line) == 3 else None
                status, kind, body = ("200 OK", *page) if page else ("404 Not Found", "text/plain", b"no")
                head = "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                try:
                    data = (head % (status, kind, len(body))).encode()
                    client.sendall(data if line[:1] == [b"HEAD"] else data + body)
                except OSError:
                    pass


def pulls(folder: Path) -> Kind:
    """Images whose digests are right, and one of whose documents or layers is not."""
    server, plain = _Registry(), tars(folder)
    name = "127.0.0.1:%d/demo/a:1" % server.port
    service = RegistryService(timeout=2, plain_http=True)
    config = {"architecture": "amd64", "os": "linux", "created": images.CREATED, "config": {"Cmd": ["sh"]},
              "rootfs": {"type": "layers", "diff_ids": [""]}, "history": [{"created_by": "x"}]}

    def make(rng: random.Random) -> Tuple[List[Tuple[str, bytes]], bytes, bool]:
        docker, spot = rng.random() < 0.3, rng.randrange(5)
        kinds = ((images.DOCKER_CONFIG, images.DOCKER_LAYER + ".gzip", images.DOCKER_MANIFEST,
                  images.DOCKER_LIST)
                 if docker else (images.OCI_CONFIG, images.OCI_LAYER + "+gzip", images.OCI_MANIFEST,
                                 images.OCI_INDEX))
        layer = rng.choice(plain)
        layer = spoiled(rng, layer) if spot == 0 else layer
        packed = gzip.compress(layer, 1)
        packed = spoiled(rng, packed) if spot == 1 else layer if rng.random() < 0.2 else packed
        document: Any = dict(config, rootfs={"type": "layers", "diff_ids": [images.digest_of(layer)]})
        raw = spoiled_json(rng, document) if spot == 2 else images.to_json(document)
        blobs = [(kinds[0], raw), (kinds[1], packed)]

        def described(kind: str, data: bytes) -> Dict[str, Any]:
            return {"mediaType": kind, "digest": images.digest_of(data), "size": len(data)}

        document = {"schemaVersion": 2, "mediaType": kinds[2], "config": described(*blobs[0]),
                    "layers": [described(*blobs[1])]}
        raw = spoiled_json(rng, document, [described(*blobs[1])]) if spot == 3 else images.to_json(document)
        blobs.append((kinds[2], raw))
        if spot == 4 or rng.random() < 0.5:
            child = dict(described(*blobs[2]), platform={"os": "linux", "architecture": "amd64"})
            document = {"schemaVersion": 2, "mediaType": kinds[3], "manifests": [child]}
            raw = spoiled_json(rng, document, [child]) if spot == 4 else images.to_json(document)
            blobs.append((kinds[3], raw))
        return blobs, raw, rng.random() < 0.3

    def use(case: Tuple[List[Tuple[str, bytes]], bytes, bool]) -> None:
        blobs, top, every = case
        server.pages = {images.digest_of(data): (kind, data) for kind, data in blobs}
        server.pages["1"] = server.pages[images.digest_of(top)]
        store = Store(str(folder / "store"), timeout=1)
        try:
            image = pull(name, store, platform=None if every else "linux/amd64", all_platforms=every,
                         service=service)
            for ask in (lambda: unpack(image, store, str(folder / "rootfs"), platform="linux/amd64"),
                        lambda: save([name], store, str(folder / "out.tar")),
                        lambda: copy("store:" + name, "oci:%s:x" % (folder / "to"), store=store,
                                     format="docker")):
                try:
                    cast(Callable[[], object], ask)()
                except Error:
                    pass
        finally:
            left = [problem for problem in problems(store) if problem.kind != UNVERIFIED]
            for path in ("store", "rootfs", "to"):
                shutil.rmtree(str(folder / path), ignore_errors=True)
        assert left == [], left
    return Kind(make, use)
