# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed, and disks that lose power, at any call of the system.

Everything here forks, so it runs in a process of its own that has no threads.
:func:`in_child` runs a function there and returns its result, :func:`command` is
the command line without a new interpreter.  :func:`killed_at` kills a child at its
k-th call that changes the disk, and :class:`Disk` keeps of a tree only what was
synced.
"""
import contextlib
import importlib
import io
import os
import pkgutil
import pickle
import shutil
import signal
import stat
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import minipull
from minipull.cli.main import main

_T = TypeVar("_T")

#: Every call of the system that changes names, contents or attributes; open() where it may write.
CALLS = """open write pwrite writev truncate ftruncate posix_fallocate fsync fdatasync sync rename replace
    link symlink unlink remove mkdir rmdir mknod mkfifo chmod fchmod lchmod chown fchown lchown utime
    setxattr removexattr copy_file_range""".split()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Ended(NamedTuple):
    """The exit code of a command, and what it wrote."""
    code: int
    out: str
    err: str


def in_child(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a fork; returns its result, raises RuntimeError with its traceback."""
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if pid == 0:
            try:
                answer: Any = (True, work())
            except BaseException:
                answer = (False, traceback.format_exc())
            _leave(lambda: _answer(file, answer))
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        data = file.read()
    if not data:
        raise RuntimeError("the child ended without an answer, status %d" % status)
    good, value = pickle.loads(data)
    if not good:
        raise RuntimeError(value)
    result: _T = value
    return result


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A directory that is gone in the end, in memory if there is room for it: disks are slow."""
    shm = "/dev/shm"
    roomy = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 256 << 20
    with tempfile.TemporaryDirectory(prefix="minipull-", dir=shm if roomy else None) as folder:
        yield Path(folder)


def _answer(file: IO[bytes], answer: Any) -> None:
    file.write(pickle.dumps(answer))
    file.flush()


def load_all() -> None:
    """Import all of minipull once, before any fork."""
    for module in pkgutil.walk_packages(minipull.__path__, "minipull."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _leave(last: Callable[[], object]) -> None:
    """End a fork: by a signal, so that nothing of the parent's is run or flushed twice."""
    try:
        last()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def workers(count: int, work: Callable[[int], List[Any]]) -> List[Any]:
    """Run ``work(0)``, ``work(1)`` ... side by side in forks; returns all their results."""
    files = [tempfile.TemporaryFile() for _ in range(count)]
    pids = []
    for number, file in enumerate(files):
        pid = os.fork()
        if pid == 0:
            try:
                answer: Any = work(number)
            except BaseException:
                answer = traceback.format_exc()
            _leave(lambda: _answer(file, answer))
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    results: List[Any] = []
    for file in files:
        with file:
            file.seek(0)
            part = pickle.loads(file.read())
        if isinstance(part, str):
            raise RuntimeError(part)
        results += part
    return results


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[Sequence[IO[bytes]]]:
    """Files for the three streams of this process; yields the two that it writes to."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        before = [(number, os.dup(number)) for number in range(3)]
        saved = sys.stdin
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))
        try:
            yield files[1:]
        finally:
            sys.stdin = saved
            for number, fd in before:
                os.dup2(fd, number)
                os.close(fd)


def command(*args: object, stdin: bytes = b"") -> Ended:
    """Run a command of minipull in this process, a child."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with _streams(stdin) as (out, err):
        code = main([str(arg) for arg in args])
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(code, *texts)


# -- kills -----------------------------------------------------------------------


def changes(name: str, args: Tuple[Any, ...], options: Dict[str, Any]) -> bool:
    """Whether a call changes the disk."""
    if name == "open":
        flags = args[1] if len(args) > 1 else options["flags"]
        return bool(flags & WRITING) and args[0] not in (os.devnull, "/dev/tty")
    if name in ("write", "pwrite", "writev", "fchmod", "fchown"):
        return stat.S_ISREG(os.fstat(args[0]).st_mode) or stat.S_ISDIR(os.fstat(args[0]).st_mode)
    return True


