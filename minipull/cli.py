# SPDX-License-Identifier: Apache-2.0
"""The command line: one function a command, and the signals.

Results go to stdout, progress and diagnostics to stderr.  A command runs in a
thread of its own, so that a signal never interrupts code that holds a lock:
the main thread waits, sets the switch, and leaves two seconds later at most.
Modules are imported by the command that needs them; ``--version`` needs none.
"""
import argparse
import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence, Union

from . import __version__

if TYPE_CHECKING:
    from .image import Image
    from .reference import Reference
    from .render import Renderer
    from .repository import Client, Repository
    from .settings import Settings
    from .store import Store
    from .streams import Cancel

GRACE = 2.0  # seconds for a cancelled command to end by itself
BROKEN_PIPE = 128 + 13
DAMAGED = "damaged; rm the images, gc --keep 0, and pull them again"


def run() -> NoReturn:
    """The console script; exits with the code of main()."""
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed from the start
                stream.flush()
        except BrokenPipeError:
            code = code or BROKEN_PIPE
        except (OSError, ValueError):
            code = code or 1
    # Not sys.exit: a cancelled command's threads may still sit in a look-up.
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if list(arguments) == ["--version"]:
        print("minipull %s" % __version__)
        return 0
    try:
        flags = _parser().parse_args(arguments)
    except SystemExit as exc:
        return int(exc.code or 0)
    from .streams import Cancel

    cancel = Cancel()
    codes: List[int] = []
    done = threading.Event()

    def work() -> None:
        try:
            codes.append(_guarded(flags, cancel))
        finally:
            done.set()

    signals: List[int] = []
    before: Dict[int, Any] = {}

    def caught(number: int, frame: object) -> None:
        if signals:
            os._exit(128 + number)
        if not done.is_set():
            signals.append(number)
            raise InterruptedError

    try:
        # Only the main thread may, and a program that embeds us keeps its own.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, caught)
        threading.Thread(target=work, name="command", daemon=True).start()
        done.wait()
    except InterruptedError:
        cancel.cancel()
        done.wait(GRACE)
        return 128 + signals[0]
    finally:
        for which, handler in before.items():
            signal.signal(which, handler or signal.SIG_DFL)
    return codes[0]


def _guarded(flags: argparse.Namespace, cancel: "Cancel") -> int:
    """The command, with every error as one line and a code."""
    context = _Context(flags, cancel)
    try:
        with context:
            code: int = flags.function(context, flags)
        return code
    except BaseException as exc:
        return context.failed(exc)


