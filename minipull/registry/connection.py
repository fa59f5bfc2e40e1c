# SPDX-License-Identifier: Apache-2.0
"""Connections: where bytes come in, and where foreign errors become ours.

One HTTP/1.1 connection at a time is read by ``http.client``, which takes a
:class:`Connection` for its socket.  So every byte of an answer, header or
body, comes through :meth:`Connection.receive`, which keeps these rules:

- one read returns what has arrived, never waits for a buffer to fill, and
  returns nothing once the exchange is cancelled;
- a peer that moves less than 1 KiB within the timeout is stalled;
- an answer that ends before its length is an error, its length must be
  unambiguous, and more than that ends the connection.

RFC 9110 and 9112.
"""
import contextlib
import http.client
import io
import re
import select
import socket
import ssl
import time
from typing import Any, Callable, Iterator, Optional, Union

from ..cancel import Cancel
from ..digest import Buffer
from ..errors import Cancelled, Error, NetworkError, PolicyError, StorageError, TLSError
from ..sendfile import send
from .proxy import Proxy
from .request import PIECE, Body, FileBody, Request
from .response import READ_AHEAD, Exchange, Response
from .tls import client_context, issuer
from .url import Origin, is_public

CONNECT_TIMEOUT = 30.0  # seconds
STALL_BYTES = 1024
MAX_HEAD = 1 << 20  # bytes; to http.client "100 Continue" may come for ever
_NO_CA = frozenset((2, 18, 19, 20, 21))  # OpenSSL's X509_V_ERR_*


