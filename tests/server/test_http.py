# SPDX-License-Identifier: Apache-2.0
"""A client gets the answers to what it asked and nothing else, and can hold nobody up.

Raw sockets against a small application: what is sent here no HTTP client would.
"""
import json
import re
import socket
import threading
from pathlib import Path
from typing import List, Optional, Tuple

import pytest

from minipull.cancel import Cancel
from minipull.errors import NetworkError
from minipull.server import http as httpd
from minipull.server.message import MAX_DRAINED
from tests.kit.listener import LARGE, SMUGGLED, Application, Client, Listen, Listener, clients, request
from tests.kit.processes import wait_until


# -- requests, one after the other -----------------------------------------------


def test_requests_on_one_connection_are_answered_in_order(listener: Listener) -> None:
    stream = b"".join([
        request("GET", "/1"), request("POST", "/echo", body=b"two"), request("HEAD", "/3"),
        request("POST", "/echo", "Transfer-Encoding: chunked", body=b"4\r\nfour\r\n0\r\n\r\n"),
        request("GET", "/5", body=b"nobody reads it"), request("GET", "/6", "Connection: close")])
    for pieces in ([stream], [stream[at:at + 1] for at in range(len(stream))]):
        with Client(listener, *pieces) as client:
            got = [client.answer(method) for method in ("GET", "POST", "HEAD", "POST", "GET", "GET")]
            assert [each.body for each in got] == [b"hello", b"two", b"", b"four", b"hello", b"hello"]
            assert [each.headers.get("connection") for each in got] == [None] * 5 + ["close"]
            assert client.ended()
    assert listener.application.asked[6:] == listener.application.asked[:6]
    assert [text for _, text in listener.log[:2]] == ["GET /1 200", "POST /echo 200"]


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
def test_bytes_after_a_malformed_head_are_not_a_request(
        listener: Listener, status: int, fields: List[str]) -> None:
    with Client(listener, request("POST", "/echo", *fields) + b"0\r\n\r\n" + SMUGGLED) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert json.loads(answer.body)["errors"]
        assert client.ended()
    assert listener.application.asked == []
    assert listener.log == [(status, "malformed request %d" % status)]


@pytest.mark.parametrize("start_line,status", [
    (b"GET /\r\n", 400), (b"GET / HTTP/0.9\r\n", 505), (b"PRI * HTTP/2.0\r\n", 505), (b"\r\n", 400),
    (b"GET / HTTP/1.1 \r\n", 400), (b"GET / HTTP/1.1\r\n", 400)],
    ids=["0.9", "as 0.9", "h2", "empty", "space", "no Host"])
def test_another_protocol_is_refused_and_the_connection_closed(
        listener: Listener, start_line: bytes, status: int) -> None:
    with Client(listener, start_line + b"\r\n" + SMUGGLED) as client:
        assert client.answer().status == status
        assert client.ended()
    assert listener.application.asked == []


def test_a_tls_client_is_refused_at_once(listen: Listen) -> None:
    with Client(listen(HEAD_SECONDS=0.1), b"\x16\x03\x01\x02\x00\x01\x00") as client:
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
def test_an_unread_body_is_not_the_next_request(
        listener: Listener, path: str, fields: List[str], body: bytes, kept: bool) -> None:
    with Client(listener, request("POST", path, *fields, body=body)) as client:
        answer = client.answer()
        assert answer.status == (404 if path == "/refuse" else 200)
        assert answer.headers.get("connection") == (None if kept else "close")
        if kept:
            assert client.ask("GET", "/next", "Connection: close").status == 200
        assert client.ended()
    assert listener.application.asked == ["POST " + path] + ["GET /next"] * kept


@pytest.mark.parametrize("body", [b"x\r\n", b"3\r\nabcd\r\n", b"0\r\n" + b"X: y\r\n" * 200, b"1" * 2000])
def test_a_broken_chunk_is_refused_and_ends_the_connection(listener: Listener, body: bytes) -> None:
    sent = request("POST", "/echo", "Transfer-Encoding: chunked", body=body + SMUGGLED)
    with Client(listener, sent) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert client.ended()
    assert listener.application.asked == ["POST /echo"]


