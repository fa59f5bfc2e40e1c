# SPDX-License-Identifier: Apache-2.0
"""Endpoints: the hosts to ask for a repository, and the trust in each.

Mirrors come first, then the registry itself over https, and over http if it is
insecure.  Insecure are ``localhost``, literal loopback addresses and the hosts
that the caller lists; no other host is ever asked by plain http, and none that
has spoken TLS.

Mirrors moby's registry/{config,service,service_v2}.go.
"""
import contextlib
import ipaddress
import os
import re
import socket
import threading
from typing import Callable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ..errors import Error, InvalidReference, PolicyError, shown
from ..parts import ssl
from ..reference import DEFAULT_DOMAIN, Reference
from .network import HUB_HOST, Network
from .proxy import Proxies
from .tls import add_authorities, add_folder, client_context
from .transport import Transport
from .url import Origin

HUB_INDEX = "index.docker.io"  # where its v1 protocol was spoken

#   field-name LF field-value  (RFC 9110, 5.1 and 5.5; neither may contain the LF)
_HEADER = "[A-Za-z0-9!#$%&'*+.^_`|~-]+\n[\t -~]*"
#: Headers that a user can't set: secrets, which must not go to every host, and our own.
_OWN_HEADERS = frozenset((
    "authorization", "proxy-authorization", "cookie", "host", "connection", "content-length",
    "transfer-encoding", "accept-encoding", "range", "if-range"))


class Endpoint(NamedTuple):
    """A host that may have a repository; ``url`` is scheme, host and port, and a mirror's path.

    Credentials are looked up for ``host``: the reference's domain, or a mirror's own host.
    """
    url: str
    host: str
    mirror: bool = False
    version: int = 2

    @property
    def api(self) -> str:
        """The root of the v2 API; a path that begins or ends with /v2 is that already, as for containerd."""
        path = self.url.split("/")[3:]
        return self.url + ("/" if "v2" in path[:1] + path[-1:] else "/v2/")

    def __str__(self) -> str:
        return str(Origin.of(self.url)) + ("/v1" if self.version == 1 else "")


class Host(NamedTuple):
    """The settings of one registry."""
    mirrors: Tuple[str, ...] = ()
    fallback: bool = True  # to the registry itself, after its mirrors
    ca: str = ""  # path of a file with more authorities to trust
    problem: Optional[Error] = None  # with these settings; raised when the registry is asked


def addresses_of(host: str) -> List[str]:
    """The IP addresses of a host, as text; none if its name can't be resolved."""
    try:
        return [str(address[0]) for *_, address in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):  # the latter from the IDNA codec
        return []


