# SPDX-License-Identifier: Apache-2.0
"""Uploads that go on in another process, by notes that nobody trusts."""
import errno
import functools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.distribution.sessions import NOTED, Source, upload_blob
from minipull.errors import NetworkError
from minipull.image.descriptor import Descriptor
from minipull.progress import Progress
from minipull.reference import Reference
from minipull.registry.auth import Credential, Keyring
from minipull.registry.client import Client
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.registry.errors import RegistryError
from minipull.registry.request import Body
from minipull.store.gc import gc
from minipull.store.sessions import MAX_AGE, MAX_NOTES
from minipull.store.store import Store
from tests.kit import images
from tests.kit.copies import Target
from tests.kit.images import Layout
from tests.kit.processes import driver_env, minipull_env, wait_until
from tests.kit.servers import Action, Connection, ScriptedServer, Uploads, close, error, hold, reply
from tests.kit.work import background

pytestmark = pytest.mark.usefixtures("no_waiting")

DATA = bytes(range(251)) * (NOTED // 251 + 4000)
BLOB = Descriptor("test", Digest.of(DATA), len(DATA))
HALF = len(DATA) // 2


class Known(Keyring):
    def get(self, host: str, path: str = "") -> Credential:
        return Credential("user", "password")


class Pusher:
    """``pusher()`` sends DATA to ``r`` as a process of its own would; ``told`` are its messages."""

    def __init__(self, server: ScriptedServer, store: Store) -> None:
        self.uploads = Uploads(server)
        self.uploads.lenient = True
        self.told: List[str] = []
        self.events: List[Progress] = []
        self.answered = True
        self._server = server
        self._store = store

    @property
    def notes(self) -> List[Path]:
        return sorted(Path(self._store.root, "metadata", "uploads").glob("*"))

    def __call__(self, data: bytes = DATA, cancel: Optional[Cancel] = None,
                 source: Optional[Source] = None, **options: Any) -> List[str]:
        """Send; returns the requests, without HEAD, each with the range of what it brought."""
        self.told.clear()
        self.events.clear()
        with Client(RegistryService(timeout=5), Known()) as client:
            repository = client.repository(
                Endpoint(self._server.url, "r.com"), Reference.parse("r.com/r"), push=True)
            if self.answered:
                repository.stat(BLOB.digest, Cancel())
            before = len(self._server.requests)
            blob = Descriptor("test", Digest.of(data), len(data))
            try:
                whole: Source = lambda offset, size: Body.of(data[offset:offset + size])
                upload_blob(repository, blob, source or whole, self._progress, "it", cancel or Cancel(),
                            store=self._store, **options)
            finally:
                self.asked = [" ".join(filter(None, (item.method, item.headers.get("content-range", ""))))
                              for item in self._server.requests[before:] if item.method != "HEAD"]
        return self.asked

    def _progress(self, event: Progress) -> None:
        self.events.append(event)
        if event.message:
            self.told.append(event.message)

    def interrupted(self, stop: int = HALF) -> None:
        """Leave an upload of which the registry has half."""
        self._server.on("PATCH", "", functools.partial(self.uploads.append, stop=stop), close)
        self._server.on("GET", "/uploads/", close)
        self._server.on("POST", "", self.uploads.start, error(503))
        with pytest.raises((NetworkError, RegistryError)):
            self()
        self._server.on("POST", "", self.uploads.start)
        self._server.on("GET", "/uploads/", self.uploads.status)
        self._server.on("PATCH", "", self.uploads.append)


@pytest.fixture
def pusher(server: ScriptedServer, store: Store) -> Pusher:
    os.mkdir(store.root)
    Path(store.root, "oci-layout").touch()
    return Pusher(server, store)


def test_the_next_process_sends_what_is_missing(pusher: Pusher) -> None:
    pusher.interrupted()
    [note] = pusher.notes
    assert stat.S_IMODE(note.stat().st_mode) == 0o600 and "password" not in note.read_text()
    assert pusher() == ["GET", "PATCH %d-%d" % (HALF, len(DATA) - 1), "PUT"]
    assert pusher.uploads.blobs == {BLOB.digest: DATA} and pusher.told == [] and pusher.notes == []
    assert {event.start for event in pusher.events} == {HALF} and all(event.kept for event in pusher.events)


@pytest.mark.parametrize("arrived", [1, NOTED, len(DATA)])
def test_the_registry_says_where_it_goes_on(pusher: Pusher, arrived: int) -> None:
    """Also from what arrived after the kill, up to all of it."""
    pusher.interrupted()
    [session] = pusher.uploads.sessions.values()
    session[:] = DATA[:arrived + 1]
    asked = pusher()
    assert pusher.uploads.blobs == {BLOB.digest: DATA} and "POST" not in asked
    assert len([line for line in asked if line.startswith("PATCH")]) == (arrived + 1 < len(DATA))


@pytest.mark.parametrize("answer, told", [
    (error(404, "BLOB_UPLOAD_UNKNOWN"), "forgot"),
    (error(410), "forgot"),
    (error(400, "BLOB_UPLOAD_INVALID"), "forgot"),
    (error(405), "forgot"),
    (error(500), "forgot"),
    (error(401, "UNAUTHORIZED"), "forgot"),  # of another user, or by an address whose signature is too old
    (error(403, "DENIED"), "forgot"),
    (close, "can't go on with"),
    (reply(200, b"<html>"), "can't go on with"),
    (reply(204), "can't go on with"),
    (reply(204, headers={"Range": "5-9"}), "can't go on with"),
    (reply(204, headers={"Range": "0-9", "Location": "http://[/"}), "can't go on with"),
    (reply(302, headers={"Location": "https://127.0.0.1:1/"}), "can't go on with"),
    (reply(204, headers={"Range": "0-0"}), "kept nothing of"),
    (reply(204, headers={"Range": "0-%d" % len(DATA)}), "has other bytes in"),
    (reply(204, headers={"Range": "0-" + "9" * 18}), "has other bytes in")])
def test_an_upload_that_can_not_be_continued_begins_anew_and_that_is_told(
        pusher: Pusher, server: ScriptedServer, answer: Action, told: str) -> None:
    pusher.interrupted()
    server.on("GET", "/uploads/", answer)
    asked = pusher()
    assert asked[-3:] == ["POST", "PATCH", "PUT"] and pusher.uploads.blobs == {BLOB.digest: DATA}
    assert pusher.told == ["%s %s the interrupted upload; it begins anew" % (server.host, told)]
    assert pusher.notes == []


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("answer", [
    error(400, "BLOB_UPLOAD_INVALID"), error(403, "DENIED"), error(404, "BLOB_UPLOAD_UNKNOWN"), error(405),
    error(416, "RANGE_INVALID"), error(500), error(503), close])
def test_an_upload_that_can_not_be_ended_does_not_stand_in_the_way(
        pusher: Pusher, server: ScriptedServer, answer: Action, method: str) -> None:
    """Not even one that still answers how much has arrived."""
    pusher.interrupted()
    [former] = pusher.uploads.sessions
    if method == "PUT":
        pusher.uploads.sessions[former][:] = DATA
    usual = pusher.uploads.append if method == "PATCH" else pusher.uploads.commit

    def spoiled(connection: Connection) -> None:
        (answer if "/uploads/" + former in connection.request.path else usual)(connection)

    server.on(method, "", spoiled)
    assert pusher()[-3:] == ["POST", "PATCH", "PUT"] and pusher.uploads.blobs == {BLOB.digest: DATA}
    assert pusher.told == ["%s can't end the interrupted upload; it begins anew" % server.host]
    assert pusher.notes == [] and pusher.events[-1].start == 0


def test_what_arrives_before_a_failure_stays_for_the_next_process(pusher: Pusher, server: ScriptedServer) -> None:
    pusher.interrupted()
    server.on("PUT", "", error(500))
    with pytest.raises(RegistryError, match="500"):
        pusher()
    assert pusher.asked.count("POST") == 0 and len(pusher.notes) == 1


@pytest.mark.parametrize("status, method, kept", [
    (401, "PATCH", 1), (403, "PATCH", 0), (429, "PATCH", 1), (500, "PATCH", 1), (400, "PATCH", 0)])
def test_a_note_stays_if_a_login_or_time_may_help(
        pusher: Pusher, server: ScriptedServer, status: int, method: str, kept: int) -> None:
    server.on(method, "", error(status))
    with pytest.raises(minipull.Error):
        pusher()
    assert len(pusher.notes) == kept


def test_a_source_that_fails_for_a_time_leaves_the_note(pusher: Pusher) -> None:
    def source(offset: int, size: int) -> Body:
        failure = minipull.Error("the source: 503")
        failure.retry = True
        raise failure

    with pytest.raises(minipull.Error, match="the source"):
        pusher(source=source)
    assert len(pusher.notes) == 1


def test_an_interrupt_while_the_registry_is_asked_leaves_the_note(pusher: Pusher, server: ScriptedServer) -> None:
    pusher.interrupted()
    go, cancel, before = threading.Event(), Cancel(), len(server.seen("GET", "/uploads/"))
    server.on("GET", "/uploads/", hold(go))
    thread, results = background(lambda: pusher(cancel=cancel))
    wait_until(lambda: len(server.seen("GET", "/uploads/")) > before, "the question")
    cancel.cancel()
    thread.join(30)
    go.set()
    assert isinstance(results[0], minipull.Cancelled) and len(pusher.notes) == 1


def test_the_bytes_of_another_blob_are_sent_anew_before_ours_are_blamed(
        pusher: Pusher, server: ScriptedServer) -> None:
    pusher.interrupted()
    [session] = pusher.uploads.sessions.values()
    session[:5] = b"other"
    assert pusher()[-4:] == ["PUT", "POST", "PATCH", "PUT"] and pusher.uploads.blobs == {BLOB.digest: DATA}
    pusher.uploads.blobs.clear()
    pusher.interrupted()
    server.on("PUT", "", error(400, "DIGEST_INVALID"))
    with pytest.raises(RegistryError, match="digest invalid"):
        pusher()
    assert pusher.asked.count("PUT") == 2 and pusher.notes == []


def noted(**members: Any) -> Callable[[Path, ScriptedServer], None]:
    def write(path: Path, server: ScriptedServer) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **members}))
    return write


