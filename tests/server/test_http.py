# SPDX-License-Identifier: Apache-2.0
"""A client gets the answers to what it asked and nothing else, and can hold nobody up.

Raw sockets against a small application: what is sent here no HTTP client would.
"""
import contextlib
import errno
import itertools
import json
import os
import re
import resource
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

import pytest

from tests.kit.processes import wait_until
from minipull.server import http as httpd
from minipull.errors import Error, NetworkError, StorageError
from minipull.server.message import MAX_DRAINED, Refusal, Request, Response, json_response
from minipull.cancel import Cancel

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: r\r\n\r\n"
LARGE = 4 << 20  # bytes; more than fits into both ends' buffers


class Application:
    """What it does is said by the path; it remembers who asked for what."""

    def __init__(self, root: Path) -> None:
        self.asked: List[str] = []
        self.inside: List[str] = []  # requests under way
        self.most = 0  # of them at a time
        self.files: List[BinaryIO] = []
        self.received = bytearray()  # by /keep
        self.ended: List[str] = []  # how bodies of /keep ended
        self.go_on = threading.Event()
        self.paused: Callable[[], object] = lambda: None  # after each piece of /keep
        self.content = root / "content"
        self.content.write_bytes(bytes(range(256)) * 64)

    def __call__(self, request: Request) -> Response:
        self.asked.append("%s %s" % (request.head.method, request.head.path))
        self.inside.append(request.head.path)
        self.most = max(self.most, len(self.inside))
        try:
            handler = getattr(self, "_" + request.head.path.strip("/").partition("/")[0], None)
            answer = handler(request) if handler else Response(200, [("X-Path", "none")], b"hello")
            assert isinstance(answer, Response)
            return answer
        finally:
            self.inside.remove(request.head.path)

    def _echo(self, request: Request) -> Response:
        return Response(200, (), request.body.read(1 << 20))

    def _refuse(self, request: Request) -> Response:
        raise Refusal(404, "NAME_UNKNOWN", "no")

    def _wait(self, request: Request) -> Response:
        assert self.go_on.wait(30)
        return Response(200, (), b"waited")

    def _keep(self, request: Request) -> Response:
        try:
            for piece in request.body:
                self.received += piece
                self.paused()
        except Error as exc:  # as the registry does with all of ours
            raise Refusal(500, "UNKNOWN", str(exc)) from exc
        except BaseException as exc:
            self.ended.append(type(exc).__name__)
            raise
        self.ended.append("")
        return Response(201)

    def _status(self, request: Request) -> Response:
        return json_response(int(request.head.parameter("is")), {"text": "html <b>"})

    def _nothing(self, request: Request) -> Response:
        return Response(int(request.head.parameter("is")), [("ETag", '"x"')])

    def _file(self, request: Request) -> Response:
        path = Path(request.head.parameter("path") or self.content)
        file = path.open("rb")
        self.files.append(file)
        first, count = (int(request.head.parameter(name)) for name in ("offset", "length"))
        return Response(206, (), b"", file, first, count)

    def _vast(self, request: Request) -> Response:
        return Response(200, (), bytes(LARGE * 2))

    def _boom(self, request: Request) -> Response:
        raise KeyError("two\nlines")

    def _trouble(self, request: Request) -> Response:
        status = int(request.head.parameter("is"))
        raise Refusal(status, "UNKNOWN", "no") from StorageError("the disk is full")

    def _split(self, request: Request) -> Response:
        return Response(200, [("Location", request.head.parameter("to"))], b"hello")


class Site:
    """A server that runs, and what it said."""

    def __init__(self, root: Path, timeout: float, host: str = "127.0.0.1") -> None:
        self.application = Application(root)
        self.log: List[Tuple[int, str]] = []
        self.cancel = Cancel()
        self.server = httpd.Server(host, 0, self.application, timeout,
                                   lambda status, text: self.log.append((status, text)))
        self.host, self.port = host, int(self.server.address.rpartition(":")[2])
        self._thread = threading.Thread(target=self.server.run, args=(self.cancel,), name="site")
        self._thread.start()

    def stop(self) -> None:
        self.cancel.cancel()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def trouble(self) -> List[Tuple[int, str]]:
        return [line for line in self.log if line[0] >= 500]


