# SPDX-License-Identifier: Apache-2.0
"""Servers that misbehave on purpose, and that remember who asked for what.

:class:`ScriptedServer` answers from a script, byte by byte if need be: for faults
that no real server can be made to show.  :class:`Uploads` lets it take blobs and
manifests.  The proxies in tests/kit/proxies are made of the same parts.

A server speaks TLS when given a context from :class:`tests.kit.certificates.Certificates`.
It is a context manager; another loopback address (127.0.0.2) is another origin.
"""
import contextlib
import hashlib
import http.client
import json
import re
import socket
import ssl
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import (
    Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Type,
    TypeVar, Union)
from urllib.parse import parse_qs

CHUNK = 1 << 16


class Request(NamedTuple):
    method: str
    target: str  # as sent, with the query
    headers: Dict[str, str]  # names in lower case; values of one name joined by ", "
    server: str  # the host:port that it arrived at

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> Dict[str, str]:
        return {key: values[-1] for key, values in
                parse_qs(self.target.partition("?")[2], keep_blank_values=True).items()}


class Gone(Exception):
    """The connection is over: the client left, or the script said so."""


class Connection:
    """An accepted connection, read and written as raw bytes."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self.socket = sock
        self.stopping = stopping
        self._file = sock.makefile("rb")
        self.request = Request("", "", {}, "")
        self.unread: Iterator[bytes] = iter(())  # the rest of this request's body

    def read_request(self, server: str) -> bool:
        try:
            if self._file.peek(1)[:1] == b"\x16":  # a TLS client tries: answer as servers do
                self.send(head(400, {"Connection": "close"}))
                return False
            line = self._file.readline(65537).decode("latin-1").split()
            if len(line) != 3:
                return False
            headers: Dict[str, str] = {}
            while True:
                field = self._file.readline(65537).decode("latin-1")
                if field in ("\r\n", "\n", ""):
                    break
                name, _, value = field.partition(":")
                key = name.strip().lower()
                headers[key] = headers[key] + ", " + value.strip() if key in headers else value.strip()
        except (OSError, Gone):
            return False
        self.request = Request(line[0], line[1], headers, server)
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.unread = self._chunked() if "transfer-encoding" in headers else self._sized(
            int(headers.get("content-length", "0")))
        return True

    def _sized(self, left: int) -> Iterator[bytes]:
        while left:
            data = self._file.read1(min(left, CHUNK))
            if not data:
                raise Gone
            left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            size = int(self._file.readline(1024).split(b";")[0] or b"0", 16)
            if size == 0:
                self._file.readline(1024)
                return
            yield from self._sized(size)
            self._file.readline(1024)

    def body(self) -> bytes:
        return b"".join(self.unread)

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Gone from None

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than the server lives."""
        if self.stopping.wait(seconds):
            raise Gone

    def reset(self) -> None:
        """Close with RST: the client sees ECONNRESET after what was sent before."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Gone

    def close(self) -> None:
        self._file.close()
        self.socket.close()


_Self = TypeVar("_Self", bound="BaseServer")


class BaseServer:
    """Accepts connections, one thread each, until stopped."""

    def __init__(self, host: str = "127.0.0.1", tls: Optional[ssl.SSLContext] = None, port: int = 0) -> None:
        self.requests: List[Request] = []
        self.connections = 0  # how many were accepted
        self.tls_errors: List[str] = []
        self.lock = threading.Lock()
        self._tls = tls
        self._stopping = threading.Event()
        self._open: Set[socket.socket] = set()
        self._listener = socket.create_server((host, port), backlog=128)
        self.host = "%s:%d" % (host, self._listener.getsockname()[1])
        self.url = ("https://" if tls else "http://") + self.host
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.stop()

    def stop(self) -> None:
        """End at once, whatever the connections are doing."""
        self._stopping.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(10)
        with self.lock:
            for sock in self._open:
                _shutdown(sock)

    def seen(self, method: str = "", pattern: str = "") -> List[Request]:
        """The requests so far whose method and path match (regular expressions)."""
        with self.lock:
            return [request for request in self.requests
                    if re.fullmatch(method or ".*", request.method) and re.search(pattern, request.path)]

    def assert_no_credentials(self) -> None:
        """For a server that plays a foreign host."""
        for request in self.seen():
            for name in ("authorization", "cookie", "proxy-authorization"):
                assert name not in request.headers, "%s sent %s to %s" % (name, request, self.host)

    def _accept(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            with self.lock:
                self.connections += 1
                self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        sock = raw
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                # wrap_socket detaches the raw socket, also when the handshake fails
                sock = self._tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                with self.lock:
                    self._open.discard(raw)
                    self._open.add(sock)
                sock.do_handshake()
            connection = Connection(sock, self._stopping)
            try:
                while connection.read_request(self.host):
                    with self.lock:
                        self.requests.append(connection.request)
                    self.handle(connection)
                    for _ in connection.unread:
                        pass
                    if connection.request.headers.get("connection", "").lower() == "close":
                        break
            finally:
                connection.close()
        except ssl.SSLError as error:
            self.tls_errors.append(str(error))
            _drain(sock)
        except (OSError, ValueError, http.client.HTTPException, Gone):
            pass
        finally:
            with self.lock:
                self._open -= {raw, sock}
            sock.close()

    def handle(self, connection: Connection) -> None:
        """Answer one request; raise Gone to end the connection."""
        raise NotImplementedError


def _drain(sock: socket.socket) -> None:
    """Read what the client still sends: to close before would reset the connection and lose the alert."""
    with contextlib.suppress(OSError):
        sock.settimeout(2)
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while socket.socket.recv(sock, CHUNK):
            pass


def _shutdown(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


# -- the scripted server -------------------------------------------------------

Action = Callable[[Connection], None]
Headers = Optional[Mapping[str, str]]


def head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = ["HTTP/1.1 %d %s" % (status, http.client.responses.get(status, "Unknown"))]
    lines += ["%s: %s" % item for item in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def reply(status: int, body: Union[bytes, str, Mapping[str, Any]] = b"", headers: Headers = None,
          length: Optional[int] = None, chunked: bool = False) -> Action:
    """A whole response; ``length`` lies about the Content-Length."""
    if isinstance(body, Mapping):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body

    def act(connection: Connection) -> None:
        fields = dict(headers or {})
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
            sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        else:
            fields.setdefault("Content-Length", str(len(data) if length is None else length))
            sent = data
        connection.body()
        connection.send(head(status, fields) + (b"" if connection.request.method == "HEAD" else sent))
    return act


def error(status: int, code: str = "", headers: Headers = None) -> Action:
    """A response in the registry's own error format."""
    return reply(status, {"errors": [{"code": code, "message": code.lower()}]},
                 {"Content-Type": "application/json", **(headers or {})})