@pytest.mark.parametrize("fields", [["Content-Length: 7"], ["Transfer-Encoding: chunked"]])
def test_100_continue_is_sent_when_the_body_is_read(listener: Listener, fields: List[str]) -> None:
    with Client(listener) as client:
        client.send(request("PUT", "/echo", "Expect: 100-continue", *fields))
        assert [client.line(), client.line()] == ["HTTP/1.1 100 Continue", ""]
        client.send(b"content" if "Content-Length: 7" in fields else b"7\r\ncontent\r\n0\r\n\r\n")
        assert client.answer().body == b"content"
        assert client.ask("GET", "/next").status == 200


def test_100_continue_is_not_sent_for_an_unread_body(listener: Listener) -> None:
    with Client(listener) as client:
        assert client.ask("PUT", "/echo", "Expect: 100-continue", "Content-Length: 0").status == 200
        client.send(request("PUT", "/refuse", "Expect: 100-continue", "Content-Length: 7"))
        assert client.answer().status == 404
        assert client.ended()
    with Client(listener) as client:
        client.send(request("PUT", "/echo", "Expect: 100-continue", version="1.0", body=b"content"))
        assert client.answer().body == b"content"
        assert client.ended()


@pytest.mark.parametrize("head", [
    "GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET %s HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"])
@pytest.mark.parametrize("path,status", [("/", 200), ("/refuse", 404)])
def test_the_last_request_gets_the_last_answer(listener: Listener, head: str, path: str, status: int) -> None:
    with Client(listener, (head % path).encode() + SMUGGLED) as client:
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert client.ended()
    assert listener.application.asked == ["GET " + path]


# -- answers -------------------------------------------------------------------


@pytest.mark.parametrize("target,status,body", [
    ("/", 200, b"hello"), ("/refuse", 404, None), ("/status?is=416", 416, b'{"text":"html <b>"}'),
    ("/nothing?is=200", 200, b""), ("/nothing?is=204", 204, None), ("/nothing?is=304", 304, None),
    ("/file?offset=0&length=16384", 206, bytes(range(256)) * 64), ("/file?offset=250&length=9", 206, None),
    ("/file?offset=0&length=0", 206, b""), ("/file?path=/dev/null&offset=0&length=0", 206, b"")])
def test_every_answer_is_as_long_as_it_says(
        listener: Listener, target: str, status: int, body: Optional[bytes]) -> None:
    with Client(listener) as client:
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
    assert [file.closed for file in listener.application.files] == [True] * len(listener.application.files)


def test_part_of_a_file_is_sent(listener: Listener) -> None:
    with Client(listener) as client:
        assert client.ask("GET", "/file?offset=250&length=9").body == bytes([*range(250, 256), 0, 1, 2])


def test_a_file_that_got_shorter_ends_the_connection(listener: Listener) -> None:
    for offset, left in ((16000, 384), (16384, 0), (20000, 0)):
        with Client(listener, request("GET", "/file?offset=%d&length=1000" % offset)) as client:
            head, _, body = client.rest().partition(b"\r\n\r\n")
            assert b"Content-Length: 1000\r\n" in head + b"\r\n"
            assert len(body) == left
    wait_until(lambda: all(file.closed for file in listener.application.files), "the files")
    assert listener.trouble == []


@pytest.mark.parametrize("to", ["%0d%0aX-Evil:%20y", "%0a", "%0d", "%00", "%c3%a9", "%7f"])
def test_a_header_can_not_split_an_answer(listener: Listener, to: str) -> None:
    with Client(listener, request("GET", "/split?to=/a" + to)) as client:
        assert client.ended()
    wait_until(lambda: bool(listener.log), "the log")
    [(status, text)] = listener.log
    assert (status, text.startswith("internal error: ValueError: header Location: '/a")) == (500, True)
    with Client(listener) as client:
        assert client.ask("GET", "/split?to=/a%20b").headers["location"] == "/a b"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_fault_is_one_line_in_the_log(listener: Listener, method: str) -> None:
    with Client(listener) as client:
        answer = client.ask(method, "/boom")
        assert (answer.status, answer.headers["connection"]) == (500, "close")
        assert method == "HEAD" or json.loads(answer.body)["errors"][0]["message"] == "internal error"
        assert client.ended()
    assert listener.log == [(500, "%s /boom 500: internal error: KeyError: 'two\\nlines'" % method)]


def test_the_cause_of_trouble_is_for_the_log_only(listener: Listener) -> None:
    with Client(listener) as client:
        for status in (507, 404):
            assert b"disk" not in client.ask("GET", "/trouble?is=%d" % status).body
    assert listener.log == [(507, "GET /trouble 507: the disk is full"), (404, "GET /trouble 404")]


