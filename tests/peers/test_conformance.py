# SPDX-License-Identifier: Apache-2.0
"""The checks of the distribution specification's own suite, in our words, on two registries.

Each check runs against ``minipull serve --writable`` and against docker-registry
2.8: a check that is wrong would show there.  minipull has to pass them all; what
docker-registry does otherwise stands in :data:`DEVIATIONS` and is asserted too,
so a deviation that is gone fails just as well.

A test talks over one connection that is kept alive.  So an answer whose length
is not what it says, or a HEAD that is answered with a body, spoils the next one.
"""
import base64
import gzip
import hashlib
import http.client
import json
import random
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlencode, urljoin, urlsplit

import pytest

from tests.kit.processes import Serve
from tests.kit.images import (
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, MANIFESTS, OCI_CONFIG, OCI_INDEX, OCI_LAYER,
    OCI_MANIFEST, Descriptor, parse_platform, to_json)

#: What docker-registry 2.8 does instead: by the name of the check, or of the data set.
DEVIATIONS: Dict[str, Any] = {
    # Errors.
    "GET of a malformed manifest digest": (500, "UNKNOWN"),
    "PUT of a malformed digest": (500, "UNKNOWN"),
    "as long as it says": (416, False),
    "a range that ends too early": False,
    # Uploads.
    "POST with the digest": 202,
    "a mount from anywhere": 202,
    "PATCH out of order": 202,
    "PUT out of order": (400, "DIGEST_INVALID"),
    "a chunk again": (404, "BLOB_UPLOAD_INVALID"),
    "the state at an old Location": 404,
    "a short chunk": (202, ""),
    "an unknown algorithm": (202, ""),
    "a sha512 keeps its name": False,
    "a mounted sha512": 404,
    # Manifests.
    "nondistributable_layers": (500, "UNKNOWN"),
    "sha512": (400, "DIGEST_INVALID"),
    "a manifest by sha512": (400, "DIGEST_INVALID"),
    "a manifest without a config": (400, "DIGEST_INVALID"),
    "a manifest that is not accepted": False,
    "a manifest above the limit": (400, "MANIFEST_INVALID"),
    # Tags: no pages, and no deletes.
    "tags with the manifest": False,
    "n tags": [["B", "a", "b", "c"]] * 4,
    "no tags": ["B", "a", "b", "c"],
    "tags after one": ["B", "a", "b", "c"],
    "tags after one that is not there": ["B", "a", "b", "c"],
    "n tags after one": ["B", "a", "b", "c"],
    "tags page by page": [["B", "a", "b", "c"]],
    "a page of no size": 200,
    "deleting a missing tag": (400, "DIGEST_INVALID"),
    "a tag is deleted": 400,
    "a tag alone is deleted": (400, "DIGEST_INVALID"),
    # Referrers: it knows of none.
    "OCI-Subject": False,
    "referrers of nothing": 404,
    "referrers": 404,
    "referrers counted": 404,
    "referrers in pages": 404,
    "referrers of a malformed digest": (404, ""),
}

ALGORITHMS = ("sha256", "sha512")
CHUNK = 1024
OCTETS = "application/octet-stream"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
KIND_1, KIND_2 = "application/vnd.example.first.v1", "application/vnd.example.second.v1"

#: The codes that the specification registers.
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN",
    "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"}


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return "%s:%s" % (algorithm, hashlib.new(algorithm, data).hexdigest())


def with_query(location: str, **parameters: str) -> str:
    return location + ("&" if "?" in location else "?") + urlencode(parameters)


