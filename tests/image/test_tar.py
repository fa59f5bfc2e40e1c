# SPDX-License-Identifier: Apache-2.0
"""Tar streams: what the reader takes, what it refuses, and the writer's bytes."""
import io
import random
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest

from tests.kit import ROOT
from tests.kit.processes import clean_env, interpreters, peer, run
from tests.kit.layers import (
    BLOCK, END, GNU, MTIME, V7, base256, extended, file, folder, hardlink, head, padded, pax, record, sparse, symlink,
    xattrs)
from minipull.image import tar as tar_module
from minipull.errors import Error, InvalidDocument, PolicyError
from minipull.image.tar import (
    BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, FILE, LINK, MAX_EXTENSION, MAX_EXTENSIONS, MAX_NAME, NOBODY, SYMLINK,
    Entry, Reader, header, padding)

SECOND = 10 ** 9


def read(data: bytes, at: Sequence[int] = ()) -> List[Tuple[Entry, bytes]]:
    """The entries of a stream that comes in pieces, cut where ``at`` says, each with its data."""
    cuts = [0, *at, len(data)]
    reader = Reader(iter([data[start:end] for start, end in zip(cuts, cuts[1:])]))
    return [(entry, b"".join(map(bytes, reader.data()))) for entry in reader]


def one(data: bytes) -> Entry:
    """The only entry of a stream that has no end yet."""
    [(entry, _)] = read(data + END)
    return entry


# -- what is read ----------------------------------------------------------------

