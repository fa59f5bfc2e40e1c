# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from tests.kit import ROOT
from tests.kit.layers import NOBODY, as_nobody, fast_folder, in_child

from minipull import files
from minipull.errors import Cancelled, InvalidDocument, StorageError
from minipull.files import (
    Locked, directory_beside, lock, make_directory, open_regular, read_bytes, replacing, sweep, sync_directory, write_all,
    write_atomic)
from minipull.cancel import Cancel


TIMEOUT = 30.0


def fails(number: int) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))
    return call


class Syscalls:
    """What was written, synced and renamed, in order, by path; the calls still happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: List[Tuple[str, ...]] = []
        write, fsync, replace, mkdir = os.write, os.fsync, os.replace, os.mkdir

        def path(fd: int) -> str:
            return os.path.basename(os.readlink("/proc/self/fd/%d" % fd))

        def record(name: str, call: Callable[..., Any], names: Callable[..., Tuple[str, ...]]) -> None:
            def recorded(*args: Any) -> Any:
                self.done.append((name,) + names(*args))
                return call(*args)
            monkeypatch.setattr(os, name, recorded)

        record("write", write, lambda fd, data: (path(fd)[:4],))
        record("fsync", fsync, lambda fd: (path(fd)[:4],))
        record("replace", replace, lambda old, new: (os.path.basename(old)[:4], os.path.basename(new)))
        record("mkdir", mkdir, lambda name, mode: (os.path.basename(name), oct(mode)))


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc")


# -- directories -------------------------------------------------------------------


@linux
def test_directories_are_private_and_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Syscalls(monkeypatch)
    base = tmp_path / "base"
    base.mkdir(0o700)
    calls.done.clear()
    make_directory(str(base / "x" / "y"))
    assert calls.done == [
        ("fsync", tmp_path.name[:4]), ("mkdir", "x", "0o700"), ("fsync", "base"), ("mkdir", "y", "0o700"),
        ("fsync", "x")]
    assert stat.S_IMODE((base / "x" / "y").stat().st_mode) == 0o700
    make_directory(str(base / "x" / "y"))
    assert len(calls.done) == 5


def test_a_relative_directory_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_directory("one")
    make_directory("two/three/")
    write_atomic("file", b"x", "one")
    assert sorted(os.listdir(".")) == ["file", "one", "two"] and os.listdir("two") == ["three"]


def test_a_directory_made_by_another_process_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def twice(path: str, mode: int) -> None:
        mkdir(path, mode)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", twice)
    make_directory(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("obstacle", ["file", "dangling link"])
def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "a"
    if obstacle == "file":
        path.write_bytes(b"")
    else:
        path.symlink_to("nowhere")
    for wanted in (path, path / "b"):
        with pytest.raises(StorageError, match="create %s: " % wanted):
            make_directory(str(wanted))


@linux
def test_a_directory_whose_maker_was_killed_is_synced_before_it_gets_a_child(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    calls = Syscalls(monkeypatch)
    make_directory(str(tmp_path / "x" / "y"))
    assert calls.done == [("fsync", tmp_path.name[:4]), ("mkdir", "y", "0o700"), ("fsync", "x")]


@pytest.mark.parametrize("call, number, done", [
    *[("fsync", number, True) for number in (
        errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)],
    ("open", errno.EACCES, True),
    *[("fsync", number, False) for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)],
    ("open", errno.EIO, False), ("open", errno.ENOENT, False)])
def test_a_directory_that_can_not_be_synced_is_no_error_and_a_failing_disk_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, done: bool) -> None:
    """CIFS, old FUSE and drvfs sync no directories; one of mode 0333 can't be opened."""
    real = getattr(os, call)

    def failing(target: Any, *args: Any) -> Any:
        folder = os.path.isdir("/proc/self/fd/%d" % target if isinstance(target, int) else target)
        return fails(number)() if folder else real(target, *args)

    monkeypatch.setattr(os, call, failing)
    path = str(tmp_path / "file")
    if done:
        write_atomic(path, b"x", str(tmp_path))
        make_directory(str(tmp_path / "a" / "b"))
    else:
        with pytest.raises(StorageError, match=os.strerror(number)):
            write_atomic(path, b"x", str(tmp_path))
    assert read_bytes(path, 10) == b"x"


