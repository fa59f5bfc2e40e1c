# SPDX-License-Identifier: Apache-2.0
"""An archive as --root: what reads works in place, and what would write says read-only."""
import bz2
import gzip
import lzma
import os
import threading
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

import pytest

import minipull
from tests.kit.archives import docker_members, pack
from tests.kit.commands import Call, is_sound
from tests.kit.images import Layout, Spec
from tests.kit.processes import Serve, interpreters
from tests.kit.servers import ScriptedServer, Uploads
from tests.kit.site import snapshot
from tests.kit.stores import keep_index, multi, text_layer
from minipull.store.store import host_platform

ONE, MANY = "docker.io/demo/one:1", "r.example.com/many:3"


class Kept(NamedTuple):
    """Two images in a store, and an archive of all of it."""
    store: Path
    archive: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    store = minipull.Store(str(folder / "store"))
    layout = Layout(folder / "one")
    keep_index(store, layout, layout.image(
        [text_layer("hello\n"), Spec(entries=[("bin", None), ("bin/a", b"a" * 100000)], compression="")],
        platform=str(host_platform())), ONE)
    layout, index, _ = multi(folder / "many")
    keep_index(store, layout, index, MANY)
    minipull.save([ONE, MANY], store, str(folder / "all.tar"))
    return Kept(folder / "store", folder / "all.tar")


