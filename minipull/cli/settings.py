# SPDX-License-Identifier: Apache-2.0
"""Settings: flags, environment and files become the objects that the library takes.

A flag wins over ``MINIPULL_<FLAG>``, that over the settings file, that over the
default.  The environment is an argument, so a program that embeds minipull may
pass a mapping of its own.  The settings file has the keys of the engine's
daemon.json.
"""
import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence

from ..errors import InvalidReference, StorageError
from ..files import read_file
from ..image.strictjson import object_at, parse_json, string_at, strings_at
from ..store.store import Store
from ..xfer.download import MAX_ATTEMPTS, LayerDownloadManager
from ..xfer.upload import CONCURRENT_UPLOADS, LayerUploadManager

if TYPE_CHECKING:
    from ..registry.credentials import Credentials, Source
    from ..registry.endpoints import RegistryService
    from ..registry.proxy import Proxies

MAX_FILE = 1 << 20  # bytes of a settings file
JOBS = 6  # downloads at once on the command line; the engine's default is 3
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
#: Headers that --header would send to every host; --creds and --registry-token go to one.
_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")


class Settings:
    """The settings of one command; ``flags`` maps a flag that was not given to None.

    Raises InvalidReference for a value that does not fit, StorageError and
    InvalidDocument for a file that can't be used.
    """

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, Any],
                 warn: Callable[[str], None] = lambda text: None,
                 alert: Optional[Callable[[str], None]] = None) -> None:
        self.environ = environ
        self._flags = flags
        self._warn = warn
        self._alert = alert or warn  # of what explains a failure that may follow
        self._home = _home(environ)
        self._config = self._folder("XDG_CONFIG_HOME", ".config")
        self._file = self._read(self._flags.get("config"))

    def _folder(self, variable: str, *below: str) -> str:
        """An absolute directory, by a variable or ``below`` the home directory; empty if there is neither."""
        folder = self.environ.get(variable, "")
        if os.path.isabs(folder):  # others are to be ignored (XDG Base Directory Specification)
            return folder
        return os.path.join(self._home, *below) if self._home and below else ""

    def text(self, name: str, default: str = "", key: str = "") -> str:
        """The value of a flag, or of its variable, or in the settings file under ``key``."""
        value = self._flags.get(name)
        if value is None:
            value = self.environ.get("MINIPULL_" + name.upper()) or None
        if value is None and key:
            value = self._file.get(key)
        return default if value is None else str(value)

    def truth(self, name: str, default: bool = False) -> bool:
        text = self.text(name, str(default))
        if text.lower() not in _TRUTH:
            raise InvalidReference("--%s must be true or false" % name.replace("_", "-"))
        return _TRUTH[text.lower()]

    def number(self, name: str, default: int, key: str = "") -> int:
        text = self.text(name, str(default), key)
        if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
            raise InvalidReference("--%s must be a number from 1" % name.replace("_", "-"))
        return int(text)

    def size(self, name: str) -> int:
        """A size in bytes, given as 4096, 512k, 10M or 1G; 0 if not given."""
        text = self.text(name, "0")
        match = re.fullmatch("([0-9]{1,12})([kMG]?)", text)
        if match is None:
            raise InvalidReference("--%s must be a size such as 512k or 10M" % name.replace("_", "-"))
        return int(match.group(1)) << {"": 0, "k": 10, "M": 20, "G": 30}[match.group(2)]

    def end(self, side: str) -> "Settings":
        """The settings for one end of a copy, where --src-... or --dest-... wins."""
        own = [name for name in self._flags if name.startswith(side + "_") and self.text(name)]
        flags = dict(self._flags, **{name[len(side) + 1:]: self.text(name) for name in own})
        return Settings(self.environ, flags, self._warn, self._alert)

    @property
    def timeout(self) -> float:
        return float(self.number("timeout", 60))

    @property
    def platform(self) -> Optional[str]:
        return self.text("platform") or self.environ.get("DOCKER_DEFAULT_PLATFORM") or None

    def store(self) -> Store:
        root = self.text("root")
        if not root:
            data = self._folder("XDG_DATA_HOME", ".local", "share")
            if not data:
                raise StorageError("no home directory: give --root")
            root = os.path.join(data, "minipull")
        return Store(root, self.timeout, find_zstd(self.environ.get("PATH", os.defpath)))

    def downloads(self) -> LayerDownloadManager:
        return LayerDownloadManager(
            self.number("jobs", JOBS, "max-concurrent-downloads"),
            self.number("attempts", MAX_ATTEMPTS, "max-download-attempts"))

    def uploads(self) -> LayerUploadManager:
        return LayerUploadManager(
            self.number("jobs", CONCURRENT_UPLOADS, "max-concurrent-uploads"),
            self.number("attempts", MAX_ATTEMPTS, "max-download-attempts"))

    def proxies(self) -> "Proxies":
        from ..registry.proxy import Proxies
        env = self.environ.get
        # In a CGI program HTTP_PROXY is the "Proxy:" header of its client (CVE-2016-5385).
        http = env("http_proxy") or not env("REQUEST_METHOD") and env("HTTP_PROXY") or ""
        return Proxies(http, env("https_proxy") or env("HTTPS_PROXY", ""),
                       env("no_proxy") or env("NO_PROXY", ""))

    def service(self, domains: Sequence[str] = ()) -> "RegistryService":
        """The registries and how to reach them; --cert-dir applies to ``domains``."""
        from ..registry.endpoints import Host, RegistryService
        hosts: Dict[str, Host] = {}
        members = object_at(self._file, "hosts", "settings")
        for domain in members:
            host = object_at(members, domain, "settings: hosts")
            source = "settings: host %s" % ascii(domain)
            fallback = host.get("fallback", True)
            if not isinstance(fallback, bool):
                raise InvalidReference("%s: fallback must be true or false" % source)
            hosts[domain] = Host(
                strings_at(host, "mirrors", source), fallback, string_at(host, "ca", source))
        return RegistryService(
            mirrors=strings_at(self._file, "registry-mirrors", "settings"),
            insecure=strings_at(self._file, "insecure-registries", "settings"),
            hosts=hosts, plain_http=self.truth("plain_http"),
            tls_verify=self.truth("tls_verify", True), ca_file=self.text("ca_file"),
            timeout=self.timeout, headers=self._headers(), proxies=self.proxies(),
            certs=[os.path.join(folder, name, "certs.d")
                   for folder in (self._config, "/etc") if folder for name in ("containers", "docker")],
            cert_dirs=dict.fromkeys(domains, self.text("cert_dir")), warn=self._warn,
            legacy=strings_at(self._file, "legacy-registries", "settings"),
            legacy_v1=self.truth("legacy_v1"))

    def credentials(self, domains: List[str]) -> "Credentials":
        """The credentials of --creds for ``domains``, and those that docker and podman have stored."""
        from ..registry.auth import Credential
        from ..registry.credentials import Credentials
        explicit: Dict[str, Credential] = {}
        creds, token = self.text("creds"), self.text("registry_token")
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
                           helper_environ=self.helper_environ, warn=self._alert)

    @property
    def helper_environ(self) -> Dict[str, str]:
        """The environment for credential helpers, without the variables meant for minipull alone."""
        return {name: value for name, value in self.environ.items()
                if not name.startswith("MINIPULL_") and name != "DOCKER_AUTH_CONFIG"}

    @property
    def authfile(self) -> str:
        """The path of the only file of credentials, or empty."""
        return self.text("authfile") or self.environ.get("REGISTRY_AUTH_FILE", "")

    @property
    def docker_config(self) -> str:
        """The path of docker's file of credentials; raises InvalidReference where there is no home."""
        folder = self.environ.get("DOCKER_CONFIG") or self._home and os.path.join(self._home, ".docker")
        if not folder:
            raise InvalidReference("no home directory: give --authfile")
        return os.path.join(folder, "config.json")

    def sources(self) -> List["Source"]:
        """The sources of credentials; the first that has an entry wins."""
        from ..registry.credentials import Source
        if self.authfile:
            if not os.path.exists(self.authfile):
                raise InvalidReference("authfile %s does not exist" % ascii(self.authfile))
            return [Source(self.authfile, required=True)]
        text = self.environ.get("DOCKER_AUTH_CONFIG")
        sources = [Source("DOCKER_AUTH_CONFIG", text)] if text else []
        with contextlib.suppress(InvalidReference):
            sources.append(Source(self.docker_config))
        for folder in filter(None, (self._folder("XDG_RUNTIME_DIR"), self._config)):
            sources.append(Source(os.path.join(folder, "containers", "auth.json")))
        return sources + ([Source(os.path.join(self._home, ".dockercfg"), flat=True)] if self._home else [])

    def _headers(self) -> Dict[str, str]:
        headers: Dict[str, str] = {}
        for line in self._flags.get("header") or self.environ.get("MINIPULL_HEADER", "").splitlines():
            # Neither name nor value may end the header line (CVE-2016-5699).
            match = re.fullmatch(r"([A-Za-z0-9_-]+):([ -~]*)", line)
            if match is None or match.group(1).lower() in _SECRET_HEADERS:
                raise InvalidReference("--header must be NAME:VALUE, and no credential")
            headers[match.group(1).title()] = match.group(2).strip()
        return headers

    def _read(self, path: Optional[str]) -> Dict[str, Any]:
        """The settings in the file at ``path``, else in the user's, else in the system's."""
        path = path or self.environ.get("MINIPULL_CONFIG")
        own = [os.path.join(self._config, "minipull", "config.json")] if self._config else []
        for name in [path] if path else [*own, "/etc/minipull/config.json"]:
            data = read_file(name, MAX_FILE)
            if data is not None:
                return parse_json(data, name)
        if path:
            raise InvalidReference("settings file %s does not exist" % ascii(path))
        return {}


def _home(environ: Mapping[str, str]) -> str:
    """The home directory, or nothing: a relative one would be whoever's the working directory is."""
    home = environ.get("HOME", "")
    if os.name == "posix" and not os.path.isabs(home):
        import pwd
        with contextlib.suppress(KeyError):  # a user without an entry, as containers have them
            home = pwd.getpwuid(os.getuid()).pw_dir
    elif not home:
        home = os.path.expanduser("~")
    return home if os.path.isabs(home) else ""


def find_zstd(path: str = os.defpath) -> Optional[str]:
    """The path of the zstd program in the absolute directories of ``path``, or None."""
    absolute = filter(os.path.isabs, path.split(os.pathsep))
    return shutil.which("zstd", path=os.pathsep.join(absolute))