def raw(data: bytes) -> Callable[[Path, ScriptedServer], None]:
    def write(path: Path, server: ScriptedServer) -> None:
        path.write_bytes(data)
    return write


def torn(path: Path, server: ScriptedServer) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def planted(make: Callable[[Path], object]) -> Callable[[Path, ScriptedServer], None]:
    def write(path: Path, server: ScriptedServer) -> None:
        os.rename(str(path), str(path) + ".aside")
        make(path)
    return write


def owned(path: Path, server: ScriptedServer) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(str(path), 12345, 12345)


@pytest.mark.parametrize("spoil", [
    noted(registry="http://127.0.0.1:1"), noted(repository="other"), noted(digest="sha256:" + "0" * 64),
    noted(url=""), noted(url=5), noted(url=["/"]), noted(url=None),
    torn, raw(b""), raw(b"[]"), raw(b"\xff" * 100), raw(b'{"a":' * 3000), raw(b" " * (1 << 20)),
    planted(lambda path: path.symlink_to(str(path) + ".aside")),
    planted(lambda path: path.mkdir()), planted(lambda path: os.mkfifo(str(path))), owned])
def test_a_note_that_is_not_ours_is_none(
        pusher: Pusher, server: ScriptedServer, spoil: Callable[[Path, ScriptedServer], None]) -> None:
    pusher.interrupted()
    spoil(pusher.notes[0], server)
    assert pusher() == ["POST", "PATCH", "PUT"]
    assert pusher.uploads.blobs == {BLOB.digest: DATA} and pusher.told == []


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "ftp://127.0.0.1/", "http://", "http://a b/", "http://127.0.0.1\\@127.0.0.2/",
    "http://127.0.0.1:99999/", "http://x\r\nHost: y/", "x" * 100, "//127.0.0.1:1/", "/v2/r/manifests/1"])
