# SPDX-License-Identifier: Apache-2.0
"""Who is asked by way of a proxy, and what a proxy, an origin and a reader get to see."""
import base64
import json
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.kit import DATA
from tests.kit import images
from tests.kit.processes import DockerRegistry, Minipull, free_port
from tests.kit.images import Layout
from minipull.registry.connection import MAX_HEAD
from minipull.registry.url import Origin
from minipull.registry.endpoints import RegistryService
from minipull.errors import Cancelled, InvalidReference, NetworkError, PolicyError, TLSError, Unauthorized
from minipull.registry.proxy import Proxies
from minipull.cancel import Cancel
from minipull.registry.request import Request
from minipull.registry.transport import Transport
from tests.kit.certificates import Certificates
from tests.kit.proxies import FaultProxy, Proxy
from tests.kit.servers import ScriptedServer, close, drip, hold, redirect, reply, reset, send

pytestmark = pytest.mark.usefixtures("no_waiting")

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
LOGIN = "ann:s3cret"
TEST = "registry.test:5000"


@pytest.fixture
def proxy(server: ScriptedServer) -> Iterator[Proxy]:
    """To it the server is registry.test:5000, and whoever else is asked for is nowhere."""
    with Proxy({TEST: server.host}, LOGIN) as made:
        yield made


Made = Callable[..., Transport]


@pytest.fixture
def make(proxy: Proxy) -> Iterator[Made]:
    made: List[Transport] = []

    def call(login: str = LOGIN, host: str = "", **settings: Any) -> Transport:
        url = "http://%s@%s" % (login, host or proxy.host)
        made.append(RegistryService(timeout=5, proxies=Proxies(url, url), **settings).transport())
        return made[-1]
    yield call
    for transport in made:
        transport.close()


def get(transport: Transport, url: str, **more: Any) -> str:
    with transport.send(Request("GET", url, Cancel(), **more)) as response:
        return "%d %s" % (response.status, response.read(1000).decode())


# -- the rules -----------------------------------------------------------------


@pytest.mark.parametrize("listed, url, proxied", TABLES["no_proxy"])
def test_no_proxy_follows_the_rules_of_go(listed: str, url: str, proxied: bool) -> None:
    if listed == "LIST":
        listed = TABLES["no_proxy_list"]
    found = Proxies("http://proxy:1", "http://proxy:2", listed).find(Origin.of(url))
    assert (found is not None) is proxied
    assert found is None or found.port == (2 if url.startswith("https") else 1)


@pytest.mark.parametrize("text, place", TABLES["proxy_good"], ids=ascii)
def test_a_proxy_is_a_host_with_or_without_a_login(text: str, place: List[Any]) -> None:
    found = Proxies(http=text).get("http")
    assert found is not None and [found.host, found.port] == place[:2]
    login = base64.b64decode(found.authorization.partition(" ")[2]).decode()
    assert login == place[2]
    assert found.authorization.startswith("Basic ") or not login
    assert "s3" not in repr(found) and "s3" not in repr(Proxies(http=text))
    assert Proxies(http=text).get("https") is None


def test_a_login_is_the_bytes_that_the_environment_holds() -> None:
    found = Proxies(http=b"http://ann:\xff%ff@proxy".decode("utf-8", "surrogateescape")).get("http")
    assert found is not None and base64.b64decode(found.authorization[6:]) == b"ann:\xff\xff"


@pytest.mark.parametrize("text", TABLES["proxy_bad"], ids=ascii)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(text: str) -> None:
    proxies = Proxies(https=text)
    with pytest.raises(InvalidReference, match="^HTTPS_PROXY ") as caught:
        proxies.find(Origin.of("https://example.com"))
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)
    assert proxies.find(Origin.of("https://localhost")) is None  # whoever needs none is not stopped
    assert proxies.find(Origin.of("http://example.com")) is None


# -- plain http ----------------------------------------------------------------


