# SPDX-License-Identifier: Apache-2.0
"""Access to registries, as the settings have it: hosts, network and credentials."""
import contextlib
import json
import os
import re
from typing import Callable, Dict, List, Optional, Sequence

from ..errors import Error, InvalidDocument, InvalidReference, shown
from ..image.strictjson import as_object, list_at, object_at, string_at
from ..reference import DEFAULT_DOMAIN
from ..registry.auth import Credential
from ..registry.credentials import Credentials, Source
from ..registry.endpoints import Host, RegistryService, check_host, validate_insecure, validate_mirror
from ..registry.network import Connected, Network
from ..registry.proxy import Proxies
from .settings import Settings

#: Headers that --header would send to every host; --creds and --registry-token go to one.
_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")


class Access:
    """The registries that one command may ask, and how."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def proxies(self) -> Proxies:
        env = self._settings.environ.get
        # In a CGI program HTTP_PROXY is the "Proxy:" header of its client (CVE-2016-5385).
        http = env("http_proxy") or not env("REQUEST_METHOD") and env("HTTP_PROXY") or ""
        return Proxies(http, env("https_proxy") or env("HTTPS_PROXY", ""),
                       env("no_proxy") or env("NO_PROXY", ""))

    def network(self, connected: Optional[Callable[[Connected], None]] = None) -> Network:
        """The network as the command may use it."""
        settings = self._settings
        rate, key = settings.size("limit_rate", "limit-rate"), "allowed-hosts"
        if not rate and settings.text("limit_rate", key="limit-rate"):
            raise settings.wrong("limit_rate", "limit-rate", "a size from 1, such as 512k or 10M")
        only = self._names(key, lambda name: check_host(name, key)) if key in settings.document else None
        if settings.text("only") or settings.flags.get("only") is not None:
            only = [name for name in map(str.strip, settings.text("only").split(","))
                    if check_host(name, "--only")]
        return Network(limit_rate=rate, only=only, offline=settings.truth("offline"), connected=connected)

    def service(self, domains: Sequence[str] = (), network: Optional[Network] = None) -> RegistryService:
        """The registries and how to reach them; --cert-dir applies to ``domains``."""
        settings = self._settings
        return RegistryService(
            insecure=self._names("insecure-registries", validate_insecure),
            hosts=self._hosts(), plain_http=settings.truth("plain_http"),
            tls_verify=settings.truth("tls_verify", True), ca_file=settings.text("ca_file"),
            timeout=settings.timeout, headers=self._headers(), proxies=self.proxies(),
            certs=self.certs,
            cert_dirs=dict.fromkeys(domains, settings.text("cert_dir")), warn=settings.warn,
            legacy=self._names("legacy-registries", lambda name: check_host(name, "legacy registry")),
            legacy_v1=settings.truth("legacy_v1"), network=network or self.network())

    @property
    def certs(self) -> List[str]:
        """The directories of certs.d, in the order in which a host is looked up in them."""
        return [os.path.join(folder, name, "certs.d")
                for folder in (self._settings.config_home, "/etc") if folder for name in ("containers", "docker")]

    def _hosts(self) -> Dict[str, Host]:
        """The settings of registries; what can't be read is an error for its registry alone."""
        settings = self._settings
        hosts: Dict[str, Host] = {}
        document = settings.document
        entries = [("hosts", *item) for item in object_at(document, "hosts", settings.label).items()]
        entries.append(("registry-mirrors", DEFAULT_DOMAIN, {"mirrors": document.get("registry-mirrors")}))
        for key, name, value in entries:
            domain = ""
            try:
                domain = check_host(re.sub("^.*://|/.*", "", name), "host")
                host, members = hosts.get(domain, Host()), as_object(value, name, "settings")
                fallback = members.get("fallback", host.fallback)
                if "/" in name or not isinstance(fallback, bool):
                    raise InvalidReference("want HOST[:PORT], and fallback must be true or false")
                mirrors = tuple(validate_mirror(str(item)) for item in list_at(members, "mirrors", "settings"))
                hosts[domain] = host._replace(mirrors=host.mirrors + mirrors, fallback=fallback,
                                              ca=string_at(members, "ca", "settings", host.ca))
            except (InvalidReference, InvalidDocument) as exc:
                problem = self._problem(key, {name: value}, exc)
                if domain:
                    hosts[domain] = Host(problem=problem)
                else:  # no registry that there can be
                    settings.alert("%s; passed over" % problem)
        return hosts

    def _names(self, key: str, check: Callable[[str], object]) -> List[str]:
        """The hosts in a list, less those that can't be read: they get no right that they may not have."""
        settings = self._settings
        value, names = settings.document.get(key) or [], []
        for name in value if isinstance(value, list) else [value]:
            try:
                if name is value or not isinstance(name, str):
                    raise InvalidDocument("want an array of strings")
                check(name)
                names.append(name)
            except (InvalidReference, InvalidDocument) as exc:
                settings.alert("%s; passed over" % self._problem(key, name, exc))
        return names

    def _problem(self, key: str, value: object, error: Error) -> Error:
        """The error with the file, the key and the value, without the secrets that a URL may hold."""
        text = re.sub(r'"(?:[^"\\]|\\.)*@', '"xxxxx@', json.dumps(value))
        return error.within("%s: %s: %s" % (self._settings.label, key, text[:200]))

    def credentials(self, domains: List[str]) -> Credentials:
        """The credentials of --creds for ``domains``, and those that docker and podman have stored."""
        settings = self._settings
        explicit: Dict[str, Credential] = {}
        creds, token = settings.text("creds"), settings.text("registry_token")
        if creds or token:
            if len(set(domains)) > 1:
                raise InvalidReference(
                    "--creds and --registry-token are for one registry, not for %s"
                    % " and ".join(sorted(set(domains))))
            if not re.fullmatch("[!-~]*", token):
                raise InvalidReference("--registry-token must be visible ASCII")
            username, _, password = creds.partition(":")
            explicit = dict.fromkeys(domains, Credential(username, password, registry_token=token))
        return Credentials(self.sources(), explicit=explicit,
                           explicit_name=settings.origin("registry_token" if token else "creds"),
                           helper_environ=self.helper_environ, warn=settings.alert)

    @property
    def helper_environ(self) -> Dict[str, str]:
        """The environment for credential helpers, without the variables meant for minipull alone."""
        return {name: value for name, value in self._settings.environ.items()
                if not name.startswith("MINIPULL_") and name != "DOCKER_AUTH_CONFIG"}

    @property
    def authfile(self) -> str:
        """The path of the only file of credentials, or empty."""
        settings = self._settings
        return settings.text("authfile") or settings.environ.get("REGISTRY_AUTH_FILE", "")

    @property
    def docker_config(self) -> str:
        """The path of docker's file of credentials; raises InvalidReference where there is no home."""
        settings = self._settings
        folder = settings.environ.get("DOCKER_CONFIG") or settings.home and os.path.join(settings.home, ".docker")
        if not folder:
            raise InvalidReference("no home directory: give --authfile")
        return os.path.join(folder, "config.json")

    def sources(self) -> List[Source]:
        """The sources of credentials; the first that has an entry wins."""
        settings = self._settings
        if self.authfile:
            if not os.path.exists(self.authfile):
                raise InvalidReference("authfile '%s' does not exist" % shown(self.authfile, 300))
            return [Source(self.authfile, required=True)]
        text = settings.environ.get("DOCKER_AUTH_CONFIG")
        sources = [Source("DOCKER_AUTH_CONFIG", text)] if text else []
        with contextlib.suppress(InvalidReference):
            sources.append(Source(self.docker_config))
        for folder in filter(None, (settings.folder("XDG_RUNTIME_DIR"), settings.config_home)):
            sources.append(Source(os.path.join(folder, "containers", "auth.json")))
        return sources + ([Source(os.path.join(settings.home, ".dockercfg"), flat=True)] if settings.home else [])

    def _headers(self) -> Dict[str, str]:
        settings = self._settings
        headers: Dict[str, str] = {}
        for line in settings.flags.get("header") or settings.environ.get("MINIPULL_HEADER", "").splitlines():
            # Neither name nor value may end the header line (CVE-2016-5699).
            match = re.fullmatch(r"([A-Za-z0-9_-]+):([ -~]*)", line)
            if match is None or match.group(1).lower() in _SECRET_HEADERS:
                raise InvalidReference("--header must be NAME:VALUE, and no credential")
            headers[match.group(1).title()] = match.group(2).strip()
        return headers
