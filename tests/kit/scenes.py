# SPDX-License-Identifier: Apache-2.0
"""Commands to be killed or cut off, each with what it finds, and what must be whole after it.

A scene is made once in a template, and copied for each try.  Its functions run in a
fork of a process without threads (see tests/kit/crashes).
"""
import base64
import functools
import http.client
import json
import os
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from minipull.archive.check import check_archive
from minipull.cancel import Cancel
from minipull.cli.main import main
from minipull.digest import Digest
from minipull.reference import Reference
from minipull.server.registry import serve
from minipull.store.ingest import Ingest
from minipull.store.store import Store
from tests.kit.crashes import command
from tests.kit.images import Image, Layout, Spec
from tests.kit.stores import keep, problems, text_layer

OLD, NEW = "docker.io/demo/old:1", "docker.io/demo/new:1"
REMOTE = "demo/remote:1"  # at the registry
#: Debris beside a target that the next run may leave, as a regular expression of whole names: none.
ACCEPTED = r"(?!)"


def layout_of(folder: Path) -> Tuple[Layout, Image, Image]:
    """Two images, the first of two layers."""
    layout = Layout(folder)
    one = layout.image([Spec(3000, files=2, seed=1), text_layer("two", compression="")])
    return layout, one, layout.image([text_layer("three")])


def store_of(folder: Path, *names: str) -> Path:
    """A store with the second image of layout_of() as OLD, and the first under ``names``."""
    layout, one, other = layout_of(folder / "made")
    store = Store(str(folder / "store"))
    keep(store, layout, other, OLD)
    for name in names:
        keep(store, layout, one, name)
    blobs = [one.config, *(layer.descriptor for layer in one.layers), one.descriptor]
    (folder / "made" / "one.json").write_text(json.dumps(blobs))
    return folder / "store"


def run(folder: Path, *args: object, **options: bytes) -> Any:
    return command("--root", folder / "store", *args, **options)


def names_of(folder: Path) -> List[str]:
    return [str(image["name"]) for image in json.loads(run(folder, "images", "--format", "json").out)]


def sound(folder: Path, *names: str, absent: Sequence[str] = ()) -> Iterator[str]:
    """The problems of a store that must have the images ``names``, all of them whole."""
    store = Store(str(folder / "store"), timeout=5)
    yield from ("check: %s: %s: %s" % problem for problem in problems(store))
    held = [str(image.name) for image in store.images()]
    for name in [OLD, *names]:
        if name not in held:
            yield "%s is lost" % name
    for name in absent:
        if name in held:
            yield "%s is still there" % name
    for name in held:
        for blob in store.missing(store.image(name).descriptor):
            yield "%s lacks %s" % (name, blob.digest)


