# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash, and locks that die with their holder.

The rules of the store on disk start here: a file appears under its final name
only whole and synced, nothing is opened through a symbolic link, and a lock is
a flock(2) on a file that is never unlinked while it may be held, so that
kill -9 frees it.  flock belongs to the open file, so the same locks also keep
the threads of one process apart.

What is not complete is named for its target, ``.minipull-TARGET-XXXXXXXX``, and
locked while it is used; what a kill leaves is swept by the next run for that target.

Mirrors moby's pkg/ioutils (AtomicFileWriter).
"""
import contextlib
import errno
import hashlib
import io
import os
import stat
import time
from typing import Any, BinaryIO, Callable, ContextManager, Iterable, Iterator, List, Optional, Tuple, Union

from .digest import Buffer
from .errors import InvalidDocument, StorageError, file_errors, shown, storage_errors
from .parts import shutil, tempfile

if os.name == "posix":  # elsewhere readers go on and writers stop
    import fcntl


class Locked(StorageError):
    """A lock that another process or thread did not release in time."""


_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
# A directory of mode 0333; CIFS, old FUSE, drvfs (borg#1287, etcd#9670; PostgreSQL's fsync_fname).
_UNSYNCABLE = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF, errno.EINVAL, errno.ENOSYS,
               errno.ENOTSUP, errno.EOPNOTSUPP}


def make_directory(path: str) -> None:
    """Make ``path`` and its parents, private and durable."""
    with storage_errors("create %s" % path):
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path) or "."
        if missing:  # the maker of the last one that there is may have been killed before the sync
            sync_directory(os.path.join(path, os.pardir))
        for directory in reversed(missing):
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                if not os.path.isdir(directory):
                    raise
            sync_directory(os.path.dirname(directory))


def sync_directory(path: str) -> None:
    """Make the names in ``path`` durable, where the system can; an OSError is the caller's to map."""
    if os.name != "posix":
        return
    try:
        fd = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        if exc.errno not in _UNSYNCABLE:
            raise


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a file as open(2) does, and no link or device, which may have been planted (StorageError)."""
    fd = os.open(path, flags | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0), 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError("%s is not a regular file" % path)
    return fd


def read_bytes(path: str, limit: int) -> Optional[bytes]:
    """All of a small file, or None where there is none; raises InvalidDocument past ``limit`` bytes."""
    with storage_errors("read %s" % path):
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return None
        try:
            data = piece = os.read(fd, min(os.fstat(fd).st_size, limit) + 1)  # what is asked for is allocated
            while piece and len(data) <= limit:
                piece = os.read(fd, min(limit + 1 - len(data), 1 << 16))  # most likely its end
                data += piece
        finally:
            os.close(fd)
    if len(data) > limit:
        raise InvalidDocument("%s is larger than %d bytes" % (path, limit))
    return data


def read_file(path: str, limit: int) -> Optional[bytes]:
    """The first ``limit`` bytes of a user's file, links followed, or None where there is none."""
    with file_errors("read %s" % path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with open(path, "rb") as file:
            return file.read(limit)
    return None


def remove(path: str) -> None:
    """Remove a file, or a directory and all that is in it; an OSError is the caller's to map."""
    (shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)


def unlink(*paths: str) -> None:
    """Delete files, as far as they are there; an OSError is the caller's to map."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def write_all(fd: int, data: "memoryview") -> None:
    """Write all of ``data``; a short write is how a full disk begins."""
    while data:
        data = data[os.write(fd, data):]


def write_file(path: str, data: Iterable[Buffer]) -> None:
    """Replace a file in one step, keeping its mode, or write into a device or pipe; raises StorageError."""
    with file_errors("write %s" % path), contextlib.ExitStack() as stack:
        if os.path.exists(path) and not os.path.isfile(path):
            fd = os.open(path, os.O_WRONLY)
            stack.callback(os.close, fd)
        else:
            real = os.path.realpath(path)  # a symbolic link is kept
            fd = stack.enter_context(replacing(real, os.path.dirname(real)))
            if os.path.exists(real):
                os.fchmod(fd, stat.S_IMODE(os.stat(real).st_mode))
        for piece in data:
            write_all(fd, memoryview(piece))


def write_atomic(path: str, data: bytes, scratch: str, durable: bool = True, settle: bool = True) -> None:
    """Put ``data`` at ``path`` in one step, by way of the directory ``scratch``; as replacing()."""
    with storage_errors("write %s" % path), replacing(path, scratch, durable, settle) as fd:
        write_all(fd, memoryview(data))


@contextlib.contextmanager
def replacing(path: str, scratch: str, durable: bool = True, settle: bool = True) -> Iterator[int]:
    """Open a temporary file that replaces ``path`` when the block ends well; an OSError is the caller's to map.

    After a power cut the old or the new content is there, if ``durable``; after a crash always.
    Without ``settle`` the caller sweeps ``scratch`` and syncs the directory, once for many files.
    """
    with _temporary(path, scratch, _opened_file, remove, sweeping=settle) as (held, temporary):
        fd = os.dup(held)
        try:
            yield fd
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        if os.name != "posix":  # there an open file can't be renamed
            os.close(held)
        os.replace(temporary, path)
        if durable and settle:
            sync_directory(os.path.dirname(path))


def directory_beside(path: str, remove: Callable[[str], object],
                     take_over: bool = False) -> ContextManager[Tuple[int, str]]:
    """A directory beside ``path`` for a block, open and by name; an OSError is the caller's to map.

    With ``take_over`` it may be one that a former run left, with all that is in it.
    """
    return _temporary(path, os.path.dirname(path), _opened_directory, remove, take_over)


def sweep(scratch: str, path: str = "", remove: Callable[[str], object] = remove) -> None:
    """Remove the unfinished files of killed runs from ``scratch``, for ``path`` or any: ours, not locked."""
    _swept(scratch, path, remove, False)


def paths(folder: str, prefix: str) -> List[str]:
    """List the paths in ``folder`` that begin with a text; none where it can't be listed."""
    with contextlib.suppress(OSError):
        return [os.path.join(folder, name) for name in os.listdir(folder or ".") if name.startswith(prefix)]
    return []


def _swept(scratch: str, path: str, remove: Callable[[str], object], take_over: bool) -> Tuple[int, str]:
    """Sweep; return the first directory, open and locked, if it is to be taken over, else -1 and no name."""
    prefix, taken = _prefix(path) if path else ".minipull-", (-1, "")
    for debris in paths(scratch, prefix):
        # Eight characters of chance follow the prefix, or for any path what _prefix() makes of it.
        if debris[-9:-8] != "-" or path and len(os.path.basename(debris)) != len(prefix) + 8:
            continue
        with contextlib.suppress(OSError, StorageError, RecursionError), contextlib.ExitStack() as stack:
            folder = os.path.isdir(debris)
            fd = os.open(debris, _FOLDER) if folder else open_regular(debris, os.O_RDWR)
            stack.callback(os.close, fd)
            lock(fd, debris, True, timeout=0)
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or not os.path.samestat(status, os.lstat(debris)):
                continue
            if folder and take_over and not taken[1]:
                taken = fd, debris
                stack.pop_all()
            else:
                (remove if folder else os.unlink)(debris)
    return taken


@contextlib.contextmanager
def _temporary(path: str, scratch: str, make: Callable[..., Tuple[int, str]], remove: Callable[[str], object],
               take_over: bool = False, sweeping: bool = True) -> Iterator[Tuple[int, str]]:
    """Sweep, then make and lock a file or directory that may become ``path``; ``remove`` is for directories."""
    fd, name = _swept(scratch, path, remove, take_over) if sweeping else (-1, "")
    while fd < 0:
        fd, name = make(prefix=_prefix(path), dir=scratch)
        with contextlib.suppress(StorageError):  # a file system without locks, where nobody sweeps
            lock(fd, name, True)
        with contextlib.suppress(FileNotFoundError):
            if os.name != "posix" or os.path.samestat(os.fstat(fd), os.lstat(name)):
                break
        os.close(fd)  # another run swept it before it was locked
        fd = -1
    try:
        yield fd, name
    finally:
        with contextlib.suppress(OSError):  # an error before this one is the one that is told
            (os.unlink if make is _opened_file else remove)(name)
        with contextlib.suppress(OSError):
            os.close(fd)


def _opened_file(prefix: str, dir: str) -> Tuple[int, str]:
    while True:
        path = os.path.join(dir, prefix + os.urandom(4).hex())
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o600), path


