# SPDX-License-Identifier: Apache-2.0
"""What a repository hands out is what was asked for; whatever a server sends, an error is ours."""
import hashlib
import json
import random
import re
import sys
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from tests.kit import DATA
from minipull.registry import v2 as module
from minipull.registry import transport as transport_module
from minipull.registry.auth import Credential
from minipull.registry.credentials import Credentials
from minipull.digest import Digest
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.errors import ContentMismatch, Error, InvalidDocument, NetworkError, NotInBuild, PolicyError, Unauthorized
from minipull.registry.errors import RegistryError
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.registry.v2 import Repository
from minipull.cancel import Cancel
from tests.kit.certificates import Certificates
from tests.kit.tokens import TokenAuth
from tests.kit.servers import (
    Action, Connection, ScriptedServer, Uploads, challenge, close, content, error, redirect, reply, send)

pytestmark = pytest.mark.usefixtures("no_repeats")

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
BLOB = b"0123456789"
MANIFEST = b'{"schemaVersion": 2}'
OCI = "application/vnd.oci.image.manifest.v1+json"


def digest(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest("%s:%s" % (algorithm, hashlib.new(algorithm, data).hexdigest()))


Made = Callable[..., Repository]


@pytest.fixture
def make() -> Iterator[Made]:
    clients: List[Client] = []

    def call(server: ScriptedServer, name: str = "r.com/a/b", mirror: bool = False,
             credentials: Optional[Credentials] = None, service: Optional[RegistryService] = None,
             push: bool = False, path: str = "") -> Repository:
        clients.append(Client(service or RegistryService(timeout=2), credentials or Credentials()))
        endpoint = Endpoint(server.url + path, server.host if mirror else name.partition("/")[0], mirror)
        return clients[-1].repository(endpoint, Reference.parse(name), push)
    yield call
    for client in clients:
        client.__exit__()


@pytest.fixture
def repository(make: Made, server: ScriptedServer) -> Repository:
    return make(server)


def read(repository: Repository, data: bytes = BLOB, offset: int = 0) -> Tuple[int, bytes]:
    with repository.blob(digest(data), offset, Cancel()) as response:
        return response.status, response.read(1 << 20)


# -- manifests -----------------------------------------------------------------


def test_a_manifest_comes_with_its_type_and_digest(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "/v2/a/b/manifests/", content(MANIFEST, OCI))
    for reference in ("tag", digest(MANIFEST)):
        received = repository.manifest(reference, Cancel())
        assert [*received] == [MANIFEST, OCI, digest(MANIFEST)]
    assert [request.target for request in server.requests] == [
        "/v2/a/b/manifests/tag", "/v2/a/b/manifests/" + digest(MANIFEST)]
    assert OCI in server.requests[0].headers["accept"]
    assert repository.answered


def test_a_manifest_by_tag_needs_no_digest_from_the_registry(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, MANIFEST))
    assert [*repository.manifest("tag", Cancel())] == [MANIFEST, "", digest(MANIFEST)]


def test_a_manifest_keeps_the_digest_that_it_was_asked_by(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, MANIFEST, {"Docker-Content-Digest": digest(MANIFEST)}))
    wanted = digest(MANIFEST, "sha512")
    assert repository.manifest(wanted, Cancel()).digest == wanted


@pytest.mark.parametrize("reference, header", [
    ("tag", digest(b"other")), ("tag", digest(b"other", "sha512")), (digest(b"other"), ""),
    (digest(b"other"), digest(MANIFEST)), (digest(b"other"), digest(b"other")),
])
def test_a_manifest_that_does_not_match_its_digest_is_an_error(
        repository: Repository, server: ScriptedServer, reference: str, header: str) -> None:
    server.on("GET", "", reply(200, MANIFEST, {"Docker-Content-Digest": header}))
    with pytest.raises(ContentMismatch, match="manifest verification failed"):
        repository.manifest(reference, Cancel())


