# SPDX-License-Identifier: Apache-2.0
"""The heads of an answer are told apart, and a small document is decoded where nobody asked for a coding."""
import errno
import gzip
import threading
from typing import Any, Iterator, List

import pytest

from minipull.cancel import Cancel
from minipull.errors import NetworkError, PolicyError, StorageError
from minipull.registry.auth import answer_error
from minipull.registry.endpoints import RegistryService
from minipull.registry.request import Body, Request
from minipull.registry.response import Response
from minipull.registry.transport import Transport
from tests.kit.certificates import Certificates
from tests.kit.servers import ScriptedServer, close, drip, hold, reply, send

pytestmark = pytest.mark.usefixtures("no_waiting")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </v2/>; rel=preload\r\nContent-Length: 5\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n"
LAST = b"HTTP/1.1 199 \r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE = bytes(range(251)) * 8000  # more than any buffer on its way


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = RegistryService(timeout=5).transport()
    yield made
    made.close()


def ask(transport: Transport, url: str, method: str = "GET", **more: Any) -> Response:
    return transport.send(Request(method, url, Cancel(), **more))


# -- informational answers -----------------------------------------------------------


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("heads", [
    CONTINUE, HINTS, PROCESSING, LAST, CONTINUE + HINTS, HINTS + CONTINUE, PROCESSING + LAST + HINTS,
    (CONTINUE + PROCESSING) * 50, b"HTTP/1.0 102 \n\n",
], ids=lambda heads: "%d bytes" % len(heads))
def test_informational_answers_are_skipped(
        transport: Transport, server: ScriptedServer, heads: bytes, pieces: bool) -> None:
    data = heads + b"HTTP/1.1 203 OK\r\nContent-Length: 5\r\n\r\nhello"
    server.on("GET", "", drip(data, 1 + len(data) // 7, 0.001) if pieces else send(data))
    server.on("HEAD", "", send(heads + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    for _ in range(2):
        with ask(transport, server.url) as response:
            assert (response.status, response.header("Link"), response.read(10)) == (203, "", b"hello")
        with ask(transport, server.url, "HEAD") as response:
            assert (response.status, response.read(10)) == (200, b"")
    assert server.connections == 1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("heads", [CONTINUE, HINTS, PROCESSING + CONTINUE], ids=["100", "103", "102 and 100"])
def test_informational_answers_do_not_end_a_body(certificates: Certificates, heads: bytes, tls: bool) -> None:
    bodies: List[bytes] = []
    transport = RegistryService(timeout=5, ca_file=str(certificates.ca)).transport()
    with ScriptedServer(tls=certificates.context() if tls else None) as server:
        server.on("GET", "", reply(200))
        server.on("PUT", "", [send(heads), lambda connection: bodies.append(connection.body()), reply(201)])
        ask(transport, server.url).close()
        for pieces in ([LARGE], [LARGE[:70000], LARGE[70000:]]):
            with ask(transport, server.url, "PUT", body=Body(lambda: pieces, len(LARGE))) as response:
                assert response.status == 201
        assert bodies == [LARGE, LARGE] and server.connections == 1
    transport.close()


def test_a_final_answer_after_an_informational_one_may_still_come_early(
        transport: Transport, server: ScriptedServer) -> None:
    said, read = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        yield LARGE[:1]
        assert said.wait(5)
        yield LARGE[:1]
        read.set()
        yield from [LARGE] * 40

    server.on("PUT", "", [send(CONTINUE), lambda connection: said.set(), hold(read),
                          send(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"), hold(threading.Event())])
    with ask(transport, server.url, "PUT", body=Body(pieces, 2 + 40 * len(LARGE))) as response:
        assert response.status == 413


@pytest.mark.parametrize("heads, text", [
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "switches protocols"),
    (CONTINUE + b"HTTP/1.1 101 \r\n\r\n", "switches protocols"), (b"HTTP/1.1 99 Low\r\n\r\n", "malformed"),
    (PROCESSING, "closed the connection without an answer")])
def test_another_protocol_or_no_final_answer_is_an_error(
        transport: Transport, server: ScriptedServer, heads: bytes, text: str) -> None:
    server.on("GET", "", [send(heads), close])
    with pytest.raises(NetworkError, match=text) as caught:
        ask(transport, server.url)
    assert server.host in str(caught.value)


def test_a_folded_header_is_one_line(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", send(b"HTTP/1.1 200 OK\r\nX: a\r\n \t b\r\nContent-Length:\r\n 0\r\nY: \xe9\xff\x85\r\n\r\n"))
    with ask(transport, server.url) as response:
        assert (response.header("X"), response.remaining, response.header("Y")) == ("a b", 0, "\xe9\xff\x85")


# -- codings that nobody asked for -----------------------------------------------------


TEXT = b'{"schemaVersion": 2%s}' % (b" " * 100)
ZIPPED = gzip.compress(TEXT, 9)


@pytest.mark.parametrize("coding, body", [
    ("gzip", ZIPPED), ("x-gzip", ZIPPED), ("GZip", ZIPPED), ("identity", TEXT), ("", TEXT)])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_small_document_is_decoded(
        transport: Transport, server: ScriptedServer, coding: str, body: bytes, chunked: bool) -> None:
    server.on("GET", "", reply(200, body, {"Content-Encoding": coding}, chunked=chunked))
    for _ in range(2):
        with ask(transport, server.url) as response:
            assert response.read(len(TEXT)) == TEXT
    assert server.requests[0].headers["accept-encoding"] == "identity" and server.connections == 1


@pytest.mark.parametrize("coding, body, kind", [
    ("br", TEXT, NetworkError), ("gzip, br", ZIPPED, NetworkError), ("zstd\x1b", TEXT, NetworkError),
    ("deflate", TEXT, NetworkError), ("gzip", TEXT, NetworkError), ("gzip", ZIPPED[:-1], NetworkError),
    ("gzip", ZIPPED[:9] + b"\xff" * 9, NetworkError), ("gzip", ZIPPED + b"x", NetworkError),
    ("gzip", gzip.compress(bytes(1 << 20), 9), PolicyError), ("gzip", bytes(3000), PolicyError)])
def test_a_coding_that_can_not_be_undone_is_named(
        transport: Transport, server: ScriptedServer, coding: str, body: bytes, kind: Any) -> None:
    server.on("GET", "", reply(200, body, {"Content-Encoding": coding}))
    with ask(transport, server.url) as response, pytest.raises(kind) as caught:
        response.read(2000 if kind is PolicyError else 100000)
    text = "larger than 2000 bytes" if kind is PolicyError else "Content-Encoding " + ascii(coding)[1:-1]
    assert text in str(caught.value) and server.host in str(caught.value) and not caught.value.retry


def test_a_blob_is_never_decoded(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, ZIPPED, {"Content-Encoding": "gzip"}))
    view = memoryview(bytearray(1000))
    with ask(transport, server.url) as response:
        assert bytes(view[:response.readinto(view)]) == ZIPPED


def test_an_error_is_decoded_and_one_that_can_not_be_has_its_status(
        transport: Transport, server: ScriptedServer) -> None:
    refused = gzip.compress(b'{"errors": [{"code": "DENIED", "message": "no"}]}')
    for coding, text in (("gzip", "denied: no"), ("br", "403")):
        server.on("GET", "", reply(403, refused, {"Content-Encoding": coding, "Content-Type": "application/json"}))
        assert text in str(answer_error(ask(transport, server.url)))


# -- trouble of our own ----------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_below_a_body_is_not_the_peers_fault(
        transport: Transport, server: ScriptedServer, number: int) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x"
        raise OSError(number, "bad\nsector")

    server.on("PUT", "", reply(201))
    with pytest.raises(StorageError) as caught:
        ask(transport, server.url, "PUT", body=Body(pieces, 100))
    assert "\n" not in str(caught.value)
    assert server.connections <= 1  # which need not have been accepted yet
