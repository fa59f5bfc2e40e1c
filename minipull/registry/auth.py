# SPDX-License-Identifier: Apache-2.0
"""Authentication: answers to the challenges of a registry.

A request is sent without a credential first; the registry answers 401 with a
challenge, and the request is sent again.  From then on requests bring what that
challenge asks for.  The rules:

- a credential goes to the origin that it is for, and to the token server that it
  names if that is on the same host or both are reached by verified TLS;
- a token is fetched once for all threads that need it, and renewed once for a
  request that is refused with it; a new one may be refused once, or a scope be
  asked for that a proxy gave another name, with no more actions than ours;
- challenges of other origins, such as the target of a redirect, are not answered.

Mirrors docker/distribution's registry/client/auth.  RFC 6749 and 7617; the
token authentication of distribution's docs/spec/auth.
"""
import base64
import contextlib
import json
import re
import threading
import time
import urllib.parse
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from ..cancel import Cancel
from ..errors import InvalidReference, NetworkError, PolicyError, Unauthorized
from ..image.strictjson import check_memory
from ..parts import random
from .errors import RegistryError, decode_answer
from .request import Body, Request
from .response import Response
from .transport import Transport
from .url import Origin

CLIENT_ID = "minipull"
MIN_LIFETIME = 60.0  # seconds; less is taken for a mistake of the token server, as docker does
MAX_LIFETIME = 24 * 3600.0
#: Seconds, jittered, before a new token is sent again: a node with another clock may have refused it.
FRESH_DELAYS = (1.0,)
_MAX_ANSWER = 1 << 20  # bytes
_MAX_HEADER = 16384

#   challenge ::= scheme [ 1*SP ( token68 | #param ) ]            (RFC 9110, 11.6.1)
_ELEMENT = r"""(?sx)[\s,]+
    | ([A-Za-z0-9!#$%&'*+.^_`|~-]+) \s*=\s* (?: "((?:[^"\\]|\\.)*)" | ([^\s",]*) )
    | ([A-Za-z0-9!#$%&'*+.^_`|~-]+) (?=[\s,]|$)  # a scheme
    | [^,]+                                      # a token68, or malformed
    """
#   scope ::= "repository:" name ":" action *( "," action )       (distribution, docs/spec/auth/scope)
_SCOPE = "(repository:[a-z0-9][a-z0-9._/-]{0,254}):([a-z]{1,9}(?:,[a-z]{1,9}){0,3})"
_VISIBLE = r"[\x21-\x7e]+"


class Credential(NamedTuple):
    """The secrets of a user at a registry; an anonymous user has none."""
    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth2 refresh token
    registry_token: str = ""  # a Bearer token, sent as it is

    @property
    def anonymous(self) -> bool:
        return not any(self)

    def __repr__(self) -> str:
        return "Credential(%s)" % ", ".join(
            "%s=..." % name for name, value in zip(self._fields, self) if value)


class Keyring:
    """A source of credentials; this one has none."""

    def get(self, host: str, path: str = "") -> Credential:
        """The credential for a repository (``path``) at a registry (``host[:port]``)."""
        return Credential()

    def described(self, host: str, path: str = "") -> str:
        """The user and the source of a credential, or "no credentials ..."; empty where there is no user."""
        return ""


class Challenge(NamedTuple):
    scheme: str
    parameters: Dict[str, str]