def test_plain_http_is_relayed_on_one_connection(make: Made, proxy: Proxy, server: ScriptedServer) -> None:
    server.on("GET|POST", "", reply(200, "x"))
    transport = make()
    for path in ("/a?b=c", "", "/%2e#fragment"):
        assert get(transport, "http://" + TEST + path) == "200 x"
    assert [request.target for request in proxy.requests] == [
        "http://%s/%s" % (TEST, path) for path in ("a?b=c", "", "%2e")]
    assert {request.headers["host"] for request in proxy.requests + server.requests} == {TEST}
    assert proxy.connections == 1
    server.assert_no_credentials()


def test_a_bad_gateway_of_the_proxy_is_an_answer(make: Made) -> None:
    assert get(make(), "http://elsewhere.test/") == "502 "


# -- https ---------------------------------------------------------------------


@pytest.fixture
def tunnelled(proxy: Proxy, certificates: Certificates) -> Iterator[ScriptedServer]:
    """The server of the proxy's registry.test:5000, with TLS."""
    with ScriptedServer(tls=certificates.context()) as made:
        proxy.hosts = {TEST: made.host, "registry.test:443": made.host}
        made.on("GET", "", reply(200, "x"))
        yield made


def test_https_is_tunnelled_and_the_login_stays_outside(
    make: Made, proxy: Proxy, tunnelled: ScriptedServer, certificates: Certificates
) -> None:
    transport = make(ca_file=str(certificates.ca))
    for _ in range(3):
        assert get(transport, "https://%s/v2/" % TEST) == "200 x"
    assert get(transport, "https://registry.test/v2/") == "200 x"
    assert [(request.method, request.target) for request in proxy.requests] == [
        ("CONNECT", TEST), ("CONNECT", "registry.test:443")]
    for request in proxy.requests:
        assert set(request.headers) == {"host", "proxy-authorization", "accept-encoding"}
        assert request.headers["host"] == request.target
    assert [request.headers["host"] for request in tunnelled.requests] == [TEST] * 3 + ["registry.test"]
    assert {request.target for request in tunnelled.requests} == {"/v2/"}
    assert (proxy.connections, tunnelled.connections) == (2, 2)
    tunnelled.assert_no_credentials()
    assert transport.spoke_tls == {("registry.test", 5000), ("registry.test", 443)}


def test_a_proxy_can_not_stand_in_for_the_registry(
    make: Made, proxy: Proxy, certificates: Certificates
) -> None:
    with ScriptedServer(tls=certificates.context("wrong-host")) as evil:
        proxy.hosts = {TEST: evil.host}
        with pytest.raises(PolicyError, match="certificate of %s is not trusted" % TEST):
            get(make(ca_file=str(certificates.ca)), "https://" + TEST)
        assert evil.requests == []


def test_a_plain_server_behind_a_tunnel_is_no_secure_one(make: Made) -> None:
    with pytest.raises(TLSError, match="%s does not speak TLS" % TEST):
        get(make(), "https://" + TEST)