def _opened_directory(prefix: str, dir: str) -> Tuple[int, str]:
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=dir)
        with contextlib.suppress(FileNotFoundError):  # swept
            return os.open(folder, _FOLDER), folder


def _prefix(path: str) -> str:
    name = os.path.basename(path)
    if len(name) > 50:  # of the 255 bytes that a name may have
        name = "%s-%s" % (name[:50], hashlib.sha256(os.fsencode(name)).hexdigest()[:8])
    return ".minipull-%s-" % name


def lock(fd: int, path: str, exclusive: bool, pause: Callable[[float], object] = time.sleep,
         timeout: float = 60.0, alive: Callable[[], object] = lambda: None) -> None:
    """Take the advisory lock of an open file, by polling.

    ``pause`` sleeps between two tries and may raise to give up.  After ``timeout`` seconds
    in which ``alive`` did not change its answer, Locked says who holds the lock.  Raises
    StorageError where there are no locks.
    """
    deadline = time.monotonic() + timeout
    delay, sign = 0.005, alive()
    while True:
        try:
            if os.name != "posix":
                raise OSError(errno.ENOTSUP, "no flock")
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise StorageError("lock %s: %s; put --root or the directory on a file system with locks" % (
                    path, exc.strerror)) from exc
        if alive() != sign:
            deadline, sign = time.monotonic() + timeout, alive()
        if time.monotonic() >= deadline:
            raise Locked("%s is locked by %s; wait for it or raise MINIPULL_TIMEOUT" % (path, _holder(fd)))
        pause(delay)
        delay = min(delay * 1.5, 0.2)


