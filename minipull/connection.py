# SPDX-License-Identifier: Apache-2.0
"""Connections: where bytes come in, and where foreign errors become ours.

One HTTP/1.1 connection at a time is read by ``http.client``, which takes a
:class:`Connection` for its socket.  So every byte of an answer, header or
body, comes through :meth:`Connection.receive`, which keeps these rules:

- one read returns what has arrived, never waits for a buffer to fill, and
  returns nothing once the exchange is cancelled;
- a peer that moves less than 1 KiB within the timeout is stalled;
- an answer that ends before its length is an error, and its length must be
  unambiguous.

RFC 9110 and 9112.
"""
import contextlib
import http.client
import io
import ipaddress
import re
import select
import socket
import ssl
import time
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

from .errors import Cancelled, Error, NetworkError, PolicyError, TLSError
from .streams import Cancel

CONNECT_TIMEOUT = 30.0  # seconds
STALL_BYTES = 1024

#   netloc ::= ( domain | IPv4 | "[" IPv6 "]" ) [ ":" port ]  (urllib lets far more through)
_NETLOC = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")


class Origin(NamedTuple):
    """Scheme, host and port: what a secret is bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Parse by our own strict grammar; raises PolicyError."""
        scheme, _, rest = url.partition("://")
        match = _NETLOC.fullmatch(re.split(r"[/?#]", rest, 1)[0])
        if scheme not in ("http", "https") or match is None or _UNSAFE.search(url):
            raise PolicyError("refused URL %s" % ascii(url)[:200])
        port = int(match.group(2) or (443 if scheme == "https" else 80))
        return cls(scheme, match.group(1).lower(), port)

    def __str__(self) -> str:
        standard = {"http": 80, "https": 443}[self.scheme] == self.port
        return self.host if standard else "%s:%d" % (self.host, self.port)