Start = Callable[..., Site]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(httpd, "TICK", 0.02)
    sites: List[Site] = []

    def begin(timeout: float = 20, **constants: object) -> Site:
        for name, value in constants.items():
            monkeypatch.setattr(httpd, name, value)
        sites.append(Site(tmp_path, timeout))
        return sites[-1]

    yield begin
    for site in sites:
        site.application.go_on.set()
        site.stop()


@pytest.fixture
def site(start: Start) -> Site:
    return start()


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes


class Client:
    """One connection, as rude as the test wants it."""

    def __init__(self, site: Site, *data: bytes) -> None:
        self.socket = socket.create_connection((site.host, site.port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")
        for piece in data:
            self.send(piece)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drips(self, data: bytes) -> None:
        """Send a little again and again, until there is something to read, or the end."""
        for _ in range(1000):
            if select.select([self.socket], [], [], 0.01)[0]:
                return
            self.send(data)
        raise AssertionError("the server goes on listening")

    def rest(self) -> bytes:
        return self._file.read()

    def line(self) -> str:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2].decode("ascii")

    def answer(self, method: str = "GET") -> Answer:
        """One answer, taken strictly; its body is as long as it says."""
        version, status, phrase = self.line().split(" ", 2)
        assert (version, len(status), bool(phrase)) == ("HTTP/1.1", 3, True)
        headers: Dict[str, str] = {}
        for text in iter(self.line, ""):
            name, _, value = text.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        length = int(headers.get("content-length", "0"))
        body = b"" if method == "HEAD" else self._file.read(length)
        assert len(body) == (0 if method == "HEAD" else length)
        return Answer(int(status), headers, body)

    def ended(self) -> bool:
        """Whether the server closed the connection after what was read, and properly."""
        return self._file.read(1) == b""

    def ask(self, method: str, target: str, *fields: str, body: bytes = b"", version: str = "1.1") -> Answer:
        self.send(request(method, target, *fields, body=body, version=version))
        return self.answer(method)


def request(method: str, target: str, *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = ["%s %s HTTP/%s" % (method, target, version), "Host: r", *fields]
    if body and not any(field.lower().startswith(("content-l", "transfer-e")) for field in fields):
        lines.append("Content-Length: %d" % len(body))
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def clients(*opened: Client) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for client in opened:
            stack.enter_context(client)
        yield


# -- requests, one after the other -----------------------------------------------


def test_requests_on_one_connection_are_answered_in_order(site: Site) -> None:
    stream = b"".join([
        request("GET", "/1"), request("POST", "/echo", body=b"two"), request("HEAD", "/3"),
        request("POST", "/echo", "Transfer-Encoding: chunked", body=b"4\r\nfour\r\n0\r\n\r\n"),
        request("GET", "/5", body=b"nobody reads it"), request("GET", "/6", "Connection: close")])
    for pieces in ([stream], [stream[at:at + 1] for at in range(len(stream))]):
        with Client(site, *pieces) as client:
            got = [client.answer(method) for method in ("GET", "POST", "HEAD", "POST", "GET", "GET")]
            assert [each.body for each in got] == [b"hello", b"two", b"", b"four", b"hello", b"hello"]
            assert [each.headers.get("connection") for each in got] == [None] * 5 + ["close"]
            assert client.ended()
    assert site.application.asked[6:] == site.application.asked[:6]
    assert [text for _, text in site.log[:2]] == ["GET /1 200", "POST /echo 200"]


CONTRADICTIONS: List[Tuple[int, List[str]]] = [
    (400, ["Content-Length: 5", "Transfer-Encoding: chunked"]),
    (400, ["Transfer-Encoding: chunked", "Content-Length: 5"]),
    (400, ["Content-Length: 0", "Content-Length: 5"]), (400, ["Content-Length: 0", "Content-Length: 0"]),
    (400, ["Content-Length: 0, 0"]), (400, ["Content-Length: +0"]), (400, ["Content-Length:"]),
    (400, ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"]),
    (501, ["Transfer-Encoding: identity"]), (501, ["Transfer-Encoding: chunked, chunked"]),
    (501, ["Transfer-Encoding: xchunked"]), (400, ["Transfer-Encoding : chunked"]),
    (400, [" Transfer-Encoding: chunked"]), (400, ["X: y", "\tTransfer-Encoding: chunked"]),
    (400, ["X: y\nTransfer-Encoding: chunked"]), (400, ["X: y\rTransfer-Encoding: chunked"]),
    (400, ["X: y\0z"]), (400, ["Content-Length\0: 0"]), (400, ["X"]), (400, ["Host: other"])]


@pytest.mark.parametrize("status,fields", CONTRADICTIONS, ids=[ascii(fields) for _, fields in CONTRADICTIONS])
def test_what_follows_a_broken_head_is_not_a_request(site: Site, status: int, fields: List[str]) -> None:
    with Client(site, request("POST", "/echo", *fields) + b"0\r\n\r\n" + SMUGGLED) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert json.loads(answer.body)["errors"]
        assert client.ended()
    assert site.application.asked == []
    assert site.log == [(status, "malformed request %d" % status)]


@pytest.mark.parametrize("start_line,status", [
    (b"GET /\r\n", 400), (b"GET / HTTP/0.9\r\n", 505), (b"PRI * HTTP/2.0\r\n", 505), (b"\r\n", 400),
    (b"GET / HTTP/1.1 \r\n", 400), (b"GET / HTTP/1.1\r\n", 400)],
    ids=["0.9", "as 0.9", "h2", "empty", "space", "no Host"])
def test_who_speaks_something_else_is_told_and_sent_away(site: Site, start_line: bytes, status: int) -> None:
    with Client(site, start_line + b"\r\n" + SMUGGLED) as client:
        assert client.answer().status == status
        assert client.ended()
    assert site.application.asked == []


def test_who_speaks_tls_is_told_at_once(start: Start) -> None:
    with Client(start(HEAD_SECONDS=0.1), b"\x16\x03\x01\x02\x00\x01\x00") as client:
        assert client.answer().status == 400
        assert client.ended()


@pytest.mark.parametrize("fields,body,kept", [
    ([], SMUGGLED, True),
    ([], SMUGGLED + b"x" * MAX_DRAINED, False),
    (["Transfer-Encoding: chunked"], b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), True),
    (["Transfer-Encoding: chunked"], b"0\r\nX: y\r\n\r\n", True),
    (["Transfer-Encoding: chunked"], b"\r\n" + SMUGGLED, False),
    (["Transfer-Encoding: chunked"], b"1\r\nxy\r\n" + SMUGGLED, False),
    (["Transfer-Encoding: chunked"], b"0\r\nX: y\n\n" + SMUGGLED, False),
    (["Expect: 100-continue"], SMUGGLED, False)],
    ids=["small", "large", "chunks", "no chunk", "no size", "wrong size", "bare LF", "expect"])
@pytest.mark.parametrize("path", ["/refuse", "/5"])
def test_a_body_that_nobody_read_is_not_the_next_request(
        site: Site, path: str, fields: List[str], body: bytes, kept: bool) -> None:
    with Client(site, request("POST", path, *fields, body=body)) as client:
        answer = client.answer()
        assert answer.status == (404 if path == "/refuse" else 200)
        assert answer.headers.get("connection") == (None if kept else "close")
        if kept:
            assert client.ask("GET", "/next", "Connection: close").status == 200
        assert client.ended()
    assert site.application.asked == ["POST " + path] + ["GET /next"] * kept


@pytest.mark.parametrize("body", [b"x\r\n", b"3\r\nabcd\r\n", b"0\r\n" + b"X: y\r\n" * 200, b"1" * 2000])
def test_a_broken_chunk_is_refused_and_ends_the_connection(site: Site, body: bytes) -> None:
    with Client(site, request("POST", "/echo", "Transfer-Encoding: chunked", body=body + SMUGGLED)) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert client.ended()
    assert site.application.asked == ["POST /echo"]


@pytest.mark.parametrize("fields", [["Content-Length: 7"], ["Transfer-Encoding: chunked"]])
def test_a_client_is_told_to_go_on_when_its_body_is_wanted(site: Site, fields: List[str]) -> None:
    with Client(site) as client:
        client.send(request("PUT", "/echo", "Expect: 100-continue", *fields))
        assert [client.line(), client.line()] == ["HTTP/1.1 100 Continue", ""]
        client.send(b"content" if "Content-Length: 7" in fields else b"7\r\ncontent\r\n0\r\n\r\n")
        assert client.answer().body == b"content"
        assert client.ask("GET", "/next").status == 200


def test_a_client_is_not_told_to_go_on_for_nothing(site: Site) -> None:
    with Client(site) as client:
        assert client.ask("PUT", "/echo", "Expect: 100-continue", "Content-Length: 0").status == 200
        client.send(request("PUT", "/refuse", "Expect: 100-continue", "Content-Length: 7"))
        assert client.answer().status == 404
        assert client.ended()
    with Client(site) as client:
        client.send(request("PUT", "/echo", "Expect: 100-continue", version="1.0", body=b"content"))
        assert client.answer().body == b"content"
        assert client.ended()


@pytest.mark.parametrize("head", [
    "GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET %s HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"])
@pytest.mark.parametrize("path,status", [("/", 200), ("/refuse", 404)])
def test_the_last_request_gets_the_last_answer(site: Site, head: str, path: str, status: int) -> None:
    with Client(site, (head % path).encode() + SMUGGLED) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert client.ended()
    assert site.application.asked == ["GET " + path]


# -- answers -------------------------------------------------------------------


@pytest.mark.parametrize("target,status,body", [
    ("/", 200, b"hello"), ("/refuse", 404, None), ("/status?is=416", 416, b'{"text":"html <b>"}'),
    ("/nothing?is=200", 200, b""), ("/nothing?is=204", 204, None), ("/nothing?is=304", 304, None),
    ("/file?offset=0&length=16384", 206, bytes(range(256)) * 64), ("/file?offset=250&length=9", 206, None),
    ("/file?offset=0&length=0", 206, b""), ("/file?path=/dev/null&offset=0&length=0", 206, b"")])
def test_every_answer_is_as_long_as_it_says(
        site: Site, target: str, status: int, body: Optional[bytes]) -> None:
    with Client(site) as client:
        got = client.ask("GET", target)
        head = client.ask("HEAD", target)
        assert (got.status, head.status) == (status, status)
        assert head.body == b""
        for answer in (got, head):
            answer.headers.pop("date")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        assert head.headers == got.headers
        assert ("content-length" in got.headers) == (status not in (204, 304))
        assert body is None or got.body == body
        assert client.ask("GET", "/next", "Connection: close").status == 200
        assert client.ended()
    assert [file.closed for file in site.application.files] == [True] * len(site.application.files)


def test_part_of_a_file_is_sent(site: Site) -> None:
    with Client(site) as client:
        assert client.ask("GET", "/file?offset=250&length=9").body == bytes([*range(250, 256), 0, 1, 2])


def test_a_file_that_got_shorter_ends_the_connection(site: Site) -> None:
    for offset, left in ((16000, 384), (16384, 0), (20000, 0)):
        with Client(site, request("GET", "/file?offset=%d&length=1000" % offset)) as client:
            head, _, body = client.rest().partition(b"\r\n\r\n")
            assert b"Content-Length: 1000\r\n" in head + b"\r\n"
            assert len(body) == left
    wait_until(lambda: all(file.closed for file in site.application.files), "the files")
    assert site.trouble == []


@pytest.mark.parametrize("to", ["%0d%0aX-Evil:%20y", "%0a", "%0d", "%00", "%c3%a9", "%7f"])
def test_a_header_can_not_split_an_answer(site: Site, to: str) -> None:
    with Client(site, request("GET", "/split?to=/a" + to)) as client:
        assert client.ended()
    wait_until(lambda: bool(site.log), "the log")
    [(status, text)] = site.log
    assert (status, text.startswith("internal error: ValueError: header Location: '/a")) == (500, True)
    with Client(site) as client:
        assert client.ask("GET", "/split?to=/a%20b").headers["location"] == "/a b"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_fault_is_one_line_in_the_log(site: Site, method: str) -> None:
    with Client(site) as client:
        answer = client.ask(method, "/boom")
        assert (answer.status, answer.headers["connection"]) == (500, "close")
        assert method == "HEAD" or json.loads(answer.body)["errors"][0]["message"] == "internal error"
        assert client.ended()
    assert site.log == [(500, "%s /boom 500: internal error: KeyError: 'two\\nlines'" % method)]


def test_the_cause_of_trouble_is_for_the_log_only(site: Site) -> None:
    with Client(site) as client:
        for status in (507, 404):
            assert b"disk" not in client.ask("GET", "/trouble?is=%d" % status).body
    assert site.log == [(507, "GET /trouble 507: the disk is full"), (404, "GET /trouble 404")]


def test_a_path_takes_one_line_in_the_log(site: Site) -> None:
    with Client(site) as client:
        client.ask("GET", "/a%0aGET%20/b%1b%5b2J%c2%9b%e2%80%a8")
    assert site.log == [(200, "GET /a\\nGET /b\\x1b[2J\\x9b\\u2028 200")]


def test_a_large_body_that_is_refused_does_not_drown_the_answer(site: Site) -> None:
    for fields in (["Content-Length: %d" % LARGE], ["Transfer-Encoding: chunked"]):
        body = b"%x\r\n" % LARGE + bytes(LARGE)
        with Client(site, request("PUT", "/refuse", *fields, body=body)) as client:
            answer = client.answer()
            assert (answer.status, answer.headers["connection"]) == (404, "close")
            assert client.ended()


def test_requests_after_the_last_do_not_drown_the_answer(site: Site) -> None:
    with Client(site, request("GET", "/", "Connection: close") + SMUGGLED * 10000) as client:
        assert client.answer().body == b"hello"
        assert client.ended()


def test_who_sends_without_end_after_a_refusal_is_cut_off(start: Start) -> None:
    site, data = start(GRACE=0.2), bytes(1 << 16)
    with Client(site, request("PUT", "/refuse", "Content-Length: %d" % (1 << 40))) as client:
        with pytest.raises(ConnectionError):
            for _ in range(100000):
                client.send(data)


# -- heads and bodies that take their time ----------------------------------------


def test_a_head_has_a_size(site: Site) -> None:
    rest = len(request("GET", "/", "X: ")) - 4
    with Client(site) as client:
        assert client.ask("GET", "/", "X: " + "y" * (httpd.MAX_HEAD - rest)).status == 200
        assert client.ask("GET", "/", "X: " + "y" * (httpd.MAX_HEAD - rest + 1)).status == 431
        assert client.ended()
    with Client(site, b"GET / HTTP/1.1\r\nX: " + b"y" * (httpd.MAX_HEAD + httpd.BUFFER)) as client:
        assert client.answer().status == 431
        assert client.ended()
    with Client(site) as client:
        assert client.ask("GET", "/", *["X-%d: y" % number for number in range(200)]).status == 431
    with Client(site) as client:
        assert client.ask("GET", "/?" + "n=1&" * 200).status == 400
    assert [status for status, _ in site.log] == [200, 431, 431, 431, 400]


def test_a_head_may_end_anywhere_in_the_buffer(site: Site) -> None:
    with Client(site) as client:
        for size in range(httpd.BUFFER - 80, httpd.BUFFER - 40):
            client.send(request("GET", "/", "X: " + "y" * size)[:httpd.MAX_HEAD])
            client.send(request("GET", "/", "X: " + "y" * size)[httpd.MAX_HEAD:])
            assert client.answer().status == 200


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_head_has_a_deadline_that_no_byte_puts_off(start: Start, drip: bytes) -> None:
    site = start(HEAD_SECONDS=0.1)
    with Client(site) as client:
        assert client.ask("GET", "/").status == 200
        client.send(b"GET /")
        client.drips(drip)
        assert client.answer().status == 408
    assert site.application.asked == ["GET /"]


def test_who_asks_nothing_is_let_go(start: Start) -> None:
    site = start(IDLE_SECONDS=0.05)
    with Client(site) as silent, Client(site) as client:
        assert silent.ended()
        assert client.ended()
    with Client(site) as client:
        assert client.ask("GET", "/").status == 200
        assert client.ended()
    assert [status for status, _ in site.log] == [200]


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["still", "slow"])
@pytest.mark.parametrize("fields", [["Content-Length: 100000"], ["Transfer-Encoding: chunked"]])
def test_a_body_that_stands_still_is_given_up_and_what_came_is_kept(
        start: Start, fields: List[str], drip: bytes) -> None:
    site = start(timeout=0.1)
    with Client(site, request("PUT", "/keep", *fields, body=b"186a0\r\nabc")) as client:
        client.drips(drip)
        assert client.ended()
    assert b"abc" in site.application.received
    assert site.application.ended in (["Disconnected"], ["timeout"], ["TimeoutError"])
    assert site.log == []


def server_is_late(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[], float]) -> None:
    """Make it later by so many seconds, but not for the test itself."""
    clock, ours = time.monotonic, threading.current_thread()
    monkeypatch.setattr(time, "monotonic", lambda: clock() + (
        0 if threading.current_thread() is ours else seconds()))


