# SPDX-License-Identifier: Apache-2.0
"""Tar streams: a strict reader that holds one header at a time, and a writer.

The standard library's reader ends silently at a damaged header, hangs on some
sizes and believes the first of two extended headers.  This one reads ustar, PAX
and GNU headers from a stream and refuses whatever two readers could read in two
ways.  Names are bytes, for the caller to decode.  The library's writer is not
used either, since its bytes differ from one version of Python to the next.

Spec: POSIX.1-2017 pax; GNU tar manual "Basic Tar Format"; image-spec layer.md.
"""
import collections
import re
import struct
from typing import BinaryIO, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Tuple

from ..digest import Buffer
from ..errors import InvalidDocument, PolicyError, file_errors, shown
from . import pax

BLOCK = pax.BLOCK
MAX_ENTRIES = 10000000
MAX_EXTENSION = 1 << 20  # bytes of the extended headers before one entry
MAX_EXTENSIONS = 64  # and their number
MAX_NAME = 4096  # bytes
NOBODY = 65534  # in place of an owner that no system has
MAX_DEVICE = (1 << 21) - 1  # major or minor number: the most that a header and Linux hold
END = bytes(2 * BLOCK)
HOLE = bytes(256 << 10)  # of which the pieces of holes are parts

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {b"\0": FILE, b"7": FILE}  # old files, and contiguous ones
_XATTR = b"SCHILY.xattr."
#: The fields of a ustar header (POSIX pax, "ustar Header Block"), and their widths in bytes.
_Fields = collections.namedtuple("_Fields", "name mode uid gid size mtime checksum kind linkname"
                                 " magic version uname gname major minor prefix")
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
#   record ::= length SP keyword "=" value LF
_RECORD = re.compile(br"([1-9][0-9]{0,6}) ([^=\0]+)=")
_GLOBAL = frozenset((b"path", b"linkpath", b"size"))  # which no header may set for all


NONE: Mapping[bytes, bytes] = {}  # one for all entries, since many are kept


class Entry(NamedTuple):
    """A member: ``size`` bytes of data follow if it is a FILE; ``mtime`` is in nanoseconds."""
    name: bytes
    kind: bytes = FILE
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    linkname: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = NONE
    uname: bytes = b""
    gname: bytes = b""

    def __str__(self) -> str:
        return shown(self.name.decode("utf-8", "replace"), 200)


