# SPDX-License-Identifier: Apache-2.0
"""Archives from a pipe, or compressed in ways that no layer is: bzip2 and xz."""
import functools
import importlib
import io
import os
from typing import Any, BinaryIO, Iterator, cast

from ..errors import InvalidDocument, PolicyError, Unsupported
from ..store.source import BUFFER

_MEMORY = 80 << 20  # bytes for xz; the most that its levels need is 65 MiB


class Pipe(io.RawIOBase):
    """A stream whose first six bytes, which say how it is compressed, can be read twice."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._head = b""
        while len(self._head) < 6:
            data = file.read(6 - len(self._head))
            if not data:
                break
            self._head += data
        self._position = 0

    def readinto(self, buffer: Any) -> int:
        head = self._head[self._position:self._position + len(buffer)]
        count = len(head) or cast(io.RawIOBase, self._file).readinto(buffer) or 0
        buffer[:len(head)] = head
        self._position += count
        return count

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset
        return offset


def _decoded(name: str, pieces: Iterator[memoryview], source: str) -> Iterator[bytes]:
    """Decode streams of bzip2 or xz, one after another; zeros may follow the last one."""
    try:
        module: Any = importlib.import_module({"bzip2": "bz2", "xz": "lzma"}[name])
    except ImportError as exc:
        raise Unsupported("%s is compressed with %s, which this Python lacks: pipe it through %s -dc" % (
            source, name, name)) from exc
    decoder: Any = None
    for piece in pieces:
        data = bytes(piece)
        while data or decoder and not decoder.eof and not decoder.needs_input:
            if decoder is None or decoder.eof:
                data = data if decoder is None else data.lstrip(b"\0")
                if not data:
                    break
                decoder = module.BZ2Decompressor() if name == "bzip2" else module.LZMADecompressor(
                    module.FORMAT_XZ, _MEMORY)
            try:
                tar = decoder.decompress(data, BUFFER)
            except (OSError, EOFError, getattr(module, "LZMAError", OSError)) as exc:
                if "Memory usage" in str(exc):
                    raise PolicyError("%s needs more than %d MiB to unpack it" % (
                        source, _MEMORY >> 20)) from exc
                raise InvalidDocument("%s's %s stream is damaged (%s)" % (source, name, exc)) from exc
            yield tar
            data = decoder.unused_data
    if not decoder.eof:
        raise InvalidDocument("%s's %s stream is cut short" % (source, name))


#: Decoders by the first bytes of their files.
DECODERS = {b"BZh": functools.partial(_decoded, "bzip2"), b"\xfd7zXZ\0": functools.partial(_decoded, "xz")}