class _Context:
    """What commands share: settings, progress, the switch."""

    def __init__(self, flags: argparse.Namespace, cancel: "Cancel") -> None:
        self.cancel = cancel
        self.json = flags.format == "json"
        self._flags = flags
        self._renderer: Optional["Renderer"] = None
        self._settings: Optional["Settings"] = None

    def __enter__(self) -> "_Context":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._renderer is not None:
            self._renderer.finish()

    @property
    def settings(self) -> "Settings":
        if self._settings is None:
            from .settings import Settings

            self._settings = Settings(os.environ, vars(self._flags), self.warn)
        return self._settings

    @property
    def renderer(self) -> "Renderer":
        if self._renderer is None:
            from .render import choose

            mode = self.settings.text("progress", "auto")
            if self.quiet and not self._flags.progress:
                mode = "none"
            self._renderer = choose(mode, sys.stderr, os.environ)
        return self._renderer

    @property
    def quiet(self) -> bool:
        return self.settings.truth("quiet")

    @property
    def store(self) -> "Store":
        return self.settings.store()

    @contextlib.contextmanager
    def client(self, domains: List[str]) -> Iterator["Client"]:
        from .repository import Client

        with Client(self.settings.service(), self.settings.credentials(domains)) as client:
            yield client

    def warn(self, text: str) -> None:
        from .progress import Progress

        self.renderer(Progress(message="warning: " + text))

    def failed(self, error: BaseException) -> int:
        """Say what went wrong, in one line; returns the exit code."""
        from .errors import Error

        if isinstance(error, BrokenPipeError):
            # Whoever read us has gone; what is still buffered must not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        if self._flags.verbose:
            traceback.print_exception(type(error), error, error.__traceback__)
        if isinstance(error, Error):
            if not self.cancel.cancelled:
                _say(str(error))
            return error.exit_code
        hint = "" if self._flags.verbose else " (run with -v for the traceback)"
        _say("internal error: %s: %s%s" % (type(error).__name__, error, hint))
        return 1

    def show(self, text: str) -> None:
        """Lines of the result; what came from outside is escaped."""
        from .render import escape

        self.write("\n".join(escape(line) for line in text.split("\n")) + "\n")

    def dump(self, value: Any) -> None:
        self.write(json.dumps(value, indent=2) + "\n")

    def write(self, data: Union[str, bytes]) -> None:
        """Write to stdout at once, so that progress does not overtake results."""
        from .errors import StorageError

        if sys.stdout is None:  # closed from the start
            return
        try:
            if isinstance(data, bytes):
                sys.stdout.buffer.write(data)
            else:
                # Not every stream can spell everything.
                encoding = sys.stdout.encoding or "utf-8"
                sys.stdout.write(data.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise StorageError("write to stdout: %s" % exc.strerror) from exc


def _say(text: str) -> None:
    from .render import escape

    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("minipull: " + escape("; ".join(text.splitlines())), file=sys.stderr, flush=True)


# Commands on registries.


def _pull(context: _Context, flags: argparse.Namespace) -> int:
    from .distribution import options, over_endpoints, pull_with
    from .errors import InvalidReference
    from .pull_v2 import Pulled
    from .reference import Reference

    names = [_reference(name) for name in flags.refs]
    quiet = context.quiet and not context.json
    text = not (context.json or quiet)
    platform = flags.platform if flags.all_platforms else context.settings.platform
    wanted = options(platform, flags.all_platforms, context.settings.truth("foreign"))
    for name in names:
        if flags.all_tags and (name.tag or name.digest):
            raise InvalidReference("tag can't be used with --all-tags/-a")
        if text and not flags.all_tags and not name.tag and not name.digest:
            context.show("Using default tag: latest")
    store, downloads, output = context.store, context.settings.downloads(), context.renderer
    results: Dict[Reference, List[Pulled]] = {name: [] for name in names}
    errors: Dict[Reference, BaseException] = {}

    with context.client([name.domain for name in names]) as client:

        def one(name: Reference) -> None:
            try:
                found = [name]
                if flags.all_tags:
                    what = "list tags of %s" % name.name
                    tags = over_endpoints(
                        client, name, what, lambda source: source.tags(context.cancel), context.cancel
                    )
                    found = [name.with_tag(tag) for tag in tags]
                for each in found:
                    results[name].append(
                        pull_with(client, each, store, downloads, wanted, output, context.cancel))
            except BaseException as exc:
                errors[name] = exc

        threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    output.finish()
    shown = []
    for name, pulled in results.items():
        for image, updated in pulled:
            if quiet:
                context.show(str(image))
            elif context.json:
                shown.append(dict(_row(store, image), updated=updated))
            else:
                context.show("Digest: %s" % image.source)
        if text and name not in errors:
            news = any(each.updated for each in pulled)
            status = "Downloaded newer image for" if news else "Image is up to date for"
            whole = name if flags.all_tags else name.docker_ref()
            context.show("Status: %s %s\n%s" % (status, whole.familiar, whole))
    if context.json:
        context.dump(shown)
    failed = [context.failed(errors[name]) for name in results if name in errors]
    return failed[0] if failed else 0


def _ask(
    context: _Context, name: "Reference", what: str, work: "Callable[[Repository], Any]"
) -> Any:
    from .distribution import over_endpoints

    with context.client([name.domain]) as client:
        return over_endpoints(client, name, "%s %s" % (what, name), work, context.cancel)


def _tags(context: _Context, flags: argparse.Namespace) -> int:
    from .errors import InvalidReference

    name = _reference(flags.repo)
    if name.tag or name.digest:
        raise InvalidReference("%s: want a repository, without tag or digest" % name.familiar)
    tags = _ask(context, name, "list tags of", lambda source: source.tags(context.cancel))
    if context.json:
        context.dump([{"name": str(name.with_tag(tag)), "tag": tag} for tag in tags])
    else:
        for tag in tags:
            context.show(tag)
    return 0


def _manifest(context: _Context, flags: argparse.Namespace) -> int:
    from . import manifest

    name = _reference(flags.ref).docker_ref()
    wanted = str(name.digest or name.tag)
    received = _ask(
        context, name, "manifest", lambda source: source.manifest(wanted, context.cancel))
    if not context.json:
        if sys.stdout is not None and sys.stdout.isatty():
            context.show(received.raw.decode("utf-8", "replace"))
        else:
            context.write(received.raw)
        return 0
    document = manifest.parse(received.raw, received.content_type)
    context.dump({
        "name": str(name), "digest": received.digest, "media_type": document.media_type,
        "size": len(received.raw), "manifest": json.loads(received.raw.decode())})
    return 0


def _digest(context: _Context, flags: argparse.Namespace) -> int:
    name = _reference(flags.ref).docker_ref()
    wanted = str(name.digest or name.tag)

    def ask(source: "Repository") -> str:
        found = None if name.digest else source.resolve(wanted, context.cancel)
        return str(found or source.manifest(wanted, context.cancel).digest)

    digest = _ask(context, name, "digest of", ask)
    if context.json:
        context.dump({"name": str(name), "digest": digest})
    else:
        context.show(digest)
    return 0


# Commands on the store.


def _images(context: _Context, flags: argparse.Namespace) -> int:
    store = context.store
    with store.using(context.cancel):
        rows = [_row(store, image) for image in store.images()]
    if context.json:
        context.dump(rows)
        return 0
    from .render import human_size

    table = [("NAME", "IMAGE ID", "PLATFORM", "CREATED", "SIZE")]
    for row in rows:
        short = row["image_id"].partition(":")[2][:12]
        size = human_size(row["size"])
        table.append((row["name"], short, row["platform"] or "-", row["created"][:10] or "-", size))
    widths = [max(len(line[column]) for line in table) for column in range(4)] + [0]
    for line in table:
        context.show("   ".join(cell.ljust(width) for cell, width in zip(line, widths)))
    return 0


def _inspect(context: _Context, flags: argparse.Namespace) -> int:
    from .manifest import Manifest

    store = context.store
    with store.using(context.cancel):
        image = store.image(_stripped(flags.ref))
        document = store.document(image.descriptor)
        shown = dict(_row(store, image), source=image.source, media_type=document.media_type)
        if isinstance(document, Manifest):
            diff_ids: Sequence[Optional[str]] = image.config.diff_ids if image.config else ()
            shown["layers"] = [
                dict(layer.to_json(), diff_id=diff_id)
                for layer, diff_id in zip(
                    document.layers, list(diff_ids) + [None] * len(document.layers))]
            shown["config"] = json.loads(image.config.raw.decode()) if image.config else None
        else:
            shown["manifests"] = [child.to_json() for child in document.manifests]
    context.dump(shown)
    return 0


def _tag(context: _Context, flags: argparse.Namespace) -> int:
    store = context.store
    with store.using(context.cancel):
        image = store.image(_stripped(flags.source))
        name = _reference(flags.target).with_default_tag()
        store.tag(name, image, context.cancel)
        if context.json:
            context.dump([_row(store, image._replace(name=name))])
    return 0


def _rm(context: _Context, flags: argparse.Namespace) -> int:
    store = context.store
    removed = []
    for text in flags.refs:
        name = store.image(_stripped(text)).name if _is_id(text) else _reference(text).docker_ref()
        store.remove(name, context.cancel)
        removed.append({"name": str(name)})
        if not context.json:
            context.show("Untagged: %s" % name.familiar)
    if context.json:
        context.dump(removed)
    return 0


def _gc(context: _Context, flags: argparse.Namespace) -> int:
    from .collect import gc
    from .errors import InvalidReference
    from .render import human_size

    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", flags.keep)
    if match is None:
        raise InvalidReference("--keep must be a time such as 0, 90s, 30m, 24h or 7d")
    keep = int(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
    collected = gc(context.store, keep, context.cancel)
    if context.json:
        context.dump({"deleted": collected.blobs, "size": collected.size})
        return 0
    for digest in collected.blobs:
        context.show("Deleted: %s" % digest)
    context.show("Total reclaimed space: %s" % human_size(collected.size))
    return 0


def _check(context: _Context, flags: argparse.Namespace) -> int:
    from .check import UNVERIFIED, check
    from .errors import StorageError

    store = context.store
    tops = [store.image(_stripped(name)).descriptor for name in flags.refs]
    problems = check(store, context.cancel, tops)
    ok = all(problem.kind == UNVERIFIED for problem in problems)
    if context.json:
        context.dump({"ok": ok, "problems": [problem._asdict() for problem in problems]})
    else:
        for problem in problems:
            context.show("%s: %s: %s" % problem)
        context.show("%s: %s" % (store.root, "ok" if ok else DAMAGED))
    return 0 if ok else StorageError.exit_code


def _stripped(text: str) -> str:
    return text[len("docker://"):] if text.startswith("docker://") else text


def _is_id(text: str) -> bool:
    return re.fullmatch(r"sha256:[0-9a-f]{6,64}|[0-9a-f]{12,64}", text) is not None


def _reference(text: str) -> "Reference":
    from .errors import InvalidReference
    from .reference import Reference

    try:
        return Reference.parse(_stripped(text))
    except InvalidReference as exc:
        raise exc.within(ascii(text)[1:-1][:300] or "''") from exc


def _row(store: "Store", image: "Image") -> Dict[str, Any]:
    config = image.config
    return {
        "name": str(image.name),
        "digest": image.source,
        "image_id": image.id,
        "platform": str(config.platform) if config else "",
        "size": store.size(image.descriptor),
        "created": config.created if config else ""}


# The parser.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line here too."""
        _say("%s; see %s --help" % (message, self.prog))
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minipull", allow_abbrev=False,
        description="Pull container images with nothing but Python's standard library.",
        epilog="example: minipull pull alpine:3.20")
    parser.add_argument("--version", action="version", version="minipull %s" % __version__)
    parser.add_argument("--root", metavar="DIR", help="where the store is")
    parser.add_argument("--config", metavar="FILE", help="settings file")
    parser.add_argument("-v", "--verbose", action="store_true", help="tracebacks for errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    network = _Parser(add_help=False, allow_abbrev=False)
    group = network.add_argument_group("network")
    group.add_argument("--creds", metavar="USER[:PASS]", help="for the reference's own registry")
    group.add_argument("--registry-token", metavar="TOKEN", help="sent as it is")
    group.add_argument("--authfile", metavar="FILE", help="the only file of credentials to read")
    group.add_argument("--tls-verify", metavar="BOOL", help="false: trust any certificate")
    group.add_argument("--plain-http", action="store_true", default=None, help="no TLS at all")
    group.add_argument("--ca-file", metavar="FILE", help="certificates to trust besides the system's")
    group.add_argument("--header", metavar="K:V", action="append", help="sent with every request")
    group.add_argument("--timeout", metavar="SECONDS", help="without progress (60)")
    group.add_argument("-q", "--quiet", action="store_true", default=None, help="no progress")
    group.add_argument("--progress", metavar="MODE", help="auto, tty, plain, json or none")

    def command(
        name: str, function: Callable[..., int], help: str, example: str, remote: bool = False
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=help, description=help, allow_abbrev=False,
            epilog="example: minipull " + example, parents=[network] if remote else [])
        made.add_argument("--format", choices=("text", "json"), default="text")
        made.set_defaults(function=function)
        return made

    made = command("pull", _pull, "store images from a registry", "pull alpine:3.20", True)
    made.add_argument("refs", metavar="REF", nargs="+")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this host's")
    made.add_argument("--all-platforms", action="store_true", help="the index and all that is in it")
    made.add_argument("-a", "--all-tags", action="store_true", help="every tag of the repository")
    made.add_argument("--foreign", action="store_true", default=None,
                      help="fetch layers from the URLs that a manifest names")
    made.add_argument("--jobs", metavar="N", help="downloads at once (6)")
    made.add_argument("--attempts", metavar="N", help="tries for one layer (5)")
    made = command("tags", _tags, "list the tags of a repository", "tags alpine", True)
    made.add_argument("repo", metavar="REPO")
    made = command("manifest", _manifest, "print a manifest as it is", "manifest alpine:3.20", True)
    made.add_argument("ref", metavar="REF")
    made = command("digest", _digest, "print what a tag points to", "digest alpine:3.20", True)
    made.add_argument("ref", metavar="REF")
    command("images", _images, "list the stored images", "images --format json")
    made = command("inspect", _inspect, "show a stored image", "inspect alpine:3.20")
    made.add_argument("ref", metavar="REF")
    made = command("tag", _tag, "name a stored image", "tag alpine:3.20 localhost:5000/alpine:3.20")
    made.add_argument("source", metavar="SRC")
    made.add_argument("target", metavar="DST")
    made = command("rm", _rm, "forget names of stored images", "rm alpine:3.20")
    made.add_argument("refs", metavar="REF", nargs="+")
    made = command("gc", _gc, "delete what no name needs", "gc --keep 0")
    made.add_argument("--keep", metavar="TIME", default="24h", help="spare what is younger (24h)")
    made = command("check", _check, "hash the store again, down to DiffIDs", "check")
    made.add_argument("refs", metavar="REF", nargs="*")
    return parser
