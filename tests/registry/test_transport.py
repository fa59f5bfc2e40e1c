# SPDX-License-Identifier: Apache-2.0
"""A request is repeated, redirected or given up by rules, and secrets stay where they belong."""
import contextlib
import email.utils
import json
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from tests.kit import DATA
from minipull.registry import transport as module
from minipull.registry.url import Origin
from minipull.registry.endpoints import RegistryService
from minipull.errors import Cancelled, NetworkError, PolicyError, RateLimited, TLSError
from minipull.cancel import Cancel
from minipull.registry.request import Body, Request
from minipull.registry.transport import Transport, retry_after
from tests.kit.certificates import Certificates
from tests.kit.servers import (
    Action, ScriptedServer, close, error, hold, redirect, reply, reset, send, sleep)

pytestmark = pytest.mark.usefixtures("no_waiting")

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
SECRETS = {"Authorization": "Basic c2VjcmV0", "Cookie": "a=b", "X-Api-Key": "secret"}


Made = Callable[..., Transport]


@pytest.fixture
def make() -> Iterator[Made]:
    made: List[Transport] = []

    def call(ca: Optional[Path] = None, timeout: float = 5, headers: Optional[Dict[str, str]] = None) -> Transport:
        service = RegistryService(ca_file=str(ca or ""))
        made.append(Transport(
            lambda origin: service.tls_context(Origin.of("https://r.com")), timeout, headers))
        return made[-1]
    yield call
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make: Made) -> Transport:
    return make()


def get(transport: Transport, url: str, method: str = "GET", headers: Optional[Dict[str, str]] = None,
        cancel: Optional[Cancel] = None, body: Optional[bytes] = None, follow: bool = True,
        only_public: bool = False) -> str:
    """The status and body of the answer."""
    request = Request(method, url, cancel or Cancel(), headers or {}, None if body is None else Body.of(body),
                      follow=follow, only_public=only_public)
    with transport.send(request) as response:
        return "%d %s" % (response.status, response.read(1000).decode())


# -- repeating -----------------------------------------------------------------


@pytest.mark.parametrize("status, times", [
    (408, 4), (425, 4), (500, 4), (502, 4), (503, 4), (504, 4), (429, 6),
    (200, 1), (204, 1), (304, 1), (400, 1), (401, 1), (403, 1), (404, 1), (405, 1), (410, 1), (501, 1), (505, 1),
])
def test_a_status_that_may_pass_is_asked_for_again(
    transport: Transport, server: ScriptedServer, status: int, times: int
) -> None:
    server.on("GET", "", reply(status))
    assert get(transport, server.url) == "%d " % status
    assert len(server.requests) == times
    assert server.connections == 1 + (status == 400)  # whether it speaks TLS is tried then