N = b"n" * 150
READ: Dict[str, Tuple[bytes, Dict[str, object]]] = {
    "all fields": (
        head(b"f", size=3, mode=0o4755, uid=1, gid=2, uname=b"ann", gname=b"staff") + padded(b"abc"),
        dict(name=b"f", kind=FILE, size=3, mode=0o4755, uid=1, gid=2, mtime=MTIME * SECOND, uname=b"ann",
             gname=b"staff", linkname=b"", xattrs={})),
    "symbolic link": (symlink(b"l", b"../t"), dict(kind=SYMLINK, linkname=b"../t", mode=0o777)),
    "hard link": (hardlink(b"l", b"t"), dict(kind=LINK, linkname=b"t")),
    "directory": (folder(b"d/"), dict(name=b"d/", kind=DIRECTORY, mode=0o755)),
    "char": (head(b"c", b"3", major=1, minor=3), dict(kind=CHAR, major=1, minor=3)),
    "block": (head(b"b", b"4", major=8), dict(kind=BLOCK_DEVICE, major=8, minor=0)),
    "FIFO": (head(b"p", b"6"), dict(kind=FIFO)),
    "prefix": (head(b"n", prefix=b"p/q"), dict(name=b"p/q/n")),
    "name of all 100 bytes": (head(N[:100]), dict(name=N[:100])),
    "no magic": (head(b"f", magic=V7, prefix=b"p"), dict(name=b"f")),
    "GNU": (head(b"f", magic=GNU), dict(name=b"f")),
    "GNU with times where ustar has a prefix": (
        head(b"f", magic=GNU, prefix=b"13371337000\x0013371337000\0"), dict(name=b"f")),
    "GNU with a prefix, as Go once wrote": (head(b"f", magic=GNU, prefix=b"p"), dict(name=b"p/f")),
    "GNU long names": (
        extended(N + b"\0", b"L") + extended(N + b"2\0", b"K") + symlink(b"n", b"n"),
        dict(name=N, linkname=N + b"2")),
    "GNU long name without its zero": (extended(N, b"L") + file(b"n"), dict(name=N)),
    "numbers with blanks, or without an end": (
        head(b"f", mode=b"   644 \0", uid=b"00000001", gid=b"     1 \0", size=b"           \0"),
        dict(mode=0o644, uid=1, gid=1, size=0)),
    "mode of more bits than there are": (head(b"f", mode=0o107777), dict(mode=0o7777)),
    "mtime that is negative": (head(b"f", mtime=base256(-5, 12)), dict(mtime=-5 * SECOND)),
    "base 256": (
        head(b"f", uid=base256(1 << 30, 8), gid=base256(3, 8), size=base256(0, 12), mtime=base256(1 << 33, 12)),
        dict(uid=1 << 30, gid=3, size=0, mtime=SECOND << 33)),
    "last owner": (
        pax(uid=b"4294967294", gid=b"4294967294") + file(b"f"), dict(uid=2 ** 32 - 2, gid=2 ** 32 - 2)),
    "PAX": (
        pax(path=N, uid=b"70000", gid=b"07", mtime=b"1.5", uname=b"ann", gname=N, size=b"0", comment=b"\0=\n")
        + head(b"n", uid=1, size=1, uname=b"x"),
        dict(name=N, uid=70000, gid=7, size=0, mtime=1500000000, uname=b"ann", gname=N)),
    "PAX link": (pax(linkpath=N) + symlink(b"l", b"t"), dict(linkname=N)),
    **{"sparse " + version: (sparse(version, 3000, [(600, b"abc"), (2000, b"d" * 600)]), dict(name=b"f", size=3000))
       for version in ("0.0", "0.1", "1.0")},
    "xattrs": (
        xattrs(a=b"1\0=\n", b=b"") + file(b"f"), dict(xattrs={b"user.a": b"1\0=\n", b"user.b": b""})),
    "GNU and PAX that agree": (extended(N + b"\0", b"L") + pax(path=N) + file(b"n"), dict(name=N)),
    # What readers of other writers' archives put up with.
    "owner that chown(2) takes for none": (pax(uid=b"4294967295") + file(b"f", gid=4), dict(uid=NOBODY, gid=4)),
    "group past 32 bits": (head(b"f", gid=base256(1 << 32, 8)), dict(uid=0, gid=NOBODY)),
    "owner past 63 bits": (pax(uid=b"9223372036854775808") + file(b"f"), dict(uid=NOBODY)),
    "owner of 5,000 digits": (pax(uid=b"1" * 5000) + file(b"f"), dict(uid=NOBODY)),
    "owner below zero": (head(b"f", uid=base256(-1, 8)), dict(uid=NOBODY)),
    "owner and group below zero in PAX": (pax(uid=b"-1", gid=b"-2") + file(b"f"), dict(uid=NOBODY, gid=NOBODY)),
    "records without values, which leave it to the header": (
        pax(path=b"", uid=b"", gid=b"", size=b"", mtime=b"", uname=b"", gname=b"", comment=b"")
        + file(b"f", b"abc", uid=1, gid=2, uname=b"ann", gname=b"staff"),
        dict(name=b"f", uid=1, gid=2, size=3, mtime=MTIME * SECOND, uname=b"ann", gname=b"staff")),
    "record without a value, which deletes one before": (
        pax(uid=b"5", path=b"p") + pax(uid=b"", path=b"") + file(b"f"), dict(uid=0, name=b"f")),
    "link without a value in PAX": (pax(linkpath=b"") + symlink(b"l", b"t"), dict(linkname=b"t")),
    "keywords that nobody knows": (
        extended(record(b"\xff\xfe", b"\xff") + record(b"a b", b"1") + record(b"VENDOR.x", b"\0")) + file(b"f"),
        dict(name=b"f", xattrs={})),
    # HL23
    "mtime to the nanosecond": (pax(mtime=b"1.123456789123") + file(b"f"), dict(mtime=1123456789)),
    "mtime with nothing behind its point": (pax(mtime=b"7.") + file(b"f"), dict(mtime=7 * SECOND)),
    "mtime before 1970 with a fraction": (pax(mtime=b"-1.5") + file(b"f"), dict(mtime=-1500000000)),
    "mtime of no file system, ahead": (pax(mtime=b"1" + b"0" * 14) + file(b"f"), dict(mtime=SECOND << 33)),
    "mtime of no file system, back": (pax(mtime=b"-1" + b"0" * 14) + file(b"f"), dict(mtime=-SECOND << 31)),
    "mtime of 5,000 digits": (pax(mtime=b"9" * 5000) + file(b"f"), dict(mtime=SECOND << 33)),
    "mtime of many zeros": (pax(mtime=b"0" * 30 + b"7") + file(b"f"), dict(mtime=7 * SECOND)),
    "mtime of 80 bits in a header": (head(b"f", mtime=base256(1 << 80, 12)), dict(mtime=SECOND << 33)),
    "mtime of no file system in a header": (head(b"f", mtime=base256(-1 << 62, 12)), dict(mtime=-SECOND << 31)),
    # HL25
    "control characters": (pax(path=b"a\x1b[31m\nb\x07") + file(b"f"), dict(name=b"a\x1b[31m\nb\x07")),
    "bytes that are no text": (pax(path=b"\xff\xfe") + file(b"f"), dict(name=b"\xff\xfe")),
    "longest name": (pax(path=b"a/" * 2048) + folder(b"f"), dict(name=b"a/" * 2048)),
    # HL27
    "PAX size counts": (pax(size=b"3") + head(b"f", size=600) + padded(b"abc"), dict(size=3)),
    "size of a global comment": (extended(record(b"comment", b"x"), b"g") + file(b"f"), dict(name=b"f")),
    "PAX size on GNU's long name": (
        pax(size=b"3") + extended(N, b"L") + head(b"f") + padded(b"abc"), dict(name=N, size=3)),
    # HL28
    "two PAX headers": (pax(path=b"1", uid=b"5") + pax(path=b"2") + file(b"f"), dict(name=b"2", uid=5)),
    "two GNU headers": (extended(b"1", b"L") + extended(b"2", b"L") + file(b"f"), dict(name=b"2")),
    "one keyword twice": (
        extended(record(b"path", b"1") + record(b"path", b"2")) + file(b"f"), dict(name=b"2")),
    # HL29, HL30: up to the limits
    "many extended headers": (pax(uid=b"5") * MAX_EXTENSIONS + file(b"f"), dict(uid=5)),
    "largest extended header": (
        extended(record(b"comment", b"x" * (MAX_EXTENSION - 17))) + file(b"f"), dict(name=b"f")),
    # HL35
    "directory with a size": (folder(b"d", size=BLOCK), dict(size=0)),
    "link with a size": (hardlink(b"l", b"t", size=BLOCK), dict(size=0)),
    "symbolic link with a PAX size": (pax(size=b"512") + symlink(b"l", b"t"), dict(size=0)),
    # HL36
    "contiguous file": (head(b"f", b"7", size=1) + padded(b"x"), dict(kind=FILE, size=1)),
    "old file": (head(b"f", b"\0", size=1, magic=V7) + padded(b"x"), dict(kind=FILE, size=1)),
    "old directory": (head(b"d/", b"\0", magic=V7), dict(kind=DIRECTORY)),
    "file called like a directory": (head(b"d/"), dict(kind=FILE)),
}


