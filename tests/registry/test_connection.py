# SPDX-License-Identifier: Apache-2.0
"""What a server sends is read to its end or is an error, and a reader can always give up."""
import json
import random
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from tests.kit import DATA
from minipull.registry.connection import Connection
from minipull.registry.response import Response
from minipull.registry.url import Origin
from minipull.registry.endpoints import RegistryService
from minipull.registry.errors import Outage
from minipull.errors import Cancelled, NetworkError, PolicyError, StorageError, TLSError
from minipull.cancel import Cancel
from minipull.registry.request import Body, FileBody, Request
from tests.kit.certificates import Certificates
from tests.kit.servers import ScriptedServer, close, drip, head, hold, reply, send

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def never() -> ssl.SSLContext:
    raise AssertionError("plain http needs no TLS context")


class Asker:
    """Connections that end with the test."""

    def __init__(self) -> None:
        self.kept: List[Connection] = []
        self.made: List[Connection] = []

    def __call__(self, url: str, method: str = "GET", cancel: Optional[Cancel] = None, timeout: float = 10,
                 context: Callable[[], ssl.SSLContext] = never, only_public: bool = False,
                 body: Optional[Body] = None) -> Response:
        conn = Connection(Origin.of(url), timeout, context, self.kept.append)
        self.made.append(conn)
        return self.again(conn, url, method, cancel, only_public, body)

    def again(self, conn: Connection, url: str, method: str = "GET", cancel: Optional[Cancel] = None,
              only_public: bool = False, body: Optional[Body] = None) -> Response:
        return conn.exchange(Request(method, url, cancel or Cancel(), body=body, only_public=only_public))


@pytest.fixture
def ask() -> Iterator[Asker]:
    asker = Asker()
    yield asker
    for conn in asker.made:
        conn.drop()


def trusting(certificates: Certificates) -> Callable[[], ssl.SSLContext]:
    return lambda: RegistryService(ca_file=str(certificates.ca)).tls_context(Origin.of("https://r.com"))


class Stopwatch:
    """Fails when the block takes longer than a second."""

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *exc_info: object) -> None:
        assert time.monotonic() - self._start < 1


def later(work: Callable[[], None], seconds: float = 0.1) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


# -- framing -------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("case", TABLES["framing_good"], ids=lambda case: ascii(case["answer"]))
def test_a_body_is_read_and_its_connection_kept_only_if_nothing_follows(
    ask: Asker, server: ScriptedServer, case: Dict[str, Any], pieces: bool
) -> None:
    answer = case["answer"].encode()
    done = threading.Event()
    action = drip(answer, 7, 0.001) if pieces else send(answer)
    # The end of the connection is part of some answers, and must not help the others.
    ending = close if "Content-Length" not in case["answer"] and not case["reusable"] else hold(done)
    server.on("GET|HEAD", "", [action, ending])
    with ask(server.url + "/", case["method"]) as response:
        assert response.read(100) == case["body"].encode()
        assert response.readinto(memoryview(bytearray(10))) == 0
    if case["reusable"]:
        assert ask.kept == ask.made
    elif not pieces:  # what comes later is found when the connection is taken again
        assert ask.kept == []
    done.set()


LONG = {
    "chunk extension": CHUNKED + b"5" + b";" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "reason": b"HTTP/1.1 200 " + b"x" * 70000 + b"\r\n\r\n",
    "header": OK + b"X: " + b"x" * 70000 + b"\r\n\r\n",
    "megabyte header": OK + b'WWW-Authenticate: Bearer realm="' + b"x" * (1 << 20) + b'"\r\n\r\n',
    "headers": OK + b"".join(b"X-%d: y\r\n" % number for number in range(150)) + b"\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 100000,
    "headers of hints": b"HTTP/1.1 103 Early Hints\r\n" + b"X: y\r\n" * 300000,
}


@pytest.mark.parametrize("answer", [
    *(pytest.param(answer.encode(), id=ascii(answer)) for answer in TABLES["framing_bad"]),
    *(pytest.param(answer, id="endless " + name) for name, answer in LONG.items()),
])
def test_a_short_or_ambiguous_answer_is_an_error(ask: Asker, server: ScriptedServer, answer: bytes) -> None:
    server.on("GET", "", [send(answer), close])
    with pytest.raises(NetworkError) as caught:
        with ask(server.url + "/") as response:
            response.read(1 << 20)
    assert server.host in str(caught.value)
    assert ask.kept == []