class Reader:
    """Iterates over the entries of a tar stream in ``pieces``; raises InvalidDocument, PolicyError.

    ``replaced_owners`` counts entries whose owner is NOBODY instead, and ``holes`` the bytes
    that sparse files lack in the stream.
    """

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._at = 0  # in the piece
        self._left = 0  # bytes of the present entry's data
        self._padding = 0  # and behind it
        self._listed: List[bytes] = []  # the map of a sparse file in format 0.0
        self._extents: List[Tuple[int, int]] = []  # of a sparse file
        self.replaced_owners = self.holes = 0

    def __iter__(self) -> Iterator[Entry]:
        extensions: Dict[bytes, bytes] = {}
        count = chained = extended = 0
        while True:
            for _ in self._stored(self._left):
                pass
            self._take(self._padding, may_end=True)
            self._padding = 0
            block = self._take(BLOCK, may_end=not chained)
            nonzero = block.translate(None, b"\0")
            if not nonzero:
                # One of zeros, or the end of the stream, is an end; something after it is not.
                if chained or block and self._take(BLOCK, may_end=True).strip(b"\0"):
                    raise InvalidDocument("tar: malformed end of the archive")
                return
            fields = _Fields._make(_HEADER.unpack(block))
            if pax.number(fields.checksum, "checksum") != sum(nonzero) - sum(fields.checksum) + 8 * 0x20:
                raise InvalidDocument("tar: damaged header (checksum)")
            kind = _KINDS.get(fields.kind, fields.kind)
            if kind in b"xgLK":
                size = pax.number(fields.size, "size")
                chained, extended = chained + 1, extended + size
                if chained > MAX_EXTENSIONS or extended > MAX_EXTENSION:
                    raise PolicyError("tar: %d extended headers of %d bytes in a row" % (chained, extended))
                self._extend(kind, size, extensions)
                continue
            entry = _entry(kind, fields, extensions)
            count += 1
            if count > MAX_ENTRIES:
                raise PolicyError("tar: more than %d entries" % MAX_ENTRIES)
            self._left, self._padding, self._extents = entry.size, -entry.size % BLOCK, []
            if self._listed or any(keyword.startswith(pax.SPARSE) for keyword in extensions):
                entry = self._expand(entry, extensions)
            if min(entry.uid, entry.gid) < 0:
                self.replaced_owners += 1
                entry = entry._replace(uid=NOBODY if entry.uid < 0 else entry.uid,
                                       gid=NOBODY if entry.gid < 0 else entry.gid)
            yield entry
            extensions, self._listed, chained, extended = {}, [], 0, 0

    @property
    def sparse(self) -> bool:
        """Whether the current entry's data lies in the stream without its holes."""
        return bool(self._extents)

    def data(self) -> Iterator[memoryview]:
        """Iterate over the rest of the current entry's data; each piece is valid until the next."""
        return self._expanded() if self._extents else self._stored(self._left)

    def _expanded(self) -> Iterator[memoryview]:
        """Yield the data of a sparse file with its holes."""
        extents, self._extents, end = self._extents, [], 0
        for offset, size in extents:
            for start in range(end, offset, len(HOLE)):
                yield memoryview(HOLE)[:offset - start]
            yield from self._stored(size)
            end = offset + size

    def _stored(self, count: int) -> Iterator[memoryview]:
        while count:
            if self._at == len(self._piece):
                self._next()
            piece = self._piece[self._at:self._at + count]
            self._at += len(piece)
            self._left -= len(piece)
            count -= len(piece)
            yield piece

    def _expand(self, entry: Entry, extensions: Mapping[bytes, bytes]) -> Entry:
        """Return a sparse file with the size that it has with its holes."""
        if entry.kind != FILE:
            raise InvalidDocument("tar: %s is sparse and no file" % _label(entry.name))
        size, self._extents, before = pax.read_map(
            extensions, self._listed, self._left, self._take, _label(entry.name))
        self._left -= before
        self.holes += size - self._left
        return entry._replace(size=size)

    def skip(self) -> int:
        """Abandon the current entry's data; returns how many bytes, padding too, not to feed to us."""
        count = self._left + self._padding
        self._left = self._padding = 0
        return count

    def drain(self) -> None:
        """Read the stream behind the archive's end, so that a hash of the pieces is of all of them."""
        for _ in self._pieces:
            pass

    def _next(self, may_end: bool = False) -> bool:
        """Take the next piece; False if the stream has ended, which ``may_end`` allows."""
        piece = next(self._pieces, None)
        if piece is None and not may_end:
            raise InvalidDocument("tar: the stream is cut short")
        self._piece, self._at = memoryview(piece or b""), 0
        return piece is not None

    def _take(self, count: int, may_end: bool = False) -> bytes:
        """Return the next ``count`` bytes, or none if ``may_end`` and the stream has ended."""
        end = self._at + count
        if end <= len(self._piece):
            data = bytes(self._piece[self._at:end])
            self._at = end
            return data
        parts = bytearray(self._piece[self._at:])
        self._at = len(self._piece)
        while len(parts) < count:
            if not self._next(may_end and not parts):
                return b""
            found = self._piece[:count - len(parts)]
            self._at = len(found)
            parts += found
        return bytes(parts)

    def _extend(self, kind: bytes, size: int, extensions: Dict[bytes, bytes]) -> None:
        """Add the records of an extended header; of two with one keyword the last counts.

        One without a value deletes those before it, unless it is an attribute.
        """
        data = self._take(size + -size % BLOCK)[:size]
        if kind in b"LK":
            extensions[b"\0" + kind] = data.partition(b"\0")[0]  # which is no keyword
            return
        at = 0
        while at < size:
            match = _RECORD.match(data, at)
            end = at + int(match.group(1)) if match else 0
            if match is None or not match.end() < end <= size or data[end - 1] != 0x0A:
                raise InvalidDocument("tar: malformed extended header")
            keyword, value, at = match.group(2), data[match.end():end - 1], end
            if kind == b"g":
                if keyword in _GLOBAL:
                    raise InvalidDocument("tar: global header sets %s" % keyword.decode())
            elif keyword in (pax.OFFSET, pax.LENGTH):
                if len(self._listed) % 2 != (keyword == pax.LENGTH):
                    raise InvalidDocument("tar: malformed map of a sparse file")
                self._listed.append(value)
            elif value or keyword.startswith(_XATTR):
                extensions[keyword] = value
            else:
                extensions.pop(keyword, None)


