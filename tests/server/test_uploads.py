# SPDX-License-Identifier: Apache-2.0
"""Upload sessions: no byte lost, none under a name that is not its own, and no session for ever."""
import contextlib
import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest

from tests.kit.processes import run
from tests.kit.images import digest_of
from minipull import files
from minipull.server import blobs
from minipull.store.gc import gc
from minipull.store import ingest as store_ingest
from minipull.store.content import ContentStore
from minipull.digest import Digest, Verifier
from minipull.errors import ContentMismatch, NotFound, PolicyError, RateLimited, StorageError
from minipull.files import Locked
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.server.blobs import Upload, UploadStore
from tests.kit.stores import ENV, age, killed_at, problems

REPOSITORY = "team/app"
DATA = bytes(range(256)) * 40
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"), timeout=10)


@pytest.fixture
def content(store: Store) -> ContentStore:
    return store.content


@pytest.fixture
def sessions(content: ContentStore) -> UploadStore:
    return UploadStore(content)


def append(sessions: UploadStore, name: str, data: bytes) -> int:
    """Append to a session; what it then holds."""
    with sessions.owning(REPOSITORY, name) as upload:
        upload.write(memoryview(data))
        return upload.offset


def commit(sessions: UploadStore, name: str, digest: Digest = DIGEST) -> None:
    with sessions.owning(REPOSITORY, name) as upload:
        upload.commit(digest)


def scratch(content: ContentStore) -> List[str]:
    return os.listdir(content.scratch)


def assert_gone(sessions: UploadStore, name: str) -> None:
    with pytest.raises(NotFound):
        sessions.size(REPOSITORY, name)
    with pytest.raises(NotFound), sessions.owning(REPOSITORY, name):
        pass


# -- one session ---------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_blob_has_its_name_once_it_is_committed_and_not_before(
        store: Store, content: ContentStore, sessions: UploadStore, algorithm: str) -> None:
    digest = Digest.of(DATA, algorithm)
    name = sessions.start(REPOSITORY)
    assert sessions.size(REPOSITORY, name) == 0
    assert append(sessions, name, DATA[:100]) == 100 == sessions.size(REPOSITORY, name)
    assert append(sessions, name, DATA[100:]) == len(DATA)
    assert content.digests() == []
    commit(sessions, name, digest)
    assert content.read(digest, len(DATA)) == DATA
    assert content.digests() == [digest] and scratch(content) == []
    assert_gone(sessions, name)
    assert problems(store) == []


@pytest.mark.parametrize("wrong", [Digest.of(b"else"), Digest.of(DATA[:-1]), Digest.of(b"", "sha512")],
                         ids=["else", "shorter", "sha512"])
def test_bytes_that_are_not_the_digest_leave_nothing(
        content: ContentStore, sessions: UploadStore, wrong: Digest) -> None:
    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA)
    with pytest.raises(ContentMismatch):
        commit(sessions, name, wrong)
    assert content.digests() == [] and scratch(content) == []
    assert_gone(sessions, name)


def test_bytes_are_hashed_as_they_come_and_not_again(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(fd: int, verifier: Verifier, cancel: Cancel) -> None:
        assert os.fstat(fd).st_size == 0, "read again"

    monkeypatch.setattr(store_ingest, "hash_file", read)
    name = sessions.start(REPOSITORY)
    for start in range(0, len(DATA), 5000):
        append(sessions, name, DATA[start:start + 5000])
    commit(sessions, name)
    assert content.digests() == [DIGEST]


def test_committing_repairs_a_blob_that_was_corrupt(content: ContentStore, sessions: UploadStore) -> None:
    content.put(DIGEST, DATA)
    Path(content.path(DIGEST)).write_bytes(b"rotten")
    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA)
    commit(sessions, name)
    assert content.read(DIGEST, len(DATA)) == DATA


def test_a_session_is_abandoned_at_once(content: ContentStore, sessions: UploadStore) -> None:
    name = sessions.start(REPOSITORY)
    with sessions.owning(REPOSITORY, name) as upload:
        upload.discard()
        upload.discard()
    assert_gone(sessions, name)
    assert scratch(content) == []