@pytest.mark.parametrize("name", READ)
def test_headers_of_all_kinds_are_read(name: str) -> None:
    data, expected = READ[name]
    entry = one(data)
    assert {key: getattr(entry, key) for key in expected} == expected


def test_data_is_whole_whether_or_not_it_is_asked_for() -> None:
    parts = [(b"%d" % size, bytes([size % 251]) * size) for size in (0, 1, 511, 512, 513, 5000)]
    data = b"".join(file(*part) for part in parts) + END
    assert [(entry.name, content) for entry, content in read(data)] == parts
    assert [entry.name for entry in Reader(iter([data]))] == [name for name, _ in parts]
    reader = Reader(iter([data[:3000], data[3000:]]))
    for entry in reader:
        next(reader.data(), None)
    reader.drain()


ENDS = {"two zero blocks": END, "one": END[:BLOCK], "none": b"", "many": END * 30,
        "garbage after": END + b"x" * 700, "entries after": END + file(b"x")}


@pytest.mark.parametrize("name", ENDS)
def test_an_archive_may_end_in_many_ways(name: str) -> None:
    data = file(b"f", b"abc") + ENDS[name]
    pieces = iter([data[:600], data[600:-1], data[-1:]])
    reader = Reader(pieces)
    assert [entry.name for entry in reader] == [b"f"]
    reader.drain()
    assert next(pieces, None) is None  # all has been seen (HL34)


