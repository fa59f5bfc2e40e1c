# SPDX-License-Identifier: Apache-2.0
"""Endpoints: which hosts to ask for a repository, and how far to trust them.

Mirrors come first, then the registry itself over https, then, if it is
insecure, over http.  Insecure are ``localhost``, literal loopback addresses
and what the caller lists: nothing else ever falls back to http, and a host
that has spoken TLS does not either.

Mirrors moby's registry/{config,service,service_v2}.go.
"""
import ipaddress
import os
import re
import socket
import ssl
import threading
from typing import Callable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..errors import InvalidReference, PolicyError, shown
from ..reference import DEFAULT_DOMAIN, Reference
from .proxy import Proxies
from .tls import add_authorities, add_folder, client_context
from .transport import Transport
from .url import Origin

HUB_HOST = "registry-1.docker.io"
HUB_INDEX = "index.docker.io"  # where its v1 protocol was spoken

#   field-name LF field-value  (RFC 9110, 5.1 and 5.5; neither may hold that LF)
_HEADER = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~-]+\n[\t -~]*")
#: Secrets, which must not go to every host, and what the transfer itself decides.
_OWN_HEADERS = frozenset((
    "authorization", "proxy-authorization", "cookie", "host", "connection", "content-length",
    "transfer-encoding", "accept-encoding", "range", "if-range"))


class Endpoint(NamedTuple):
    """One way to ask for a repository; ``url`` is scheme, host and port.

    ``host`` is whose credentials go there: the reference's own domain, or the
    mirror's.  ``version`` is the protocol's.
    """
    url: str
    host: str
    mirror: bool = False
    version: int = 2

    def __str__(self) -> str:
        return str(Origin.of(self.url)) + ("/v1" if self.version == 1 else "")


class Host(NamedTuple):
    """What the settings say of one registry."""
    mirrors: Tuple[str, ...] = ()
    fallback: bool = True  # may the registry itself be asked after its mirrors?
    ca: str = ""  # file with the certificates to trust, besides the system's


def _lookup(host: str) -> List[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):  # the latter from its IDNA
        return []


