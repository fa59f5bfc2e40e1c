# SPDX-License-Identifier: Apache-2.0
"""Ingest: verified before it has a name, continued after a kill or a reboot, written by one owner."""
import builtins
import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.errors import Cancelled, ContentMismatch, StorageError
from minipull.store import ingest as store_ingest
from minipull.store.content import ContentStore
from minipull.store.ingest import Ingest
from tests.kit.processes import run, wait_until
from tests.kit.stores import ENV, at_once, failing

DATA = bytes(range(256)) * 40
DIGEST = Digest.of(DATA)
PART = "sha256-" + DIGEST.encoded


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path / "root"), timeout=10)


def start(store: ContentStore, size: int = len(DATA)) -> Ingest:
    return Ingest(store, Cancel(), DIGEST, size)


def leave(store: ContentStore, data: bytes) -> None:
    """Leave a partial behind, as a process that ends does; what comes in one piece is not kept."""
    with start(store) as ingest:
        ingest.write(data[:1])
        ingest.write(data[1:])


def finish(store: ContentStore) -> int:
    """Complete the blob; how many bytes of it were still held."""
    with start(store) as ingest:
        held = ingest.offset
        ingest.write(DATA[held:])
        ingest.commit()
    assert store.read(DIGEST, len(DATA)) == DATA
    return held


def scratch(store: ContentStore) -> List[str]:
    return sorted(os.listdir(store.scratch))


# -- verified before visible ---------------------------------------------------


def test_a_blob_appears_only_when_committed(store: ContentStore) -> None:
    with start(store) as ingest:
        for position in range(0, len(DATA), 1000):
            assert ingest.offset == position and store.size(DIGEST) is None
            ingest.write(DATA[position:position + 1000])
        ingest.verify("blob")
        assert store.size(DIGEST) is None
        ingest.commit()
        assert ingest.complete and store.has(DIGEST, len(DATA))
        ingest.commit()
    assert scratch(store) == []


def test_an_empty_blob_is_a_blob(store: ContentStore) -> None:
    empty = Digest.of(b"")
    with Ingest(store, Cancel(), empty, 0) as ingest:
        ingest.commit()
    assert store.read(empty, 0) == b""


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA[:-1] + b"x"], ids=["none", "short", "wrong"])
@pytest.mark.parametrize("verifying", [True, False])
def test_wrong_bytes_get_no_name_and_are_not_kept(store: ContentStore, data: bytes, verifying: bool) -> None:
    with start(store) as ingest:
        ingest.write(data)
        with pytest.raises(ContentMismatch) as info:
            ingest.verify("blob") if verifying else ingest.commit()
        assert not info.value.retry and ingest.offset == 0
    assert store.digests() == [] and finish(store) == 0


def test_not_one_byte_past_the_promised_size_is_written(store: ContentStore) -> None:
    with start(store) as ingest:
        ingest.write(DATA)
        with pytest.raises(ContentMismatch, match="longer than %d bytes" % len(DATA)):
            ingest.write(b"x")
        assert ingest.offset == 0 == os.stat(os.path.join(store.scratch, PART)).st_size
    assert finish(store) == 0


def test_wrong_bytes_of_an_earlier_attempt_are_worth_one_retry(store: ContentStore) -> None:
    leave(store, b"wrong")
    with start(store) as ingest:
        assert ingest.resumed
        for retry in (True, False):
            ingest.write(DATA[ingest.offset:-1] + b"x")
            with pytest.raises(ContentMismatch) as info:
                ingest.verify("blob")
            assert info.value.retry is retry


def test_after_a_restart_nothing_is_left_of_an_earlier_attempt(store: ContentStore) -> None:
    leave(store, b"wrong")
    with start(store) as ingest:
        ingest.restart()
        ingest.write(DATA[:-1] + b"x")
        with pytest.raises(ContentMismatch) as info:
            ingest.verify("blob")
        assert not info.value.retry


# -- resume --------------------------------------------------------------------