@pytest.mark.parametrize("established", [
    b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.0 299 Fine\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"])
def test_any_success_opens_a_tunnel_also_after_informational_answers(
    make: Made, proxy: Proxy, tunnelled: ScriptedServer, certificates: Certificates, established: bytes
) -> None:
    proxy.established = established
    assert get(make(ca_file=str(certificates.ca)), "https://" + TEST) == "200 x"
    assert (proxy.connections, tunnelled.connections) == (1, 1)


# -- secrets -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_login_never_travels_along_a_redirect(
    make: Made, proxy: Proxy, foreign: ScriptedServer, certificates: Certificates, scheme: str
) -> None:
    tls = certificates.context() if scheme == "https" else None
    with ScriptedServer(tls=tls) as first, ScriptedServer(tls=tls) as second:
        proxy.hosts = {"registry.test:1": first.host, "registry.test:2": second.host}
        first.on("GET", "/relayed", redirect(scheme + "://registry.test:2/"))
        first.on("GET", "/direct", redirect(second.url))
        second.on("GET", "", reply(200, "x"))
        transport = make(ca_file=str(certificates.ca))
        for path in ("/relayed", "/direct"):
            assert get(transport, "%s://registry.test:1%s" % (scheme, path)) == "200 x"
        assert len(second.requests) == 2
        first.assert_no_credentials()
        second.assert_no_credentials()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("login", ["ann:wr0ng", "eve:s3cret", "ann"])
def test_a_proxy_that_wants_another_login_is_named(
    make: Made, proxy: Proxy, server: ScriptedServer, scheme: str, login: str
) -> None:
    with pytest.raises(Unauthorized) as caught:
        get(make(login), "%s://%s/" % (scheme, TEST))
    assert str(caught.value) == (
        "proxy %s: 407 Proxy Authentication Required; put USER:PASSWORD@ in front of its host" % proxy.host)
    assert len(proxy.requests) == 1
    assert server.connections == 0


def test_a_407_of_the_registry_itself_is_an_answer(
    make: Made, tunnelled: ScriptedServer, certificates: Certificates
) -> None:
    tunnelled.on("GET", "", reply(407, "x"))
    assert get(make(ca_file=str(certificates.ca)), "https://" + TEST) == "407 x"


# -- what can go wrong -----------------------------------------------------------


@pytest.mark.parametrize("script, text, times", [
    (reply(403), "403 Forbidden", 1), (reply(404), "404 Not Found", 1), (reply(502, "x"), "502 Bad Gateway", 4),
    (send(b"HTTP/1.1 400 no\x85\x1b[1m\r\n\r\n"), r"400 no\\x85\\x1b\[1m", 1),
    (redirect("http://127.0.0.1/"), "307 Temporary Redirect", 1),
    (close, "closed the connection without an answer", 4), (reset, "connection reset by peer", 4),
    ([send(b"garbage\r\n\r\n"), close], "malformed answer", 4),
    (send(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200), "malformed answer", 4),
    (drip(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20), 1 << 20, 0), "endless head", 4),
], ids=lambda value: "" if callable(value) else None)
def test_a_tunnel_that_is_not_to_be_had_is_the_proxys_fault(
    make: Made, proxy: Proxy, server: ScriptedServer, script: Any, text: str, times: int
) -> None:
    def act(connection: Any) -> None:
        for action in [script] if callable(script) else script:
            action(connection)
    proxy.script = act
    with pytest.raises(NetworkError, match=text) as caught:
        get(make(), "https://" + TEST)
    assert str(caught.value).count("proxy " + proxy.host) == 1
    assert len(proxy.requests) == times
    assert server.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host, text", [
    ("127.0.0.1:%d" % free_port(), "proxy .*: connection refused"), ("proxy.invalid", "lookup proxy.invalid: ")])
def test_a_proxy_that_can_not_be_reached_is_named(make: Made, scheme: str, host: str, text: str) -> None:
    with pytest.raises(NetworkError, match=text):
        get(make(host=host), "%s://%s/" % (scheme, TEST))


def test_bytes_that_a_proxy_adds_are_no_answer_of_the_registry(
    make: Made, proxy: Proxy, certificates: Certificates
) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    proxy.script = send(evil + evil + b"evil")
    with pytest.raises(NetworkError):
        get(make(ca_file=str(certificates.ca)), "https://" + TEST)


def test_a_silent_proxy_is_waited_for_once_and_no_longer_than_the_timeout(proxy: Proxy) -> None:
    proxy.script = hold(threading.Event())
    transport, start = RegistryService(timeout=0.2, proxies=Proxies("", proxy.url)).transport(), time.monotonic()
    with pytest.raises(NetworkError, match="^proxy %s: timed out" % proxy.host):
        get(transport, "https://" + TEST)
    assert time.monotonic() - start < 5 and proxy.connections == 1


