# SPDX-License-Identifier: Apache-2.0
"""The network as one command may use it, and the records of its use."""
import re
import threading
import time
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Set, Tuple

from ..errors import PolicyError
from ..reference import DEFAULT_DOMAIN
from .proxy import Proxy
from .tls import Certificate
from .url import Origin

HUB_HOST = "registry-1.docker.io"
LOW_QUOTA = 10  # pulls; fewer are a warning
_CREDIT = 0.1  # seconds that may be made up for when a thread woke up late

#   quota ::= count [ ";w=" seconds ] ( "," | ";" | end )  (Docker Hub, "Pull usage and limits")
_QUOTA = r"([0-9]{1,9})(?:\s*;\s*w=([0-9]{1,9}))?\s*(?:[,;]|$)"


class Connected(NamedTuple):
    """A new connection: the address of the origin or its proxy, and for https TLS and the certificate."""
    origin: Origin
    address: str
    proxy: Optional[Proxy] = None
    tls: str = ""  # such as TLSv1.3
    certificate: Optional[Certificate] = None

    def __str__(self) -> str:
        proxy = " by %s" % (self.proxy,) if self.proxy else ""
        issuer = ", issued by %s" % ascii(self.certificate.issuer)[:200] if self.certificate else ""
        return "connected to %s at %s%s, %s%s" % (
            self.origin, self.address, proxy, self.tls or "without TLS", issuer)


class Quota(NamedTuple):
    """The pulls that a registry still allows, of a limit, in a window of seconds, where these are known."""
    remaining: int
    limit: Optional[int] = None
    window: Optional[int] = None

    def __str__(self) -> str:
        limit = " of %d" % self.limit if self.limit is not None else ""
        window = " (per %.4g hours)" % (self.window / 3600) if self.window else ""
        return "%d%s pulls left%s" % (self.remaining, limit, window)


class Network:
    """The rules and records of all connections that share it, those of several services too.

    ``limit_rate`` is in bytes a second, both ways together, 0 for no limit.  ``only``
    lists ``HOST[:PORT]``; no other host is looked up or asked, and with ``offline``
    none.  A proxy was chosen by the caller and needs no entry.  ``connected`` gets each
    new connection.
    """

    def __init__(self, *, limit_rate: int = 0, only: Optional[Sequence[str]] = None, offline: bool = False,
                 connected: Optional[Callable[[Connected], None]] = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        #: The bytes that a connection moves at once, so that no peer takes us for stalled; 0 without a limit.
        self.piece = max(1, limit_rate // 64) if limit_rate else 0
        self.offline = offline
        self.connected = connected
        self.traffic: Dict[str, Tuple[int, int]] = {}  # by host: bytes received and sent, heads included
        self.quotas: Dict[str, Quota] = {}  # by host: the newest one
        self._limit_rate = limit_rate
        self._clock = clock
        self._paid = clock()  # the time at which all bytes that were booked are within the limit
        self._lock = threading.Lock()
        self._low: Set[str] = set()
        self._only = None if only is None else {name.lower() for name in only}

    def book(self, count: int) -> float:
        """Book bytes that were moved under a limit; returns the seconds to wait before the next ones."""
        with self._lock:
            now = self._clock()
            self._paid = max(self._paid, now - _CREDIT) + count / self._limit_rate
            return max(0.0, self._paid - now)

    def allows(self, origin: Origin) -> bool:
        """Whether a host may be looked up and asked."""
        names = {origin.host, DEFAULT_DOMAIN if origin.host == HUB_HOST else origin.host}
        names.update(["%s:%d" % (name, origin.port) for name in names])
        return not self.offline and (self._only is None or not names.isdisjoint(self._only))

    def check(self, origin: Origin, role: str) -> None:
        """Raise PolicyError for a host that may not be asked; ``role`` tells who named it."""
        if not self.allows(origin):
            rule = "not asked with --offline" if self.offline else "not among --only (allowed-hosts)"
            raise PolicyError("%s%s is %s" % (origin, role and ", %s," % role, rule))

    def moved(self, host: str, received: int, sent: int) -> None:
        """Count the bytes of an exchange."""
        with self._lock:
            before = self.traffic.get(host, (0, 0))
            self.traffic[host] = before[0] + received, before[1] + sent

    def note_quota(self, url: str, header: Callable[[str], str]) -> Optional[Quota]:
        """Keep the quota in the head of an answer; returns one that is low, once for a host."""
        left = re.match(_QUOTA, header("RateLimit-Remaining")) if "/manifests/" in url else None
        if left is None:
            return None
        host, most = str(Origin.of(url)), re.match(_QUOTA, header("RateLimit-Limit"))
        quota = Quota(int(left.group(1)), int(most.group(1)) if most else None,
                      int(left.group(2)) if left.group(2) else None)
        with self._lock:
            self.quotas[host] = quota
            low = quota.remaining < LOW_QUOTA and host not in self._low
            self._low.update([host] if low else [])
        return quota if low else None