def test_a_path_takes_one_line_in_the_log(listener: Listener) -> None:
    with Client(listener) as client:
        client.ask("GET", "/a%0aGET%20/b%1b%5b2J%c2%9b%e2%80%a8")
    assert listener.log == [(200, "GET /a\\nGET /b\\x1b[2J\\x9b\\u2028 200")]


def test_a_large_body_that_is_refused_does_not_drown_the_answer(listener: Listener) -> None:
    for fields in (["Content-Length: %d" % LARGE], ["Transfer-Encoding: chunked"]):
        body = b"%x\r\n" % LARGE + bytes(LARGE)
        with Client(listener, request("PUT", "/refuse", *fields, body=body)) as client:
            answer = client.answer()
            assert (answer.status, answer.headers["connection"]) == (404, "close")
            assert client.ended()


def test_requests_after_the_last_do_not_drown_the_answer(listener: Listener) -> None:
    with Client(listener, request("GET", "/", "Connection: close") + SMUGGLED * 10000) as client:
        assert client.answer().body == b"hello"
        assert client.ended()


def test_a_client_that_sends_without_end_after_a_refusal_is_cut_off(listen: Listen) -> None:
    listener, data = listen(GRACE=0.2), bytes(1 << 16)
    with Client(listener, request("PUT", "/refuse", "Content-Length: %d" % (1 << 40))) as client:
        with pytest.raises(ConnectionError):
            for _ in range(100000):
                client.send(data)


# -- the end -------------------------------------------------------------------


def test_a_stop_sends_the_idle_away_and_lets_answers_end(listener: Listener) -> None:
    idle, silent, half = Client(listener), Client(listener), Client(listener, SMUGGLED[:9])
    busy = Client(listener, request("GET", "/wait"))
    with clients(idle, silent, half, busy):
        assert idle.ask("GET", "/").status == 200
        wait_until(lambda: listener.application.inside == ["/wait"], "the request")
        listener.cancel.cancel()
        assert (idle.ended(), silent.ended()) == (True, True)
        with pytest.raises(ConnectionRefusedError):
            Client(listener)
        half.send(SMUGGLED[9:])
        assert half.answer().headers["connection"] == "close"
        listener.application.go_on.set()
        answer = busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"waited", "close")
        assert busy.ended()
        listener.stop()


def test_a_stop_cuts_what_is_stuck_and_keeps_what_came(listen: Listen) -> None:
    listener = listen(GRACE=0.1)
    head, upload = Client(listener, b"GET / HT"), Client(listener)
    vast = Client(listener, request("GET", "/vast"))
    with clients(head, upload, vast):
        upload.send(request("PUT", "/keep", "Content-Length: 10", body=b"abc"))
        wait_until(lambda: listener.application.received == b"abc" and bool(listener.log), "the requests")
        listener.stop()
        assert (head.ended(), upload.ended()) == (True, True)
        assert len(vast.rest()) < LARGE * 2
    assert (bytes(listener.application.received), listener.application.ended) == (
        b"abc", ["ConnectionAbortedError"])
    assert [thread.name for thread in threading.enumerate() if "_serve" in thread.name] == []
    assert listener.trouble == []


def test_a_stop_does_not_wait_for_ever(listen: Listen) -> None:
    listener = listen(GRACE=0.05)
    with Client(listener, request("GET", "/wait")) as client:
        wait_until(lambda: listener.application.inside == ["/wait"], "the request")
        listener.stop()
        assert listener.application.inside == ["/wait"]
        listener.application.go_on.set()
        assert client.ended()


def test_an_address_that_can_not_be_listened_on_is_an_error(listener: Listener) -> None:
    for host, port in (("127.0.0.1", listener.port), ("127.0.0.1", 70000), ("192.0.2.1", 0), ("a" * 300, 0)):
        with pytest.raises(NetworkError) as caught:
            httpd.Server(host, port, listener.application)
        assert re.match(r"listen on %s:%d: \S" % (re.escape(host), port), str(caught.value))


def test_the_address_of_a_server_is_a_host_and_port_for_a_url(tmp_path: Path) -> None:
    try:
        listener = Listener(tmp_path, 20, "::1")
    except NetworkError:
        pytest.skip("no IPv6 here")
    try:
        assert re.fullmatch(r"\[::1\]:[1-9][0-9]*", listener.server.address)
        with Client(listener) as client:
            assert client.ask("GET", "/").status == 200
    finally:
        listener.stop()


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