# -- opening and reading --------------------------------------------------------------


def test_a_small_file_takes_little_memory_to_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    write_atomic(path, b"abc", str(tmp_path))
    tracemalloc.start()
    try:
        assert read_bytes(path, 16 << 20) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 256 << 10
    finally:
        tracemalloc.stop()


def test_a_file_is_made_private_and_reopened(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    fd = open_regular(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abc")
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600 and not os.get_inheritable(fd)
    os.close(fd)
    assert read_bytes(path, 3) == b"abc"


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="no file that says it has no bytes")
def test_a_file_is_read_whole_whatever_size_it_says_it_has() -> None:
    assert os.stat("/proc/version").st_size == 0
    assert read_bytes("/proc/version", 4096) == Path("/proc/version").read_bytes()


def test_a_planted_link_or_fifo_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"secret")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError) as caught:
        open_regular(str(tmp_path / "link"))
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(StorageError, match="a symbolic link stands where the store keeps a file"):
        read_bytes(str(tmp_path / "link"), 10)
    os.mkfifo(str(tmp_path / "fifo"))
    for name in ("fifo", "."):
        with pytest.raises(StorageError, match="is not a regular file"):
            open_regular(str(tmp_path / name))
        with pytest.raises(StorageError, match="is not a regular file"):
            read_bytes(str(tmp_path / name), 10)
    assert target.read_bytes() == b"secret"


def test_a_small_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert read_bytes(path, 10) is None
    assert read_bytes(str(tmp_path / "no" / "file"), 10) is None
    for size in (0, 9, 10):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert read_bytes(path, 10) == b"x" * size
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(InvalidDocument, match="file is larger than 10 bytes"):
        read_bytes(path, 10)
    with pytest.raises(StorageError, match="Not a directory"):
        read_bytes(path + "/below", 10)


# -- writing -------------------------------------------------------------------------


def short_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 5
    with (tmp_path / "file").open("wb") as file:
        with monkeypatch.context() as patch:
            short_writes(patch)
            write_all(file.fileno(), memoryview(data))
            write_all(file.fileno(), memoryview(b""))
    assert (tmp_path / "file").read_bytes() == data


@linux
def test_a_file_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, final = tmp_path / "scratch", tmp_path / "root"
    scratch.mkdir()
    final.mkdir()
    calls = Syscalls(monkeypatch)
    write_atomic(str(final / "x.json"), b"old", str(scratch))
    assert calls.done == [
        ("write", ".min"), ("fsync", ".min"), ("replace", ".min", "x.json"), ("fsync", "root")]
    calls.done.clear()
    write_atomic(str(final / "x.json"), b"new", str(scratch), durable=False)
    assert [call[0] for call in calls.done] == ["write", "replace"]
    assert (final / "x.json").read_bytes() == b"new"
    assert stat.S_IMODE((final / "x.json").stat().st_mode) == 0o600
    assert os.listdir(str(scratch)) == []


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomic(str(tmp_path / "link"), b"new", str(tmp_path))
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync", "close", "replace"])
def test_a_failing_disk_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write_atomic(str(tmp_path / "file"), b"old", str(tmp_path))
    close = os.close

    def closes(fd: int) -> None:
        close(fd)
        fails(number)()

    with monkeypatch.context() as patch:
        patch.setattr(os, call, closes if call == "close" else fails(number))
        with pytest.raises(StorageError) as caught:
            write_atomic(str(tmp_path / "file"), b"new", str(tmp_path))
    assert str(caught.value).startswith("write %s: %s" % (tmp_path / "file", os.strerror(number)))
    assert caught.value.exit_code == 7
    assert os.listdir(str(tmp_path)) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_the_first_trouble_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails(errno.ENOSPC))
        patch.setattr(os, "unlink", fails(errno.EIO))
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            write_atomic(str(tmp_path / "file"), b"new", str(tmp_path))
        with pytest.raises(StorageError, match="No such file or directory"):
            write_atomic(str(tmp_path / "file"), b"new", str(tmp_path / "missing"))


@linux
def test_a_full_device_is_an_error() -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        write_all(file.fileno(), memoryview(b"x"))
    assert caught.value.errno == errno.ENOSPC


# -- what a kill leaves ----------------------------------------------------------------


