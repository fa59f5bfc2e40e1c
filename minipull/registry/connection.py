# SPDX-License-Identifier: Apache-2.0
"""Connections: one HTTP/1.1 connection; its errors are ours.

A :class:`Connection` is the file that heads and bodies are read from.  So every byte
of an answer comes through :meth:`Connection.readinto`, and the rules for reading stand there:

- a read returns what has arrived; it never waits until a buffer is full, and
  it returns nothing once the request is cancelled;
- informational answers before the final one are skipped;
- a peer that sends less than 1 KiB within the timeout is stalled;
- an answer that ends before its length, or whose length is ambiguous, is an
  error; bytes behind it end the connection.

RFC 9110 and 9112.
"""
import contextlib
import io
import re
import select
import socket
import time
from typing import Any, Callable, Iterator, Mapping, Optional, Union

from ..cancel import Cancel
from ..digest import Buffer
from ..errors import Cancelled, Error, NetworkError, PolicyError, StorageError, shown
from ..parts import ssl
from ..sendfile import send
from .errors import certificate_problem, foreign_error
from .head import Head, request_head
from .network import Connected, Network
from .proxy import Proxy
from .request import PIECE, Body, FileBody, Request
from .response import READ_AHEAD, Response
from .tls import client_context, parse_certificate
from .url import Origin, is_public

CONNECT_TIMEOUT = 30.0  # seconds, for all addresses of a host together
STALL_BYTES = 1024
MAX_HEAD = 256 << 10  # bytes, those of informational answers included
_UNKNOWN_CA = frozenset((2, 18, 19, 20, 21))  # OpenSSL's X509_V_ERR_* of a chain that ends in no authority


