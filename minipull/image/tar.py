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
from typing import Dict, Iterator, Mapping, NamedTuple, Optional

from ..digest import Buffer
from ..errors import InvalidDocument, PolicyError, shown

BLOCK = 512
MAX_ENTRIES = 10000000
MAX_EXTENSION = 1 << 20  # bytes of the extended headers before one entry
MAX_EXTENSIONS = 64  # and their number
MAX_NAME = 4096  # bytes
MAX_ID = (1 << 32) - 2  # the next one means "leave it" to chown(2)
MAX_DEVICE = (1 << 21) - 1  # major or minor number: the most that a header and Linux hold
END = bytes(2 * BLOCK)

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {b"\0": FILE, b"7": FILE}  # old files, and contiguous ones
_XATTR = b"SCHILY.xattr."
#: The fields of a ustar header (POSIX pax, "ustar Header Block"), and their widths in bytes.
_Fields = collections.namedtuple("_Fields", "name mode uid gid size mtime checksum kind linkname"
                                 " magic version uname gname major minor prefix")
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
#   record ::= length SP keyword "=" value LF
_RECORD = re.compile(br"([1-9][0-9]{0,6}) ([^=\0]+)=")
_TIME = re.compile(br"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_GLOBAL = frozenset((b"path", b"linkpath", b"size"))  # which no header may set for all


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
    xattrs: Mapping[bytes, bytes] = {}
    uname: bytes = b""
    gname: bytes = b""

    def __str__(self) -> str:
        return shown(self.name.decode("utf-8", "replace"), 200)


class Reader:
    """Iterates over the entries of a tar stream in ``pieces``; raises InvalidDocument, PolicyError."""

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._at = 0  # in the piece
        self._left = 0  # bytes of the present entry's data
        self._padding = 0  # and behind it

    def __iter__(self) -> Iterator[Entry]:
        extensions: Dict[bytes, bytes] = {}
        count = chained = extended = 0
        while True:
            for _ in self.data():
                pass
            self._take(self._padding, may_end=True)
            self._padding = 0
            block = self._take(BLOCK, may_end=not chained)
            if not block.strip(b"\0"):
                # One of zeros, or the end of the stream, is an end; something after it is not.
                if chained or block and self._take(BLOCK, may_end=True).strip(b"\0"):
                    raise InvalidDocument("tar: malformed end of the archive")
                return
            fields = _Fields._make(_HEADER.unpack(block))
            if _number(fields.checksum, "checksum") != sum(block) - sum(fields.checksum) + 8 * 0x20:
                raise InvalidDocument("tar: damaged header (checksum)")
            kind = _KINDS.get(fields.kind, fields.kind)
            if kind in b"xgLK":
                size = _number(fields.size, "size")
                chained, extended = chained + 1, extended + size
                if chained > MAX_EXTENSIONS or extended > MAX_EXTENSION:
                    raise PolicyError("tar: %d extended headers of %d bytes in a row" % (chained, extended))
                self._extend(kind, size, extensions)
                continue
            entry = _entry(kind, fields, extensions)
            count += 1
            if count > MAX_ENTRIES:
                raise PolicyError("tar: more than %d entries" % MAX_ENTRIES)
            self._left, self._padding = entry.size, -entry.size % BLOCK
            yield entry
            extensions, chained, extended = {}, 0, 0

    def data(self) -> Iterator[memoryview]:
        """Yield the rest of the current entry's data; each piece is valid until the next."""
        while self._left:
            if self._at == len(self._piece):
                self._next()
            piece = self._piece[self._at:self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    def skip(self) -> int:
        """Abandon the current entry's data; returns how many bytes, padding too, not to feed to us."""
        count = self._left + self._padding
        self._left = self._padding = 0
        return count

    def drain(self) -> None:
        """Read the stream behind the archive's end, so that a hash of the pieces is of all of them."""
        for _ in self._pieces:
            pass

    def _next(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise InvalidDocument("tar: the stream is cut short")
        self._piece, self._at = memoryview(piece), 0

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
            if may_end and not parts:
                piece = next(self._pieces, None)
                if piece is None:
                    return b""
                self._piece, self._at = memoryview(piece), 0
            else:
                self._next()
            found = self._piece[:count - len(parts)]
            self._at = len(found)
            parts += found
        return bytes(parts)

    def _extend(self, kind: bytes, size: int, extensions: Dict[bytes, bytes]) -> None:
        """Add the records of an extended header; of two with one keyword the last counts."""
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
            keyword, at = match.group(2), end
            if kind == b"x":
                extensions[keyword] = data[match.end():end - 1]
            elif keyword in _GLOBAL:
                raise InvalidDocument("tar: global header sets %s" % keyword.decode())


def _entry(kind: bytes, fields: _Fields, extensions: Mapping[bytes, bytes]) -> Entry:
    name, prefix = fields.name.partition(b"\0")[0], fields.prefix.partition(b"\0")[0]
    # GNU's headers have times in place of the prefix, except those that Go wrote before 1.8.
    if prefix and (fields.magic == b"ustar\0" or fields.magic == b"ustar " and prefix.strip(b"01234567 ")):
        name = prefix + b"/" + name
    numbers = {}
    for keyword, field in ((b"uid", fields.uid), (b"gid", fields.gid), (b"size", fields.size)):
        value = extensions.get(keyword)
        numbers[keyword] = _number(field, keyword.decode()) if value is None else _decimal(value, keyword)
    linkname = fields.linkname.partition(b"\0")[0]
    if extensions:
        name = _long(extensions, b"L", b"path", name)
        linkname = _long(extensions, b"K", b"linkpath", linkname)
        if any(keyword.startswith(b"GNU.sparse.") for keyword in extensions):
            kind = b"S"
    if kind == FILE and name.endswith(b"/") and fields.kind == b"\0":
        kind = DIRECTORY  # as directories were before ustar
    if kind not in b"0123456":
        raise InvalidDocument("tar: %s is of type %s, which no layer may have" % (_label(name), ascii(kind)[1:]))
    texts = (name, linkname) if kind in b"12" else (name,)
    if b"" in texts or b"\0" in b"".join(texts) or max(map(len, texts)) > MAX_NAME:
        raise InvalidDocument("tar: a name of %s is empty, too long or has a zero in it" % _label(name))
    if max(numbers[b"uid"], numbers[b"gid"]) > MAX_ID:
        raise InvalidDocument("tar: owner of %s is out of range" % _label(name))
    major = minor = 0
    if kind in b"34":
        major, minor = _number(fields.major, "device"), _number(fields.minor, "device")
        if max(major, minor) > MAX_DEVICE:
            raise InvalidDocument("tar: device %s is out of range" % _label(name))
    return Entry(
        name, kind, numbers[b"size"] if kind == FILE else 0, _number(fields.mode, "mode") & 0o7777,
        numbers[b"uid"], numbers[b"gid"], _time(fields.mtime, extensions.get(b"mtime")), linkname, major, minor,
        {keyword[len(_XATTR):]: value for keyword, value in extensions.items()
         if keyword.startswith(_XATTR)},
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


def _number(field: bytes, name: str, least: int = 0) -> int:
    """Parse a number of a header: octal digits, or base 256 if its first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
        if field[0] & 0x40:
            value -= 1 << 8 * len(field) - 1
    else:
        text = field.strip(b" \0") or b"0"
        if text.strip(b"01234567"):  # int() would take "+7" and "0_7" as well
            raise InvalidDocument("tar: malformed %s in a header" % name)
        value = int(text, 8)
    if not least <= value < 1 << 63:
        raise InvalidDocument("tar: %s out of range in a header" % name)
    return value


def _decimal(value: bytes, keyword: bytes) -> int:
    if not re.fullmatch(b"[0-9]{1,19}", value) or int(value) >= 1 << 63:
        raise InvalidDocument("tar: %s in an extended header is no number" % keyword.decode())
    return int(value)


def _time(field: bytes, extension: Optional[bytes]) -> int:
    """Return an mtime in nanoseconds, cut to the range of seconds that file systems hold."""
    if extension is None:
        seconds, nanoseconds = _number(field, "mtime", -1 << 63), 0
    else:
        match = _TIME.fullmatch(extension)
        if match is None:
            raise InvalidDocument("tar: mtime in an extended header is no number")
        sign, whole, fraction = match.groups(b"")
        seconds, nanoseconds = int(whole), int(fraction[:9].ljust(9, b"0"))
        if sign:
            seconds, nanoseconds = -seconds, -nanoseconds
    return max(-1 << 31, min(seconds, 1 << 33)) * 10 ** 9 + nanoseconds


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