# -- two registries ------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]  # names in lower case, values of one name joined by ", "
    body: bytes

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The first code of an error; empty for a success, or where there is no JSON."""
        if self.status < 400 or not self.headers["content-type"].startswith("application/json"):
            return ""
        return str(self.json["errors"][0]["code"])

    @property
    def outcome(self) -> Tuple[int, str]:
        return self.status, self.code


class Remote:
    """One registry and one repository of it, which is the test's own."""

    def __init__(self, name: str, host: str, test: str) -> None:
        self.name = name
        self.host = host
        self.repository = "conformance/" + re.sub("[^a-z0-9]+", "-", test.lower()).strip("-")
        self.random = random.Random(test)
        self._connection = http.client.HTTPConnection(host, timeout=30)

    def check(self, what: str, got: object, wanted: object) -> bool:
        """Assert ``got``; False if it is what docker-registry is known to do instead."""
        instead = DEVIATIONS.get(what, wanted)
        assert what not in DEVIATIONS or instead != wanted, "no deviation: " + what
        expected = instead if self.name == "docker-registry" else wanted
        assert got == expected, what
        return bool(expected == wanted)

    def ask(self, method: str, target: str, body: Union[bytes, Iterable[bytes]] = b"",
            headers: Optional[Mapping[str, str]] = None) -> Answer:
        """``target`` is a path, or a Location as it was given; no bytes go in chunks."""
        parts = urlsplit(urljoin("http://%s/" % self.host, target))
        assert (parts.scheme, parts.netloc) == ("http", self.host)
        path = parts.path + ("?" + parts.query if parts.query else "")
        self._connection.request(method, path, body, {"Accept": ", ".join(MANIFESTS), **(headers or {})})
        response = self._connection.getresponse()
        names = {name.lower() for name in response.headers}
        fields = {name: ", ".join(response.headers.get_all(name, [])) for name in names}
        try:
            answer = Answer(response.status, fields, response.read())
        except http.client.IncompleteRead as error:
            self.check("as long as it says", (response.status, False), (response.status, True))
            answer = Answer(response.status, fields, error.partial)
        if self.name == "minipull" and answer.status >= 400 and method != "HEAD":
            assert fields["content-type"] == "application/json"
            assert {error["code"] for error in answer.json["errors"]} <= CODES
        return answer

    def get(self, *parts: str, headers: Optional[Mapping[str, str]] = None) -> Answer:
        return self.ask("GET", self.path(*parts), headers=headers)

    def head(self, *parts: str) -> Answer:
        return self.ask("HEAD", self.path(*parts))

    def delete(self, *parts: str) -> Answer:
        return self.ask("DELETE", self.path(*parts))

    def path(self, *parts: str) -> str:
        return "/".join(("/v2", self.repository) + parts)

    def close(self) -> None:
        self._connection.close()

    # Uploads.

    def noise(self, size: int = 512) -> bytes:
        return self.random.randbytes(size)

    def start(self, **query: str) -> Answer:
        return self.ask("POST", with_query(self.path("blobs", "uploads", ""), **query))

    def send(self, method: str, location: str, data: bytes, first: int, end: int, digest: str = "") -> Answer:
        """One chunk, ``data[first:end]``; the last one may come with the digest."""
        target = with_query(location, digest=digest) if digest else location
        return self.ask(method, target, data[first:end], {
            "Content-Type": OCTETS, "Content-Range": "%d-%d" % (first, end - 1)})

    def finish(self, location: str, digest: str, body: Union[bytes, Iterable[bytes]] = b"") -> Answer:
        return self.ask("PUT", with_query(location, digest=digest), body, {"Content-Type": OCTETS})

    def blob(self, data: bytes, algorithm: str = "sha256") -> str:
        """Push a blob; returns its digest."""
        digest = digest_of(data, algorithm)
        assert self.finish(self.start().location, digest, data).status == 201
        return digest

    # Manifests.

    def put(self, raw: bytes, media_type: str, reference: str) -> Answer:
        return self.ask("PUT", self.path("manifests", reference), raw, {"Content-Type": media_type})

    def image(self, *tags: str) -> Tuple[str, bytes]:
        """Push an image of this test's own by its digest and by tags: its digest and bytes."""
        config = to_json({"os": "linux", "architecture": "amd64", "author": self.noise(8).hex()})
        self.blob(config)
        raw = to_json({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}})
        for reference in (digest_of(raw),) + tags:
            assert self.put(raw, OCI_MANIFEST, reference).status == 201
        return digest_of(raw), raw

    def tags(self, **query: str) -> List[str]:
        answer = self.ask("GET", with_query(self.path("tags", "list"), **query))
        assert (answer.status, answer.json["name"]) == (200, self.repository)
        # docker-registry lists them as they lie on its disk.
        return list(answer.json["tags"]) if self.name == "minipull" else sorted(answer.json["tags"])

    def pages(self, target: str) -> Iterator[Answer]:
        """Every page of a list, by the links from one to the next."""
        for _ in range(100):
            answer = self.ask("GET", target)
            yield answer
            link = re.fullmatch('<([^>]+)>; *rel="next"', answer.headers.get("link", ""))
            if link is None:
                return
            target = urljoin(target, link.group(1))
        raise AssertionError("the pages have no end")

    def referrers(self, subject: str, **query: str) -> Answer:
        return self.ask("GET", with_query(self.path("referrers", subject), **query))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    home = tmp_path_factory.mktemp("conformance")
    server = Serve(home, home / "root", "--writable")
    yield server
    server.stop()
    assert server.log.read_text() == "", "only what goes wrong in the server is logged"


