# SPDX-License-Identifier: Apache-2.0
"""Parts of files: read as files of their own, and sent to a socket."""
import io
import os
import select
import socket
from typing import Any, BinaryIO, Iterator

from .errors import file_errors

_PIECE = 128 << 10  # bytes of one sendfile
_COPY = 256 << 10  # bytes read and sent at once


class Extent(io.RawIOBase):
    """A part of a file, in bytes from ``start`` on, read as a file of its own; many may be read at once."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._fd = file.fileno()
        self.start = self._position = start
        self._end = start + size

    def fileno(self) -> int:
        return self._fd

    def readinto(self, buffer: Any) -> int:
        with file_errors("read the archive"):
            data = os.pread(self._fd, min(len(buffer), self._end - self._position), self._position)
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (self._position if whence else self.start)
        return self._position - self.start


def send(sock: socket.socket, file: BinaryIO, offset: int, count: int) -> Iterator[int]:
    """Send a part of a file, by sendfile(2) if the peer is another machine.

    Yields the length of each piece in bytes; ends early where the file does.
    Raises OSError, socket.timeout as the socket does.
    """
    end, timeout = offset + count, sock.gettimeout()
    start = file.start if isinstance(file, Extent) else 0
    # To a peer on this machine copying is quicker: the data is in the cache when it reads.
    copying = (not hasattr(os, "sendfile") or isinstance(file, io.BytesIO)
               or sock.getpeername()[:1] == sock.getsockname()[:1])
    while offset < end:
        if copying:
            file.seek(offset)
            piece = file.read(min(_COPY, end - offset))
            sock.sendall(piece)
            sent = len(piece)
        else:
            try:
                sent = os.sendfile(sock.fileno(), file.fileno(), start + offset, min(_PIECE, end - offset))
            except BlockingIOError:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                if not poll.poll(timeout and timeout * 1000):
                    raise socket.timeout("timed out") from None
                continue
        if not sent:
            return
        offset += sent
        yield sent