def test_bytes_before_an_early_end_are_returned_before_the_error(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", [send(OK + b"Content-Length: 100\r\n\r\n" + b"x" * 60), close])
    view = memoryview(bytearray(100))
    with ask(server.url + "/") as response:
        count = 0
        with pytest.raises(NetworkError, match="closed the connection 40 bytes early"):
            while True:
                count += response.readinto(view)
    assert count == 60


@pytest.mark.parametrize("start", [
    OK + b"Content-Length: 1048576\r\n\r\nhello",
    CHUNKED + b"100000\r\nhello",
    OK + b"Connection: close\r\n\r\nhello",
])
def test_a_read_returns_what_has_arrived_with_the_head(
        ask: Asker, server: ScriptedServer, start: bytes) -> None:
    done = threading.Event()
    server.on("GET", "", [send(start), hold(done), send(b"late")])
    view = memoryview(bytearray(1 << 20))
    with ask(server.url + "/") as response:
        assert bytes(view[:response.readinto(view)]) == b"hello"
        done.set()
        assert bytes(view[:response.readinto(view)]) == b"late"


def test_a_body_is_never_read_beyond_the_limit(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, b"x" * 300000))
    with ask(server.url + "/") as response:
        with pytest.raises(PolicyError, match="larger than 1000 bytes"):
            response.read(1000)
    assert ask.kept == []


def test_a_connection_is_kept_when_a_short_rest_is_discarded(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, b"x" * 1000), reply(200, b"x" * 300000), [
        send(OK + b"Content-Length: 9\r\n\r\n"), close])
    ask(server.url + "/").discard()
    assert len(ask.kept) == 1
    ask(server.url + "/").discard()
    ask(server.url + "/").discard()
    assert len(ask.kept) == 1


def test_a_closed_answer_has_no_more_to_give(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, b"hello"))
    response = ask(server.url + "/")
    response.close()
    response.close()
    with pytest.raises(NetworkError):
        response.read(10)


def test_a_header_that_comes_twice_has_both_values(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", send(OK + b"Content-Length: 0\r\nA: 1\r\na:  2 \r\nB: 3\r\nB: 3\r\n\r\n"))
    with ask(server.url + "/") as response:
        assert [response.header(name) for name in "ABC"] == ["1, 2", "3", ""]


@pytest.mark.parametrize("url, target", [
    ("/a/b?c=d#e", "/a/b?c=d"), ("", "/"), ("?c", "/?c"), ("#e", "/"), ("/%20?#", "/%20?"),
])
def test_a_request_names_path_and_query_only(
    ask: Asker, server: ScriptedServer, url: str, target: str
) -> None:
    server.on("GET", "", reply(200))
    ask(server.url + url).close()
    request = server.requests[0]
    assert request.target == target
    assert request.headers["host"] == server.host
    assert request.headers["accept-encoding"] == "identity"


# -- silence -------------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    drip(OK + b"X: " + b"y" * 1000, 10, 0.02),
    [send(OK + b"Content-Length: 2000\r\n\r\n"), drip(b"x" * 500, 10, 0.02)],
    [send(CHUNKED + b"7d0\r\n"), drip(b"x" * 500, 10, 0.02)],
    drip(b"", 1), send(OK), send(OK + b"Content-Length: 2000\r\n\r\n"),
], ids=["slow head", "slow body", "slow chunk", "no answer", "half a head", "no body"])
def test_a_peer_that_moves_too_little_is_stalled(
    ask: Asker, server: ScriptedServer, answer: Any
) -> None:
    server.on("GET", "", [*(answer if isinstance(answer, list) else [answer]), hold(threading.Event())])
    with Stopwatch(), pytest.raises(NetworkError, match="stalled|timed out"):
        with ask(server.url + "/", timeout=0.15) as response:
            response.read(10000)


def test_a_slow_peer_that_moves_enough_is_not_stalled(ask: Asker, server: ScriptedServer) -> None:
    body = b"x" * 40000
    server.on("GET", "", [send(OK + b"Content-Length: 40000\r\n\r\n"), drip(body, 2000, 0.02)])
    with ask(server.url + "/", timeout=0.15) as response:
        assert response.read(50000) == body


def test_a_slow_reader_is_not_a_stalled_peer(ask: Asker, server: ScriptedServer) -> None:
    pause = threading.Event()
    server.on("GET", "", [send(OK + b"Content-Length: 10\r\n\r\nhello"), hold(pause), send(b"world")])
    view = memoryview(bytearray(10))
    with ask(server.url + "/", timeout=0.15) as response:
        assert response.readinto(view) == 5
        pause.set()
        threading.Event().wait(0.3)
        assert response.readinto(view) == 5


# -- cancelling ----------------------------------------------------------------