@pytest.fixture(params=["minipull", "docker-registry"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    server = request.getfixturevalue("served" if request.param == "minipull" else "registry")
    remote = Remote(request.param, server.host, request.node.name)
    yield remote
    remote.close()


def test_every_known_deviation_belongs_to_a_check() -> None:
    source = Path(__file__).read_text()
    checks = set(re.findall(r'\.check\(\s*"([^"]+)"', source)) | {build.__name__ for build in DATA}
    assert set(DEVIATIONS) - checks == set()


# -- nothing there yet ---------------------------------------------------------


def test_the_base_says_that_this_is_a_registry(remote: Remote) -> None:
    assert remote.ask("GET", "/v2/").status == 200


def test_an_unknown_repository_has_no_tags(remote: Remote) -> None:
    assert remote.get("tags", "list").outcome == (404, "NAME_UNKNOWN")


def test_an_unknown_repository_has_an_empty_list_of_referrers(remote: Remote) -> None:
    answer = remote.referrers(digest_of(b"never pushed"))
    if remote.check("referrers of nothing", answer.status, 200):
        assert answer.headers["content-type"] == OCI_INDEX
        assert answer.json == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_never_pushed_is_not_found(remote: Remote, algorithm: str) -> None:
    missing = digest_of(remote.noise(), algorithm)
    wanted = {"blobs": "BLOB_UNKNOWN", "manifests": "MANIFEST_UNKNOWN"}
    for kind, reference in [("blobs", missing), ("manifests", missing), ("manifests", "missing")]:
        for _ in range(2):  # in an unknown repository, then in a known one
            head = remote.head(kind, reference)
            assert (head.status, head.body) == (404, b"")
            answer = remote.get(kind, reference)
            assert answer.outcome == (404, wanted[kind])
            gone = remote.delete(kind, reference)
            if reference == "missing":
                remote.check("deleting a missing tag", gone.outcome, (404, "MANIFEST_UNKNOWN"))
            else:
                assert gone.outcome == (404, wanted[kind])
            remote.image("known")


BAD = "sha256:totallywrong"


@pytest.mark.parametrize("bad", [BAD, "sha256:" + 64 * "A", "md5:" + 32 * "0", "sha256:" + 65 * "0"])
def test_a_malformed_digest_is_refused(remote: Remote, bad: str) -> None:
    _, raw = remote.image()
    refused = (400, "DIGEST_INVALID")
    remote.check("GET of a malformed manifest digest", remote.get("manifests", bad).outcome, refused)
    remote.check("GET of a malformed blob digest", remote.get("blobs", bad).outcome, refused)
    remote.check("PUT of a malformed digest", remote.put(raw, OCI_MANIFEST, bad).outcome, refused)
    remote.check("referrers of a malformed digest", remote.referrers(bad).outcome, refused)


# -- blobs come in -------------------------------------------------------------


def post_only(remote: Remote, data: bytes, digest: str) -> Answer:
    answer = remote.ask("POST", with_query(remote.path("blobs", "uploads", ""), digest=digest), data,
                        {"Content-Type": OCTETS})
    if answer.status == 400 or remote.check("POST with the digest", answer.status, 201):
        return answer
    assert remote.get("blobs", digest).status == 404
    return remote.finish(answer.location, digest, data)


def post_and_put(remote: Remote, data: bytes, digest: str) -> Answer:
    return remote.finish(remote.start().location, digest, data)


def post_and_streamed_put(remote: Remote, data: bytes, digest: str) -> Answer:
    return remote.finish(remote.start().location, digest, iter([data[:100], data[100:]]))


def one_chunk(remote: Remote, data: bytes, digest: str) -> Answer:
    answer = remote.send("PATCH", remote.start().location, data, 0, len(data))
    assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (len(data) - 1))
    return remote.finish(answer.location, digest)


def sized_patch(remote: Remote, data: bytes, digest: str) -> Answer:
    answer = remote.ask("PATCH", remote.start().location, data, {"Content-Type": OCTETS})
    assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (len(data) - 1))
    return remote.finish(answer.location, digest)


def streamed_patch(remote: Remote, data: bytes, digest: str) -> Answer:
    pieces = iter([data[:1], data[1:300], data[300:]])
    answer = remote.ask("PATCH", remote.start().location, pieces, {"Content-Type": OCTETS})
    assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (len(data) - 1))
    return remote.finish(answer.location, digest)


def three_chunks(remote: Remote, data: bytes, digest: str) -> Answer:
    location = remote.start().location
    for first in (0, CHUNK, 2 * CHUNK):
        end = min(first + CHUNK, len(data))
        answer = remote.send("PATCH", location, data, first, end)
        assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (end - 1))
        location = answer.location
    return remote.finish(location, digest)


def three_chunks_the_last_with_put(remote: Remote, data: bytes, digest: str) -> Answer:
    location = remote.start().location
    for first in (0, CHUNK):
        location = remote.send("PATCH", location, data, first, first + CHUNK).location
    return remote.send("PUT", location, data, 2 * CHUNK, len(data), digest)


def mount_of_nothing(remote: Remote, data: bytes, digest: str) -> Answer:
    answer = remote.start(mount=digest, **{"from": "conformance/nowhere"})
    assert answer.status == 202
    assert urlsplit(answer.location).path.startswith(remote.path("blobs", "uploads", ""))
    return remote.finish(answer.location, digest, data)


def anonymous_mount_of_nothing(remote: Remote, data: bytes, digest: str) -> Answer:
    answer = remote.start(mount=digest)
    assert answer.status == 202
    return remote.finish(answer.location, digest, data)


WAYS: List[Callable[[Remote, bytes, str], Answer]] = [
    post_only, post_and_put, post_and_streamed_put, one_chunk, sized_patch, streamed_patch,
    three_chunks, three_chunks_the_last_with_put, mount_of_nothing, anonymous_mount_of_nothing]


def assert_blob(remote: Remote, answer: Answer, data: bytes, digest: str) -> None:
    """What was just pushed is there, at its Location too, until it is deleted."""
    assert answer.status == 201
    named = answer.headers["docker-content-digest"]
    if digest.startswith("sha512") and not remote.check("a sha512 keeps its name", named == digest, True):
        digest = digest_of(data)
    assert (named, urlsplit(answer.location).path) == (digest, remote.path("blobs", digest))
    for method, target in [("GET", answer.location), ("HEAD", remote.path("blobs", digest)),
                           ("GET", remote.path("blobs", digest))]:
        answer = remote.ask(method, target)
        assert (answer.status, answer.body) == (200, data if method == "GET" else b"")
        assert answer.headers["content-length"] == str(len(data))
        assert answer.headers["docker-content-digest"] == digest
        assert answer.headers["content-type"] == OCTETS
    assert_deleted(remote, "blobs", digest)