def test_a_url_is_checked_as_a_location(pusher: Pusher, server: ScriptedServer, url: str) -> None:
    pusher.interrupted()
    noted(url=url)(pusher.notes[0], server)
    assert pusher()[-3:] == ["POST", "PATCH", "PUT"] and pusher.uploads.blobs == {BLOB.digest: DATA}
    assert len(pusher.told) == 1


def test_another_host_that_a_note_names_gets_no_credentials(
        pusher: Pusher, server: ScriptedServer, foreign: ScriptedServer) -> None:
    server.on("HEAD", "", error(401, "", {"WWW-Authenticate": "Basic realm=x"}), error(404))
    pusher.interrupted()
    there = Uploads(foreign, base="/v2/r/blobs/uploads/")
    there.lenient = True
    there.sessions["7"], there._states["7"] = bytearray(DATA[:HALF]), 0
    noted(url=foreign.url + "/v2/r/blobs/uploads/7?_state=0")(pusher.notes[0], server)
    pusher()
    assert [request.method for request in foreign.seen()] == ["GET", "PATCH", "PUT"]  # as after a Location


def test_an_upload_never_goes_from_https_to_http_by_a_note(store: Store) -> None:
    with Client(RegistryService(), Keyring()) as client:
        repository = client.repository(Endpoint("https://127.0.0.1:1", "r.com"), Reference.parse("r.com/r"))
        with pytest.raises(minipull.PolicyError, match="from https to http, refused"):
            repository.resume_upload("http://127.0.0.1:1/v2/r/blobs/uploads/1", Cancel())


