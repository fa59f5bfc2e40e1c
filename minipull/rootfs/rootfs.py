# SPDX-License-Identifier: Apache-2.0
"""A root file system that is made of layers, entry by entry.

The overlay decides what an entry removes and where it goes, by paths without
links; here that is done.  No path is joined: each directory is walked to by
descriptors that follow no link, so nothing outside of the root is created,
changed or removed, whatever a layer says and whoever else writes there.

Owners, modes and times of directories are set at the end: until then entries are
written into them, and nobody but us shall get in.

Mirrors umoci's oci/layer and moby's pkg/archive (diff.go).
"""
import contextlib
import os
import stat
from typing import Callable, Dict, Iterable, Iterator, Optional, Set, Tuple, Union

from ..errors import PolicyError
from ..files import write_all
from ..image.tar import BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, FILE, HOLE, LINK, SYMLINK, Entry, Reader
from .layers import TOO_LARGE, entry_errors
from .overlay import Folder, Overlay, path_of

_TYPES = {SYMLINK: stat.S_IFLNK, FIFO: stat.S_IFIFO, CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}
_OPEN = 32  # directories kept open
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


class RootFS:
    """The directory ``fd``, which must be empty; close() at the end.

    ``room`` is how many bytes of data all layers may bring, less those that came.
    ``warn`` is told, once for each kind, what can't be done here.
    """

    def __init__(self, fd: int, room: int, warn: Callable[[str], None]) -> None:
        self.room = room
        self._warn = warn
        self._warned: Set[str] = set()
        self._root = os.geteuid() == 0
        # By what they really are called, relative to the root, whose name is empty.
        self._fds: Dict[bytes, int] = {b"": fd}
        self._overlay = Overlay(self._remove, self._make_parent)
        self._layer = 0
        self._trash = b".minipull-%s" % os.urandom(8).hex().encode()
        with entry_errors(None):
            os.mkdir(self._trash, 0o777, dir_fd=fd)
            trash = self._folder(self._trash)
            status = os.fstat(trash)
            os.fchmod(trash, 0o700)
        # What is new has these; its group may be the directory's.
        self._umask, self._owner = 0o777 & ~status.st_mode, (status.st_uid, status.st_gid)

    def apply(self, reader: Reader) -> None:
        """Apply a layer on top of those so far; raises InvalidDocument, PolicyError, StorageError."""
        for entry in reader:
            with entry_errors(entry):
                self._trim()
                self.room -= entry.size
                if self.room < 0:
                    raise PolicyError(TOO_LARGE)
                place = self._overlay.add(self._layer, 0, entry)
                if place is None and entry.kind == CHAR:
                    self._once("devices are left out")
                while place is not None:
                    try:
                        self._make(entry, reader, *place)
                        break
                    except FileExistsError:  # somebody else's
                        self._remove(place[0])
        with entry_errors(None):
            self._overlay.finish_layer()
        self._layer += 1

    def close(self) -> None:
        """Give the directories their owners, modes and times, and leave."""
        with entry_errors(None):
            os.rmdir(self._trash, dir_fd=self._fds[b""])
            # The deepest first: a mode may close the way to what is below.
            entries = [(trail, thing.entry) for trail, thing in self._overlay.walk()
                       if isinstance(thing, Folder) and thing.entry]
            for trail, entry in reversed(entries):
                self._trim()
                above, name = trail or ((), b".")
                with _opened(name, _FOLDER, self._folder(path_of(above))) as fd:  # one way for all beside it
                    if self._root:
                        os.fchown(fd, entry.uid, entry.gid)
                    self._set_xattrs(fd, entry)
                    os.fchmod(fd, self._mode(entry))
                    os.utime(fd, ns=(entry.mtime, entry.mtime))
        self.drop()

    def drop(self) -> None:
        """Leave it as it is."""
        for name in [name for name in self._fds if name]:
            os.close(self._fds.pop(name))

    def _make(self, entry: Entry, reader: Reader, path: bytes, link: bytes) -> None:
        """Make what an entry says; nothing stands in its place any longer."""
        parent, _, name = path.rpartition(b"/")
        fd = self._folder(parent)
        if entry.kind == FILE:
            # Attributes are for a file that may be written to.
            mode = entry.mode | 0o200 if entry.xattrs else entry.mode
            file = os.open(name, _NEW, mode & 0o777, dir_fd=fd)
            try:
                end = 0
                for piece in reader.data():
                    if piece.obj is HOLE:
                        end = os.lseek(file, len(piece), os.SEEK_CUR)
                    else:
                        write_all(file, piece)
                if end:
                    os.ftruncate(file, entry.size)  # the hole may be its end
                self._own(file, entry)
            finally:
                os.close(file)
        elif entry.kind == DIRECTORY:
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:  # a directory keeps what is in it
                if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    raise
        elif entry.kind == LINK:
            source, _, target = link.rpartition(b"/")
            try:
                # A link itself is linked, never what it points to (CVE-2021-32760).
                os.link(target, name, src_dir_fd=self._folder(source), dst_dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                self._once("devices are left out")
        elif entry.kind == SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=fd)
            self._own(name, entry, fd)
        elif entry.kind == FIFO:
            os.mkfifo(name, entry.mode & 0o777, dir_fd=fd)
            self._own(name, entry, fd)
        else:
            self._make_device(entry, fd, name)

    def _make_device(self, entry: Entry, fd: int, name: bytes) -> None:
        try:
            if not self._root:
                raise PermissionError
            os.mknod(name, entry.mode & 0o777 | _TYPES[entry.kind], os.makedev(entry.major, entry.minor), dir_fd=fd)
        except PermissionError:
            self._once("devices are left out%s" % (": this root may not make them" if self._root else ""))
        else:
            self._own(name, entry, fd)

    def _own(self, new: Union[int, bytes], entry: Entry, folder: Optional[int] = None) -> None:
        """Give owner, mode and time to an open file, or to a name in ``folder`` that can't be opened."""
        mode, owner = self._mode(entry), (entry.uid, entry.gid) if self._root else self._owner
        masked = mode & (0o7000 | self._umask)
        if isinstance(new, int):
            if owner != self._owner:
                os.chown(new, *owner)
            self._set_xattrs(new, entry)
            if masked or entry.xattrs:
                os.fchmod(new, mode)  # after chown, which takes bits away
        elif owner != self._owner or masked and entry.kind != SYMLINK:
            _change(new, folder, _TYPES[entry.kind], mode, owner)
        os.utime(new, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=folder is None)

    def _mode(self, entry: Entry) -> int:
        # What ran as its owner would run as us, for everybody who finds it (CVE-2021-41091).
        if entry.mode & 0o6000 and not self._root and entry.kind != SYMLINK:
            self._once("setuid and setgid bits are left out")
        return entry.mode if self._root else entry.mode & 0o1777

    def _set_xattrs(self, fd: int, entry: Entry) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(b"user.") or self._root and key == b"security.capability":
                try:
                    os.setxattr(fd, key, value)
                except (OSError, AttributeError):
                    self._once("extended attributes can't be set here")
            else:
                self._once("extended attributes such as %s are left out" % ascii(key)[2:-1][:100])

    def _once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 20:
            self._warned.add(text)
            self._warn(text)

    def _folder(self, name: bytes) -> int:
        """The descriptor of a directory by what it really is called; good until _trim()."""
        fd = self._fds.get(name)
        if fd is None:
            above = name
            while above not in self._fds:
                above = above.rpartition(b"/")[0]
            fd = self._fds[above]
            for part in name[len(above):].strip(b"/").split(b"/"):
                try:
                    below = os.open(part, _FOLDER, dir_fd=fd)
                finally:
                    if fd != self._fds[above]:
                        os.close(fd)
                fd = below
            self._fds[name] = fd
        return fd

    def _trim(self) -> None:
        """Close the deepest, to which the others are a way; called where no descriptor is in use."""
        if len(self._fds) > _OPEN:
            for name in sorted(self._fds, key=len)[_OPEN // 2:]:
                os.close(self._fds.pop(name))

    def _remove(self, path: bytes) -> None:
        """Remove a thing and all that is in it; a device may have been left out."""
        self._trim()
        parent, _, name = path.rpartition(b"/")
        fd = self._folder(parent)
        for key in [key for key in self._fds if key == path or key.startswith(path + b"/")]:
            os.close(self._fds.pop(key))
        with contextlib.suppress(FileNotFoundError):
            _remove_all([name], fd, self._folder(self._trash))

    def _make_parent(self, path: bytes) -> None:
        """Make a directory that layers name as a parent only."""
        self._trim()
        parent, _, name = path.rpartition(b"/")
        fd = self._folder(parent)
        os.mkdir(name, 0o755, dir_fd=fd)
        if self._umask & 0o755:
            os.fchmod(self._folder(path), 0o755)


def clear(path: str) -> None:
    """Empty a directory; raises OSError."""
    with _opened(path, _FOLDER) as fd:
        name = ".minipull-" + os.urandom(8).hex()
        os.mkdir(name, 0o700, dir_fd=fd)
        with _opened(name, _FOLDER, fd) as trash:
            _remove_all(set(os.listdir(fd)) - {name}, fd, trash)
        os.rmdir(name, dir_fd=fd)


def _remove_all(names: Iterable[Union[str, bytes]], fd: int, trash: int) -> None:
    """Remove things in ``fd``, directories by way of ``trash``, an empty one.

    Nested directories are moved there, side by side: however deep a layer nests
    them, two are open.
    """
    count, done = _take(names, fd, trash, 0), 0
    while done < count:
        with _opened(b"%d" % done, _FOLDER, trash) as folder:
            count = _take(os.listdir(folder), folder, trash, count)
        os.rmdir(b"%d" % done, dir_fd=trash)
        done += 1


def _take(names: Iterable[Union[str, bytes]], fd: int, trash: int, count: int) -> int:
    """Remove things in ``fd`` but for directories, which are moved to ``trash``, where ``count`` are."""
    for name in names:
        mode = os.lstat(name, dir_fd=fd).st_mode
        if stat.S_ISDIR(mode):
            if ~mode & 0o700:
                _change(name, fd, stat.S_IFDIR, 0o700, (-1, -1))
            os.rename(name, b"%d" % count, src_dir_fd=fd, dst_dir_fd=trash)
            count += 1
        else:
            os.unlink(name, dir_fd=fd)
    return count


def _change(name: Union[str, bytes], folder: Optional[int], kind: int, mode: int, owner: Tuple[int, int]) -> None:
    """Give what can't be opened its owner and mode, and nothing that somebody puts in its place just now."""
    try:
        with _opened(name, os.O_PATH | os.O_NOFOLLOW, folder) as fd:
            status, path = os.fstat(fd), "/proc/self/fd/%d" % fd
            # Another kind is another thing, and what is new has no second name elsewhere.
            if stat.S_IFMT(status.st_mode) == kind and (status.st_nlink < 2 or kind == stat.S_IFDIR):
                os.chown(path, *owner)
                if kind != stat.S_IFLNK:
                    os.chmod(path, mode)
    except (AttributeError, FileNotFoundError):  # no O_PATH, or no /proc: not all can set a mode then
        os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
        with contextlib.suppress(OSError, ValueError):
            os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)


@contextlib.contextmanager
def _opened(name: Union[str, bytes], flags: int, folder: Optional[int] = None) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)
