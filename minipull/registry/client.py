# SPDX-License-Identifier: Apache-2.0
"""Connections that repositories share, and the loop over endpoints.

Mirrors the loops of moby's distribution/pull.go and push.go.
"""
import functools
import re
import threading
import time
from typing import (
    TYPE_CHECKING, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, TypeVar)

from ..cancel import Cancel
from ..errors import Error, NetworkError, NoSupport, NotFound, Unauthorized
from ..parts import part
from ..progress import Output, Progress
from ..reference import Reference
from .auth import Keyring
from .endpoints import Endpoint, RegistryService
from .errors import MAX_TEXT, Outage, WrongScheme, continue_on_error
from .url import Origin
from .v2 import Repository

if TYPE_CHECKING:
    from .v1 import Session

T = TypeVar("T")
#: Seconds after the first request, at which endpoints that were out of service are asked once more.
OUTAGE_DELAYS = (3.5,)
_MAX_MIRROR_TEXT = 300  # characters


class Client(ContextManager["Client"]):
    """Repositories that share connections, each made once for an endpoint; use it in a ``with``."""

    def __init__(self, service: Optional[RegistryService] = None,
                 credentials: Optional[Keyring] = None) -> None:
        self.service = service or RegistryService()
        self.credentials = credentials or Keyring()
        self.transport = self.service.transport()
        #: By mirror: its first failure before another endpoint answered, of which the user is warned.
        self.failures: Dict[Endpoint, "_Failure"] = {}
        #: Endpoints whose outage was ridden out in vain: not again, for each of many images.
        self.silent: Set[str] = set()
        self._lock = threading.Lock()
        self._repositories: Dict[Tuple[Endpoint, str, bool], Repository] = {}

    def __exit__(self, *exc_info: object) -> None:
        self.transport.close()

    def repository(self, endpoint: Endpoint, reference: Reference, push: bool = False) -> Repository:
        """A repository to read from, and with ``push`` to write to."""
        key = (endpoint, reference.name, push)
        with self._lock:
            if key not in self._repositories:
                self._repositories[key] = Repository(
                    endpoint, reference, self.transport, self.credentials, "pull,push" if push else "pull")
            return self._repositories[key]

    def session(self, endpoint: Endpoint, reference: Reference) -> "Session":
        """A repository by the v1 protocol; raises NotInBuild where that was left out."""
        session: "Session" = part("registry.v1").Session(
            endpoint, reference, self.transport,
            functools.partial(self.credentials.get, endpoint.host, reference.path), self.service.warn)
        return session

    def spoke_tls(self, endpoint: Endpoint) -> bool:
        """Whether the host of an endpoint has spoken TLS, so that plain http is no longer tried."""
        origin, spoken = Origin.of(endpoint.url), self.transport.spoke_tls
        return any((origin.host, port) in spoken for port in {origin.port, 443})


class _Failure(NamedTuple):
    """The error of an endpoint, and how it is shown."""
    endpoint: Endpoint
    error: Error
    mirror: bool  # whether a mirror is to blame: not for trouble of our own while we read from it

    @property
    def weight(self) -> int:
        """The weight of the error as a word about a repository."""
        if isinstance(self.error, NoSupport):
            return 0  # the endpoint does not speak the protocol that we need
        if self.mirror or isinstance(self.error, NetworkError):
            return 1  # no answer, or that of a mirror, which does not bind the registry
        return 2  # the answer of the registry itself, or trouble of our own

    def note(self, failures: Dict[str, "_Failure"]) -> None:
        """Put it among the ``failures`` by host, unless it only says that http was wrong where https was tried."""
        error, host = self.error, str(self.endpoint)
        wrong = isinstance(error, WrongScheme) and (error.speaks, error.peer) == ("https", host)
        if not wrong or host not in failures:
            failures[self.endpoint.url if self.endpoint.mirror else host] = self

    def __str__(self) -> str:
        text, host = str(self.error), str(self.endpoint)
        if self.mirror:
            text = re.sub("^%s:? " % re.escape(host), "", text)
            return "mirror %s: %s" % (self.endpoint.url, text[:_MAX_MIRROR_TEXT])
        return text if host in text else "%s (%s)" % (text, host)


def _in_turn(endpoints: List[Endpoint], out_of_service: Set[Endpoint], output: Output,
             cancel: Cancel) -> Iterator[Endpoint]:
    """Yield endpoints, and after a pause once more those that are ``out_of_service`` by then."""
    begin = time.monotonic()
    yield from endpoints
    for delay in OUTAGE_DELAYS:
        again = [endpoint for endpoint in endpoints if endpoint in out_of_service]
        out_of_service.clear()
        if again:
            seconds = max(0.0, begin + delay - time.monotonic())
            output(Progress(message="no answer from %s; trying again in %.0f seconds" % (again[-1], seconds)))
            cancel.pause(seconds)
        yield from again


