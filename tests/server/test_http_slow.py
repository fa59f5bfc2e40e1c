# SPDX-License-Identifier: Apache-2.0
"""The listener and clients that are slow, silent or many."""
import errno
import itertools
import os
import resource
import socket
import threading
import time
from typing import Any, Callable, List, NoReturn, Tuple

import pytest

from minipull.server import http as httpd
from tests.kit.listener import Client, Listen, Listener, clients, request
from tests.kit.processes import wait_until


# -- heads and bodies that take their time ----------------------------------------


def test_the_size_of_a_head_is_bounded(listener: Listener) -> None:
    rest = len(request("GET", "/", "X: ")) - 4
    with Client(listener) as client:
        assert client.ask("GET", "/", "X: " + "y" * (httpd.MAX_HEAD - rest)).status == 200
        assert client.ask("GET", "/", "X: " + "y" * (httpd.MAX_HEAD - rest + 1)).status == 431
        assert client.ended()
    with Client(listener, b"GET / HTTP/1.1\r\nX: " + b"y" * (httpd.MAX_HEAD + httpd.BUFFER)) as client:
        assert client.answer().status == 431
        assert client.ended()
    with Client(listener) as client:
        assert client.ask("GET", "/", *["X-%d: y" % number for number in range(200)]).status == 431
    with Client(listener) as client:
        assert client.ask("GET", "/?" + "n=1&" * 200).status == 400
    assert [status for status, _ in listener.log] == [200, 431, 431, 431, 400]


def test_a_head_may_end_anywhere_in_the_buffer(listener: Listener) -> None:
    with Client(listener) as client:
        for size in range(httpd.BUFFER - 80, httpd.BUFFER - 40):
            client.send(request("GET", "/", "X: " + "y" * size)[:httpd.MAX_HEAD])
            client.send(request("GET", "/", "X: " + "y" * size)[httpd.MAX_HEAD:])
            assert client.answer().status == 200


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_head_has_a_deadline_that_no_byte_puts_off(listen: Listen, drip: bytes) -> None:
    listener = listen(HEAD_SECONDS=0.1)
    with Client(listener) as client:
        assert client.ask("GET", "/").status == 200
        client.send(b"GET /")
        client.drips(drip)
        assert client.answer().status == 408
    assert listener.application.asked == ["GET /"]


def test_an_idle_connection_is_closed(listen: Listen) -> None:
    listener = listen(IDLE_SECONDS=0.05)
    with Client(listener) as silent, Client(listener) as client:
        assert silent.ended()
        assert client.ended()
    with Client(listener) as client:
        assert client.ask("GET", "/").status == 200
        assert client.ended()
    assert [status for status, _ in listener.log] == [200]


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["still", "slow"])
@pytest.mark.parametrize("fields", [["Content-Length: 100000"], ["Transfer-Encoding: chunked"]])
def test_a_body_that_stands_still_is_given_up_and_what_came_is_kept(
        listen: Listen, fields: List[str], drip: bytes) -> None:
    listener = listen(timeout=0.1)
    with Client(listener, request("PUT", "/keep", *fields, body=b"186a0\r\nabc")) as client:
        client.drips(drip)
        assert client.ended()
    assert b"abc" in listener.application.received
    assert listener.application.ended in (["ConnectionAbortedError"], ["timeout"], ["TimeoutError"])
    assert listener.log == []


def server_is_late(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[], float]) -> None:
    """Make it later by so many seconds, but not for the test itself."""
    clock, ours = time.monotonic, threading.current_thread()
    monkeypatch.setattr(time, "monotonic", lambda: clock() + (
        0 if threading.current_thread() is ours else seconds()))


