# SPDX-License-Identifier: Apache-2.0
"""Credentials: the files and helpers of docker and podman, read.

- A credential is bound to the exact ``host[:port]`` that it was stored for; only
  Docker Hub has several names.
- The first source with an entry ends the search.  Within a file, a key below the
  host (``host/ns/repo``, ``host/ns``) comes before the host's helper
  (``credHelpers``, else ``credsStore``), and that before the host's own key.
- A helper that is missing or fails makes its host anonymous: a user who moved a
  password to a keychain does not mean an older one in another file.
- No secret is part of a message, a ``repr`` or a command line.

Mirrors moby's registry/auth.go (ResolveAuthConfig), docker/cli's cli/config
and the client of docker-credential-helpers.
"""
import base64
import contextlib
import functools
import json
import os
import re
import threading
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import InvalidDocument, StorageError
from ..files import read_file
from ..parts import shutil, subprocess
from .auth import Credential, Keyring

MAX_FILE = 1 << 20  # bytes
HELPER_TIMEOUT = 30.0  # seconds
#: docker keeps Hub's entry under the URL of its former index, so that comes first.
_HUB_NAMES = ("https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io")


class Source(NamedTuple):
    """A file, or a ``text`` that messages call ``name``; ``flat`` is the form of .dockercfg: entries alone.

    One that is not ``required`` is passed over, with a warning, if it can't be read.
    """
    name: str
    text: Optional[str] = None
    flat: bool = False
    required: bool = False

    def __repr__(self) -> str:
        return "Source(%r)" % self.name


class Credentials(Keyring):
    """The credentials of several sources, shared by threads.

    ``explicit`` maps hosts to credentials, or (user, password), that come before every source, and that
    messages call ``explicit_name``.  Helpers are found on the PATH of ``helper_environ``, which is all their
    environment.
    Files are read and helpers run once at most, when they are first needed.
    """

    def __init__(self, sources: Sequence[Source] = (), *,
                 explicit: Optional[Mapping[str, Tuple[str, ...]]] = None, explicit_name: str = "the caller",
                 helper_environ: Optional[Mapping[str, str]] = None, helper_timeout: float = HELPER_TIMEOUT,
                 warn: Callable[[str], None] = lambda _: None) -> None:
        self._sources = sources
        self._explicit = {host.lower(): Credential(*credential) for host, credential in (explicit or {}).items()}
        self._environ = helper_environ or {}
        self._timeout = helper_timeout
        self._warn: Callable[[str], None] = functools.lru_cache(maxsize=None)(warn)  # of each problem once
        self._lock = threading.Lock()
        self._files: Dict[Source, AuthFile] = {}
        self._explicit_name = explicit_name
        #: By host and path that were asked for: the user, and the source that had an entry.
        self._descriptions: Dict[Tuple[str, str], str] = {}
        #: By helper and name: what helpers have answered.
        self.asked: Dict[Tuple[str, str], Optional[Credential]] = {}

    def get(self, host: str, path: str = "") -> Credential:
        """As Keyring.get; raises StorageError or InvalidDocument for a required source that can't be read."""
        credential, origin = self._find(host.lower(), path)
        # What stands alone may be a token, typed where a user belongs.
        user = "user " + credential.username if credential.username and any(credential[1:]) else "a token"
        self._descriptions[host, path] = "no credentials were found" if credential.anonymous else (
            "%s, from %s" % (user, origin))
        return credential

    def described(self, host: str, path: str = "") -> str:
        return self._descriptions.get((host, path), "no credentials were asked for")

    def _find(self, host: str, path: str) -> Tuple[Credential, str]:
        """A credential, and the name of its source, or of the helper that has given it."""
        if host in self._explicit:
            return self._explicit[host], self._explicit_name
        with self._lock:
            for source in self._sources:
                try:
                    credential = self._first(source, host, path)
                except (StorageError, InvalidDocument) as exc:
                    if source.required:
                        raise
                    credential = None
                    self._warn("%s; going on without it" % exc)
                if credential is not None:
                    helpers = ["docker-credential-" + name for (name, _), given in self.asked.items()
                               if given is credential]
                    return credential, " of ".join(helpers[:1] + [source.name])
        return Credential(), ""

    def _first(self, source: Source, host: str, path: str) -> Optional[Credential]:
        if source not in self._files:
            self._files[source] = AuthFile(source)
            if self._files[source].exposed:
                self._warn("%s can be read by others; chmod 600 it" % source.name)
        candidates = self._candidates(self._files[source], host, path)
        return next((credential for credential in candidates if credential is not None), None)

    def _candidates(self, file: "AuthFile", host: str, path: str) -> Iterator[Optional[Credential]]:
        while path:
            yield file.stored("%s/%s" % (host, path))
            path = path.rpartition("/")[0]
        names = names_of(host)
        helper = file.helper(names)
        for name in names if helper else ():
            if (helper, name) not in self.asked:
                self.asked[helper, name] = self._ask(helper, name)
            yield self.asked[helper, name]
        for name in names:
            yield file.stored(name)

    def _ask(self, helper: str, name: str) -> Optional[Credential]:
        """The credential that a helper has, or None; an anonymous one if it fails."""
        try:
            output = run_helper(helper, "get", name, self._environ, self._timeout)
            if output is None:
                return None
            answer = json.loads(output)
            username, secret = answer["Username"], answer["Secret"]
            if not (isinstance(username, str) and isinstance(secret, str)):
                raise TypeError
        except StorageError as exc:
            problem = str(exc)
        except (LookupError, TypeError, ValueError, RecursionError):
            # The answer is not shown: the secret may be in it.
            problem = "docker-credential-%s: no answer of the kind" % helper
        else:
            token = username == "<token>"
            credential = Credential(identity_token=secret) if token else Credential(username, secret)
            return None if credential.anonymous else credential
        self._warn("%s; going on without credentials for %s" % (problem, name))
        return Credential()


