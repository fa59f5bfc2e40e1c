# SPDX-License-Identifier: Apache-2.0
"""Decompression of gzip and zstd, bounded; and gzip.

The first bytes of a layer say how it is compressed.  Its tar stream comes in
pieces of at most 1 MiB, however much a bomb holds; a stream that just ends is an
error (zlib itself reports none).

Mirrors moby's pkg/archive (DecompressStream).  RFC 1952 for gzip members.
"""
import contextlib
import importlib
import re
import threading
import zlib
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional

from ..cancel import Cancel
from ..digest import Buffer, Verifier
from ..errors import Cancelled, InvalidDocument, InvalidReference, PolicyError, Unsupported, storage_errors
from ..parts import subprocess
from .source import BUFFER, INPUT, hash_file, pieces

MAX_GROWTH = 1032  # times, which is the most that gzip can do; zstd does a lot better on zeros
FREE_GROWTH = 4 << 30  # bytes that any stream may have
#: Decodes pieces; its second argument names the source in errors.
Decoder = Callable[[Iterator[memoryview], str], Iterator[bytes]]
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # or a skippable frame


def packing(path: str, plain: bool = False) -> Callable[[Iterator[Buffer]], Iterator[Buffer]]:
    """The compression that the name of a tar asks for: gzipped() or none.

    Raises InvalidReference for one that is not written, and for any if the tar must be ``plain``.
    """
    suffix = re.search(r"\.(t?gz|t?xz|bz2|tbz2?|t?zst|lz4)$", path.lower())
    if suffix is None:
        return iter
    if plain or not suffix.group().endswith("gz"):
        raise InvalidReference("%s: %s" % (path, "a bundle must be a plain tar" if plain else (
            "a tar is written plain or as .tar.gz, not as %s; write it to stdout and compress that" %
            suffix.group())))
    return gzipped


def gzipped(stream: Iterator[Buffer]) -> Iterator[Buffer]:
    """Yield a stream as gzip, with neither name nor time: the same bytes become the same, if zlib is."""
    packer = zlib.compressobj(6, wbits=31)
    for piece in stream:
        yield packer.compress(piece)
    yield packer.flush()


def is_compressed(magic: bytes) -> bool:
    """Whether a file that begins with these six bytes is compressed."""
    return magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or _ZSTD.match(magic) is not None


def decompressed(file: BinaryIO, cancel: Cancel, zstd: Optional[str] = None,
                 raw: Optional[Verifier] = None, source: str = "layer",
                 others: Mapping[bytes, Decoder] = {}) -> Iterator[Buffer]:
    """Yield the tar stream of a layer file, piece by piece; a piece is valid until the next.

    ``file`` is unbuffered and at its start; ``raw`` hashes every stored byte; ``others``
    are further decoders by the first bytes of a file.  Raises InvalidDocument for a
    damaged stream or an unknown compression, PolicyError past MAX_GROWTH, Unsupported
    for zstd without a decoder, StorageError, Cancelled.
    """
    with storage_errors("read %s" % source):
        magic = file.read(6)
        file.seek(0)
        decoders: Mapping[bytes, Decoder] = {b"\x1f\x8b": _gunzip, **others}
        decoder = next((decoders[start] for start in decoders if magic.startswith(start)), None)
        if decoder is not None:
            yield from _bounded(decoder(pieces(file, cancel, raw), source), file, source)
        elif _ZSTD.match(magic):
            if raw is not None:  # the decoder reads the file by itself
                hash_file(file, raw, cancel)
                file.seek(0)
            yield from _bounded(_unzstd(file, cancel, zstd, source), file, source)
        elif is_compressed(magic):
            raise InvalidDocument("%s is compressed with bzip2 or xz, not with gzip or zstd" % source)
        else:
            yield from pieces(file, cancel, raw)


def _bounded(stream: Iterator[bytes], file: BinaryIO, source: str) -> Iterator[bytes]:
    """Pass a stream on as long as it is in proportion to what has been read of its file."""
    size = 0
    for piece in stream:
        size += len(piece)
        if size > FREE_GROWTH + MAX_GROWTH * file.tell():
            raise PolicyError("%s grows from %d to more than %d bytes" % (source, file.tell(), size))
        yield piece


def _gunzip(pieces: Iterator[memoryview], source: str) -> Iterator[bytes]:
    """Inflate gzip members, of which zeros may pad the last one (RFC 1952)."""
    member = zlib.decompressobj(31)
    padding = False
    try:
        for piece in pieces:
            data: Buffer = piece
            while data:
                if padding or (member.eof and data[0] == 0):
                    padding = True
                    if bytes(data).strip(b"\0"):
                        raise InvalidDocument("%s has garbage after its gzip stream" % source)
                    break
                if member.eof:
                    member = zlib.decompressobj(31)
                yield member.decompress(data, BUFFER)
                data = member.unused_data if member.eof else member.unconsumed_tail
        if not member.eof:  # its checksum comes after all output, so nothing is held back
            raise InvalidDocument("%s's gzip stream is cut short" % source)
    except zlib.error as exc:
        raise InvalidDocument("%s's gzip stream is damaged (%s)" % (source, exc)) from exc


def _unzstd(file: BinaryIO, cancel: Cancel, program: Optional[str], source: str) -> Iterator[bytes]:
    """Decode zstd by Python's module (3.14), or by the program without shell or environment (CVE-2014-9357)."""
    try:
        module: Any = importlib.import_module("compression.zstd")
    except ImportError:
        module = None
    if module is not None:
        try:
            with module.ZstdFile(file) as stream:
                for data in iter(lambda: stream.read(BUFFER), b""):
                    cancel.check()
                    yield data
            return
        except (EOFError, module.ZstdError) as exc:
            raise InvalidDocument("%s's zstd stream is damaged (%s)" % (source, exc)) from exc
    if program is None:
        raise Unsupported("%s is compressed with zstd: install zstd or use Python 3.14" % source)
    process = subprocess.Popen(
        [program, "-dcq"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, bufsize=0)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def feed() -> None:
        with contextlib.suppress(OSError, Cancelled), stdin:  # the decoder reports a part as damaged
            for piece in pieces(file, cancel):
                while piece:
                    piece = piece[stdin.write(piece):]

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):  # has just ended by itself
            process.kill()

    feeder = threading.Thread(target=feed, name="feeder", daemon=True)
    try:
        with cancel.calling(kill):
            feeder.start()
            for data in iter(lambda: stdout.read(INPUT), b""):
                cancel.check()
                yield data
            cancel.check()
            if process.wait() != 0:
                raise InvalidDocument("%s's zstd stream is damaged" % source)
    finally:
        kill()
        stdout.close()
        process.wait()
        feeder.join()