class RegistryService:
    """The settings for reaching registries; raises InvalidReference for a bad one.

    ``mirrors`` are Docker Hub's; ``insecure`` lists ``host[:port]`` and CIDRs;
    ``lookup`` resolves a host, for the CIDRs alone.  The hosts in ``legacy``, or
    with ``legacy_v1`` all, may be asked by the v1 protocol.  Certificates for a
    host are in the first of ``certs`` with a ``HOST[:PORT]``, and in its ``cert_dirs``.
    ``network`` has the rate and the hosts that may be asked; services may share it.
    """

    def __init__(self, *, mirrors: Sequence[str] = (), insecure: Sequence[str] = (),
                 hosts: Optional[Mapping[str, Host]] = None, plain_http: bool = False,
                 tls_verify: bool = True, ca_file: str = "", timeout: float = 60.0,
                 headers: Optional[Mapping[str, str]] = None,
                 lookup: Callable[[str], Sequence[str]] = addresses_of,
                 proxies: Optional[Proxies] = None, certs: Sequence[str] = (),
                 cert_dirs: Optional[Mapping[str, str]] = None,
                 legacy: Sequence[str] = (), legacy_v1: bool = False, network: Optional[Network] = None,
                 warn: Callable[[str], None] = lambda text: None) -> None:
        self.hosts = {
            check_host(name, "host"): host._replace(mirrors=tuple(map(validate_mirror, host.mirrors)))
            for name, host in (hosts or {}).items()}
        if mirrors:
            hub = self.hosts.get(DEFAULT_DOMAIN, Host())
            self.hosts[DEFAULT_DOMAIN] = hub._replace(mirrors=(*hub.mirrors, *map(validate_mirror, mirrors)))
        self.plain_http = plain_http
        self.tls_verify = tls_verify
        self.ca_file = ca_file
        self.proxies = proxies or Proxies()
        self.network = network or Network()
        self.certs = certs
        self._cert_dirs = {check_host(name, "host"): folder for name, folder in (cert_dirs or {}).items()}
        self._warn = warn
        self._warnings: Set[str] = set()
        self._lock = threading.Lock()
        self._legacy = {check_host(name, "legacy registry") for name in legacy}
        self._legacy_v1 = legacy_v1
        self._timeout = timeout
        self._headers = dict(headers or {})
        for name, value in self._headers.items():
            if name.lower() in _OWN_HEADERS or not re.fullmatch(_HEADER, "%s\n%s" % (name, value)):
                raise InvalidReference("header %s can't be set" % ascii(name))
        self._lookup = lookup
        entries = set(map(validate_insecure, insecure))
        self.insecure = sorted(map(str, entries))
        self._insecure_hosts = {entry for entry in entries if isinstance(entry, str)}
        self._insecure_networks = [entry for entry in entries if not isinstance(entry, str)]

    def warn(self, text: str) -> None:
        """Pass a warning on to the caller, once."""
        with self._lock:
            first = text not in self._warnings
            self._warnings.add(text)
        if first:  # called without the lock, since a caller's output may wait
            self._warn(text)

    def transport(self) -> Transport:
        """A pool of connections with these settings; the caller closes it."""
        return Transport(
            self.tls_context, self._timeout, self._headers, self.proxies.find, self.warn, self.network)

    def _host(self, reference: Reference) -> Host:
        host = self.hosts.get(_key(reference.domain), Host())
        if host.problem is not None:
            raise host.problem
        return host

    def pull_endpoints(self, reference: Reference) -> List[Endpoint]:
        """The mirrors and the registry, in the order in which to ask (moby: LookupPullEndpoints)."""
        host = self._host(reference)
        mirrors = [Endpoint(url.rstrip("/"), str(Origin.of(url)), mirror=True) for url in host.mirrors]
        return mirrors + (self.push_endpoints(reference) if host.fallback or not mirrors else [])

    def push_endpoints(self, reference: Reference) -> List[Endpoint]:
        """The registry itself, without its mirrors (moby: LookupPushEndpoints)."""
        self._host(reference)
        domain = reference.domain
        address = HUB_HOST if domain == DEFAULT_DOMAIN else domain
        schemes = [] if self.plain_http else ["https"]
        if self.plain_http or not self.is_secure(domain):
            schemes.append("http")
        return [Endpoint("%s://%s" % (scheme, address), domain) for scheme in schemes]

    def v1_endpoints(self, reference: Reference) -> List[Endpoint]:
        """The registry by the v1 protocol; none unless the user allows that."""
        if not self._legacy_v1 and _key(reference.domain) not in self._legacy:
            return []
        return [endpoint._replace(url=endpoint.url.replace(HUB_HOST, HUB_INDEX), version=1)
                for endpoint in self.push_endpoints(reference)]

    def is_secure(self, domain: str) -> bool:
        """Whether the registry must be reached by verified TLS (moby: isSecureIndex)."""
        return not self.exemption(domain)

    def exemption(self, domain: str) -> str:
        """The rule by which a registry may be reached without verified TLS; empty if there is none."""
        origin = Origin.of("https://" + domain)
        host = origin.host.strip("[]")
        if not self.tls_verify:
            return "tls-verify is false"
        if host == "localhost":
            return "loopback"
        if _key(domain) in self._insecure_hosts:
            return "insecure-registries has " + _key(domain)
        texts: Sequence[str] = [host]
        try:
            if ipaddress.ip_address(host).is_loopback:
                return "loopback"
        except ValueError:
            texts = self._lookup(host) if self._insecure_networks and self.network.allows(origin) else []
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        return next(("insecure-registries has %s" % network for network in self._insecure_networks
                     if any(address in network for address in addresses)), "")

    def tls_context(self, origin: Origin) -> "ssl.SSLContext":
        """The TLS context for an origin; raises StorageError, InvalidReference for bad certificates."""
        domain = DEFAULT_DOMAIN if origin.host == HUB_HOST else str(origin)
        context = client_context(self.is_secure(domain))
        try:
            files, folders = self.certificates(origin)
            for ca_file in files:
                add_authorities(context, ca_file)
            for folder in folders:
                add_folder(context, folder)
        except (TypeError, ValueError) as exc:  # a path with a NUL, or beyond the file system's encoding
            raise InvalidReference("certificates for %s: %s" % (domain, exc)) from exc
        return context

    def certificates(self, origin: Origin) -> Tuple[List[str], List[str]]:
        """The CA files for an origin, and the directories of certificates, besides the system's."""
        domain = DEFAULT_DOMAIN if origin.host == HUB_HOST else str(origin)
        certs_d = next(filter(os.path.isdir, (
            os.path.join(root, name) for root in self.certs
            for name in (domain, "%s:%d" % (origin.host, origin.port)))), "")
        return (list(filter(None, (self.ca_file, self.hosts.get(domain, Host()).ca))),
                list(filter(None, (certs_d, self._cert_dirs.get(domain, "")))))


