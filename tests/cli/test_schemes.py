# SPDX-License-Identifier: Apache-2.0
"""Plain http where TLS is asked, and the reverse, is told with the remedy, whoever answers and whatever the command."""
import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.kit import images
from tests.kit.certificates import Certificates
from tests.kit.commands import Call
from tests.kit.images import Layout
from tests.kit.proxies import Proxy
from tests.kit.servers import Connection, Gone, ScriptedServer, challenge, error, redirect, reply, send

HEAD = b"HTTP/1.0 400 Bad Request\r\n"
#: The answers of servers that speak TLS to a request without.
PLAIN = {
    "go": HEAD + b"\r\nClient sent an HTTP request to an HTTPS server.\n",
    "nginx": HEAD + b"Content-Type: text/html\r\n\r\n<center>The plain HTTP request was sent to HTTPS port</center>",
    "alert": b"\x15\x03\x03\x00\x02\x02\x46", "closed": b""}
NO_TLS = (r"%s does not speak TLS \(.*\)(?: \(%s\))?; if it is a registry without TLS, give --plain-http or put %s in"
          " insecure-registries$")
TLS = "%s speaks TLS, and was asked without(?: .*)?; "


class TLSServer(ScriptedServer):
    """A server that speaks TLS, and to a request without sends ``plain`` and closes."""

    def __init__(self, tls: ssl.SSLContext, plain: bytes = PLAIN["go"]) -> None:
        self.plain = plain
        super().__init__(tls=tls)

    def _serve(self, raw: socket.socket) -> None:
        if raw.recv(1, socket.MSG_PEEK) in (b"\x16", b""):
            return super()._serve(raw)
        with raw, raw.makefile("rb") as file:
            list(iter(file.readline, b"\r\n"))
            raw.sendall(self.plain)
        with self.lock:
            self._open.discard(raw)


class ClosingProxy(Proxy):
    """A proxy that closes a connection as the second request on it arrives."""

    def __init__(self, hosts: Dict[str, str]) -> None:
        self.served: List[Connection] = []
        super().__init__(hosts)

    def handle(self, connection: Connection) -> None:
        if connection in self.served:
            raise Gone
        self.served.append(connection)
        super().handle(connection)


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[TLSServer]:
    with TLSServer(certificates.context()) as server:
        yield server


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> str:
    """A registry without TLS that is not insecure by its address."""
    monkeypatch.setattr("minipull.registry.endpoints.RegistryService.exemption", lambda self, domain: "")
    return server.host


VERBS = [("pull", "REF"), ("tags", "REF"), ("digest", "REF:1"), ("manifest", "REF:1"), ("push", "REF:1"),
         ("copy", "docker://REF:1", "oci:x"), ("copy", "oci:layout:latest", "docker://REF:1"), ("catalog", "HOST"),
         ("inspect", "docker://REF:1"), ("check", "docker://REF:1"), ("referrers", "REF:1"),
         ("delete", "--yes", "docker://REF:1"), ("blob", "REF@sha256:" + "0" * 64)]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb)[:30])
def test_every_command_tells_that_a_registry_speaks_the_other_scheme(
        call: Call, plain: str, secure: TLSServer, home: Path, verb: Any) -> None:
    Layout(home / "layout").image(images.specs(1, 100), "latest")
    for host, flags, text in [(plain, (), NO_TLS % (plain, plain, plain)),
                              (secure.host, ("--plain-http",), TLS % secure.host + "leave out --plain-http$")]:
        if verb[0] == "push":
            call("copy", "oci:layout:latest", "store:%s/r:1" % host)
        done = call(*(word.replace("REF", host + "/r").replace("HOST", host) for word in verb), *flags)
        assert done.code == 5 and re.search(text, done.err, re.M), done.err


@pytest.mark.parametrize("answer", PLAIN.values(), ids=PLAIN)
def test_a_server_that_speaks_tls_is_known_whatever_it_answers(call: Call, secure: TLSServer, answer: bytes) -> None:
    secure.plain = answer
    done = call("digest", secure.host + "/r:1", "--plain-http")
    assert re.search(TLS % secure.host + "leave out", done.line), done.line
    secure.assert_no_credentials()
    assert "try: leave out --plain-http" in call("doctor", secure.host + "/r:1", "--plain-http").out


@pytest.mark.parametrize("answer", [send(PLAIN["go"]), send(b""), send(b"SSH-2.0-OpenSSH_9\r\n")], ids=range(3))
def test_a_server_that_speaks_no_tls_is_not_taken_for_one(call: Call, server: ScriptedServer, answer: Any) -> None:
    def act(connection: Connection) -> None:
        answer(connection)
        connection.reset()

    server.on("GET", "", act)
    done = call("digest", server.host + "/r:1", "--plain-http")
    assert done.code in (1, 5) and "TLS" not in done.err and "plain-http" not in done.err


