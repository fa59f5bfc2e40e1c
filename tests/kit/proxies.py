# SPDX-License-Identifier: Apache-2.0
"""Proxies: one that ``HTTPS_PROXY`` names, and one that spoils the answers of a real registry."""
import base64
import hashlib
import http.client
import re
import select
import socket
import ssl
import threading
from typing import Dict, List, Mapping, Optional, Tuple

from tests.kit.servers import CHUNK, Action, Connection, Request, Gone, BaseServer, error, head, redirect, reply
from tests.kit.tokens import TokenAuth


class Proxy(BaseServer):
    """Tunnels and relays, to ``hosts`` (names as they are asked for, to host:port) alone.

    ``login`` is the USER:PASSWORD that it demands.  ``script`` answers instead, if set.
    """

    def __init__(self, hosts: Mapping[str, str], login: str = "") -> None:
        self.hosts, self.login = hosts, login
        self.script: Optional[Action] = None
        self.established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        super().__init__()

    def handle(self, connection: Connection) -> None:
        request = connection.request
        wanted = "Basic " + base64.b64encode(self.login.encode()).decode() if self.login else ""
        name, _, path = request.target.partition("://")[2].partition("/")
        address = self.hosts.get(name or request.target)
        if self.script:
            self.script(connection)
        elif request.headers.get("proxy-authorization", "") != wanted:
            reply(407, headers={"Proxy-Authenticate": 'Basic realm="proxy"'})(connection)
        elif address is None:
            reply(502)(connection)
        elif request.method == "CONNECT":
            self._tunnel(connection, address)
        else:
            self._relay(connection, address, "/" + path)

    def _tunnel(self, connection: Connection, address: str) -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as upstream:
            connection.send(self.established)
            ends = {connection.socket: upstream, upstream: connection.socket}
            while True:
                for ready in select.select(list(ends), [], [])[0]:
                    data = ready.recv(CHUNK)
                    if not data:
                        raise Gone
                    ends[ready].sendall(data)

    def _relay(self, connection: Connection, address: str, path: str) -> None:
        hop = ("connection", "proxy-authorization", "transfer-encoding")
        upstream = http.client.HTTPConnection(address, timeout=60)
        try:
            fields = {key: value for key, value in connection.request.headers.items() if key not in hop}
            upstream.request(connection.request.method, path, connection.body() or None, fields)
            response = upstream.getresponse()
            fields = {key: value for key, value in response.getheaders() if key.lower() not in hop}
            reply(response.status, response.read(), fields)(connection)
        finally:
            upstream.close()


