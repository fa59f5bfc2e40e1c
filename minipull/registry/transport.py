# SPDX-License-Identifier: Apache-2.0
"""HTTP: a pool of connections, redirects, and repeats.

``urllib.request`` would close each connection after one answer, and its requests
can't be cancelled.  The rules for all requests:

- ten redirects at most are followed, for other methods than GET and HEAD only
  within an origin or, as an upload is opened, without a body; secrets never follow
  to another origin, https never becomes http, and a public host can't redirect to
  a private address;
- a request that failed soon and moved no byte is repeated three times, one that has
  cost the timeout is not, and a rate limit of up to a minute is waited for.

Mirrors moby's registry/ (NewTransport) and Go's net/http.
"""
import contextlib
import re
import sys
import threading
import time
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from .. import __version__
from ..errors import NetworkError, PolicyError, RateLimited, Unauthorized, shown
from ..parts import email_utils, random, ssl
from .connection import CONNECT_TIMEOUT, Connection
from .errors import Outage, WrongScheme
from .network import Network
from .proxy import Proxy
from .request import Request
from .response import Response
from .tls import client_context
from .url import Origin, joined

USER_AGENT = "minipull/%s (python %d.%d; %s)" % ((__version__,) + sys.version_info[:2] + (sys.platform,))
RETRY_DELAYS = (0.2, 0.4, 0.8)  # seconds, jittered
RATE_LIMIT_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds, where the registry names none
MAX_RETRY_AFTER = 60.0  # seconds
MAX_REDIRECTS = 10
MAX_IDLE = 64  # connections; each redirect may lead to another host
_PROBE_TIMEOUT = 5.0  # seconds
RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))

#: The only headers that follow a redirect to another origin, where a download must be resumable.
_FOLLOWING = frozenset(("accept", "range", "if-range", "user-agent"))


