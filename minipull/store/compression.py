# SPDX-License-Identifier: Apache-2.0
"""Giving up, what is sent, and undoing compression, with a bound on everything.

:class:`Cancel` is what Go calls a context, and nothing more; a :class:`Body` is
what a request brings, as often as it has to be sent.  The rest turns a stored
layer into its tar stream: what it is compressed with is decided by its first
bytes, the output comes in pieces of at most 1 MiB however much a bomb holds, and
a stream that just ends is an error (zlib itself does not say so).

Mirrors moby's pkg/archive (DecompressStream).  RFC 1952 for gzip members.
"""
import contextlib
import importlib
import io
import os
import queue
import re
import subprocess
import threading
import zlib
from typing import Any, BinaryIO, Iterator, List, Optional, Union, cast

from ..cancel import Cancel
from ..digest import Buffer, Verifier
from ..errors import Cancelled, InvalidDocument, Unsupported, storage_errors

BUFFER = 1 << 20  # bytes; one buffer of a byte path
_INPUT = 128 << 10  # bytes; at the usual ratio one piece inflates in one call
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # or a skippable frame


def is_compressed(magic: bytes) -> bool:
    """Whether what begins like this is no tar as it is; six bytes tell."""
    return magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or _ZSTD.match(magic) is not None


def decompressed(file: BinaryIO, cancel: Cancel, zstd: Optional[str] = None,
                 raw: Optional[Verifier] = None, what: str = "layer") -> Iterator[Buffer]:
    """The tar stream in a layer file, piece by piece; a piece lives until the next.

    ``file`` is unbuffered and at its start; ``raw``, if given, sees every stored
    byte.  Raises InvalidDocument for a damaged stream or an unknown compression,
    Unsupported for zstd without a decoder, StorageError, Cancelled.
    """
    with storage_errors("read %s" % what):
        magic = file.read(6)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            yield from _gunzip(pieces(file, cancel, raw), what)
        elif _ZSTD.match(magic):
            if raw is not None:  # the decoder reads the file by itself
                for _ in pieces(file, cancel, raw):
                    pass
                file.seek(0)
            yield from _unzstd(file, cancel, zstd, what)
        elif is_compressed(magic):
            raise InvalidDocument("%s is compressed with bzip2 or xz, not with gzip or zstd" % what)
        else:
            yield from pieces(file, cancel, raw)


@contextlib.contextmanager
def ahead(pieces: Iterator[Buffer], depth: int = 4) -> Iterator[Iterator[Buffer]]:
    """The same pieces, made by a thread that is ``depth`` of them ahead of who takes them.

    Pieces must not change once they are made.  At the end of the block the
    thread has ended.
    """
    made: "queue.Queue[Optional[Buffer]]" = queue.Queue(depth)
    left = threading.Event()
    errors: List[BaseException] = []

    def make() -> None:
        try:
            for piece in pieces:
                made.put(piece)
                if left.is_set():
                    break
        except BaseException as exc:
            errors.append(exc)
        finally:
            made.put(None)

    def take() -> Iterator[Buffer]:
        while True:
            piece = made.get()
            if piece is None:
                break
            yield piece
        if errors:
            raise errors[0]

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        left.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                made.get(timeout=0.01)
        thread.join()


def pieces(file: Union[int, BinaryIO], cancel: Cancel, raw: Optional[Verifier] = None,
           size: int = _INPUT) -> Iterator[memoryview]:
    """What is left of an unbuffered file, shown to ``raw``; an OSError is the caller's to map."""
    buffer = memoryview(bytearray(size))
    while True:
        cancel.check()
        count = os.readv(file, [buffer]) if isinstance(file, int) else cast(io.RawIOBase, file).readinto(buffer)
        if not count:
            return
        if raw is not None:
            raw.update(buffer[:count])
        yield buffer[:count]


def _gunzip(pieces: Iterator[memoryview], what: str) -> Iterator[bytes]:
    """Inflate gzip members and the zeros that may pad the last one (RFC 1952)."""
    member = zlib.decompressobj(31)
    padding = False
    try:
        for piece in pieces:
            data: Buffer = piece
            while data:
                if padding or (member.eof and data[0] == 0):
                    padding = True
                    if bytes(data).strip(b"\0"):
                        raise InvalidDocument("%s has garbage after its gzip stream" % what)
                    break
                if member.eof:
                    member = zlib.decompressobj(31)
                yield member.decompress(data, BUFFER)
                data = member.unused_data if member.eof else member.unconsumed_tail
        if not member.eof:  # its checksum comes after all output, so nothing is held back
            raise InvalidDocument("%s's gzip stream is cut short" % what)
    except zlib.error as exc:
        raise InvalidDocument("%s's gzip stream is damaged (%s)" % (what, exc)) from exc


def _unzstd(file: BinaryIO, cancel: Cancel, program: Optional[str], what: str) -> Iterator[bytes]:
    """Decode zstd by the interpreter's own module (3.14) or the zstd program.

    The program is run for this magic alone, by absolute path, without a shell
    and with an empty environment (threats: CVE-2014-9357).
    """
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
            raise InvalidDocument("%s's zstd stream is damaged (%s)" % (what, exc)) from exc
    if program is None:
        raise Unsupported("%s is compressed with zstd: install zstd or use Python 3.14" % what)
    process = subprocess.Popen(
        [program, "-dcq"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, bufsize=0)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def feed() -> None:
        with contextlib.suppress(OSError, Cancelled), stdin:  # a part is damage to the decoder
            for piece in pieces(file, cancel):
                while piece:
                    piece = piece[stdin.write(piece):]

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):  # it ends by itself just now
            process.kill()

    feeder = threading.Thread(target=feed, name="feeder", daemon=True)
    try:
        with cancel.calling(kill):
            feeder.start()
            for data in iter(lambda: stdout.read(_INPUT), b""):
                cancel.check()
                yield data
            cancel.check()
            if process.wait() != 0:
                raise InvalidDocument("%s's zstd stream is damaged" % what)
    finally:
        kill()
        stdout.close()
        process.wait()
        feeder.join()
