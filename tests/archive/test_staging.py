# SPDX-License-Identifier: Apache-2.0
"""An archive of what a registry has, written by several runs: each goes on where the last one was killed."""
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, List

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.store.store import Store
from minipull.xfer.upload import LayerUploadManager
from tests.kit import images
from tests.kit.images import Layout
from tests.kit.processes import Minipull, driver_env, wait_until
from tests.kit.servers import Action, ScriptedServer, close, content, error, head, hold, send
from tests.kit.work import background

SIZE = 6 << 20


class Site:
    """An image of two layers at a registry, and the archive that is to be made of it."""

    def __init__(self, server: ScriptedServer, folder: Path) -> None:
        self.server = server
        self.layout = Layout(folder / "layout")
        image = self.layout.image(images.specs(2, SIZE, text=0), "1")
        self.first, self.second = (layer.descriptor["digest"] for layer in image.layers)
        self.data = self.layout.read(self.second)
        server.serve(self.layout.root, "r")
        self.source = "docker://%s/r:1" % server.host
        (folder / "out").mkdir()
        self.path = folder / "out" / "a.tar"
        minipull.copy("oci:%s:1" % self.layout.root, "oci-archive:%s" % (folder / "sound.tar"))
        self.sound = (folder / "sound.tar").read_bytes()

    @property
    def beside(self) -> List[Path]:
        return sorted(self.path.parent.glob(".minipull-*"))

    def broken(self, *before: Action) -> List[Action]:
        """The second layer, which breaks off in the middle."""
        begin = send(head(200, {"Content-Length": str(len(self.data))}) + self.data[:SIZE // 2])
        return [begin, *before, close]

    def halfway(self, go: threading.Event) -> None:
        """Have the second layer stop in the middle, once."""
        self.server.on("GET", "/blobs/" + self.second, self.broken(hold(go)), content(self.data))

    def copy(self) -> None:
        minipull.copy(self.source, "oci-archive:%s" % self.path)

    def left(self) -> Path:
        """Leave what a killed run leaves."""
        self.server.on("GET", "/blobs/" + self.second, self.broken(), error(503))
        with pytest.raises(minipull.Error):
            minipull.copy(self.source, "oci-archive:%s" % self.path,
                          uploads=LayerUploadManager(1, attempts=1))
        self.server.on("GET", "/blobs/" + self.second, content(self.data))
        [folder] = self.beside
        return folder

    def asked(self, digest: str) -> List[str]:
        """The ranges in which a blob was asked for."""
        return [request.headers.get("range", "all") for request in self.server.seen("GET", "/blobs/" + digest)]


@pytest.fixture
def site(server: ScriptedServer, tmp_path: Path, no_waiting: None) -> Site:
    return Site(server, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_copy_that_was_killed_goes_on(number: signal.Signals, site: Site, home: Path, run_minipull: Minipull) -> None:
    words = ["copy", "--progress", "plain", site.source, "oci-archive:%s" % site.path]
    site.halfway(threading.Event())

    def under_way() -> bool:
        partial = [path.stat().st_size for path in site.path.parent.glob(".minipull-*/ingest/sha256-*")
                   if path.suffix != ".json"]
        whole = list(site.path.parent.glob(".minipull-*/blobs/sha256/" + site.first[7:]))
        return bool(whole) and partial == [SIZE // 2]

    process = subprocess.Popen([sys.executable, "-m", "minipull", *words], env=driver_env(home), cwd=home,
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(under_way, "minipull copy", process)
    finally:
        process.send_signal(number)
        _, err = process.communicate()
    last = err.decode().splitlines()[-1]
    whole = len(site.layout.read(site.first)) + len(site.data)
    assert number == signal.SIGKILL or re.fullmatch(
        r"interrupted; the same command goes on at 9\.\d+ of 12\.\d+MB", last), (last, whole)
    assert len(site.beside) == 1 and not site.path.exists()
    done = run_minipull(*words)
    assert done.code == 0, done
    assert site.asked(site.first) == ["all"] and site.asked(site.second) == ["all", "bytes=%d-" % (SIZE // 2)]
    assert site.path.read_bytes() == site.sound and site.beside == []


def test_an_error_that_may_pass_leaves_what_came_and_says_so(site: Site, server: ScriptedServer) -> None:
    told: List[str] = []
    server.on("GET", "/blobs/" + site.second, error(503))
    with pytest.raises(minipull.Error, match="503"):
        minipull.copy(site.source, "oci-archive:%s" % site.path,
                      uploads=LayerUploadManager(1, attempts=1),
                      progress=lambda event: told.append(event.message))
    [folder] = site.beside
    assert "what came is kept in %s; the same command goes on" % folder in told
    server.on("GET", "/blobs/" + site.second, content(site.data))
    site.copy()
    assert site.path.read_bytes() == site.sound and site.asked(site.first) == ["all"] and site.beside == []


@pytest.mark.parametrize("fault", [error(404, "BLOB_UNKNOWN"), error(403, "DENIED")])
def test_a_refusal_leaves_nothing(fault: Callable[..., None], site: Site, server: ScriptedServer) -> None:
    server.on("GET", "/blobs/" + site.second, fault)
    with pytest.raises(minipull.Error):
        site.copy()
    assert site.beside == []


def test_an_interrupt_after_somebody_removed_the_directory_is_an_interrupt(site: Site) -> None:
    go, cancel = threading.Event(), Cancel()
    site.halfway(go)
    thread, results = background(
        lambda: minipull.copy(site.source, "oci-archive:%s" % site.path, cancel=cancel))
    wait_until(lambda: len(site.asked(site.second)) == 1 and len(
        list(site.path.parent.glob(".minipull-*/blobs/sha256/*"))) == 2, "the second layer, and all else")
    for folder in site.beside:
        shutil.rmtree(str(folder))
    cancel.cancel()
    thread.join(30)
    go.set()
    assert isinstance(results[0], minipull.Cancelled) and site.beside == []


def test_nothing_is_left_beside_a_pipe(site: Site) -> None:
    os.mkfifo(str(site.path))
    site.server.on("GET", "/blobs/" + site.second, error(503))
    with pytest.raises(minipull.Error, match="503"):
        minipull.copy(site.source, "oci-archive:%s" % site.path, uploads=LayerUploadManager(1, attempts=1))
    assert site.beside == []


def test_before_anything_has_come_nothing_is_left(site: Site) -> None:
    with pytest.raises(minipull.NetworkError):
        minipull.copy("docker://127.0.0.1:1/r:1", "oci-archive:%s" % site.path)
    assert site.beside == []


def rotten(folder: Path, site: Site) -> None:
    path = folder.joinpath("blobs", *site.first.split(":"))
    path.write_bytes(bytes(path.stat().st_size))


def other_bytes(folder: Path, site: Site) -> None:
    """The partial is not of this blob."""
    [partial] = [path for path in (folder / "ingest").glob("sha256-*") if path.suffix != ".json"]
    partial.write_bytes(bytes(partial.stat().st_size))


def another_image(folder: Path, site: Site) -> None:
    other = Layout(folder.parent.parent / "other")
    other.image(images.specs(1, 1000, seed=9), "evil")
    minipull.copy("oci:%s:evil" % other.root, "oci:%s:evil" % folder)
    (folder / "layers").mkdir()
    (folder / "index.json.old").write_text("{}")


def linked(folder: Path, site: Site) -> None:
    path = folder.joinpath("blobs", *site.first.split(":"))
    os.rename(str(path), str(folder.parent.parent / "elsewhere"))
    path.symlink_to(folder.parent.parent / "elsewhere")


def foreign_user(folder: Path, site: Site) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(str(folder), 12345, 12345)


def a_link(folder: Path, site: Site) -> None:
    os.rename(str(folder), str(folder.parent.parent / "moved"))
    folder.symlink_to(folder.parent.parent / "moved")


@pytest.mark.parametrize("spoil", [rotten, other_bytes, another_image, linked, foreign_user, a_link])
def test_what_a_former_run_left_is_verified(
        spoil: Callable[[Path, Site], None], site: Site) -> None:
    folder = site.left()
    spoil(folder, site)
    site.copy()
    assert site.path.read_bytes() == site.sound
    untouched = spoil in (foreign_user, a_link)
    assert site.beside == ([folder] if untouched else [])
    assert (site.asked(site.first) == ["all"]) is (spoil in (other_bytes, another_image))


def test_an_interrupt_before_a_byte_of_a_blob_leaves_nothing(site: Site) -> None:
    go, cancel = threading.Event(), Cancel()
    site.server.on("GET", "/blobs/", hold(go))
    thread, results = background(
        lambda: minipull.copy(site.source, "oci-archive:%s" % site.path, cancel=cancel))
    wait_until(lambda: bool(site.server.seen("GET", "/blobs/")), "the first blob")
    cancel.cancel()
    thread.join(30)
    go.set()
    assert isinstance(results[0], minipull.Cancelled) and site.beside == []


@pytest.mark.parametrize("shared", ["v" * 49, "v" * 120, "\u00e9" * 120])
def test_archives_whose_long_names_begin_alike_leave_each_other_alone(site: Site, shared: str) -> None:
    site.path = site.path.with_name(shared + "-amd64")
    folder = site.left()
    assert len(os.fsencode(folder.name)) <= 255
    minipull.copy("oci:%s:1" % site.layout.root, "oci-archive:%s" % site.path.with_name(shared + "-arm64"))
    assert site.beside == [folder]
    site.copy()
    assert site.beside == [] and site.asked(site.first) == ["all"]


def test_another_image_for_the_same_archive_takes_its_own_blobs_alone(site: Site, tmp_path: Path) -> None:
    site.left()
    other = Layout(tmp_path / "other")
    other.image(images.specs(1, 1000, seed=9), "2")
    site.server.serve(other.root, "q")
    minipull.copy("docker://%s/q:2" % site.server.host, "oci-archive:%s" % site.path)
    minipull.copy("oci-archive:%s" % site.path, "oci:%s" % (tmp_path / "out" / "read"))
    assert site.beside == []
    held = {path.name for path in (tmp_path / "out" / "read" / "blobs" / "sha256").iterdir()}
    assert site.first[7:] not in held and Digest.of(site.data)[7:] not in held


def test_a_copy_of_what_is_at_hand_removes_what_a_former_run_left(site: Site) -> None:
    site.left()
    minipull.copy("oci:%s:1" % site.layout.root, "oci-archive:%s" % site.path)
    assert site.path.read_bytes() == site.sound and site.beside == []


def test_what_another_run_is_writing_is_not_taken_over(site: Site) -> None:
    go = threading.Event()
    site.halfway(go)
    first, results = background(site.copy)
    wait_until(lambda: len(site.asked(site.second)) == 1, "the first")
    site.copy()
    assert site.path.read_bytes() == site.sound and len(site.beside) == 1
    go.set()
    first.join(30)
    assert results == [None] and site.beside == [] and site.path.read_bytes() == site.sound


def test_a_partial_beside_an_archive_is_no_store(site: Site) -> None:
    """It has no names, so that nothing is read from it."""
    assert Store(str(site.left())).references.all() == []