KILLED = """
import os, signal, sys
from minipull.store import content, ingest
from minipull.digest import Digest
from minipull.cancel import Cancel
ingest.SYNC_EVERY = int(sys.argv[3])
data = bytes(range(256)) * 40
ingest = ingest.Ingest(content.ContentStore(sys.argv[1]), Cancel(), Digest.of(data), len(data))
while ingest.offset < int(sys.argv[2]):
    ingest.write(data[ingest.offset:ingest.offset + 100])
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(store: ContentStore, written: int, every: int = 64 << 20) -> None:
    done = run([sys.executable, "-c", KILLED, store.root, str(written), str(every)], ENV, check=False)
    assert done.code == -signal.SIGKILL, done


def reboot(store: ContentStore) -> None:
    path = Path(store.scratch, PART + ".json")
    note = json.loads(path.read_text())
    path.write_text(json.dumps(dict(note, boot="another")))


def test_after_kill_9_every_byte_is_kept(store: ContentStore) -> None:
    killed(store, 5000)
    assert finish(store) == 5000
    assert scratch(store) == []


def test_after_a_reboot_only_what_was_synced_is_kept(store: ContentStore) -> None:
    killed(store, 5000, every=2000)
    reboot(store)
    assert finish(store) == 4000


def test_after_a_reboot_nothing_is_kept_that_was_never_synced(store: ContentStore) -> None:
    killed(store, 5000)
    reboot(store)
    assert finish(store) == 0


def test_a_resumed_partial_is_not_taken_for_synced(store: ContentStore) -> None:
    killed(store, 5000, every=2000)
    leave(store, b"")
    reboot(store)
    assert finish(store) == 4000


def test_where_the_system_names_no_boot_only_what_was_synced_is_kept(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    real: Callable[..., Any] = builtins.open
    store_ingest._boot_id.cache_clear()
    request.addfinalizer(store_ingest._boot_id.cache_clear)

    def opening(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith("boot_id"):
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 2000)
    leave(store, DATA[:2500])
    with start(store) as ingest:
        ingest.write(DATA[ingest.offset:2600])
        assert ingest.offset == 2600
    assert finish(store) == 2500


@pytest.mark.parametrize("note", [
    None, b"", b"{", b"[]", b"null", b"\xff", b"[" * 4000, b"{}" * 4000, b'{"length":-5,"boot":"B"}',
    b'{"length":1e999,"boot":"B"}', b'{"length":Infinity,"boot":"B"}', b'{"length":true,"boot":"B"}',
    b'{"length":5}', b'{"length":"5","boot":"B"}', b'{"boot":"B"}'])
def test_a_torn_side_file_costs_the_partial_and_no_more(store: ContentStore, note: Any) -> None:
    leave(store, DATA[:3000])
    path = Path(store.scratch, PART + ".json")
    boot = json.loads(path.read_text())["boot"].encode()
    path.unlink() if note is None else path.write_bytes(note.replace(b'"B"', b'"%s"' % boot))
    assert finish(store) == (5 if note == b'{"length":5}' else 0)


def test_a_note_left_by_a_kill_is_removed_by_the_next_ingest_of_the_blob(store: ContentStore) -> None:
    store.put(DIGEST, DATA)
    note = Path(store.scratch, PART + ".json")
    note.write_text("{}")
    with Ingest(store, Cancel(), DIGEST, len(DATA)) as ingest:
        assert ingest.complete
    assert os.listdir(store.scratch) == []


def test_a_partial_longer_than_promised_is_dropped(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 1000)
    leave(store, DATA)
    with start(store, 5000) as ingest:
        assert ingest.offset == 0
        note = json.loads(Path(store.scratch, PART + ".json").read_text())
        assert note["length"] == 0


def test_a_blob_of_another_size_is_fetched_again(store: ContentStore) -> None:
    finish(store)
    os.truncate(store.path(DIGEST), 100)
    assert finish(store) == 0


def test_the_side_file_never_promises_what_is_not_synced(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, replace = {}, os.replace  # inode: length
    real: Callable[[int], None] = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    def checked(source: str, target: str) -> None:
        if target.endswith(".json"):
            length = json.loads(Path(source).read_text())["length"]
            assert length <= synced.get(os.stat(target[:-5]).st_ino, 0)
            lengths.append(length)
        replace(source, target)

    lengths: List[int] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", checked)
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 1000)
    with start(store) as ingest:
        for position in range(0, 5000, 250):
            ingest.write(DATA[position:position + 250])
        ingest.restart()
        ingest.write(DATA)
    assert lengths == [0, 1000, 2000, 3000, 4000, 5000, 0, len(DATA)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the advice only drops pages")
@pytest.mark.parametrize("failure", [None, errno.ENOSYS])
def test_the_disk_begins_with_the_bytes_of_a_large_blob_before_its_end(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch, failure: Optional[int]) -> None:
    begun: List[Tuple[int, int]] = []

    def advised(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        begun.append((offset, offset + length))
        if failure is not None:
            raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "posix_fadvise", advised)
    monkeypatch.setattr(store_ingest, "BEGIN_EVERY", 2000)
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 5000)
    with start(store) as ingest:
        for position in range(0, 9000, 300):
            ingest.write(DATA[position:position + 300])
        ingest.write(DATA[9000:])
        ingest.commit()
    assert begun == [(0, 2100), (2000, 4200), (5100, 6000), (6000, 8100), (8000, len(DATA))]
    assert store.read(DIGEST, len(DATA)) == DATA


def test_a_large_blob_comes_in_where_a_disk_takes_no_advice(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(store_ingest, "BEGIN_EVERY", 2000)
    assert finish(store) == 0


def test_a_blob_that_comes_in_one_piece_has_no_note(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", None)
    with start(store) as ingest:
        ingest.write(DATA)
        assert os.listdir(store.scratch) == [PART]
    assert finish(store) == 0, "without a note nobody knows which bytes are good"
    assert os.listdir(store.scratch) == [] and store.read(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize("settle", [True, False])
def test_a_blob_is_synced_before_its_rename_and_the_folder_after(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch, settle: bool) -> None:
    calls: List[str] = []
    fsync, rename = os.fsync, os.rename
    store.put(Digest.of(b""), b"")
    def synced(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def renamed(old: str, new: str) -> None:
        calls.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    with start(store) as ingest:
        ingest.write(DATA)
        ingest.commit(settle=settle)
    if not settle:
        store.make_durable()
    assert calls[:3] == ["file", "rename", "folder"]


# -- one owner -----------------------------------------------------------------


class Waiter:
    """A thread that wants the partial; ``waiting`` once it found it locked."""

    def __init__(self, store: ContentStore, monkeypatch: pytest.MonkeyPatch,
                 each: Callable[[], object] = lambda: None) -> None:
        real = fcntl.flock
        self.waiting = threading.Event()
        self.cancel = Cancel()
        self.result: Any = None

        def flock(fd: int, operation: int) -> None:
            try:
                real(fd, operation)
            except OSError:
                self.waiting.set()
                each()
                raise

        monkeypatch.setattr(fcntl, "flock", flock)
        self._store = store
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.waiting.wait(30)

    def _run(self) -> None:
        try:
            with Ingest(self._store, self.cancel, DIGEST, len(DATA)) as ingest:
                self.result = (ingest.complete, ingest.offset)
        except BaseException as exc:
            self.result = exc

    def join(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


def test_a_waiting_ingest_finds_the_finished_blob_and_truncates_nothing(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as ingest:
        ingest.write(DATA)
        waiter = Waiter(store, monkeypatch)
        ingest.commit()
        blob = os.stat(store.path(DIGEST))
    assert waiter.join() == (True, 0)
    assert os.path.samestat(blob, os.stat(store.path(DIGEST)))
    assert store.read(DIGEST, len(DATA)) == DATA and scratch(store) == []


def test_a_waiting_ingest_continues_the_partial(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as ingest:
        ingest.write(DATA[:3000])
        waiter = Waiter(store, monkeypatch)
    assert waiter.join() == (False, 3000)


def test_a_waiting_ingest_notices_that_the_partial_was_replaced(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as ingest:
        ingest.write(DATA[:3000])
        waiter = Waiter(store, monkeypatch)
        os.rename(os.path.join(store.scratch, PART), os.path.join(store.scratch, "aside"))
        Path(store.scratch, PART).write_bytes(DATA[:2000])
    assert waiter.join() == (False, 2000)
    assert Path(store.scratch, "aside").read_bytes() == DATA[:3000]


def test_waiting_for_an_owner_can_be_cancelled(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as ingest:
        ingest.write(DATA[:3000])
        waiter = Waiter(store, monkeypatch)
        waiter.cancel.cancel()
        assert isinstance(waiter.join(), Cancelled)
    assert finish(store) == 3000


def test_an_owner_that_stands_still_is_named(store: ContentStore) -> None:
    store.timeout = 0.1
    with start(store), pytest.raises(StorageError) as info:
        start(store)
    assert re.search(r"sha256-\w+ is locked by (process %d|another process)" % os.getpid(), str(info.value))


def test_an_owner_who_has_more_than_the_blob_is_not_waited_for(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.timeout = 0.1
    with start(store, 1 << 50) as ingest:  # as a registry claims
        ingest.write(DATA)
        waiter = Waiter(store, monkeypatch, lambda: ingest.write(b"x"))
        assert isinstance(waiter.join(), StorageError)


def test_an_owner_whose_partial_grows_is_waited_for(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.timeout = 0.3
    with start(store) as ingest:
        position = iter(range(0, len(DATA), 1000))

        def move() -> None:
            at = next(position, None)
            if at is not None:
                ingest.write(DATA[at:at + 1000])

        waiter = Waiter(store, monkeypatch, move)
        wait_until(lambda: ingest.offset == len(DATA), "the owner")
        ingest.commit()
    assert waiter.join() == (True, 0)


RACER = """
import sys
from minipull.store.content import ContentStore
from minipull.store.ingest import Ingest
from minipull.digest import Digest
from minipull.cancel import Cancel
data = bytes(range(256)) * 40
print("ready", flush=True)
sys.stdin.readline()
with Ingest(ContentStore(sys.argv[1]), Cancel(), Digest.of(data), len(data)) as ingest:
    print("waited" if ingest.complete else "wrote", flush=True)
    for at in range(0, 0 if ingest.complete else len(data), 64):
        ingest.write(data[at:at + 64])
    ingest.commit()
