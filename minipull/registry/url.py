# SPDX-License-Identifier: Apache-2.0
"""Origins: the scheme, host and port of a URL, by a strict grammar.

A registry's Location, Link or realm decides where bytes and secrets go next, so
a URL that two parsers could read differently is refused.  urllib refuses few.

RFC 3986; RFC 9110, 4.3.1.
"""
import ipaddress
import re
import urllib.parse
from typing import NamedTuple

from ..errors import PolicyError

#   netloc ::= ( domain | IPv4 | "[" IPv6 "]" ) [ ":" port ]
_NETLOC = r"([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
_UNSAFE = r"[^!-\[\]-~]"  # all but printable ASCII, and the backslash


class Origin(NamedTuple):
    """Scheme, host and port; secrets are bound to one origin."""
    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """The origin of a URL; raises PolicyError for one outside the grammar."""
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        match = re.fullmatch(_NETLOC, re.split("[/?#]", rest)[0])
        port = int(match.group(2) or (443 if scheme == "https" else 80)) if match else 0
        if scheme not in ("http", "https") or match is None or port > 65535 or re.search(_UNSAFE, url):
            raise _refused(url)
        return cls(scheme, match.group(1).lower(), port)

    def __str__(self) -> str:
        standard = {"http": 80, "https": 443}[self.scheme] == self.port
        return self.host if standard else "%s:%d" % (self.host, self.port)


def joined(base: str, reference: str) -> str:
    """The URL that a Location or Link names (RFC 3986, 5.2), without userinfo; raises PolicyError."""
    try:
        if re.search(_UNSAFE, reference):  # urljoin would drop tabs and line ends
            raise ValueError
        return re.sub("^([a-z]+://)[^/?#]*@", r"\1", urllib.parse.urljoin(base, reference))
    except ValueError as exc:
        raise _refused(reference) from exc


def _refused(url: str) -> PolicyError:
    # The userinfo and the query (a signature of an object store) may be secret.
    front, slashes, rest = url.partition("//")
    shown = re.split("[?#]", front + slashes + rest.rpartition("@")[2])[0]
    return PolicyError("refused URL %s" % ascii(shown)[:200])


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, global to ipaddress
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        return address.is_global and int(address) >> 125 == 0b001  # 2000::/3
    return address.is_global and not address.is_multicast
