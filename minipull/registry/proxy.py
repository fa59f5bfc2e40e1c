# SPDX-License-Identifier: Apache-2.0
"""Proxies: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, by the rules of Go.

Loopback is never proxied, nor are the hosts of NO_PROXY.  A proxy that can't be
used is an error only for an origin that needs it.

Mirrors golang.org/x/net/http/httpproxy, which the engine uses.
"""
import base64
import contextlib
import ipaddress
import re
from typing import Any, Mapping, NamedTuple, Optional
from urllib.parse import unquote_to_bytes

from ..errors import Error, InvalidReference, NetworkError, PolicyError, Unauthorized, shown
from .url import Origin

#   proxy ::= [ scheme "://" ] [ userinfo "@" ] netloc [ "/" ]
_PROXY = r"(?s)(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:(.*)@)?([^@/?#]*)/?"
#   entry ::= ( host | IPv4 | "[" IPv6 "]" ) [ ":" port ]  (else it is an IPv6 address or network)
_ENTRY = r"(\[.*\]|[^:]*)(?::([0-9]{1,5}))?"


class Proxy(NamedTuple):
    """An HTTP proxy; ``authorization`` is a secret for the proxy alone."""
    host: str
    port: int
    authorization: str = ""

    def __repr__(self) -> str:
        return "proxy %s:%d" % (self.host, self.port)

    def headers(self) -> Mapping[str, str]:
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}

    def refusal(self, status: int, reason: str) -> Error:
        """The error for an answer of the proxy itself."""
        text = "%s: %d %s" % (self, status, shown(reason, 100))
        if status == 407:
            return Unauthorized(text + "; put USER:PASSWORD@ in front of its host")
        error = NetworkError(text)
        error.retry = status >= 500
        return error


class Proxies:
    """A proxy for each scheme, and the hosts that are asked without one (``no_proxy``)."""

    def __init__(self, http: str = "", https: str = "", no_proxy: str = "") -> None:
        self.no_proxy = no_proxy
        self._urls = {"http": http, "https": https}

    def find(self, origin: Origin) -> Optional[Proxy]:
        """The proxy for an origin, if any; raises as get()."""
        return None if self.exemption(origin) else self.get(origin.scheme)

    def exemption(self, origin: Origin) -> str:
        """The rule by which an origin is asked without a proxy; empty if there is none."""
        host = origin.host.strip("[]")
        address: Any = None
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            address = getattr(address, "ipv4_mapped", None) or address
        if host == "localhost" or address is not None and address.is_loopback:
            return "loopback"
        return next(("NO_PROXY has " + entry.strip() for entry in self.no_proxy.lower().split(",")
                     if _matches(entry.strip(), host, origin.port, address)), "")

    def get(self, scheme: str) -> Optional[Proxy]:
        """The proxy for a scheme, if any; raises InvalidReference for one that can't be used."""
        url, name = self._urls[scheme], scheme.upper() + "_PROXY"
        if not url:
            return None
        match = re.fullmatch(_PROXY, url)
        kind, userinfo, netloc = match.groups() if match else ("", "", "")
        if kind and kind.lower() != "http":
            raise InvalidReference(
                "%s names a proxy that speaks %s; only http:// will do" % (name, kind.lower()))
        try:
            address = Origin.of("http://" + netloc)
        except PolicyError as exc:  # the URL is not shown: it may hold the password
            raise InvalidReference(
                "%s is malformed; it must be http://[USER:PASSWORD@]HOST[:PORT]" % name) from exc
        if not userinfo:
            return Proxy(address.host, address.port)
        pair = unquote_to_bytes(userinfo.encode("utf-8", "surrogateescape"))
        pair += b"" if ":" in userinfo else b":"
        return Proxy(address.host, address.port, "Basic " + base64.b64encode(pair).decode())


def _matches(entry: str, host: str, port: int, address: Any) -> bool:
    """Whether an entry of NO_PROXY covers a host; ``address`` is the host's if it is literal."""
    if entry == "*":
        return True
    match = re.fullmatch(_ENTRY, entry)
    name, only_port = match.groups() if match else (entry, None)
    if only_port and int(only_port) != port:
        return False
    try:
        network = ipaddress.ip_network(name.strip("[]"), strict=False)
        return address is not None and address in network
    except ValueError:
        # "a.com" covers itself and its subdomains, ".a.com" and "*.a.com" the subdomains alone.
        name = name[1:] if name.startswith("*.") else name
        if name.startswith("."):
            return host.endswith(name)
        return name != "" and ("." + host).endswith("." + name)