"""


def test_of_eight_processes_exactly_one_writes(store: ContentStore) -> None:
    with at_once(RACER, [[store.root]] * 8) as racers:
        said = [racer.communicate(timeout=60)[0] for racer in racers]
    assert sorted(said) == [b"waited\n"] * 7 + [b"wrote\n"]
    assert [racer.returncode for racer in racers] == [0] * 8
    assert store.read(DIGEST, len(DATA)) == DATA and scratch(store) == []


def test_a_full_disk_keeps_the_bytes_that_were_written(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as ingest:
        ingest.write(DATA[:3000])
        real = os.write
        short = failing(errno.ENOSPC, 1, lambda fd, data: real(fd, data[:100]))
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StorageError, match="No space left.*gc") as info:
            ingest.write(DATA[3000:6000])
        assert info.value.exit_code == 7
        monkeypatch.undo()
    assert store.digests() == [] and finish(store) == 3100


@pytest.mark.parametrize("name, after, kept", [
    ("fsync", 0, 0), ("rename", 0, len(DATA)), ("ftruncate", 0, 5000), ("readv", 0, 5000),
    ("replace", 0, 5000), ("unlink", 0, None), ("open", 0, 5000)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_any_failure_is_an_error_and_the_next_try_succeeds(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch, name: str, after: int, kept: Any,
        code: int) -> None:
    leave(store, DATA[:5000])
    monkeypatch.setattr(os, name, failing(code, after, getattr(os, name)))
    with pytest.raises(StorageError, match=re.escape(os.strerror(code))):
        finish(store)
    monkeypatch.undo()
    if kept is None:  # it failed when all was done
        assert store.read(DIGEST, len(DATA)) == DATA
    else:
        assert store.digests() == [] and finish(store) == kept


def test_a_folder_that_can_not_be_synced_is_an_error(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(store, DATA)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, 1, os.fsync))
    with start(store) as ingest, pytest.raises(StorageError, match="Input/output"):
        ingest.commit()


def test_bytes_of_a_failed_sync_are_never_kept(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_ingest, "SYNC_EVERY", 1000)
    with start(store) as ingest:
        ingest.write(DATA[:1500])
        monkeypatch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(StorageError):
            ingest.write(DATA[1500:3000])
    monkeypatch.undo()
    assert finish(store) == 0


def test_a_failing_close_is_a_storage_error(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, close = start(store), os.close
    monkeypatch.setattr(os, "close", lambda fd: (close(fd), failing(errno.EIO)())[0])
    with pytest.raises(StorageError, match="Input/output"):
        ingest.close()
    ingest.close()


LIMITED = """
import resource, sys
from minipull.store.content import ContentStore
from minipull.store.ingest import Ingest
from minipull.digest import Digest
from minipull.errors import StorageError
from minipull.cancel import Cancel
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
data = bytes(range(256)) * 40
store = ContentStore(sys.argv[1])
try:
    with Ingest(store, Cancel(), Digest.of(data), len(data)) as ingest:
        ingest.write(data[:4000])
        ingest.write(data[4000:])
