# SPDX-License-Identifier: Apache-2.0
"""All connections of a command together move no more bytes a second than the user allows, and smoothly."""
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled
from minipull.registry.connection import Connection as HTTPConnection
from minipull.registry.endpoints import RegistryService
from minipull.registry.network import Network, Quota
from minipull.registry.proxy import Proxies
from minipull.registry.request import Body, FileBody, Request
from minipull.registry.transport import Transport
from minipull.registry.url import Origin
from tests.kit.certificates import Certificates
from tests.kit.proxies import Proxy
from tests.kit.servers import Connection, ScriptedServer, content, reply, send

LIMIT = 400000  # bytes a second
SIZE = LIMIT * 3 // 10  # bytes, for 0.3 seconds


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- the budget --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 1000, 5 << 20, 10 << 30])
@pytest.mark.parametrize("late", [0.0, 0.004, 0.05])
def test_ten_seconds_are_within_five_percent_though_threads_wake_up_late(limit: int, late: float) -> None:
    clock = Clock()
    network = Network(limit_rate=limit, clock=clock)
    moved, begin = 0, clock.now
    while clock.now < begin + 10:
        moved += network.piece
        seconds = network.book(network.piece)
        clock.now += seconds + late if seconds else 0
    assert 0.95 <= moved / (limit * (clock.now - begin)) <= 1.05 + 1 / 10 / limit
    assert network.piece <= max(1, limit // 16)


def test_time_that_nobody_used_is_no_licence_for_a_burst() -> None:
    clock = Clock()
    network = Network(limit_rate=1000, clock=clock)
    clock.now += 3600
    moved = 0
    while not network.book(network.piece):
        moved += network.piece
    assert moved <= 150


def test_connections_share_the_limit_in_turn() -> None:
    network = Network(limit_rate=1000, clock=Clock())
    assert [network.book(100) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


# -- on the wire -------------------------------------------------------------------

Make = Callable[..., Transport]


@pytest.fixture
def make() -> Iterator[Make]:
    made: List[Transport] = []

    def call(network: Network, timeout: float = 10, **settings: Any) -> Transport:
        made.append(RegistryService(network=network, timeout=timeout, **settings).transport())
        return made[-1]
    yield call
    for transport in made:
        transport.close()


class Ticks:
    """The bytes of bodies that a server got, with the time of each piece."""

    def __init__(self) -> None:
        self.pieces: List[Tuple[float, int]] = []

    def __call__(self, connection: Connection) -> None:
        for data in connection.unread:
            self.pieces.append((time.monotonic(), len(data)))
        reply(201)(connection)

    def most_within(self, seconds: float) -> int:
        return max(sum(size for at, size in self.pieces if begin <= at < begin + seconds)
                   for begin, _ in self.pieces)


def ask(transport: Transport, url: str, body: Optional[Body] = None, cancel: Optional[Cancel] = None) -> int:
    """The size of the answer's body."""
    method = "PUT" if body else "GET"
    with transport.send(Request(method, url, cancel or Cancel(), {}, body)) as response:
        return len(response.read(10 * SIZE))


def seconds(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


@pytest.mark.parametrize("kind, way", [
    ("http", "down"), ("https", "down"), ("tunnel", "down"), ("http", "file"), ("https", "file"),
    ("tunnel", "up")])
def test_each_way_keeps_to_the_limit(
        make: Make, tmp_path: Path, certificates: Certificates, kind: str, way: str) -> None:
    data, got = bytes(SIZE), Ticks()
    (tmp_path / "file").write_bytes(data)
    tls = None if kind == "http" else certificates.context()
    with ScriptedServer(tls=tls) as server, Proxy({"registry.test:443": server.host}) as proxy:
        server.on("GET", "", content(data))
        server.on("PUT", "", got)
        settings = {"ca_file": str(certificates.ca)}
        url, network = server.url, Network(limit_rate=LIMIT)
        if kind == "tunnel":
            url = "https://registry.test"
        transport = make(network, proxies=Proxies(https=proxy.host), **settings)
        with open(str(tmp_path / "file"), "rb") as file:
            body = {"down": None, "up": Body(lambda: [data], SIZE), "file": FileBody(file, 0, SIZE)}[way]
            spent = seconds(lambda: ask(transport, url, body))
        assert 0.2 <= spent < 1.5
        assert way == "down" or got.most_within(0.1) < LIMIT / 3
        received, sent = network.traffic[url.partition("://")[2]]
        assert 0 <= (received if way == "down" else sent) - SIZE < 1000


def test_connections_of_several_services_share_one_limit(make: Make, server: ScriptedServer) -> None:
    server.on("GET", "", content(bytes(SIZE // 4), ranges=False))
    network = Network(limit_rate=LIMIT)
    threads = [threading.Thread(target=ask, args=(make(network), server.url)) for _ in range(4)]

    def work() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 0.2 <= seconds(work) < 1.5


def test_waiting_for_the_limit_is_no_stall_of_the_peer(make: Make, server: ScriptedServer) -> None:
    server.on("GET", "", content(bytes(400)))
    server.on("PUT", "", reply(200, bytes(10)))
    transport = make(Network(limit_rate=2000), timeout=0.2)
    assert seconds(lambda: ask(transport, server.url)) > 0.2
    assert seconds(lambda: ask(transport, server.url, Body.of(bytes(400)))) > 0.2


@pytest.mark.parametrize("body", [None, Body.of(bytes(1000))])
def test_one_byte_a_second_moves_and_can_be_cancelled(
        make: Make, server: ScriptedServer, body: Optional[Body]) -> None:
    server.on("GET|PUT", "", content(bytes(1000)))
    cancel = Cancel()
    timer = threading.Timer(0.2, cancel.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        assert seconds(lambda: ask(make(Network(limit_rate=1)), server.url, body, cancel)) < 1
    timer.join()
    assert len(server.requests) == 1  # heads are sent at once, and paid for after


def test_over_tls_an_unrequested_answer_is_not_the_next_one_though_it_came_in_one_record(
        make: Make, certificates: Certificates) -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", send(first + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), reply(200, "next"))
        transport = make(Network(limit_rate=64 * len(first)), ca_file=str(certificates.ca))  # that piece is read
        assert ask(transport, server.url) == 1000
        with transport.send(Request("GET", server.url, Cancel())) as response:
            assert response.read(10) == b"next"


def test_waiting_for_what_others_moved_can_be_cancelled(make: Make, server: ScriptedServer) -> None:
    network, cancel = Network(limit_rate=100000), Cancel()

    def act(connection: Connection) -> None:
        network.book(6000000)
        threading.Timer(0.1, cancel.cancel).start()
        reply(200, bytes(1000))(connection)

    def work() -> None:
        with pytest.raises(Cancelled):
            ask(make(network), server.url, None, cancel)

    server.on("GET", "", act)
    assert seconds(work) < 2


# -- bytes -------------------------------------------------------------------------


def test_bytes_are_counted_once_on_each_way(make: Make, server: ScriptedServer, tmp_path: Path) -> None:
    server.on("GET", "", content(bytes(SIZE)))
    server.on("PUT", "", Ticks())
    (tmp_path / "file").write_bytes(bytes(SIZE))
    network = Network()
    kept: List[HTTPConnection] = []
    conn = HTTPConnection(Origin.of(server.url), 10, never, kept.append, None, network)
    with open(str(tmp_path / "file"), "rb") as file:
        for body in (None, FileBody(file, 0, SIZE)):
            with conn.exchange(Request("PUT" if body else "GET", server.url, Cancel(), {}, body)) as response:
                response.read(SIZE)
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        conn.exchange(Request("GET", server.url, cancel))
    assert kept == [conn, conn]
    assert [SIZE < count < SIZE + 1000 for count in network.traffic[server.host]] == [True, True]


def never() -> ssl.SSLContext:
    raise AssertionError("plain http needs no TLS context")


# -- quotas ------------------------------------------------------------------------


@pytest.mark.parametrize("remaining, limit, quota", [
    ("98;w=21600", "100;w=21600", Quota(98, 100, 21600)), ("98", "100", Quota(98, 100)),
    ("0;w=21600", "", Quota(0, None, 21600)), (" 9 ; w=60", "x", Quota(9, None, 60)),
    ("7, 7;w=10", "8, 8;w=10", Quota(7, 8)), ("", "100;w=1", None), ("-1", "100", None), ("1.5", "", None),
    ("9" * 10, "", None), ("many", "100", None), ("9;w=x", "100", Quota(9, 100)), ("9 8", "", None)])
def test_a_quota_is_read_as_docker_hub_writes_it_and_nothing_else_is(
        make: Make, server: ScriptedServer, remaining: str, limit: str, quota: Optional[Quota]) -> None:
    server.on("GET", "", reply(200, b"", {"RateLimit-Remaining": remaining, "RateLimit-Limit": limit}))
    network = Network()
    ask(make(network), server.url + "/v2/r/manifests/1")
    assert network.quotas.get(server.host) == quota
    server.on("GET", "", reply(200, b"", {"RateLimit-Remaining": "1"}))
    ask(make(network), server.url + "/token")  # of requests, not of pulls
    assert network.quotas.get(server.host) == quota


def test_a_low_quota_is_a_warning_once_for_a_host(
        make: Make, server: ScriptedServer, foreign: ScriptedServer) -> None:
    lines: List[str] = []
    for asked in (server, foreign):
        asked.on("GET", "", *[reply(200, b"", {"RateLimit-Remaining": "%d;w=21600" % left,
                                                "RateLimit-Limit": "100;w=21600"}) for left in (10, 9, 8)])
    network = Network()
    for asked in (server, server, server, foreign, foreign):
        ask(make(network, warn=lines.append), asked.url + "/v2/r/manifests/1")
    assert lines == ["%s: 9 of 100 pulls left (per 6 hours)" % asked.host for asked in (server, foreign)]
