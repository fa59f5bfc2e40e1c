# SPDX-License-Identifier: Apache-2.0
"""Compression undone: sound streams whole, damaged ones refused, bombs bounded."""
import bz2
import importlib.util
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import types
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest, Verifier
from minipull.errors import Cancelled, InvalidDocument, PolicyError, StorageError, Unsupported
from minipull.store import compression
from minipull.store.compression import decompressed
from minipull.store.source import BUFFER
from tests.kit.processes import peer

TIMEOUT = 30.0
INPUT = 128 << 10  # bytes that the decoder reads at once
NOISE = random.Random(1).getrandbits(8 * 300000).to_bytes(300000, "big")
Opener = Callable[[bytes], BinaryIO]


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Opener]:
    """Makes the unbuffered file that holds some bytes."""
    opened: List[BinaryIO] = []

    def make(data: bytes) -> BinaryIO:
        path = tmp_path / "layer"
        path.write_bytes(data)
        opened.append(open(str(path), "rb", buffering=0))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def gz(data: bytes, level: int = 6, name: bytes = b"", extra: bytes = b"") -> bytes:
    """One gzip member (RFC 1952)."""
    flags = (4 if extra else 0) | (8 if name else 0)
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff"
    if extra:
        head += struct.pack("<H", len(extra)) + extra
    if name:
        head += name + b"\0"
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    return head + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def plain(file: BinaryIO, zstd: Optional[str] = None, raw: Optional[Verifier] = None) -> bytes:
    out = io.BytesIO()
    for piece in decompressed(file, Cancel(), zstd, raw):
        assert len(piece) <= BUFFER
        out.write(piece)
    return out.getvalue()


ONE, TWO = gz(b"one "), gz(b"two")
EMPTY = gz(b"")
TO_THE_END = gz(NOISE[:INPUT - 100], 0)  # a member that ends with the first piece
TO_THE_END = gz(NOISE[:INPUT - 100], 0, name=b"n" * (INPUT - len(TO_THE_END) - 1))

SOUND: Dict[str, Any] = {
    "empty file": (b"", b""),
    "one byte": (b"\x1f", b"\x1f"),
    "tar": (b"name\0" * 100, b"name\0" * 100),
    "tar past one piece": (NOISE, NOISE),
    "first byte of a name as in gzip": (b"\x1f\x8c" + NOISE, b"\x1f\x8c" + NOISE),
    "name that is almost a skippable frame": (b"\x60\x2a\x4d\x18", b"\x60\x2a\x4d\x18"),
    "gzip": (ONE, b"one "),
    "gzip of nothing": (EMPTY, b""),
    "two members": (ONE + TWO, b"one two"),
    "empty members around": (EMPTY + ONE + EMPTY + EMPTY + TWO + EMPTY, b"one two"),
    "thousands of members": (ONE * 20000, b"one " * 20000),
    "name and extra field": (gz(b"x", name=b"file.tar", extra=b"SG\4\0abcd"), b"x"),
    "extra field past one piece": (gz(b"x", extra=b"\0" * 65535, name=b"n" * INPUT), b"x"),
    "zeros after": (ONE + b"\0" * 3, b"one "),
    "zeros after, past one piece": (TWO + b"\0" * 3 * INPUT, b"two"),
    "member to the end of a piece": (TO_THE_END, NOISE[:INPUT - 100]),
    "and another": (TO_THE_END + ONE, NOISE[:INPUT - 100] + b"one "),
    "and zeros": (TO_THE_END + b"\0" * 512, NOISE[:INPUT - 100]),
    "head cut by the end of a piece": (
        TO_THE_END.replace(b"n" * 20, b"n" * 16, 1) + TWO, NOISE[:INPUT - 100] + b"two"),
    "stored": (gz(NOISE, 0), NOISE),
}
for _size in (BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, 5 * BUFFER + 7):
    # However much waits for the next call, none of it is lost.
    SOUND["%d zeros" % _size] = (gz(b"\0" * _size), b"\0" * _size)
    SOUND["%d zeros and a member" % _size] = (gz(b"\0" * _size) + ONE, b"\0" * _size + b"one ")
    SOUND["%d letters" % _size] = (gz(b"ab" * _size), b"ab" * _size)


@pytest.mark.parametrize("name", SOUND)
def test_sound_streams_are_read_whole_and_every_stored_byte_is_seen(layer: Opener, name: str) -> None:
    data, expected = SOUND[name]
    raw = Verifier()
    assert plain(layer(data)) == expected
    assert plain(layer(data), raw=raw) == expected
    assert (raw.digest, raw.size) == (Digest.of(data), len(data))


def flipped(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1:]


