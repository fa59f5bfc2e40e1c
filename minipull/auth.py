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
import json
import re
import threading
import time
import urllib.parse
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .connection import Origin, Response
from .credentials import Credential
from .errors import Error, NetworkError, PolicyError, RegistryError, Unauthorized, decode_answer
from .streams import Cancel
from .transport import Transport

CLIENT_ID = "minipull"
MIN_LIFETIME = 60.0  # seconds; what a token server says below that is taken for an error
MAX_LIFETIME = 24 * 3600.0
_MAX_ANSWER = 1 << 20  # bytes

#   challenge ::= scheme 1*SP [ param *( "," param ) ]            (RFC 9110, 11.3)
_PARAM = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]*))', re.DOTALL)
_SCHEME = re.compile(r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|$)")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


class Challenge(NamedTuple):
    scheme: str
    parameters: Dict[str, str]


def parse_challenges(headers: List[str]) -> List[Challenge]:
    """One challenge a ``WWW-Authenticate`` header; what is malformed ends it."""
    found = []
    for header in headers:
        match = _SCHEME.match(header[:16384])
        if match is None:
            continue
        parameters: Dict[str, str] = {}
        position = match.end()
        param = _PARAM.match(header, position)
        while param is not None:
            quoted, token = param.group(2), param.group(3)
            value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(param.group(1).lower(), value)
            param = _PARAM.match(header, param.end())
        found.append(Challenge(match.group(1).lower(), parameters))
    return found


class Authorizer:
    """Requests to one registry for one repository, authorized as it asks.

    ``credential`` is looked up when the registry asks for it, and not before.
    """

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        verified: bool,
        credential: Callable[[], Credential],
        scope: str,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._verified = verified
        self._credential = credential
        self._scope = scope
        self._lock = threading.Lock()
        self._challenge: Optional[Challenge] = None
        self._public = False
        self._token = ""
        self._expires = 0.0
        self._refresh_token = ""

    def request(
        self, method: str, url: str, headers: Mapping[str, str], cancel: Cancel
    ) -> Response:
        """As Transport.request, once more if the registry asks who we are."""
        used = self._authorization(cancel)
        response = self._send(method, url, headers, cancel, used)
        if response.status != 401 or response.origin != self._origin:
            return response
        challenges = parse_challenges(response.headers.get_all("WWW-Authenticate") or [])
        known = [c for c in challenges if c.scheme in ("bearer", "basic")]
        if not known:
            return response
        response.read(_MAX_ANSWER)
        response.close()
        with self._lock:
            # A token is better than a password, where both would do.
            self._challenge = sorted(known, key=lambda c: c.scheme != "bearer")[0]
            self._public = response.public
            if used == "Bearer " + self._token:
                self._token = ""  # else another thread has renewed it already
        again = self._authorization(cancel)
        return self._send(method, url, headers, cancel, again)

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], cancel: Cancel, value: str
    ) -> Response:
        if value:
            headers = dict(headers, Authorization=value)
        return self._transport.request(method, url, headers, cancel)

    def _authorization(self, cancel: Cancel) -> str:
        with self._lock:
            if self._challenge is None:
                return ""
            credential = self._credential()
            if self._challenge.scheme == "basic":
                if not credential.username:
                    raise Unauthorized("%s: no basic auth credentials; use minipull login or --creds"
                                       % (self._origin,))
                return _basic(credential)
            if credential.registry_token:
                return "Bearer " + credential.registry_token
            if not self._token or time.monotonic() >= self._expires:
                self._fetch(self._challenge.parameters, credential, cancel)
            return "Bearer " + self._token

    def _fetch(self, challenge: Dict[str, str], credential: Credential, cancel: Cancel) -> None:
        realm = challenge.get("realm", "")
        if not realm:
            raise PolicyError("%s: no realm specified for token auth challenge" % (self._origin,))
        server = Origin.of(realm)
        self._check_realm(server, not credential.anonymous)
        query = {"service": challenge["service"]} if challenge.get("service") else {}
        headers: Dict[str, str] = {}
        body = None
        refresh_token = self._refresh_token or credential.identity_token
        if refresh_token:
            form = dict(
                query, grant_type="refresh_token", refresh_token=refresh_token,
                client_id=CLIENT_ID, scope=self._scope,
            )
            body = urllib.parse.urlencode(sorted(form.items())).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            query["scope"] = self._scope
            if credential.username and credential.password:
                query["account"] = credential.username
                headers["Authorization"] = _basic(credential)
            realm += "&" if "?" in realm else "?"
            realm += urllib.parse.urlencode(sorted(query.items()))
        with self._transport.request(
            "POST" if body else "GET", realm, headers, cancel,
            body=body, redirect=False, only_public=self._public,
        ) as response:
            answer = response.read(_MAX_ANSWER)
        if response.status >= 400:
            raise _refused(response, answer)
        self._accept(answer, server)

    def _check_realm(self, server: Origin, secrets: bool) -> None:
        """Refuse a token server that the registry should not have named (CVE-2026-33540)."""
        if self._origin.scheme == "https" and server.scheme != "https":
            raise PolicyError("%s names a token server without TLS, refused" % (self._origin,))
        if secrets and server.host != self._origin.host and not (
            server.scheme == "https" and self._verified
        ):
            raise PolicyError(
                "%s names a token server on another host, %s, which gets no credentials"
                " without verified TLS" % (self._origin, server)
            )

    def _accept(self, answer: bytes, server: Origin) -> None:
        try:
            document = json.loads(answer.decode())
            token = document.get("access_token") or document.get("token") or ""
            refresh_token = document.get("refresh_token") or ""
            lifetime = document.get("expires_in")
        except (ValueError, AttributeError, RecursionError) as exc:
            raise NetworkError("%s: unable to decode token response" % (server,)) from exc
        if not token:
            raise Unauthorized(
                "%s: authorization server did not include a token in the response" % (server,)
            )
        for value in (token, refresh_token or "-"):
            if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
                raise NetworkError("%s: malformed token" % (server,))
        seconds = float(lifetime) if type(lifetime) in (int, float) else 0.0
        self._token = token
        self._refresh_token = refresh_token or self._refresh_token
        # Counted from its receipt by our own clock: the server's may be off.
        self._expires = time.monotonic() + max(MIN_LIFETIME, min(seconds, MAX_LIFETIME))


def _basic(credential: Credential) -> str:
    pair = "%s:%s" % (credential.username, credential.password)
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _refused(response: Response, answer: bytes) -> Error:
    error: Error = answer_error(response, answer)
    if response.status in (400, 401, 403) and isinstance(error, RegistryError):
        return Unauthorized("token server %s: %s" % (response.origin, error))
    return error


def answer_error(response: Response, body: bytes) -> RegistryError:
    """The error that an answer with its body stands for."""
    challenges = parse_challenges(response.headers.get_all("WWW-Authenticate") or [])
    bearer = [c.parameters.get("error", "") for c in challenges if c.scheme == "bearer"]
    return decode_answer(
        response.status, response.reason, response.header("Content-Type"), body, "".join(bearer[:1])
    )