def test_a_wait_for_a_tunnel_ends_when_cancelled(make: Made, proxy: Proxy) -> None:
    proxy.script = hold(threading.Event())
    cancel, start = Cancel(), time.monotonic()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        make().send(Request("GET", "https://" + TEST, cancel))
    assert time.monotonic() - start < 1
    timer.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_are_the_proxys_business(
    make: Made, server: ScriptedServer, proxy: Proxy, certificates: Certificates, scheme: str
) -> None:
    with ScriptedServer(tls=certificates.context() if scheme == "https" else None) as registry:
        registry.on("GET", "", reply(200, "x"))
        proxy.hosts = {TEST: registry.host}
        transport = make(ca_file=str(certificates.ca))
        assert get(transport, "%s://%s" % (scheme, TEST), only_public=True) == "200 x"
        with pytest.raises(PolicyError, match="a private address"):
            get(transport, server.url, only_public=True)


# -- as a user does it -----------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return images.single(tmp_path / "layout", "1")[0]


def env(proxy: Proxy, login: str = LOGIN, **more: str) -> Dict[str, str]:
    url = "http://%s@%s" % (login, proxy.host)
    return dict({"HTTP_PROXY": url, "https_proxy": url}, **more)


def test_docker_registry_is_pulled_from_by_tunnel_and_by_relay(
    registry: DockerRegistry, certificates: Certificates, layout: Layout, skopeo: Any, run_minipull: Minipull,
    tmp_path: Path
) -> None:
    skopeo("copy", "--dest-tls-verify=false", "oci:%s:1" % layout.root, "docker://%s/proxies/r:1" % registry.host)
    with FaultProxy(registry.host, tls=certificates.context()) as secure:
        hosts = {"registry.test:443": secure.host, "registry.test": registry.host}
        with Proxy(hosts, "CORP\\ann:p@ss:w/rd%") as proxy:
            environ = env(proxy, "CORP%5Cann:p%40ss%3Aw%2Frd%25", SSL_CERT_FILE=str(certificates.ca))
            for flags, method in [(["--plain-http"], "GET"), ([], "CONNECT")]:
                root = tmp_path / method
                done = run_minipull("--root", root, "pull", *flags, "registry.test/proxies/r:1", env=environ)
                assert done.code == 0, done
                assert run_minipull("--root", root, "check").code == 0
                assert {request.method for request in proxy.requests} == {method}
                del proxy.requests[:]
            assert secure.requests
            secure.assert_no_credentials()
            done = run_minipull("pull", "registry.test/proxies/r:1", env=env(proxy, "ann:wr0ng"))
            assert done.code == 4
            assert done.err.startswith(
                "minipull: pull registry.test/proxies/r:1: proxy %s: 407 " % proxy.host), done
            assert done.err.count("\n") == 1 and "wr0ng" not in done.err


def test_no_proxy_and_loopback_bypass_the_proxy(
    server: ScriptedServer, proxy: Proxy, layout: Layout, run_minipull: Minipull
) -> None:
    server.serve(layout.root, "r")
    done = run_minipull("digest", server.host + "/r:1", env=env(proxy))
    assert (done.code, proxy.connections) == (0, 0), done
    done = run_minipull("digest", "--plain-http", "registry.test/r:1", env=env(proxy, NO_PROXY=".test,10.0.0.0/8"))
    assert (done.code, proxy.connections) == (0, 0) or "lookup registry.test" in done.err
    assert proxy.connections == 0
    done = run_minipull("digest", "--plain-http", TEST + "/r:1", env=env(proxy, NO_PROXY="10.0.0.0/8"))
    assert (done.code, proxy.connections) == (0, 1), done
    server.assert_no_credentials()


@pytest.mark.parametrize("url, text", [
    ("socks5://ann:s3cret@127.0.0.1:1", "HTTPS_PROXY names a proxy that speaks socks5; only http:// will do"),
    ("https://ann:s3cret@127.0.0.1:1", "HTTPS_PROXY names a proxy that speaks https; only http:// will do"),
    ("http://ann:s3cret@", "HTTPS_PROXY is malformed; it must be http://[USER:PASSWORD@]HOST[:PORT]")])
def test_a_proxy_of_another_kind_is_one_line_and_exit_2(run_minipull: Minipull, url: str, text: str) -> None:
    done = run_minipull("pull", "registry.test/r:1", env={"HTTPS_PROXY": url})
    assert (done.code, done.err) == (2, "minipull: pull registry.test/r:1: %s (registry.test)\n" % text)