def left(tmp_path: Path) -> List[str]:
    return sorted(os.listdir(str(tmp_path)))


@pytest.mark.parametrize("name", ["file.tar", "[*]?\n", "x" * 255, "\U0001f433" * 63, "-"])
def test_what_a_kill_leaves_is_named_for_its_target_and_swept_by_the_next_write(
        tmp_path: Path, name: str) -> None:
    def killed() -> None:
        with replacing(str(tmp_path / name), str(tmp_path)) as fd:
            os.write(fd, b"secret")
            os._exit(9)

    with pytest.raises(EOFError):
        in_child(killed)
    [debris] = left(tmp_path)
    assert debris.startswith(".minipull-%s-" % name[:50])
    assert stat.S_IMODE((tmp_path / debris).stat().st_mode) == 0o600
    write_atomic(str(tmp_path / "other"), b"", str(tmp_path))
    assert left(tmp_path) == [debris, "other"], "it is not this target's"
    write_atomic(str(tmp_path / name), b"new", str(tmp_path))
    assert left(tmp_path) == sorted([name, "other"])


def test_only_what_is_ours_and_not_in_use_is_swept(tmp_path: Path) -> None:
    names = {name: tmp_path / (".minipull-file-" + name) for name in (
        "file1234", "tree1234", "used1234", "tools1234", "link1234", "fifo1234", "foreign1")}
    for name, path in names.items():
        path.write_bytes(b"x")
    for name in ("tree1234", "link1234", "fifo1234"):
        names[name].unlink()
    (names["tree1234"] / "blobs").mkdir(parents=True)
    names["link1234"].symlink_to(tmp_path / "target")
    (tmp_path / "target").mkdir()
    os.mkfifo(str(names["fifo1234"]))
    if os.geteuid() == 0:
        os.chown(str(names["foreign1"]), 5, 5)
    fd = open_regular(str(names["used1234"]), os.O_RDWR)
    lock(fd, "used", True)
    write_atomic(str(tmp_path / "file"), b"x", str(tmp_path))
    gone = {name for name, path in names.items() if not os.path.lexists(str(path))}
    assert gone == {"file1234", "tree1234"} | ({"foreign1"} if os.geteuid() else set())
    os.close(fd)
    write_atomic(str(tmp_path / "file"), b"x", str(tmp_path))
    assert not names["used1234"].exists() and (tmp_path / "target").is_dir()


@pytest.mark.parametrize("make", ["file", "folder"])
def test_what_is_being_made_is_never_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str) -> None:
    """Neither while it is used, nor, but for a new try, between its making and its lock."""
    path, real = str(tmp_path / "file"), fcntl.flock
    tries: List[int] = []

    def flock(fd: int, operation: int) -> None:
        if not tries:
            tries.append(fd)
            sweep(str(tmp_path), path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    made: Any = replacing(path, str(tmp_path)) if make == "file" else directory_beside(path, shutil.rmtree)
    with made:
        assert tries and len(left(tmp_path)) == 1
        sweep(str(tmp_path), path)
        sweep(str(tmp_path))
        assert len(left(tmp_path)) == 1
    assert left(tmp_path) == (["file"] if make == "file" else [])


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".minipull-file-12345678").write_bytes(b"")
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    write_atomic(str(tmp_path / "file"), b"x", str(tmp_path))
    assert left(tmp_path) == [".minipull-file-12345678", "file"]


def test_a_directory_that_can_not_be_listed_is_written_to() -> None:
    with fast_folder() as folder:
        if os.geteuid() == 0:
            os.chown(str(folder), NOBODY, NOBODY)
        folder.chmod(0o333)
        as_nobody(lambda: write_atomic(str(folder / "file"), b"x", str(folder)))
        folder.chmod(0o700)
        assert left(folder) == ["file"]


# -- locks ---------------------------------------------------------------------------