def over_endpoints(client: Client, reference: Reference, subject: str, work: Callable[[Endpoint], T],
                   cancel: Cancel, output: Output, push: bool = False, legacy: bool = False) -> T:
    """Return the result of ``work`` for the first endpoint of a repository with which it succeeds.

    With ``legacy``, v1 endpoints come last, where the user allows them, until one has
    proved to speak v2.  A host that has spoken TLS is not asked by plain http.  An outage
    at the first request is ridden out: the endpoint is asked again after all others.
    ``output`` is warned, once for a client, of each mirror that failed before another
    endpoint answered.  Raises the error that says most, with the texts of all that
    say as much and of all mirrors after ``subject``.
    """
    service = client.service
    v2_endpoints = (service.push_endpoints if push else service.pull_endpoints)(reference)
    v1_endpoints = service.v1_endpoints(reference) if legacy else []
    v2_confirmed = False
    failures: Dict[str, _Failure] = {}  # by host: an error over http says more than one over https
    out_of_service: Set[Endpoint] = set()
    ridden_out: Set[Endpoint] = set()
    for endpoint in _in_turn(v2_endpoints + v1_endpoints, out_of_service, output, cancel):
        outdated = endpoint.version == 1 and v2_confirmed
        if outdated or endpoint.url.startswith("http:") and client.spoke_tls(endpoint):
            continue
        try:
            if v1_endpoints and endpoint.version == 2:
                client.repository(endpoint, reference, push).ping(cancel)
            result = work(endpoint)
            for failure in failures.values():
                if failure.mirror and client.failures.setdefault(failure.endpoint, failure) is failure:
                    output(Progress(message="warning: %s; %s answered" % (failure, endpoint)))
            return result
        except Error as exc:
            cancel.check()
            repository = client.repository(endpoint, reference, push)
            # A v1 endpoint is out of service where the v2 endpoints before it are.
            unanswered = not repository.answered if endpoint.version == 2 else bool(out_of_service)
            if isinstance(exc, Outage) and unanswered:
                if endpoint in ridden_out:
                    client.silent.add(endpoint.url)
                elif endpoint.url not in client.silent:
                    ridden_out.add(endpoint)
                    out_of_service.add(endpoint)
            v2_confirmed = v2_confirmed or repository.confirmed
            next_may = continue_on_error(exc, endpoint.mirror, bool(v1_endpoints) and not v2_confirmed)
            failure = _Failure(endpoint, exc, endpoint.mirror and next_may)
            failure.note(failures)
            if not next_may:
                break
    if not failures:
        raise NotFound("%s: no endpoints found for %s" % (subject, reference))
    most = max(failure.weight for failure in failures.values())
    decisive = [failure for failure in failures.values() if failure.weight == most]
    mirrors = [failure for failure in failures.values() if failure.mirror and failure not in decisive]
    error = decisive[-1].error
    text = "; ".join(map(str, decisive + mirrors))[:MAX_TEXT]
    raise error.reworded("%s: %s%s" % (subject, text, _advice(client, reference, decisive[-1]))) from error


def _advice(client: Client, reference: Reference, failure: _Failure) -> str:
    """A clause that tells what a user can do about a failure; empty if its own text does, or nothing can be."""
    endpoint, error = failure.endpoint, failure.error
    host, origin = endpoint.host, str(Origin.of(endpoint.url))
    if isinstance(error, Unauthorized) and not re.match("proxy |.*minipull login", str(error)):
        described = client.credentials.described(host, "" if endpoint.mirror else reference.path)
        other = "" if described.startswith("no ") else "another "
        return described and "; it may not exist, or require %sminipull login %s (%s)" % (other, host, described)
    if not isinstance(error, WrongScheme):
        return ""
    if error.peer.startswith("proxy "):
        return "; name a proxy that takes plain http"
    if error.peer != origin:
        return "; ask whoever runs %s, which leads there by %s" % (
            host, "http" if error.speaks == "https" else "https")
    if endpoint.mirror:
        return "; write %s://%s for that mirror" % (error.speaks, origin)
    return "; leave out --plain-http" if error.speaks == "https" else (
        "; if it is a registry without TLS, give --plain-http or put %s in insecure-registries" % host)