def test_who_must_change_what_for_a_host_that_a_registry_names(
        call: Call, server: ScriptedServer, secure: TLSServer, layout: Layout, ref: str) -> None:
    named = "ask whoever runs %s, which leads there by " % server.host
    with ScriptedServer("127.0.0.2") as other:
        for address, text in [("http://" + secure.host, TLS % secure.host + named + "http$"),
                              ("https://" + other.host, r"%s does not speak TLS .*; " % other.host + named + "https$")]:
            server.on("GET", "/blobs/", redirect(address + "/b"))
            assert re.search(text, call("pull", ref, "--attempts", "1").err, re.M)
            server.on("GET", "/manifests/", challenge('Bearer realm="%s/token"' % address))
            assert re.search(text, call("digest", ref + ":latest").line)
            server.on("GET", "/manifests/", reply(404))
            server.serve(layout.root, "r")


def test_a_mirror_by_the_other_scheme_is_told_with_the_right_url(
        call: Call, server: ScriptedServer, secure: TLSServer, tmp_path: Path) -> None:
    with ScriptedServer("127.0.0.2") as other:
        for url, good in [("https://" + other.host, "http://" + other.host), ("http://" + secure.host, secure.url)]:
            host = {"mirrors": [url], "fallback": False}
            (tmp_path / "settings").write_text(json.dumps({"hosts": {"registry.test": host}}))
            done = call("--config", tmp_path / "settings", "digest", "registry.test/r:1")
            assert done.line.endswith("; write %s for that mirror\n" % good), done.line


def test_a_proxy_that_speaks_tls_is_told(call: Call, secure: TLSServer) -> None:
    for scheme in ("http", "https"):
        for answer in (PLAIN["go"], PLAIN["alert"], b""):
            secure.plain = answer
            done = call("digest", "registry.test/r:1", *(["--plain-http"] if scheme == "http" else []),
                        env={scheme + "_proxy": "http://" + secure.host})
            assert re.search("proxy %s speaks TLS, .*; name a proxy that takes plain http$" % secure.host, done.line)


def test_an_origin_behind_a_proxy_is_tried_by_tls_through_it(call: Call, secure: TLSServer) -> None:
    with Proxy({"registry.test:5": secure.host}) as proxy:
        done = call("digest", "registry.test:5/r:1", "--plain-http",
                    env={"http_proxy": proxy.url, "https_proxy": proxy.url})
    assert re.search("registry.test:5 speaks TLS, and was asked without; leave out", done.line), done.line


@pytest.mark.parametrize("scheme, others", [
    ("http", {}), ("http", {"https_proxy": "socks5://x"}), ("https", {}), ("https", {"https_proxy": "socks5://x"})])
def test_tls_is_tried_on_the_way_of_the_request_alone(
        call: Call, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, scheme: str, others: Any) -> None:
    """Whatever proxy there is for the other scheme, if it can't be used, the registry's answer is told."""
    monkeypatch.setattr("minipull.registry.proxy.Proxies.exemption", lambda self, origin: "")
    server.on("GET", "", error(400, "NAME_INVALID"))
    with Proxy({server.host: server.host}) as good, Proxy({}, login="ann:s3cret") as bad:
        env = {"http_proxy": good.url, **others} if scheme == "http" else {"https_proxy": bad.url, **others}
        done = call("digest", server.host + "/r:1", "--plain-http", env=env)
        assert done.code == 5 and "name invalid" in done.line
        assert not bad.requests and (scheme == "https" or server.connections <= len(good.requests))


def test_a_connection_that_a_proxy_has_served_is_not_tried_by_tls(call: Call, server: ScriptedServer) -> None:
    server.on("GET", "/v2/r/tags/list$", reply(200, {"tags": ["1"]}, {"Link": '</v2/r/tags/list?n=1>; rel="next"'}))
    server.on("GET", "/v2/r/tags/list.n=1", reply(200, {"tags": ["2"]}))
    with ClosingProxy({"registry.test": server.host}) as proxy:
        assert call("tags", "registry.test/r", "--plain-http", env={"http_proxy": proxy.url}).out == "1\n2\n"
        assert proxy.connections == 2 and all(request.method == "GET" for request in proxy.requests)


def test_https_that_failed_otherwise_is_told_rather_than_http(call: Call, certificates: Certificates) -> None:
    with TLSServer(certificates.context("valid", mutual=True)) as server:
        done = call("digest", server.host + "/r:1")
    assert "wants a client certificate" in done.line and "asked without" not in done.line