def assert_deleted(remote: Remote, kind: str, reference: str) -> None:
    """A delete works at once, and once."""
    assert remote.delete(kind, reference).status == 202
    assert remote.head(kind, reference).status == 404
    assert remote.get(kind, reference).status == 404
    assert remote.delete(kind, reference).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_blob_comes_in_is_there_and_goes(
        remote: Remote, way: Callable[[Remote, bytes, str], Answer], algorithm: str) -> None:
    data = remote.noise(3 * CHUNK - 5)
    digest = digest_of(data, algorithm)
    assert remote.head("blobs", digest).status == 404
    assert_blob(remote, way(remote, data, digest), data, digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_blob_that_is_not_what_its_digest_says_is_refused(
        remote: Remote, way: Callable[[Remote, bytes, str], Answer], algorithm: str) -> None:
    data = remote.noise(3 * CHUNK - 5)
    wrong = digest_of(data + b"!", algorithm)
    assert way(remote, data, wrong).outcome == (400, "DIGEST_INVALID")
    for digest in (wrong, digest_of(data, algorithm)):
        assert remote.head("blobs", digest).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("data", [b"", b"{}"], ids=["nothing", "an-empty-object"])
def test_the_smallest_blobs_are_blobs(remote: Remote, data: bytes, algorithm: str) -> None:
    digest = digest_of(data, algorithm)
    assert_blob(remote, post_and_put(remote, data, digest), data, digest)


@pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:baddigeststring", "?digest=nonsense"])
def test_an_upload_without_a_proper_digest_is_refused(remote: Remote, query: str) -> None:
    location = remote.start().location
    target = location + (query.replace("?", "&") if "?" in location else query)
    assert remote.ask("PUT", target, remote.noise()).outcome == (400, "DIGEST_INVALID")


def test_an_algorithm_that_nobody_registered_is_refused(remote: Remote) -> None:
    answer = remote.start(**{"digest-algorithm": "md5"})
    remote.check("an unknown algorithm", answer.outcome, (400, "DIGEST_INVALID"))
    assert remote.start(**{"digest-algorithm": "sha512"}).status == 202


@pytest.mark.parametrize("put", [False, True], ids=["patched", "put-last"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_chunk_out_of_order_is_refused_and_the_upload_goes_on(
        remote: Remote, algorithm: str, put: bool) -> None:
    data = remote.noise(3 * CHUNK - 5)
    digest = digest_of(data, algorithm)
    location, answer = remote.start().location, None
    for held in (0, CHUNK, 2 * CHUNK):
        first = held + CHUNK if held < 2 * CHUNK else 0  # one ahead, or from the start again
        end = min(first + CHUNK, len(data))
        if put and end == len(data):
            refused = remote.send("PUT", location, data, first, end, digest)
            assert refused.status == 416
        else:
            refused = remote.send("PATCH", location, data, first, end)
            if not remote.check("PATCH out of order", refused.status, 416):
                return
        state = remote.ask("GET", location)
        assert state.status == 204
        assert re.fullmatch("0-%s" % (held - 1 if held else "[0-9]+"), state.headers["range"])
        assert state.headers["range"] == refused.headers["range"]
        end = min(held + CHUNK, len(data))
        last = put and end == len(data)
        method, name = ("PUT", digest) if last else ("PATCH", "")
        answer = remote.send(method, state.location, data, held, end, name)
        assert answer.status == (201 if last else 202)
        location = answer.location
    assert answer is not None
    assert_blob(remote, answer if put else remote.finish(location, digest), data, digest)


def test_a_last_chunk_out_of_order_is_refused_and_the_upload_goes_on(remote: Remote) -> None:
    data = remote.noise(3 * CHUNK)
    digest = digest_of(data)
    location = remote.send("PATCH", remote.start().location, data, 0, CHUNK).location
    answer = remote.send("PUT", location, data, 2 * CHUNK, 3 * CHUNK, digest)
    if remote.check("PUT out of order", answer.outcome, (416, "BLOB_UPLOAD_INVALID")):
        assert_blob(remote, remote.send("PUT", location, data, CHUNK, 3 * CHUNK, digest), data, digest)


def test_a_chunk_sent_again_is_refused_and_its_location_stays_good(remote: Remote) -> None:
    data = remote.noise(2 * CHUNK)
    before = remote.start().location
    answer = remote.send("PATCH", before, data, 0, CHUNK)
    assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (CHUNK - 1))
    again = remote.send("PATCH", before, data, 0, CHUNK)
    remote.check("a chunk again", again.outcome, (416, "BLOB_UPLOAD_INVALID"))
    state = remote.ask("GET", before)
    if remote.check("the state at an old Location", state.status, 204):
        assert state.headers["range"] == "0-%d" % (CHUNK - 1)
        answer = state
    answer = remote.send("PATCH", answer.location, data, CHUNK, 2 * CHUNK)
    assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (2 * CHUNK - 1))
    assert_blob(remote, remote.finish(answer.location, digest_of(data)), data, digest_of(data))


def test_a_chunk_that_is_not_as_long_as_its_range_is_refused(remote: Remote) -> None:
    location, data = remote.start().location, remote.noise(CHUNK)
    answer = remote.ask("PATCH", location, data, {"Content-Type": OCTETS, "Content-Range": "0-2000"})
    if remote.check("a short chunk", answer.outcome, (416, "BLOB_UPLOAD_INVALID")):
        assert remote.finish(location, digest_of(data), data).status == 201


@pytest.mark.parametrize("first", [0, 2 * CHUNK], ids=["again", "ahead"])
def test_a_streamed_chunk_is_held_to_its_range_too(remote: Remote, first: int) -> None:
    data = remote.noise(2 * CHUNK)
    location = remote.send("PATCH", remote.start().location, data, 0, CHUNK).location
    headers = {"Content-Type": OCTETS, "Content-Range": "%d-%d" % (first, first + CHUNK - 1)}
    refused = remote.ask("PATCH", location, iter([data[:CHUNK]]), headers)
    if remote.check("PATCH out of order", refused.status, 416):
        headers["Content-Range"] = "%d-%d" % (CHUNK, 2 * CHUNK - 1)
        answer = remote.ask("PATCH", refused.location, iter([data[CHUNK:]]), headers)
        assert (answer.status, answer.headers["range"]) == (202, "0-%d" % (2 * CHUNK - 1))
        assert_blob(remote, remote.finish(answer.location, digest_of(data)), data, digest_of(data))


def test_a_cancelled_upload_is_unknown(remote: Remote) -> None:
    data = remote.noise()
    answer = remote.send("PATCH", remote.start().location, data, 0, len(data))
    assert remote.ask("GET", answer.location).status == 204
    assert remote.ask("DELETE", answer.location).status == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert remote.ask(method, answer.location).outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    gone = remote.finish(answer.location, digest_of(data), data)
    assert gone.outcome == (404, "BLOB_UPLOAD_UNKNOWN")
    assert remote.head("blobs", digest_of(data)).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_blob_is_mounted_from_another_repository(remote: Remote, algorithm: str) -> None:
    data, there, here = remote.noise(), remote.repository, remote.repository + "/second"
    digest = remote.blob(data, algorithm)
    remote.repository = here
    answer = remote.start(mount=digest, **{"from": there})
    assert answer.status == 201
    if algorithm == "sha256" or remote.check("a mounted sha512", remote.head("blobs", digest).status, 200):
        assert_blob(remote, answer, data, digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_blob_is_mounted_from_wherever_it_is(remote: Remote, algorithm: str) -> None:
    data = remote.noise()
    digest = remote.blob(data, algorithm)
    remote.repository += "/second"
    answer = remote.start(mount=digest)
    if not remote.check("a mount from anywhere", answer.status, 201):
        answer = remote.finish(answer.location, digest, data)
    assert_blob(remote, answer, data, digest)


# -- ranges --------------------------------------------------------------------


@pytest.mark.parametrize("text, first, end", [
    ("500-1499", 500, 1500), ("500-", 500, 2048), ("-500", 1548, 2048), ("2000-5000", 2000, 2048),
    ("0-0", 0, 1), ("-5000", 0, 2048)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_part_of_a_blob_is_exactly_that_part(
        remote: Remote, algorithm: str, text: str, first: int, end: int) -> None:
    data = remote.noise(2048)
    digest = remote.blob(data, algorithm)
    answer = remote.get("blobs", digest, headers={"Range": "bytes=" + text})
    assert (answer.status, answer.body) == (206, data[first:end])
    assert answer.headers["content-length"] == str(end - first)
    assert answer.headers["content-range"] == "bytes %d-%d/2048" % (first, end - 1)


@pytest.mark.parametrize("text", ["500-0", "5000-10000", "2048-"])
def test_a_part_that_no_blob_has_is_refused(remote: Remote, text: str) -> None:
    digest = remote.blob(remote.noise(2048))
    answer = remote.get("blobs", digest, headers={"Range": "bytes=" + text})
    assert answer.status == 416
    told = answer.headers.get("content-range", "")
    if text != "500-0" or remote.check("a range that ends too early", told != "", True):
        assert told == "bytes */2048"


# -- data sets -----------------------------------------------------------------


class Manifest(NamedTuple):
    raw: bytes
    media_type: str
    digest: str
    subject: str


class DataSet:
    """Blobs and manifests, children first, their tags, and the referrers that follow from them."""

    def __init__(self, seed: str) -> None:
        self.algorithm = "sha256"
        self.blobs: Dict[str, bytes] = {}
        self.manifests: List[Manifest] = []
        self.tags: Dict[str, Manifest] = {}
        self.referrers: Dict[str, List[Descriptor]] = {}
        self._random = random.Random(seed)

    def describe(self, data: bytes, media_type: str) -> Descriptor:
        return {"mediaType": media_type, "digest": digest_of(data, self.algorithm), "size": len(data)}

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        described = self.describe(data, media_type)
        self.blobs[described["digest"]] = data
        return described

    def layer(self, kind: str = OCI_LAYER + "+gzip", size: int = 300) -> Descriptor:
        data = self._random.randbytes(size)
        return self.blob(gzip.compress(data, 1, mtime=0) if kind.endswith("gzip") else data, kind)

    def config(self, platform: str = "linux/amd64", kind: str = OCI_CONFIG, **members: Any) -> Descriptor:
        """As careless of its layers as the specification's suite is."""
        return self.blob(to_json({
            **parse_platform(platform), "author": self._random.randbytes(8).hex(), **members,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(b"")]}}), kind)

    def add(self, tag: str = "", **document: Any) -> Descriptor:
        raw = to_json({"schemaVersion": 2, **document})
        described = self.describe(raw, document["mediaType"])
        subject = document.get("subject", {}).get("digest", "")
        made = Manifest(raw, document["mediaType"], described["digest"], subject)
        self.manifests.append(made)
        if tag:
            self.tags[tag] = made
        if subject:
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
            entry = {"artifactType": kind, "annotations": document.get("annotations"), **described}
            self.referrers.setdefault(subject, []).append(
                {key: value for key, value in entry.items() if value is not None})
        return described

    def image(self, tag: str = "", platform: str = "linux/amd64", **members: Any) -> Descriptor:
        return self.add(tag, **{
            "mediaType": OCI_MANIFEST, "config": self.config(platform),
            "layers": [self.layer(), self.layer()], **members})

    def artifact(self, tag: str = "", kind: str = KIND_1, **members: Any) -> Descriptor:
        return self.add(tag, **{
            "mediaType": OCI_MANIFEST, "artifactType": kind, "config": self.blob(b"{}", EMPTY),
            "layers": [self.layer(kind)], **members})

    def index(self, children: List[Descriptor], tag: str = "", **members: Any) -> Descriptor:
        return self.add(tag, **{"mediaType": OCI_INDEX, "manifests": children, **members})

    def platforms(self) -> List[Descriptor]:
        return [{**self.image(platform=name), "platform": parse_platform(name)}
                for name in ("linux/amd64", "linux/arm64")]

    def notes(self) -> Dict[str, str]:
        return {"org.example.note": "a referrer", "org.example.unique": self._random.randbytes(8).hex()}


def image(data: DataSet) -> None:
    data.image("image")


def image_uncompressed(data: DataSet) -> None:
    data.image("plain", layers=[data.layer(OCI_LAYER), data.layer(OCI_LAYER)])


def large_manifest(data: DataSet) -> None:
    data.image("large", annotations={"org.example.%d" % n: "A" * 10000 for n in range(390)})


def index(data: DataSet) -> None:
    data.index(data.platforms(), "index")


def nested_index(data: DataSet) -> None:
    data.index([data.index(data.platforms()), data.index(data.platforms())], "nested")


def empty_index(data: DataSet) -> None:
    data.index([], "empty", annotations=data.notes())


def artifact(data: DataSet) -> None:
    data.artifact("artifact")


def artifact_index(data: DataSet) -> None:
    data.index([data.artifact(), data.artifact()], "artifacts", artifactType=KIND_1)


def artifact_without_layers(data: DataSet) -> None:
    data.artifact("bare", layers=[data.blob(b"{}", EMPTY)])


def artifacts_with_subject(data: DataSet) -> None:
    subject = data.image("image")
    data.image(subject=subject)  # its type is its config's
    data.artifact("first", subject=subject, annotations=data.notes())
    data.artifact("second", KIND_2, subject=subject, annotations=data.notes())


def index_with_subject(data: DataSet) -> None:
    subject = data.index(data.platforms(), "index")
    data.index([data.artifact(), data.artifact()], "artifacts", artifactType=KIND_1, subject=subject,
               annotations=data.notes())
    data.index([], subject=subject)  # of no type


def missing_subject(data: DataSet) -> None:
    subject = data.describe(b"never pushed " + data.notes()["org.example.unique"].encode(), OCI_MANIFEST)
    data.artifact("lonely", subject=subject, annotations=data.notes())


def data_field(data: DataSet) -> None:
    config, layer = data.config(), data.layer()
    for described in (config, layer):
        described["data"] = base64.b64encode(data.blobs[described["digest"]]).decode()
    data.image("data", config=config, layers=[layer])


def nondistributable_layers(data: DataSet) -> None:
    layers = [data.layer(NONDISTRIBUTABLE + "+gzip"), data.layer(NONDISTRIBUTABLE), data.layer()]
    for described in layers[:2]:
        del data.blobs[described["digest"]]
        described["urls"] = ["https://store.example.com/" + described["digest"]]
    data.image("elsewhere", layers=layers)


def custom_fields(data: DataSet) -> None:
    extra: Dict[str, Any] = {"org.example.extra": {"nested": [1, 2.5, None, "\u00e4"]}}
    child = data.image(config=data.config(**extra), layers=[{**data.layer(), **extra}], **extra)
    data.index([{**child, **extra}], "custom", **extra)


def no_layers(data: DataSet) -> None:
    data.image("none", layers=[])


def docker_schema_2(data: DataSet) -> None:
    child = data.add(mediaType=DOCKER_MANIFEST, config=data.config(kind=DOCKER_CONFIG),
                     layers=[data.layer(DOCKER_LAYER + ".gzip")])
    data.add("list", mediaType=DOCKER_LIST, manifests=[
        {**child, "platform": parse_platform("linux/amd64")}])


def sha512(data: DataSet) -> None:
    data.algorithm = "sha512"
    subject = data.index(data.platforms())
    data.artifact(subject=subject)


DATA: List[Callable[[DataSet], None]] = [
    image, image_uncompressed, large_manifest, index, nested_index, empty_index, artifact, artifact_index,
    artifact_without_layers, artifacts_with_subject, index_with_subject, missing_subject, data_field,
    nondistributable_layers, custom_fields, no_layers, docker_schema_2, sha512]


@pytest.mark.parametrize("build", DATA, ids=lambda build: build.__name__)
def test_a_data_set_comes_in_is_there_and_goes(remote: Remote, build: Callable[[DataSet], None]) -> None:
    data = DataSet(remote.repository)
    build(data)
    for digest, blob in data.blobs.items():
        assert remote.blob(blob, data.algorithm) == digest
    for made in data.manifests:
        answer = remote.put(made.raw, made.media_type, made.digest)
        if not remote.check(build.__name__, answer.outcome, (201, "")):
            return
        assert_pushed(remote, answer, made)
    for tag, made in data.tags.items():
        assert_pushed(remote, remote.put(made.raw, made.media_type, tag), made)
    if data.tags:
        assert remote.tags() == sorted(data.tags)
    for reference, made in [(made.digest, made) for made in data.manifests] + list(data.tags.items()):
        assert_manifest(remote.head("manifests", reference), made, b"")
        assert_manifest(remote.get("manifests", reference), made, made.raw)
    for subject, wanted in data.referrers.items():
        assert_referrers(remote, subject, wanted)
    for tag in data.tags:
        answer = remote.delete("manifests", tag)
        if remote.check("a tag is deleted", answer.status, 202):
            assert remote.head("manifests", tag).status == 404
    for made in reversed(data.manifests):
        assert_deleted(remote, "manifests", made.digest)
    for digest in data.blobs:
        assert_deleted(remote, "blobs", digest)
    for subject in data.referrers:
        assert_referrers(remote, subject, [])


def assert_pushed(remote: Remote, answer: Answer, made: Manifest) -> None:
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == made.digest
    subject = answer.headers.get("oci-subject", "")
    if not made.subject or remote.check("OCI-Subject", subject != "", True):
        assert subject == made.subject
    assert_manifest(remote.ask("GET", answer.location), made, made.raw)


def assert_manifest(answer: Answer, made: Manifest, body: bytes) -> None:
    assert (answer.status, answer.headers["content-type"]) == (200, made.media_type)
    assert answer.headers["content-length"] == str(len(made.raw))
    assert answer.headers["docker-content-digest"] == made.digest
    assert answer.body == body


def assert_referrers(remote: Remote, subject: str, wanted: List[Descriptor]) -> None:
    """All that refer to ``subject``, and those of each type alone."""
    answer = remote.referrers(subject)
    if not remote.check("referrers", answer.status, 200):
        return
    kinds = {described.get("artifactType", "") for described in wanted} | {"application/vnd.example.none"}
    for kind in ["", *sorted(kinds - {""})]:
        if kind:
            answer = remote.referrers(subject, artifactType=kind)
        assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
        assert answer.headers.get("oci-filters-applied") == ("artifactType" if kind else None)
        found = answer.json
        assert (found["schemaVersion"], found["mediaType"]) == (2, OCI_INDEX)
        expected = [item for item in wanted if kind in ("", item.get("artifactType"))]
        assert by_digest(found["manifests"]) == by_digest(expected)


def by_digest(descriptors: List[Descriptor]) -> List[Descriptor]:
    return sorted(descriptors, key=lambda described: str(described["digest"]))


# -- manifests -----------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_manifest_that_is_not_what_its_digest_says_is_refused(remote: Remote, algorithm: str) -> None:
    _, raw = remote.image()
    changed = raw + b"  "
    answer = remote.put(changed, OCI_MANIFEST, digest_of(raw, algorithm))
    assert answer.outcome == (400, "DIGEST_INVALID")
    for bad in (digest_of(raw, "sha512"), digest_of(changed), digest_of(changed, "sha512")):
        assert remote.head("manifests", bad).status == 404


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]",
    to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [], "manifests": []}),
], ids=["empty", "cut", "array", "index", "both"])
def test_what_is_no_image_manifest_is_not_taken_as_one(remote: Remote, body: bytes) -> None:
    assert remote.put(body, OCI_MANIFEST, "bad").outcome == (400, "MANIFEST_INVALID")
    assert remote.head("manifests", "bad").status == 404


