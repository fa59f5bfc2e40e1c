# SPDX-License-Identifier: Apache-2.0
"""Tokens of the distribution token protocol, given out and demanded."""
import base64
import re
import threading
import time
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple
from urllib.parse import parse_qs

from tests.kit.servers import Connection, Request, challenge, error, reply


class TokenAuth:
    """The token server of docker's specification, Basic and OAuth2 (refresh tokens).

    ``users`` may do anything; without credentials only ``anonymous`` actions
    are granted.  ``received`` is each Authorization header with its request.
    """

    def __init__(self, users: Optional[Mapping[str, str]] = None, anonymous: Sequence[str] = ("pull",),
                 lifetime: int = 300, service: str = "test-registry") -> None:
        self.users = dict(users or {})
        self.anonymous = set(anonymous)
        self.lifetime = lifetime
        self.service = service
        self.received: List[Tuple[Request, str]] = []
        self.issued = 0
        self._tokens: Dict[str, Tuple[float, Dict[str, Set[str]]]] = {}
        self._refresh: Dict[str, str] = {}
        self._lock = threading.Lock()

    def revoke(self) -> None:
        """Forget every token at once, as if all had expired."""
        with self._lock:
            self._tokens.clear()

    def token(self, connection: Connection) -> None:
        """Answer GET or POST /token."""
        request = connection.request
        posted = parse_qs(connection.body().decode())
        form = {**request.query, **{key: values[-1] for key, values in posted.items()}}
        scopes = parse_qs(request.target.partition("?")[2]).get("scope", []) + posted.get("scope", [])
        user, known = self._user(request, form)
        if not known:
            return error(401, "UNAUTHORIZED")(connection)
        granted: Dict[str, Set[str]] = {}
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "repository":
                wanted = set(actions.split(","))
                granted.setdefault(name, set()).update(wanted if user else wanted & self.anonymous)
        with self._lock:
            self.issued += 1
            token = "token-%d-of-%s" % (self.issued, user or "anonymous")
            self._tokens[token] = time.monotonic() + self.lifetime, granted
            answer = {"token": token, "access_token": token, "expires_in": self.lifetime,
                      "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            if user and (form.get("offline_token") == "true" or form.get("access_type") == "offline"):
                answer["refresh_token"] = "refresh-of-" + user
                self._refresh["refresh-of-" + user] = user
        reply(200, answer, {"Content-Type": "application/json"})(connection)

    def _user(self, request: Request, form: Mapping[str, str]) -> Tuple[str, bool]:
        """(name, True), ("", True) for anonymous, or ("", False)."""
        if form.get("grant_type") == "refresh_token":
            user = self._refresh.get(form.get("refresh_token", ""), "")
            return user, bool(user)
        name, password = form.get("username", ""), form.get("password", "")
        authorization = request.headers.get("authorization", "")
        if authorization:
            self.received.append((request, authorization))
            name, _, password = base64.b64decode(authorization.partition(" ")[2]).decode().partition(":")
        if not name:
            return "", True
        return (name, True) if self.users.get(name) == password else ("", False)

    def admits(self, connection: Connection, realm: str) -> bool:
        """Check the Bearer token of a request; answers 401 and says False without one."""
        request = connection.request
        authorization = request.headers.get("authorization", "")
        if authorization:
            self.received.append((request, authorization))
        expiry, granted = self._tokens.get(authorization.partition(" ")[2], (0.0, {}))
        repository = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/.*", request.path)
        action = "pull" if request.method in ("GET", "HEAD") else "push"
        if expiry > time.monotonic() and (
                not repository or action in granted.get(repository.group(1), ())):
            return True
        value = 'Bearer realm="%s",service="%s"' % (realm, self.service)
        if repository:
            value += ',scope="repository:%s:%s"' % (
                repository.group(1), "pull" if action == "pull" else "pull,push")
        if expiry:
            value += ',error="invalid_token"'
        challenge(value)(connection)
        return False