def test_cancelling_ends_a_connect(ask: Asker) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(8)]
        for one in crowd:  # nobody accepts, so that the queue fills up
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        cancel = Cancel()
        timer = later(cancel.cancel)
        with Stopwatch(), pytest.raises(Cancelled):
            ask("http://127.0.0.1:%d/" % full.getsockname()[1], cancel=cancel)
        for one in crowd:
            one.close()
        timer.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancelling_ends_a_handshake_and_a_wait_for_an_answer(ask: Asker, scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        cancel = Cancel()
        timer = later(cancel.cancel)
        with Stopwatch(), pytest.raises(Cancelled):
            ask("%s://127.0.0.1:%d/" % (scheme, silent.getsockname()[1]), cancel=cancel,
                context=ssl.create_default_context)
        timer.join()


def test_a_cancelled_request_is_not_sent(ask: Asker, server: ScriptedServer) -> None:
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        ask(server.url + "/", cancel=cancel)
    assert server.requests == []


def test_nothing_buffered_is_returned_after_cancelling(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, b"x" * 1000))
    cancel = Cancel()
    with ask(server.url + "/", cancel=cancel) as response:
        assert response.readinto(memoryview(bytearray(10))) == 10
        cancel.cancel()
        with pytest.raises(Cancelled):
            response.readinto(memoryview(bytearray(10)))
    assert ask.kept == []


def test_a_cancelled_exchange_leaves_no_connection_behind(ask: Asker, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, b"hello"))
    cancel = Cancel()
    with ask(server.url + "/", cancel=cancel) as response:
        assert response.read(10) == b"hello"
        cancel.cancel()
    assert ask.kept == []


