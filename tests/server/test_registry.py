# SPDX-License-Identifier: Apache-2.0
"""The registry: who may do what, and what is kept of the manifests that came.

The requests of well-behaved clients stand in tests/peers/test_conformance; here are the others.
"""
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Tuple
from urllib.parse import parse_qsl, urlsplit

import pytest

import minipull
from minipull.digest import Digest
from minipull.image import descriptor, walk
from minipull.reference import Reference
from minipull.server import catalog, registry as module
from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit import ROOT
from tests.kit.images import (
    DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, digest_of,
    multi_platform, push_layout_http, single, to_json)
from tests.kit.processes import run, short_folder, wait_until
from tests.kit.site import (
    ABSENT, DATA, NOBODY, OCTETS, Site, Start, children, described, half_sent, index_of, path_of, snapshot)
from tests.kit.stores import ENV, problems

pytestmark = pytest.mark.usefixtures("quick_stop")


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
def test_an_unsupported_method_is_answered_with_the_allowed_ones(
        site: Site, method: str, path: str, allow: str) -> None:
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
from tests.kit.site import Site
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
def test_if_none_match_saves_sending_a_manifest_again(site: Site, condition: str, status: int) -> None:
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


def _nest(site: Site, depth: int) -> bytes:
    raw = index_of()
    for _ in range(depth):
        raw = children(site, OCI_INDEX, raw)
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
    "layer of two sizes": (lambda site: site.manifest(layers=[
        described(site.push("twice")), {**described(site.push("twice")), "size": 4}]),
        (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost config": (lambda site: site.manifest(config=described(b"lost", OCI_CONFIG)),
                    (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost child": (lambda site: index_of(described(b"lost")), (404, "MANIFEST_BLOB_UNKNOWN")),
    "child of another size": (lambda site: index_of(described(site.push("child")), {
        **described(site.push("child")), "size": 1}), (400, "MANIFEST_INVALID")),
    "lost grandchild": (lambda site: children(site, OCI_INDEX, index_of(described(b"lost"))),
                        (404, "MANIFEST_BLOB_UNKNOWN")),
    "lost under two types": (lambda site: index_of(*(
        {**site.blob(index_of(described(b"lost"))), "mediaType": kind} for kind in (OCTETS, OCI_INDEX))),
        (404, "MANIFEST_BLOB_UNKNOWN")),
    "child of another kind": (lambda site: children(site, OCI_MANIFEST, index_of()),
                              (400, "MANIFEST_INVALID")),
    "child that is none": (lambda site: children(site, OCI_MANIFEST, b"{}"), (400, "MANIFEST_INVALID")),
    "child too large": (lambda site: children(site, OCI_INDEX, index_of() + b" " * (8 << 20)),
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


def test_foreign_layers_need_not_be_in_the_store(site: Site) -> None:
    lost = described(b"elsewhere")
    foreign = {**lost, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
               "urls": ["https://a/b"]}
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


def test_gc_and_other_commands_work_with_every_manifest_that_was_accepted(
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
def test_a_page_has_the_names_after_last_up_to_n(tagged: Site, query: str, wanted: List[str]) -> None:
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


def test_a_list_is_cut_without_n_too(tagged: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_PAGE", 4)
    for query in ("", "?n=100"):
        assert [len(page) for page in pages(tagged, "/v2/app/tags/list" + query, "tags")] == [4, 4, 1]


def test_the_catalogue_names_what_can_be_asked_for(site: Site) -> None:
    raw = site.manifest()
    for repository, ns in (
            ("app", ""), ("team/app", ""), ("library/alpine", "docker.io"), ("app", "x.example:5"),
            ("only", "x.example:5")):
        assert site.put(raw, "1", repository, "?ns=" + ns).status == 201
    names = ["app", "docker.io/library/alpine", "only", "team/app"]  # no client can write x.example:5/app
    assert [name for page in pages(site, "/v2/_catalog?n=1", "repositories") for name in page] == names
    for name in names:
        assert site.ask("GET", "/v2/%s/manifests/1" % name).body == raw
        assert site.ask("GET", "/v2/%s/tags/list" % name).json == {"name": name, "tags": ["1"]}
    assert list(pages(site, "/v2/_catalog?ns=docker.io&n=1", "repositories")) == [["library/alpine"]]
    assert list(pages(site, "/v2/_catalog?ns=x.example:5", "repositories")) == [["app", "only"]]
    assert list(pages(site, "/v2/library/alpine/tags/list?ns=docker.io&n=1", "tags")) == [["1"]]


def test_a_link_repeats_the_query_and_nothing_else(tagged: Site) -> None:
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


def test_a_referrer_that_no_list_can_hold_is_left_out(site: Site) -> None:
    subject = described(b"never pushed")
    good = site.push("good", "good", subject=subject)
    bad = site.manifest("bad", subject=subject, annotations={"x": 5})
    with site.store.writing():  # as a pull does, which takes it
        site.store.content.put(Digest(digest_of(bad)), bad)
        site.store.references.set(Reference.of("localhost/app:bad"), descriptor.Descriptor(
            OCI_MANIFEST, Digest(digest_of(bad)), len(bad)), Digest(digest_of(bad)))
    assert [item["digest"] for item in referrers(site, subject["digest"])] == [digest_of(good)]
    assert site.ask("GET", "/v2/app/manifests/bad").body == bad


def test_a_referrer_that_could_not_be_read_is_read_again(site: Site) -> None:
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


def test_names_given_by_other_commands_hide_no_referrer(site: Site) -> None:
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
