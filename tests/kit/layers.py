# SPDX-License-Identifier: Apache-2.0
"""Tar streams made byte by byte, so that every field may be wrong, and what became of them.

A stream is the sum of its parts: ``folder(b"d/") + file(b"d/f", b"data") + END``.
A number is written in octal digits; bytes stand in a header as they are.
"""
import contextlib
import hashlib
import os
import pickle
import stat
import struct
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple, Union

from minipull.digest import ChainID, DiffID, next_chain_id
from tests.kit.processes import missing

BLOCK = 512
END = bytes(2 * BLOCK)
MTIME = 1500000000
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
NOBODY = 65534

Number = Union[int, bytes]


def head(name: bytes, kind: bytes = b"0", *, size: Number = 0, mode: Number = 0o644, uid: Number = 0,
         gid: Number = 0, mtime: Number = MTIME, link: bytes = b"", magic: bytes = USTAR,
         uname: bytes = b"", gname: bytes = b"", major: Number = 0, minor: Number = 0,
         prefix: bytes = b"", checksum: Union[int, bytes] = 0) -> bytes:
    """One header; ``checksum`` as a number is what to add to the right one."""
    def number(value: Number, width: int) -> bytes:
        return value if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    start = struct.pack("100s8s8s8s12s12s", name, number(mode, 8), number(uid, 8), number(gid, 8),
                        number(size, 12), number(mtime, 12))
    rest = struct.pack("c100s8s32s32s8s8s155s12x", kind, link, magic, uname, gname, number(major, 8),
                       number(minor, 8), prefix)
    if not isinstance(checksum, bytes):
        checksum = b"%06o\0 " % (sum(start + b" " * 8 + rest) + checksum)
    return start + checksum + rest


def base256(value: int, width: int) -> bytes:
    """A number as GNU tar writes one that octal digits can't hold."""
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def chain_id(diff_ids: Sequence[DiffID]) -> ChainID:
    """The ChainID of the top one of some layers, bottom first."""
    chain = next_chain_id(None, diff_ids[0])
    for diff_id in diff_ids[1:]:
        chain = next_chain_id(chain, diff_id)
    return chain


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def extended(data: bytes, kind: bytes = b"x", **fields: Any) -> bytes:
    """An extended header around records, or around a name of GNU tar's (kinds L and K)."""
    name = b"././@LongLink" if kind in b"LK" else b"././@PaxHeader"
    return head(name, kind, **{"size": len(data), **fields}) + padded(data)


def record(keyword: bytes, value: bytes) -> bytes:
    """A record of an extended header, which begins with its own length."""
    size = length = len(keyword) + len(value) + 3
    while size != length + len(b"%d" % size):
        size = length + len(b"%d" % size)
    return b"%d %s=%s\n" % (size, keyword, value)


def pax(**records: bytes) -> bytes:
    """An extended header; keywords with dots in them need record()."""
    return extended(b"".join(record(keyword.encode(), value) for keyword, value in records.items()))


def xattrs(**values: bytes) -> bytes:
    """An extended header with attributes of the namespace user."""
    return extended(b"".join(record(b"SCHILY.xattr.user." + key.encode(), value)
                             for key, value in values.items()))