class Transport:
    """A pool of connections to any number of origins, shared by threads; ``timeout`` is in seconds.

    ``tls`` returns the TLS context for an origin, ``proxy`` its proxy; ``warn`` gets each
    warning, ``network`` has the rules.  close() ends idle connections; one in use ends with its response.
    """

    def __init__(self, tls: Callable[[Origin], "ssl.SSLContext"], timeout: float = 60.0,
                 headers: Optional[Mapping[str, str]] = None,
                 proxy: Callable[[Origin], Optional[Proxy]] = lambda origin: None,
                 warn: Callable[[str], None] = lambda text: None,
                 network: Optional[Network] = None) -> None:
        self.timeout = timeout
        #: Hosts and ports that have completed a TLS handshake; no longer asked by plain http.
        self.spoke_tls: Set[Tuple[str, int]] = set()
        #: Origins with an address of the public internet: no URL of theirs leads to a private address.
        self.public: Set[Origin] = set()
        #: Called before each exchange of a request, and again with its answer, which a failed one lacks.
        self.watch: Callable[[Connection, Request, Optional[Response]], object] = lambda *exchange: None
        self._tls = tls
        self._proxy = proxy
        self.network = network or Network()
        self.warn = warn
        self._headers = dict({"User-Agent": USER_AGENT}, **(headers or {}))
        self._lock = threading.Lock()
        self._idle: List[Connection] = []  # the newest last
        self._contexts: Dict[Origin, ssl.SSLContext] = {}
        self._closed = False
        self._speak_tls: Dict[Origin, bool] = {}  # peers asked by plain http; proxies too

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._drop_idle(None)

    def _drop_idle(self, origin: Optional[Origin]) -> None:
        """Drop the idle connections to an origin, or to all."""
        with self._lock:
            idle = [conn for conn in self._idle if origin in (None, conn.origin)]
            self._idle = [conn for conn in self._idle if conn not in idle]
        for conn in idle:
            conn.drop()

    def send(self, request: Request) -> Response:
        """Send a request, return any answer; raises NetworkError, PolicyError, RateLimited, Unauthorized, Cancelled."""
        retries, limits = ([], []) if request.once else (list(RETRY_DELAYS), list(RATE_LIMIT_DELAYS))
        spent, patience = 0.0, min(self.timeout, CONNECT_TIMEOUT)  # seconds of waiting for the peer
        while True:
            request.cancel.check()
            begin = time.monotonic()
            try:
                response = self._follow(request)
            except NetworkError as exc:
                spent += time.monotonic() - begin
                if not exc.retry or not retries or not request.repeat or spent >= patience:
                    raise
                request.cancel.pause(retries.pop(0) * random.uniform(0.75, 1.25))
                continue
            spent += time.monotonic() - begin
            limited = response.status == 429
            if response.status not in RETRIED or not request.repeat and not limited:
                return response
            asked = retry_after(response.header("Retry-After"))
            delays = limits if limited else retries
            if asked > MAX_RETRY_AFTER:
                response.close()
                raise RateLimited("%s %s; try again in %d seconds" % (
                    response.origin, "limits our rate" if limited else "is not available", asked))
            if not delays or not limited and spent >= patience:
                return response
            response.discard()
            request.cancel.pause(max(asked, delays.pop(0) * random.uniform(0.75, 1.25)))

    def _follow(self, request: Request) -> Response:
        """Send a request, and again to each place that it is redirected to."""
        request = request._replace(headers=self._headers).with_headers(request.headers)
        first = Origin.of(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._exchange(request)
            if response.origin == first:
                # warning ::= "299 - " quoted-string  (distribution-spec, "Warnings")
                for text in re.findall(r'299 - "((?:[^"\\]|\\.)*)"', response.header("Warning")[:4096]):
                    self.warn("%s: %s" % (response.origin, shown(re.sub(r"\\(.)", r"\1", text))))
                low = self.network.note_quota(request.url, response.header)
                if low:
                    self.warn("%s: %s" % (first, low))
            location = response.header("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            response.discard()
            public = request.only_public or response.origin in self.public
            request = request._replace(url=joined(request.url, location), only_public=public,
                                       role="to which %s redirects" % (response.origin,))
            origin = Origin.of(request.url)
            opens = request.method == "POST" and request.body is None
            kept = response.status in (307, 308) and (origin == response.origin or opens)
            if not request.follow or request.method not in ("GET", "HEAD") and not kept:
                raise PolicyError("%s redirects a %s request, refused" % (response.origin, request.method))
            if origin.scheme == "http" and response.origin.scheme == "https":
                raise PolicyError("%s redirects from https to http, refused" % (response.origin,))
            if origin != first:
                request = request._replace(headers={
                    name: value for name, value in request.headers.items() if name.lower() in _FOLLOWING})
        raise PolicyError("%s: stopped after %d redirects" % (first, MAX_REDIRECTS))

    def _exchange(self, request: Request) -> Response:
        """Send a request on a connection of the pool, or on a new one."""
        origin = Origin.of(request.url)
        while True:
            self.network.check(origin, request.role)
            conn = self._checkout(origin)
            try:
                self.watch(conn, request, None)
                response = conn.exchange(request)
                self.watch(conn, request, response)
                if response.status == 400 and origin.scheme == "http":
                    try:
                        self._check_scheme(conn, request)
                    except BaseException:
                        response.close()
                        raise
                self._speak_tls.setdefault(origin, False)
                return response
            except NetworkError as exc:
                if isinstance(exc, Outage) and not conn.used or conn.stage == "proxy" and not exc.retry:
                    self._check_scheme(conn, request)
                # The server may have closed an idle connection before it got the request, or
                # a gateway forgotten it, and then all that were idle.
                if not conn.used or conn.received or not request.repeat:
                    raise
                self._drop_idle(origin)
            finally:
                if conn.public:
                    self.public.add(origin)
                if conn.secure:
                    self.spoke_tls.add((origin.host, origin.port))

    def _check_scheme(self, conn: Connection, request: Request) -> None:
        """Raise WrongScheme if plain http was asked of an origin, or of its proxy, that speaks TLS.

        Such servers answer 400, or close the connection.  Each is tried once, on the way of the request
        and by one without secrets.
        """
        proxy = conn.proxy
        peers = [Origin("http", proxy.host, proxy.port)] if proxy else []
        peers += [conn.origin] if conn.origin.scheme == "http" and not conn.stage else []
        for peer in peers:
            if peer not in self._speak_tls:
                secure = peer._replace(scheme="https")
                probe = Connection(
                    secure, min(self.timeout, _PROBE_TIMEOUT), lambda: client_context(verify=False),
                    Connection.drop, proxy if peer is conn.origin else None, self.network)
                with contextlib.suppress(NetworkError, Unauthorized):  # the latter of the proxy
                    probe.exchange(Request("GET", "https://%s" % (secure,), request.cancel,
                                           only_public=request.only_public and peer is conn.origin)).close()
                self._speak_tls[peer] = probe.secure
            if self._speak_tls[peer]:
                raise WrongScheme(str(conn.origin if peer is conn.origin else proxy), "https")

    def _checkout(self, origin: Origin) -> Connection:
        while True:
            with self._lock:
                conn = next((idle for idle in reversed(self._idle) if idle.origin == origin), None)
                if conn is not None:
                    self._idle.remove(conn)
            if conn is None:
                return Connection(origin, self.timeout, lambda: self._context(origin), self._checkin,
                                  self._proxy(origin), self.network)
            if conn.quiet():
                return conn
            conn.drop()

    def _checkin(self, conn: Connection) -> None:
        with self._lock:
            self._idle.append(conn)
            if not self._closed and len(self._idle) <= MAX_IDLE:
                return
            oldest = self._idle.pop(0)
        oldest.drop()

    def verifies(self, origin: Origin) -> bool:
        """Whether the host proves by TLS that it is the one in the URL."""
        return origin.scheme == "https" and self._context(origin).verify_mode != ssl.CERT_NONE

    def _context(self, origin: Origin) -> "ssl.SSLContext":
        with self._lock:
            if origin not in self._contexts:
                self._contexts[origin] = self._tls(origin)
            return self._contexts[origin]


def retry_after(text: str) -> float:
    """The seconds that a Retry-After asks for (RFC 9110, 10.2.3), 0 if it is malformed."""
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email_utils.parsedate_to_datetime(text).timestamp() - time.time())
    except Exception:  # Python 3.6 to 3.8 raise UnboundLocalError for some dates
        return 0.0