def redirect(location: str, status: int = 307) -> Action:
    return reply(status, headers={"Location": location})


def challenge(value: str) -> Action:
    return error(401, "UNAUTHORIZED", {"WWW-Authenticate": value})


def content(data: bytes, media_type: str = "application/octet-stream", ranges: bool = True,
            shift: int = 0, stop: Optional[int] = None, headers: Headers = None) -> Action:
    """A blob or manifest.  ``ranges`` False ignores Range, ``shift`` answers a Range with
    another one, ``stop`` resets the connection after so many bytes of the body."""
    def act(connection: Connection) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", connection.request.headers.get("range", ""))
        fields = {"Content-Type": media_type, "Docker-Content-Digest":
                  "sha256:" + hashlib.sha256(data).hexdigest()}
        status, first, last = 200, 0, len(data)
        if asked and ranges:
            status, first = 206, int(asked.group(1)) + shift
            last = min(len(data), int(asked.group(2)) + 1) if asked.group(2) else len(data)
            fields["Content-Range"] = "bytes %d-%d/%d" % (first, last - 1, len(data))
            if first >= len(data):
                return error(416, "RANGE_INVALID", {"Content-Range": "bytes */%d" % len(data)})(connection)
        fields.update({"Content-Length": str(last - first), **(headers or {})})
        connection.send(head(status, fields))
        if connection.request.method != "HEAD":
            connection.send(data[first:last if stop is None else min(last, first + stop)])
            if stop is not None and first + stop < last:
                connection.reset()
    return act


def send(data: bytes) -> Action:
    """Send exactly these bytes, which need not be HTTP."""
    return lambda connection: connection.send(data)