def file(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    return head(name, **{"size": len(data), **fields}) + padded(data)


def folder(name: bytes, mode: int = 0o755, **fields: Any) -> bytes:
    return head(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return head(name, b"2", link=target, **{"mode": 0o777, **fields})


def hardlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return head(name, b"1", link=target, **fields)


def sparse(version: str, length: int, extents: Sequence[Tuple[int, bytes]], **fields: Optional[bytes]) -> bytes:
    """A sparse file ``f`` as GNU tar writes it; ``fields`` replace records, or delete them if None."""
    pairs = [(b"%d" % offset, b"%d" % len(data)) for offset, data in extents]
    numbers, data = [number for pair in pairs for number in pair], b"".join(data for _, data in extents)
    if version == "1.0":
        records: Dict[str, Optional[bytes]] = {"major": b"1", "minor": b"0", "name": b"f",
                                              "realsize": b"%d" % length}
        data = padded(b"\n".join([b"%d" % len(pairs), *numbers, b""])) + data
    elif version == "0.1":
        records = {"size": b"%d" % length, "numblocks": b"%d" % len(pairs), "name": b"f",
                   "map": b",".join(numbers)}
    else:
        records = {"size": b"%d" % length, "numblocks": b"%d" % len(pairs)}
    records.update(fields)
    lines = [record(b"GNU.sparse." + key.encode(), value) for key, value in records.items() if value is not None]
    if version == "0.0":
        lines += [record(b"GNU.sparse." + key, value) for pair in pairs
                  for key, value in zip((b"offset", b"numbytes"), pair)]
    name = b"f" if version == "0.0" else b"GNUSparseFile.0/f"
    return extended(b"".join(lines)) + file(name, data)


# -- what became of them -------------------------------------------------------


class Thing(NamedTuple):
    """What lstat(2) and more say; ``same`` is the first of the paths that are one file."""
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str  # a digest, or where a link points to
    mtime: int  # nanoseconds
    device: int
    links: int
    same: bytes
    xattrs: Tuple[Tuple[str, bytes], ...]


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
          stat.S_IFCHR: "char", stat.S_IFBLK: "block", stat.S_IFSOCK: "socket"}


def things(root: Union[Path, bytes], skip: Optional[Path] = None) -> Dict[bytes, Thing]:
    """All below ``root``, itself included, by path; without what is called ``skip`` and what lies in it."""
    top = os.fsencode(root)
    found: Dict[bytes, Thing] = {}
    first: Dict[Tuple[int, int], bytes] = {}
    pending = [top]
    while pending:
        path = pending.pop()
        if skip is not None and path == os.fsencode(skip):
            continue
        name, status = os.path.relpath(path, top), os.lstat(path)
        kind, content = _KINDS[stat.S_IFMT(status.st_mode)], ""
        if kind == "file":
            content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif kind == "link":
            content = os.readlink(os.fsdecode(path))
        elif kind == "directory":
            pending += [os.path.join(path, each) for each in sorted(os.listdir(path), reverse=True)]
        flat = kind == "directory"  # its size and links are the file system's affair
        found[name] = Thing(
            kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, 0 if flat else status.st_size,
            content, status.st_mtime_ns, status.st_rdev, 1 if flat else status.st_nlink,
            name if flat else first.setdefault((status.st_dev, status.st_ino), name),
            tuple((key, os.getxattr(path, key, follow_symlinks=False))
                  for key in sorted(os.listxattr(path, follow_symlinks=False))))
    return found


def shown(root: Path) -> Dict[str, str]:
    """The tree below ``root`` in words: path to ``"data"``, ``dir``, ``-> target`` or another kind."""
    words = {}
    for name, thing in things(root).items():
        word = {"directory": "dir", "link": "-> " + thing.content}.get(thing.kind, thing.kind)
        if thing.kind == "file":
            word = repr((root / os.fsdecode(name)).read_bytes().decode())
        words[os.fsdecode(name)] = word
    del words["."]
    return words


# -- other users, faster disks -------------------------------------------------


def in_child(act: Callable[[], Any]) -> Any:
    """What ``act`` returns or raises in a process of its own."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the child needs none of them
        child = os.fork()
    if child == 0:
        try:
            result: Tuple[bool, Any] = True, act()
        except BaseException as exc:
            result = False, exc
        with open(write, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        done, value = pickle.load(file)
    os.waitpid(child, 0)
    if not done:
        raise value
    return value


def as_nobody(act: Callable[[], Any]) -> Any:
    """What ``act`` returns or raises as a user who has no rights but on what is theirs."""
    def drop() -> Any:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return act()

    return in_child(drop) if os.geteuid() == 0 else act()


def needs_root() -> None:
    """For tests that look at what only root may see, or make."""
    if os.geteuid() != 0:
        missing("owners, devices, setuid and other users need root")


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """A directory for trees of many files, in memory where that can be had."""
    memory = "/dev/shm"
    path = Path(tempfile.mkdtemp(
        prefix="minipull-", dir=memory if os.access(memory, os.W_OK | os.X_OK) else None))
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", str(path)], check=True)  # which does without recursion
