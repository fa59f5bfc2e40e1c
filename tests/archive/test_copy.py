# SPDX-License-Identifier: Apache-2.0
"""Archives as the ends of a copy, and checked."""
import errno
import json
import os
import re
import tarfile
import threading
from pathlib import Path

import pytest

import minipull
from minipull.archive.check import check_archive
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.distribution.archives import archive_end
from minipull.distribution.places import Place
from minipull.errors import Cancelled, Error, StorageError
from minipull.progress import discard
from minipull.store.check import check
from minipull.store.store import Store
from minipull.xfer.transfer import Transfer, TransferManager, Watcher
from tests.kit import images
from tests.kit.archives import Three, document, layout_members, pack
from tests.kit.commands import is_sound
from tests.kit.images import Layout
from tests.kit.processes import Minipull, wait_until
from tests.kit.servers import ScriptedServer, Uploads, error, head, hold, send
from tests.kit.stores import text_layer
from tests.kit.work import background


def test_check_validates_an_archive(saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    root = ["--root", tmp_path / "none"]
    done = run_minipull(*root, "check", saved)
    assert (done.code, done.err) == (0, "%s: Checking\n" % saved) and is_sound(done.out, saved)
    assert not (tmp_path / "none").exists()
    data = bytearray(saved.read_bytes())
    with tarfile.open(str(saved)) as tar:
        data[tar.getmembers()[-1].offset_data] ^= 1
    saved.write_bytes(data)
    done = run_minipull(*root, "check", "--format", "json", saved)
    problems = json.loads(done.out)
    assert done.code == 6 and not problems["ok"]
    assert problems["problems"][0]["path"].startswith("%s/blobs/sha256/" % saved)
    done = run_minipull("--root", tmp_path / "root", "check", saved, "two:2")
    assert done.code == 6 and re.search("%s: damaged\ntwo:2@sha256:[0-9a-f]{64}: ok\n$" % saved, done.out)
    saved.write_bytes(b"x")
    done = run_minipull(*root, "check", saved)
    assert (done.code, done.out.count("\n")) == (6, 2) and "%s: archive: tar:" % saved in done.out
    assert run_minipull(*root, "check", tmp_path / "nothing.tar").code != 0


def test_one_flipped_byte_of_an_archive_is_found(three: Three, path: Path) -> None:
    """But for what nobody reads: owners, times, and what docker alone would."""
    store, _, made = three
    minipull.save(["two:2"], store, str(path))
    sound = path.read_bytes()
    with tarfile.open(str(path)) as tar:
        spans = [(info.name, info.offset_data, info.size)
                 for info in tar if info.name.startswith("blobs/sha256/")]
    with path.open("r+b", buffering=0) as file:
        for name, start, size in spans:
            for offset in {start, start + size // 2, start + size - 1, start - 512, start - 512 + 130}:
                os.pwrite(file.fileno(), bytes([sound[offset] ^ 1]), offset)
                assert check_archive(str(path), Cancel()), (name, offset)
                os.pwrite(file.fileno(), sound[offset:offset + 1], offset)
    assert check_archive(str(path), Cancel()) == []
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        check_archive(str(path), cancel)


def test_every_image_of_an_archive_goes_to_a_registry(
        three: Three, saved: Path, server: ScriptedServer) -> None:
    store, _, made = three
    targets = {name: Uploads(server, "mirror/" + path) for name, path in (
        ("r.example.com/many:3", "many"), ("docker.io/demo/one:1", "demo/one"),
        ("docker.io/library/two:2", "library/two"))}
    minipull.copy("docker-archive:%s" % saved, "docker://%s/mirror/" % server.host)
    for name, target in targets.items():
        assert target.manifests[name.rpartition(":")[2]] == made[name].raw
    assert "b" in targets["docker.io/library/two:2"].manifests


def test_an_archive_is_copied_as_it_is(three: Three, saved: Path, tmp_path: Path) -> None:
    store, _, made = three
    minipull.copy("oci-archive:%s" % saved, "docker-archive:%s" % (tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    minipull.copy("oci-archive:%s" % saved, "oci:%s" % (tmp_path / "layout2"))
    entries = json.loads((tmp_path / "layout2" / "index.json").read_bytes())["manifests"]
    assert {entry["annotations"][images.NAME]: entry["digest"] for entry in entries} == {
        name: image.digest for name, image in made.items()}
    fresh = Store(str(tmp_path / "fresh"))
    copied = minipull.copy("docker-archive:%s:demo/one:1" % saved, "store:x:1", store=fresh)
    assert copied.source == made["docker.io/demo/one:1"].digest and check(fresh) == []
    minipull.copy("store:x:1", "oci-archive:%s:app" % (tmp_path / "one"), store=fresh)
    assert document(tmp_path / "one", "manifest.json")[0]["RepoTags"] == ["app:latest"]
    minipull.copy("oci-archive:%s" % (tmp_path / "one"), "store:y:1", store=fresh)  # the only one
    assert sorted(os.listdir(str(tmp_path))) == [
        "again", "archive.tar", "fresh", "layout", "layout2", "old", "one", "root"]


def test_an_odd_label_and_no_label_are_found(layout: Layout, path: Path, tmp_path: Path) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])
    path.write_bytes(pack(layout_members(layout, [
        {**one.descriptor, "annotations": {images.NAME: "v1"}}, two.descriptor])))
    target = "oci:%s" % (tmp_path / "out")
    assert minipull.copy("oci-archive:%s:v1" % path, target + ":x").source == one.digest
    minipull.copy("oci-archive:%s" % path, target)
    entries = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
    assert [(entry["digest"], entry.get("annotations", {}).get(images.NAME)) for entry in entries] == [
        (one.digest, "x"), (one.digest, "v1"), (two.digest, None)]


@pytest.mark.parametrize("source, target, text", [
    ("oci-archive:%s", "store:x", "several images, so name one: docker.io/demo/one:1, docker.io"),
    ("oci-archive:%s:nope", "store:x", "no image docker.io/library/nope:latest; there is docker.io/demo/one:1"),
    ("oci-archive:%s:UPPER", "store:x", "must be lowercase"),
    ("oci-archive:%s", "docker://localhost/x", "several images, so name one"),
    ("oci-archive:/nowhere", "store:x", "open /nowhere: No such file"),
    ("store:two:2", "oci-archive:/nowhere/x", "write /nowhere/x: No such file")])
def test_a_copy_that_is_not_possible_is_refused(
        three: Three, saved: Path, source: str, target: str, text: str) -> None:
    with pytest.raises(Error, match="^copy .* to .*: .*" + text):
        minipull.copy(source % saved if "%" in source else source, target, store=three[0])


def test_nothing_is_left_of_an_archive_that_failed(
        layout: Layout, tmp_path: Path, server: ScriptedServer) -> None:
    """Also where another layer is still on its way when the first has failed."""
    image = layout.image(images.specs(2, 200000), "1")
    server.serve(layout.root, "r")
    first, second = (layer.descriptor["digest"] for layer in image.layers)
    began, go, data = threading.Event(), threading.Event(), layout.read(first)
    server.on("GET", "/blobs/" + first, [send(head(200, {"Content-Length": str(len(data))}) + data[:1000]),
                                         lambda connection: began.set(), hold(go)])
    server.on("GET", "/blobs/" + second, [hold(began), error(404, "BLOB_UNKNOWN")])
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(Error, match="^copy .* to .*/out/a.tar: "):
        minipull.copy("docker://%s/r:1" % server.host, "oci-archive:%s" % (folder / "a.tar"))
    assert os.listdir(str(folder)) == []
    go.set()


def test_a_disk_that_is_full_is_told_in_terms_of_the_archive(
        layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.image([images.Spec(200000, text=0)], "1")
    (tmp_path / "out").mkdir()
    path, write = tmp_path / "out" / "a.tar", os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) > 100000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError) as caught:
        minipull.copy("oci:%s:1" % layout.root, "oci-archive:%s" % path)
    assert str(caught.value) == "copy %s to %s: write %s: No space left on device" % (layout.root, path, path)
    assert os.listdir(str(path.parent)) == []


def test_an_archive_that_is_a_directory_is_refused_before_anything_is_read(
        server: ScriptedServer, layout: Layout, tmp_path: Path) -> None:
    layout.image(images.specs(1), "1")
    server.serve(layout.root, "r")
    with pytest.raises(StorageError, match="write %s: Is a directory$" % tmp_path):
        minipull.copy("docker://%s/r:1" % server.host, "oci-archive:%s" % tmp_path)
    assert server.seen("GET", "/blobs/") == []


def test_the_folder_beside_an_archive_stays_until_its_transfers_have_ended(path: Path) -> None:
    manager, begun, go = TransferManager(1), threading.Event(), threading.Event()
    folder = ""

    def work(transfer: Transfer) -> bool:
        begun.set()
        go.wait(30)
        return os.path.isdir(folder)

    def write() -> Watcher:
        nonlocal folder
        with archive_end(Place.parse("oci-archive:%s" % path), manager, discard, Cancel()) as end:
            folder = end.store.root
            end.store.content.put(Digest.of(b"{}"), b"{}")
            watcher = manager.transfer("copy to %s" % folder, work, discard)
            begun.wait(30)
            manager.release(watcher)
        return watcher

    thread, results = background(write)
    wait_until(lambda: path.exists() and repr(manager.changed).endswith(", 1)>"), "the writer, which waits")
    go.set()
    thread.join(30)
    assert results[0].transfer.result is True
    assert not os.path.exists(folder) and folder


def test_a_damaged_archive_is_not_copied(
        three: Three, saved: Path, tmp_path: Path, server: ScriptedServer) -> None:
    store, _, made = three
    layer = made["docker.io/demo/one:1"].layers[0].descriptor["digest"]
    with tarfile.open(str(saved)) as tar:
        start = tar.getmember("blobs/" + layer.replace(":", "/")).offset_data
    with saved.open("r+b") as file:
        file.seek(start + 20)
        byte = file.read(1)
        file.seek(start + 20)
        file.write(bytes([byte[0] ^ 1]))
    target = Uploads(server, "r")
    for place in ("docker://%s/r:1" % server.host, "oci:%s:x" % (tmp_path / "out"),
                  "oci-archive:%s" % (tmp_path / "a")):
        with pytest.raises(Error):
            minipull.copy("oci-archive:%s:demo/one:1" % saved, place)
    assert target.manifests == {} and not (tmp_path / "a").exists()
    assert not (tmp_path / "out" / "index.json").exists()
