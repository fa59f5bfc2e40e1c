# SPDX-License-Identifier: Apache-2.0
"""A root file system that is made of layers, entry by entry.

Nothing here joins paths.  Every parent is walked to by directory descriptors
that follow no link; a link on the way is read and followed within the root, as
the kernel would after chroot(2).  So whatever a layer says, nothing outside is
created, changed or removed.

Owners, modes and times of directories are set at the end: until then entries are
written into them, and nobody but us shall get in.  The rules are overlay's.

Mirrors umoci's oci/layer and moby's pkg/archive (diff.go).
"""
import errno
import os
import stat
from typing import Callable, Dict, List, Optional, Set

from ..errors import InvalidDocument, PolicyError
from ..files import write_all
from ..image.tar import CHAR, DIRECTORY, FIFO, FILE, LINK, MAX_NAME, SYMLINK, Entry, Reader
from .layers import entry_errors
from .overlay import MAX_HOPS, META, OPAQUE, PLNK, WHITEOUT, join, parts_of
from .removal import FOLDER, remove_tree

_OPEN = 32  # directories kept open
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


class RootFS:
    """The directory ``fd``, which must be empty; close() at the end.

    ``limit`` is how many bytes of data all layers may bring.  ``warn`` is told,
    once for each kind, what can't be done here.
    """

    def __init__(self, fd: int, limit: int, warn: Callable[[str], None]) -> None:
        self._limit = limit
        self._warn = warn
        self._warned: Set[str] = set()
        self._root = os.geteuid() == 0
        # By what they really are called, relative to the root, whose name is empty.
        self._fds: Dict[bytes, int] = {b"": fd}
        self._known: Dict[bytes, bytes] = {}  # parents as layers call them, to that name
        self._finals: Dict[bytes, Entry] = {}  # what directories are to be like
        #: Paths that the present layer made or went through; None in the lowest.
        self._upper: Optional[Set[bytes]] = None
        self._trash = b".minipull-%s" % os.urandom(8).hex().encode()
        with entry_errors(None):
            os.mkdir(self._trash, 0o777, dir_fd=fd)
            status = os.stat(self._trash, dir_fd=fd)
            os.chmod(self._trash, 0o700, dir_fd=fd)
        # What is new has these; its group may be the directory's.
        self._umask, self._owner = 0o777 & ~status.st_mode, (status.st_uid, status.st_gid)

    def apply(self, reader: Reader) -> None:
        """One more layer, on top of those so far.

        Raises InvalidDocument, PolicyError for what no layer may have, StorageError.
        """
        for entry in reader:
            with entry_errors(entry):
                self._apply(entry, reader)
        with entry_errors(None):
            self._remove(b"", PLNK)
        self._upper = set()

    def close(self) -> None:
        """Give the directories their owners, modes and times, and leave."""
        with entry_errors(None):
            os.rmdir(self._trash, dir_fd=self._fds[b""])
            # The deepest first: a mode may close the way to what is below.
            for name, entry in sorted(self._finals.items(), reverse=True):
                self._trim()
                fd = self._folder(name)
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

    # Entries.

    def _apply(self, entry: Entry, reader: Reader) -> None:
        self._trim()
        parts = parts_of(entry.name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise InvalidDocument("it would replace the root")
            self._finals[b""] = entry
            return
        *above, name = parts
        if name.startswith(WHITEOUT) and parts != [PLNK]:
            parent = self._parent(above, make=False)
            if name[len(WHITEOUT):] in (b"", b".", b".."):
                raise InvalidDocument("a whiteout of nothing")
            if parent is not None and name == OPAQUE:
                self._hide(parent)
            elif parent is not None and not name.startswith(META):
                self._hide(parent, name[len(WHITEOUT):])
            return
        if parts == [PLNK] and entry.kind == DIRECTORY:
            return
        self._limit -= entry.size
        if self._limit < 0:
            raise PolicyError("the image is larger than allowed; see --max-unpacked")
        found = self._parent(above, make=True)
        assert found is not None
        self._touch(join(found, name))
        while True:
            try:
                self._make(entry, reader, found, name)
                return
            except FileExistsError:
                self._remove(found, name)

    def _make(self, entry: Entry, reader: Reader, parent: bytes, name: bytes) -> None:
        """Make what the entry says; FileExistsError if another thing is there."""
        if entry.kind == LINK:
            self._link(entry, parent, name)
            return
        fd = self._folder(parent)
        if entry.kind == FILE:
            file = os.open(name, _NEW, entry.mode & 0o777, dir_fd=fd)
            try:
                for piece in reader.data():
                    write_all(file, piece)
                self._own(file, entry)
                os.utime(file, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(file)
        elif entry.kind == DIRECTORY:
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    raise
            self._finals[join(parent, name)] = entry
        elif entry.kind == SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=fd)
            self._own_name(fd, name, entry)
        elif entry.kind == FIFO:
            os.mkfifo(name, entry.mode & 0o777, dir_fd=fd)
            self._own_name(fd, name, entry)
        else:
            self._make_device(entry, parent, name)

    def _link(self, entry: Entry, parent: bytes, name: bytes) -> None:
        *above, target = parts_of(entry.linkname) or [b""]
        source = self._parent(above, make=False)
        if source is None or (source, target) == (parent, name):
            raise InvalidDocument("a link to %s, which is not there" % ascii(entry.linkname)[1:200])
        try:
            # A link itself is linked, never what it points to (CVE-2021-32760).
            os.link(target, name, src_dir_fd=self._folder(source), dst_dir_fd=self._folder(parent),
                    follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as exc:
            raise InvalidDocument(
                "a link to %s, which is no file there" % ascii(entry.linkname)[1:200]) from exc

    def _make_device(self, entry: Entry, parent: bytes, name: bytes) -> None:
        fd = self._folder(parent)
        # A character device 0:0 is what an overlay takes for a whiteout.
        if not self._root or entry.kind == CHAR and entry.major == entry.minor == 0:
            self._once("devices are left out")
            self._remove(parent, name)
            return
        kind = stat.S_IFCHR if entry.kind == CHAR else stat.S_IFBLK
        try:
            os.mknod(name, entry.mode & 0o777 | kind, os.makedev(entry.major, entry.minor), dir_fd=fd)
        except PermissionError:
            self._once("devices are left out: this root may not make them")
            self._remove(parent, name)
            return
        self._own_name(fd, name, entry)

    def _own(self, file: int, entry: Entry) -> None:
        mode = self._mode(entry)
        if self._root and (entry.uid, entry.gid) != self._owner:
            os.fchown(file, entry.uid, entry.gid)
        if mode & (0o7000 | self._umask):
            os.fchmod(file, mode)  # after chown, which takes bits away
        self._set_xattrs(file, entry)

    def _own_name(self, fd: int, name: bytes, entry: Entry) -> None:
        """As _own(), for what can't be opened."""
        if self._root and (entry.uid, entry.gid) != self._owner:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.kind != SYMLINK and self._mode(entry) & (0o7000 | self._umask):
            os.chmod(name, self._mode(entry), dir_fd=fd)  # we have just made it, and it is no link
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        # What ran as its owner would run as us, for everybody who finds it (CVE-2021-41091).
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

    # Ways.

    def _folder(self, name: bytes) -> int:
        """The descriptor of a directory by what it really is called; good until _trim()."""
        fd = self._fds.get(name)
        if fd is None:
            above = name
            while above not in self._fds:
                above = above.rpartition(b"/")[0]
            fd = self._fds[above]
            for part in name[len(above):].strip(b"/").split(b"/"):
                below = os.open(part, FOLDER, dir_fd=fd)
                if fd != self._fds[above]:
                    os.close(fd)
                fd = below
            self._fds[name] = fd
        return fd

    def _trim(self) -> None:
        """Close what was opened first; called where no descriptor is in use."""
        if len(self._fds) > _OPEN:
            for name in list(self._fds)[1:_OPEN // 2]:
                os.close(self._fds.pop(name))

    def _parent(self, parts: List[bytes], make: bool) -> Optional[bytes]:
        """What a parent really is called; None if it is not there and not to be made."""
        text = b"/".join(parts)
        found = self._known.get(text)
        if found is None:
            found = self._resolve(parts, make)
            if found is not None:
                if len(self._known) >= 4096:
                    self._known.clear()
                self._known[text] = found
        return found

    def _resolve(self, parts: List[bytes], make: bool) -> Optional[bytes]:
        there, left, hops = b"", parts[::-1], 0
        while left:
            self._trim()
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                there = there.rpartition(b"/")[0]
                continue
            path, fd = join(there, part), self._folder(there)
            if len(path) > MAX_NAME:
                raise InvalidDocument("too deep")
            if path not in self._fds:
                try:
                    target = os.readlink(part, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        return None
                    self._make_parent(there, part)
                except OSError as exc:
                    if exc.errno != errno.EINVAL:  # it is no link
                        raise
                    if not self._is_folder(there, part):
                        if not make:
                            return None
                        self._remove(there, part)
                        self._make_parent(there, part)
                else:
                    hops += 1
                    if hops > MAX_HOPS:
                        raise InvalidDocument("too many links on the way")
                    there = b"" if target.startswith(b"/") else there
                    left += target.split(b"/")[::-1]
                    continue
                self._folder(path)
            there = path
        return there

    def _make_parent(self, parent: bytes, name: bytes) -> None:
        """Make a directory that layers name as a parent only."""
        fd = self._folder(parent)
        os.mkdir(name, 0o755, dir_fd=fd)
        if self._umask & 0o755:
            os.chmod(name, 0o755, dir_fd=fd)
        self._touch(join(parent, name))

    # What lower layers have.

    def _touch(self, path: bytes) -> None:
        while self._upper is not None and path not in self._upper:
            self._upper.add(path)
            path = path.rpartition(b"/")[0]

    def _hide(self, parent: bytes, name: bytes = b"") -> None:
        """Remove what is called so, or all that is in ``parent``, but for the present layer's."""
        pending = [(parent, [name] if name else os.listdir(self._folder(parent)))]
        while pending and self._upper is not None:
            folder, names = pending.pop()
            self._trim()
            for each in map(os.fsencode, names):
                path = join(folder, each)
                if path not in self._upper and each != self._trash:
                    self._remove(folder, each)
                elif path in self._upper and self._is_folder(folder, each):
                    pending.append((path, os.listdir(self._folder(path))))

    def _is_folder(self, parent: bytes, name: bytes) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(name, dir_fd=self._folder(parent)).st_mode)
        except FileNotFoundError:
            return False

    def _remove(self, parent: bytes, name: bytes) -> None:
        """Remove a thing and all that is in it, if it is there."""
        fd = self._folder(parent)
        try:
            mode = os.lstat(name, dir_fd=fd).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=fd)
            if stat.S_ISLNK(mode):
                self._known.clear()
            return
        path = join(parent, name)
        below = path + b"/"
        self._known.clear()
        for key in [key for key in self._fds if key == path or key.startswith(below)]:
            os.close(self._fds.pop(key))
        for key in [key for key in self._finals if key == path or key.startswith(below)]:
            del self._finals[key]
        trash = os.open(self._trash, FOLDER, dir_fd=self._fds[b""])
        try:
            remove_tree(name, fd, trash)
        finally:
            os.close(trash)