class Connection(io.RawIOBase):
    """A connection to one origin, used by one thread at a time; ``timeout`` is in seconds.

    ``context`` makes the TLS context for https; ``keep`` gets the connection when it can
    be used again.  A ``proxy`` looks up the host, so no address is checked.  ``network`` has the rate.
    """

    def __init__(self, origin: Origin, timeout: float, context: Callable[[], "ssl.SSLContext"],
                 keep: Callable[["Connection"], None], proxy: Optional[Proxy] = None,
                 network: Optional[Network] = None) -> None:
        self.origin = origin
        self.public = False  # whether the origin has an address of the public internet
        self.secure = False  # whether the TLS handshake has been completed
        self.used = False  # for an earlier request
        self.stage = "addresses"  # of setting it up: then connect, proxy, tls, and nothing when it is
        self.received = 0  # bytes of the current answer
        self._sent = 0  # bytes of the current request
        self.response: Optional[Response] = None  # the one that is being read
        self._all_sent = True  # of the current request
        self._timeout = timeout
        self._context = context
        self._keep = keep
        self.proxy = proxy
        self._network = network or Network()
        self._relay = proxy if origin.scheme == "http" else None
        self._peer: Union[Origin, Proxy] = origin  # the one that errors name
        self._socket: Optional[socket.socket] = None
        self._peeking = False  # into what has been read ahead: nothing is received
        self._file: Any = None  # a buffered one for each exchange
        self._method = ""
        self._answer: Optional[Head] = None  # the newest
        self._cancel = Cancel()
        self._scope = contextlib.ExitStack()
        self._waited = 0.0  # seconds, for what was received after the first _mark bytes
        self._mark = 0

    def exchange(self, request: Request) -> Response:
        """Send a request and read the head of its answer."""
        self._cancel = request.cancel
        self.received, self._sent, self._mark, self._waited = 0, 0, 0, 0.0
        self._scope.enter_context(self._cancel.calling(self._shutdown))
        try:
            # Made before the peer is asked, since bad certificates of ours are not its fault.
            context = self._context() if self._socket is None and self.origin.scheme == "https" else None
            with self.errors():
                if self._socket is None:
                    self._connect(context)
                if request.only_public and not self.public and self.proxy is None:
                    raise PolicyError("redirect to %s, a private address, refused" % (self.origin,))
                self._send_head(request)
                self._all_sent = request.body is None
                if request.body is not None:
                    # A server that closes the connection may have sent an answer before; http needs no ssl.
                    with contextlib.suppress(ConnectionError, ssl.SSLError if self.secure else ConnectionError):
                        self._all_sent = self._send_body(request.body)
                answer = self._head()
                if self._relay is not None and answer.status == 407:
                    self.stage = "proxy"
                    raise self._relay.refusal(answer.status, answer.reason)
                self.response = Response(answer, self._file, request.url, self.origin, self.errors, self.done)
        except BaseException:
            self.done(False)
            raise
        return self.response

    def _send_head(self, request: Request) -> None:
        path = re.sub("^[^/?#]*|#.*", "", request.url.partition("://")[2])
        target = path if path.startswith("/") else "/" + path
        headers = dict(request.headers, Host=str(self.origin))
        if self._relay is not None:
            target = "http://%s%s" % (self.origin, target)
            headers.update(self._relay.headers())
        if request.body is not None and request.body.size is None:
            headers["Transfer-Encoding"] = "chunked"
        elif request.body is not None:
            headers["Content-Length"] = str(request.body.size)
        elif request.method in ("PATCH", "POST", "PUT"):
            headers["Content-Length"] = "0"
        self._start(request.method, target, headers)

    def _start(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        self._answer, self._method = None, method
        self._file = io.BufferedReader(self, READ_AHEAD)
        self.sendall(request_head(method, target, dict({"Accept-Encoding": "identity"}, **headers)))

    def _head(self, final: bool = True) -> Head:
        """Read the head of the answer, or if not ``final`` perhaps an informational one (RFC 9110, 15.2)."""
        while self._answer is None or self._answer.status < 200:
            with self.errors():
                self._answer = Head.read(self._file, self._method)
            if self._answer.status == 101:
                raise NetworkError("malformed answer of %s: it switches protocols" % (self._peer,))
            self._peeking = True
            ahead = final or self._file.peek(1)  # the next head may have come along with this one
            self._peeking = False
            if not ahead:
                break
        return self._answer

    def _send_body(self, body: Body) -> bool:
        """Send a body; False if an answer came before its end."""
        sent = 0
        # The first bytes that a server sends over TLS are session tickets, not an answer.
        watching = self.used or not self.secure
        for count in self._sent_pieces(body):
            sent += count
            body.sent(sent)
            self._cancel.check()
            if watching and sent != body.size and not self.quiet():
                if self._head(final=False).status >= 200:
                    return False
        if body.size is None:
            self.sendall(b"0\r\n\r\n")
        elif sent != body.size:
            raise StorageError("what is sent to %s ends at byte %d of %d" % (self.origin, sent, body.size))
        return True

    def _sent_pieces(self, body: Body) -> Iterator[int]:
        """Send a body piece by piece; yields the size of each in bytes."""
        most = self._network.piece
        if isinstance(body, FileBody) and self.origin.scheme == "http" and self._socket and not most:
            for count in send(self._socket, body.file, body.offset, body.size or 0):
                self._sent += count
                yield count
            return
        step = min(PIECE, most or PIECE)
        for piece in body.pieces():
            for start in range(0, len(piece), step):
                part = piece[start:start + step]
                self.sendall(part if body.size is not None else b"%x\r\n%s\r\n" % (len(part), part))
                yield len(part)

    def done(self, reusable: bool) -> None:
        """End the exchange; only a connection with nothing left on it is kept."""
        self._network.moved(str(self.origin), self.received, self._sent)
        self.response = None
        self._scope.close()
        if reusable and self._all_sent and not self._cancel.cancelled:
            self.used = True
            self._keep(self)
        else:
            self.drop()

    def drop(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def quiet(self) -> bool:
        """Whether there is nothing to read: no byte, and not the end of the connection."""
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        # What TLS has read of a record is no longer in the socket.
        return not (self.secure and getattr(self._socket, "pending")()) and not poll.poll(0)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Map every foreign error to one of ours that names the peer, or to Cancelled if we are."""
        self._cancel.check()
        try:
            yield
        except Error:
            raise
        except Exception as exc:
            if self._cancel.cancelled:
                raise Cancelled() from exc
            raise foreign_error(exc, str(self._peer), self._peer.host, self.secure) from exc

    def _connect(self, context: Optional["ssl.SSLContext"]) -> None:
        raw = self._reach()
        if context is not None:
            self.stage = "tls"
            try:
                raw = self._handshake(raw, context)
            except ssl.SSLError as exc:
                # Python 3.6 has no verify_code: let it be "unable to get local issuer certificate".
                refused = getattr(exc, "reason", "") == "CERTIFICATE_VERIFY_FAILED"
                if not refused or getattr(exc, "verify_code", 20) not in _UNKNOWN_CA:
                    raise
                raise PolicyError(
                    "certificate of %s is not trusted (%s): it was issued by %s; put the"
                    " certificate of that CA in certs.d/%s/ca.crt or give it with --ca-file" % (
                        self.origin, certificate_problem(exc), self._ask_issuer(), self.origin)) from exc
            self.secure = True
        self.stage = ""
        raw.settimeout(self._timeout)
        if self._network.connected is not None:
            tls, certificate = "", None
            if isinstance(raw, ssl.SSLSocket):
                tls, certificate = raw.version() or "", parse_certificate(raw.getpeercert(True) or b"")
            self._network.connected(Connected(self.origin, raw.getpeername()[0], self.proxy, tls, certificate))

    def _reach(self) -> socket.socket:
        """Open a TCP connection to the origin or its proxy, and through that a tunnel for https."""
        peer = self._peer = self.proxy or self.origin
        # socket.create_connection would hide the socket that blocks from _shutdown.
        addresses = socket.getaddrinfo(peer.host.strip("[]"), peer.port, 0, socket.SOCK_STREAM)
        self.stage = "connect"
        limit = min(CONNECT_TIMEOUT, self._timeout)
        for info in addresses:
            self.drop()
            try:
                raw = self._socket = socket.socket(*info[:3])
                raw.settimeout(limit / len(addresses))
                self._cancel.check()
                raw.connect(info[4])
                break
            except OSError:
                if info is addresses[-1]:
                    raise
        self._cancel.check()
        raw.settimeout(limit)
        self.public = self.proxy is None and is_public(raw.getpeername()[0])
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.proxy is not None and self._relay is None:
            self.stage = "proxy"
            target = "%s:%d" % (self.origin.host, self.origin.port)
            self._start("CONNECT", target, dict(self.proxy.headers(), Host=target))
            answer = self._head()
            if answer.status >= 300:
                raise self.proxy.refusal(answer.status, answer.reason)
        self._peer = self.origin
        return raw

    def _handshake(self, raw: socket.socket, context: "ssl.SSLContext") -> "ssl.SSLSocket":
        self._socket = None  # wrap_socket would not notice that it has been shut down
        with raw:
            self._cancel.check()
            # suppress_ragged_eofs would take a cut connection for the end of the body.
            self._socket = tls = context.wrap_socket(
                raw, server_hostname=self.origin.host.strip("[]"), do_handshake_on_connect=False,
                suppress_ragged_eofs=False)
        self._cancel.check()
        tls.do_handshake()
        return tls

    def _ask_issuer(self) -> str:
        """The issuer of the certificate that was refused: another handshake, without a request."""
        name = ""
        with contextlib.suppress(NetworkError, OSError, ValueError):
            tls = self._handshake(self._reach(), client_context(verify=False))
            name = parse_certificate(tls.getpeercert(True) or b"").issuer
        self.stage = "tls"
        return "'%s'" % shown(name, 200) if name else "an unknown CA"

    def _shutdown(self) -> None:
        current = self._socket  # another thread may replace it at any moment
        if current is not None:
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would turn TLS off, and the reader get ciphertext for content.
                socket.socket.shutdown(current, socket.SHUT_RDWR)

    # The methods of a raw file.

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        """Read what has arrived; returns its size, None after the answer; raises Cancelled, NetworkError."""
        assert self._socket is not None
        if self._peeking or self.response is not None and self.response.remaining == 0:
            return None
        before = time.monotonic()
        count = self._socket.recv_into(memoryview(buffer)[:self._network.piece or None])
        self._cancel.check()
        self.received += count
        # Only the time in recv counts: a slow reader is no stalled peer.
        self._waited += time.monotonic() - before
        if self._waited >= self._timeout:
            if self.received - self._mark < STALL_BYTES:
                raise NetworkError("%s stalled" % (self._peer,))
            self._waited, self._mark = 0.0, self.received
        if self.response is None and self.received > MAX_HEAD:
            raise NetworkError("malformed answer of %s: endless head" % (self._peer,))
        if self._network.piece:
            self._cancel.pause(self._network.book(count))
        return count

    def sendall(self, data: Buffer) -> None:
        assert self._socket is not None
        self._socket.sendall(data)
        self._cancel.check()
        self._sent += len(data)
        if self._network.piece:
            self._cancel.pause(self._network.book(len(data)))

    def close(self) -> None:
        """Do nothing: the readers of earlier exchanges are closed as they go; drop() ends the connection."""