class AuthFile:
    """A source that has been read; its entries are checked when they are asked for."""

    def __init__(self, source: Source) -> None:
        self._name = source.name
        text = source.text
        document: Any = None
        with contextlib.suppress(ValueError, RecursionError):  # whose texts show what may be secret
            if text is None:
                text = (read_file(source.name, MAX_FILE) or b"").decode("utf-8-sig")
            document = json.loads(text.strip() or "{}")
        self._check(isinstance(document, dict))
        config = {"auths": document} if source.flat else document
        self.auths = self._by_host(config.get("auths"))
        self._helpers = self._by_host(config.get("credHelpers"))
        self._store = config.get("credsStore") or ""
        #: Whether other users can read secrets in it.
        self.exposed = (os.name == "posix" and source.text is None and any(self.auths.values())
                        and os.stat(source.name).st_mode & 0o044 != 0)

    def helper(self, names: Sequence[str]) -> str:
        """The helper for a host with these names; empty if this file holds its entry."""
        helper = next((self._helpers[name] for name in names if name in self._helpers), self._store)
        self._check(isinstance(helper, str) and bool(re.fullmatch("[A-Za-z0-9._-]*", helper)))
        return str(helper)

    def stored(self, name: str) -> Optional[Credential]:
        """The credential under a key of ``auths``; raises InvalidDocument for a malformed one."""
        entry = self.auths.get(name) or {}
        self._check(isinstance(entry, dict))
        keys = ("username", "password", "identitytoken", "registrytoken", "auth")
        values = [entry.get(key) or "" for key in keys]
        self._check(all(isinstance(value, str) for value in values))
        username, password, identity_token, registry_token, auth = values
        # A registry token is sent as it is, and must not end the header.
        self._check(bool(re.fullmatch("[!-~]*", registry_token)))
        if auth:
            text = ""
            with contextlib.suppress(ValueError):
                text = base64.b64decode("".join(auth.split()), validate=True).decode("utf-8")
            username, colon, password = text.partition(":")
            self._check(bool(username and colon))
        credential = Credential(username, password.rstrip("\0"), identity_token, registry_token)
        return None if credential.anonymous else credential

    def _by_host(self, members: Any) -> Dict[str, Any]:
        members = members or {}
        self._check(isinstance(members, dict))
        first = {host_of(key): value for key, value in reversed(list(members.items()))}
        return dict(first, **members)  # a bare host wins over "https://HOST/v1/"

    def _check(self, good: bool) -> None:
        if not good:
            raise InvalidDocument("%s: Invalid auth configuration file" % self._name)


def names_of(host: str) -> Sequence[str]:
    """The names of a registry in a file, the one that docker writes first."""
    return _HUB_NAMES if host == "docker.io" else (host,)


def host_of(key: str) -> str:
    """The host of a key, which may be a URL; ``host/ns`` is returned whole: it is no key for the host."""
    bare = re.sub("^https?://", "", key)
    host, slash, path = bare.partition("/")
    return host.lower() + ("" if bare != key or key.endswith("/") else slash + path)


def run_helper(helper: str, verb: str, text: str, environ: Mapping[str, str], timeout: float,
               secret: Optional[str] = None) -> Optional[str]:
    """Run a helper with ``text`` on stdin; returns its output, None if it has no credential.

    Raises StorageError if it is missing or fails; if a ``secret`` was given and is
    not in the helper's last line of output, with that line.
    """
    program = "docker-credential-" + helper[:200]  # no file has a longer name
    # A relative entry of PATH would run programs in the working directory.
    folders = filter(os.path.isabs, environ.get("PATH", os.defpath).split(os.pathsep))
    path = shutil.which(program, path=os.pathsep.join(folders))
    if path is None:
        raise StorageError("%s: not found on PATH" % program)
    # The output is read when the helper has ended: no answer is longer than a pipe holds.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", 0) as answer, open(writer, "wb", 0) as stdout:
        try:
            done = subprocess.run(
                [path, verb], env=environ, timeout=timeout,
                input=text.encode(), stdout=stdout, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as exc:
            problem = getattr(exc, "strerror", "no answer in %g s" % timeout)
            raise StorageError("%s: %s" % (program, problem)) from exc
        output = (answer.read(1 << 16) or b"").decode("utf-8", "surrogateescape")
    if not done.returncode:
        return output
    if secret is None and "credentials not found" in output:
        return None
    parts = [program, "exit status %d" % done.returncode]
    if secret is not None and not any(form in output for form in (secret, json.dumps(secret)[1:-1]) if form):
        parts.append(output.strip().rpartition("\n")[2][:300])
    raise StorageError(": ".join(filter(None, parts)))
