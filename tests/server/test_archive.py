# SPDX-License-Identifier: Apache-2.0
"""A registry over an archive: answers as over the store that the archive was saved from, and no more than that."""
import contextlib
import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Tuple

import pytest

import minipull
from minipull.archive.reader import opened
from minipull.cancel import Cancel
from minipull.errors import StorageError
from minipull.image.descriptor import DOCKER_MANIFEST
from minipull.server.registry import serve
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import docker_members, layout_members, named, pack, plain
from tests.kit.images import Layout, digest_of
from tests.kit.processes import Serve
from tests.kit.site import NOBODY, Site, index_of
from tests.kit.stores import keep_index, text_layer

ACCEPT = {"Accept": "*/*"}


class Served(NamedTuple):
    """A store, an archive of it, and a registry over each."""
    store: Store
    path: Path
    stored: Site
    archived: Site


@pytest.fixture
def over(tmp_path: Path, quick_stop: None) -> Iterator[Callable[[Path], Site]]:
    """``over(ARCHIVE)``: a registry over an archive."""
    with contextlib.ExitStack() as stack:
        def start(path: Path) -> Site:
            archive = stack.enter_context(opened(str(path), Cancel(), in_place=True))
            site = Site(tmp_path / "none", writable=False, source=archive)
            stack.callback(site.stop)
            return site
        yield start


@pytest.fixture
def served(layout: Layout, store: Store, tmp_path: Path, over: Callable[[Path], Site]) -> Iterator[Served]:
    one = layout.image([text_layer("one"), *images.specs(1, 300000)])
    names = ["localhost/app:1", "localhost/app:2", "docker.io/library/busybox:latest"]
    for name in names:
        keep_index(store, layout, one, name)
    referrer = layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "artifactType": "text/x", "layers": [],
        "config": one.config, "subject": dict(one.descriptor)}), images.OCI_MANIFEST)
    keep_index(store, layout, images.Image(referrer, one.config, [], b""), "localhost/app:note")
    path = tmp_path / "a.tar"
    minipull.save([*names, "localhost/app:note"], store, str(path))
    stored = Site(Path(store.root), writable=False)
    try:
        yield Served(store, path, stored, over(path))
    finally:
        stored.stop()


def paths(store: Store) -> List[Tuple[str, str]]:
    """Everything that a client may ask of a registry over such a store, and a Range."""
    top = store.image("localhost/app:1").descriptor
    blobs = [item.digest for item, _ in store.walk(top)]
    asked = ["/v2/", "/v2/_catalog", "/v2/_catalog?n=1", "/v2/app/tags/list", "/v2/library/busybox/tags/list",
             "/v2/app/tags/list?n=1", "/v2/busybox/tags/list?ns=docker.io", "/v2/nope/tags/list",
             "/v2/app/manifests/1", "/v2/app/manifests/nope", "/v2/library/busybox/manifests/latest",
             "/v2/app/manifests/" + top.digest, "/v2/app/manifests/" + digest_of(b"absent"),
             "/v2/app/manifests/" + blobs[0], "/v2/app/referrers/" + top.digest,
             "/v2/app/referrers/%s?artifactType=text/y" % top.digest,
             "/v2/app/blobs/" + digest_of(b"absent"), "/v2/app/blobs/sha256:x",
             "/v2/app/blobs/uploads/" + NOBODY]
    ranges = ["", "bytes=0-9", "bytes=10-", "bytes=-5", "bytes=999999999-"]
    return [(path, "") for path in asked] + [
        ("/v2/app/blobs/" + digest, text) for digest in blobs for text in ranges]


def test_an_archive_is_served_as_its_store_is(served: Served) -> None:
    for path, text in paths(served.store):
        for method in ("GET", "HEAD"):
            headers = dict(ACCEPT, Range=text) if text else ACCEPT
            ours, theirs = (site.ask(method, path, headers=headers) for site in (served.archived, served.stored))
            for answer in (ours, theirs):
                answer.headers.pop("date")
            assert ours == theirs, (method, path, text)
    assert served.archived.trouble() == []


@pytest.mark.parametrize("method, path", [
    ("POST", "/v2/app/blobs/uploads/"), ("PATCH", "/v2/app/blobs/uploads/" + NOBODY),
    ("PUT", "/v2/app/blobs/uploads/" + NOBODY), ("DELETE", "/v2/app/blobs/uploads/" + NOBODY),
    ("PUT", "/v2/app/manifests/3"), ("DELETE", "/v2/app/manifests/1"), ("DELETE", "/v2/app/blobs/" + NOBODY)])
def test_an_archive_takes_nothing(served: Served, method: str, path: str) -> None:
    before = served.path.read_bytes()
    assert served.archived.ask(method, path, b"x").outcome == (405, "UNSUPPORTED")
    assert served.path.read_bytes() == before and not served.archived.root.exists()