def sleep(seconds: float) -> Action:
    return lambda connection: connection.wait(seconds)


def hold(until: threading.Event) -> Action:
    """Wait for the test (or for the end of the server)."""
    def act(connection: Connection) -> None:
        while not until.is_set():
            connection.wait(0.01)
    return act


def drip(data: bytes, size: int = 1, pause: float = 0.05) -> Action:
    """A slow sender: ``size`` bytes every ``pause`` seconds."""
    def act(connection: Connection) -> None:
        for start in range(0, len(data), size):
            connection.send(data[start:start + size])
            connection.wait(pause)
    return act


def reset(connection: Connection) -> None:
    connection.reset()


def close(connection: Connection) -> None:
    raise Gone


Script = Union[Action, Sequence[Action]]


class ScriptedServer(BaseServer):
    """``server.on("GET", r"/blobs/", error(503), [send(b"HTTP/1.1 200 OK..."), reset])``

    The nth request that a rule matches gets its nth script, later ones the
    last; a script is an action or several.  Newer rules come first, HEAD
    falls back to the rules of GET, and what no rule matches is a 404.
    """

    def __init__(self, host: str = "127.0.0.1", tls: Optional[ssl.SSLContext] = None, port: int = 0) -> None:
        self._rules: List[Tuple[str, str, List[Script]]] = []
        super().__init__(host, tls, port)

    def on(self, method: str, pattern: str, *scripts: Script) -> None:
        with self.lock:
            self._rules.insert(0, (method, pattern, list(scripts)))

    def serve(self, layout_root: Path, repository: str) -> None:
        """Rules for all blobs and names of an OCI layout, over which faults can be laid."""
        index = json.loads((layout_root / "index.json").read_bytes())
        types = {item["digest"]: item["mediaType"] for item in index["manifests"]}
        names = {item["annotations"]["org.opencontainers.image.ref.name"]: item["digest"]
                 for item in index["manifests"]}
        blobs = {"sha256:" + path.name: path.read_bytes()
                 for path in (layout_root / "blobs" / "sha256").iterdir()}
        for data in blobs.values():
            if data.startswith(b"{"):
                types.update({child["digest"]: child["mediaType"]
                              for child in json.loads(data).get("manifests", [])})
        for digest, data in blobs.items():
            self.on("GET", "/v2/%s/blobs/%s$" % (repository, digest), content(data))
        for name, digest in [*names.items(), *((digest, digest) for digest in types)]:
            self.on("GET", "/v2/%s/manifests/%s$" % (repository, name),
                    content(blobs[digest], types[digest], ranges=False))
        self.on("GET", "/v2/%s/tags/list$" % repository,
                reply(200, {"name": repository, "tags": sorted(names)}))
        self.on("GET", "/v2/$", reply(200, {}, {"Docker-Distribution-API-Version": "registry/2.0"}))

    def handle(self, connection: Connection) -> None:
        script = self._next(connection.request)
        for action in [script] if callable(script) else script:
            action(connection)

    def _next(self, request: Request) -> Script:
        methods = (request.method, "GET") if request.method == "HEAD" else (request.method,)
        with self.lock:
            for wanted in methods:
                for method, pattern, scripts in self._rules:
                    if re.fullmatch(method, wanted) and re.search(pattern, request.target):
                        return scripts.pop(0) if len(scripts) > 1 else scripts[0]
        return error(404, "NOT_FOUND")