except StorageError as exc:
    print(exc.exit_code, exc, store.digests())
"""


def test_a_file_size_limit_is_a_storage_error(store: ContentStore) -> None:
    done = run([sys.executable, "-c", LIMITED, store.root], ENV)
    assert done.out.startswith("7 write ") and done.out.endswith("File too large []\n")
    assert finish(store) == 4096


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.call(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], stderr=subprocess.DEVNULL):
        pytest.skip("needs to mount a tmpfs")
    yield path
    subprocess.check_call(["umount", "-l", str(path)])


def test_a_full_file_system_leaves_a_usable_store(tiny: Path) -> None:
    store = ContentStore(str(tiny / "root"))
    finish(store)
    big = os.urandom(400 << 10)
    digest = Digest.of(big)
    for _ in range(2):
        with pytest.raises(StorageError, match="No space left"):
            with Ingest(store, Cancel(), digest, len(big)) as ingest:
                ingest.write(big[ingest.offset:])
    assert store.digests() == [DIGEST] and store.read(DIGEST, len(DATA)) == DATA
    with pytest.raises(StorageError, match="No space left"):
        store.put(Digest.of(big[1:]), big[1:])
    assert [name for name in scratch(store) if name.startswith(".minipull-")] == []
    for name in scratch(store):
        os.unlink(os.path.join(store.scratch, name))
    store.put(Digest.of(b"small"), b"small")


@pytest.mark.parametrize("target", ["/dev/full", "secret"])
def test_no_partial_is_written_through_a_link(store: ContentStore, tmp_path: Path, target: str) -> None:
    os.makedirs(store.scratch)
    (tmp_path / "secret").write_bytes(b"kept")
    os.symlink(str(tmp_path / target), os.path.join(store.scratch, PART))
    with pytest.raises(StorageError, match="symbolic link"):
        start(store)
    assert (tmp_path / "secret").read_bytes() == b"kept"


def test_a_planted_fifo_does_not_hang(store: ContentStore) -> None:
    os.makedirs(store.scratch)
    os.mkfifo(os.path.join(store.scratch, PART))
    with pytest.raises(StorageError, match="not a regular file"):
        start(store)


def test_everything_is_private_under_any_umask(store: ContentStore) -> None:
    old = os.umask(0)
    try:
        leave(store, DATA[:9])
        modes = {os.lstat(os.path.join(folder, name)).st_mode & 0o777
                 for folder, _, names in os.walk(store.root) for name in names}
        finish(store)
    finally:
        os.umask(old)
    folders = {os.stat(folder).st_mode & 0o777 for folder, _, _ in os.walk(store.root)}
    assert (modes, folders) == ({0o600}, {0o700})
    assert stat.S_IMODE(os.stat(store.path(DIGEST)).st_mode) == 0o600


# -- without a promise ---------------------------------------------------------


def test_a_blob_that_arrives_without_a_digest_is_named_by_its_bytes(store: ContentStore) -> None:
    with Ingest(store, Cancel(), name="arrival") as arrival:
        arrival.write(DATA)
        assert (arrival.commit(), arrival.offset) == (DIGEST, len(DATA))
    assert store.read(DIGEST, len(DATA)) == DATA and scratch(store) == []


def test_an_arrival_that_is_discarded_leaves_nothing(store: ContentStore) -> None:
    with Ingest(store, Cancel(), name="arrival") as arrival:
        arrival.write(DATA)
        arrival.discard()
    assert store.digests() == [] and scratch(store) == []