def test_a_session_belongs_to_its_repository(sessions: UploadStore) -> None:
    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA)
    for other in ("team/other", "team", "team/app/", "docker.io/team/app"):
        with pytest.raises(NotFound):
            sessions.size(other, name)
        with pytest.raises(NotFound), sessions.owning(other, name):
            pass
    assert sessions.size(REPOSITORY, name) == len(DATA)


@pytest.mark.parametrize("change", [
    str.upper, lambda name: name + "\n", lambda name: "../ingest/" + name, lambda name: name[:-1],
    lambda name: "", lambda name: "..", lambda name: "*" * 36, lambda name: name.replace("-", ""),
    lambda name: "upload-" + name, lambda name: "\0" + name[1:]])
def test_an_id_that_was_never_given_out_is_unknown(
        sessions: UploadStore, change: Callable[[str], str]) -> None:
    name = "0a1b2c3d-0a1b-4c2d-8e3f-0a1b2c3d4e5f"
    os.makedirs(os.path.dirname(sessions._path(REPOSITORY, name)))
    Path(sessions._path(REPOSITORY, name)).write_bytes(DATA)
    assert sessions.size(REPOSITORY, name) == len(DATA)
    assert_gone(sessions, change(name))


def test_a_link_in_the_place_of_a_session_is_not_followed(
        tmp_path: Path, sessions: UploadStore) -> None:
    name = sessions.start(REPOSITORY)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    os.unlink(sessions._path(REPOSITORY, name))
    os.symlink(str(victim), sessions._path(REPOSITORY, name))
    with pytest.raises(StorageError):
        append(sessions, name, DATA)
    assert victim.read_bytes() == b"mine"


def test_where_nothing_was_ever_uploaded_no_session_is_known(store: Store, sessions: UploadStore) -> None:
    assert_gone(sessions, "0a1b2c3d-0a1b-4c2d-8e3f-0a1b2c3d4e5f")
    assert not os.path.exists(store.root)


def test_after_a_reboot_a_session_continues_with_the_bytes_that_were_synced(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 4000)
    name = sessions.start(REPOSITORY)
    for start in range(0, 6000, 2000):
        append(sessions, name, DATA[start:start + 2000])
    monkeypatch.setattr(store_ingest, "_boot_id", lambda: "the next boot")
    with UploadStore(content).owning(REPOSITORY, name) as upload:
        assert upload.offset == 4000
        upload.write(DATA[4000:])
        upload.commit(DIGEST)
    assert content.read(DIGEST, len(DATA)) == DATA and scratch(content) == []


# -- many servers, many writers ------------------------------------------------