def test_a_manifest_without_a_config_is_refused(remote: Remote) -> None:
    answer = remote.put(b'{"schemaVersion":2}', OCI_MANIFEST, "bad")
    remote.check("a manifest without a config", answer.outcome, (400, "MANIFEST_INVALID"))
    assert remote.head("manifests", "bad").status == 404


def test_a_manifest_comes_as_it_is_whatever_is_accepted(remote: Remote) -> None:
    _, raw = remote.image("tag")
    answer = remote.get("manifests", "tag", headers={"Accept": "text/plain"})
    remote.check("a manifest that is not accepted", answer.body == raw, True)


def test_a_manifest_is_as_large_as_the_limit_and_no_larger(remote: Remote) -> None:
    limit = 8 << 20 if remote.name == "minipull" else 4 << 20
    _, raw = remote.image()
    large = raw + b" " * (limit - len(raw))
    assert remote.put(large, OCI_MANIFEST, "large").status == 201
    answer = remote.put(large + b" ", OCI_MANIFEST, "larger")
    remote.check("a manifest above the limit", answer.outcome, (413, "SIZE_INVALID"))
    assert remote.tags() == ["large"]


@pytest.mark.parametrize("lost", ["config", "layer", "child"])
def test_a_manifest_needs_what_it_names(remote: Remote, lost: str) -> None:
    data = DataSet(remote.repository)
    config, layer = data.config(), data.layer()
    child = data.image(config=config, layers=[layer])
    data.index([child], "index")
    skipped = {"config": config, "layer": layer, "child": child}[lost]["digest"]
    for digest, blob in data.blobs.items():
        if digest != skipped:
            remote.blob(blob)
    made = data.manifests[1 if lost == "child" else 0]
    answer = remote.put(made.raw, made.media_type, made.digest)
    assert answer.status in (400, 404)
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    assert remote.head("manifests", made.digest).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tags_may_come_with_the_manifest(remote: Remote, algorithm: str) -> None:
    _, raw = remote.image("there")
    digest, names = digest_of(raw, algorithm), ["t%d" % n for n in range(10)]
    reference = digest + "?" + "&".join("tag=" + name for name in names)
    answer = remote.put(raw, OCI_MANIFEST, reference)
    if algorithm == "sha512" and not remote.check("a manifest by sha512", answer.outcome, (201, "")):
        return
    assert answer.status == 201
    if remote.check("tags with the manifest", "oci-tag" in answer.headers, True):
        assert answer.headers["oci-tag"].split(", ") == names
        assert remote.tags() == sorted(names + ["there"])
        for name in names:
            assert remote.head("manifests", name).headers["docker-content-digest"] == digest