class Clock:
    """Time that passes only where somebody pauses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: List[float] = []

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """Two open files of one path, as two threads or two processes have them."""
    path = str(tmp_path / "lock")
    fds = [open_regular(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield fds[0], fds[1], path
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("first,second,both", [
    (False, False, True), (False, True, False), (True, False, False), (True, True, False)])
def test_an_exclusive_lock_shuts_everybody_else_out(
    two: Tuple[int, int, str], first: bool, second: bool, both: bool
) -> None:
    one, other, path = two
    lock(one, path, first)
    if both:
        lock(other, path, second)
    else:
        with pytest.raises(Locked, match=r"lock is locked by .*; wait for it or raise MINIPULL_TIMEOUT$"):
            lock(other, path, second, timeout=0)


def test_a_lock_is_waited_for_until_it_is_free(two: Tuple[int, int, str]) -> None:
    one, other, path = two
    lock(one, path, True)
    polled, had = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        polled.set()
        threading.Event().wait(seconds)

    def take() -> None:
        lock(other, path, True, pause, TIMEOUT)
        had.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert polled.wait(TIMEOUT) and not had.is_set()
    fcntl.flock(one, fcntl.LOCK_UN)
    assert had.wait(TIMEOUT)
    thread.join(TIMEOUT)


def test_waiting_for_a_lock_can_be_cancelled(two: Tuple[int, int, str]) -> None:
    one, other, path = two
    lock(one, path, True)
    cancel = Cancel()
    timer = threading.Timer(0.02, cancel.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        lock(other, path, False, cancel.pause, TIMEOUT)
    timer.join(TIMEOUT)


@pytest.mark.parametrize("moves", [0, 40])
def test_a_lock_whose_holder_makes_progress_is_waited_for(
    two: Tuple[int, int, str], monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    one, other, path = two
    lock(one, path, True)
    clock = Clock()
    monkeypatch.setattr(files, "time", clock)
    with pytest.raises(Locked):
        lock(other, path, True, clock.pause, 1.0, alive=lambda: min(len(clock.pauses), moves))
    since = sum(clock.pauses[moves:])
    assert len(clock.pauses) > moves and 1.0 <= since < 1.5
    assert clock.pauses[0] == 0.005 and max(clock.pauses) == 0.2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_named_and_not_waited_for(
    two: Tuple[int, int, str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(StorageError, match="put --root or the directory on a file system with locks") as caught:
        lock(two[0], two[2], False)
    assert not isinstance(caught.value, Locked)


def test_without_posix_there_are_no_locks_and_no_directories_to_sync(
    two: Tuple[int, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        sync_directory("/nowhere")
        with pytest.raises(StorageError, match="no flock; put --root or the directory on a file system with locks"):
            lock(two[0], two[2], False)


HOLD = """
import os, sys
from minipull.files import lock, open_regular
fd = open_regular(sys.argv[1], os.O_RDWR)
lock(fd, sys.argv[1], True)
print("held", flush=True)
sys.stdin.read()
"""


@linux
def test_the_holder_of_a_lock_is_named_and_loses_it_when_killed(two: Tuple[int, int, str]) -> None:
    one, _, path = two
    holder = subprocess.Popen(
        [sys.executable, "-X", "creds=ann:s3cret", "-c", HOLD, path], cwd=str(ROOT),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match=r"locked by process %d \(.*python" % holder.pid) as caught:
            lock(one, path, True, timeout=0)
        assert str(caught.value).isprintable() and "s3cret" not in str(caught.value)
    finally:
        holder.kill()
        holder.wait(TIMEOUT)
        holder.stdout.close()
        holder.stdin.close()
    lock(one, path, True, timeout=TIMEOUT)


@pytest.mark.parametrize("table", [
    "", "garbage\n1: FLOCK\n", "1: FLOCK ADVISORY WRITE -1 %s 0 EOF\n", "1: FLOCK ADVISORY WRITE x %s 0 EOF\n",
    "1: -> FLOCK ADVISORY WRITE 1 %s 0 EOF\n", "1: POSIX ADVISORY WRITE 1 %s 0 EOF\n", None])
def test_an_unknown_holder_is_another_process(
    two: Tuple[int, int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    one, other, path = two
    lock(one, path, True)
    status = os.fstat(one)
    place = "%02x:%02x:%d" % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    locks = tmp_path / "locks"
    if table is not None:
        locks.write_text(table.replace("%s", place))

    def opened(name: str, mode: str = "r") -> Any:
        return open(str(locks) if name == "/proc/locks" else name, mode)

    monkeypatch.setattr(files, "open", opened, raising=False)
    with pytest.raises(Locked, match="lock is locked by another process; wait"):
        lock(other, path, True, timeout=0)