def test_nobody_is_asked_by_a_note_before_the_registry_has_answered(pusher: Pusher) -> None:
    pusher.interrupted()
    pusher.answered = False
    assert pusher() == ["POST", "PATCH", "PUT"]


def test_two_processes_do_not_send_into_one_session(pusher: Pusher, server: ScriptedServer) -> None:
    pusher.interrupted()
    go = threading.Event()
    begun = len(server.seen("PATCH"))
    server.on("PATCH", "", [hold(go), pusher.uploads.append], pusher.uploads.append)
    first, _ = background(pusher)
    wait_until(lambda: len(server.seen("PATCH")) > begun, "the first")
    second = Pusher.__new__(Pusher)
    vars(second).update(vars(pusher), told=[], events=[])
    assert second() == ["POST", "PATCH", "PUT"]
    assert len(pusher.notes) == 1, "that of the first"
    go.set()
    first.join(30)
    assert pusher.uploads.blobs == {BLOB.digest: DATA} and pusher.notes == []


@pytest.mark.parametrize("kind", ["small", "refused", "none", "other"])
def test_only_what_may_go_on_is_noted(pusher: Pusher, server: ScriptedServer, store: Store, kind: str) -> None:
    seen: List[int] = []
    fault: Action = error(403, "DENIED") if kind == "refused" else pusher.uploads.append

    def watched(connection: Connection) -> None:
        seen.append(len(pusher.notes))
        fault(connection)

    server.on("PATCH", "", watched)
    if kind in ("none", "other"):
        Path(store.root, "oci-layout").unlink()
    if kind == "none":
        os.rmdir(store.root)
    if kind == "refused":
        with pytest.raises(RegistryError):
            pusher()
    else:
        pusher(DATA[:NOTED - 1] if kind == "small" else DATA)
    assert seen == [1 if kind == "refused" else 0] and pusher.notes == []
    assert os.path.isdir(store.root) is (kind != "none")
    assert kind != "other" or os.listdir(store.root) == [], "of a directory that is no store"