# -- tags ----------------------------------------------------------------------


def test_a_list_of_tags_comes_in_pages(remote: Remote) -> None:
    names = ["B", "a", "b", "c"]
    remote.image(*reversed(names))
    assert remote.tags() == names
    remote.check("n tags", [remote.tags(n=str(n)) for n in range(1, 5)], [names[:n] for n in range(1, 5)])
    remote.check("no tags", remote.tags(n="0"), [])
    remote.check("tags after one", remote.tags(last="a"), ["b", "c"])
    remote.check("tags after one that is not there", remote.tags(last="aa"), ["b", "c"])
    remote.check("n tags after one", remote.tags(n="1", last="a"), ["b"])
    target, found = with_query(remote.path("tags", "list"), n="1"), []
    for answer in remote.pages(target):
        found.append(answer.json["tags"] if "link" in answer.headers else sorted(answer.json["tags"]))
    remote.check("tags page by page", found, [[name] for name in names])


@pytest.mark.parametrize("n", ["-1", "many", "1.5"])
def test_a_page_of_no_size_is_refused(remote: Remote, n: str) -> None:
    remote.image("there")
    answer = remote.ask("GET", with_query(remote.path("tags", "list"), n=n))
    remote.check("a page of no size", answer.status, 400)


def test_a_tag_moves_and_the_manifest_stays(remote: Remote) -> None:
    first, raw = remote.image("tag")
    second, _ = remote.image("tag")
    assert remote.head("manifests", "tag").headers["docker-content-digest"] == second
    assert remote.get("manifests", first).body == raw
    assert remote.tags() == ["tag"]


