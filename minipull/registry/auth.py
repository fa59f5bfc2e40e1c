# SPDX-License-Identifier: Apache-2.0
"""Authentication: answering a registry's challenge, and nobody else's.

No request is preceded by a ping: a registry is asked, says 401 and how to
prove ourselves, and is asked again; from then on its challenge is known.  The
rules:

- a credential goes to the origin that it is for and to the token server which
  that names: on the same host, or over verified TLS;
- a token is fetched once for all threads that need it, and renewed once for a
  request that is refused with it;
- a challenge from anywhere else, such as the target of a redirect, is not
  answered.

Mirrors docker/distribution's registry/client/auth.  RFC 6749 and 7617;
distribution-spec's token authentication.
"""
import base64
import contextlib
import json
import re
import threading
import time
import urllib.parse
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from ..cancel import Cancel
from ..errors import Error, InvalidReference, NetworkError, PolicyError, Unauthorized
from .errors import RegistryError, decode_answer
from .request import Body, Request
from .response import Response
from .transport import Transport
from .url import Origin

CLIENT_ID = "minipull"
MIN_LIFETIME = 60.0  # seconds; what a token server says below that is taken for an error
MAX_LIFETIME = 24 * 3600.0
_MAX_ANSWER = 1 << 20  # bytes
_MAX_HEADER = 16384

#   challenge ::= scheme 1*SP [ param *( "," param ) ]            (RFC 9110, 11.3)
_PARAM = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))', re.DOTALL)
_SCHEME = re.compile(r"[\s,]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?=[\s,]|$)")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


class Credential(NamedTuple):
    """What to prove ourselves with; all empty is nobody in particular."""
    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth2 refresh token
    registry_token: str = ""  # a Bearer token, sent as it is

    @property
    def anonymous(self) -> bool:
        return not any(self)

    def __repr__(self) -> str:
        return "Credential(%s)" % ", ".join("%s=..." % k for k, v in zip(self._fields, self) if v)


class Keyring:
    """Where credentials come from; from this one, none."""

    def get(self, host: str, path: str = "") -> Credential:
        """The credential for ``path`` on ``host``, spelled as in a reference."""
        return Credential()


class Challenge(NamedTuple):
    scheme: str
    parameters: Dict[str, str]


def parse_challenges(headers: List[str]) -> List[Challenge]:
    """All challenges of all ``WWW-Authenticate`` headers; what is malformed ends one."""
    found = []
    for header in headers:
        header = header[:_MAX_HEADER]
        match = _SCHEME.match(header)
        while match is not None:
            parameters: Dict[str, str] = {}
            end = match.end()
            param = _PARAM.match(header, end)
            while param is not None:
                quoted, token = param.group(2), param.group(3)
                value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(param.group(1).lower(), value)
                end = param.end()
                param = _PARAM.match(header, end)
            found.append(Challenge(match.group(1).lower(), parameters))
            match = _SCHEME.match(header, end)
    return found