class Uploads:
    """Rules by which a :class:`ScriptedServer` takes what is pushed to ``repository``.

    ``blobs`` and ``manifests`` is what it has, ``elsewhere`` what can be mounted,
    by repository.  A Location is good for one request, or with ``lenient``, as
    for docker-registry 3, as long as its session; ``base`` is where the next ones point to.
    The actions are there for faults to be laid over the rules.
    """

    def __init__(self, server: ScriptedServer, repository: str = "r", base: str = "") -> None:
        self.blobs: Dict[str, bytes] = {}
        self.manifests: Dict[str, bytes] = {}
        self.elsewhere: Dict[str, Dict[str, bytes]] = {}
        self.sessions: Dict[str, bytearray] = {}  # by number
        self.extra: Dict[str, str] = {}  # headers of every answer about an upload
        self.lenient = False
        self.base = base or "/v2/%s/blobs/uploads/" % repository
        self._states: Dict[str, int] = {}
        path = "/v2/%s/" % re.escape(repository)
        for method, pattern, action in (
                ("HEAD", "blobs/sha256:", self.stat), ("POST", "blobs/uploads/", self.start),
                ("PATCH", "blobs/uploads/", self.append), ("GET", "blobs/uploads/", self.status),
                ("PUT", "blobs/uploads/", self.commit), ("DELETE", "blobs/uploads/", self.cancel),
                ("PUT", "manifests/", self.put)):
            server.on(method, "^" + path + pattern, action)

    def stat(self, connection: Connection) -> None:
        found = self.blobs.get(connection.request.path.rpartition("/")[2])
        (error(404, "BLOB_UNKNOWN") if found is None else reply(200, found))(connection)

    def start(self, connection: Connection) -> None:
        query = connection.request.query
        blobs = self.elsewhere.get(query.get("from", ""), {})
        if query.get("mount") in blobs:
            self.blobs[query["mount"]] = blobs[query["mount"]]
            return reply(201)(connection)
        name = str(len(self._states) + 1)
        self.sessions[name], self._states[name] = bytearray(), 0
        self._answer(connection, 202, name)

    def append(self, connection: Connection, stop: Optional[int] = None) -> None:
        """Take a PATCH; with ``stop`` the connection is reset once so many bytes are held."""
        name = self._opened_as(connection)
        if not name:
            return
        held = self.sessions[name]
        start = re.match("[0-9]+", connection.request.headers.get("content-range", ""))
        if start and int(start.group()) != len(held):
            return error(416, "RANGE_INVALID")(connection)
        for piece in connection.unread:
            held += piece
            if stop is not None and len(held) >= stop:
                del held[stop:]
                connection.reset()
        self._answer(connection, 202, name)

    def status(self, connection: Connection) -> None:
        name = self._opened_as(connection)
        if name:
            self._answer(connection, 204, name)

    def commit(self, connection: Connection, heard: bool = True) -> None:
        name = self._opened_as(connection)
        if not name:
            return
        data = bytes(self.sessions.pop(name)) + connection.body()
        digest = connection.request.query["digest"]
        if digest != "sha256:" + hashlib.sha256(data).hexdigest():
            return error(400, "DIGEST_INVALID")(connection)
        self.blobs[digest] = data
        if not heard:
            connection.reset()
        reply(201)(connection)

    def cancel(self, connection: Connection) -> None:
        name = self._opened_as(connection)
        if name:
            del self.sessions[name]
            reply(204)(connection)

    def put(self, connection: Connection) -> None:
        """Take a manifest all of whose parts are here."""
        data = connection.body()
        document = json.loads(data) if data.startswith(b"{") else {}
        blobs = [item["digest"] for item in document.get("layers", []) if not item.get("urls")]
        blobs += [document["config"]["digest"]] if "config" in document else []
        known = {item["digest"]: "image." in item["mediaType"] or "distribution." in item["mediaType"]
                 for item in document.get("manifests", [])}
        lacking = [digest for digest in set(known) - set(self.manifests) if known[digest] or digest not in self.blobs]
        if set(blobs) - set(self.blobs) or lacking:
            return error(404, "MANIFEST_BLOB_UNKNOWN")(connection)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.manifests[digest] = self.manifests[connection.request.path.rpartition("/")[2]] = data
        reply(201, headers={"Docker-Content-Digest": digest})(connection)

    def _opened_as(self, connection: Connection) -> str:
        """The upload that a request is about; answers it if that is gone or its Location is old."""
        request = connection.request
        name = request.path.rpartition("/")[2]
        if name not in self.sessions:
            error(404, "BLOB_UPLOAD_UNKNOWN")(connection)
        elif not self.lenient and request.query.get("_state") != str(self._states[name]):
            error(400, "BLOB_UPLOAD_INVALID")(connection)
        else:
            return name
        return ""

    def _answer(self, connection: Connection, status: int, name: str) -> None:
        self._states[name] += 1
        last = max(0, len(self.sessions[name]) - 1)
        reply(status, headers={"Location": "%s%s?_state=%d" % (self.base, name, self._states[name]),
                               "Range": "0-%d" % last, **self.extra})(connection)