DAMAGED: Dict[str, bytes] = {
    "garbage after": ONE + b"garbage",
    "garbage after, one byte": ONE + b"x",
    "garbage that begins like a member": ONE + b"\x1f\x8b\x08garbage",
    "half a magic after": ONE + b"\x1f",
    "garbage after zeros": ONE + b"\0" * 100 + b"x",
    "garbage after zeros, past one piece": ONE + b"\0" * 2 * INPUT + b"x",
    "member after zeros": ONE + b"\0" * 100 + TWO,
    "garbage in the next piece": TO_THE_END + b"x",
    "method": flipped(ONE, 2),
    "reserved flags": ONE[:3] + b"\xe0" + ONE[4:],
    "body": flipped(gz(b"abc" * 100), 15),
    "CRC": flipped(ONE, -8),
    "ISIZE": flipped(ONE, -1),
    "CRC of the second": ONE + flipped(TWO, -5),
    "bomb without the end of its checksum": gz(b"\0" * 5 * BUFFER)[:-1],
    "bomb that is cut short": gz(b"\0" * 5 * BUFFER)[:3000],
    "only a head": ONE[:10],
    "bzip2": bz2.compress(b"x"),
    "xz": lzma.compress(b"x"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_error_in_one_line(layer: Opener, name: str) -> None:
    with pytest.raises(InvalidDocument, match="^layer") as caught:
        plain(layer(DAMAGED[name]))
    assert str(caught.value).isprintable() and caught.value.exit_code == 6


@pytest.mark.parametrize("data", [gz(b"some text, some text", name=b"n", extra=b"xx"), ONE + TWO], ids=len)
def test_a_gzip_stream_that_ends_early_is_never_taken_for_whole(layer: Opener, data: bytes) -> None:
    for end in range(2, len(data)):
        if data[:end] == ONE:
            assert plain(layer(data[:end])) == b"one "
            continue
        with pytest.raises(InvalidDocument, match="gzip stream is cut short"):
            plain(layer(data[:end]))


def test_a_bomb_stays_in_bounded_memory(layer: Opener) -> None:
    size = 128 * BUFFER
    bomb = gz(bytes(size), 1)
    file = layer(bomb)
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decompressed(file, Cancel()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == size and len(bomb) < size // 200
    assert peak < 6 * BUFFER


@pytest.mark.parametrize("data", [NOISE, gz(NOISE, 0)], ids=["tar", "gzip"])
def test_reading_ends_when_cancelled(layer: Opener, data: bytes) -> None:
    cancel = Cancel()
    pieces = decompressed(layer(data), cancel)
    assert next(pieces)
    cancel.cancel()
    with pytest.raises(Cancelled):
        for _ in pieces:
            pass


def test_a_disk_that_fails_half_way_is_the_storages_fault(layer: Opener) -> None:
    for data in (NOISE, gz(NOISE, 0)):
        file = layer(data)
        pieces = decompressed(file, Cancel())
        assert next(pieces)
        with open(os.devnull, "wb") as sink:  # which can't be read
            os.dup2(sink.fileno(), file.fileno())
        with pytest.raises(StorageError, match="^read layer: Bad file descriptor"):
            next(pieces)


# -- zstd --------------------------------------------------------------------------

DECODERS = ["program"]
if sys.version_info >= (3, 14) and importlib.util.find_spec("compression.zstd"):
    DECODERS.append("interpreter")


@pytest.fixture(params=DECODERS)
def decoder(request: Any, monkeypatch: pytest.MonkeyPatch) -> Optional[str]:
    """The zstd program, or None where the interpreter's own is to be used."""
    if request.param == "program":
        monkeypatch.setitem(sys.modules, "compression.zstd", None)
        return peer("zstd")
    return None


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without a decoder."""
    monkeypatch.setitem(sys.modules, "compression.zstd", None)


def zst(data: bytes) -> bytes:
    done = subprocess.run([peer("zstd"), "-qc"], input=data, stdout=subprocess.PIPE, check=True)
    return done.stdout


SKIPPABLE = b"\x53\x2a\x4d\x18\x04\0\0\0abcd"


@pytest.mark.parametrize("data", [b"", b"one two", NOISE, b"\0" * (3 * BUFFER + 1)], ids=len)
def test_zstd_is_read_whole_and_every_stored_byte_is_seen(
    layer: Opener, decoder: Optional[str], data: bytes
) -> None:
    raw = Verifier()
    assert plain(layer(zst(data)), decoder) == data
    stored = SKIPPABLE + zst(data) + SKIPPABLE + zst(data)
    assert plain(layer(stored), decoder, raw) == data * 2
    assert raw.digest == Digest.of(stored)


def test_damaged_zstd_is_an_error(layer: Opener, decoder: Optional[str]) -> None:
    data = zst(b"some text, some text, some text")
    for damaged in [data + b"garbage", data + b"\0" * 8, flipped(data, -1), flipped(data, 4), b"\x28\xb5\x2f\xfd"]:
        with pytest.raises(InvalidDocument, match="layer's zstd stream is damaged"):
            plain(layer(damaged), decoder)


def test_a_zstd_stream_that_ends_early_is_never_taken_for_whole(
    layer: Opener, decoder: Optional[str]
) -> None:
    data = zst(b"some text, some text")
    for end in range(4, len(data)):
        with pytest.raises(InvalidDocument, match="layer's zstd stream is damaged"):
            plain(layer(data[:end]), decoder)


def test_a_zstd_bomb_stays_in_bounded_memory(layer: Opener, decoder: Optional[str]) -> None:
    file = layer(zst(bytes(64 * BUFFER)))
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decompressed(file, Cancel(), decoder))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 * BUFFER and peak < 6 * BUFFER


def test_a_zstd_stream_stays_in_proportion_to_what_it_is_made_of(
        layer: Opener, decoder: Optional[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (compression.MAX_GROWTH, compression.FREE_GROWTH) == (1032, 4 << 30)
    monkeypatch.setattr(compression, "FREE_GROWTH", 8 * BUFFER)
    bomb, raw = zst(bytes(64 * BUFFER)), Verifier()
    assert len(bomb) * 1032 < 16 * BUFFER
    assert plain(layer(zst(bytes(8 * BUFFER))), decoder) == bytes(8 * BUFFER)
    with pytest.raises(PolicyError, match="^layer grows from [0-9]+ to more than [0-9]+ bytes$"):
        plain(layer(bomb), decoder, raw)
    assert raw.digest == Digest.of(bomb)


def test_gzip_is_never_out_of_proportion(layer: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FREE_GROWTH", 0)
    assert plain(layer(gz(bytes(9 * BUFFER), 9))) == bytes(9 * BUFFER)


def test_zstd_without_a_decoder_names_both_remedies(layer: Opener, without: None) -> None:
    for data in (b"\x28\xb5\x2f\xfd", SKIPPABLE):
        raw = Verifier()
        with pytest.raises(Unsupported, match="install zstd or use Python 3.14"):
            plain(layer(data), None, raw)
        assert raw.digest == Digest.of(data)


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o700)
    return str(path)


def test_the_zstd_program_gets_no_environment_and_only_its_flags(
    layer: Opener, tmp_path: Path, without: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIPULL_SECRET", "hunter2")
    program = script(tmp_path / "zstd", 'echo "$*"; /usr/bin/env; /bin/cat')
    out = plain(layer(SKIPPABLE + NOISE), program)
    assert out.startswith(b"-dcq\n") and out.endswith(SKIPPABLE + NOISE)
    assert b"hunter2" not in out


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_the_zstd_program_ends_with_its_reader(
    layer: Opener, tmp_path: Path, without: None, how: str
) -> None:
    program = script(tmp_path / "zstd", "echo $$; exec /bin/sleep 600")
    cancel = Cancel()
    pieces = decompressed(layer(SKIPPABLE), cancel, program)
    pid = int(bytes(next(pieces)))
    if how == "cancelled":
        cancel.cancel()
        with pytest.raises(Cancelled):
            next(pieces)
    else:
        getattr(pieces, "close")()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_output_of_the_zstd_program_is_dropped_after_cancel(
    layer: Opener, tmp_path: Path, without: None
) -> None:
    cancel = Cancel()
    pieces = decompressed(layer(SKIPPABLE), cancel, script(tmp_path / "zstd", "echo 1; echo 2"))
    assert next(pieces)
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(pieces)
    with pytest.raises(Cancelled):
        next(decompressed(layer(SKIPPABLE), cancel, script(tmp_path / "zstd", "echo 1")))


def test_a_zstd_program_that_fails_or_cannot_be_run_is_an_error(
    layer: Opener, tmp_path: Path, without: None
) -> None:
    with pytest.raises(InvalidDocument, match="layer's zstd stream is damaged"):
        plain(layer(SKIPPABLE), script(tmp_path / "zstd", "echo output; exit 3"))
    with pytest.raises(StorageError, match="^read layer: No such file"):
        plain(layer(SKIPPABLE), str(tmp_path / "missing"))


def test_the_interpreters_own_zstd_comes_first(layer: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    class ZstdError(Exception):
        pass

    class ZstdFile(io.BytesIO):
        """As Python 3.14's, for what this module asks of it."""

        def __init__(self, file: BinaryIO) -> None:
            data = file.read()[len(SKIPPABLE):]
            super().__init__(data)
            self.error = {b"short": EOFError("ended early"), b"wrong": ZstdError("is wrong")}.get(data)

        def read(self, size: Optional[int] = -1) -> bytes:
            if self.error is not None:
                raise self.error
            return super().read(size)

    module: Any = types.ModuleType("compression.zstd")
    module.ZstdFile, module.ZstdError = ZstdFile, ZstdError
    monkeypatch.setitem(sys.modules, "compression.zstd", module)
    data = b"x" * (BUFFER + 1)
    assert plain(layer(SKIPPABLE + data), "/nowhere/zstd") == data
    for damaged, text in ((b"short", "ended early"), (b"wrong", "is wrong")):
        with pytest.raises(InvalidDocument, match=r"^layer's zstd stream is damaged \(%s\)$" % text):
            plain(layer(SKIPPABLE + damaged))
    cancel = Cancel()
    pieces = decompressed(layer(SKIPPABLE + data), cancel)
    assert next(pieces) == data[:BUFFER]
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(pieces)