def test_a_request_succeeds_as_soon_as_the_server_does(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", error(503), reset, error(429), error(500), reply(200, "done"))
    assert get(transport, server.url) == "200 done"
    assert len(server.requests) == 5


def test_a_request_that_never_gets_an_answer_ends(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", close)
    with pytest.raises(NetworkError, match="closed the connection without an answer"):
        get(transport, server.url)
    assert len(server.requests) == 4


def test_a_tls_or_certificate_error_is_not_repeated(
    make: Made, server: ScriptedServer, certificates: Certificates
) -> None:
    with pytest.raises(TLSError):
        get(make(), "https://" + server.host)
    with ScriptedServer(tls=certificates.context("self-signed")) as other:
        with pytest.raises(PolicyError):
            get(make(certificates.ca), other.url)
        assert other.connections == 2  # the second one only asks for the name of the issuer
    assert server.connections == 1


def silent(host: str) -> Tuple[str, socket.socket]:
    """A URL where connections are accepted by the system, and no byte is ever said."""
    listener = socket.create_server((host, 0))
    return "%s:%d" % (host, listener.getsockname()[1]), listener


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_peer_is_waited_for_once_and_no_longer_than_the_timeout(make: Made, scheme: str) -> None:
    host, listener = silent("127.0.0.1")
    start = time.monotonic()
    with listener:
        with pytest.raises(NetworkError, match="^%s: timed out" % host) as caught:
            get(make(timeout=0.2), "%s://%s/" % (scheme, host))
        assert time.monotonic() - start < 5
        assert caught.value.retry  # by the engine's attempts, which count
        listener.accept()[0].close()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_peer_that_takes_no_connection_is_waited_for_once(make: Made) -> None:
    host, listener = silent("127.0.0.1")
    start = time.monotonic()
    with listener, contextlib.ExitStack() as stack:
        listener.listen(0)
        for _ in range(4):  # nobody accepts, so that the queue fills up
            crowd = stack.enter_context(socket.socket())
            crowd.setblocking(False)
            crowd.connect_ex(listener.getsockname())
        with pytest.raises(NetworkError, match="timed out"):
            get(make(timeout=0.3), "http://%s/" % host)
    assert time.monotonic() - start < 1  # four times would be more


@pytest.mark.parametrize("answer, outcome", [(error(503), "503 "), (error(429), "200 x"), (close, "closed")])
def test_failures_that_have_cost_the_timeout_are_not_repeated(
        make: Made, server: ScriptedServer, answer: Action, outcome: str) -> None:
    server.on("GET", "", *[[sleep(0.21), answer]] * 2, reply(200, "x"))
    try:
        text = get(make(timeout=0.4), server.url)
    except NetworkError as exc:
        text = str(exc)
    assert outcome in text
    assert len(server.requests) == (3 if outcome == "200 x" else 2)  # a rate limit is no failure


def test_connections_that_fell_silent_while_idle_cost_one_timeout(make: Made, server: ScriptedServer) -> None:
    transport = make(timeout=0.2)
    server.on("GET", "", *[reply(200)] * 3, hold(threading.Event()), reply(200, "x"))
    for response in [transport.send(Request("GET", server.url, Cancel())) for _ in range(3)]:
        response.close()
    for _ in range(3):
        assert get(transport, server.url) == "200 x"
    assert (server.connections, len(server.requests)) == (4, 7)


@pytest.mark.parametrize("text, seconds", TABLES["retry_after"], ids=lambda value: ascii(value))
def test_retry_after_is_seconds_or_a_date_or_nothing(text: str, seconds: float) -> None:
    assert retry_after(text) == seconds


def test_a_retry_after_that_breaks_the_parser_of_some_versions_is_nothing() -> None:
    for text in ("1 Jan 1 0.0.0.0", "Mon, 1 Jan 1 0.0.0.0", "1 Jan 99999 00:00:00 +9999999999"):
        assert retry_after(text) == 0.0


def test_retry_after_as_a_date_is_counted_from_now() -> None:
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60


@pytest.mark.parametrize("status, text", [(429, "limits our rate"), (503, "is not available")])
def test_a_retry_after_over_a_minute_is_an_error_at_once(
    transport: Transport, server: ScriptedServer, status: int, text: str
) -> None:
    server.on("GET", "", error(status, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited, match=text + "; try again in 3600 seconds"):
        get(transport, server.url)
    assert len(server.requests) == 1


def test_retry_after_is_waited_for(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", error(429, headers={"Retry-After": "1"}), reply(200))
    start = time.monotonic()
    assert get(transport, server.url) == "200 "
    assert 1 <= time.monotonic() - start < 3


def test_waiting_ends_when_cancelled(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", error(503, headers={"Retry-After": "60"}))
    cancel = Cancel()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        get(transport, server.url, cancel=cancel)
    assert time.monotonic() - start < 1
    with pytest.raises(Cancelled):
        get(transport, server.url, cancel=cancel)
    timer.join()
    assert len(server.requests) == 1


# -- connections ---------------------------------------------------------------


def test_a_connection_serves_many_requests(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "/sized", reply(200, "x"))
    server.on("GET", "/chunked", reply(200, "y", chunked=True))
    server.on("GET", "/none", reply(204))
    server.on("POST", "", reply(200, "z"))
    for _ in range(3):
        assert get(transport, server.url + "/sized") == "200 x"
        assert get(transport, server.url + "/sized", "HEAD") == "200 "
        assert get(transport, server.url + "/chunked") == "200 y"
        assert get(transport, server.url + "/none") == "204 "
        assert get(transport, server.url + "/", "POST", body=b"body") == "200 z"
        assert get(transport, server.url + "/missing").startswith("404 ")
    assert server.connections == 1


def test_a_connection_that_went_stale_costs_no_attempt(
    transport: Transport, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_DELAYS", ())
    server.on("GET", "", reply(200), reset, reply(200), close, reply(200), [reply(200), close], reply(200))
    for _ in range(5):
        assert get(transport, server.url) == "200 "
    assert server.connections == 4


def test_a_stale_connection_is_not_told_from_a_server_that_always_closes(
    transport: Transport, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_DELAYS", ())
    server.on("GET", "", reply(200), close)
    assert get(transport, server.url) == "200 "
    with pytest.raises(NetworkError):
        get(transport, server.url)
    assert server.connections == 2


def test_an_unrequested_answer_is_never_taken_for_the_next_one(
    transport: Transport, server: ScriptedServer
) -> None:
    sent = threading.Event()
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    server.on("GET", "", [reply(200, "one"), send(evil), lambda connection: sent.set()], reply(200, "two"))
    assert get(transport, server.url) == "200 one"
    sent.wait(5)
    assert get(transport, server.url) == "200 two"
    assert server.connections == 2


def test_threads_share_connections_but_not_answers(transport: Transport, server: ScriptedServer) -> None:
    for number in range(8):
        server.on("GET", "/%d$" % number, reply(200, str(number)))
    wrong: List[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            answer = get(transport, "%s/%d" % (server.url, number))
            if answer != "200 %d" % number:
                wrong.append(answer)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert server.connections <= 8


def test_closing_drops_idle_connections_and_those_that_are_returned_later(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200, "x"))
    assert get(transport, server.url) == "200 x"
    response = transport.send(Request("GET", server.url, Cancel()))
    transport.close()
    assert response.read(10) == b"x"
    response.close()
    assert get(transport, server.url) == "200 x"
    assert server.connections == 2


def test_idle_connections_have_a_bound_and_the_oldest_goes_first(
        transport: Transport, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.registry.transport.MAX_IDLE", 2)
    server.on("GET", "", reply(200, "x"))
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(transport.send(Request("GET", server.url, Cancel()))) for _ in range(5)]
        assert [answer.read(9) for answer in answers] == [b"x"] * 5
    for connections in (5, 5, 5):  # one after the other by one of those that are left
        assert get(transport, server.url) == "200 x" and server.connections == connections
    with contextlib.ExitStack() as stack:
        for answer in [stack.enter_context(transport.send(Request("GET", server.url, Cancel()))) for _ in range(3)]:
            answer.read(9)
    assert server.connections == 6


def test_hosts_that_have_spoken_tls_are_remembered(make: Made, certificates: Certificates, server: ScriptedServer) -> None:
    transport = make(certificates.ca)
    server.on("GET", "", reply(200))
    get(transport, server.url)
    with pytest.raises(TLSError):
        get(transport, "https://" + server.host)
    assert transport.spoke_tls == set()
    with ScriptedServer(tls=certificates.context()) as other:
        get(transport, other.url)
        assert transport.spoke_tls == {Origin.of(other.url)[1:]}
        assert transport.verifies(Origin.of(other.url))
    assert not transport.verifies(Origin.of(server.url))


def test_a_header_of_the_request_replaces_the_users_own_whatever_its_case(make: Made, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200))
    get(make(headers={"user-AGENT": "me", "accept": "c/d", "x-meta": "1"}), server.url, headers={"Accept": "a/b"})
    assert server.requests[0].headers == {"host": server.host, "accept-encoding": "identity",
                                          "user-agent": "me", "accept": "a/b", "x-meta": "1"}


# -- redirects -----------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_origin_gets_the_range_but_no_secret(
    make: Made, server: ScriptedServer, foreign: ScriptedServer, status: int, method: str
) -> None:
    server.on("GET", "", redirect(foreign.url + "/there?signature=1", status))
    foreign.on("GET", "", reply(200, "x"))
    transport = make(headers={"User-Agent": "me", "X-Meta": "secret"})
    headers = dict(SECRETS, Range="bytes=5-", Accept="a/b")
    assert get(transport, server.url, method, headers) == ("200 x" if method == "GET" else "200 ")
    request = foreign.requests[0]
    assert (request.method, request.target) == (method, "/there?signature=1")
    assert request.headers == {"host": foreign.host, "accept-encoding": "identity",
                               "range": "bytes=5-", "accept": "a/b", "user-agent": "me"}
    assert server.requests[0].headers["authorization"] == SECRETS["Authorization"]
    assert server.requests[0].headers["x-meta"] == "secret"


def test_another_port_is_another_origin(transport: Transport, server: ScriptedServer) -> None:
    with ScriptedServer() as other:
        other.on("GET", "", reply(200))
        server.on("GET", "", redirect(other.url))
        get(transport, server.url, headers=SECRETS)
        other.assert_no_credentials()


def test_a_secret_does_not_come_back_from_another_origin(
    transport: Transport, server: ScriptedServer, foreign: ScriptedServer
) -> None:
    server.on("GET", "/1", redirect(foreign.url + "/2"))
    foreign.on("GET", "/2", redirect(server.url + "/3"))
    server.on("GET", "/3", reply(200))
    assert get(transport, server.url + "/1", headers=SECRETS) == "200 "
    assert "authorization" not in server.requests[1].headers


@pytest.mark.parametrize("location, target", [
    ("/b", "/b"), ("b", "/a/b"), ("?b", "/a/?b"), ("../b", "/b"), ("//HOST/b#c", "/b"),
    ("http://user:pw@HOST/b", "/b"), ("http://HOST", "/"),
])
def test_a_redirect_within_an_origin_keeps_secrets_and_connection(
    transport: Transport, server: ScriptedServer, location: str, target: str
) -> None:
    location = location.replace("HOST", server.host)
    server.on("GET", "", reply(307, "moved", {"Location": location}), reply(200))
    assert get(transport, server.url + "/a/", headers=SECRETS) == "200 "
    assert server.requests[1].target == target
    assert server.requests[1].headers["authorization"] == SECRETS["Authorization"]
    assert server.connections == 1


@pytest.mark.parametrize("location", [
    "ftp://127.0.0.2/", "file:///etc/passwd", "data:,x", "http://", "http://[::1", "http://a b/",
    "http://good\\@127.0.0.2/", "http://127.0.0.2:99999/", "/\u00e9", "http://127.0.0.2\t/",
])
def test_a_redirect_to_anything_but_a_web_address_is_refused(
    transport: Transport, server: ScriptedServer, location: str
) -> None:
    server.on("GET", "", redirect(location))
    with pytest.raises(PolicyError):
        get(transport, server.url + "/a", headers=SECRETS)


def test_a_redirect_from_https_to_http_is_refused(
    make: Made, certificates: Certificates, foreign: ScriptedServer
) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "", redirect(foreign.url))
        with pytest.raises(PolicyError, match="from https to http"):
            get(make(certificates.ca), server.url)
    assert foreign.connections == 0


def test_ten_redirects_are_followed_and_no_more(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", redirect("/again"))
    with pytest.raises(PolicyError, match="stopped after 10 redirects"):
        get(transport, server.url)
    assert len(server.requests) == 11
    server.on("GET", "", *[redirect("/again")] * 10, reply(200))
    assert get(transport, server.url) == "200 "


def test_a_redirect_with_a_large_body_is_followed_without_reading_it(
        transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", reply(200))
    server.on("GET", "/1", reply(307, bytes(1 << 18), {"Location": "/2"}))
    get(transport, server.url + "/1")
    assert transport.network.traffic[server.host][0] < 1 << 17  # what comes along with the head


def test_a_redirect_to_nowhere_is_the_answer(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET", "", reply(307, headers={"Location": ""}))
    assert get(transport, server.url) == "307 "


def test_a_redirect_is_refused_where_none_is_expected(transport: Transport, server: ScriptedServer) -> None:
    server.on("GET|POST", "", redirect("/there", 302))
    with pytest.raises(PolicyError, match="redirects a POST request"):
        get(transport, server.url, "POST", body=b"secret")
    with pytest.raises(PolicyError, match="redirects a GET request"):
        get(transport, server.url, follow=False)
    assert len(server.requests) == 2


def test_a_body_follows_a_redirect_within_its_origin_alone(transport: Transport, server: ScriptedServer) -> None:
    bodies: List[bytes] = []
    server.on("PUT", "/there", [lambda connection: bodies.append(connection.body()), reply(201)])
    server.on("PUT", "/here", redirect("/there"))
    assert get(transport, server.url + "/here", "PUT", body=b"blob") == "201 "
    assert bodies == [b"blob"]
    with ScriptedServer() as other:
        server.on("PUT", "/here", redirect(other.url + "/there"))
        with pytest.raises(PolicyError, match="redirects a PUT request"):
            get(transport, server.url + "/here", "PUT", body=b"blob")
        assert other.requests == []


@pytest.mark.parametrize("status, method, body, followed", [
    (307, "POST", None, True), (308, "POST", None, True), (301, "POST", None, False), (303, "POST", None, False),
    (307, "POST", b"", False), (307, "POST", b"x", False), (307, "PUT", None, False), (307, "DELETE", None, False)])
def test_a_post_without_a_body_follows_a_redirect_to_another_host_and_no_secret_does(
        transport: Transport, server: ScriptedServer, foreign: ScriptedServer, status: int, method: str,
        body: Optional[bytes], followed: bool) -> None:
    server.on(method, "", redirect(foreign.url + "/there", status))
    foreign.on(method, "/there", reply(202))
    if followed:
        assert get(transport, server.url, method, body=body, headers={"Authorization": "secret"}) == "202 "
        assert foreign.requests[0].headers["content-length"] == "0"
    else:
        with pytest.raises(PolicyError, match="redirects a %s request" % method):
            get(transport, server.url, method, body=body)
        assert foreign.connections == 0


def test_a_public_host_can_not_redirect_to_a_private_address(
    transport: Transport, server: ScriptedServer
) -> None:
    with pytest.raises(PolicyError, match="a private address"):
        get(transport, server.url, only_public=True)
    assert server.requests == []


# -- warnings --------------------------------------------------------------------


def warned(server: ScriptedServer, *answers: Action, times: int = 1) -> List[str]:
    """What is heard of a registry that gives these answers."""
    server.on("GET", "", *answers)
    heard: List[str] = []
    transport = RegistryService(warn=heard.append).transport()
    for _ in range(times):
        get(transport, server.url)
    transport.close()
    assert all(line.startswith(server.host + ": ") for line in heard)
    return [line[len(server.host) + 2:] for line in heard]


def warning(*values: str) -> Action:
    lines = "".join("Warning: %s\r\n" % value for value in values)
    return send(("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%s\r\n" % lines).encode())


def test_a_warning_of_the_registry_is_heard_once(server: ScriptedServer) -> None:
    one, both = warning('299 - "one"'), warning('299 - "two"', '299 - "one"')
    assert warned(server, one, one, both, both, times=5) == ["one", "two"]


@pytest.mark.parametrize("value, heard", [
    ('299 - "a \\"b\\", d"', ['a "b", d']), ('299 - "\x85\x1b[1m"', ["\\xc2\\x85\\x1b[1m"]), ('299 - "a", 299 - "b"', ["a", "b"]),
    ('299 - "a" "Sun, 06 Nov 1994 08:49:37 GMT"', ["a"]), ('299 - ""', [""]),
    ('110 - "stale"', []), ('299 cache.example "a"', []), ("299 - a", []), ('299 - "open', []), ("", []),
    ('299 - "%s"' % ("x" * 5000), []), ('299 - "a", 299 - "%s"' % ("x" * 5000), ["a"]),
])
def test_a_warning_is_read_as_distribution_spec_defines_it(
    server: ScriptedServer, value: str, heard: List[str]
) -> None:
    assert warned(server, warning(value)) == heard


def test_warnings_of_a_redirect_target_are_ignored(server: ScriptedServer, foreign: ScriptedServer) -> None:
    foreign.on("GET", "", warning('299 - "foreign"'))
    away = {"Location": foreign.url, "Warning": '299 - "moved"'}
    assert warned(server, reply(307, headers=away)) == ["moved"]
    assert len(foreign.requests) == 1