def test_a_deleted_tag_leaves_the_manifest_and_its_other_tags(remote: Remote) -> None:
    digest, raw = remote.image("stays", "goes")
    answer = remote.delete("manifests", "goes")
    if remote.check("a tag alone is deleted", answer.outcome, (202, "")):
        assert remote.head("manifests", "goes").status == 404
        assert remote.tags() == ["stays"]
    for reference in ("stays", digest):
        assert remote.get("manifests", reference).body == raw


def test_a_deleted_manifest_takes_its_tags_along(remote: Remote) -> None:
    digest, _ = remote.image("one", "two")
    remote.image("other")
    assert remote.delete("manifests", digest).status == 202
    assert remote.tags() == ["other"]
    for reference in (digest, "one", "two"):
        assert remote.head("manifests", reference).status == 404
        assert remote.get("manifests", reference).outcome == (404, "MANIFEST_UNKNOWN")


# -- referrers -----------------------------------------------------------------


def test_every_referrer_is_counted_once(remote: Remote) -> None:
    data = DataSet(remote.repository)
    subject, lonely = data.image("image"), data.image("lonely")
    never = data.describe(remote.noise(), OCI_MANIFEST)
    for kind in (KIND_1, KIND_1, KIND_2):
        data.artifact(kind=kind, subject=subject, annotations=data.notes())
    data.image(subject=subject)
    data.index([], subject=subject, artifactType=KIND_2)
    data.artifact(subject=never)
    for blob in data.blobs.values():
        remote.blob(blob)
    for made in data.manifests:
        assert remote.put(made.raw, made.media_type, made.digest).status == 201
    for described, kind, wanted in [
            (subject, "", 5), (subject, KIND_1, 2), (subject, KIND_2, 2), (subject, OCI_CONFIG, 1),
            (subject, "application/vnd.example.none", 0), (never, "", 1), (lonely, "", 0)]:
        query = {"artifactType": kind} if kind else {}
        answer = remote.referrers(described["digest"], **query)
        if remote.check("referrers counted", answer.status, 200):
            assert len(answer.json["manifests"]) == wanted
    for made in reversed(data.manifests):
        assert remote.delete("manifests", made.digest).status == 202


def test_a_long_list_of_referrers_comes_in_pages_that_a_client_takes(remote: Remote) -> None:
    data = DataSet(remote.repository)
    subject = data.describe(remote.noise(), OCI_MANIFEST)
    config = data.config()
    for _ in range(20):
        notes = {**data.notes(), "org.example.long": "A" * 240000}
        data.image(subject=subject, config=config, layers=[], annotations=notes)
    remote.blob(data.blobs[config["digest"]])
    for made in data.manifests:
        assert remote.put(made.raw, made.media_type, made.digest).status == 201
    answer = remote.referrers(subject["digest"])
    if not remote.check("referrers in pages", answer.status, 200):
        return
    found: List[Descriptor] = []
    for answer in remote.pages(remote.path("referrers", subject["digest"])):
        assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
        assert len(answer.body) < 4 << 20
        found += answer.json["manifests"]
    assert by_digest(found) == by_digest(data.referrers[subject["digest"]])
