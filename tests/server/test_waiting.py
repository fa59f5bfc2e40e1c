# SPDX-License-Identifier: Apache-2.0
"""Connections between two requests share a thread, and none of them notices the others."""
import errno
import http.client
import os
import select
import threading
import time
from contextlib import closing
from types import SimpleNamespace
from typing import List, NoReturn, Tuple

import pytest

from tests.kit.images import digest_of
from tests.kit.listener import LARGE, Client, Listen, Listener, clients, request
from tests.kit.processes import wait_until
from tests.kit.site import Site, Start, path_of

QUICK = request("GET", "/quick")


def waiting(listener: Listener, count: int = 1) -> List[Client]:
    """Connections without a thread: each had an answer at once."""
    opened = [Client(listener, QUICK) for _ in range(count)]
    for client in opened:
        assert client.answer().body == bytes(5)
    wait_until(lambda: len(listener.server.waiting.connections) >= count, "the connections")
    return opened


def test_kept_connections_share_one_thread(listener: Listener) -> None:
    before = threading.active_count()
    opened = waiting(listener, 40)
    with clients(*opened):
        wait_until(lambda: threading.active_count() == before + 1, "the threads")
        for method in ("GET", "HEAD", "GET"):
            for client in opened:
                client.send(request(method, "/quick?size=9"))
            assert [client.answer(method).headers["content-length"] for client in opened] == ["9"] * 40
        assert threading.active_count() == before + 1
    wait_until(lambda: not listener.server.waiting.connections and threading.active_count() == before + 1, "the end")
    assert listener.log == [(200, "GET /quick 200")] * 40 + [
        (200, method + " /quick 200") for method in ("GET", "HEAD", "GET") for _ in range(40)]


@pytest.mark.parametrize("stream,statuses,kept", [
    (QUICK * 20, [200] * 20, True),
    (request("GET", "/5") + QUICK + request("POST", "/echo", body=b"x") + QUICK, [200] * 4, True),
    (request("GET", "/quick", body=b"nobody reads it") + QUICK, [200, 200], True),
    (request("GET", "/quick", "Transfer-Encoding: chunked", body=b"0\r\n\r\n") + QUICK, [200, 200], True),
    (request("GET", "/refuse") + request("GET", "/trouble?is=507") + QUICK, [404, 507, 200], True),
    (request("GET", "/quick", "Connection: close"), [200], False),
    (request("GET", "/quick", version="1.0"), [200], False),
    (request("GET", "/quick", "Content-Length: 0", "Content-Length: 0"), [400], False),
    (b"\x16\x03\x01", [400], False)],
    ids=["quick", "mixed", "body", "chunks", "refused", "last", "1.0", "malformed", "TLS"])
@pytest.mark.parametrize("size", [1 << 20, 50, 3])
def test_whatever_comes_on_a_kept_connection_is_answered_as_on_a_new_one(
        listener: Listener, stream: bytes, statuses: List[int], kept: bool, size: int) -> None:
    for opened in (waiting(listener), [Client(listener)]):
        with clients(*opened):
            for at in range(0, len(stream), size):
                opened[0].send(stream[at:at + size])
            assert [opened[0].answer().status for _ in statuses] == statuses
            if kept:
                assert opened[0].ask("GET", "/quick", "Connection: close").body == bytes(5)
            assert opened[0].ended()
    half = len(listener.log) // 2
    assert listener.log[1:half + 1] == listener.log[half + 1:]


def test_a_fault_in_an_answer_at_once_is_one_line_in_the_log(listener: Listener) -> None:
    [client, other] = waiting(listener, 2)
    with clients(client, other):
        assert client.ask("GET", "/slip").status == 500 and client.ended()
        assert other.ask("GET", "/quick").status == 200
    assert listener.trouble == [(500, "GET /slip 500: internal error: KeyError: 'slip'")]