def test_padding_of_the_last_file_may_be_missing_or_not_zeros() -> None:
    assert read(head(b"f", size=3) + b"abc") == read(head(b"f", size=3) + b"abc" + b"x" * 509 + END)
    assert read(b"") == read(END) == []


SPLIT = {
    "plain": file(b"f", b"abc") + folder(b"d") + END,
    "extended": (xattrs(a=b"1") + extended(N, b"L") + pax(mtime=b"1.5") + file(b"f", b"x" * 513)
                 + symlink(b"l", b"f")),
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_stream_may_be_split_anywhere(name: str) -> None:
    data = SPLIT[name]
    whole = read(data)
    assert len(whole) == 2
    for at in range(len(data)):
        assert read(data, [at]) == read(data, [at, at, min(at + 1, len(data))]) == whole
    assert read(data, range(1, len(data))) == whole


# -- what is refused -------------------------------------------------------------


def damaged(block: bytes, at: int) -> bytes:
    return block[:at] + bytes([block[at] ^ 1]) + block[at + 1:]


F = file(b"f", b"abc")
REFUSED: Dict[str, Tuple[bytes, str]] = {
    # HL22
    "owner with a fraction": (pax(uid=b"1.5") + F, "uid in an extended"),
    "owner with a plus": (pax(gid=b"+1") + F, "gid in an extended"),
    "owner in no octal digits": (head(b"f", uid=b"0000008\0"), "malformed uid"),
    "owner in Python's digits": (head(b"f", uid=b"0_1\0"), "malformed uid"),
    "owner in base 8 as Python writes it": (head(b"f", uid=b"0o1\0"), "malformed uid"),
    "number in base 64 to GNU tar": (head(b"f", size=b"+3\0") + padded(b"abc"), "malformed size"),
    "number with garbage after": (head(b"f", size=b"3\0x") + padded(b"abc"), "malformed size"),
    "mode": (head(b"f", mode=b"rw-rw-r-"), "malformed mode"),
    # HL23
    "mtime with an exponent": (pax(mtime=b"1e400") + F, "mtime"),
    "mtime that is no number": (pax(mtime=b"NaN") + F, "mtime"),
    "mtime with two points": (pax(mtime=b"1.2.3") + F, "mtime"),
    # HL25
    "name with a zero": (pax(path=b"a\0b") + F, "name"),
    "name that is empty": (head(b""), "name"),
    "name that is empty in GNU": (extended(b"\0", b"L") + F, "name"),
    "name of 70,000 bytes": (pax(path=b"n" * 70000) + F, "name"),
    "name of 4,097 bytes": (pax(path=b"n" * (MAX_NAME + 1)) + F, "name"),
    "link to a name with a zero": (pax(linkpath=b"a\0b") + symlink(b"l", b"t"), "name"),
    "symbolic link to nothing": (symlink(b"l", b""), "name"),
    "hard link to nothing": (hardlink(b"l", b""), "name"),
    "link to a name of 70,000 bytes": (pax(linkpath=b"n" * 70000) + symlink(b"l", b"t"), "name"),
    # HL26
    "record of length 0": (extended(b"0 a=b\n") + F, "malformed extended"),
    "record of negative length": (extended(b"-6 a=b\n") + F, "malformed extended"),
    "record that is longer than all": (extended(b"60 a=b\n") + F, "malformed extended"),
    "record of a length that counts itself wrong": (extended(b"5 a=b\n") + F, "malformed extended"),
    "record of no number": (extended(b"x a=b\n") + F, "malformed extended"),
    "record of a number past all": (extended(b"9" * 400 + b" a=b\n") + F, "malformed extended"),
    "record with a zero before its length": (extended(b"07 a=b\n") + F, "malformed extended"),
    "record without =": (extended(b"6 abc\n") + F, "malformed extended"),
    "record with the next one's =": (extended(b"6 abc\n" + record(b"a", b"b")) + F, "malformed extended"),
    "record without a keyword": (extended(b"5 =b\n") + F, "malformed extended"),
    "record without its end": (extended(b"6 a=bc") + F, "malformed extended"),
    "record with a zero in its keyword": (extended(record(b"a\0", b"b")) + F, "malformed extended"),
    "zeros within": (extended(record(b"a", b"b") + bytes(8)) + F, "malformed extended"),
    # HL27
    "size below zero": (head(b"f", size=base256(-1024, 12)), "size out of range"),
    "size below zero in octal": (head(b"f", size=b"-3\0"), "malformed size"),
    "size below zero in PAX": (pax(size=b"-1024") + F, "size in an extended"),
    "size below zero of an extended header": (extended(b"", size=base256(-512, 12)) + F, "size out of range"),
    "global size": (extended(record(b"size", b"3"), b"g") + F, "global header sets size"),
    "global path": (extended(record(b"path", b"p"), b"g") + F, "global header sets path"),
    "global link": (extended(record(b"linkpath", b"p"), b"g") + F, "global header sets linkpath"),
    "malformed global header": (extended(b"x", b"g") + F, "malformed extended"),
    # Which of the two counts, GNU tar and Go see differently.
    "two names, GNU's first": (extended(b"1", b"L") + pax(path=b"2") + F, "differ"),
    "two names, PAX's first": (pax(path=b"1") + extended(b"2", b"L") + F, "differ"),
    "two links": (extended(b"1", b"K") + pax(linkpath=b"2") + symlink(b"l", b"t"), "differ"),
    # HL31
    "sparse of old": (pax(path=b"real") + head(b"mangled", b"S"), "'real' is of type 'S'"),
    # HL32
    "size of 80 bits": (head(b"f", size=base256(1 << 80, 12)), "size out of range"),
    "size of 63 bits and more": (head(b"f", size=base256(1 << 63, 12)), "size out of range"),
    "size of 63 bits in PAX": (pax(size=b"9223372036854775808") + F, "size in an extended"),
    # HL33
    "checksum of the first": (damaged(F, 0) + END, "damaged header"),
    "checksum within": (F + damaged(F, 20) + F + END, "damaged header"),
    "checksum that is empty": (head(b"f", checksum=b""), "damaged header"),
    "checksum that is no number": (head(b"f", checksum=b"xxxxxxxx"), "malformed checksum"),
    "entries after one zero block": (F + bytes(BLOCK) + F + END, "malformed end"),
    "header that is cut short": (F + F[:BLOCK - 1], "cut short"),
    "header that is cut short after one byte": (F[:1], "cut short"),
    "data that is cut short": (F[:BLOCK + 2], "cut short"),
    "data that is missing": (F[:BLOCK], "cut short"),
    "padding that is cut short": (F[:-1], "cut short"),
    "extended header that is cut short": (pax(path=b"n")[:600], "cut short"),
    "extended header at the end": (F + pax(path=b"n") + END, "malformed end"),
    "extended header at the end of the stream": (F + pax(path=b"n"), "cut short"),
    "end that is cut short": (F + END[:600], "cut short"),
    "text": (b"not a tar archive, and " * 40, "malformed checksum"),
    # HL36
    "unknown type": (head(b"f", b"Z"), "type 'Z'"),
    "volume": (head(b"f", b"V"), "type 'V'"),
    "volume of many": (head(b"f", b"M"), "type 'M'"),
    "dump of a directory": (head(b"f", b"D"), "type 'D'"),
    "type that is no text": (head(b"f", b"\xff"), r"type '\\xff'"),
    # HL20
    "device past Linux's": (head(b"c", b"3", major=base256(1 << 40, 8)), "device"),
    "device below zero": (head(b"c", b"3", minor=base256(-1, 8)), "device out of range"),
}
LIMITS: Dict[str, bytes] = {
    # HL29
    "5,000 PAX headers": pax(path=b"p") * 5000 + F,
    "5,000 GNU headers": extended(b"n" * 200, b"L") * 5000 + F,
    "65 global headers": extended(b"", b"g") * (MAX_EXTENSIONS + 1) + F,
    # HL30
    "extended header of 1 GiB": head(b"x", b"x", size=1 << 30),
    "GNU name of 20 MB": head(b"x", b"L", size=20 << 20),
    "extended headers of 1 MiB together": (pax(comment=b"x" * (MAX_EXTENSION // 4)) * 4) + F,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_archive_is_refused_in_one_line(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(InvalidDocument, match="^tar: .*" + message) as caught:
        read(data if "cut short" in message or "end" in message else data + END)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", LIMITS)
def test_sizes_past_the_limits_are_refused_before_they_are_read(name: str) -> None:
    with pytest.raises(PolicyError, match="^tar: .* extended headers of .* bytes in a row"):
        read(LIMITS[name])


def test_entries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "MAX_ENTRIES", 3)
    assert len(read(F * 3 + END)) == 3
    with pytest.raises(PolicyError, match="^tar: more than 3 entries$"):
        read(F * 4 + END)


def test_a_name_is_shown_without_its_control_characters() -> None:
    entry = one(pax(path=b"a\x1b[31m\n\xff" + b"x" * 1000) + F)
    assert str(entry).isprintable() and str(entry).startswith("a\\x1b[31m\\n") and len(str(entry)) == 200
    with pytest.raises(InvalidDocument) as caught:
        read(pax(path=b"\x1b[31m") + head(b"f", b"Z"))
    assert "\x1b" not in str(caught.value)


def test_a_flood_of_records_takes_no_time_to_speak_of() -> None:
    # Each is read once: a second time for each record would be 90 GB.
    records = b"6 a=b\n" * (MAX_EXTENSION // 6)
    for _ in range(5):
        assert one(extended(records) + F).name == b"f"


def test_memory_is_flat() -> None:
    def stream() -> Iterator[bytes]:
        block = bytes(1 << 20)
        for _ in range(20):
            yield head(b"f", size=len(block)) + block
        for n in range(2000):
            yield pax(path=b"%d" % n * 200) + head(b"f")

    tracemalloc.start()
    try:
        count = sum(1 for entry in Reader(stream()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2020 and peak < 5 << 20


def test_the_standard_librarys_reader_has_no_part_in_it(home: Path) -> None:
    """HL40"""
    code = "import sys, minipull.rootfs.unpack; sys.exit('tarfile' in sys.modules)"
    run([sys.executable, "-c", code], clean_env(home, {"PYTHONPATH": str(ROOT)}))


# -- fuzz ------------------------------------------------------------------------

CORPUS = [data for data, _ in READ.values() if len(data) < 20 * BLOCK]
PARTS = CORPUS + [data for data, _ in REFUSED.values() if len(data) < 20 * BLOCK]


def repaired(block: bytes) -> bytes:
    """The same header, right again but for what is wrong with it."""
    return block[:148] + b"%06o\0 " % (sum(block[:148] + block[156:]) + 8 * 0x20) + block[156:]


def spoiled(rng: random.Random) -> bytes:
    data = b"".join(rng.sample(CORPUS, rng.randint(1, 3))) + END
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(data))
        start = at - at % BLOCK
        how = rng.randrange(6)
        if how < 3:  # a bit or a byte is another one, in a header that says so in its checksum
            byte = data[at] ^ 1 << rng.randrange(8) if how else rng.choice(b"\0 0179=\n/.gxLK\x80\xff")
            data = data[:at] + bytes([byte]) + data[at + 1:]
            if rng.random() < 0.8:
                data = data[:start] + repaired(data[start:start + BLOCK]) + data[start + BLOCK:]
        elif how == 3:
            data = data[:max(at, 1)]
        elif how == 4:
            data = data[:at] + data[at + rng.choice((1, 7, BLOCK)):]
        else:
            data = data[:start] + rng.choice(PARTS) + data[rng.choice((start, at)):]
    return data


@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind_ends_in_entries_or_in_a_declared_error(seed: int) -> None:
    rng = random.Random(seed)
    ends = {"read": 0, "refused": 0}
    for _ in range(500):
        data = spoiled(rng)
        try:
            for entry, content in read(data, sorted(rng.choices(range(len(data) + 1), k=3))):
                assert entry.size == len(content) and entry.name and b"\0" not in entry.name
                assert next(iter(Reader(iter([header(entry)])))) == entry
            ends["read"] += 1
        except Error as exc:
            assert isinstance(exc, (InvalidDocument, PolicyError)) and str(exc).startswith("tar: ")
            assert str(exc).isprintable()
            ends["refused"] += 1
    assert min(ends.values()) > 50, ends


# -- the writer ------------------------------------------------------------------

WRITTEN = [
    Entry(b"file", size=3, mode=0o4755, uid=1, gid=2, mtime=MTIME * SECOND, uname=b"ann", gname=b"staff"),
    Entry(b"d/", DIRECTORY, mode=0o1777),
    Entry(b"link", SYMLINK, linkname=b"../t", mode=0o777),
    Entry(b"hard", LINK, linkname=b"file"),
    Entry(b"char", CHAR, major=1, minor=3),
    Entry(b"block", BLOCK_DEVICE, major=2 ** 12 - 1, minor=2 ** 20 - 1),
    Entry(b"fifo", FIFO),
    Entry(b"n" * 100),
    Entry(b"n" * 101),
    Entry(b"d/" * 200 + b"f"),
    Entry(b"long", SYMLINK, linkname=b"t" * 300),
    Entry("\u00e9\u4e2d".encode()),
    Entry(b"\xff\xfe" * 100, xattrs={b"user.\xff": b"\xff\0=\n", b"user.a": b""}),
    Entry(b"owner", uid=8 ** 7 - 1, gid=8 ** 7),
    Entry(b"last owner", uid=2 ** 32 - 2, gid=2 ** 32 - 2),
    Entry(b"names", uname=b"u" * 33, gname="\u00e9".encode() * 20),
    Entry(b"nanoseconds", mtime=MTIME * SECOND + 1),
    Entry(b"before", mtime=-SECOND),
    Entry(b"a little before", mtime=-1),
    Entry(b"long before", mtime=-1500000001),
    Entry(b"late", mtime=SECOND << 33),
    *(Entry(b"r", xattrs={b"user.a": b"x" * size}) for size in (70, 71, 72, 73, 968, 969, 970, 971, 60000)),
]


def written(entries: Sequence[Entry]) -> bytes:
    return b"".join(header(entry) + bytes(entry.size) + padding(entry.size) for entry in entries) + END


def test_the_reader_reads_entries_as_they_were_written() -> None:
    assert [entry for entry, _ in read(written(WRITTEN))] == WRITTEN
    for size in (8 ** 11 - 1, 8 ** 11, 1 << 62):
        assert next(iter(Reader(iter([header(Entry(b"big", size=size))])))).size == size


def test_the_same_entry_is_the_same_bytes() -> None:
    one = Entry(b"f", xattrs={b"user.a": b"1", b"user.b": b"2"})
    two = Entry(b"f", xattrs={b"user.b": b"2", b"user.a": b"1"})
    assert header(one) == header(two)
    assert header(Entry(b"f", mtime=MTIME * SECOND)) == head(b"f")  # no more than ustar where that will do
    assert all(len(header(entry)) % BLOCK == 0 for entry in WRITTEN)


@pytest.mark.parametrize("python", [path for _, path in interpreters()],
                         ids=[version for version, _ in interpreters()])
def test_every_interpreter_writes_the_same_bytes(python: str, home: Path) -> None:
    code = ("import sys; from minipull.image.tar import *; "
            "sys.stdout.buffer.write(b''.join(header(Entry(*fields)) for fields in %r))"
            % [tuple(entry) for entry in WRITTEN])
    done = run([python, "-c", code], {"PATH": clean_env(home)["PATH"], "PYTHONPATH": str(ROOT),
                                      "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.raw == b"".join(map(header, WRITTEN))


def test_the_standard_library_reads_our_archives() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(WRITTEN)), mode="r|", encoding="utf-8") as archive:
        members = list(archive)
    assert len(members) == len(WRITTEN)
    for member, entry in zip(members, WRITTEN):
        assert (member.name.encode("utf-8", "surrogateescape"), member.type, member.size, member.mode) == (
            entry.name.rstrip(b"/"), entry.kind, entry.size, entry.mode)
        assert (member.linkname.encode(), member.uid, member.gid) == (entry.linkname, entry.uid, entry.gid)
        assert (member.uname.encode(), member.gname.encode()) == (entry.uname, entry.gname)
        assert (member.devmajor, member.devminor) == (entry.major, entry.minor)
        assert member.mtime == pytest.approx(entry.mtime / SECOND, abs=1e-6)
        found = {key for key in member.pax_headers if key.startswith("SCHILY.xattr.")}
        assert len(found) == len(entry.xattrs)


def test_gnu_tar_reads_our_archives(home: Path) -> None:
    done = subprocess.run(
        [peer("tar"), "--list", "--verbose", "--verbose", "--full-time", "--numeric-owner", "--utc",
         "--quoting-style=escape", "--file=-"],
        input=written(WRITTEN), env=clean_env(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    assert len(lines) == len(WRITTEN)
    assert lines[0] == "-rwsr-xr-x 1/2               3 2017-07-14 02:40:00 file"
    assert [line[0] for line in lines[:7]] == list("-dlhcbp")
    assert lines[5].split()[2] == "4095,1048575"
    assert lines[2].endswith(" link -> ../t") and lines[3].endswith(" hard link to file")
    assert lines[9].endswith(" " + "d/" * 200 + "f") and lines[10].endswith(" long -> " + "t" * 300)
    assert lines[14].startswith("-rw-r--r-- 4294967294/4294967294")


def test_gnu_tar_gives_files_the_time_that_was_written(tmp_path: Path, home: Path) -> None:
    times = [0, 1, MTIME * SECOND + 1, -1, -SECOND, -1500000001]
    subprocess.run(
        [peer("tar"), "--extract", "--file=-"], cwd=str(tmp_path), env=clean_env(home), check=True,
        input=written([Entry(b"%d" % time, mtime=time) for time in times]), stderr=subprocess.DEVNULL)
    assert [(tmp_path / str(time)).stat().st_mtime_ns for time in times] == times


def test_archives_of_other_writers_are_read(tmp_path: Path, home: Path) -> None:
    names = [b"f", b"n" * 100, b"n" * 101, b"d/" * 60 + b"f", b"\xc3\xa9", b"\xff" * 120]
    for name in names:
        path = tmp_path / "tree" / name.decode("utf-8", "surrogateescape")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    for kind in ("v7", "oldgnu", "gnu", "ustar", "posix"):
        some = [name for name in names if len(name) <= {"v7": 99, "ustar": 100}.get(kind, 999)]
        done = subprocess.run(
            [peer("tar"), "--create", "--format=" + kind, "--null", "--files-from=-", "--file=-"], check=True,
            cwd=str(tmp_path / "tree"), env=clean_env(home), input=b"\0".join(some), stdout=subprocess.PIPE)
        assert {entry.name: content for entry, content in read(done.stdout)} == dict(zip(some, some))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name in names:
                info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
                info.uid, info.mtime, info.size = 1 << 30, -3, len(name)
                archive.addfile(info, io.BytesIO(name))
        found = read(out.getvalue())
        assert [(entry.name, content) for entry, content in found] == list(zip(names, names))
        assert {(entry.uid, entry.mtime) for entry, _ in found} == {(1 << 30, -3 * SECOND)}
