# SPDX-License-Identifier: Apache-2.0
"""Blobs at the registry, and the sessions by which they come in."""
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import pytest

from minipull import files
from minipull.server import blobs
from minipull.store.store import Store
from tests.kit.images import digest_of
from tests.kit.processes import Serve, wait_until
from tests.kit.site import ABSENT, DATA, NOBODY, Site, append, finish, half_sent
from tests.kit.stores import problems

pytestmark = pytest.mark.usefixtures("quick_stop")


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
def test_a_range_request_gets_exactly_that_part_of_a_blob(
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
def test_bytes_that_arrived_before_a_client_left_are_kept(site: Site, method: str, gone: str) -> None:
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


def test_a_second_writer_is_refused_with_the_state_of_the_upload(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BUSY", 0.05)
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


def test_the_size_of_an_upload_is_bounded_however_it_is_sent(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_BLOB", 1000)
    location = site.session()
    for body in (DATA[:1001], iter([DATA[:700], DATA[700:1001]])):
        assert site.ask("PATCH", location, body).outcome == (413, "SIZE_INVALID")
    assert site.held(location) == "0-699"
    assert site.ask("POST", "/v2/app/blobs/uploads/?digest=" + digest_of(DATA), DATA).status == 413
    finish(site, location, DATA[:1000], DATA[700:1000])


def test_a_full_disk_is_507_and_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    location, kept = site.session(), site.push()
    monkeypatch.setattr(blobs, "RESERVE", 1 << 62)
    monkeypatch.setattr(blobs, "_CHECK_EVERY", 5000)
    for method, path, pieces in (
            ("POST", "/v2/app/blobs/uploads/", [b""]), ("PATCH", location, [DATA[:4000], DATA[4000:6000]]),
            ("PUT", "/v2/app/manifests/2", [kept]), ("PUT", "/v2/app/manifests/" + digest_of(kept), [kept])):
        answer = site.ask(method, path, iter(pieces))
        assert answer.outcome == (507, "UNKNOWN") and str(site.root).encode() not in answer.body
        assert str(site.root) in site.trouble()[-1]
    assert site.held(location) == "0-3999" and site.names() == ["localhost/app:1"]
    assert site.ask("DELETE", "/v2/app/manifests/" + digest_of(kept)).status == 202  # which makes room
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


def test_the_number_of_uploads_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_SESSIONS", 1)
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