class Connection(Exchange):
    """One connection to one origin, used by one thread at a time.

    ``context`` makes the TLS context, for https; ``keep`` takes the connection
    back when it can be used again.  ``timeout`` is in seconds.  By way of a
    ``proxy`` https is tunnelled, http relayed, and addresses are its business.
    """

    def __init__(self, origin: Origin, timeout: float, context: Callable[[], ssl.SSLContext],
                 keep: Callable[["Connection"], None], proxy: Optional[Proxy] = None) -> None:
        self.origin = origin
        self.public = False
        self.secure = False  # has TLS been spoken?
        self.used = False  # for an exchange before this one
        self.received = 0  # bytes of the present answer
        self._whole = True  # was all of the present request sent?
        self.response = None
        self._timeout = timeout
        self._context = context
        self._keep = keep
        self._proxy = proxy
        self._relay = proxy if origin.scheme == "http" else None
        self._peer: Union[Origin, Proxy] = origin  # who is spoken to
        self._socket: Optional[socket.socket] = None
        self._http = http.client.HTTPConnection(origin.host.strip("[]"), origin.port)
        self._cancel = Cancel()
        self._scope = contextlib.ExitStack()
        self._waited = 0.0  # seconds, for the bytes beyond self._mark
        self._mark = 0

    def exchange(self, request: Request) -> Response:
        """Send a request and read the head of its answer."""
        body = request.body
        self._cancel = request.cancel
        self._scope.enter_context(self._cancel.calling(self._shutdown))
        try:
            with self.errors():
                if self._socket is None:
                    self._connect()
                if request.only_public and not self.public and self._proxy is None:
                    raise PolicyError("redirect to %s, a private address, refused" % (self.origin,))
                self.received, self._mark, self._waited = 0, 0, 0.0
                self._http.sock = self
                path = re.sub("^[^/?#]*|#.*", "", request.url.partition("://")[2])
                target = path if path.startswith("/") else "/" + path
                fields = dict(request.headers, Host=str(self.origin))
                if self._relay is not None:
                    target = "http://%s%s" % (self.origin, target)
                    fields.update(self._relay.fields())
                if body is not None and body.size is None:
                    fields["Transfer-Encoding"] = "chunked"
                elif body is not None:
                    fields["Content-Length"] = str(body.size)
                self._http.request(request.method, target, None, fields)
                self._whole = body is None
                if body is not None:
                    # Whoever closes the connection may have said why before.
                    with contextlib.suppress(ConnectionError, ssl.SSLError):
                        self._whole = self._send(body)
                answer = self._http.getresponse()
                if self._relay is not None and answer.status == 407:
                    raise self._relay.refusal(answer.status, answer.reason)
                self.response = Response(answer, self, request.url)
        except BaseException:
            self.done(reusable=False)
            raise
        return self.response

    def _send(self, body: Body) -> bool:
        """Send a body; False if the answer came before its end."""
        sent = 0
        # Where TLS has just begun, what comes in first is tickets and no answer.
        heeding = self.used or not self.secure
        for count in self._sending(body):
            sent += count
            body.sent(sent)
            self._cancel.check()
            if heeding and sent != body.size and not self.quiet():
                return False
        if body.size is None:
            self.sendall(b"0\r\n\r\n")
        elif sent != body.size:
            raise StorageError("what is sent to %s ends at byte %d of %d" % (
                self.origin, sent, body.size))
        return True

    def _sending(self, body: Body) -> Iterator[int]:
        if isinstance(body, FileBody) and self.origin.scheme == "http" and self._socket:
            yield from send(self._socket, body.file, body.offset, body.size or 0)
            return
        for piece in body.pieces():
            for start in range(0, len(piece), PIECE):
                part = piece[start:start + PIECE]
                self.sendall(part if body.size is not None else b"%x\r\n%s\r\n" % (len(part), part))
                yield len(part)

    def done(self, reusable: bool) -> None:
        self.response = None
        self._scope.close()
        self._scope = contextlib.ExitStack()
        if reusable and self._whole and not self._cancel.cancelled:
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
        self._cancel.check()
        try:
            yield
        except Error:
            raise
        except Exception as exc:
            if self._cancel.cancelled:
                raise Cancelled() from exc
            raise _mapped(exc, self._peer, self.secure) from exc

    def _connect(self) -> None:
        raw = self._reach()
        if self.origin.scheme == "https":
            try:
                raw = self._handshake(raw, self._context())
            except ssl.SSLError as exc:
                # Python 3.6 can't tell why a certificate was refused.
                refused = getattr(exc, "reason", "") == "CERTIFICATE_VERIFY_FAILED"
                if not refused or getattr(exc, "verify_code", 20) not in _NO_CA:
                    raise
                raise PolicyError(
                    "certificate of %s is not trusted (%s): it was issued by %s; put the"
                    " certificate of that CA in certs.d/%s/ca.crt or give it with --ca-file" % (
                        self.origin, _reason(exc), self._ask_issuer(), self.origin)) from exc
            self.secure = True
        raw.settimeout(self._timeout)

    def _reach(self) -> socket.socket:
        """Connect, by a tunnel where a proxy must not look in."""
        peer = self._peer = self._proxy or self.origin
        # What blocks must be known to _shutdown, so this is no create_connection.
        found = socket.getaddrinfo(peer.host.strip("[]"), peer.port, 0, socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            self.drop()
            try:
                raw = self._socket = socket.socket(family, kind, protocol)
                raw.settimeout(CONNECT_TIMEOUT)
                self._cancel.check()
                raw.connect(address)
                break
            except OSError:
                if address == found[-1][4]:
                    raise
        self._cancel.check()
        self.public = self._proxy is None and is_public(raw.getpeername()[0])
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._proxy is not None and self._relay is None:
            target = "%s:%d" % (self.origin.host, self.origin.port)
            self._http.sock = self
            self._http.request("CONNECT", target, None, dict(self._proxy.fields(), Host=target))
            with self._http.getresponse() as answer:
                if answer.status != 200:
                    raise self._proxy.refusal(answer.status, answer.reason)
        self._peer = self.origin
        return raw

    def _handshake(self, raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        self._socket = None  # shut down while it changes hands, it would be lost
        with raw:
            self._cancel.check()
            # An end that TLS does not vouch for may be anybody's, so none is suppressed.
            tls = context.wrap_socket(
                raw, server_hostname=self.origin.host.strip("[]"), do_handshake_on_connect=False,
                suppress_ragged_eofs=False)
        self._socket = tls
        self._cancel.check()
        tls.do_handshake()
        return tls

    def _ask_issuer(self) -> str:
        """Who issued the certificate that was refused; a handshake of its own, and no request."""
        found, context = "", client_context(verify=False)
        with contextlib.suppress(NetworkError, OSError, http.client.HTTPException):
            found = issuer(self._handshake(self._reach(), context).getpeercert(True) or b"")
        return ascii(found)[:200] if found else "an unknown CA"

    def _shutdown(self) -> None:
        # Never SSLSocket.shutdown: it turns TLS off under the reader, who would
        # then take ciphertext for content.
        present = self._socket  # which may be another one at any moment
        if present is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(present, socket.SHUT_RDWR)

    # The part of a socket that http.client uses.

    def makefile(self, mode: str, *args: Any) -> io.BufferedReader:
        return io.BufferedReader(_Arriving(self), READ_AHEAD)

    def sendall(self, data: Buffer) -> None:
        assert self._socket is not None
        self._socket.sendall(data)
        self._cancel.check()

    def close(self) -> None:
        """http.client is done with the socket; the body may not be."""

    def receive(self, view: memoryview) -> Optional[int]:
        """What has arrived, None behind the answer; raises Cancelled, NetworkError if stalled."""
        assert self._socket is not None
        if self.response is not None and self.response.remaining == 0:
            return None
        before = time.monotonic()
        count = self._socket.recv_into(view)
        self._cancel.check()
        self.received += count
        # Only what the peer took: the reader may be slow, or have been stopped.
        self._waited += time.monotonic() - before
        if self._waited >= self._timeout:
            if self.received - self._mark < STALL_BYTES:
                raise NetworkError("%s stalled" % (self._peer,))
            self._waited, self._mark = 0.0, self.received
        if self.response is None and self.received > MAX_HEAD:
            raise NetworkError("malformed answer of %s: endless head" % (self._peer,))
        return count


class _Arriving(io.RawIOBase):
    """The one door for bytes from the network."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        return self._conn.receive(memoryview(buffer))


def _mapped(exc: Exception, peer: Union[Origin, Proxy], secure: bool) -> Error:
    text = str(getattr(exc, "strerror", None) or exc) or type(exc).__name__
    if isinstance(exc, ssl.CertificateError) or "CERTIFICATE_VERIFY_FAILED" in text:
        return PolicyError("certificate of %s is not trusted (%s)" % (peer, _reason(exc)))
    if isinstance(exc, socket.timeout):
        return NetworkError("%s: timed out" % (peer,))
    if isinstance(exc, ssl.SSLError):
        reason = str(getattr(exc, "reason", None) or text).lower().replace("_", " ")
        if re.search("alert .*(certificate|unknown ca)", reason):
            return TLSError(
                "%s wants a client certificate that it trusts (%s); put NAME.cert and NAME.key in"
                " certs.d/%s or in a --cert-dir" % (peer, reason, peer))
        if not secure:
            hint = "; it may want a client certificate" if "alert handshake" in reason else ""
            return TLSError("%s: TLS failed (%s)%s" % (peer, reason, hint))
    if isinstance(exc, (socket.gaierror, UnicodeError)):  # the latter from its IDNA
        return NetworkError("lookup %s: %s" % (peer.host, text))
    if isinstance(exc, http.client.RemoteDisconnected):
        return NetworkError("%s closed the connection without an answer" % (peer,))
    if isinstance(exc, OSError):
        return NetworkError("%s: %s" % (peer, text.lower()))
    return NetworkError("malformed answer of %s (%s)" % (peer, type(exc).__name__))


def _reason(exc: Exception) -> str:
    return str(getattr(exc, "verify_message", "") or getattr(exc, "strerror", "") or exc)
