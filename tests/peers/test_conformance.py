# SPDX-License-Identifier: Apache-2.0
"""The checks of the distribution specification's own suite, in our words, on two registries.

Each check runs against ``minipull serve --writable`` and against docker-registry
2.8: a check that is wrong would show there.  minipull has to pass them all; what
docker-registry does otherwise stands in :data:`DEVIATIONS` and is asserted too,
so a deviation that is gone fails just as well.

A test talks over one connection that is kept alive.  So an answer whose length
is not what it says, or a HEAD that is answered with a body, spoils the next one.
"""
import re
from typing import Callable, List
from urllib.parse import urlsplit

import pytest

from tests.kit import ROOT
from tests.kit.conformance import (
    ALGORITHMS, CHUNK, DEVIATIONS, OCTETS, Answer, Remote, assert_deleted, digest_of, with_query)
from tests.kit.datasets import DATA
from tests.kit.images import OCI_INDEX, OCI_MANIFEST


def test_every_known_deviation_belongs_to_a_check() -> None:
    source = "".join(path.read_text() for path in ROOT.glob("tests/*/*conformance*.py"))
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
def test_an_unknown_manifest_or_blob_is_not_found(remote: Remote, algorithm: str) -> None:
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
