# SPDX-License-Identifier: Apache-2.0
"""Connections shared by repositories, and the loop over endpoints.

Mirrors the loops of moby's distribution/pull.go and push.go.
"""
import functools
import threading
from typing import Callable, Dict, Optional, Tuple, TypeVar

from ..cancel import Cancel
from ..errors import Error, NetworkError, NoSupport, NotFound
from ..reference import Reference
from .auth import Keyring
from .endpoints import Endpoint, RegistryService
from .errors import continue_on_error
from .url import Origin
from .v1 import Session
from .v2 import Repository

T = TypeVar("T")


class Client:
    """Repositories that share connections, and what was learned about each.

    Close it at the end, or use ``with``.
    """

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
                   push: bool = False) -> "Repository":
        """To be read from, or with ``push`` written to as well."""
        key = (endpoint, reference.name, push)
        with self._lock:
            if key not in self._repositories:
                actions = "pull,push" if push else "pull"
                self._repositories[key] = Repository(
                    endpoint, reference, self.transport, self.credentials, actions)
            return self._repositories[key]

    def spoke_tls(self, endpoint: Endpoint) -> bool:
        """Whether plain http is over for the host of this endpoint."""
        origin = Origin.of(endpoint.url)
        spoken = self.transport.spoke_tls
        return any((origin.host, port) in spoken for port in {origin.port, 443})


def over_endpoints(client: Client, reference: Reference, what: str, work: Callable[[Repository], T],
                   cancel: Cancel, push: bool = False, old: Optional[Callable[[Session], T]] = None) -> T:
    """The first success of ``work`` on an endpoint of the repository, or of ``old`` by the v1 protocol.

    Raises the error that decided, its text led by ``what`` and by what others
    said that weighs as much.
    """
    said: Dict[str, Tuple[int, Error]] = {}  # by endpoint: the later of two tries knows more
    confirmed = False
    service = client.service
    endpoints = (service.push_endpoints if push else service.pull_endpoints)(reference)
    legacy = service.v1_endpoints(reference) if old else []
    for endpoint in endpoints + legacy:
        v1 = endpoint.version == 1
        if v1 and confirmed or endpoint.url.startswith("http:") and client.spoke_tls(endpoint):
            continue
        try:
            if v1 and old:
                credential = functools.partial(client.credentials.get, endpoint.host, reference.path)
                return old(Session(endpoint, reference, client.transport, credential, service.warn))
            repository = client.repository(endpoint, reference, push)
            try:
                if legacy:
                    repository.ping(cancel)
                return work(repository)
            finally:
                confirmed = confirmed or repository.confirmed
        except Error as exc:
            cancel.check()
            # What the registry itself says weighs more than a mirror's word or silence.
            weight = 2 - (endpoint.mirror or isinstance(exc, NetworkError)) - 2 * isinstance(exc, NoSupport)
            said[str(endpoint)] = weight, exc
            if not continue_on_error(exc, endpoint.mirror, bool(legacy) and not confirmed):
                break
    if not said:
        raise NotFound("%s: no endpoints found for %s" % (what, reference))
    heaviest = max(weight for weight, _ in said.values())
    found = {place: exc for place, (weight, exc) in said.items() if weight == heaviest}
    decided = list(found.values())[-1]
    error = decided.within(what)
    error.args = ("%s: %s" % (what, "; ".join(
        str(exc) if place in str(exc) else "%s (%s)" % (exc, place) for place, exc in found.items())),)
    raise error from decided
