# SPDX-License-Identifier: Apache-2.0
"""Connections that repositories share, and the loop over endpoints.

Mirrors the loops of moby's distribution/pull.go and push.go.
"""
import enum
import functools
import threading
from typing import TYPE_CHECKING, Callable, Dict, NamedTuple, Tuple, TypeVar

from ..cancel import Cancel
from ..errors import Error, NetworkError, NoSupport, NotFound
from ..parts import part
from ..reference import Reference
from .auth import Keyring
from .endpoints import Endpoint, RegistryService
from .errors import continue_on_error
from .url import Origin
from .v2 import Repository

if TYPE_CHECKING:
    from .v1 import Session

T = TypeVar("T")


class Client:
    """Repositories that share connections, each made once for an endpoint; use it in a ``with``."""

    def __init__(self, service: RegistryService, credentials: Keyring) -> None:
        self.service = service
        self.credentials = credentials
        self.transport = service.transport()
        self._lock = threading.Lock()
        self._repositories: Dict[Tuple[Endpoint, str, bool], Repository] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.transport.close()

    def repository(self, endpoint: Endpoint, reference: Reference,
                   push: bool = False) -> Repository:
        """A repository to read from, and with ``push`` to write to."""
        key = (endpoint, reference.name, push)
        with self._lock:
            if key not in self._repositories:
                actions = "pull,push" if push else "pull"
                self._repositories[key] = Repository(
                    endpoint, reference, self.transport, self.credentials, actions)
            return self._repositories[key]

    def session(self, endpoint: Endpoint, reference: Reference) -> "Session":
        """A repository by the v1 protocol; raises NotInBuild where that was left out."""
        session: "Session" = part("registry.v1").Session(
            endpoint, reference, self.transport,
            functools.partial(self.credentials.get, endpoint.host, reference.path), self.service.warn)
        return session

    def spoke_tls(self, endpoint: Endpoint) -> bool:
        """Whether the host of an endpoint has spoken TLS, so that plain http is no longer tried."""
        origin = Origin.of(endpoint.url)
        spoken = self.transport.spoke_tls
        return any((origin.host, port) in spoken for port in {origin.port, 443})


class Weight(enum.IntEnum):
    """How much the error of an endpoint says about a repository."""
    OTHER_PROTOCOL = 0  # the endpoint does not speak the one that we need
    NO_ANSWER = 1  # or the answer of a mirror, which does not bind the registry
    ANSWER = 2  # of the registry itself


class _Failure(NamedTuple):
    endpoint: Endpoint
    error: Error

    @property
    def weight(self) -> Weight:
        if isinstance(self.error, NoSupport):
            return Weight.OTHER_PROTOCOL
        silent = self.endpoint.mirror or isinstance(self.error, NetworkError)
        return Weight.NO_ANSWER if silent else Weight.ANSWER

    def __str__(self) -> str:
        text, host = str(self.error), str(self.endpoint)
        return text if host in text else "%s (%s)" % (text, host)


def over_endpoints(client: Client, reference: Reference, subject: str, work: Callable[[Endpoint], T],
                   cancel: Cancel, push: bool = False, legacy: bool = False) -> T:
    """Return the result of ``work`` for the first endpoint of a repository with which it succeeds.

    With ``legacy``, v1 endpoints come last, where the user allows them, and are
    left out once an endpoint has proved to speak v2.  A host that has spoken TLS
    is not asked by plain http.  Raises the error that says most, with the texts
    of all that say as much, after ``subject``.
    """
    service = client.service
    v2_endpoints = (service.push_endpoints if push else service.pull_endpoints)(reference)
    v1_endpoints = service.v1_endpoints(reference) if legacy else []
    v2_confirmed = False
    failures: Dict[str, _Failure] = {}  # by host: the error over http knows more than that over https
    for endpoint in v2_endpoints + v1_endpoints:
        if endpoint.version == 1 and v2_confirmed:
            continue
        if endpoint.url.startswith("http:") and client.spoke_tls(endpoint):
            continue
        try:
            if v1_endpoints and endpoint.version == 2:
                client.repository(endpoint, reference, push).ping(cancel)
            return work(endpoint)
        except Error as exc:
            cancel.check()
            failures[str(endpoint)] = _Failure(endpoint, exc)
            if v1_endpoints and endpoint.version == 2:
                v2_confirmed = v2_confirmed or client.repository(endpoint, reference, push).confirmed
            if not continue_on_error(exc, endpoint.mirror, bool(v1_endpoints) and not v2_confirmed):
                break
    if not failures:
        raise NotFound("%s: no endpoints found for %s" % (subject, reference))
    most = max(failure.weight for failure in failures.values())
    decisive = [failure for failure in failures.values() if failure.weight == most]
    error = decisive[-1].error
    raise error.reworded("%s: %s" % (subject, "; ".join(map(str, decisive)))) from error