def killed_at(k: int, work: Callable[[], object], stdin: bytes = b"", disk: Optional["Disk"] = None,
              calls: Sequence[str] = CALLS) -> Optional[str]:
    """Fork, run ``work``, and kill the fork at its k-th call that changes the disk, one of ``calls``.

    A write that is killed has written half.  Nothing is really synced: a kill needs no
    disk.  Returns the call, or None if the work had ended by then.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _die_at(k, work, stdin, disk, calls, writer)
    os.close(writer)
    with open(reader, "rb") as answer:
        name = answer.read().decode()
    os.waitpid(pid, 0)
    return name or None


def _die_at(k: int, work: Callable[[], object], stdin: bytes, disk: Optional["Disk"], calls: Sequence[str],
            writer: int) -> None:
    with _streams(stdin):
        lock, left = threading.RLock(), [k]

        def counted(name: str) -> Callable[..., Any]:
            call: Callable[..., Any] = getattr(os, name)

            def wrapper(*args: Any, **options: Any) -> Any:
                if not changes(name, args, options):
                    return call(*args, **options)
                with lock:
                    left[0] -= name in calls
                    if left[0] == 0:
                        if name == "write":
                            call(args[0], bytes(args[1])[:len(args[1]) // 2])
                        if disk is not None:
                            disk.save()
                        _leave(lambda: os.write(writer, name.encode()))
                if disk is None and name in ("fsync", "fdatasync", "sync"):
                    return None
                return call(*args, **options)
            return wrapper

        if disk is not None:
            disk.record()
        for name in {*calls, "fsync", "fdatasync", "sync"}:
            if hasattr(os, name):
                setattr(os, name, counted(name))
        _leave(work)


# -- power cuts --------------------------------------------------------------------


class State(NamedTuple):
    """A tree at a moment, by inode: what is synced, and the names as they are."""
    event: str
    top: int
    files: Dict[int, bytes]  # contents, as of the last fsync
    synced: Dict[int, Dict[str, int]]  # names in directories, as of the last fsync
    names: Dict[int, Dict[str, int]]  # and as they are

    def restore(self, folder: Path, eager: bool) -> None:
        """Make the tree as a power cut leaves it; ``eager`` keeps all names, those of lost contents too."""
        self._fill(folder, self.top, self.names if eager else self.synced)

    def _fill(self, folder: Path, inode: int, names: Dict[int, Dict[str, int]]) -> None:
        folder.mkdir()
        for name, child in names.get(inode, {}).items():
            if child in self.names or child in self.synced:
                self._fill(folder / name, child, names)
            else:
                folder.joinpath(name).write_bytes(self.files.get(child, b""))

    def key(self, eager: bool) -> str:
        """A text that two states share which restore alike."""
        names = self.names if eager else self.synced

        def below(inode: int) -> Any:
            if inode in self.names or inode in self.synced:
                return sorted((name, below(child)) for name, child in names.get(inode, {}).items())
            return self.files.get(inode, b"")
        return repr(below(self.top))


class Disk:
    """What of the tree under ``root`` outlives a power cut.

    Everything that is there at first is synced.  A file that was not synced is empty, a
    name whose directory was not synced is absent.  ``log`` is a file for save().
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self._log = str(root), log
        self.states: List[State] = []
        self._files: Dict[int, bytes] = {}
        self._folders: Dict[int, Dict[str, int]] = {}
        self._lock = threading.RLock()
        self._all()

    def record(self) -> None:
        """From now on watch the calls of this process, which syncs nothing."""
        for name in ("open", "mkdir", "fsync", "fdatasync", "rename", "replace", "unlink", "rmdir",
                     "link", "sync"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        self.mark("begin")

    def mark(self, event: str) -> None:
        with self._lock:
            top = os.stat(self.root).st_ino
            self.states.append(State(event, top, dict(self._files), dict(self._folders), self._names()))

    def save(self) -> None:
        """Write down all, for load() in another process."""
        with self._lock:
            self._log.write_bytes(pickle.dumps((self.states, self._files, self._folders)))

    def load(self) -> "Disk":
        self.states, self._files, self._folders = pickle.loads(self._log.read_bytes())
        return self

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            with self._lock:
                if name in ("fsync", "fdatasync"):
                    self._sync(args[0])
                    return None
                if name == "sync":
                    self._all()
                    self.mark("sync")
                    return None
                fresh = name in ("open", "mkdir") and not os.path.lexists(args[0]) and "dir_fd" not in options
                result = call(*args, **options)
                if fresh:  # an inode may be one that has been freed
                    status = os.fstat(result) if name == "open" else os.lstat(args[0])
                    self._files.pop(status.st_ino, None)
                    self._folders.pop(status.st_ino, None)
                if name in ("rename", "replace", "unlink"):
                    self.mark("%s %s" % (name, os.path.basename(str(args[-1]))))
                return result
        return wrapper

    def _sync(self, fd: int) -> None:
        status, path = os.fstat(fd), "/proc/self/fd/%d" % fd
        if stat.S_ISDIR(status.st_mode):
            self._folders[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            with open(path, "rb") as file:
                self._files[status.st_ino] = file.read()
        self.mark("fsync %s" % os.path.basename(os.readlink(path)))

    def _names(self) -> Dict[int, Dict[str, int]]:
        return {os.stat(folder).st_ino: {entry.name: entry.inode() for entry in os.scandir(folder)}
                for folder, _, _ in os.walk(self.root)}

    def _all(self) -> None:
        """Sync everything."""
        self._folders.update(self._names())
        for folder, _, names in os.walk(self.root):
            for path in [os.path.join(folder, name) for name in names]:
                if os.path.isfile(path) and not os.path.islink(path):
                    self._files[os.lstat(path).st_ino] = Path(path).read_bytes()


def power_cut(work: Callable[["Disk"], object], disk: Disk) -> Tuple[List[State], str]:
    """Run ``work`` in a fork that syncs nothing; returns the states of the disk, and what was told on stderr.

    It calls ``disk.mark()`` at each moment at which it has said ok.
    """
    def recorded() -> Tuple[List[State], str]:
        with _streams(b"") as (_, err):
            disk.record()
            work(disk)
            err.seek(0)
            return disk.states, err.read().decode()
    return in_child(recorded)