class Authorizer:
    """Requests to one registry for one repository, authorized as it asks.

    ``credential`` is looked up when the registry asks for it, and not before.
    ``scope`` is what every request needs; empty for none.  ``offline`` asks for a
    refresh token, which may be kept instead of the password.
    """

    def __init__(self, transport: Transport, origin: Origin, credential: Callable[[], Credential],
                 scope: str, offline: bool = False) -> None:
        self._transport = transport
        self._origin = origin
        self._credential = credential
        self._scope = scope
        self._offline = offline
        self._lock = threading.Lock()
        self._challenge: Optional[Challenge] = None
        self._public = False
        #: By scopes: the token, and when it is to be replaced.
        self._tokens: Dict[Tuple[str, ...], Tuple[str, float]] = {}
        self.refresh_token = ""

    def send(self, request: Request) -> Response:
        """Send a request, once more if the registry asks who we are.

        Raises as Transport.send; Unauthorized, RegistryError if there is nothing to answer with.
        """
        scopes = tuple(filter(None, (self._scope, request.scope)))
        used = self._authorization(scopes, request.cancel)
        response = self._transport.send(request.with_headers(used))
        if response.status != 401 or response.origin != self._origin:
            return response
        challenges = parse_challenges(response.headers.get("www-authenticate", []))
        known = [c for c in challenges if c.scheme in ("bearer", "basic")]
        if not known:
            return response
        refusal = answer_error(response)
        with self._lock:
            # A token is better than a password, where both would do.
            self._challenge = sorted(known, key=lambda c: c.scheme != "bearer")[0]
            self._public = response.public
            if used.get("Authorization") == "Bearer " + self._tokens.get(scopes, ("", 0.0))[0]:
                del self._tokens[scopes]  # else another thread has renewed it already
        again = self._authorization(scopes, request.cancel)
        if again == used:
            raise refusal
        return self._transport.send(request.with_headers(again))

    def _authorization(self, scopes: Tuple[str, ...], cancel: Cancel) -> Dict[str, str]:
        """The header that the registry's challenge asks for, if there was one."""
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
                if not _VISIBLE.fullmatch(credential.registry_token):
                    raise InvalidReference("registry token for %s is malformed" % (self._origin,))
                return {"Authorization": "Bearer " + credential.registry_token}
            if time.monotonic() >= self._tokens.get(scopes, ("", 0.0))[1]:
                self._tokens[scopes] = self._fetch(credential, scopes, cancel)
            return {"Authorization": "Bearer " + self._tokens[scopes][0]}

    def _fetch(self, credential: Credential, scopes: Tuple[str, ...],
               cancel: Cancel) -> Tuple[str, float]:
        challenge = self._challenge.parameters if self._challenge else {}
        realm = challenge.get("realm", "")
        if not realm:
            raise PolicyError("%s: no realm specified for token auth challenge" % (self._origin,))
        server = Origin.of(realm)
        self._check_realm(server, not credential.anonymous)
        query: Dict[str, object] = {}
        if challenge.get("service"):
            query["service"] = challenge["service"]
        headers: Dict[str, str] = {}
        body = None
        refresh_token = self.refresh_token or credential.identity_token
        if refresh_token:
            form = dict(
                query, grant_type="refresh_token", refresh_token=refresh_token,
                client_id=CLIENT_ID, scope=" ".join(scopes))
            body = Body.of(urllib.parse.urlencode(sorted(form.items())).encode())
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            query["scope"] = scopes
            if self._offline:
                query.update(offline_token="true", client_id=CLIENT_ID)
            if credential.username and credential.password:
                query["account"] = credential.username
                headers["Authorization"] = basic(credential)
            realm += "&" if "?" in realm else "?"
            realm += urllib.parse.urlencode(
                sorted(query.items()), doseq=True, errors="surrogateescape")
        with self._transport.send(Request(
            "POST" if body else "GET", realm, cancel, headers, body, follow=False, only_public=self._public,
        )) as response:
            if response.status >= 400:
                raise _refused(response)
            answer = response.read(_MAX_ANSWER)
        return self._accept(answer, server)

    def _check_realm(self, server: Origin, secrets: bool) -> None:
        """Refuse a token server that the registry should not have named (CVE-2026-33540)."""
        if self._origin.scheme == "https" and server.scheme != "https":
            raise PolicyError("%s names a token server without TLS, refused" % (self._origin,))
        verified = all(map(self._transport.verifies, (self._origin, server)))
        if secrets and server.host != self._origin.host and not verified:
            raise PolicyError(
                "%s names a token server on another host, %s, which gets no credentials"
                " without verified TLS" % (self._origin, server))

    def _accept(self, answer: bytes, server: Origin) -> Tuple[str, float]:
        try:
            document = json.loads(answer.decode())
            token = document.get("access_token") or document.get("token") or ""
            refresh_token = document.get("refresh_token") or ""
            lifetime = document.get("expires_in")
        except (ValueError, AttributeError, RecursionError) as exc:
            raise NetworkError("%s: unable to decode token response" % (server,)) from exc
        if not token:
            raise Unauthorized(
                "%s: authorization server did not include a token in the response" % (server,))
        for value in (token, refresh_token or "-"):
            if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
                raise NetworkError("%s: malformed token" % (server,))
        seconds = lifetime if type(lifetime) in (int, float) else 0
        self.refresh_token = refresh_token or self.refresh_token
        # Counted from its receipt by our own clock: the server's may be off.
        return token, time.monotonic() + max(MIN_LIFETIME, min(seconds, MAX_LIFETIME))


def basic(credential: Credential) -> str:
    """The Authorization that a user name and a password are."""
    pair = "%s:%s" % (credential.username, credential.password)
    return "Basic " + base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode()


def _refused(response: Response) -> Error:
    error = answer_error(response)
    if response.status in (400, 401, 403):
        return Unauthorized("token server %s: %s" % (response.origin, error))
    return error


def answer_error(response: Response) -> RegistryError:
    """The error that an answer stands for; reads its body and closes it."""
    body = b""
    # A 416 of docker-registry 2.8 promises a longer body than it sends.
    with response, contextlib.suppress(NetworkError, PolicyError):
        body = response.read(_MAX_ANSWER)
    challenges = parse_challenges(response.headers.get("www-authenticate", []))
    bearer = [c.parameters.get("error", "") for c in challenges if c.scheme == "bearer"]
    kind = response.header("Content-Type")
    return decode_answer(response.status, response.reason, kind, body, "".join(bearer[:1]))