@pytest.fixture
def archive(kept: Kept, tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(kept.archive.read_bytes())
    return path


READ: List[Tuple[str, int]] = [
    ("images", 0), ("images --format json", 0), ("inspect demo/one:1", 0), ("inspect " + MANY, 0),
    ("cat demo/one:1 /etc/motd", 0), ("export demo/one:1", 0), ("save demo/one:1 " + MANY, 0),
    ("unpack -q demo/one:1 rootfs", 0), ("copy -q store:demo/one:1 oci:layout:x", 0),
    ("copy -q store:demo/one:1 oci-archive:copy.tar:demo/one:1", 0),
    ("save -o save.tar " + MANY, 0), ("copy -q --platform linux/arm64 store:%s oci:layout:y" % MANY, 0),
    ("inspect nope", 3), ("save nope", 3), ("cat demo/one:1 /nope", 3), ("copy store:nope oci:layout", 3),
    ("push nope", 3), ("check nope", 3), ("save UPPER", 2), ("cat a//b /x", 2), ("serve --listen x", 2)]


def words_of(line: str) -> List[str]:
    return line.split(" ")


@pytest.mark.parametrize("line, code", READ, ids=[line for line, _ in READ])
def test_a_command_that_reads_answers_from_an_archive_as_from_its_store(
        call: Call, kept: Kept, home: Path, line: str, code: int) -> None:
    results, trees = [], []
    for number, root in enumerate(kept):
        before, folder = snapshot(kept.archive.parent), home / str(number)
        folder.mkdir()
        os.chdir(str(folder))
        done = call("--root", root, *words_of(line), env={"MINIPULL_ROOT": ""})
        results.append((done.code, done.out, done.err.replace(str(root), "ROOT") if done.code else ""))
        trees.append({path[len(str(folder)):]: data for path, data in snapshot(folder).items()
                      if not path.endswith("lock")})
        assert snapshot(kept.archive.parent) == before
    assert results[0] == results[1] and trees[0] == trees[1]
    assert results[1][0] == code and "internal" not in results[1][2]


WRITE = [
    "pull 127.0.0.1:1/x", "load -i ARCHIVE", "tag demo/one:1 x:2", "rm demo/one:1", "gc", "check --repair",
    "check --repair demo/one:1", "copy oci-archive:ARCHIVE:demo/one:1 store:y", "copy store:demo/one:1 store:y",
    "copy docker://127.0.0.1:1/x store:y", "serve --writable --listen 127.0.0.1:0", "unpack 127.0.0.1:1/x rootfs",
    "export 127.0.0.1:1/x", "cat 127.0.0.1:1/x /y", "unpack --platform linux/s390x demo/one:1 rootfs"]


@pytest.mark.parametrize("line", WRITE)
def test_a_command_that_would_write_into_an_archive_says_so_in_one_line(
        call: Call, archive: Path, home: Path, line: str) -> None:
    before = archive.read_bytes()
    done = call(*words_of(line.replace("ARCHIVE", str(archive))),
                env={"MINIPULL_ROOT": str(archive), "MINIPULL_QUIET": "1"})
    assert (done.code, done.out) == (7, "")
    assert done.line.endswith("%s is an archive, and read-only; choose another --root\n" % archive)
    assert archive.read_bytes() == before and os.listdir(str(home)) == []
    assert sorted(os.listdir(str(archive.parent))) == ["a.tar", "home"]


def test_an_image_that_an_archive_lacks_is_named(call: Call, archive: Path) -> None:
    done = call("--root", archive, "cat", "127.0.0.1:1/x:2", "/y")
    assert done.line == "minipull: No such image: 127.0.0.1:1/x:2: %s is an archive, and read-only;" \
                        " choose another --root\n" % archive


Make = Callable[[Path, bytes], object]


def file(change: Callable[[bytes], bytes]) -> Make:
    return lambda path, data: path.write_bytes(change(data))


def linked(path: Path, data: bytes) -> None:
    path.with_name("real").write_bytes(data)
    path.symlink_to("real")


#: What --root may name: how it is made of an archive, the exit code of images, check, and a command
#: that writes, and the words of their only line.
ROOTS: Dict[str, Tuple[Make, Tuple[int, int, int], str]] = {
    "an archive": (file(lambda data: data), (0, 0, 7), ""),
    "an archive before a zip": (file(lambda data: data + b"PK\3\4" + os.urandom(5000)), (0, 0, 7), ""),
    "a link to an archive": (linked, (0, 0, 7), ""),
    "a directory with the name of an archive": (lambda path, data: path.mkdir(), (0, 3, 0), ""),
    "a FIFO": (lambda path, data: os.mkfifo(str(path)), (7, 7, 7), "is neither a directory nor a file"),
    "a device": (lambda path, data: path.symlink_to("/dev/null"), (7, 7, 7), "is neither a directory nor a file"),
    "an empty file": (file(lambda data: b""), (6, 6, 6), "there is no image in it"),
    "a text": (file(lambda data: b"text\n"), (6, 6, 6), "tar: the stream is cut short"),
    "noise": (file(lambda data: b"\1\2\3" * 5000), (6, 6, 6), "checksum"),
    "a part": (file(lambda data: data[:9000]), (6, 6, 6), "cut short"),
    "gzip": (file(gzip.compress), (7, 7, 7), "is compressed, so it can't be read in place"),
    "xz": (file(lzma.compress), (7, 7, 7), "is compressed, so it can't be read in place"),
    "bzip2": (file(bz2.compress), (7, 7, 7), "is compressed, so it can't be read in place"),
    "zstd": (file(lambda data: b"\x28\xb5\x2f\xfd\0\0"), (7, 7, 7), "is compressed, so it can't be read in place")}


@pytest.mark.parametrize("name", list(ROOTS))
def test_a_root_is_a_directory_or_an_archive_or_refused_in_one_line(
        call: Call, kept: Kept, tmp_path: Path, name: str) -> None:
    make, codes, text = ROOTS[name]
    path = tmp_path / "x.tar"
    make(path, kept.archive.read_bytes())
    for line, code in zip(("images", "check", "gc"), codes):
        done = call("--root", path, line)
        assert done.code == code, done.err
        if code == 3:
            assert (done.out, done.line) == ("", "minipull: there is no store at %s\n" % path)
            continue
        assert text in (done.out.splitlines()[0] if line == "check" and code == 6 else done.err)
        assert code == 0 or str(path) in done.err + done.out
        assert code in (0, 6) and line == "check" or done.err.count("\n") == (code > 0)


def test_a_file_that_may_not_be_read_is_one_line(call: Call, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.chmod(0)
    if os.geteuid() == 0:  # who may read all
        monkeypatch.setattr("builtins.open", denied(archive, open))
    done = call("--root", archive, "images")
    assert (done.code, done.line) == (7, "minipull: open %s: Permission denied\n" % archive)


def denied(path: Path, call: Callable[..., object]) -> Callable[..., object]:
    def refuse(name: object, *args: object, **options: object) -> object:
        if name == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return call(name, *args, **options)
    return refuse


def test_an_archive_that_others_may_change_is_told_or_refused(call: Call, archive: Path) -> None:
    archive.chmod(0o666)
    done = call("--root", archive, "images")
    text = "other users may change the store %s: %s is writable by all users" % (archive, archive)
    assert (done.code, done.err) == (0, "warning: %s\n" % text)
    done = call("--root", archive, "images", "--strict-store")
    assert (done.code, done.line) == (9, "minipull: %s; choose another --root\n" % text)


def test_check_tells_of_an_archive_and_of_images_in_it(call: Call, archive: Path, kept: Kept) -> None:
    assert is_sound(call("--root", archive, "check").out, archive)
    store = minipull.Store(str(kept.store))
    names = ["demo/one:1@%s" % store.image(ONE).source, "%s@%s" % (MANY, store.image(MANY).source)]
    assert is_sound(call("--root", archive, "check", "demo/one:1", MANY).out, *names)
    layer = store.document(store.image(ONE).descriptor).blobs
    data, raw = archive.read_bytes(), store.content.read(list(layer)[-1].digest, 1 << 20)
    archive.write_bytes(data.replace(raw, b"X" + raw[1:]))
    member = os.path.join(str(archive), "blobs", *list(layer)[-1].digest.split(":"))
    for words, path in ((["check"], member), (["check", "demo/one:1"], os.path.relpath(member, str(archive)))):
        done = call("--root", archive, *words)
        assert done.code == 6 and done.out.startswith("%s: blob: " % path), done.out
        assert done.out.endswith("%s: damaged\n" % archive)
        done = call("--root", archive, *words, "--format", "json")
        assert (done.code, done.json["ok"], done.json["problems"][0]["path"]) == (6, False, path)
    assert call("--root", archive, "check", MANY).code == 0
    done = call("--root", kept.store, "check", archive)  # as ever
    assert done.code == 6 and done.out.startswith(member)


def test_a_damaged_document_is_told_by_check_of_its_name(call: Call, archive: Path, kept: Kept) -> None:
    store, whole = minipull.Store(str(kept.store)), archive.read_bytes()
    document = store.document(store.image(ONE).descriptor)
    config = list(document.blobs)[0].digest
    raw = store.content.read(config, 1 << 20)
    archive.write_bytes(whole.replace(raw, raw[:20] + b"X" + raw[21:]))
    done = call("--root", archive, "check", ONE)
    assert done.code == 6 and os.path.join("blobs", *config.split(":")) + ": config: " in done.out
    archive.write_bytes(whole.replace(document.raw, document.raw[:20] + b"X" + document.raw[21:]))
    done = call("--root", archive, "check", ONE)
    assert (done.code, done.line) == (6, "minipull: archive %s: blob %s is something else\n" % (
        archive, document.digest))


def test_an_archive_may_be_replaced_by_what_is_read_from_it(call: Call, archive: Path, kept: Kept) -> None:
    whole = archive.read_bytes()
    assert call("--root", archive, "save", "-o", archive, ONE, MANY).code == 0
    assert archive.read_bytes() == whole
    assert call("--root", archive, "copy", "store:" + ONE, "oci-archive:%s:%s" % (archive, ONE)).code == 0
    assert [row["name"] for row in call("--root", archive, "images", "--format", "json").json] == [ONE]
    assert call("--root", archive, "check").code == 0
    again = archive.read_bytes()
    assert call("--root", archive, "save", "-o", archive, "nope").code == 3
    assert archive.read_bytes() == again and sorted(os.listdir(str(archive.parent))) == ["a.tar", "home"]


@pytest.mark.parametrize("line", ["push -q HOST/r:1", "push -q demo/two:1 HOST/r:1",
                                  "copy -q store:demo/two:1 docker://HOST/r:1"])
def test_an_archive_is_pushed_as_its_store_is(
        call: Call, tmp_path: Path, layout: Layout, server: ScriptedServer, line: str) -> None:
    """Of layers that are plain tars, too, which push compresses."""
    image = layout.image([text_layer("one"), Spec(entries=[("a", b"a" * 300000)])])
    archive, store = tmp_path / "docker.tar", tmp_path / "store"
    archive.write_bytes(pack(docker_members(layout, {"demo/two:1": image, server.host + "/r:1": image})))
    assert call("--root", store, "load", "-i", archive).code == 0
    results = []
    for root in (store, archive):
        uploads = Uploads(server)
        done = call("--root", root, *words_of(line.replace("HOST", server.host)))
        results.append((done.code, done.out, uploads.blobs, uploads.manifests))
    assert results[0] == results[1] and results[1][0] == 0 and len(results[1][2]) == 3


def test_commands_share_an_archive(call: Call, archive: Path, serve: Callable[..., Serve]) -> None:
    server = serve(archive)
    threads = [threading.Thread(target=minipull.copy, args=(
        "docker://%s/demo/one:1" % server.host, "oci:%s:x" % (archive.parent / str(number))))
        for number in range(4)]
    for thread in threads:
        thread.start()
    assert call("--root", archive, "check").code == 0
    assert call("--root", archive, "cat", "demo/one:1", "/etc/motd").out == "hello\n"
    for number, thread in enumerate(threads):
        thread.join()
        assert (archive.parent / str(number) / "index.json").exists()


@pytest.mark.parametrize("python", [interpreters()[0][1], interpreters()[-1][1]], ids=["oldest", "newest"])
def test_the_oldest_and_the_newest_interpreter_serve_an_archive(
        archive: Path, serve: Callable[..., Serve], python: str, tmp_path: Path) -> None:
    server = serve(archive, python=python)
    copied = minipull.copy("docker://%s/demo/one:1" % server.host, "oci:%s:x" % (tmp_path / "copied"))
    assert copied.source == copied.descriptor.digest