def test_cancelling_tls_at_any_moment_never_lets_anything_else_through(
    ask: Asker, certificates: Certificates
) -> None:
    size = 4 << 20
    period = bytes(range(251))
    body = (period * (size // 251 + 1))[:size]
    context = trusting(certificates)()
    dice = random.Random(7)
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", reply(200, body))
        view = memoryview(bytearray(1 << 18))
        cut = 0
        for number in range(200):
            cancel = Cancel()
            got = 0
            there, far = threading.Event(), dice.randrange(size // 2)

            def give_up() -> None:
                there.wait(dice.random() * 0.012 if number % 2 else 10)
                cancel.cancel()
            thread = threading.Thread(target=give_up)
            thread.start()
            try:
                with ask(server.url + "/", cancel=cancel, context=lambda: context) as response:
                    while got < size:
                        before = cancel.cancelled
                        count = response.readinto(view)
                        assert not before, "bytes after the flag"
                        assert bytes(view[:count]) == body[got:got + count]
                        got += count
                        if got >= far:
                            there.set()
                    assert not response.readinto(view)
            except Cancelled:
                assert cancel.cancelled
                cut += 0 < got < size
            there.set()
            thread.join()
            assert not [conn for conn in ask.made[-1:] if conn not in ask.kept and _is_open(conn)]
        assert cut > 20  # in the midst of the body


def _is_open(conn: Connection) -> bool:
    return conn._socket is not None and conn._socket.fileno() >= 0


# -- TLS and the operating system ----------------------------------------------


@pytest.mark.parametrize("kind", ["expired", "wrong-host", "self-signed"])
def test_a_certificate_that_is_not_trusted_is_refused(
    ask: Asker, certificates: Certificates, kind: str
) -> None:
    with ScriptedServer(tls=certificates.context(kind)) as server:
        with pytest.raises(PolicyError, match="certificate of .* is not trusted"):
            ask(server.url + "/", context=trusting(certificates))
        assert server.requests == []


def test_a_trusted_connection_is_secure_and_private(ask: Asker, certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", reply(200, b"hello"))
        with ask(server.url + "/", context=trusting(certificates)) as response:
            assert response.read(10) == b"hello"
        assert (ask.kept[0].secure, ask.kept[0].public) == (True, False)


@pytest.mark.parametrize("answer", [
    OK + b"\r\nhello", OK + b"Content-Length: 9\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n",
], ids=["until the end", "length", "chunked"])
def test_tls_cut_without_goodbye_is_a_short_body(
    ask: Asker, certificates: Certificates, answer: bytes
) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", [send(answer), close])
        with ask(server.url + "/", context=trusting(certificates)) as response:
            with pytest.raises(NetworkError) as caught:
                response.read(100)
        assert caught.value.retry


def test_tls_ended_by_goodbye_ends_a_body(ask: Asker, certificates: Certificates) -> None:
    def goodbye(connection: Any) -> None:
        connection.send(OK + b"\r\nhello")
        connection.socket.settimeout(0.05)
        try:
            connection.socket.unwrap()
        except OSError:
            pass  # the client does not say it back
        close(connection)

    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", goodbye)
        with ask(server.url + "/", context=trusting(certificates)) as response:
            assert response.read(100) == b"hello"


def test_a_connection_that_ends_in_the_handshake_may_be_tried_again(ask: Asker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def hang_up() -> None:
            accepted = listener.accept()[0]
            accepted.recv(1 << 16)  # else the end is a reset
            accepted.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Outage, match="closed the connection during the TLS handshake"):
            ask("https://127.0.0.1:%d/" % listener.getsockname()[1], context=ssl.create_default_context)
        thread.join()


def test_tls_spoken_to_a_plain_server_is_not_tried_again(ask: Asker, server: ScriptedServer) -> None:
    with pytest.raises(TLSError) as caught:
        ask("https://%s/" % server.host, context=ssl.create_default_context)
    assert not caught.value.retry


@pytest.mark.parametrize("host, text", [
    ("127.0.0.1:1", "refused"),
    ("[::1::1]", "lookup"),
    ("a%s.invalid" % ("b" * 70), "lookup"),
])
def test_an_error_of_the_system_names_the_host(ask: Asker, host: str, text: str) -> None:
    with pytest.raises(NetworkError) as caught:
        ask("http://%s/" % host)
    assert text in str(caught.value) and host.partition(":")[0] in str(caught.value)


def test_the_next_address_is_tried_where_one_is_dead(
    ask: Asker, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    unknown = [(9999, socket.SOCK_STREAM, 0, "", ("nowhere", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *rest: (
        unknown + real("127.0.0.3", port, *rest) + real("127.0.0.1", port, *rest)))
    server.on("GET", "", reply(200))
    ask(server.url.replace("127.0.0.1", "two.invalid") + "/").close()
    assert server.requests[0].headers["host"] == server.host.replace("127.0.0.1", "two.invalid")


def test_a_private_address_is_refused_before_anything_is_sent(ask: Asker, server: ScriptedServer) -> None:
    with pytest.raises(PolicyError, match="private address"):
        ask(server.url + "/", only_public=True)
    assert server.requests == []


def test_a_connection_with_unread_bytes_is_not_quiet(ask: Asker, server: ScriptedServer) -> None:
    event = threading.Event()
    server.on("GET", "", reply(200), [reply(200), hold(event), send(b"unasked")])
    ask(server.url + "/").close()
    conn = ask.kept[0]
    assert conn.quiet()
    ask.again(conn, server.url + "/").close()
    event.set()
    end = time.monotonic() + 5
    while conn.quiet():
        assert time.monotonic() < end


# -- what a request brings -------------------------------------------------------


LARGE = bytes(range(251)) * 20000  # more than any buffer on its way


def bodies(server: ScriptedServer) -> List[bytes]:
    """What PUT requests bring, as it comes."""
    found: List[bytes] = []
    server.on("PUT", "", [lambda connection: found.append(connection.body()), reply(201)])
    return found


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "file").write_bytes(LARGE)
    with open(str(tmp_path / "file"), "rb", buffering=0) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, 1 << 16, len(LARGE)])
def test_a_body_of_known_size_arrives_whole(ask: Asker, server: ScriptedServer, size: int) -> None:
    found, counts = bodies(server), [0]
    body = Body(lambda: [LARGE[:100], memoryview(LARGE)[100:size]] if size > 100 else [LARGE[:size]], size,
                counts.append)
    ask(server.url + "/", "PUT", body=body).discard()
    assert found == [LARGE[:size]] and server.requests[0].headers["content-length"] == str(size)
    assert counts == sorted(counts) and counts[-1] == size
    ask.again(ask.kept[0], server.url + "/", "PUT", body=Body.of(b"x")).close()
    assert found[1:] == [b"x"] and server.connections == 1


@pytest.mark.parametrize("pieces", [[], [LARGE], [b"a", memoryview(b"bc"), LARGE[:70000]]], ids=len)
def test_a_body_of_unknown_size_goes_in_chunks(ask: Asker, server: ScriptedServer, pieces: List[Any]) -> None:
    found, counts = bodies(server), [0]
    ask(server.url + "/", "PUT", body=Body(lambda: pieces, None, counts.append)).discard()
    assert found == [b"".join(pieces)] and server.requests[0].headers["transfer-encoding"] == "chunked"
    assert "content-length" not in server.requests[0].headers
    assert counts[-1] == len(found[0]) and len(ask.kept) == 1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_part_of_a_file_is_sent_without_moving_its_position(
    ask: Asker, certificates: Certificates, file: Any, tls: bool
) -> None:
    with ScriptedServer(tls=certificates.context() if tls else None) as server:
        found, counts = bodies(server), [0]
        for offset, size in ((0, len(LARGE)), (1000, 70000), (5, 0), (len(LARGE) - 1, 1)):
            body = FileBody(file, offset, size, counts.append)
            ask(server.url + "/", "PUT", body=body, context=trusting(certificates)).discard()
            assert found.pop() == LARGE[offset:offset + size]
            assert file.tell() == 0 and counts[-1] == size or not size


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_file_that_ends_early_is_an_error_of_the_store(
    ask: Asker, certificates: Certificates, file: Any, tls: bool
) -> None:
    with ScriptedServer(tls=certificates.context() if tls else None) as server:
        bodies(server)
        with pytest.raises(StorageError, match="sent to %s ends at byte %d of %d" % (
                server.host, len(LARGE) - 5, len(LARGE))):
            ask(server.url + "/", "PUT", body=FileBody(file, 5, len(LARGE)), context=trusting(certificates))
        assert ask.kept == []


def test_an_error_of_the_body_is_raised_unchanged(ask: Asker, server: ScriptedServer) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x"
        raise StorageError("mine")

    bodies(server)
    for size in (None, 100):
        with pytest.raises(StorageError, match="mine"):
            ask(server.url + "/", "PUT", body=Body(pieces, size))
    assert ask.kept == []


@pytest.mark.parametrize("size", [None, 40 * len(LARGE)])
def test_an_answer_before_the_end_of_the_body_ends_the_request_and_the_connection(
    ask: Asker, server: ScriptedServer, size: Optional[int]
) -> None:
    counts = [0]
    server.on("PUT", "", [send(head(413, {"Content-Length": "2"}) + b"no"), hold(threading.Event())])
    body = Body(lambda: [LARGE] * 40, size, counts.append)
    with ask(server.url + "/", "PUT", body=body) as response:
        assert (response.status, response.read(10)) == (413, b"no")
    assert 0 < counts[-1] < 40 * len(LARGE) and ask.kept == []


def test_over_tls_an_early_answer_is_not_confused_with_session_tickets(
    ask: Asker, certificates: Certificates
) -> None:
    counts = [0]
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", reply(200))
        server.on("PUT", "", [send(head(413, {"Content-Length": "0"})), hold(threading.Event())])
        ask(server.url + "/", context=trusting(certificates)).close()
        body = Body(lambda: [LARGE] * 40, 40 * len(LARGE), counts.append)
        assert ask.again(ask.kept[0], server.url + "/", "PUT", body=body).status == 413
        assert 0 < counts[-1] < 40 * len(LARGE)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_server_that_closes_during_the_body_is_a_network_error(
    ask: Asker, certificates: Certificates, file: Any, tls: bool
) -> None:
    with ScriptedServer(tls=certificates.context() if tls else None) as server:
        server.on("PUT", "", close)
        for body in (Body(lambda: [LARGE] * 9, 9 * len(LARGE)), FileBody(file, 0, len(LARGE))):
            with pytest.raises(NetworkError) as caught:
                ask(server.url + "/", "PUT", body=body, context=trusting(certificates))
            assert caught.value.retry and server.host in str(caught.value)


def test_a_server_that_reads_nothing_times_out(ask: Asker, server: ScriptedServer, tmp_path: Path) -> None:
    server.on("PUT", "", hold(threading.Event()))
    with (tmp_path / "large").open("wb+", buffering=0) as file:
        file.truncate(64 << 20)
        with Stopwatch(), pytest.raises(NetworkError, match="timed out"):
            ask(server.url + "/", "PUT", body=FileBody(file, 0, 64 << 20), timeout=0.15)
    for body in (Body(lambda: [LARGE] * 40, 40 * len(LARGE)), Body(lambda: [LARGE] * 40)):
        with Stopwatch(), pytest.raises(NetworkError, match="timed out"):
            ask(server.url + "/", "PUT", body=body, timeout=0.15)


def test_sending_ends_when_cancelled(ask: Asker, server: ScriptedServer) -> None:
    server.on("PUT", "", hold(threading.Event()))
    cancel = Cancel()
    timer = later(cancel.cancel)
    with Stopwatch(), pytest.raises(Cancelled):
        ask(server.url + "/", "PUT", cancel=cancel, body=Body(lambda: [LARGE] * 40, 40 * len(LARGE)))
    timer.join()