@pytest.mark.parametrize("header", ["md5:0", "sha256:../../etc/passwd", "x", "sha256:" + "0" * 64 + ", x"])
def test_a_malformed_digest_header_is_told_and_passed_over(make: Made, server: ScriptedServer, header: str) -> None:
    server.on("GET", "", reply(200, MANIFEST, {"Docker-Content-Digest": header}))
    warnings: List[str] = []
    repository = make(server, service=RegistryService(warn=warnings.append))
    assert repository.manifest("tag", Cancel()).digest == digest(MANIFEST)
    assert len(warnings) == 1 and "malformed Docker-Content-Digest" in warnings[0] and header in warnings[0]
    assert repository.manifest(digest(MANIFEST), Cancel()).digest == digest(MANIFEST)
    with pytest.raises(ContentMismatch):
        repository.manifest(digest(b"other"), Cancel())
    assert len(warnings) == 1


@pytest.mark.parametrize("length", [None, 1 << 40])
def test_a_manifest_has_a_limit(
        repository: Repository, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, length: Optional[int]) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST", 100000)
    server.on("GET", "", reply(200, b" " * 100000), [reply(200, b" " * 300000, length=length), close])
    assert len(repository.manifest("tag", Cancel()).raw) == 100000
    with pytest.raises(PolicyError, match="larger than 100000 bytes"):
        repository.manifest("tag", Cancel())