def listing(folder: Path) -> Dict[str, Tuple[int, bytes]]:
    """Everything below a directory: mode, and contents or target."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = b""
        if stat.S_ISLNK(status.st_mode):
            data = os.readlink(str(path)).encode()
        elif stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        entries[str(path.relative_to(folder))] = (status.st_mode, data)
    return entries


class Scene(NamedTuple):
    """A command; each function gets the directory that it all happens in.

    ``act`` does the work in this process.  ``between`` yields what is wrong after a kill,
    ``after`` what is wrong after ``again``, which yields what goes wrong in a second run.
    """
    prepare: Callable[[Path, str], object]
    act: Callable[[Path, str], object]
    between: Callable[[Path], Iterator[str]]
    after: Callable[[Path], Iterator[str]]
    again: Callable[[Path, str], Iterator[str]]
    step: int = 3  # every how many-th call of the system is tried
    stdin: bytes = b""
    beside: Tuple[str, ...] = ()  # names that belong beside the store in the end


def of(args: Callable[[Path, str], Sequence[object]], prepare: Callable[[Path, str], object],
       between: Callable[[Path], Iterator[str]], after: Callable[[Path], Iterator[str]], step: int = 3,
       stdin: bytes = b"", beside: Sequence[str] = (),
       allowed: Callable[[Path, int], bool] = lambda folder, code: code == 0) -> Scene:
    """The scene of one command line; ``allowed`` are the exit codes of its second run."""
    def line(folder: Path, host: str) -> List[str]:
        return [str(arg) for arg in ("--root", folder / "store", *args(folder, host))]

    def act(folder: Path, host: str) -> int:
        return main(line(folder, host))

    def again(folder: Path, host: str) -> Iterator[str]:
        ended = command(*line(folder, host), stdin=stdin)
        if not allowed(folder, ended.code):
            yield "the second run: exit %d: %s%s" % ended

    return Scene(prepare, act, between, after, again, step, stdin, tuple(beside))


# -- a file or directory that is made ------------------------------------------------


def saved(folder: Path, name: str = "out.tar") -> Iterator[str]:
    """The problems of FILE: it must be absent, as it was, or whole."""
    path = folder / name
    if path.exists() and path.read_bytes() != b"old":
        try:
            with tarfile.open(str(path)) as tar:
                members = [member.name for member in tar]
        except tarfile.TarError as exc:
            members = [str(exc)]
        broken = check_archive(str(path), Cancel())
        if "index.json" not in members or broken:
            yield "half an archive: %s %s" % (members, broken)


def whole_file(folder: Path) -> Iterator[str]:
    yield from saved(folder)
    if not (folder / "out.tar").exists() or (folder / "out.tar").read_bytes() == b"old":
        yield "no archive"


def unpacked(folder: Path, needed: bool = False) -> Iterator[str]:
    """The problems of DIR: it must be absent, empty or whole."""
    made, expected = listing(folder / "rootfs"), listing(folder / "expected")
    if made != expected and (made or needed):
        yield "DIR is torn: it has %d of %d entries, %d of them differ" % (
            len(made), len(expected), sum(made[name] != expected.get(name) for name in made))


def copied(folder: Path, needed: bool = False) -> Iterator[str]:
    """The problems of an image layout that is copied to."""
    target = folder / "layout"
    if needed or (target / "index.json").exists():
        yield from ("layout: check: %s: %s: %s" % problem for problem in problems(Store(str(target))))
    if needed and '"one"' not in (target / "index.json").read_text():
        yield "layout: no image"


def logged_in(folder: Path, needed: bool = False) -> Iterator[str]:
    """The problems of config.json: it must have the old entry, and the new one or none."""
    path = folder / "config.json"
    auths = json.loads(path.read_text())
    if auths.pop("keep", None) != [1, 2] or auths["auths"].pop("old.example.com", None) != {"auth": "YTpi"}:
        yield "config.json: an old entry is lost"
    entries = list(auths["auths"].values())
    expected = {"auth": base64.b64encode(b"ann:s3cret").decode()}
    if entries not in ([expected], [] if not needed else [expected]):
        yield "config.json: %s" % auths
    if stat.S_IMODE(path.stat().st_mode) != 0o600:
        yield "config.json: others can read it"


def prepare_login(folder: Path, host: str) -> None:
    store_of(folder)
    (folder / "config.json").write_text('{"keep": [1, 2], "auths": {"old.example.com": {"auth": "YTpi"}}}')
    (folder / "config.json").chmod(0o600)


def prepare_unpack(folder: Path, host: str) -> None:
    store_of(folder, NEW)
    assert run(folder, "unpack", NEW, folder / "expected").code == 0


def prepare_gc(folder: Path, host: str) -> None:
    store = Store(str(store_of(folder, NEW, "docker.io/demo/same:1")))
    with Ingest(store.content, Cancel(), Digest.of(b"part"), 4) as ingest:
        ingest.write(b"pa")
    store.remove(Reference.parse(NEW))
    layout = Layout(folder / "made")
    keep(store, layout, layout.image([text_layer("gone"), Spec(3000, files=2, seed=1)]), NEW)
    store.remove(Reference.parse(NEW))


def prepare_load(folder: Path, host: str) -> None:
    store_of(folder, NEW)
    assert run(folder, "save", "-o", folder / "in.tar", NEW).code == 0
    assert run(folder, "rm", NEW).code == 0 and run(folder, "gc", "--keep", 0).code == 0


def prepare_save(folder: Path, host: str) -> None:
    store_of(folder, NEW)
    (folder / "out.tar").write_bytes(b"old")


# -- a push to a server -----------------------------------------------------------------


def push_here(folder: Path, said: Callable[[str], object] = lambda text: None) -> List[int]:
    """Serve the store in this process, and push an image to it in chunks; returns the statuses."""
    *blobs, manifest = json.loads((folder / "made" / "one.json").read_text())
    contents = folder / "made" / "blobs"
    urls: List[str] = []
    listening = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        listening.set()

    server = threading.Thread(target=serve, daemon=True, args=(Store(str(folder / "store")),), kwargs={
        "port": 0, "writable": True, "domain": "docker.io", "ready": ready})
    server.start()
    assert listening.wait(20)
    connection = http.client.HTTPConnection(urls[0][len("http://"):], timeout=30)
    statuses = []

    def ask(method: str, path: str, body: bytes = b"", **headers: str) -> str:
        connection.request(method, path, body, {name.replace("_", "-"): value for name,
                                                value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
        return answer.getheader("Location") or ""

    for n, blob in enumerate(blobs):
        data = contents.joinpath(*blob["digest"].split(":")).read_bytes()
        half = len(data) // 2 if n else len(data)
        place = ask("POST", "/v2/demo/new/blobs/uploads/")
        place = ask("PATCH", place, data[:half])
        ask("PUT", place + "?digest=" + blob["digest"], data[half:])
        said(blob["digest"])
    raw = contents.joinpath(*manifest["digest"].split(":")).read_bytes()
    ask("PUT", "/v2/demo/new/manifests/1", raw, Content_Type=manifest["mediaType"])
    connection.close()
    return statuses  # the server ends with the process


def push_again(folder: Path, host: str) -> Iterator[str]:
    statuses = push_here(folder)
    if statuses[2::3] + statuses[-1:] != [201] * 4:
        yield "the second push: %s" % statuses


def _store_only(*names: str) -> Callable[[Path, str], object]:
    return lambda folder, host: store_of(folder, *names)


def _holds(*names: str, absent: Sequence[str] = ()) -> Callable[[Path], Iterator[str]]:
    return lambda folder: sound(folder, *names, absent=absent)


def _both(*checks: Callable[[Path], Iterator[str]]) -> Callable[[Path], Iterator[str]]:
    return lambda folder: (problem for check in checks for problem in check(folder))


def _removed(folder: Path, code: int) -> bool:
    """rm says so where the killed one had done its work."""
    return code == 0 or code == 3 and NEW not in names_of(folder)


def _unpacked_twice(folder: Path, code: int) -> bool:
    """unpack refuses a directory that the killed one had completed."""
    return code == 0 or code == 9 and not list(unpacked(folder, True))


_SOUND = _holds()
SCENES: Dict[str, Scene] = {
    "tag": of(lambda folder, host: ["tag", OLD, NEW], _store_only(), _SOUND, _holds(NEW), 1),
    "rm": of(lambda folder, host: ["rm", NEW], _store_only(NEW), _SOUND, _holds(absent=[NEW]), 1,
             allowed=_removed),
    "gc": of(lambda folder, host: ["gc", "--keep", "0"], prepare_gc, _holds("docker.io/demo/same:1"),
             _holds("docker.io/demo/same:1"), 1),
    "login": of(lambda folder, host: [
        "login", "--authfile", folder / "config.json", "-u", "ann", "--password-stdin", host],
        prepare_login, logged_in, functools.partial(logged_in, needed=True), 1, b"s3cret\n",
        ["config.json", "config.json.lock"]),
    "pull": of(lambda folder, host: ["pull", "-q", host + "/" + REMOTE], _store_only(), _SOUND, _SOUND),
    "load": of(lambda folder, host: ["load", "-q", "-i", folder / "in.tar"], prepare_load, _SOUND,
               _holds(NEW), beside=["in.tar"]),
    "save": of(lambda folder, host: ["save", "-q", "-o", folder / "out.tar", OLD, NEW], _store_only(NEW),
               _both(_SOUND, saved), _both(_SOUND, whole_file), beside=["out.tar"]),
    "save over": of(lambda folder, host: ["save", "-q", "-o", folder / "out.tar", OLD, NEW], prepare_save,
                    _both(_SOUND, saved), _both(_SOUND, whole_file), beside=["out.tar"]),
    "copy": of(lambda folder, host: [
        "copy", "-q", "docker://%s/%s" % (host, REMOTE), "oci:%s:one" % (folder / "layout")],
        _store_only(), copied, functools.partial(copied, needed=True), beside=["layout"]),
    "copy to archive": of(lambda folder, host: [
        "copy", "-q", "docker://%s/%s" % (host, REMOTE), "oci-archive:%s:one:1" % (folder / "out.tar")],
        _store_only(), saved, whole_file, beside=["out.tar"]),
    "unpack": of(lambda folder, host: ["unpack", "-q", NEW, folder / "rootfs"], prepare_unpack, unpacked,
                 functools.partial(unpacked, needed=True), beside=["rootfs", "expected"],
                 allowed=_unpacked_twice),
    "served upload": Scene(_store_only(), lambda folder, host: push_here(folder), _SOUND, _holds(NEW),
                           push_again)}