def _entry(kind: bytes, fields: _Fields, extensions: Mapping[bytes, bytes]) -> Entry:
    name, prefix = fields.name.partition(b"\0")[0], fields.prefix.partition(b"\0")[0]
    # GNU's headers have times in place of the prefix, except those that Go wrote before 1.8.
    if prefix and (fields.magic == b"ustar\0" or fields.magic == b"ustar " and prefix.strip(b"01234567 ")):
        name = prefix + b"/" + name
    size = pax.decimal(extensions[b"size"]) if b"size" in extensions else pax.number(fields.size, "size")
    linkname = fields.linkname.partition(b"\0")[0]
    if extensions:
        name = _long(extensions, b"L", b"path", name)
        linkname = _long(extensions, b"K", b"linkpath", linkname)
        name = extensions.get(pax.SPARSE + b"name", name)
    if kind == FILE and name.endswith(b"/") and fields.kind == b"\0":
        kind = DIRECTORY  # as directories were before ustar
    if kind not in b"0123456":
        raise InvalidDocument(
            "tar: %s is of type %s, which no layer may have" % (_label(name), ascii(kind)[1:]))
    texts = (name, linkname) if kind in b"12" else (name,)
    if b"" in texts or b"\0" in b"".join(texts) or max(map(len, texts)) > MAX_NAME:
        raise InvalidDocument("tar: a name of %s is empty, too long or has a zero in it" % _label(name))
    major = minor = 0
    if kind in b"34":
        major, minor = pax.number(fields.major, "device"), pax.number(fields.minor, "device")
        if max(major, minor) > MAX_DEVICE:
            raise InvalidDocument("tar: device %s is out of range" % _label(name))
    return Entry(
        name, kind, size if kind == FILE else 0, pax.number(fields.mode, "mode") & 0o7777,
        pax.owner(fields.uid, "uid", extensions.get(b"uid")),
        pax.owner(fields.gid, "gid", extensions.get(b"gid")),
        pax.time(fields.mtime, extensions.get(b"mtime")), linkname, major, minor,
        {keyword[len(_XATTR):]: value for keyword, value in extensions.items()
         if keyword.startswith(_XATTR)} or NONE,
        extensions.get(b"uname", fields.uname.partition(b"\0")[0]),
        extensions.get(b"gname", fields.gname.partition(b"\0")[0]))


def _label(name: bytes) -> str:
    return ascii(name[:100].decode("utf-8", "replace"))


def _long(extensions: Mapping[bytes, bytes], kind: bytes, keyword: bytes, short: bytes) -> bytes:
    """Return a long name, GNU's or PAX's; where both differ, readers disagree on which counts."""
    names = {extensions[key] for key in (b"\0" + kind, keyword) if key in extensions}
    if len(names) > 1:
        raise InvalidDocument("tar: two kinds of extended headers that differ in a name")
    return names.pop() if names else short


def header(entry: Entry) -> bytes:
    """Return the header of an entry, with a PAX header before it if need be; the same bytes every time."""
    records = {_XATTR + key: value for key, value in entry.xattrs.items()}
    seconds, nanoseconds = divmod(abs(entry.mtime), 10 ** 9)
    if entry.mtime < 0 or nanoseconds or seconds >= 8 ** 11:
        sign = b"-" if entry.mtime < 0 else b""
        records[b"mtime"] = b"%s%d.%09d" % (sign, seconds, nanoseconds)
    for keyword, text, width in ((b"path", entry.name, 100), (b"linkpath", entry.linkname, 100),
                                 (b"uname", entry.uname, 32), (b"gname", entry.gname, 32)):
        if len(text) > width:
            records[keyword] = text
    for keyword, number, digits in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        if number >= 8 ** digits:
            records[keyword] = b"%d" % number
    if not records:
        return _block(entry)
    data = b"".join(_record(keyword, records[keyword]) for keyword in sorted(records))
    extension = Entry(b"././@PaxHeader", b"x", len(data))
    return _block(extension) + data + padding(len(data)) + _block(entry)


def _record(keyword: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):  # it counts its own digits
        length = len(rest) + len(b"%d" % length)
    return b"%d%s" % (length, rest)


def _block(entry: Entry) -> bytes:
    """Return a ustar header; values that don't fit are in the PAX header before it."""
    def octal(value: int, digits: int) -> bytes:
        return b"%0*o\0" % (digits, value if 0 <= value < 8 ** digits else 0)

    fields = _Fields(
        entry.name[:100], octal(entry.mode, 7), octal(entry.uid, 7), octal(entry.gid, 7),
        octal(entry.size, 11), octal(entry.mtime // 10 ** 9, 11), b" " * 8, entry.kind, entry.linkname[:100],
        b"ustar\0", b"00", entry.uname[:32], entry.gname[:32],
        octal(entry.major, 7), octal(entry.minor, 7), b"")
    checksum = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields._replace(checksum=checksum))


def padding(size: int) -> bytes:
    """Return the zeros that follow ``size`` bytes of data."""
    return bytes(-size % BLOCK)


def write_pieces(pieces: Iterable[Buffer], file: BinaryIO) -> None:
    """Write a tar to a caller's open file, which may take a part of a piece at a time; raises StorageError."""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            with file_errors("write the tar"):
                rest = rest[file.write(rest) or len(rest):]  # None, from some, is all of it
