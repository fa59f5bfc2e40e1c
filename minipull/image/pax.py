# SPDX-License-Identifier: Apache-2.0
"""The fields of a tar's headers: numbers, and the maps of sparse files.

A map lists the extents of a file that are no holes, in GNU's formats 0.0, 0.1 and 1.0;
the old one, type ``S``, is none that a layer may have.

Spec: POSIX.1-2017 pax; GNU tar manual, "Storing Sparse Files".
"""
import functools
import re
from typing import Callable, List, Mapping, Optional, Tuple

from ..errors import InvalidDocument, PolicyError

MAX_ID = (1 << 32) - 2  # the next one means "leave it" to chown(2)
MAX_EXTENTS = 1 << 16  # of one file
SPARSE = b"GNU.sparse."
#: The records that format 0.0 has once for each extent, in turns.
OFFSET, LENGTH = SPARSE + b"offset", SPARSE + b"numbytes"
BLOCK = 512  # bytes
_LINE = 20  # bytes of a line of a map at most
_TIME = re.compile(br"(-?)0*([0-9]+)(?:\.([0-9]*))?")
_NUMBERS = re.compile(br"[0-9]{1,18}(?:,[0-9]{1,18})*")


@functools.lru_cache(maxsize=256)  # most entries have the owner, mode and time of the one before
def number(field: bytes, name: str, bounded: bool = True) -> int:
    """Parse a number of a header: octal digits, or base 256 if its first bit is set; raises InvalidDocument."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
        if field[0] & 0x40:
            value -= 1 << 8 * len(field) - 1
    else:
        text = field.strip(b" \0") or b"0"
        if text.strip(b"01234567"):  # int() would take "+7" and "0_7" as well
            raise InvalidDocument("tar: malformed %s in a header" % name)
        value = int(text, 8)
    if bounded and not 0 <= value < 1 << 63:
        raise InvalidDocument("tar: %s out of range in a header" % name)
    return value


def decimal(size: bytes) -> int:
    """Parse the size in an extended header; raises InvalidDocument."""
    if not re.fullmatch(b"[0-9]{1,19}", size) or int(size) >= 1 << 63:
        raise InvalidDocument("tar: size in an extended header is no number")
    return int(size)


def owner(field: bytes, name: str, extension: Optional[bytes]) -> int:
    """Return the number of an owner; -1 for one that no system has."""
    if extension is None:
        value = number(field, name, bounded=False)
    elif re.fullmatch(b"-?[0-9]+", extension):
        value = int(extension[:20])  # which tells whether it is too large
    else:
        raise InvalidDocument("tar: %s in an extended header is no number" % name)
    return value if 0 <= value <= MAX_ID else -1


def time(field: bytes, extension: Optional[bytes]) -> int:
    """Return an mtime in nanoseconds, cut to the range of seconds that file systems hold."""
    if extension is None:
        seconds, nanoseconds = number(field, "mtime", bounded=False), 0
    else:
        match = _TIME.fullmatch(extension)
        if match is None:
            raise InvalidDocument("tar: mtime in an extended header is no number")
        sign, whole, fraction = match.groups(b"")
        seconds, nanoseconds = int(whole[:20]), int(fraction[:9].ljust(9, b"0"))
        if sign:
            seconds, nanoseconds = -seconds, -nanoseconds
    return max(-1 << 31, min(seconds, 1 << 33)) * 10 ** 9 + nanoseconds


def read_map(records: Mapping[bytes, bytes], listed: List[bytes], stored: int, take: Callable[[int], bytes],
             source: str) -> Tuple[int, List[Tuple[int, int]], int]:
    """Return the size of a sparse file, its extents, and the bytes of its map before the data.

    ``listed`` is the map of format 0.0.  ``stored`` bytes lie in the tar, and ``take``
    reads the next ones.  Raises InvalidDocument, PolicyError.
    """
    version = records.get(SPARSE + b"major", b"0") + b"." + records.get(SPARSE + b"minor", b"0")
    if version == b"1.0":
        size, numbers = records.get(SPARSE + b"realsize", b""), _lines(stored, take, source)
    else:
        size, text = records.get(SPARSE + b"size", b""), records.get(SPARSE + b"map", b"")
        numbers = [records.get(SPARSE + b"numblocks", b""), *listed]
        numbers += text.split(b",", 2 * MAX_EXTENTS) if text else []
    if version not in (b"0.0", b"0.1", b"1.0") or not _NUMBERS.fullmatch(b",".join([size, *numbers])):
        raise InvalidDocument("tar: sparse file %s has a malformed map" % source)
    if len(numbers) > 2 * MAX_EXTENTS + 1:
        raise PolicyError("tar: sparse file %s has more than %d extents" % (source, MAX_EXTENTS))
    count, *values = map(int, numbers)
    extents = [*zip(values[::2], values[1::2]), (int(size), 0)]
    before = -(-sum(len(line) + 1 for line in numbers) // BLOCK) * BLOCK if version == b"1.0" else 0
    end = 0
    for offset, length in extents:
        if offset < end:
            end = -1
            break
        end = offset + length
    if end != int(size) or len(values) != 2 * count or sum(values[1::2]) + before != stored:
        raise InvalidDocument("tar: sparse file %s is not what its map says" % source)
    return end, extents, before


def _lines(stored: int, take: Callable[[int], bytes], source: str) -> List[bytes]:
    """Read the map of format 1.0: the number of extents, and what they are, each on a line of its own."""
    text, lines, needed = bytearray(), 0, 1
    while lines < needed:
        if len(text) + BLOCK > min(stored, BLOCK + _LINE * (2 * MAX_EXTENTS + 2)):
            raise InvalidDocument("tar: sparse file %s has a malformed map" % source)
        text += take(BLOCK)
        lines += text.count(b"\n", len(text) - BLOCK)
        count = text[:_LINE].partition(b"\n")[0]
        if not count.isdigit():
            raise InvalidDocument("tar: sparse file %s has a malformed map" % source)
        needed = 1 + 2 * int(count)
    return bytes(text).split(b"\n", needed)[:needed]
