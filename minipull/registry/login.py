# SPDX-License-Identifier: Apache-2.0
"""Logins: a credential that a registry has accepted, stored where docker stores it.

- An identity token from the token server is stored instead of the password.
- A helper that is configured for the host stores it, and gets it on standard
  input; without a helper it is written to the file.
- The file is replaced in one step, under a lock, readable for its owner alone.
  Its other members stay, in their order; a malformed file is left alone.

Mirrors moby's registry/auth.go (loginV2) and docker/cli's cli/config.
"""
import base64
import contextlib
import json
import os
import re
import threading
from typing import Any, Callable, Dict, Mapping, Optional

from ..cancel import Cancel
from ..errors import InvalidReference, StorageError, Unauthorized, file_errors, shown, storage_errors
from ..files import Locked, lock, make_directory, open_regular, read_bytes, sweep, sync_directory, write_atomic
from ..image.strictjson import object_at, parse_json
from ..progress import Output, Progress, discard, serialized
from ..reference import DEFAULT_DOMAIN, Reference
from .auth import Authorizer, Credential, answer_error
from .client import Client, over_endpoints
from .credentials import HELPER_TIMEOUT, MAX_FILE, AuthFile, Source, host_of, names_of, run_helper
from .endpoints import Endpoint, RegistryService
from .errors import RegistryError
from .request import Request
from .url import Origin


def registry(text: str) -> Reference:
    """A reference at the registry whose host or URL a user typed; raises InvalidReference."""
    host = re.sub("^https?://", "", text.lower()).partition("/")[0]
    domain = DEFAULT_DOMAIN if host in names_of(DEFAULT_DOMAIN) else host
    with contextlib.suppress(InvalidReference):
        reference = Reference.parse(domain + "/login")
        if reference.domain == domain:
            return reference
    raise InvalidReference("%s is no registry: want HOST[:PORT]" % shown(text.rpartition("@")[2], 300))


def login(host: str, username: str, password: str, *, authfile: str = "",
          helper_environ: Optional[Mapping[str, str]] = None, progress: Output = discard,
          service: Optional[RegistryService] = None, cancel: Optional[Cancel] = None) -> Credential:
    """Have the registry at ``host`` accept a user, and return what to keep: the password, or a token for it.

    With ``authfile``, a path such as ``~/.docker/config.json`` written out, it is stored there
    as docker stores it, or by the helper that the file names, which gets ``helper_environ``.
    Raises Unauthorized and as pull(), StorageError.

    Example::

        credential = minipull.login("registry.lan", "ann", "secret", authfile="auth.json")
        credentials = minipull.Credentials(explicit={"registry.lan": credential})
    """
    name, stop, output = registry(host), cancel or Cancel(), serialized(progress)
    with Client(service) as client:
        credential = login_with(client, name, Credential(username, password), stop,
                                lambda text: output(Progress(message="warning: " + text)))
    if authfile:
        Logins(authfile, helper_environ or {}).keep(name.domain, credential, stop)
    return credential


def login_with(client: Client, name: Reference, credential: Credential, cancel: Cancel,
               warn: Callable[[str], None] = lambda text: None) -> Credential:
    """Log in to the registry of ``name``; returns the credential to store: the password or a token."""
    try:
        username, password = (text.encode("utf-8", "surrogateescape").decode() for text in credential[:2])
    except UnicodeDecodeError:
        raise InvalidReference("user name and password must be UTF-8") from None
    if not username or not password or ":" in username:
        raise InvalidReference("want a user name, without colons, and a password")
    credential = Credential(username, password)

    def accepted(endpoint: Endpoint) -> Credential:
        url, asked = endpoint.api, threading.Event()

        def challenged() -> Credential:
            asked.set()
            return credential

        authorizer = Authorizer(client.transport, Origin.of(url), challenged, "", offline=True)
        response = authorizer.send(Request("GET", url, cancel))
        if response.status == 401:
            raise Unauthorized(str(answer_error(response)))
        response.close()
        if response.status != 200:
            raise RegistryError(response.status, text="login attempt to %s failed with status: %d %s" % (
                url, response.status, response.reason))
        if not asked.is_set():
            warn("%s asked for no credentials, so these are not verified" % (endpoint,))
        token = authorizer.refresh_token
        return Credential(username, identity_token=token) if token else credential

    return over_endpoints(client, name, "login to %s" % name.domain, accepted, cancel, discard, push=True)


class Logins:
    """The credentials in a file, whose lock is waited for ``timeout`` seconds, and at its helpers."""

    def __init__(self, path: str, helper_environ: Mapping[str, str], timeout: float = 60) -> None:
        self.path = path
        self._environ = helper_environ
        self._timeout = timeout

    def keep(self, domain: str, credential: Credential, cancel: Cancel) -> None:
        """Store the credential that login() returned."""
        names = names_of(domain)
        username, password, token, _ = credential
        helper = AuthFile(Source(self.path)).helper(names)
        entry: Dict[str, str] = {}
        if helper:
            secret = token or password
            text = json.dumps({
                "ServerURL": names[0], "Username": "<token>" if token else username, "Secret": secret})
            self._ask(helper, "store", text, secret)
        else:
            entry["auth"] = base64.b64encode(("%s:%s" % (username, password)).encode()).decode()
            if token:
                entry["identitytoken"] = token
        self._change(lambda auths: auths.update({names[0]: entry}), cancel)

    def forget(self, domain: str, cancel: Cancel) -> bool:
        """Erase the credential under every name of the host; False if there is none."""
        path = self._target()
        sweep(os.path.dirname(path), path)  # what a killed login left holds passwords
        names = names_of(domain)
        file = AuthFile(Source(self.path))
        helper = file.helper(names)
        stored = [name for name in names if helper and self._ask(helper, "get", name) is not None]
        for name in stored:
            self._ask(helper, "erase", name, "")
        keys = [key for key in file.auths if host_of(key) in names]
        if keys:
            self._change(lambda auths: [auths.pop(key, None) for key in keys], cancel)
        return bool(keys or stored)

    def _target(self) -> str:
        """The path of the file itself: a symbolic link to it is kept."""
        with file_errors("open %s" % self.path):
            return os.path.realpath(self.path)

    def _ask(self, helper: str, verb: str, text: str, secret: Optional[str] = None) -> Optional[str]:
        return run_helper(helper, verb, text, self._environ, HELPER_TIMEOUT, secret)

    def _change(self, change: Callable[[Dict[str, Any]], object], cancel: Cancel) -> None:
        path = self._target()
        folder = os.path.dirname(path)
        try:
            make_directory(folder)
            with storage_errors("lock %s" % path):
                sync_directory(os.path.dirname(folder))
                fd = open_regular(path + ".lock", os.O_RDWR | os.O_CREAT)
            with open(fd, "rb"):
                try:
                    lock(fd, path, True, cancel.pause, self._timeout)
                except Locked:
                    raise
                except StorageError:  # a file system without locks; docker takes none anywhere
                    pass
                document = parse_json((read_bytes(path, MAX_FILE) or b"").strip() or b"{}", path)
                document["auths"] = object_at(document, "auths", path)
                change(document["auths"])
                text = json.dumps(document, indent="\t", ensure_ascii=False)
                write_atomic(path, text.encode(), folder)
        except StorageError as exc:
            if not isinstance(exc.__cause__, OSError):
                raise
            problem = str(exc).partition("; ")[0]  # without the hint, which is about the store
            raise StorageError("%s; --authfile names another file" % problem) from exc