class FaultProxy(BaseServer):
    """A registry's worst day: an HTTP proxy in front of ``target`` (host:port).

    For a share ``rate`` of requests, chosen by ``(seed, method, path, nth
    hit)``, the connection is reset before or after the target has worked, or in
    mid-body of the request or the response, or it is slow, or answers 429, 502
    or 503.  A ``rate`` of 0 counts only.  With ``blobs`` set to another
    FaultProxy, GETs of blobs are redirected to that one.  ``pace`` is how many
    seconds it rests after each 64 KiB of a body.
    """

    def __init__(self, target: str, seed: int = 0, rate: float = 0, host: str = "127.0.0.1",
                 tls: Optional[ssl.SSLContext] = None, auth: Optional[TokenAuth] = None,
                 blobs: Optional["FaultProxy"] = None, realm: Optional[str] = None, pace: float = 0) -> None:
        self.target, self.seed, self.rate = target, seed, rate
        self.auth, self.blobs, self.pace = auth, blobs, pace
        #: Per (method, path): how often asked, and bytes of bodies sent down and taken up.
        self.hits: Dict[Tuple[str, str], int] = {}
        self.down: Dict[Tuple[str, str], int] = {}
        self.up: Dict[Tuple[str, str], int] = {}
        self.faults: List[Tuple[str, Request]] = []
        self._upstream = threading.local()
        super().__init__(host, tls)
        self.realm = realm or self.url + "/token"

    def handle(self, connection: Connection) -> None:
        request = connection.request
        if self.auth and request.path == "/token":
            return self.auth.token(connection)
        key = request.method, re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", request.path)
        with self.lock:
            self.hits[key] = self.hits.get(key, 0) + 1
            fault = self._choose(key, self.hits[key])
            if fault:
                self.faults.append((fault, request))
        if fault == "reset":
            connection.reset()
        elif fault == "slow":
            connection.wait(0.05 + self._dice(key) * 0.45)
        elif fault in ("429", "502", "503"):
            return error(int(fault), "TOOMANYREQUESTS" if fault == "429" else "UNAVAILABLE",
                         {"Retry-After": "0"} if fault == "429" else {})(connection)
        if self.auth and not self.auth.admits(connection, self.realm):
            return
        if self.blobs and request.method == "GET" and "/blobs/sha256:" in request.path:
            return redirect("%s%s?signature=1" % (self.blobs.url, request.path))(connection)
        self._forward(connection, key, fault)

    def _dice(self, key: Tuple[str, str], hit: int = 0) -> float:
        text = "%d %s %s %d" % (self.seed, key[0], key[1], hit)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)

    def _choose(self, key: Tuple[str, str], hit: int) -> str:
        dice = self._dice(key, hit)
        kinds = ["reset", "cut", "slow", "502", "503", "429", "unheard"]
        kinds += ["cut"] * 3 if key[0] == "GET" else ["cut-upload"] * 3 if key[0] in ("PUT", "PATCH") else []
        return kinds[int(dice / self.rate * len(kinds))] if dice < self.rate else ""

    def _forward(self, connection: Connection, key: Tuple[str, str], fault: str) -> None:
        request = connection.request
        upstream = http.client.HTTPConnection(self.target, timeout=60)
        try:
            # Host stays as sent, so that the registry's own URLs lead back here.
            upstream.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in ("connection", "expect") and not (self.auth and name == "authorization"):
                    upstream.putheader(name, value)
            if self._tls:
                upstream.putheader("X-Forwarded-Proto", "https")
            upstream.endheaders()
            chunked = "transfer-encoding" in request.headers
            left = int(request.headers.get("content-length", CHUNK)) // 2
            for data in connection.unread:
                self._count(self.up, key, len(data))
                left -= len(data)
                if fault == "cut-upload" and left <= 0:
                    connection.reset()
                upstream.send(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
                connection.wait(self.pace)
            if chunked:
                upstream.send(b"0\r\n\r\n")
            response = upstream.getresponse()
            if fault == "unheard":
                connection.reset()
            self._relay(connection, key, response, fault == "cut")
        finally:
            upstream.close()

    def _relay(self, connection: Connection, key: Tuple[str, str], response: http.client.HTTPResponse,
               cut: bool) -> None:
        fields = {name: value for name, value in response.getheaders() if name.lower() != "connection"}
        chunked = response.length is None and connection.request.method != "HEAD"
        start = head(response.status, fields)
        if cut and response.length == 0:  # no body to cut
            connection.send(start[:len(start) // 2])
            connection.reset()
        connection.send(start)
        left = (response.length or CHUNK) // 2
        while True:
            data = response.read1(CHUNK)
            if cut and (left <= len(data) or not data):
                connection.send(b"%x\r\n%s" % (len(data), data[:left]) if chunked else data[:left])
                self._count(self.down, key, min(left, len(data)))
                connection.reset()
            if not data:
                break
            left -= len(data)
            self._count(self.down, key, len(data))
            connection.send(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            connection.wait(self.pace)
        if chunked:
            connection.send(b"0\r\n\r\n")

    def _count(self, counter: Dict[Tuple[str, str], int], key: Tuple[str, str], size: int) -> None:
        with self.lock:
            counter[key] = counter.get(key, 0) + size