def test_an_answer_that_nobody_reads_holds_up_nobody_else(listen: Listen) -> None:
    listener = listen(timeout=0.3)
    before = threading.active_count()
    [lazy, late, other] = waiting(listener, 3)
    with clients(lazy, late, other):
        for client in (lazy, late):
            client.send(request("GET", "/quick?size=%d" % (LARGE * 4)))
        for _ in range(10):
            assert other.ask("GET", "/quick").body == bytes(5)
        assert late.answer().body == bytes(LARGE * 4)
        assert (late.ask("GET", "/quick").body, late.ask("GET", "/5").body) == (bytes(5), b"hello")
        assert late.ask("GET", "/quick").body == bytes(5)
        wait_until(lambda: threading.active_count() == before + 1, "the end of the timeout")
        assert len(lazy.rest()) < LARGE * 4
    assert listener.trouble == []


def test_a_log_that_fails_ends_no_more_than_its_connection(
        listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(status: int, text: str) -> NoReturn:
        raise OSError("the disk is full")

    [client, other] = waiting(listener, 2)
    with clients(client, other):
        with monkeypatch.context() as patch:
            patch.setattr(listener.server, "log", fail)
            client.send(QUICK)
            assert client.ended()
        assert other.ask("GET", "/quick").status == 200


def test_a_slow_request_holds_up_nobody_else(listener: Listener) -> None:
    [slow, half, other] = waiting(listener, 3)
    with clients(slow, half, other):
        slow.send(request("GET", "/wait"))
        half.send(QUICK[:9])
        wait_until(lambda: listener.application.inside == ["/wait"], "the request")
        assert other.ask("GET", "/quick").body == bytes(5)
        listener.application.go_on.set()
        half.send(QUICK[9:])
        assert (slow.answer().body, half.answer().body) == (b"waited", bytes(5))


def test_a_kept_connection_is_closed_when_it_was_idle(listen: Listen) -> None:
    listener = listen(IDLE_SECONDS=0.05)
    opened = [Client(listener, QUICK) for _ in range(2)]
    with clients(*opened):
        assert [(client.answer().status, client.ended()) for client in opened] == [(200, True)] * 2
    assert listener.trouble == []


@pytest.mark.parametrize("places", [1, 2])
def test_kept_connections_make_room_for_new_ones(listen: Listen, places: int) -> None:
    listener = listen(MAX_CONNECTIONS=places)
    opened = []
    for _ in range(10):
        opened.append(Client(listener, QUICK))
        assert opened[-1].answer().status == 200
    with clients(*opened):
        assert len(listener.server.waiting.connections) <= places  # the oldest ones most often, not always


def test_a_kept_connection_makes_room_only_after_a_silence(
        listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(TICK=0.15)
    client, *others = waiting(listener, 10)
    begin = time.monotonic()
    assert client.ask("GET", "/quick").status == 200
    monkeypatch.setattr(listener.server, "_slots", threading.Semaphore(0))  # all places are taken
    with clients(Client(listener), client, *others):
        for other in others:
            other.send(QUICK)
            select.select([client.socket], [], [], 0.02)
        assert client.ended() and time.monotonic() - begin >= 0.15


class Slow:
    """An epoll that takes its time to add a connection."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self.poll, self.unregister, self.close = self._poll.poll, self._poll.unregister, self._poll.close

    def register(self, fd: int, events: int) -> None:
        threading.Event().wait(0.3)
        self._poll.register(fd, events)


def test_a_connection_that_is_being_added_does_not_end_the_others(
        listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.server.http.select", SimpleNamespace(epoll=Slow, EPOLLIN=select.EPOLLIN))
    listener = listen(MAX_CONNECTIONS=2)
    first = Client(listener, QUICK)
    with clients(first):
        assert first.answer().status == 200
        with clients(Client(listener, request("GET", "/wait"))):  # now all places are taken
            assert first.ended()
        listener.application.go_on.set()
    wait_until(lambda: not listener.server.leaving, "the free places")
    [client] = waiting(listener)
    with clients(client):
        assert client.ask("GET", "/quick").status == 200


def test_a_stop_does_not_wait_for_a_log_that_blocks(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(GRACE=0.05)
    [client] = waiting(listener)
    go_on, blocked = threading.Event(), threading.Event()

    def block(status: int, text: str) -> None:
        blocked.set()
        go_on.wait(60)

    monkeypatch.setattr(listener.server, "log", block)
    try:
        with clients(client):
            client.send(QUICK)
            assert blocked.wait(30)
            listener.stop()
    finally:
        go_on.set()


def test_a_stop_ends_kept_connections(listener: Listener) -> None:
    opened = waiting(listener, 3)
    with clients(*opened):
        listener.stop()
        assert [client.ended() for client in opened] == [True] * 3


def test_a_lack_of_threads_ends_the_connection_that_needs_one(
        listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    [client, other] = waiting(listener, 2)
    with clients(client, other), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        client.send(request("GET", "/5"))
        assert client.ended() and other.ask("GET", "/quick").status == 200
    assert listener.trouble == [(503, "request: can't start new thread")]


# -- the registry on such a connection ---------------------------------------------


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET") -> Tuple[int, bytes]:
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read()


class NoRoom:
    """The epoll of a system that has no room for one more."""

    def register(self, fd: int, events: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def poll(self, seconds: float) -> List[Tuple[int, int]]:
        threading.Event().wait(seconds)
        return []

    def close(self) -> None:
        """There is nothing to close."""


def test_where_no_more_can_wait_a_connection_keeps_its_thread(
        listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.server.http.select.epoll", NoRoom)
    client = Client(listener)
    with clients(client):
        for _ in range(3):
            client.send(QUICK)
            assert client.answer().status == 200
        assert listener.server.waiting.connections == {}


def test_what_others_change_in_the_store_is_seen_on_a_kept_connection(site: Site) -> None:
    one = site.push()
    layer = digest_of(b"one")
    by_digest, by_tag, blob = "/v2/app/manifests/" + digest_of(one), "/v2/app/manifests/1", "/v2/app/blobs/" + layer
    with closing(http.client.HTTPConnection(site.host, timeout=30)) as kept:
        for _ in range(2):
            assert [ask(kept, path) for path in (by_digest, by_tag, blob)] == [
                (200, one), (200, one), (200, b"one")]
        two = site.push("two", "1")
        assert [ask(kept, path) for path in (by_digest, by_tag)] == [(200, one), (200, two)]
        spoiled = path_of(site, digest_of(one))
        spoiled.write_bytes(bytes(len(one)))
        assert ask(kept, by_digest)[0] == 500
        spoiled.write_bytes(one)
        assert ask(kept, by_digest) == (200, one)
        spoiled.unlink()
        path_of(site, layer).unlink()
        assert [ask(kept, path)[0] for path in (by_digest, blob)] == [404, 404]
        assert ask(kept, by_tag, "HEAD") == (200, b"")


def test_a_locked_store_is_waited_for_on_a_kept_connection_too(start: Start) -> None:
    site = start(timeout=0.2)
    raw = site.push()
    with closing(http.client.HTTPConnection(site.host, timeout=30)) as kept:
        assert ask(kept, "/v2/app/manifests/1") == (200, raw)
        with site.store.alone():
            assert ask(kept, "/v2/app/manifests/1")[0] == 503
        assert ask(kept, "/v2/app/manifests/1") == (200, raw)


@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1, 300 << 10])
def test_blobs_and_manifests_of_any_size_are_sent_whole_and_in_part(site: Site, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    digest = site.blob(data)["digest"]
    raw = site.push("large", "large", annotations={"x": "y" * size})
    with closing(http.client.HTTPConnection(site.host, timeout=30)) as kept:
        for _ in range(2):
            assert ask(kept, "/v2/app/blobs/" + digest) == (200, data)
            assert ask(kept, "/v2/app/manifests/large") == (200, raw)
            kept.request("GET", "/v2/app/blobs/" + digest, headers={"Range": "bytes=7-9"})
            response = kept.getresponse()
            assert (response.status, response.read()) == (206, data[7:10])