def parse_challenges(headers: List[str]) -> List[Challenge]:
    """All challenges in the ``WWW-Authenticate`` headers; malformed elements are passed over."""
    challenges: List[Challenge] = []
    for header in headers:
        parameters: Dict[str, str] = {}  # of no challenge yet
        for name, quoted, token, scheme in re.findall(_ELEMENT, header[:_MAX_HEADER]):
            if scheme:
                parameters = {}
                challenges.append(Challenge(scheme.lower(), parameters))
            elif name:
                parameters.setdefault(name.lower(), token or re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
    return challenges


class Authorizer:
    """Sends requests for one repository to its registry, with the authorization that this asks for.

    ``credential`` is called after a challenge.  ``scope`` is what a token must grant, if
    anything.  ``offline`` asks for a refresh token, which login keeps, not the password.
    """

    def __init__(self, transport: Transport, origin: Origin, credential: Callable[[], Credential],
                 scope: str, offline: bool = False) -> None:
        self._transport = transport
        self._origin = origin
        self._credential = credential
        self._actions = set(scope.rpartition(":")[2].split(","))
        self._scope = scope  # or the one in a challenge, where a proxy has renamed the repository
        self._offline = offline
        self._lock = threading.Lock()
        self._challenge: Optional[Challenge] = None
        #: By scopes: a token, and the time at which it expires (time.monotonic).
        self._tokens: Dict[Tuple[str, ...], Tuple[str, float]] = {}
        self.refresh_token = ""

    def send(self, request: Request) -> Response:
        """Send a request, and again after a challenge; also raises Unauthorized, RegistryError."""
        scope, renamed, delays = self._scope, False, list(FRESH_DELAYS)
        renewed: Set[Tuple[str, ...]] = set()  # scopes whose token is not the one that was refused first
        refused: Optional[Dict[str, str]] = None  # the headers that there is no use in sending again
        refusal: Optional[RegistryError] = None
        while True:
            scopes = tuple(filter(None, (scope, request.scope)))
            headers = self._authorization(scopes, request.cancel)
            if refusal and headers == refused:
                raise refusal
            response = self._transport.send(request.with_headers(headers))
            challenge = self._answerable(response)
            if challenge is None:
                return response
            refused, delay = headers, 0.0
            with self._lock:
                self._challenge = challenge
                token = self._tokens.get(scopes, ("", 0.0))[0]
                other_scope = self._renamed(challenge, scopes) if token and not renamed else ""
                if scopes not in renewed and response.status == 401 or not headers:
                    renewed.add(scopes)
                    # Unless another thread has renewed the token already.
                    if headers.get("Authorization") == "Bearer " + token:
                        del self._tokens[scopes]
                elif other_scope:
                    self._scope, scope, renamed, refused = other_scope, other_scope, True, None
                    renewed.add((scope, *scopes[1:]))
                elif token and delays and challenge.parameters.get("error") != "insufficient_scope":
                    refused, delay = None, delays.pop() * random.uniform(0.75, 1.25)
                else:
                    return response
            refusal = answer_error(response)
            request.cancel.pause(delay)

    def _answerable(self, response: Response) -> Optional[Challenge]:
        """The challenge of our registry that another authorization may satisfy; None for any other answer."""
        if response.status not in (401, 403) or response.origin != self._origin:
            return None
        challenges = parse_challenges(response.values("WWW-Authenticate"))
        bearers = [challenge for challenge in challenges if challenge.scheme == "bearer"]
        usable = [challenge for challenge in bearers if challenge.parameters.get("realm")]
        usable += [challenge for challenge in challenges if challenge.scheme == "basic"] + bearers
        if response.status == 403:
            usable = [item for item in usable if item.parameters.get("error") == "insufficient_scope"]
        return usable[0] if usable else None

    def _renamed(self, challenge: Challenge, scopes: Tuple[str, ...]) -> str:
        """The scope of a challenge that ``scopes`` lack and that asks for no more than we do; else empty."""
        asked = re.fullmatch(_SCOPE, challenge.parameters.get("scope", ""))
        if asked is None:
            return ""
        name, actions = asked.group(1), set(asked.group(2).split(","))
        ours = [scope.rpartition(":") for scope in scopes]
        covered = any(own == name and actions <= set(granted.split(",")) for own, _, granted in ours)
        return "" if covered or not actions <= self._actions else asked.group()

    def _authorization(self, scopes: Tuple[str, ...], cancel: Cancel) -> Dict[str, str]:
        """The header that the registry's challenge asks for, if it has sent one."""
        with self._lock:
            if self._challenge is None:
                return {}
            credential = self._credential()
            if self._challenge.scheme == "basic":
                if not credential.username:
                    raise Unauthorized("%s: no basic auth credentials; use minipull login or --creds"
                                       % (self._origin,))
                return {"Authorization": basic(credential)}
            if credential.registry_token:
                if not re.fullmatch(_VISIBLE, credential.registry_token):
                    raise InvalidReference("registry token for %s is malformed" % (self._origin,))
                return {"Authorization": "Bearer " + credential.registry_token}
            if time.monotonic() >= self._tokens.get(scopes, ("", 0.0))[1]:
                self._tokens[scopes] = self._fetch(credential, scopes, cancel)
            return {"Authorization": "Bearer " + self._tokens[scopes][0]}

    def _fetch(self, credential: Credential, scopes: Tuple[str, ...], cancel: Cancel) -> Tuple[str, float]:
        """Ask the token server of the challenge for a token."""
        challenge = self._challenge.parameters if self._challenge else {}
        realm = challenge.get("realm", "")
        if not realm:
            raise PolicyError("%s: no realm specified for token auth challenge" % (self._origin,))
        server = Origin.of(realm)
        self._check_realm(server, not credential.anonymous)
        form: Dict[str, object] = {"service": challenge["service"]} if challenge.get("service") else {}
        headers = {}
        refresh_token = self.refresh_token or credential.identity_token
        if refresh_token:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            form.update(grant_type="refresh_token", refresh_token=refresh_token, client_id=CLIENT_ID,
                        scope=" ".join(scopes))
        else:
            form["scope"] = scopes
            if self._offline:
                form.update(offline_token="true", client_id=CLIENT_ID)
            if credential.username and credential.password:
                form["account"] = credential.username
                headers["Authorization"] = basic(credential)
        query = urllib.parse.urlencode(sorted(form.items()), doseq=True, errors="surrogateescape")
        request = Request("POST", realm, cancel, headers, Body.of(query.encode()), follow=False,
                          only_public=self._origin in self._transport.public,
                          role="the token server of %s" % (self._origin,))
        if not refresh_token:
            url = realm + ("&" if "?" in realm else "?") + query
            request = request._replace(method="GET", url=url, body=None)
        with self._transport.send(request) as response:
            if response.status in (400, 401, 403):
                raise Unauthorized("token server %s: %s" % (server, answer_error(response)))
            if response.status >= 400:
                raise answer_error(response)
            answer = response.read(_MAX_ANSWER)
        return self._accept(answer, server)

    def _check_realm(self, server: Origin, secrets: bool) -> None:
        """Refuse a token server that must not get our ``secrets`` or be asked at all (CVE-2026-33540)."""
        if self._origin.scheme == "https" and server.scheme != "https":
            raise PolicyError("%s names a token server without TLS, %s, refused; the registry's realm must"
                              " be an https URL" % (self._origin, server))
        verified = all(map(self._transport.verifies, (self._origin, server)))
        if secrets and server.host != self._origin.host and not verified:
            raise PolicyError(
                "%s names a token server on another host, %s, which gets no credentials without verified TLS;"
                " let both speak https and be trusted (--ca-file or certs.d, not insecure), or ask without"
                " credentials" % (self._origin, server))

    def _accept(self, answer: bytes, server: Origin) -> Tuple[str, float]:
        """The token in a token server's answer, and when it expires; keeps a refresh token."""
        try:
            check_memory(answer, "token response")
            document = json.loads(answer.decode(), parse_int=float)  # int() is quadratic
            token = document.get("access_token") or document.get("token") or ""
            refresh_token = document.get("refresh_token") or ""
            lifetime = document.get("expires_in")
        except (ValueError, AttributeError, RecursionError, PolicyError) as exc:
            raise NetworkError("%s: unable to decode token response" % (server,)) from exc
        if not token:
            raise Unauthorized("%s: authorization server did not include a token in the response" % (server,))
        for value in (token, refresh_token or "-"):
            if not isinstance(value, str) or not re.fullmatch(_VISIBLE, value):
                raise NetworkError("%s: malformed token" % (server,))
        seconds = lifetime if type(lifetime) in (int, float) else 0
        self.refresh_token = refresh_token or self.refresh_token
        # "issued_at" is ignored: the server's clock may be wrong.
        return token, time.monotonic() + max(MIN_LIFETIME, min(seconds, MAX_LIFETIME))


def basic(credential: Credential) -> str:
    """The Authorization header for a user name and a password (RFC 7617)."""
    pair = "%s:%s" % (credential.username, credential.password)
    return "Basic " + base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode()


def answer_error(response: Response) -> RegistryError:
    """The error for an answer that refuses a request; reads its body and closes it."""
    body = b""
    # docker-registry 2.8 sends less body with a 416 than its Content-Length says.
    with response, contextlib.suppress(NetworkError, PolicyError):
        body = response.read(_MAX_ANSWER)
    bearer_errors = [challenge.parameters.get("error", "") for challenge in parse_challenges(
        response.values("WWW-Authenticate")) if challenge.scheme == "bearer"]
    return decode_answer(
        response.status, response.reason, response.header("Content-Type"), body, *bearer_errors[:1])
