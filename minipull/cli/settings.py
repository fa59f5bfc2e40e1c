# SPDX-License-Identifier: Apache-2.0
"""Settings: flags, environment and files become the objects that the library takes.

A flag wins over ``MINIPULL_<FLAG>``, that over the settings file, that over the
default.  The environment is an argument, so a program that embeds minipull may
pass a mapping of its own.  The settings file has the keys of the engine's
daemon.json.
"""
import contextlib
import functools
import os
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Tuple

from ..errors import InvalidReference, StorageError, shown
from ..files import read_file
from ..image.strictjson import parse_json, strings_at
from ..store.store import Store
from .lines import carrier

if TYPE_CHECKING:
    from ..image.signature import Key
    from ..xfer.download import LayerDownloadManager
    from ..xfer.upload import LayerUploadManager

MAX_FILE = 1 << 20  # bytes of a settings file
JOBS = 6  # blobs at once on the command line, as skopeo has; the engine has 3 downloads and 5 uploads
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


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
        self.flags = flags
        self.warn = warn
        #: Called, once for each text, of what explains a failure that may follow.
        self.alert: Callable[[str], None] = functools.lru_cache()(alert or warn)
        self.home = _home(environ)
        self.config_home = self.folder("XDG_CONFIG_HOME", ".config")
        self.label = "settings"  # of the settings file, in errors
        self.path = ""  # of the settings file
        self.document = self._read(self.flags.get("config"))

    def folder(self, variable: str, *below: str) -> str:
        """An absolute directory, by a variable or ``below`` the home directory; empty if there is neither."""
        folder = self.environ.get(variable, "")
        if os.path.isabs(folder):  # others are to be ignored (XDG Base Directory Specification)
            return folder
        return os.path.join(self.home, *below) if self.home and below else ""

    def text(self, name: str, default: str = "", key: str = "") -> str:
        """The value of a flag, or of its variable, or in the settings file under ``key``."""
        value = self.flags.get(name)
        if value is None:
            value = self.environ.get("MINIPULL_" + name.upper()) or None
        if value is None and key:
            value = self.document.get(key)
        return default if value is None else str(value)

    def truth(self, name: str, default: bool = False, key: str = "") -> bool:
        text = self.text(name, str(default), key)
        if text.lower() not in _TRUTH:
            raise self.wrong(name, key, "true or false")
        return _TRUTH[text.lower()]

    def origin(self, name: str) -> str:
        """The flag or the variable that gives a value; empty if neither does."""
        variable = "MINIPULL_" + name.upper()
        given = variable if self.environ.get(variable) else ""
        return given if self.flags.get(name) is None else "--" + name.replace("_", "-")

    def wrong(self, name: str, key: str, wanted: str) -> InvalidReference:
        """The error for a value that does not fit, by the flag, variable or key that has it."""
        return InvalidReference("%s must be %s" % (self.origin(name) or "settings: " + key, wanted))

    def number(self, name: str, default: int, key: str = "") -> int:
        text = self.text(name, str(default), key)
        if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
            raise self.wrong(name, key, "a number from 1")
        return int(text)

    def size(self, name: str, key: str = "") -> int:
        """A size in bytes, given as 4096, 512k, 10M or 1G; 0 if not given."""
        text = self.text(name, "0", key)
        match = re.fullmatch("([0-9]{1,12})([kMG]?)", text)
        if match is None:
            raise self.wrong(name, key, "a size such as 512k or 10M")
        return int(match.group(1)) << {"": 0, "k": 10, "M": 20, "G": 30}[match.group(2)]

    def end(self, side: str) -> "Settings":
        """The settings for one end of a copy, where --src-... or --dest-... wins."""
        own = [name for name in self.flags if name.startswith(side + "_") and self.text(name)]
        flags = dict(self.flags, **{name[len(side) + 1:]: self.text(name) for name in own})
        return Settings(self.environ, flags, self.warn, self.alert)

    @property
    def timeout(self) -> float:
        return float(self.number("timeout", 60))

    @property
    def platform(self) -> Optional[str]:
        return self.text("platform") or self.environ.get("DOCKER_DEFAULT_PLATFORM") or None

    @property
    def root(self) -> str:
        """The path of the store, or of an archive in its place; raises StorageError without a home."""
        data = self.folder("XDG_DATA_HOME", ".local", "share")
        # A bundle is its own store whatever a shell's profile sets, but load takes it out of there.
        bundle = "" if self.flags.get("command") == "load" else carrier()
        root = self.flags.get("root") or bundle or self.text("root") or data and os.path.join(data, "minipull")
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

    def uploads(self) -> "LayerUploadManager":
        from ..xfer.download import MAX_ATTEMPTS
        from ..xfer.upload import LayerUploadManager
        return LayerUploadManager(
            self.number("jobs", JOBS, "max-concurrent-uploads"),
            self.number("attempts", MAX_ATTEMPTS))  # the engine has no key for these

    def verify_keys(self) -> Tuple["Key", ...]:
        """The keys of which one must have signed an image, from files: one a line of the variable."""
        own = self.document.get("verify-key")
        paths = (self.flags.get("verify_key") or self.environ.get("MINIPULL_VERIFY_KEY", "").splitlines()
                 or ([own] if isinstance(own, str) else strings_at(self.document, "verify-key", self.label)))
        if not paths and "verify-key" in self.document:
            raise InvalidReference("%s: verify-key names no key" % self.label)
        keys = []
        for path in paths:
            from ..image.signature import parse_key  # most commands have no key
            data = None if "\0" in path else read_file(path, MAX_FILE)
            if data is None:
                raise InvalidReference("key file '%s' does not exist" % shown(path, 300))
            keys.append(parse_key(data, path))
        return tuple(keys)

    def _read(self, path: Optional[str]) -> Dict[str, Any]:
        """The settings in the file at ``path``, else in the user's, else in the system's."""
        path = path or self.environ.get("MINIPULL_CONFIG")
        own = [os.path.join(self.config_home, "minipull", "config.json")] if self.config_home else []
        for name in [path] if path else [*own, "/etc/minipull/config.json"]:
            data = read_file(name, MAX_FILE)
            if data is not None:
                self.path, self.label = name, shown(name, 300)
                return parse_json(data, self.label)
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