def test_an_archive_is_never_served_to_be_written_to(served: Served) -> None:
    with opened(str(served.path), Cancel()) as archive, pytest.raises(StorageError, match="read-only"):
        serve(archive, port=0, writable=True)


def test_many_clients_read_one_archive(served: Served) -> None:
    blobs = [item for item, _ in served.store.walk(served.store.image("localhost/app:1").descriptor)]

    def whole(number: int) -> bool:
        digest = blobs[number % len(blobs)].digest
        return digest_of(served.archived.ask("GET", "/v2/app/blobs/" + digest).body) == digest

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(whole, range(100)))


def test_an_archive_of_docker_is_served_with_a_manifest_of_its_own(
        layout: Layout, tmp_path: Path, over: Callable[[Path], Site]) -> None:
    image = layout.image([text_layer("one"), text_layer("two")])
    path = tmp_path / "docker.tar"
    path.write_bytes(pack(docker_members(layout, {"busybox:latest": image, "demo/b:2": image})))
    site = over(path)
    answer = site.ask("GET", "/v2/library/busybox/manifests/latest")
    assert answer.headers["content-type"] == DOCKER_MANIFEST
    assert answer.headers["docker-content-digest"] == digest_of(answer.body)
    assert site.ask("GET", "/v2/demo/b/manifests/" + digest_of(answer.body)).body == answer.body
    layers = [site.ask("GET", "/v2/demo/b/blobs/" + item["digest"]).body for item in answer.json["layers"]]
    assert layers == [plain(layout, layer) for layer in image.layers]
    assert site.ask("GET", "/v2/demo/b/blobs/" + answer.json["config"]["digest"]).body == layout.read(
        image.config["digest"])
    part = site.ask("GET", "/v2/demo/b/blobs/" + digest_of(answer.body), headers={"Range": "bytes=2-5"})
    assert (part.status, part.body) == (206, answer.body[2:6])  # a document that is no member


def test_a_manifest_that_has_changed_is_not_served(served: Served) -> None:
    [listed] = json.loads(served.stored.ask("GET", "/v2/app/referrers/" + digest_of(
        served.stored.ask("GET", "/v2/app/manifests/1").body)).body)["manifests"]
    raw = served.store.content.read(served.store.image("localhost/app:1").descriptor.digest, 1 << 20)
    with open(str(served.path), "r+b") as file:
        file.seek(served.path.read_bytes().index(raw) + 5)
        file.write(b"X")
    for reference in ("1", digest_of(raw)):
        assert served.archived.ask("GET", "/v2/app/manifests/" + reference).outcome == (500, "UNKNOWN")
    assert "something else" in served.archived.trouble()[0]
    assert served.archived.ask("GET", "/v2/app/manifests/" + listed["digest"]).status == 200  # and others are


def test_an_archive_that_was_cut_ends_answers_early_and_the_server_goes_on(served: Served) -> None:
    data = served.path.read_bytes()
    top = served.store.image("localhost/app:1").descriptor
    large = max((item for item, _ in served.store.walk(top)), key=lambda item: item.size)
    start = data.index(served.store.content.read(large.digest, large.size))
    with open(str(served.path), "r+b") as file:
        file.truncate(start + 1000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        served.archived.ask("GET", "/v2/app/blobs/" + large.digest)
    assert len(caught.value.partial) == 1000
    served.path.unlink()  # a file that is replaced stays as it was for those who have it open
    assert served.archived.ask("GET", "/v2/app/tags/list").json["tags"] == ["1", "2", "note"]


def test_an_unnamed_image_is_served_by_its_digest(
        layout: Layout, tmp_path: Path, over: Callable[[Path], Site]) -> None:
    image = layout.image([text_layer("one")])
    raw = index_of({**image.descriptor, "annotations": {images.NAME: "latest"}})
    path = tmp_path / "skopeo.tar"
    path.write_bytes(pack({**layout_members(layout, [named(image)]), "index.json": raw}))
    site = over(path)
    assert site.ask("GET", "/v2/loaded/manifests/" + image.digest).body == image.raw
    assert site.ask("GET", "/v2/_catalog").json == {"repositories": ["loaded"]}


@pytest.mark.parametrize("archived", [False, True])
def test_a_client_that_stands_still_is_waited_for_as_long_as_was_asked(
        layout: Layout, store: Store, tmp_path: Path, home: Path, archived: bool) -> None:
    keep_index(store, layout, layout.image([text_layer("one")]), "localhost/app:1")
    path = tmp_path / "a.tar"
    minipull.save(["localhost/app:1"], store, str(path))
    server = Serve(home, path if archived else Path(store.root), "--timeout", "1")
    try:
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
            assert client.recv(100) == b"", "its body does not come"
    finally:
        server.stop()