class Response:
    """An answer whose body is still on the wire; close() it, or use ``with``."""

    def __init__(self, raw: http.client.HTTPResponse, conn: "Connection", url: str) -> None:
        self.status = raw.status
        self.reason = raw.reason
        self.headers = raw.headers
        self.url = url
        self.origin = conn.origin
        self.public = conn.public
        self._raw = raw
        self._conn = conn
        #: Bytes of body still to come, or None where the server did not say.
        self.remaining = self._length()

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def header(self, name: str) -> str:
        return str(self.headers.get(name) or "").strip()

    def readinto(self, view: memoryview) -> int:
        """What has arrived, at most ``view``; 0 at the end.  Raises NetworkError."""
        if self.remaining == 0:
            return 0
        with self._conn.errors():
            if self.remaining is None:  # chunked, or until the connection closes
                data = self._raw.read1(len(view))
                view[: len(data)] = data
                if not data:
                    self.remaining = 0
                return len(data)
            count: int = self._raw.fp.readinto1(view[: self.remaining])
            if not count:
                raise NetworkError(
                    "%s closed the connection %d bytes early" % (self.origin, self.remaining)
                )
            self.remaining -= count
            return count

    def read(self, limit: int) -> bytes:
        """The whole body; raises PolicyError if it has more than ``limit`` bytes."""
        body, view = bytearray(), memoryview(bytearray(64 << 10))
        while True:
            count = self.readinto(view)
            if not count:
                return bytes(body)
            body += view[:count]
            if len(body) > limit:
                raise PolicyError("answer of %s is larger than %d bytes" % (self.origin, limit))

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it."""
        if self._conn.response is self:
            reusable = self.remaining == 0 and not self._raw.will_close
            self._raw.close()
            self._conn.done(reusable)

    def _length(self) -> Optional[int]:
        lengths = {value.strip() for value in self.headers.get_all("Content-Length") or []}
        coding = self.headers.get_all("Transfer-Encoding") or []
        if len(lengths) + len(coding) > 1 or coding and not self._raw.chunked:
            raise NetworkError("malformed answer of %s: ambiguous length" % (self.origin,))
        if self._raw.isclosed() or self._raw.length == 0:
            return 0  # HEAD, 204, 304 and such have no body whatever they say
        if not lengths:
            return None
        text = lengths.pop()
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise NetworkError("malformed answer of %s: ambiguous length" % (self.origin,))
        return int(text)


class Connection:
    """One connection to one origin, used by one thread at a time.

    ``context`` makes the TLS context, for https; ``keep`` takes the connection
    back when it can be used again.  ``timeout`` is in seconds.
    """

    def __init__(
        self,
        origin: Origin,
        timeout: float,
        context: Callable[[], ssl.SSLContext],
        keep: Callable[["Connection"], None],
    ) -> None:
        self.origin = origin
        self.public = False  # is the peer an address of the public internet?
        self.secure = False  # has TLS been spoken?
        self.used = False  # for an exchange before this one
        self.moved = 0  # bytes of answer in the present stall window
        self.response: Optional[Response] = None
        self._timeout = timeout
        self._context = context
        self._keep = keep
        self._socket: Optional[socket.socket] = None
        self._http = http.client.HTTPConnection(origin.host.strip("[]"), origin.port)
        self._cancel = Cancel()
        self._scope = contextlib.ExitStack()
        self._since = 0.0

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any,
        cancel: Cancel,
        only_public: bool,
    ) -> Response:
        """Send one request and read the head of its answer."""
        self._cancel = cancel
        self._scope.enter_context(self._cancel.calling(self._shutdown))
        try:
            with self.errors():
                if self._socket is None:
                    self._connect()
                if only_public and not self.public:
                    raise PolicyError("redirect to %s, a private address, refused" % (self.origin,))
                self._since, self.moved = time.monotonic(), 0
                self._http.sock = self
                selector = re.sub("^[^/?#]*", "", url.partition("://")[2]) or "/"
                self._http.request(method, selector, body, dict(headers, Host=str(self.origin)))
                self.response = Response(self._http.getresponse(), self, url)
        except BaseException:
            self.done(reusable=False)
            raise
        return self.response

    def done(self, reusable: bool) -> None:
        """The exchange is over; only a connection with nothing on it is kept."""
        self.response = None
        self._scope.close()
        self._scope = contextlib.ExitStack()
        if reusable and not self._cancel.cancelled:
            self.used = True
            self._keep(self)
        else:
            self.drop()

    def drop(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def quiet(self) -> bool:
        """Whether nothing lies unread: not even the end of the connection."""
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Map every foreign error to one of ours, with the peer in its text."""
        try:
            yield
        except Error:
            raise
        except Exception as exc:
            if self._cancel.cancelled:
                raise Cancelled() from exc
            raise _mapped(exc, self.origin) from exc

    def _connect(self) -> None:
        host, port = self.origin.host.strip("[]"), self.origin.port
        raw = socket.create_connection((host, port), CONNECT_TIMEOUT)
        self._socket = raw
        self._cancel.check()
        self.public = _is_public(raw.getpeername()[0])
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.origin.scheme == "https":
            context = self._context()
            self._socket = context.wrap_socket(raw, server_hostname=host)
            self.secure = True
            self._cancel.check()
        self._socket.settimeout(self._timeout)

    def _shutdown(self) -> None:
        # Never SSLSocket.shutdown: it turns TLS off under the reader, who would
        # then take ciphertext for content.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    # The part of a socket that http.client uses.

    def makefile(self, mode: str, *args: Any) -> io.BufferedReader:
        return io.BufferedReader(_Arriving(self), 64 << 10)

    def sendall(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(data)
        self._cancel.check()

    def close(self) -> None:
        """http.client is done with the socket; the body may not be."""

    def receive(self, view: memoryview) -> int:
        """What has arrived; raises Cancelled, or NetworkError for a stalled peer."""
        assert self._socket is not None
        count = self._socket.recv_into(view)
        self._cancel.check()
        self.moved += count
        now = time.monotonic()
        if now - self._since >= self._timeout:
            if self.moved < STALL_BYTES:
                raise NetworkError("%s stalled" % (self.origin,))
            self._since, self.moved = now, 0
        return count


class _Arriving(io.RawIOBase):
    """The one door for bytes from the network."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._conn.receive(memoryview(buffer))


def _mapped(exc: Exception, origin: Origin) -> Error:
    text = str(getattr(exc, "strerror", None) or exc) or type(exc).__name__
    if isinstance(exc, ssl.CertificateError) or "CERTIFICATE_VERIFY_FAILED" in text:
        reason = getattr(exc, "verify_message", "") or text
        return PolicyError(
            "certificate of %s is not trusted (%s); give its CA with --ca-file" % (origin, reason)
        )
    if isinstance(exc, socket.timeout):
        return NetworkError("%s: timed out" % (origin,))
    if isinstance(exc, ssl.SSLError):
        reason = str(getattr(exc, "reason", None) or text).lower().replace("_", " ")
        return TLSError("%s: TLS failed (%s)" % (origin, reason))
    if isinstance(exc, socket.gaierror):
        return NetworkError("lookup %s: %s" % (origin.host, text))
    if isinstance(exc, http.client.RemoteDisconnected):
        return NetworkError("%s closed the connection without an answer" % (origin,))
    if isinstance(exc, OSError):
        return NetworkError("%s: %s" % (origin, text.lower()))
    return NetworkError("malformed answer of %s (%s)" % (origin, type(exc).__name__))


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, global to ipaddress
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return _is_public(str(inner)) if inner else address.is_global
    return address.is_global and not address.is_multicast