class RegistryService:
    """How registries are reached; raises InvalidReference for a bad setting.

    ``mirrors`` are Docker Hub's; ``insecure`` lists ``host[:port]`` and CIDRs;
    ``lookup`` resolves a host, for the CIDRs alone.  The v1 protocol is spoken with
    the hosts that ``legacy`` lists, or with ``legacy_v1`` with all.  Certificates for a host lie in
    the first of ``certs`` that has a ``HOST[:PORT]``, and in its ``cert_dirs``.
    """

    def __init__(self, *, mirrors: Sequence[str] = (), insecure: Sequence[str] = (),
                 hosts: Optional[Mapping[str, Host]] = None, plain_http: bool = False,
                 tls_verify: bool = True, ca_file: str = "", timeout: float = 60.0,
                 headers: Optional[Mapping[str, str]] = None,
                 lookup: Callable[[str], Sequence[str]] = _lookup,
                 proxies: Optional[Proxies] = None, certs: Sequence[str] = (),
                 cert_dirs: Optional[Mapping[str, str]] = None,
                 legacy: Sequence[str] = (), legacy_v1: bool = False,
                 warn: Callable[[str], None] = lambda text: None) -> None:
        self.hosts = {_check_host(name, "host"): host for name, host in (hosts or {}).items()}
        if mirrors:
            hub = self.hosts.get(DEFAULT_DOMAIN, Host())
            self.hosts[DEFAULT_DOMAIN] = hub._replace(mirrors=hub.mirrors + tuple(mirrors))
        for domain, host in self.hosts.items():
            checked = tuple(validate_mirror(mirror) for mirror in host.mirrors)
            self.hosts[domain] = host._replace(mirrors=checked)
        self.plain_http = plain_http
        self.tls_verify = tls_verify
        self.ca_file = ca_file
        self.proxies = proxies or Proxies()
        self._certs = certs
        self._cert_dirs = {
            _check_host(name, "host"): folder for name, folder in (cert_dirs or {}).items()}
        self._warn = warn
        self._warnings: Set[str] = set()
        self._lock = threading.Lock()
        self._legacy = {_check_host(name, "legacy registry") for name in legacy}
        self._legacy_v1 = legacy_v1
        self._timeout = timeout
        self._headers = dict(headers or {})
        for name, value in self._headers.items():
            if name.lower() in _OWN_HEADERS or not _HEADER.fullmatch("%s\n%s" % (name, value)):
                raise InvalidReference("header %s can't be set" % ascii(name))
        self._lookup = lookup
        self._insecure_hosts: Set[str] = set()
        self._insecure_networks = []
        for entry in insecure:
            name = re.sub("^https?://", "", entry, flags=re.IGNORECASE)
            try:
                if "/" not in name:  # an address alone is a host, and no network of one
                    raise ValueError
                self._insecure_networks.append(ipaddress.ip_network(name, strict=False))
            except ValueError:
                self._insecure_hosts.add(_check_host(name, "insecure registry"))

    def warn(self, text: str) -> None:
        """Pass a warning on to the caller, once."""
        with self._lock:
            first = text not in self._warnings
            self._warnings.add(text)
        if first:
            self._warn(text)

    def transport(self) -> Transport:
        """A pool of connections by these rules; the caller closes it."""
        return Transport(
            self.tls_context, self._timeout, self._headers, self.proxies.find, self.warn)

    def pull_endpoints(self, reference: Reference) -> List[Endpoint]:
        """Where to ask, in order (moby: LookupPullEndpoints)."""
        host = self._host(reference.domain)
        found = [
            Endpoint(mirror.rstrip("/"), str(Origin.of(mirror)), mirror=True)
            for mirror in host.mirrors]
        if host.fallback or not host.mirrors:
            found += self.push_endpoints(reference)
        return found

    def _host(self, domain: str) -> Host:
        return self.hosts.get(str(Origin.of("https://" + domain)), Host())

    def push_endpoints(self, reference: Reference) -> List[Endpoint]:
        """The registry itself, never a mirror."""
        domain = reference.domain
        address = HUB_HOST if domain == DEFAULT_DOMAIN else domain
        schemes = ["https"]
        if self.plain_http:
            schemes = ["http"]
        elif not self.is_secure(domain):
            schemes.append("http")
        return [Endpoint("%s://%s" % (scheme, address), domain) for scheme in schemes]

    def v1_endpoints(self, reference: Reference) -> List[Endpoint]:
        """The same by the v1 protocol; none, unless that is allowed for the registry."""
        if not self._legacy_v1 and str(Origin.of("https://" + reference.domain)) not in self._legacy:
            return []
        return [found._replace(url=found.url.replace(HUB_HOST, HUB_INDEX), version=1)
                for found in self.push_endpoints(reference)]

    def is_secure(self, domain: str) -> bool:
        """Whether only verified TLS will do (moby: isSecureIndex)."""
        origin = Origin.of("https://" + domain)
        if str(origin) in self._insecure_hosts or not self.tls_verify:
            return False
        host = origin.host.strip("[]")
        if host == "localhost":
            return False
        addresses: Sequence[str] = [host]
        try:
            if ipaddress.ip_address(host).is_loopback:
                return False
        except ValueError:
            addresses = self._lookup(host) if self._insecure_networks else []
        found = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
        return not any(
            address in network
            for address in found for network in self._insecure_networks
            if address.version == network.version)

    def tls_context(self, origin: Origin) -> ssl.SSLContext:
        """What to trust there; raises StorageError, InvalidReference for bad certificates."""
        domain = DEFAULT_DOMAIN if origin.host == HUB_HOST else str(origin)
        secure = self.is_secure(domain)
        context = client_context(secure)
        for ca_file in filter(None, (self.ca_file, self._host(domain).ca)):
            add_authorities(context, ca_file)
        places = (os.path.join(root, name) for root in self._certs
                  for name in (domain, "%s:%d" % (origin.host, origin.port)))
        found = next(filter(os.path.isdir, places), "")
        for folder in filter(None, (found, self._cert_dirs.get(domain, ""))):
            add_folder(context, folder)
        return context


def validate_mirror(text: str) -> str:
    """A mirror's URL with a slash at its end (moby: ValidateMirror)."""
    scheme, _, rest = text.rpartition("://")
    why = ""
    if not scheme:
        why = "no scheme specified"
    elif scheme not in ("http", "https"):
        why = 'unsupported scheme "%s"' % shown(scheme)
    elif "@" in rest:
        why = "username/password not allowed in URI"
    elif "?" in rest or "#" in rest:
        why = "query or fragment at end of the URI"
    elif "/" in rest.rstrip("/"):
        why = "path, query, or fragment at end of the URI"
    if why:
        redacted = re.sub("(?s)^([a-z]+://)?.*@", r"\1xxxxx@", text)
        raise InvalidReference("invalid mirror: %s: %s" % (why, shown(redacted)))
    _check_host(rest.rstrip("/"), "mirror")
    return text.rstrip("/") + "/"


def _check_host(name: str, kind: str) -> str:
    """``host[:port]`` as Origin writes it."""
    if "://" in name:
        raise InvalidReference("%s %s should not contain '://'" % (kind, ascii(name)))
    if name.startswith("-") or name.endswith("-"):
        raise InvalidReference("invalid index name (%s). Cannot begin or end with a hyphen" % name)
    try:
        if re.search("[/?#]", name):
            raise PolicyError("not a host alone")
        return str(Origin.of("https://" + name))
    except PolicyError as exc:
        raise InvalidReference("%s: invalid host %s" % (kind, ascii(name))) from exc