def test_the_deadline_of_a_head_starts_with_the_head(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    site, late = start(IDLE_SECONDS=1e9), [0.0]
    server_is_late(monkeypatch, lambda: late[0])
    data = request("GET", "/")
    with Client(site) as client:
        for _ in range(2):
            late[0] += 1000
            for at in range(len(data)):
                client.send(data[at:at + 1])
            assert client.answer().status == 200


@pytest.fixture
def plodding(start: Start, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Each wait for bytes takes 15 seconds of 20."""
    site, ticks = start(timeout=20, IDLE_SECONDS=1e9), itertools.count(0, 15)
    server_is_late(monkeypatch, lambda: next(ticks))
    return site


def send_slowly(client: Client, site: Site, *pieces: bytes) -> None:
    size = sum(map(len, pieces))
    client.send(request("PUT", "/keep", "Content-Length: %d" % size))
    before = len(site.application.received)
    for end in range(1, len(pieces) + 1):
        client.send(pieces[end - 1])
        expected = before + sum(map(len, pieces[:end]))
        wait_until(lambda: len(site.application.received) == expected, "a piece")
    assert client.answer().status == 201


def test_a_body_that_moves_may_take_its_time(plodding: Site) -> None:
    with Client(plodding) as client:
        send_slowly(client, plodding, *[bytes(10000)] * 4)


def test_every_body_has_its_own_time(plodding: Site) -> None:
    with Client(plodding) as client:
        for _ in range(4):
            send_slowly(client, plodding, b"x")


def test_who_was_quick_once_may_not_stand_still(plodding: Site) -> None:
    with Client(plodding) as client:
        client.send(request("PUT", "/keep", "Content-Length: 100000"))
        for end in range(1, 4):
            client.send(bytes(10000))
            wait_until(lambda: len(plodding.application.received) == end * 10000, "a piece")
        client.drips(b"x")
        assert client.ended()
    assert plodding.application.ended == ["Disconnected"]


def test_a_slow_application_is_not_a_slow_client(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    site, late = start(), [0.0]

    def work() -> None:
        late[0] += 1000
        assert site.application.go_on.wait(20)

    site.application.paused = work
    server_is_late(monkeypatch, lambda: late[0])
    with Client(site, request("PUT", "/keep", "Content-Length: 6", body=b"abc")[:-3]) as client:
        client.send(b"abc")
        wait_until(lambda: late[0] > 0, "the first piece")
        client.send(b"def")
        site.application.go_on.set()
        assert client.answer().status == 201
    assert site.application.received == b"abcdef"


@pytest.mark.parametrize("fields,body", [
    (["Content-Length: 10"], b"abc"), (["Transfer-Encoding: chunked"], b"3\r\nabc\r\n")])
def test_a_client_that_goes_leaves_what_it_sent_and_no_trouble(
        site: Site, fields: List[str], body: bytes) -> None:
    with Client(site, request("PUT", "/keep", *fields, body=body)):
        wait_until(lambda: site.application.received == b"abc", "the first piece")
    wait_until(lambda: bool(site.application.ended), "the end")
    assert (bytes(site.application.received), site.application.ended) == (b"abc", ["Disconnected"])
    assert site.log == []
    with Client(site, b"GET / HT"), Client(site, request("GET", "/", body=b"x" * 50)[:-9]):
        pass
    with Client(site) as client:
        assert client.ask("GET", "/").status == 200
    assert site.trouble == []


def test_an_answer_that_nobody_reads_is_given_up(start: Start) -> None:
    site = start(timeout=0.1, MAX_CONNECTIONS=1)
    os.truncate(str(site.application.content), 1 << 30)
    for target in ("/vast", "/file?offset=0&length=%d" % (1 << 30)):
        with Client(site, request("GET", target)), Client(site) as client:
            assert client.ask("GET", "/").status == 200
    assert [status for status, _ in site.log] == [200, 200, 206, 200]


# -- many clients ----------------------------------------------------------------


def test_clients_have_a_number(start: Start) -> None:
    site = start(MAX_CONNECTIONS=3)
    opened = [Client(site, request("GET", "/wait")) for _ in range(8)]
    with clients(*opened):
        wait_until(lambda: len(site.application.inside) == 3, "three requests")
        site.application.go_on.set()
        assert [client.answer().body for client in opened] == [b"waited"] * 8
    assert site.application.most == 3


@pytest.mark.parametrize("places", [1, 2])
def test_who_keeps_connections_for_nothing_makes_room(start: Start, places: int) -> None:
    site = start(MAX_CONNECTIONS=places)
    opened = []
    for _ in range(20):
        opened.append(Client(site))
        assert opened[-1].ask("GET", "/").status == 200
    silent = [Client(site) for _ in range(4)]
    with clients(*opened, *silent), Client(site) as client:
        assert client.ask("GET", "/").status == 200
    assert len(site.log) == 21


def test_nothing_stays_behind(site: Site) -> None:
    def held() -> Tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    for _ in range(5):
        for data in (b"", b"GET", b"\n", request("GET", "/"), request("GET", "/boom"),
                     request("GET", "/split?to=%0a"), request("PUT", "/keep", body=b"xyz")[:-1],
                     request("PUT", "/refuse", body=bytes(1 << 17)),
                     request("GET", "/file?offset=0&length=0"), request("GET", "/file?offset=0&length=99999"),
                     request("HEAD", "/file?offset=0&length=10"), request("GET", "/vast"),
                     request("PUT", "/file?offset=0&length=0", body=b"xyz")[:-1]):
            with Client(site, data):
                pass
    wait_until(lambda: held() == before, "%s, not %s" % (before, held()))


def test_no_descriptor_is_left_and_then_there_is(start: Start) -> None:
    site = start(MAX_CONNECTIONS=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.settimeout(20)
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            client.connect((site.host, site.port))
            client.sendall(request("GET", "/"))
            wait_until(lambda: bool(site.log), "the log")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert site.log[0] == (503, "accept: [Errno %d] %s" % (errno.EMFILE, os.strerror(errno.EMFILE)))


def test_no_thread_is_left_and_then_there_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    site = start(MAX_CONNECTIONS=1)

    def fail(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with Client(site) as client:
            assert client.ended()
    wait_until(lambda: bool(site.log), "the log")
    assert site.log == [(503, "accept: can't start new thread")]
    with Client(site) as client:
        assert client.ask("GET", "/").status == 200


def test_a_client_that_left_the_queue_is_no_trouble(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    left: List[bool] = []
    accept = socket.socket.accept

    def once(listener: socket.socket) -> Tuple[socket.socket, Any]:
        if not left:
            left.append(True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", once)
    site = start(MAX_CONNECTIONS=1)
    with Client(site) as client:
        assert client.ask("GET", "/").status == 200
    assert (left, site.trouble) == ([True], [])


# -- the end -------------------------------------------------------------------


def test_a_stop_sends_the_idle_away_and_lets_answers_end(site: Site) -> None:
    idle, silent, half = Client(site), Client(site), Client(site, SMUGGLED[:9])
    busy = Client(site, request("GET", "/wait"))
    with clients(idle, silent, half, busy):
        assert idle.ask("GET", "/").status == 200
        wait_until(lambda: site.application.inside == ["/wait"], "the request")
        site.cancel.cancel()
        assert (idle.ended(), silent.ended()) == (True, True)
        with pytest.raises(ConnectionRefusedError):
            Client(site)
        half.send(SMUGGLED[9:])
        assert half.answer().headers["connection"] == "close"
        site.application.go_on.set()
        answer = busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"waited", "close")
        assert busy.ended()
        site.stop()


def test_a_stop_cuts_what_is_stuck_and_keeps_what_came(start: Start) -> None:
    site = start(GRACE=0.1)
    head, upload, vast = Client(site, b"GET / HT"), Client(site), Client(site, request("GET", "/vast"))
    with clients(head, upload, vast):
        upload.send(request("PUT", "/keep", "Content-Length: 10", body=b"abc"))
        wait_until(lambda: site.application.received == b"abc" and bool(site.log), "the requests")
        site.stop()
        assert (head.ended(), upload.ended()) == (True, True)
        assert len(vast.rest()) < LARGE * 2
    assert (bytes(site.application.received), site.application.ended) == (b"abc", ["Disconnected"])
    assert [thread.name for thread in threading.enumerate() if "_serve" in thread.name] == []
    assert site.trouble == []


def test_a_stop_does_not_wait_for_ever(start: Start) -> None:
    site = start(GRACE=0.05)
    with Client(site, request("GET", "/wait")) as client:
        wait_until(lambda: site.application.inside == ["/wait"], "the request")
        site.stop()
        assert site.application.inside == ["/wait"]
        site.application.go_on.set()
        assert client.ended()


def test_an_address_that_can_not_be_had_is_an_error(site: Site) -> None:
    for host, port in (("127.0.0.1", site.port), ("127.0.0.1", 70000), ("192.0.2.1", 0), ("a" * 300, 0)):
        with pytest.raises(NetworkError) as caught:
            httpd.Server(host, port, site.application)
        assert re.match(r"listen on %s:%d: \S" % (re.escape(host), port), str(caught.value))


def test_an_address_is_told_as_it_is_used(tmp_path: Path) -> None:
    try:
        site = Site(tmp_path, 20, "::1")
    except NetworkError:
        pytest.skip("no IPv6 here")
    try:
        assert re.fullmatch(r"\[::1\]:[1-9][0-9]*", site.server.address)
        with Client(site) as client:
            assert client.ask("GET", "/").status == 200
    finally:
        site.stop()


def test_a_server_without_a_log_says_nothing(tmp_path: Path) -> None:
    server, cancel = httpd.Server("127.0.0.1", 0, Application(tmp_path)), Cancel()
    thread = threading.Thread(target=server.run, args=(cancel,))
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), 20) as client:
            client.sendall(request("GET", "/boom"))
            assert client.recv(100).startswith(b"HTTP/1.1 500 ")
    finally:
        cancel.cancel()
        thread.join(30)
