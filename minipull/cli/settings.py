# SPDX-License-Identifier: Apache-2.0
"""Settings: flags, environment and files become the objects that the library takes.

A flag wins over ``MINIPULL_<FLAG>``, that over the settings file, that over the
default.  The environment is an argument, so a program that embeds minipull may
pass a mapping of its own.  The settings file has the keys of the engine's
daemon.json.
"""
import contextlib
import functools
import json
import os
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import Error, InvalidDocument, InvalidReference, StorageError, shown
from ..files import read_file
from ..image.strictjson import as_object, list_at, object_at, parse_json, string_at, strings_at
from ..parts import carrier
from ..reference import DEFAULT_DOMAIN
from ..store.store import Store

if TYPE_CHECKING:
    from ..image.signature import Key
    from ..registry.credentials import Credentials, Source
    from ..registry.endpoints import Host, RegistryService
    from ..registry.network import Connected, Network
    from ..registry.proxy import Proxies
    from ..xfer.download import LayerDownloadManager
    from ..xfer.upload import LayerUploadManager

MAX_FILE = 1 << 20  # bytes of a settings file
JOBS = 6  # downloads at once on the command line, where the engine has 3; and blobs of a copy, as skopeo has
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
        for name, value in (*environ.items(), *flags.items()):
            if isinstance(value, str) and "\0" in value:
                raise InvalidReference("%s must not contain a NUL" % shown(name, 100))
        self.environ = environ
        self._flags = flags
        self._warn = warn
        #: Called, once for each text, of what explains a failure that may follow.
        self._alert: Callable[[str], None] = functools.lru_cache()(alert or warn)
        self._home = _home(environ)
        self._config = self._folder("XDG_CONFIG_HOME", ".config")
        self._name = "settings"
        self.path = ""  # of the settings file
        self._file = self._read(self._flags.get("config"))

    @property
    def document(self) -> Mapping[str, Any]:
        """The settings file, as it was read."""
        return self._file

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

    def truth(self, name: str, default: bool = False, key: str = "") -> bool:
        text = self.text(name, str(default), key)
        if text.lower() not in _TRUTH:
            raise self._wrong(name, key, "true or false")
        return _TRUTH[text.lower()]

    def origin(self, name: str) -> str:
        """The flag or the variable that gives a value; empty if neither does."""
        variable = "MINIPULL_" + name.upper()
        given = variable if self.environ.get(variable) else ""
        return given if self._flags.get(name) is None else "--" + name.replace("_", "-")

    def _wrong(self, name: str, key: str, wanted: str) -> InvalidReference:
        """The error for a value that does not fit, by the flag, variable or key that has it."""
        return InvalidReference("%s must be %s" % (self.origin(name) or "settings: " + key, wanted))

    def number(self, name: str, default: int, key: str = "") -> int:
        text = self.text(name, str(default), key)
        if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
            raise self._wrong(name, key, "a number from 1")
        return int(text)

    def size(self, name: str, key: str = "") -> int:
        """A size in bytes, given as 4096, 512k, 10M or 1G; 0 if not given."""
        text = self.text(name, "0", key)
        match = re.fullmatch("([0-9]{1,12})([kMG]?)", text)
        if match is None:
            raise self._wrong(name, key, "a size such as 512k or 10M")
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

    @property
    def root(self) -> str:
        """The path of the store, or of an archive in its place; raises StorageError without a home."""
        data = self._folder("XDG_DATA_HOME", ".local", "share")
        # A bundle is its own store whatever a shell's profile sets, but load takes it out of there.
        bundle = "" if self._flags.get("command") == "load" else carrier()
        root = self._flags.get("root") or bundle or self.text("root") or data and os.path.join(data, "minipull")
        if not root:
            raise StorageError("no home directory: give --root")
        return root

    def store(self) -> Store:
        return Store(self.root, self.timeout, find_zstd(self.environ.get("PATH", os.defpath)))

    def downloads(self) -> "LayerDownloadManager":
        from ..xfer.download import MAX_ATTEMPTS, LayerDownloadManager
        return LayerDownloadManager(
            self.number("jobs", JOBS, "max-concurrent-downloads"),
            self.number("attempts", MAX_ATTEMPTS, "max-download-attempts"))

    def uploads(self, default: int = 0) -> "LayerUploadManager":
        from ..xfer.download import MAX_ATTEMPTS
        from ..xfer.upload import CONCURRENT_UPLOADS, LayerUploadManager
        return LayerUploadManager(
            self.number("jobs", default or CONCURRENT_UPLOADS, "max-concurrent-uploads"),
            self.number("attempts", MAX_ATTEMPTS))  # the engine has no key for these

    def verify_keys(self) -> Tuple["Key", ...]:
        """The keys of which one must have signed an image, from files: one a line of the variable."""
        from ..image.signature import parse_key
        own = self._file.get("verify-key")
        paths = (self._flags.get("verify_key") or self.environ.get("MINIPULL_VERIFY_KEY", "").splitlines()
                 or ([own] if isinstance(own, str) else strings_at(self._file, "verify-key", self._name)))
        if not paths and "verify-key" in self._file:
            raise InvalidReference("%s: verify-key names no key" % self._name)
        keys = []
        for path in paths:
            data = None if "\0" in path else read_file(path, MAX_FILE)
            if data is None:
                raise InvalidReference("key file '%s' does not exist" % shown(path, 300))
            keys.append(parse_key(data, path))
        return tuple(keys)

    def proxies(self) -> "Proxies":
        from ..registry.proxy import Proxies
        env = self.environ.get
        # In a CGI program HTTP_PROXY is the "Proxy:" header of its client (CVE-2016-5385).
        http = env("http_proxy") or not env("REQUEST_METHOD") and env("HTTP_PROXY") or ""
        return Proxies(http, env("https_proxy") or env("HTTPS_PROXY", ""),
                       env("no_proxy") or env("NO_PROXY", ""))

    def network(self, connected: Optional[Callable[["Connected"], None]] = None) -> "Network":
        """The network as the command may use it."""
        from ..registry.endpoints import check_host
        from ..registry.network import Network
        rate, key = self.size("limit_rate", "limit-rate"), "allowed-hosts"
        if not rate and self.text("limit_rate", key="limit-rate"):
            raise self._wrong("limit_rate", "limit-rate", "a size from 1, such as 512k or 10M")
        only = self._names(key, lambda name: check_host(name, key)) if key in self._file else None
        if self.text("only") or self._flags.get("only") is not None:
            only = [name for name in map(str.strip, self.text("only").split(","))
                    if check_host(name, "--only")]
        return Network(limit_rate=rate, only=only, offline=self.truth("offline"), connected=connected)

    def service(self, domains: Sequence[str] = (), network: Optional["Network"] = None) -> "RegistryService":
        """The registries and how to reach them; --cert-dir applies to ``domains``."""
        from ..registry.endpoints import RegistryService, check_host, validate_insecure
        return RegistryService(
            insecure=self._names("insecure-registries", validate_insecure),
            hosts=self._hosts(), plain_http=self.truth("plain_http"),
            tls_verify=self.truth("tls_verify", True), ca_file=self.text("ca_file"),
            timeout=self.timeout, headers=self._headers(), proxies=self.proxies(),
            certs=self.certs,
            cert_dirs=dict.fromkeys(domains, self.text("cert_dir")), warn=self._warn,
            legacy=self._names("legacy-registries", lambda name: check_host(name, "legacy registry")),
            legacy_v1=self.truth("legacy_v1"), network=network or self.network())

    @property
    def certs(self) -> List[str]:
        """The directories of certs.d, in the order in which a host is looked up in them."""
        return [os.path.join(folder, name, "certs.d")
                for folder in (self._config, "/etc") if folder for name in ("containers", "docker")]

    def _hosts(self) -> Dict[str, "Host"]:
        """The settings of registries; what can't be read is an error for its registry alone."""
        from ..registry.endpoints import Host, check_host, validate_mirror
        hosts: Dict[str, Host] = {}
        entries = [("hosts", *item) for item in object_at(self._file, "hosts", self._name).items()]
        entries.append(("registry-mirrors", DEFAULT_DOMAIN, {"mirrors": self._file.get("registry-mirrors")}))
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
                    self._alert("%s; passed over" % problem)
        return hosts

    def _names(self, key: str, check: Callable[[str], object]) -> List[str]:
        """The hosts in a list, less those that can't be read: they get no right that they may not have."""
        value, names = self._file.get(key) or [], []
        for name in value if isinstance(value, list) else [value]:
            try:
                if name is value or not isinstance(name, str):
                    raise InvalidDocument("want an array of strings")
                check(name)
                names.append(name)
            except (InvalidReference, InvalidDocument) as exc:
                self._alert("%s; passed over" % self._problem(key, name, exc))
        return names

    def _problem(self, key: str, value: object, error: Error) -> Error:
        """The error with the file, the key and the value, without the secrets that a URL may hold."""
        text = re.sub(r'"(?:[^"\\]|\\.)*@', '"xxxxx@', json.dumps(value))
        return error.within("%s: %s: %s" % (self._name, key, text[:200]))

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
                           explicit_name=self.origin("registry_token" if token else "creds"),
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
                raise InvalidReference("authfile '%s' does not exist" % shown(self.authfile, 300))
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
                self.path, self._name = name, shown(name, 300)
                return parse_json(data, self._name)
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
    # Not by shutil.which: each command asks, and most need nothing else of that module.
    places = (os.path.join(folder, "zstd") for folder in path.split(os.pathsep) if os.path.isabs(folder))
    return next((place for place in places if os.access(place, os.X_OK) and not os.path.isdir(place)), None)