def test_any_server_of_the_store_may_go_on_with_a_session(
        content: ContentStore, sessions: UploadStore) -> None:
    others = [sessions, UploadStore(content), UploadStore(ContentStore(content.root))]
    name = sessions.start(REPOSITORY)
    for start in range(0, len(DATA), 1000):
        append(others[start // 1000 % 3], name, DATA[start:start + 1000])
    commit(others[0], name)
    assert content.read(DIGEST, len(DATA)) == DATA
    for other in others:
        assert_gone(other, name)


def test_a_second_writer_waits_and_then_gives_up(
        sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BUSY", 0.0)
    name = sessions.start(REPOSITORY)
    with sessions.owning(REPOSITORY, name) as upload:
        upload.write(memoryview(DATA[:10]))
        with pytest.raises(Locked), sessions.owning(REPOSITORY, name):
            pass
        upload.write(memoryview(DATA[10:]))
    commit(sessions, name)


@pytest.mark.parametrize("end", [None, lambda upload: upload.commit(DIGEST), Upload.discard],
                         ids=["left", "committed", "abandoned"])
def test_a_writer_that_waited_continues_unless_the_session_has_ended(
        sessions: UploadStore, end: Optional[Callable[[Upload], None]]) -> None:
    name = sessions.start(REPOSITORY)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(sessions.owning(REPOSITORY, name))
        first.write(memoryview(DATA))

        class Meanwhile(Cancel):
            def pause(self, seconds: float) -> None:
                if end is not None:
                    end(first)
                stack.close()

        if end is None:
            with sessions.owning(REPOSITORY, name, Meanwhile()) as second:
                assert second.offset == len(DATA)
                second.commit(DIGEST)
        else:
            with pytest.raises(NotFound), sessions.owning(REPOSITORY, name, Meanwhile()):
                pass
    assert_gone(sessions, name)


def test_one_blob_by_many_sessions_at_once_is_one_blob(
        store: Store, content: ContentStore, sessions: UploadStore) -> None:
    other = UploadStore(ContentStore(content.root))
    names = [sessions.start(REPOSITORY) for _ in range(8)]

    def upload(server: UploadStore, name: str) -> None:
        for start in range(0, len(DATA), 1000):
            append(server, name, DATA[start:start + 1000])
        commit(server, name)

    threads = [threading.Thread(target=upload, args=((sessions, other)[n % 2], name))
               for n, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content.digests() == [DIGEST] and scratch(content) == []
    assert problems(store) == []


# -- sessions that nobody goes on with -----------------------------------------


def test_an_old_session_ends_unless_it_is_owned(
        content: ContentStore, sessions: UploadStore) -> None:
    old, owned = sessions.start(REPOSITORY), sessions.start(REPOSITORY)
    append(sessions, old, DATA)
    long_ago = time.time() - blobs.EXPIRE - 60
    with sessions.owning(REPOSITORY, owned):
        for name in os.listdir(content.scratch):
            os.utime(os.path.join(content.scratch, name), (long_ago, long_ago))
        young = sessions.start("another/repository")
    assert_gone(sessions, old)
    assert sessions.size(REPOSITORY, owned) == 0
    assert sessions.size("another/repository", young) == 0
    assert os.path.basename(sessions._path(REPOSITORY, old)) + ".json" not in os.listdir(content.scratch)
    assert list(sessions._hashed) == [sessions._path(REPOSITORY, owned)]


@pytest.mark.parametrize("plant", [os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)],
                         ids=["directory", "fifo", "link"])
def test_an_odd_entry_among_the_sessions_hinders_no_upload(
        content: ContentStore, sessions: UploadStore, plant: Callable[[str], None]) -> None:
    old = sessions.start(REPOSITORY)
    odd = sessions._path(REPOSITORY, "0a1b2c3d-0a1b-4c2d-8e3f-0a1b2c3d4e5f")
    plant(odd)
    for path in (sessions._path(REPOSITORY, old), odd):
        os.utime(path, (0, 0), follow_symlinks=False)
    name = sessions.start(REPOSITORY)
    assert_gone(sessions, old)
    append(sessions, name, DATA)
    commit(sessions, name)
    assert content.digests() == [DIGEST] and scratch(content) == [os.path.basename(odd)]
    assert sessions.sweep() == 1  # it takes a place


def test_an_old_session_may_be_removed_by_two_at_once(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sessions.start(REPOSITORY)
    path = sessions._path(REPOSITORY, name)
    os.utime(path, (0, 0))
    monkeypatch.setattr(files, "lock", lambda fd, path, exclusive, timeout: os.unlink(path))
    assert sessions.sweep() == 0
    assert_gone(sessions, name)


def test_the_number_of_sessions_has_a_bound(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_SESSIONS", 2)
    first, _ = sessions.start(REPOSITORY), sessions.start(REPOSITORY)
    Path(content.scratch, "sha256-" + DIGEST.encoded).write_bytes(b"what a pull left")
    with pytest.raises(RateLimited):
        sessions.start("another/repository")
    append(sessions, first, DATA)
    commit(sessions, first)
    sessions.start("another/repository")
    with pytest.raises(RateLimited):
        sessions.start(REPOSITORY)


def test_gc_ends_sessions_by_age_and_by_force(store: Store, sessions: UploadStore) -> None:
    with store.writing():
        name = sessions.start(REPOSITORY)
        append(sessions, name, DATA)
    gc(store)
    assert sessions.size(REPOSITORY, name) == len(DATA)
    age(store)
    gc(store)
    assert_gone(sessions, name)
    forced = sessions.start(REPOSITORY)
    gc(store, 0)
    assert_gone(sessions, forced)
    assert problems(store) == []


# -- disks ---------------------------------------------------------------------


def test_no_upload_takes_the_last_of_the_disk(
        sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sessions.start(REPOSITORY)
    monkeypatch.setattr(blobs, "RESERVE", 1 << 62)
    with pytest.raises(StorageError, match="free some space"):
        sessions.start(REPOSITORY)
    monkeypatch.setattr(blobs, "_CHECK_EVERY", 1000)
    with pytest.raises(StorageError) as caught:
        for n in range(10):
            append(sessions, name, DATA[n * 300:][:300])
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert sessions.size(REPOSITORY, name) == 900
    monkeypatch.undo()
    append(sessions, name, DATA[900:])
    commit(sessions, name)


def test_a_disk_that_fills_up_loses_nothing(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(fd: int, data: "memoryview") -> None:
        os.write(fd, data[:len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA[:1000])
    monkeypatch.setattr(files, "write_all", half)
    with pytest.raises(StorageError, match="free some space"):
        append(sessions, name, DATA[1000:3000])
    monkeypatch.undo()
    assert sessions.size(REPOSITORY, name) == 2000
    append(sessions, name, DATA[2000:])
    commit(sessions, name)
    assert content.read(DIGEST, len(DATA)) == DATA


def test_an_upload_has_a_largest_size(
        sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_BLOB", 1000)
    name = sessions.start(REPOSITORY)
    assert append(sessions, name, DATA[:1000]) == 1000
    with pytest.raises(PolicyError):
        append(sessions, name, b"1")
    assert sessions.size(REPOSITORY, name) == 1000


def test_bytes_that_can_not_be_synced_are_no_blob(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="store blob"):
        commit(sessions, name)
    monkeypatch.undo()
    assert content.digests() == []
    assert_gone(sessions, name)


def test_a_blob_is_synced_before_it_has_its_name_and_its_directory_after(
        content: ContentStore, sessions: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: List[str] = []
    fsync, rename, mkdir = os.fsync, os.rename, os.mkdir

    def synced(fd: int) -> None:
        calls.append("fsync " + os.path.basename(os.readlink("/proc/self/fd/%d" % fd)))
        fsync(fd)

    def renamed(source: str, target: str) -> None:
        calls.append("rename " + os.path.basename(target))
        rename(source, target)

    def made(path: str, mode: int) -> None:
        calls.append("mkdir " + os.path.basename(path))
        mkdir(path, mode)

    name = sessions.start(REPOSITORY)
    append(sessions, name, DATA)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "mkdir", made)
    commit(sessions, name)
    assert calls == [
        "fsync " + os.path.basename(sessions._path(REPOSITORY, name)),
        "fsync " + os.path.basename(os.path.dirname(sessions._content.root)),
        "mkdir blobs", "fsync root", "mkdir sha256", "fsync blobs",
        "rename " + DIGEST.encoded, "fsync sha256"]


# -- kill -9 -------------------------------------------------------------------


def upload_all(sessions: UploadStore) -> None:
    name = sessions.start(REPOSITORY)
    for start in range(0, len(DATA), 4000):
        append(sessions, name, DATA[start:start + 4000])
    commit(sessions, name)


def held(content: ContentStore) -> Iterator[str]:
    """The ids of the sessions, without their notes and what a kill left of these."""
    for name in os.listdir(content.scratch) if os.path.isdir(content.scratch) else []:
        if blobs._SESSION.fullmatch(name):
            yield name[len("upload-"):-len("-0123456789abcdef")]


def crash(root: str) -> None:
    """Runs in a process of its own, which may fork."""
    k, killed = 0, True
    while killed:
        k += 1
        store = Store(os.path.join(root, "store-%d" % k), timeout=1)
        killed = killed_at(k, lambda: upload_all(UploadStore(store.content)))
        assert problems(store) == [], (k, problems(store))
        for path in Path(store.root, "blobs").glob("*/*"):
            assert digest_of(path.read_bytes())[7:] == path.name, (k, path)
        after = UploadStore(store.content)
        for name in held(store.content):  # the client asks how much is there, and goes on
            append(after, name, DATA[after.size(REPOSITORY, name):])
            commit(after, name)
            assert store.content.digests() == [DIGEST], k
        upload_all(after)
        assert store.content.digests() == [DIGEST] and list(held(store.content)) == [], k
        assert problems(store) == [], k
        gc(store, 0)
        assert os.listdir(store.content.scratch) == [], k
    print(k)


def test_kill_9_at_any_call_loses_no_byte_and_names_no_half_of_a_blob(tmp_path: Path) -> None:
    code = "import sys; from tests.server import test_uploads; test_uploads.crash(sys.argv[1])"
    done = run([sys.executable, "-c", code, str(tmp_path)], dict(os.environ, **ENV), timeout=60)
    assert int(done.out) >= 14