def test_a_tag_is_resolved_by_head(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", content(MANIFEST, OCI))
    assert repository.resolve("tag", Cancel()) == digest(MANIFEST)
    assert [request.method for request in server.requests] == ["HEAD"]


@pytest.mark.parametrize("answer", [
    error(405), error(404), error(403), error(500), reply(200, MANIFEST),
    reply(200, MANIFEST, {"Docker-Content-Digest": "md5:0"}),
])
def test_resolve_is_none_where_head_gives_no_digest(
    repository: Repository, server: ScriptedServer, answer: Action
) -> None:
    server.on("HEAD", "", answer)
    assert repository.resolve("tag", Cancel()) is None


# -- blobs ---------------------------------------------------------------------


@pytest.mark.parametrize("offset, ranges, status, body", [
    (0, True, 200, BLOB), (4, True, 206, BLOB[4:]), (9, True, 206, b"9"), (4, False, 200, BLOB),
])
def test_a_blob_comes_from_the_offset_or_from_the_start(
    repository: Repository, server: ScriptedServer, offset: int, ranges: bool, status: int, body: bytes
) -> None:
    server.on("GET", "", content(BLOB, ranges=ranges))
    assert read(repository, offset=offset) == (status, body)
    request = server.requests[0]
    assert request.target == "/v2/a/b/blobs/" + digest(BLOB)
    assert request.headers.get("range") == ("bytes=%d-" % offset if offset else None)


def test_a_blob_may_lie_elsewhere(
    make: Made, server: ScriptedServer, foreign: ScriptedServer
) -> None:
    server.on("GET", "", challenge('Basic realm="x"'), redirect(foreign.url + "/there"))
    foreign.on("GET", "", content(BLOB))
    credentials = Credentials(explicit={"r.com": Credential("user", "pass")})
    assert read(make(server, credentials=credentials), offset=4) == (206, BLOB[4:])
    assert foreign.requests[0].headers["range"] == "bytes=4-"


@pytest.mark.parametrize("text", TABLES["content_range_bad"], ids=ascii)
def test_a_range_that_was_not_asked_for_is_an_error(
    repository: Repository, server: ScriptedServer, text: str
) -> None:
    server.on("GET", "", reply(206, BLOB[4:], {"Content-Range": text} if text else {}))
    with pytest.raises(ContentMismatch, match="another range"):
        read(repository, offset=4)


@pytest.mark.parametrize("text", ["bytes 4-9/10", "bytes 4-9/*", "bytes 4-9/10\r\nContent-Range: bytes 4-9/10"])
def test_a_range_may_be_of_unknown_size(repository: Repository, server: ScriptedServer, text: str) -> None:
    server.on("GET", "", reply(206, BLOB[4:], {"Content-Range": text}))
    assert read(repository, offset=4) == (206, BLOB[4:])


def test_two_content_ranges_are_refused(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", reply(206, BLOB[4:], {"Content-Range": "bytes 4-9/10\r\nContent-Range: bytes 5-9/10"}))
    with pytest.raises(ContentMismatch, match="another range"):
        read(repository, offset=4)


def test_an_error_with_a_short_body_is_still_that_error(
    repository: Repository, server: ScriptedServer
) -> None:
    server.on("GET", "", [send(
        b"HTTP/1.1 416 Requested Range Not Satisfiable\r\nContent-Type: text/plain\r\n"
        b"Content-Range: bytes */3000\r\nContent-Length: 3000\r\n\r\ninvalid range"), close])
    with pytest.raises(RegistryError) as caught:
        read(repository, offset=3000)
    assert caught.value.status == 416


@pytest.mark.parametrize("status, body, text", [
    (404, '{"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown to registry"}]}', "blob unknown"),
    (403, '{"errors": [{"code": "DENIED", "message": "no"}]}', "denied: no"),
    (500, "x", "received unexpected HTTP status: 500"),
    (404, "{" * 1000, "error parsing HTTP 404 response body"),
    (400, "x" * (2 << 20), ""),
    (206, "x", "another range"),
    (307, "x", "unexpected HTTP status: 307"),
])
def test_an_answer_that_is_no_success_is_an_error(
    repository: Repository, server: ScriptedServer, status: int, body: str, text: str
) -> None:
    server.on("GET", "", reply(status, body, {"Content-Type": "application/json"}))
    with pytest.raises(Error) as caught:
        read(repository)
    assert text in str(caught.value) and len(str(caught.value)) < 3000


# -- foreign layers ------------------------------------------------------------


def test_a_foreign_layer_is_fetched_anonymously(make: Made, server: ScriptedServer, certificates: Certificates) -> None:
    service = RegistryService(ca_file=str(certificates.ca), timeout=2)
    credentials = Credentials(explicit={"127.0.0.2": Credential("user", "pass"), "r.com": Credential("user", "pass")})
    with ScriptedServer("127.0.0.2", certificates.context()) as other:
        repository = make(server, credentials=credentials, service=service)
        other.on("GET", "/good", content(BLOB))
        with repository.foreign_blob(other.url + "/good", 4, Cancel()) as response:
            assert response.read(100) == BLOB[4:]
        with repository.foreign_blob(other.url + "/good", 0, Cancel()) as response:
            assert (response.status, response.read(100)) == (200, BLOB)
        other.on("GET", "/ask", challenge('Basic realm="x"'))
        with pytest.raises(RegistryError, match="unauthorized"):
            repository.foreign_blob(other.url + "/ask", 0, Cancel())
        other.on("GET", "/down", redirect(server.url))
        with pytest.raises(PolicyError, match="https to http"):
            repository.foreign_blob(other.url + "/down", 0, Cancel())
        other.assert_no_credentials()
        assert len(other.requests) == 4
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://127.0.0.2/x", "ftp://127.0.0.2/x", "file:///etc/passwd", "x", "https://u@h/"])
def test_a_foreign_layer_without_https_is_refused(repository: Repository, url: str) -> None:
    with pytest.raises(PolicyError, match="refused"):
        repository.foreign_blob(url, 0, Cancel())


# -- tags ----------------------------------------------------------------------


def page(tags: object, link: str = "") -> Action:
    return reply(200, json.dumps({"name": "a/b", "tags": tags}), {"Link": link} if link else {})


def test_tags_come_in_the_registry_s_order(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "/v2/a/b/tags/list$", page(["b", "a", "c"]), page(None), page([]))
    assert repository.tags(Cancel()) == ["b", "a", "c"]
    assert repository.tags(Cancel()) == []
    assert repository.tags(Cancel()) == []


@pytest.mark.parametrize("link", [
    '</v2/a/b/tags/list?n=1&last=a>; rel="next"', '<list?n=1&last=a>;rel=next', '<?n=1&last=a>; title="x"; REL="next"',
    '<?n=0>; rel="prev", <?n=1&last=a>; rel="next"', 'URL; rel="next"',
    '<?n=1&last=a>; rel=next\r\nLink: <list?n=1&last=a>; rel=next', '<http://inner:5000/v2/a/b/tags/list?n=1&last=a>; rel=next',
    '<https://HOST/v2/a/b/tags/list?n=1&last=a>; rel=next', '<//u:p@127.0.0.2/v2/a/b/tags/list?n=1&last=a>; rel=next',
])
def test_every_page_is_read(repository: Repository, server: ScriptedServer, link: str) -> None:
    link = link.replace("URL", "<%s/v2/a/b/tags/list?n=1&last=a>" % server.url).replace("HOST", server.host)
    server.on("GET", "/tags/list$", page(["a"], link))
    server.on("GET", "last=a$", page(["b"], '<?n=0>; rel="prev"'))
    assert repository.tags(Cancel()) == ["a", "b"]
    assert server.requests[1].target == "/v2/a/b/tags/list?n=1&last=a"


@pytest.mark.parametrize("link", [
    "?n=1; rel=next", "<?n=1>", "<?n=1>; rel=next, <?n=2>; rel=next", "<?n=1>; rel=next\r\nLink: <?n=2>; rel=next",
    "<http://[::1>; rel=next", "<http://a b/>; rel=next", "</a\\b>; rel=next"])
def test_a_link_that_can_not_be_read_is_an_error(repository: Repository, server: ScriptedServer, link: str) -> None:
    server.on("GET", "", page(["a"], link))
    with pytest.raises(Error, match="malformed Link|several next pages|refused URL"):
        repository.tags(Cancel())
    assert len(server.requests) == 1


@pytest.mark.parametrize("link", ["/v2/a/b/tags/list", "?", "?n=1"])
def test_pages_that_go_in_circles_are_an_error(repository: Repository, server: ScriptedServer, link: str) -> None:
    server.on("GET", "", page(["a"], '<%s>; rel="next"' % link))
    with pytest.raises(NetworkError, match="goes in circles"):
        repository.tags(Cancel())
    assert len(server.requests) <= 3


def test_pages_without_end_are_an_error(
    repository: Repository, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_PAGES", 20)

    def act(connection: Connection) -> None:
        page([], '<?n=%d>; rel="next"' % len(server.requests))(connection)
    server.on("GET", "", act)
    with pytest.raises(NetworkError, match="goes in circles"):
        repository.tags(Cancel())
    assert len(server.requests) < 25


@pytest.mark.parametrize("link", [
    "http://127.0.0.2/x#y", "//127.0.0.2/x", "http://169.254.169.254/x", "file:///x", "https://HOST/x", "http://HOST@127.0.0.2/x"])
def test_a_next_page_is_on_the_host_that_was_asked(
        repository: Repository, server: ScriptedServer, foreign: ScriptedServer, link: str) -> None:
    server.on("GET", "", page(["a"], '<%s>; rel="next"' % link.replace("HOST", server.host)), page(["b"]))
    assert repository.tags(Cancel()) == ["a", "b"]
    assert server.requests[1].target in ("/x", "/v2/a/b/tags/list") and foreign.connections == 0


@pytest.mark.parametrize("path, links", [
    ("", ["?last=a", "http://inner/v2/a/b/tags/list?last=b&ns=r.com"]),
    ("/api/hub", ["/v2/a/b/tags/list?last=a", "/api/hub/v2/a/b/tags/list?last=b&ns=r.com"])])
def test_every_page_of_a_mirror_is_asked_with_ns_under_its_path(
        make: Made, server: ScriptedServer, path: str, links: List[str]) -> None:
    server.on("GET", "", *[page([str(number)], "<%s>; rel=next" % link) for number, link in enumerate(links)], page(["z"]))
    assert make(server, mirror=True, path=path).tags(Cancel()) == ["0", "1", "z"]
    assert [request.target for request in server.requests] == [
        path + "/v2/a/b/tags/list?" + query for query in ("ns=r.com", "last=a&ns=r.com", "last=b&ns=r.com")]


@pytest.mark.parametrize("tag", ["../x", "a\nb", "\x1b[31m", "", "-a", "a" * 129, 1, None, ["a"], {"a": 1}], ids=ascii)
def test_an_invalid_tag_is_told_and_left_out(make: Made, server: ScriptedServer, tag: object) -> None:
    server.on("GET", "", page(["b", tag, "a", tag, "b"], "<?n=1>; rel=next"), page(["a", "c", "b"]))
    warnings: List[str] = []
    assert make(server, service=RegistryService(warn=warnings.append)).tags(Cancel()) == ["b", "a", "c"]  # each once
    assert warnings == ["%s: list of tags: invalid tag %s, left out" % (server.host, ascii(tag))]


@pytest.mark.parametrize("body", ["", "[]", "null", "{", '{"tags": ["a"], "tags": ["b"]}', b"\xff", "[" * 100000,
                                  '{"tags": {"a": 1}}', '{"tags": "a"}', '{"tags": 1}', '{"tags": true}'])
def test_a_malformed_list_of_tags_is_refused(repository: Repository, server: ScriptedServer, body: Any) -> None:
    server.on("GET", "", reply(200, body))
    with pytest.raises(InvalidDocument, match="list of tags"):
        repository.tags(Cancel())


def test_a_list_of_tags_has_a_limit(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", page(["t%d" % number for number in range(100001)]), reply(200, b" " * (9 << 20)))
    with pytest.raises(PolicyError, match="more than 100000 tags"):
        repository.tags(Cancel())
    with pytest.raises(PolicyError, match="larger than"):
        repository.tags(Cancel())


@pytest.mark.parametrize("key,ask", [("tags", "tags"), ("repositories", "catalog"), ("manifests", "referrers")])
def test_the_pages_of_a_list_have_a_bound_together(
        repository: Repository, server: ScriptedServer, key: str, ask: str) -> None:
    large = json.dumps({key: [{"mediaType": OCI, "digest": digest(b"1"), "size": 1, "annotations": {"a": "x" * 3000000}}]
                        if key == "manifests" else ["x" * 3000000]})
    server.on("GET", "", *[reply(200, large, {"Link": '<?n=%d>; rel="next"' % n}) for n in range(9)])
    arguments = [digest(MANIFEST)] if ask == "referrers" else []
    with pytest.raises(PolicyError, match="or than 8388608 bytes of them"):
        getattr(repository, ask)(*arguments, Cancel())
    assert len(server.requests) == 3


def test_the_links_between_pages_have_that_bound_too(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", *[reply(200, '{"tags": []}', {"Link": '<?n=%d%s>; rel="next"' % (n, "x" * 60000)})
                           for n in range(200)])
    with pytest.raises(PolicyError, match="or than 8388608 bytes of them"):
        repository.tags(Cancel())


# -- referrers -----------------------------------------------------------------


def referring(*digests: Any, link: str = "") -> Action:
    items = [{"mediaType": OCI, "digest": digest, "size": 1, "artifactType": "a/b"} for digest in digests]
    return reply(200, json.dumps({"schemaVersion": 2, "manifests": items}), {"Link": link} if link else {})


def test_referrers_come_with_all_pages(repository: Repository, server: ScriptedServer) -> None:
    subject = digest(MANIFEST)
    server.on("GET", "/v2/a/b/referrers/%s$" % subject, referring(digest(b"1"), link='<?n=1>; rel="next"'))
    server.on("GET", "n=1$", referring(digest(b"2"), digest(b"1"), digest(b"2")))
    found = repository.referrers(subject, Cancel())
    assert found is not None and [(item.digest, item.artifact_type) for item in found] == [
        (digest(b"1"), "a/b"), (digest(b"2"), "a/b")]


@pytest.mark.parametrize("answer", [
    error(404), error(400), error(405), reply(200, "<html>"), reply(200, "[]"), referring("sha256:0"),
    reply(200, '{"manifests": [1]}'), reply(200, '{"manifests": 1}')])
def test_a_registry_without_such_a_list_has_none(
    repository: Repository, server: ScriptedServer, answer: Action
) -> None:
    server.on("GET", "", answer)
    assert repository.referrers(digest(MANIFEST), Cancel()) is None


def test_a_refused_list_of_referrers_is_an_error(repository: Repository, server: ScriptedServer) -> None:
    server.on("GET", "", error(403, "DENIED"), error(500), referring(*[digest(b"x")] * 1001))
    for text in ("denied", "500"):
        with pytest.raises(RegistryError, match=text):
            repository.referrers(digest(MANIFEST), Cancel())
    with pytest.raises(PolicyError, match="more than 1000 referrers"):
        repository.referrers(digest(MANIFEST), Cancel())


# -- writing -------------------------------------------------------------------


def test_a_blob_is_there_or_not(repository: Repository, server: ScriptedServer) -> None:
    server.on("HEAD", "", reply(200, BLOB), error(404, "BLOB_UNKNOWN"))
    assert repository.stat(digest(BLOB), Cancel()) == len(BLOB)
    assert repository.stat(digest(BLOB), Cancel()) is None
    assert server.requests[0].target == "/v2/a/b/blobs/" + digest(BLOB)


@pytest.mark.parametrize("answer, text", [
    (error(403, "DENIED"), "403"), (error(500), "500"),
    (send(b"HTTP/1.1 200 OK\r\n\r\n"), "missing content-length header for blob")])
def test_a_blob_without_size_or_access_is_an_error(
    repository: Repository, server: ScriptedServer, answer: Action, text: str
) -> None:
    server.on("HEAD", "", answer)
    with pytest.raises(RegistryError, match=text):
        repository.stat(digest(BLOB), Cancel())


def test_a_blob_is_mounted_or_an_upload_opened(repository: Repository, server: ScriptedServer) -> None:
    uploads = Uploads(server, "a/b")
    uploads.elsewhere["base/x"] = {digest(BLOB): BLOB}
    assert repository.start_upload(Cancel(), digest(BLOB), "base/x") is None
    upload = repository.start_upload(Cancel(), digest(BLOB), "other")
    assert upload is not None and upload.offset == 0 and len(uploads.sessions) == 1
    assert [request.query for request in server.requests] == [
        {"from": name, "mount": digest(BLOB)} for name in ("base/x", "other")]
    upload.abandon(Cancel())
    assert uploads.sessions == {}
    upload.abandon(Cancel())  # which it is already
    server.on("DELETE", "", close)
    upload.abandon(Cancel())


def test_without_a_mount_201_opens_an_upload_all_the_same(repository: Repository, server: ScriptedServer) -> None:
    server.on("POST", "", reply(201, headers={"Location": "/x"}))
    assert repository.start_upload(Cancel()) is not None


def test_a_manifest_is_put_as_it_is(repository: Repository, server: ScriptedServer) -> None:
    bodies: List[bytes] = []
    keep = lambda connection: bodies.append(connection.body())  # noqa: E731
    server.on("PUT", "", [keep, reply(201, headers={"OCI-Subject": digest(b"x")})], [keep, reply(201)])
    assert repository.put_manifest("tag", MANIFEST, OCI, Cancel()) is True
    assert repository.put_manifest(digest(MANIFEST), MANIFEST, OCI, Cancel()) is False
    assert bodies == [MANIFEST] * 2
    assert [(request.target, request.headers["content-type"]) for request in server.requests] == [
        ("/v2/a/b/manifests/tag", OCI), ("/v2/a/b/manifests/" + digest(MANIFEST), OCI)]


def test_a_push_asks_for_both_actions_and_a_mount_for_its_source(make: Made, server: ScriptedServer) -> None:
    auth = TokenAuth({"user": "pass"}, anonymous=())
    uploads = Uploads(server, "a/b")

    def guarded(action: Action) -> Action:
        return lambda connection: (
            action(connection) if auth.admits(connection, server.url + "/token") else None)

    server.on("POST", "/v2/", guarded(uploads.start))
    server.on("GET", "/token", auth.token)
    credentials = Credentials(explicit={"r.com": Credential("user", "pass")})
    repository = make(server, credentials=credentials, push=True)
    for mount in ("", "base", "base", ""):
        repository.start_upload(Cancel(), digest(BLOB) if mount else "", mount)
    scopes = [re.findall("scope=([^&]*)", request.target) for request in server.seen("GET", "/token")]
    ours = "repository%3Aa%2Fb%3Apull%2Cpush"
    assert scopes == [[ours], [ours, "repository%3Abase%3Apull"]]


# -- who is asked --------------------------------------------------------------


def test_a_mirror_gets_the_registrys_name_as_ns(make: Made, server: ScriptedServer) -> None:
    server.on("GET", "/manifests/", content(MANIFEST, OCI))
    server.on("GET", "/blobs/", content(BLOB))
    server.on("GET", "/tags/", page(["a"]))
    repository = make(server, "docker.io/library/alpine", mirror=True)
    repository.manifest("tag", Cancel())
    repository.resolve("tag", Cancel())
    read(repository)
    repository.tags(Cancel())
    assert [request.target for request in server.requests] == [
        "/v2/library/alpine/manifests/tag?ns=docker.io", "/v2/library/alpine/manifests/tag?ns=docker.io",
        "/v2/library/alpine/blobs/%s?ns=docker.io" % digest(BLOB), "/v2/library/alpine/tags/list?ns=docker.io"]


@pytest.mark.parametrize("mirror", [True, False])
def test_a_mirror_gets_no_credentials_but_its_own(make: Made, server: ScriptedServer, mirror: bool) -> None:
    server.on("GET", "", challenge('Basic realm="x"'), content(MANIFEST, OCI))
    explicit = {"r.com": Credential("r", "r"), "docker.io": Credential("hub", "hub")}
    repository = make(server, "r.com/a", mirror, Credentials(explicit=explicit))
    if mirror:
        with pytest.raises(Unauthorized, match="no basic auth credentials"):
            repository.manifest("tag", Cancel())
        server.assert_no_credentials()
        server.on("GET", "", challenge('Basic realm="x"'), content(MANIFEST, OCI))
        explicit = {server.host: Credential("r", "r")}
        repository = make(server, "r.com/a", mirror, Credentials(explicit=explicit))
    repository.manifest("tag", Cancel())
    assert server.requests[-1].headers["authorization"] == "Basic cjpy"


def test_a_client_has_one_repository_for_each_endpoint(server: ScriptedServer) -> None:
    with Client(RegistryService(), Credentials()) as client:
        endpoint, mirror = Endpoint(server.url, "r.com"), Endpoint(server.url, server.host, True)
        a, b = Reference.parse("r.com/a:1"), Reference.parse("r.com/b")
        first = client.repository(endpoint, a)
        assert client.repository(endpoint, Reference.parse("r.com/a:2")) is first
        assert len({id(client.repository(*key)) for key in [(endpoint, a), (endpoint, b), (mirror, a)]}) == 3
        assert client.repository(endpoint, a, push=True) is not first
        assert not first.answered


def test_plain_http_is_over_for_a_host_that_has_spoken_tls(certificates: Certificates) -> None:
    with Client(RegistryService(), Credentials()) as client:
        client.transport.spoke_tls.add(("r.com", 443))
        client.transport.spoke_tls.add(("s.com", 5000))
        assert [client.spoke_tls(Endpoint("http://" + host, host)) for host in (
            "r.com", "r.com:80", "r.com:5000", "s.com", "s.com:5000", "t.com",
        )] == [True, True, True, False, True, False]


# -- garbage -------------------------------------------------------------------

SEEDS: List[bytes] = [
    b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nDocker-Content-Digest: %s\r\nContent-Length: 20\r\n\r\n%s"
    % (OCI.encode(), digest(MANIFEST).encode(), MANIFEST),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5;x=y\r\n56789\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6\r\n\r\n456789",
    b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v2/x?a=b\r\nContent-Length: 0\r\n\r\n",
    b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm="URL/token",service="s",scope="a:b:c"\r\n'
    b"Content-Length: 2\r\n\r\n{}",
    b'HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n{"token": "abc", "expires_in": 300, "tags": null}',
    b'HTTP/1.1 200 OK\r\nLink: </v2/a/b/tags/list?n=1>; rel="next"\r\nContent-Length: 15\r\n\r\n{"tags": ["a"]}',
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 51\r\n\r\n'
    b'{"errors": [{"code": "NAME_UNKNOWN", "message": 1}]}',
]
TOKENS = [b"\r\n", b"\0", b"\xff", b"-1", b"9" * 30, b"e99", b'"', b"\\", b"<", b">", b";", b",", b"=", b"{", b"[[",
          b"]", b": ", b"\t", b"chunked", b"\r\n ", b"//[", b"%zz", b"NaN", b"\xe2\x82\xac", b"Content-Length: 3\r\n"]


def mutated(dice: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) + 1)
        kind = dice.randrange(5)
        if kind == 0:
            data[place:place + 1] = bytes([dice.randrange(256)])
        elif kind == 1:
            data[place:place] = dice.choice(TOKENS)
        elif kind == 2:
            del data[place:place + dice.randint(1, 20)]
        elif kind == 3:
            data[place:place] = data[place:place + dice.randint(1, 30)]
        else:
            del data[place:]
    return bytes(data)


def test_garbage_from_a_server_raises_only_our_errors(
    make: Made, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "MAX_RETRY_AFTER", -1.0)  # never wait
    dice = random.Random(20260101)
    answers: List[bytes] = []

    def act(connection: Connection) -> None:
        connection.body()
        connection.send(answers.pop(0) if answers else b"")
        close(connection)
    server.on(".*", "", act)
    service = RegistryService(timeout=2)
    works: List[Callable[[Repository], object]] = [
        lambda repository: repository.manifest("tag", Cancel()),
        lambda repository: repository.resolve("tag", Cancel()),
        lambda repository: read(repository),
        lambda repository: read(repository, offset=4),
        lambda repository: repository.tags(Cancel()),
    ]
    failed = 0
    repository = make(server, service=service)
    for case in range(600):
        sent = [mutated(dice, dice.choice(SEEDS)).replace(b"URL", server.url.encode())
                for _ in range(dice.randint(1, 3))]
        hosts = {host for data in sent for host in re.findall(rb"//+([^/\"?#\s]*)", data)}
        if hosts - {server.host.encode()}:
            continue  # what is mutated into another host must not be asked
        answers[:] = sent
        if case % 20 == 0:
            repository = make(server, service=service)
        try:
            dice.choice(works)(repository)
        except Error:
            failed += 1
        except Exception as exc:
            raise AssertionError("case %d: %r" % (case, sent)) from exc
    assert 250 < failed < 600


def test_a_build_without_schema_1_says_so_only_for_a_manifest_of_schema_1(
        repository: Repository, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minipull.image.schema1", None)
    server.on("GET", "/manifests/1", content(MANIFEST, OCI))
    server.on("GET", "/manifests/2", reply(200, b'{"schemaVersion": 1, "fsLayers": []}'))
    assert repository.manifest("1", Cancel()).raw == MANIFEST
    with pytest.raises(NotInBuild, match="legacy .* is not in this build"):
        repository.manifest("2", Cancel())