def test_a_file_system_without_locks_keeps_no_notes(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert pusher() == ["POST", "PATCH", "PUT"] and pusher.notes == []


def test_a_note_that_can_not_be_removed_fails_no_push(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.EACCES, "not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", refuse)
        assert pusher() == ["POST", "PATCH", "PUT"]
    assert [note.read_bytes() for note in pusher.notes] == [b""]


def test_the_number_of_notes_is_bounded_and_gc_removes_old_ones(pusher: Pusher, store: Store) -> None:
    pusher.interrupted()
    [note] = pusher.notes
    for number in range(MAX_NOTES + 5):
        other = note.with_name("%064x.json" % number)
        other.write_bytes(b"x" * 10)
        os.utime(str(other), (number + 1000, number + 1000))
    pusher.interrupted()
    assert len(pusher.notes) == MAX_NOTES and note in pusher.notes
    gc(store)
    assert pusher.notes == [note]
    os.utime(str(note), (time.time() - MAX_AGE - 5,) * 2)
    gc(store, keep=7 * MAX_AGE)
    assert pusher.notes == []


def a_link(folder: Path) -> None:
    folder.symlink_to(folder.parent.parent / "elsewhere")


def of_others(folder: Path) -> None:
    os.rename(str(folder.parent.parent / "elsewhere"), str(folder))


@pytest.mark.parametrize("place", [a_link, of_others])
def test_nothing_but_notes_is_removed(place: Callable[[Path], None], pusher: Pusher, store: Store) -> None:
    """Whatever the folder of the notes is a link to, and whatever else is in it."""
    folder, elsewhere = Path(store.root, "metadata", "uploads"), Path(store.root, "elsewhere")
    folder.parent.mkdir()
    elsewhere.mkdir()
    for number in range(MAX_NOTES + 5):
        path = elsewhere / ("%d.conf" % number)
        path.write_text("precious")
        os.utime(str(path), (1000, 1000))
    place(folder)
    pusher()
    gc(store)
    gc(store, keep=0)
    assert [path.read_text() for path in folder.iterdir()] == ["precious"] * (MAX_NOTES + 5)


@pytest.mark.parametrize("make", [
    lambda path: path.touch(), lambda path: os.mkfifo(str(path)), lambda path: path.symlink_to(str(path)),
    lambda path: path.symlink_to("/nowhere")])
def test_a_folder_of_notes_that_is_none_fails_no_gc_and_no_push(
        make: Callable[[Path], None], pusher: Pusher, store: Store) -> None:
    os.mkdir(os.path.join(store.root, "metadata"))
    make(Path(store.root, "metadata", "uploads"))
    assert pusher() == ["POST", "PATCH", "PUT"]
    gc(store)


# -- killed at half ------------------------------------------------------------------

LARGE = 100 * 10 ** 6  # bytes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("large") / "layout")
    layout.image([images.Spec(LARGE, text=0)], "1")
    return layout


@pytest.mark.parametrize("command, number", [
    ("push", signal.SIGKILL), ("push", signal.SIGINT), ("copy", signal.SIGTERM),
    ("between", signal.SIGINT), ("between", signal.SIGKILL)])
def test_what_was_sent_before_a_kill_is_not_sent_again(
        command: str, number: signal.Signals, large: Layout, store: Store, target: Target, home: Path,
        server: ScriptedServer) -> None:
    """From the store, and from another registry with the store for the note alone."""
    minipull.copy("oci:%s:1" % large.root, "store:%s/r:1" % target.host, store=store)
    name = "%s/r:1" % target.host
    if command == "between":
        server.serve(large.root, "r")
    words = {"push": ["push", name], "copy": ["copy", "store:" + name, target.place],
             "between": ["copy", "docker://%s/r:1" % server.host, target.place]}[command]
    half, go, ended = threading.Event(), threading.Event(), threading.Event()
    target.uploads.lenient = True

    def halfway(connection: Connection) -> None:
        """Take half, and the rest of what is on its way once the peer is gone."""
        held = target.uploads.sessions[connection.request.path.rpartition("/")[2]]
        try:
            for piece in connection.unread:
                held += piece
                if len(held) >= LARGE // 2 and not half.is_set():
                    half.set()
                    hold(go)(connection)
        finally:
            ended.set()

    target.on("PATCH", "", halfway, target.uploads.append)
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "--root", store.root, *words, "--progress", "plain"],
        env=driver_env(home), cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(half.is_set, "minipull " + command, process)
        process.send_signal(number)
        wait_until(lambda: process.poll() is not None, "its end")
    finally:
        process.kill()
        _, err = process.communicate()
        go.set()
    assert ended.wait(30)
    last = err.decode().splitlines()[-1]
    if number != signal.SIGKILL:
        reached = re.fullmatch(r"interrupted; the same command goes on at ([0-9.]+) of 100MB if the registry does", last)
        assert reached and 49 < float(reached.group(1)) < 60, last
    done = subprocess.run(
        [sys.executable, "-m", "minipull", "--root", store.root, *words, "--progress", "plain"],
        env=minipull_env(home), cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    rest = int(target.seen("PATCH")[-1].headers["content-length"])
    assert rest <= 60 * 10 ** 6 and len(target.seen("PATCH")) == 2
    summary = done.stderr.decode().splitlines()[-1]
    assert abs(float(summary.partition("MB")[0]) * 10 ** 6 - rest) < 10 ** 6, summary
    digest = json.loads(target.manifests["1"].decode())["layers"][0]["digest"]
    assert Digest.of(target.blobs[digest]) == digest
    assert os.listdir(os.path.join(store.root, "metadata", "uploads")) == []
