# SPDX-License-Identifier: Apache-2.0
"""Context: settings, store, progress and output of one command.

Results go to stdout, progress and diagnostics to stderr; text from outside is
escaped before it reaches a terminal.
"""
import argparse
import contextlib
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Optional, TypeVar, Union

from ..cancel import Cancel
from ..digest import Buffer
from ..errors import (
    ContentMismatch, Error, InvalidDocument, InvalidReference, NotFound, NotStored, PolicyError, StorageError,
    escape, one_line, shown, within)
from ..files import write_file
from ..image.config import Image
from ..parts import part
from ..progress import Progress
from ..reference import DEFAULT_DOMAIN, Reference
from ..store.store import ImageSource, Store
from .lines import explained, say
from .settings import Settings

if TYPE_CHECKING:
    from ..registry.client import Client
    from ..registry.network import Connected, Network
    from ..registry.v2 import Repository
    from .access import Access
    from .render import JSON, Renderer

BROKEN_PIPE = 128 + 13
_REMOTE = ("check", "inspect")  # commands that take an image of the store or docker://REF
_STORED = ("history", "push", "save")  # and those that take one of the store alone
S = TypeVar("S", bound=ImageSource)
T = TypeVar("T")


class Context:
    def __init__(self, flags: argparse.Namespace, cancel: Cancel) -> None:
        self.cancel = cancel
        self.json = flags.format == "json"
        self._flags = flags
        self._renderer: Optional["Renderer"] = None
        self._finished = False  # so the last line of the progress stands
        self._settings: Optional[Settings] = None
        self._source: Optional[ImageSource] = None
        self._network: Optional["Network"] = None
        self._connections: Dict[str, "Connected"] = {}
        self.resources = contextlib.ExitStack()  # closed when the command ends

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings(os.environ, vars(self._flags), self.warn, self.alert)
            if self._settings.document:
                from .effective import unknown_keys
                for text in unknown_keys(self._settings.document, shown(self._settings.path, 300)):
                    self.alert(text)
        return self._settings

    @property
    def access(self) -> "Access":
        """Registries and credentials, of which commands on the store need none."""
        from .access import Access
        return Access(self.settings)

    @property
    def renderer(self) -> "Renderer":
        if self._renderer is None:
            from .render import choose
            mode = self.settings.text("progress", "auto")
            if self.quiet and not vars(self._flags).get("progress"):
                mode = "none"
            self._renderer = choose(mode, sys.stderr, os.environ)
        return self._renderer

    @property
    def stream(self) -> Optional["JSON"]:
        """The engine's stream, if stderr is that: then nothing else stands on it.

        It needs no settings, which may be what failed; -q leaves only what isn't progress of it.
        """
        mode = vars(self._flags).get("progress") or os.environ.get("MINIPULL_PROGRESS")
        if self._renderer is None and mode != "json":
            return None
        from .render import JSON
        return self._renderer if isinstance(self._renderer, JSON) else JSON(sys.stderr) if mode == "json" else None

    def status(self, *lines: str) -> None:
        """Add lines of the result to the engine's stream, which is to be whole."""
        for line in lines if self.stream else ():
            self.renderer(Progress(message=line))

    @property
    def quiet(self) -> bool:
        return self.settings.truth("quiet")

    @property
    def source(self) -> ImageSource:
        """The store or archive to read; that other users may change it is told, once, or refused."""
        if self._source is None:
            store = self.settings.store()
            in_archive = os.path.isfile(store.root)
            if os.path.exists(store.root) and not os.path.isdir(store.root) and not in_archive:
                raise StorageError("%s is neither a directory nor a file; choose another --root" % store.root)
            exposure = store.exposure()
            text = "other users may change the store %s: %s" % (store.root, exposure)
            if exposure and self.settings.truth("strict_store", key="strict-store"):
                raise PolicyError(text + "; choose another --root")
            if exposure:
                self.alert(text)
            self._source = self.archive(store.root, in_place=True) if in_archive else store
        return self._source

    def archive(self, path: str, in_place: bool = False) -> ImageSource:
        """Open an archive until the command ends; raises StorageError, InvalidDocument."""
        zstd = self.settings.store().layers.zstd
        with within("archive %s" % path, ContentMismatch, InvalidDocument, PolicyError):
            archive: ImageSource = self.resources.enter_context(part("archive.reader").opened(
                path, self.cancel, zstd, warn=self.warn, in_place=in_place))
        return archive

    @property
    def store(self) -> Store:
        """The store, to be written to; raises StorageError where --root names an archive."""
        return self.source.writable

    def existing(self, source: S, needed: bool = False) -> S:
        """Return the source of a command that shows it; --root may be mistyped, so it is told if there is none.

        Raises NotFound if one is ``needed``: of nothing, nobody wants to hear that it is whole.
        """
        if needed and not source.exists():
            raise NotFound("there is no store at %s" % source.root)
        if self.settings.text("root") and not os.path.exists(source.root):
            self.warn("there is no store at %s" % source.root)
        return source

    def client(self, domains: List[str], side: str = "") -> "Client":
        """A client for the registries at ``domains``; ``side`` is the end of a copy: src or dest."""
        from ..registry.client import Client
        from .access import Access
        settings = self.settings.end(side) if side else self.settings
        if settings.truth("legacy_v1"):
            self.require("registry.v1")
        access = Access(settings)
        return Client(access.service(domains, self.network), access.credentials(domains))

    def ask(self, name: Reference, subject: str, question: Callable[["Repository"], T],
            client: Optional["Client"] = None, push: bool = False) -> T:
        """Return the answer of the first endpoint that has one; ``subject`` begins the text of errors."""
        from ..distribution.ask import ask
        with contextlib.ExitStack() as stack:
            asker = client or stack.enter_context(self.client([name.domain]))
            return ask(asker, name, subject, question, self.renderer, self.cancel, push)

    @property
    def network(self) -> "Network":
        """The network that all clients of the command share; with -v its connections are told."""
        if self._network is None:
            self._network = self.access.network(self._connected if self._flags.verbose else None)
        return self._network

    def _connected(self, connected: "Connected") -> None:
        if self._connections.setdefault(str(connected), connected) is connected:
            self.alert(str(connected), "")

    def quota(self, name: Reference) -> Dict[str, Any]:
        """The member of JSON output for the pulls that a registry still allows, if it has told."""
        from ..registry.network import HUB_HOST
        quota = self.network.quotas.get(HUB_HOST if name.domain == DEFAULT_DOMAIN else name.domain)
        return {"quota": quota._asdict()} if quota else {}

    def require(self, module: str) -> None:
        """Fail before any request where a build lacks a module that a flag asks for."""
        importlib.import_module(".." + module, __package__)

    def warn(self, text: str) -> None:
        self.renderer(Progress(message="warning: " + text))

    def alert(self, text: str, kind: str = "warning: ") -> None:
        """Warn, or print a line of another ``kind``, also where progress is not shown."""
        if self.stream or self.quiet or self.settings.text("progress") == "none":
            self.log(kind + text)
        else:
            self.renderer(Progress(message=kind + text))

    def tell_traffic(self) -> None:
        """Print the bytes and the quota of each host that was asked, if the user wants details."""
        if self._network is not None and self._flags.verbose:
            for host, (received, sent) in sorted(self._network.traffic.items()):
                quota = "; %s" % (self._network.quotas[host],) if host in self._network.quotas else ""
                self.alert("%s: %d bytes in, %d bytes out%s" % (host, received, sent, quota), "")

    def finish(self, interrupted: bool = False) -> None:
        """Draw the last line of the progress, if there was any; of many images that an interrupt ends, once."""
        if self._renderer is not None and not self._finished:
            self._finished = True
            self._renderer.finish(interrupted)

    def _leave_progress(self) -> None:
        if self._renderer is not None:
            self._renderer.leave()

    def failed(self, error: BaseException) -> int:
        """Print an error as one line; returns the exit code."""
        self._leave_progress()
        if isinstance(error, BrokenPipeError):
            # The reader of stdout has gone; the flush of its buffer at exit must not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        if self._flags.verbose:
            import traceback
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            for line in trace.splitlines():
                if self.stream:
                    self.stream.emit(status=line)
                else:
                    print(escape(line), file=sys.stderr)
        command = self._flags.command
        error = explained(error, command)
        if isinstance(error, NotStored) and error.name and command in _REMOTE:
            error = error.reworded("%s; docker://%s asks the registry" % (error, error.name))
        elif isinstance(error, NotStored) and error.name and command in _STORED:
            error = error.reworded("%s; pull it first" % error)
        if isinstance(error, Error):
            if not self.cancel.cancelled:
                self.log(str(error), error.exit_code)
            elif self.stream and not self._finished:
                self._finished = True
                self.stream.interrupted(vars(self._flags).get("interrupt", error.exit_code))
            else:
                self.finish(interrupted=True)
            return error.exit_code
        hint = "" if self._flags.verbose else " (run with -v for the traceback)"
        self.log("internal error: %s: %s%s" % (type(error).__name__, error, hint), 1)
        return 1

    def log(self, text: str, code: int = 0) -> None:
        """Print a line that is no progress, whether that is shown or not; with a ``code`` the command has failed."""
        stream = self.stream
        if stream and code:
            stream.failed(one_line(text), code)
        elif stream:
            stream.emit(status=text)
        else:
            say(text)

    def show(self, text: str) -> None:
        """Print lines of the result, with control characters escaped."""
        self.write("\n".join(escape(line) for line in text.split("\n")) + "\n")

    def answer(self, value: Any, lines: Iterable[str]) -> None:
        """Print the result: the value as JSON, if need be of the rows of an iterator, or each text as one line."""
        if self.json:
            self.dump(list(value) if isinstance(value, Iterator) else value)
        else:
            self.write("".join(escape(line) + "\n" for line in lines))

    def show_document(self, raw: bytes) -> None:
        """Print a document of a registry, byte for byte but on a terminal."""
        if sys.stdout is not None and sys.stdout.isatty():
            self.show(raw.decode("utf-8", "replace"))
        else:
            self.write(raw)

    def dump(self, value: Any) -> None:
        self.write(json.dumps(value, indent=2) + "\n")

    def tar_writer(self, path: Optional[str], kind: str) -> Callable[[Iterator[Buffer]], None]:
        """Return the writer of a tar to a file, which it replaces in one step, or to stdout for none and for -.

        Raises InvalidReference for a terminal, and for a name that promises a compression.
        """
        if path and path != "-":
            from ..store.compression import packing
            file, pack = path, packing(path)
            return lambda pieces: write_file(file, pack(pieces))
        if sys.stdout is not None and sys.stdout.isatty():
            raise InvalidReference("refusing to write %s to a terminal; redirect stdout or give -o FILE" % kind)
        return self.write

    def write(self, data: Union[str, bytes, Iterator[Buffer]]) -> None:
        """Write to stdout and flush: progress on stderr must not overtake results."""
        self._leave_progress()
        if sys.stdout is None:  # closed from the start
            if not isinstance(data, (str, bytes)):
                raise StorageError("write to stdout: it is closed")
            return
        try:
            if isinstance(data, str):
                # The encoding of stdout may lack characters (LC_ALL=C).
                encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
                sys.stdout.write(data.encode(encoding, "backslashreplace").decode(encoding))
            elif not hasattr(sys.stdout, "buffer"):  # a program that embeds us has replaced it
                raise StorageError("write to stdout: it takes text alone")
            else:
                for piece in [data] if isinstance(data, bytes) else data:
                    sys.stdout.buffer.write(piece)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise StorageError("write to stdout: %s" % exc.strerror) from exc


def perform(flags: argparse.Namespace, cancel: Cancel) -> int:
    """Run the command that ``flags`` name, with every error as one line; returns the exit code."""
    context = Context(flags, cancel)
    try:
        with context.resources:
            module = importlib.import_module("." + flags.module, __package__)
            code: Optional[int] = getattr(module, "do_" + flags.command)(context, flags)
        if not code:
            context.finish()
    except BaseException as exc:
        code = context.failed(exc)
    context.tell_traffic()
    return code or 0


def stripped(text: str) -> str:
    """A reference as typed, without the ``docker://`` that skopeo puts before it."""
    return text[len("docker://"):] if text.startswith("docker://") else text


def reference(text: str) -> Reference:
    """Parse a reference as typed; raises InvalidReference, which quotes it."""
    with within(shown(text, 300) or "''", InvalidReference):
        return Reference.parse(stripped(text))


def described(store: ImageSource, image: Image, size: Optional[int] = None) -> Dict[str, Any]:
    """The members of an image in JSON output; its ``size`` if that is known."""
    config = image.config
    return {
        "name": str(image.name), "digest": image.source, "image_id": image.id,
        "platform": str(config.platform) if config else "",
        "size": store.size(image.descriptor) if size is None else size, "created": config.created if config else ""}