@contextlib.contextmanager
def locked(path: str, exclusive: bool, pause: Callable[[float], object] = time.sleep, timeout: float = 60.0,
           flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[None]:
    """Hold the lock of the file at ``path`` within the block; raises as lock() and open_regular()."""
    with storage_errors("open %s" % path):
        fd = open_regular(path, flags)
    try:
        lock(fd, path, exclusive, pause, timeout)
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    """Name the process that holds a lock on a file, if /proc tells."""
    status = os.fstat(fd)
    inode = "%02x:%02x:%d" % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    try:
        with open("/proc/locks") as table:
            # 1: FLOCK  ADVISORY  WRITE 1234 08:01:12345 0 EOF
            fields = [line.split() for line in table]
        pid = next(row[4] for row in fields if row[1] == "FLOCK" and row[5] == inode)
        with open("/proc/%d/comm" % int(pid)) as file:  # not its command line, which may hold a password
            program = file.read(100).strip()
    except (OSError, StopIteration, ValueError, IndexError):
        return "another process"
    return "process %s (%s)" % (pid, shown(program))


class Extent(io.RawIOBase):
    """``size`` bytes of a file from ``start`` on, read as a file of its own; many may be read at once."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._file = file
        self._position = 0

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: Any) -> int:
        with file_errors("read the archive"):
            data = read_at(self, self._position, len(buffer))
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (self._position if whence else 0)
        return self._position


def read_at(file: Union[BinaryIO, Extent], offset: int, count: int) -> bytes:
    """Read a part of an unbuffered file, whose position stays; an OSError is the caller's to map."""
    if isinstance(file, io.BytesIO):
        return bytes(file.getbuffer()[offset:offset + count])
    if isinstance(file, Extent):
        offset, count = file.start + offset, max(0, min(count, file.size - offset))
    return os.pread(file.fileno(), count, offset)