def test_the_deadline_of_a_head_starts_with_the_head(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, late = listen(IDLE_SECONDS=1e9), [0.0]
    server_is_late(monkeypatch, lambda: late[0])
    data = request("GET", "/")
    with Client(listener) as client:
        for _ in range(2):
            late[0] += 1000
            for at in range(len(data)):
                client.send(data[at:at + 1])
            assert client.answer().status == 200


@pytest.fixture
def plodding(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Each wait for bytes takes 15 seconds of 20."""
    listener, ticks = listen(timeout=20, IDLE_SECONDS=1e9), itertools.count(0, 15)
    server_is_late(monkeypatch, lambda: next(ticks))
    return listener


def send_slowly(client: Client, listener: Listener, *pieces: bytes) -> None:
    size = sum(map(len, pieces))
    client.send(request("PUT", "/keep", "Content-Length: %d" % size))
    before = len(listener.application.received)
    for end in range(1, len(pieces) + 1):
        client.send(pieces[end - 1])
        expected = before + sum(map(len, pieces[:end]))
        wait_until(lambda: len(listener.application.received) == expected, "a piece")
    assert client.answer().status == 201


def test_a_body_that_moves_may_take_its_time(plodding: Listener) -> None:
    with Client(plodding) as client:
        send_slowly(client, plodding, *[bytes(10000)] * 4)


def test_every_body_has_its_own_time(plodding: Listener) -> None:
    with Client(plodding) as client:
        for _ in range(4):
            send_slowly(client, plodding, b"x")


def test_a_body_that_was_quick_at_first_may_not_stall(plodding: Listener) -> None:
    with Client(plodding) as client:
        client.send(request("PUT", "/keep", "Content-Length: 100000"))
        for end in range(1, 4):
            client.send(bytes(10000))
            wait_until(lambda: len(plodding.application.received) == end * 10000, "a piece")
        client.drips(b"x")
        assert client.ended()
    assert plodding.application.ended == ["ConnectionAbortedError"]


def test_a_slow_application_is_not_a_slow_client(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, late = listen(), [0.0]

    def work() -> None:
        late[0] += 1000
        assert listener.application.go_on.wait(20)

    listener.application.paused = work
    server_is_late(monkeypatch, lambda: late[0])
    with Client(listener, request("PUT", "/keep", "Content-Length: 6", body=b"abc")[:-3]) as client:
        client.send(b"abc")
        wait_until(lambda: late[0] > 0, "the first piece")
        client.send(b"def")
        listener.application.go_on.set()
        assert client.answer().status == 201
    assert listener.application.received == b"abcdef"


@pytest.mark.parametrize("fields,body", [
    (["Content-Length: 10"], b"abc"), (["Transfer-Encoding: chunked"], b"3\r\nabc\r\n")])
def test_a_client_that_goes_leaves_what_it_sent_and_no_trouble(
        listener: Listener, fields: List[str], body: bytes) -> None:
    with Client(listener, request("PUT", "/keep", *fields, body=body)):
        wait_until(lambda: listener.application.received == b"abc", "the first piece")
    wait_until(lambda: bool(listener.application.ended), "the end")
    assert (bytes(listener.application.received), listener.application.ended) == (
        b"abc", ["ConnectionAbortedError"])
    assert listener.log == []
    with Client(listener, b"GET / HT"), Client(listener, request("GET", "/", body=b"x" * 50)[:-9]):
        pass
    with Client(listener) as client:
        assert client.ask("GET", "/").status == 200
    assert listener.trouble == []


def test_an_answer_that_nobody_reads_is_given_up(listen: Listen) -> None:
    listener = listen(timeout=0.1, MAX_CONNECTIONS=1)
    os.truncate(str(listener.application.content), 1 << 30)
    for target in ("/vast", "/file?offset=0&length=%d" % (1 << 30)):
        with Client(listener, request("GET", target)), Client(listener) as client:
            assert client.ask("GET", "/").status == 200
    assert [status for status, _ in listener.log] == [200, 200, 206, 200]


# -- many clients ----------------------------------------------------------------


def test_the_number_of_connections_is_bounded(listen: Listen) -> None:
    listener = listen(MAX_CONNECTIONS=3)
    opened = [Client(listener, request("GET", "/wait")) for _ in range(8)]
    with clients(*opened):
        wait_until(lambda: len(listener.application.inside) == 3, "three requests")
        listener.application.go_on.set()
        assert [client.answer().body for client in opened] == [b"waited"] * 8
    assert listener.application.most == 3


@pytest.mark.parametrize("places", [1, 2])
def test_idle_connections_make_room_for_new_ones(listen: Listen, places: int) -> None:
    listener = listen(MAX_CONNECTIONS=places)
    opened = []
    for _ in range(20):
        opened.append(Client(listener))
        assert opened[-1].ask("GET", "/").status == 200
    silent = [Client(listener) for _ in range(4)]
    with clients(*opened, *silent), Client(listener) as client:
        assert client.ask("GET", "/").status == 200
    assert len(listener.log) == 21


def test_a_closed_connection_leaves_no_thread_and_no_descriptor(listener: Listener) -> None:
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
            with Client(listener, data):
                pass
    wait_until(lambda: held() == before, "%s, not %s" % (before, held()))


def test_a_server_recovers_from_a_lack_of_descriptors(listen: Listen) -> None:
    listener = listen(MAX_CONNECTIONS=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.settimeout(20)
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            client.connect((listener.host, listener.port))
            client.sendall(request("GET", "/"))
            wait_until(lambda: bool(listener.log), "the log")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert listener.log[0] == (503, "accept: [Errno %d] %s" % (errno.EMFILE, os.strerror(errno.EMFILE)))


def test_a_server_recovers_from_a_lack_of_threads(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(MAX_CONNECTIONS=1)

    def fail(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with Client(listener) as client:
            assert client.ended()
    wait_until(lambda: bool(listener.log), "the log")
    assert listener.log == [(503, "accept: can't start new thread")]
    with Client(listener) as client:
        assert client.ask("GET", "/").status == 200


def test_a_client_that_left_the_queue_is_no_trouble(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    left: List[bool] = []
    accept = socket.socket.accept

    def once(listener: socket.socket) -> Tuple[socket.socket, Any]:
        if not left:
            left.append(True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", once)
    listener = listen(MAX_CONNECTIONS=1)
    with Client(listener) as client:
        assert client.ask("GET", "/").status == 200
    assert (left, listener.trouble) == ([True], [])