def validate_mirror(text: str) -> str:
    """A mirror's URL with a slash at the end (moby: ValidateMirror); raises InvalidReference."""
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    host, _, path = rest.partition("/")
    for wrong, problem in (
            (not scheme, "no scheme specified"),
            (scheme not in ("http", "https"), 'unsupported scheme "%s"' % shown(scheme)),
            ("@" in rest, "username/password not allowed in URI"),
            ("?" in rest or "#" in rest, "query or fragment at end of the URI"),
            (re.search(r"[^!-~]|\\", path), "malformed path")):
        if wrong:
            redacted = re.sub("(?s)^([a-z]+://)?.*@", r"\1xxxxx@", text)
            raise InvalidReference("invalid mirror: %s: %s" % (problem, shown(redacted, 300)))
    check_host(host, "mirror")
    return text.rstrip("/") + "/"


def validate_insecure(entry: str) -> Union[str, ipaddress.IPv4Network, ipaddress.IPv6Network]:
    """The host of an insecure registry, or the network that a CIDR means; raises InvalidReference."""
    name = re.sub("^https?://", "", entry, flags=re.IGNORECASE)
    if "/" in name:  # a single address is a host: only its literal form is insecure
        with contextlib.suppress(ValueError):
            return ipaddress.ip_network(name, strict=False)
    return check_host(name, "insecure registry")


def _key(domain: str) -> str:
    """The ``host[:port]`` of a reference as Origin writes it."""
    return str(Origin.of("https://" + domain))


def check_host(name: str, subject: str) -> str:
    """The ``host[:port]`` of a setting as Origin writes it; raises InvalidReference."""
    redacted = ascii(re.sub("(?s).*@", "xxxxx@", name))[:300]
    if "://" in name:
        raise InvalidReference("%s %s should not contain '://'" % (subject, redacted))
    if name.startswith("-") or name.endswith("-"):
        raise InvalidReference("invalid index name (%s). Cannot begin or end with a hyphen" % redacted)
    try:
        if re.search("[/?#]", name):
            raise PolicyError("not a host alone")
        return _key(name)
    except PolicyError as exc:
        raise InvalidReference("%s: invalid host %s" % (subject, redacted)) from exc
